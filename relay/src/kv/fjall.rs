//! The [`Kv`] adapter for fjall 3.
//!
//! Two keyspaces: events are keyed by a growing number, so compaction only
//! moves them; every other key goes to the index. Memtables are 16 MiB, because
//! the default of 64 stalls a put for half a second when it is flushed.

use std::ops::Range;
use std::path::Path;

use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::slot::Slot;
use super::{Batch, Entry, Kv, KvError, Order, guarded};
use crate::store::keys;

const ENGINE: &str = "fjall";
/// See the module's text.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Blocks kept in memory. Small, since the relay shares a machine with a node.
const CACHE_BYTES: u64 = 32 << 20;
/// One is enough beside one writer, and leaves the cores to signature checks.
const WORKERS: usize = 1;

pub(super) struct FjallKv(Slot<Open>);

struct Open {
    db: Database,
    events: Keyspace,
    index: Keyspace,
}

impl FjallKv {
    pub(super) fn open(dir: &Path) -> Result<Self, KvError> {
        Slot::open(dir, Open::new).map(Self)
    }

    fn call<T>(&self, call: impl FnOnce(&Open) -> fjall::Result<T>) -> Result<T, KvError> {
        self.0.shared(|open| guarded(|| call(open)).map_err(failed)?.map_err(running))
    }
}

impl Kv for FjallKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.call(|open| Ok(open.keyspace(key).get(key)?.map(|value| value.to_vec())))
    }

    fn page(&self, range: Range<&[u8]>, order: Order, max: usize) -> Result<Vec<Entry>, KvError> {
        self.call(|open| {
            let entries = open.keyspace(range.start).range(range);
            match order {
                Order::Forward => entries.take(max).map(entry).collect(),
                Order::Reverse => entries.rev().take(max).map(entry).collect(),
            }
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), KvError> {
        self.call(|open| open.write(batch)).inspect_err(|_| self.0.close())
    }
}

impl Open {
    fn new(dir: &Path) -> Result<Self, KvError> {
        guarded(|| Self::try_new(dir))
            .map_err(|detail| damaged(dir, detail))?
            .map_err(|error| opening(dir, error))
    }

    fn try_new(dir: &Path) -> fjall::Result<Self> {
        let db = Database::builder(dir).cache_size(CACHE_BYTES).worker_threads(WORKERS).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let events = db.keyspace("events", options)?;
        let index = db.keyspace("index", options)?;
        Ok(Self { db, events, index })
    }

    fn keyspace(&self, key: &[u8]) -> &Keyspace {
        if key.first() == Some(&keys::EVENT) { &self.events } else { &self.index }
    }

    fn write(&self, batch: Batch) -> fjall::Result<()> {
        // The batch's own durability: a separate `persist` would show readers
        // what is not on the disk yet.
        let mut write = self.db.batch().durability(Some(PersistMode::SyncAll));
        for (key, value) in batch {
            let keyspace = self.keyspace(&key);
            match value {
                Some(value) => write.insert(keyspace, key, value),
                None => write.remove(keyspace, key),
            }
        }
        write.commit()
    }
}

fn entry(guard: Guard) -> fjall::Result<Entry> {
    guard.into_inner().map(|(key, value)| (key.to_vec(), value.to_vec()))
}

fn opening(dir: &Path, error: fjall::Error) -> KvError {
    match error {
        fjall::Error::Locked => KvError::Locked { dir: dir.to_owned() },
        fjall::Error::Io(error) if is_environment(&error) => KvError::Io(error),
        error => damaged(dir, format!("{error:?}")),
    }
}

/// True for an I/O error that says nothing about the files' content.
fn is_environment(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | StorageFull)
}

fn running(error: fjall::Error) -> KvError {
    match error {
        fjall::Error::Io(error) => KvError::Io(error),
        error => failed(format!("{error:?}")),
    }
}

fn damaged(dir: &Path, detail: String) -> KvError {
    KvError::Damaged { engine: ENGINE, dir: dir.to_owned(), detail }
}

fn failed(detail: impl Into<String>) -> KvError {
    KvError::Engine { engine: ENGINE, detail: detail.into() }
}
