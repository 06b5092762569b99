//! The journal on disk: a sled tree of records, one for each sequence. A record
//! is durable before anybody hears of it.
//!
//! sled's `flush` ends in `sync_file_range`, which does not reach the disk on
//! Linux (sled#1452), so each write also syncs the database file.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use nostr::{Event, JsonUtil};

/// First byte of each record.
const VERSION: u8 = 1;
/// Pages kept in memory.
const CACHE_BYTES: u64 = 64 << 20;
/// A closed database stays locked for a moment, as its threads let go of it.
const LOCK_TRIES: usize = 20;
const LOCK_WAIT: Duration = Duration::from_millis(50);

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database refused.
    #[error("journal: {0}")]
    Sled(#[from] sled::Error),
    /// The disk refused.
    #[error("journal: {0}")]
    Io(#[from] std::io::Error),
    /// A record is not what was written.
    #[error(
        "the journal's record {seq} is damaged: {detail}; move the journal's folder away, and \
         start again: what the relays hold is fetched from them"
    )]
    Damaged {
        /// Its sequence.
        seq: u64,
        /// What is wrong with it.
        detail: String,
    },
}

/// The journal on disk. One process at a time.
#[derive(Debug)]
pub struct Journal {
    db: sled::Db,
    records: sled::Tree,
    cursors: sled::Tree,
    file: File,
}

impl Journal {
    /// Opens the journal in a folder, which is made if there is none.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        std::fs::create_dir_all(dir)?;
        let mut tries = 1;
        let db = loop {
            let config = sled::Config::new()
                .path(dir)
                .cache_capacity(CACHE_BYTES)
                .mode(sled::Mode::HighThroughput)
                .flush_every_ms(None);
            match config.open() {
                Err(sled::Error::Io(error)) if tries < LOCK_TRIES && is_lock(&error) => {
                    tries += 1;
                    std::thread::sleep(LOCK_WAIT);
                }
                opened => break opened?,
            }
        };
        let file = File::open(dir.join("db"))?;
        // What an earlier run had flushed may not be on the disk yet.
        file.sync_data()?;
        let (records, cursors) = (db.open_tree("records")?, db.open_tree("cursors")?);
        Ok(Self { db, records, cursors, file })
    }

    /// Sequence of the newest record.
    pub fn newest(&self) -> Result<Option<u64>, JournalError> {
        Ok(self.records.last()?.map(|(key, _)| sequence(&key)))
    }

    /// The events of one sequence, signed: the entry (8480) first, then what it
    /// brought about (8481, 8482). `None` beyond the newest.
    pub fn record(&self, seq: u64) -> Result<Option<Vec<Event>>, JournalError> {
        let Some(value) = self.records.get(seq.to_be_bytes())? else { return Ok(None) };
        decode(seq, &value).map(Some)
    }

    /// The records from a sequence on, undecoded; see [`decode`].
    pub(crate) fn from(
        &self,
        seq: u64,
    ) -> impl Iterator<Item = Result<(u64, sled::IVec), JournalError>> {
        let range = self.records.range(seq.to_be_bytes()..);
        range.map(|item| item.map(|(key, value)| (sequence(&key), value)).map_err(Into::into))
    }

    /// Makes records durable, all or none. They follow the newest.
    pub(crate) fn append(&self, records: &[(u64, Vec<u8>)]) -> Result<(), JournalError> {
        let mut batch = sled::Batch::default();
        for (seq, record) in records {
            batch.insert(&seq.to_be_bytes(), record.as_slice());
        }
        self.records.apply_batch(batch)?;
        self.db.flush()?;
        Ok(self.file.sync_data()?)
    }

    /// How far a reader of the journal (a relay's outlet) has come: the first
    /// sequence that it has not dealt with.
    pub fn cursor(&self, reader: &str) -> Result<u64, JournalError> {
        Ok(self.cursors.get(reader)?.map_or(0, |value| sequence(&value)))
    }

    /// Notes how far a reader has come. It is durable with the next records:
    /// repeating what it dealt with is harmless.
    pub fn set_cursor(&self, reader: &str, next: u64) -> Result<(), JournalError> {
        self.cursors.insert(reader, &next.to_be_bytes())?;
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Cursors only; records were synced when they were written.
        if let Err(error) = self.db.flush() {
            tracing::warn!(%error, "the journal's cursors were not written");
        }
    }
}

/// A record's bytes.
pub(crate) fn encode(events: &[Event]) -> Vec<u8> {
    let mut record = vec![VERSION];
    for event in events {
        record.extend_from_slice(event.as_json().as_bytes());
        record.push(b'\n');
    }
    record
}

/// The events of a record.
pub(crate) fn decode(seq: u64, record: &[u8]) -> Result<Vec<Event>, JournalError> {
    let damaged = |detail: String| JournalError::Damaged { seq, detail };
    let Some((&VERSION, lines)) = record.split_first() else {
        return Err(damaged("its version is unknown".to_owned()));
    };
    let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| Event::from_json(line).map_err(|error| damaged(error.to_string()))).collect()
}

fn is_lock(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn sequence(key: &[u8]) -> u64 {
    key.try_into().map_or(u64::MAX, u64::from_be_bytes)
}
