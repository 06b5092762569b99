//! The event store: events and their indexes, written once over [`Kv`].
//!
//! [`EventStore`] is the one writer: it begins a [`Transaction`], which judges
//! events by NIP-01, 09 and 40 and commits what is kept, durably and at once.
//! [`Reader`]s are cheap to clone and answer queries beside it.

mod audit;
pub(crate) mod keys;
mod query;
mod transaction;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nostr::EventId;

pub use self::audit::Audit;
pub use self::query::{Page, Query};
pub use self::transaction::{Outcome, Transaction};
pub use crate::kv::{Engine, KvError};

use crate::event::{Event, RecordError};
use crate::kv::{self, Batch, Kv, Order};

/// The layout that this program reads and writes (see [`keys`]).
const FORMAT: u8 = 1;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine below failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// Written by another version of this program.
    #[error(
        "the database has format {0:?}, this program reads {FORMAT}; use the program that wrote it"
    )]
    Format(Option<u8>),
    /// What is stored makes no sense.
    #[error("the database is damaged: {0}; move its folder away and start with an empty one")]
    Damaged(&'static str),
    /// A stored event makes no sense.
    #[error("a stored event is damaged: {0}")]
    Record(#[from] RecordError),
    /// The thread that answered a query died.
    #[error("a query did not finish: {0}")]
    Task(String),
}

/// The store and the right to write to it.
pub struct EventStore {
    reader: Reader,
    /// The sequence of the next event.
    next: u64,
}

/// The right to read from the store.
#[derive(Clone)]
pub struct Reader {
    kv: Arc<dyn Kv>,
    counters: Arc<Counters>,
}

/// What the writer tells readers without asking the engine.
#[derive(Default)]
pub(crate) struct Counters {
    /// The highest sequence that is durable.
    last: AtomicU64,
    /// Events stored.
    events: AtomicU64,
}

impl Counters {
    /// How many events are stored.
    pub(crate) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }
}

impl EventStore {
    /// Opens the store in `dir`, creating it if there is none. It refuses to
    /// write when fewer than `reserve_bytes` are free on the disk.
    pub fn open(engine: Engine, dir: &Path, reserve_bytes: u64) -> Result<Self, StoreError> {
        Self::over(kv::open(engine, dir, reserve_bytes)?)
    }

    /// A store over `kv`.
    pub(crate) fn over(kv: Arc<dyn Kv>) -> Result<Self, StoreError> {
        check_format(&*kv)?;
        let last = last_sequence(&*kv)?;
        let events = match kv.get(keys::COUNT)? {
            Some(value) => keys::sequence(&value).ok_or(StoreError::Damaged("event count"))?,
            None => 0,
        };
        let counters = Counters { last: last.into(), events: events.into() };
        Ok(Self { reader: Reader { kv, counters: Arc::new(counters) }, next: last + 1 })
    }

    /// A reader of this store.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Begins a transaction; dropping it changes nothing.
    pub fn begin(&mut self) -> Transaction<'_> {
        Transaction::new(self)
    }
}

impl Reader {
    /// How many events are stored.
    pub fn events(&self) -> u64 {
        self.counters.events()
    }

    /// The counters alone, which hold no database open.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// The sequence of the newest durable event: a query sees events up to it,
    /// live delivery begins after it.
    pub fn last_sequence(&self) -> u64 {
        self.counters.last.load(Ordering::Acquire)
    }

    /// The event with this id.
    pub fn get(&self, id: &EventId) -> Result<Option<Event>, StoreError> {
        match self.kv.get(&keys::id(id))? {
            Some(value) => self.at(keys::sequence(&value).ok_or(StoreError::Damaged("id index"))?),
            None => Ok(None),
        }
    }

    /// The event with this sequence; `None` if it was removed meanwhile.
    fn at(&self, sequence: u64) -> Result<Option<Event>, StoreError> {
        let record = self.kv.get(&keys::event(sequence))?;
        Ok(record.map(Event::from_record).transpose()?)
    }
}

fn check_format(kv: &dyn Kv) -> Result<(), StoreError> {
    match kv.get(keys::FORMAT)?.as_deref() {
        Some([FORMAT]) => Ok(()),
        Some(other) => Err(StoreError::Format(other.first().copied())),
        None => {
            let (start, end) = keys::events();
            if !kv.page(&start..&end, Order::Forward, 1)?.is_empty() {
                return Err(StoreError::Damaged("it has events but no format"));
            }
            let mut batch = Batch::default();
            batch.put(keys::FORMAT.to_vec(), vec![FORMAT]);
            Ok(kv.commit(batch)?)
        }
    }
}

fn last_sequence(kv: &dyn Kv) -> Result<u64, StoreError> {
    let (start, end) = keys::events();
    match kv.page(&start..&end, Order::Reverse, 1)?.first() {
        Some((key, _)) => keys::sequence(key).ok_or(StoreError::Damaged("event key")),
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, JsonUtil, Keys, Timestamp};

    use super::*;
    use crate::event::json::Checker;
    use crate::filter::Filter;
    use crate::kv::memory::MemoryKv;
    use crate::visibility::Viewer;

    fn note() -> Event {
        let event = EventBuilder::text_note("x").sign_with_keys(&Keys::generate()).unwrap();
        Checker::default().check(&event.as_json()).unwrap()
    }

    #[test]
    fn a_query_sees_events_up_to_its_watermark() {
        let mut store = EventStore::over(Arc::new(MemoryKv::default())).unwrap();
        let reader = store.reader();
        for _ in 0..3 {
            let mut transaction = store.begin();
            transaction.insert(&note()).unwrap();
            transaction.commit().unwrap();
        }
        let now = Timestamp::now();
        for watermark in 0..=reader.last_sequence() {
            let filters = [Filter::default()];
            let query = Query::new(&reader, &filters, Viewer::default(), watermark, now);
            let page = query.unwrap().next_page(usize::MAX, usize::MAX).unwrap();
            assert_eq!((page.events.len() as u64, page.done), (watermark, true));
        }
    }

    #[test]
    fn a_transaction_that_is_dropped_changes_nothing() {
        let mut store = EventStore::over(Arc::new(MemoryKv::default())).unwrap();
        store.begin().insert(&note()).unwrap();
        let audit = store.reader().audit().unwrap();
        assert_eq!(audit, Audit { events: 0, mismatches: 0 });
    }

    #[test]
    fn another_format_is_refused() {
        let kv = Arc::new(MemoryKv::default());
        let mut batch = Batch::default();
        batch.put(keys::FORMAT.to_vec(), vec![FORMAT + 1]);
        kv.commit(batch).unwrap();
        assert!(matches!(EventStore::over(kv), Err(StoreError::Format(Some(2)))));
    }
}
