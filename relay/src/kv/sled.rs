//! The [`Kv`] adapter for sled 0.34.
//!
//! sled's `flush` ends in `sync_file_range`, which does not reach the disk on
//! Linux (sled#1452), so each commit also syncs the database file. sled shows a
//! batch to readers before it is flushed, so readers wait for the commit.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use super::slot::Slot;
use super::{Batch, Entry, Kv, KvError, Order, guarded};

const ENGINE: &str = "sled";
/// Pages kept in memory.
const CACHE_BYTES: u64 = 64 << 20;
/// A closed database stays locked for a moment, as its threads let go of it.
const LOCK_TRIES: usize = 10;
const LOCK_WAIT: Duration = Duration::from_millis(50);

pub(super) struct SledKv(Slot<Open>);

struct Open {
    db: sled::Db,
    file: File,
}

impl SledKv {
    pub(super) fn open(dir: &Path) -> Result<Self, KvError> {
        Slot::open(dir, Open::new).map(Self)
    }

    fn read<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, KvError> {
        self.0.shared(|open| guarded(|| call(&open.db)).map_err(failed)?.map_err(running))
    }
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.read(|db| Ok(db.get(key)?.map(|value| value.to_vec())))
    }

    fn page(&self, range: Range<&[u8]>, order: Order, max: usize) -> Result<Vec<Entry>, KvError> {
        self.read(|db| {
            let entries = db.range(range);
            match order {
                Order::Forward => entries.take(max).map(entry).collect(),
                Order::Reverse => entries.rev().take(max).map(entry).collect(),
            }
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), KvError> {
        // A failed batch must be gone before a reader comes in again, hence the
        // close: sled would go on showing it.
        let written = self.0.exclusive(|open| guarded(|| open.write(batch)).map_err(failed)?);
        written.inspect_err(|_| self.0.close())
    }
}

impl Open {
    fn new(dir: &Path) -> Result<Self, KvError> {
        let mut tries = 1;
        let db = loop {
            match Self::try_new(dir) {
                Err(KvError::Locked { .. }) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_WAIT);
                }
                opened => break opened?,
            }
        };
        let file = File::open(dir.join("db"))?;
        // What an earlier run had flushed may not be on the disk yet.
        file.sync_data()?;
        Ok(Self { db, file })
    }

    fn try_new(dir: &Path) -> Result<sled::Db, KvError> {
        guarded(|| config(dir).open())
            .map_err(|detail| damaged(dir, detail))?
            .map_err(|error| opening(dir, error))
    }

    fn write(&self, batch: Batch) -> Result<(), KvError> {
        let mut write = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => write.insert(key, value),
                None => write.remove(key),
            }
        }
        self.db.apply_batch(write).map_err(running)?;
        self.db.flush().map_err(running)?;
        Ok(self.file.sync_data()?)
    }
}

fn config(dir: &Path) -> sled::Config {
    // No background flusher: a commit is the only thing that flushes.
    sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(None)
}

fn entry(entry: sled::Result<(sled::IVec, sled::IVec)>) -> sled::Result<Entry> {
    entry.map(|(key, value)| (key.to_vec(), value.to_vec()))
}

fn opening(dir: &Path, error: sled::Error) -> KvError {
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            KvError::Locked { dir: dir.to_owned() }
        }
        sled::Error::Io(error) => KvError::Io(error),
        error => damaged(dir, error.to_string()),
    }
}

fn running(error: sled::Error) -> KvError {
    match error {
        sled::Error::Io(error) => KvError::Io(error),
        error => failed(error.to_string()),
    }
}

fn damaged(dir: &Path, detail: String) -> KvError {
    KvError::Damaged { engine: ENGINE, dir: dir.to_owned(), detail }
}

fn failed(detail: impl Into<String>) -> KvError {
    KvError::Engine { engine: ENGINE, detail: detail.into() }
}
