//! What happens to the store when an event arrives: NIP-01's replaceable and
//! addressable kinds, NIP-09's deletions, NIP-40's expiry.
//!
//! A [`Transaction`] reads its own writes, so the events of one batch judge each
//! other as if they had come one by one.

use std::sync::atomic::Ordering;

use nostr::{EventId, Kind, PublicKey, Timestamp};

use super::{EventStore, StoreError, keys};
use crate::event::{Class, Event, parse_hex};
use crate::kv::{Batch, Order};

/// NIP-09.
const DELETION: u16 = 5;
/// Version of a tombstone.
const TOMBSTONE: u8 = 1;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Kept under this sequence, once the transaction is committed.
    Stored(u64),
    /// It is there already.
    Duplicate,
    /// A newer version of it is there (NIP-01).
    Superseded,
    /// Its author has deleted it (NIP-09).
    Deleted,
}

/// Changes that are made together or not at all.
pub struct Transaction<'a> {
    store: &'a mut EventStore,
    batch: Batch,
    next: u64,
    events: u64,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(store: &'a mut EventStore) -> Self {
        let (next, events) = (store.next, store.reader.events());
        Self { store, batch: Batch::default(), next, events }
    }

    /// Takes in an event, which must not be of an ephemeral kind.
    pub fn insert(&mut self, event: &Event) -> Result<Outcome, StoreError> {
        debug_assert_ne!(event.class(), Class::Ephemeral, "ephemeral events are not stored");
        if self.get(&keys::id(&event.id()))?.is_some() {
            return Ok(Outcome::Duplicate);
        }
        if self.was_deleted(event)? {
            return Ok(Outcome::Deleted);
        }
        if let Some((sequence, current)) = self.current_version(event)? {
            if !supersedes(event, &current) {
                return Ok(Outcome::Superseded);
            }
            self.remove(sequence, &current);
        }
        let sequence = self.put(event);
        if event.kind().as_u16() == DELETION {
            self.delete_targets(event)?;
        }
        Ok(Outcome::Stored(sequence))
    }

    /// Removes up to `max` events that have expired at `now` (NIP-40), and says
    /// how many there were.
    pub fn remove_expired(&mut self, now: Timestamp, max: usize) -> Result<usize, StoreError> {
        let (start, end) = keys::expired(now);
        let due = self.store.reader.kv.page(&start..&end, Order::Forward, max)?;
        for (key, _) in &due {
            let sequence = keys::sequence(key).ok_or(StoreError::Damaged("expiry key"))?;
            match self.at(sequence)? {
                Some(event) => self.remove(sequence, &event),
                None => self.batch.delete(key.clone()),
            }
        }
        Ok(due.len())
    }

    /// Makes all of it durable. On an error none of it happened.
    pub fn commit(mut self) -> Result<(), StoreError> {
        let counters = self.store.reader.counters.clone();
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch.put(keys::COUNT.to_vec(), self.events.to_be_bytes().to_vec());
        self.store.reader.kv.commit(self.batch)?;
        self.store.next = self.next;
        counters.events.store(self.events, Ordering::Relaxed);
        counters.last.store(self.next - 1, Ordering::Release);
        Ok(())
    }

    fn put(&mut self, event: &Event) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.events += 1;
        self.batch.put(keys::event(sequence), event.as_record().to_vec());
        for (key, value) in keys::of_event(event, sequence) {
            self.batch.put(key, value);
        }
        sequence
    }

    fn remove(&mut self, sequence: u64, event: &Event) {
        self.events = self.events.saturating_sub(1);
        self.batch.delete(keys::event(sequence));
        for (key, _) in keys::of_event(event, sequence) {
            self.batch.delete(key);
        }
    }

    fn current_version(&self, event: &Event) -> Result<Option<(u64, Event)>, StoreError> {
        match keys::Address::of(event) {
            Some(address) => self.newest(&address),
            None => Ok(None),
        }
    }

    fn newest(&self, address: &keys::Address) -> Result<Option<(u64, Event)>, StoreError> {
        self.pointed_at(&address.newest())
    }

    /// The event whose sequence is stored under `key`.
    fn pointed_at(&self, key: &[u8]) -> Result<Option<(u64, Event)>, StoreError> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        let sequence = keys::sequence(&value).ok_or(StoreError::Damaged("sequence"))?;
        let event = self.at(sequence)?.ok_or(StoreError::Damaged("index without event"))?;
        Ok(Some((sequence, event)))
    }

    /// True if its author has deleted it, by id or by address (NIP-09). A
    /// deletion cannot be deleted.
    fn was_deleted(&self, event: &Event) -> Result<bool, StoreError> {
        if event.kind().as_u16() == DELETION {
            return Ok(false);
        }
        let by_id = keys::deleted_id(event.id().as_bytes(), &event.pubkey());
        if self.get(&by_id)?.is_some() {
            return Ok(true);
        }
        let Some(address) = keys::Address::of(event) else { return Ok(false) };
        let until = self.deleted_until(&address)?;
        Ok(until.is_some_and(|until| event.created_at() <= until))
    }

    /// Up to when versions at `address` are deleted.
    fn deleted_until(&self, address: &keys::Address) -> Result<Option<Timestamp>, StoreError> {
        match self.get(&address.deleted())?.as_deref() {
            Some([TOMBSTONE, second @ ..]) => keys::sequence(second)
                .map(|second| Some(Timestamp::from_secs(second)))
                .ok_or(StoreError::Damaged("tombstone")),
            Some(_) => Err(StoreError::Damaged("tombstone version")),
            None => Ok(None),
        }
    }

    /// Deletes what the tags of a kind 5 event name (NIP-09).
    fn delete_targets(&mut self, deletion: &Event) -> Result<(), StoreError> {
        for tag in deletion.tags() {
            let Some((letter, value)) = tag.indexed() else { continue };
            match letter {
                b'e' => {
                    if let Some(id) = value.as_bytes32() {
                        self.delete_id(id, &deletion.pubkey())?;
                    }
                }
                b'a' => {
                    if let Some(address) = own_address(&value.to_text(), &deletion.pubkey()) {
                        self.delete_address(&address, deletion.created_at())?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn delete_id(&mut self, id: &[u8; 32], author: &PublicKey) -> Result<(), StoreError> {
        match self.pointed_at(&keys::id(&EventId::from_byte_array(*id)))? {
            Some((_, event)) if event.pubkey() != *author => return Ok(()),
            Some((_, event)) if event.kind().as_u16() == DELETION => return Ok(()),
            Some((sequence, event)) => self.remove(sequence, &event),
            None => {}
        }
        // Also where the event is not here yet: it cannot come later.
        self.batch.put(keys::deleted_id(id, author), vec![TOMBSTONE]);
        Ok(())
    }

    fn delete_address(
        &mut self,
        address: &keys::Address,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        if let Some((sequence, event)) = self.newest(address)?
            && event.created_at() <= until
        {
            self.remove(sequence, &event);
        }
        let until = self.deleted_until(address)?.map_or(until, |earlier| earlier.max(until));
        let value = [&[TOMBSTONE][..], &until.as_secs().to_be_bytes()].concat();
        self.batch.put(address.deleted(), value);
        Ok(())
    }

    fn at(&self, sequence: u64) -> Result<Option<Event>, StoreError> {
        let record = self.get(&keys::event(sequence))?;
        Ok(record.map(Event::from_record).transpose()?)
    }

    /// The value of `key`, as this transaction has left it.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.batch.get(key) {
            Some(pending) => Ok(pending.map(<[u8]>::to_vec)),
            None => Ok(self.store.reader.kv.get(key)?),
        }
    }
}

/// True if `event` takes the place of `current` (NIP-01): newer, or as old with
/// the lower id.
fn supersedes(event: &Event, current: &Event) -> bool {
    let age = event.created_at().cmp(&current.created_at());
    age.then_with(|| current.id().cmp(&event.id())).is_gt()
}

/// The address that the text of an `a` tag names, if it is `author`'s.
fn own_address(text: &str, author: &PublicKey) -> Option<keys::Address> {
    let mut parts = text.splitn(3, ':');
    let kind = Kind::from(parts.next()?.parse::<u16>().ok()?);
    let owner = parse_hex(parts.next()?)?;
    let identifier = parts.next().unwrap_or_default();
    let exists = match Class::of(kind) {
        Class::Replaceable => identifier.is_empty(),
        Class::Addressable => true,
        Class::Regular | Class::Ephemeral => false,
    };
    let is_own = owner == *author.as_bytes();
    (exists && is_own).then(|| keys::Address::new(author, kind, identifier))
}
