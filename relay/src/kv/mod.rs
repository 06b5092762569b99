//! The small ordered key-value trait that the event store is written over.
//!
//! Owns nothing but the seam: [`Kv`] and its two adapters, [`fjall`] and
//! [`sled`]. Promises that a committed [`Batch`] is whole and on the disk, and
//! that nobody reads from it before it is. Only `store` calls it.
//!
//! A key's first byte names its table (`store::keys`); an adapter may keep
//! tables apart, because a range never crosses one.

mod fjall;
#[cfg(test)]
pub(crate) mod memory;
mod reserve;
mod sled;
mod slot;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use self::reserve::Reserve;

/// Which embedded engine keeps the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// fjall 3, a log-structured store: the faster and smaller one.
    #[default]
    Fjall,
    /// sled 0.34, a Bw-tree.
    Sled,
}

/// Why the key-value store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The files are there, but cannot be trusted or read.
    #[error(
        "the {engine} database in {} cannot be opened ({detail}); move that folder away and start \
         again with an empty one, then fetch the events from another relay or an export",
        dir.display()
    )]
    Damaged {
        /// The engine that gave up.
        engine: &'static str,
        /// Its folder.
        dir: PathBuf,
        /// What it said.
        detail: String,
    },
    /// Another process has it open.
    #[error("the database in {} is in use by another process; stop that one first", dir.display())]
    Locked {
        /// Its folder.
        dir: PathBuf,
    },
    /// Less room than the reserve that engines need for their own work.
    #[error(
        "the disk of {} has {free} bytes left, fewer than the reserve of {reserve}; make room",
        dir.display()
    )]
    NoRoom {
        /// The database's folder.
        dir: PathBuf,
        /// Bytes free now.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// The file system refused, for example because the disk is full.
    #[error("the disk refused: {0}")]
    Io(#[from] io::Error),
    /// Anything else that the engine reported while running.
    #[error("the {engine} database failed: {detail}")]
    Engine {
        /// The engine.
        engine: &'static str,
        /// What it said.
        detail: String,
    },
}

/// Changes that become durable together. The last change to a key wins; the
/// engines leave the order within a batch undefined, so a map keeps it simple.
#[derive(Default, Debug)]
pub(crate) struct Batch {
    /// Key to its new value, or `None` to delete it.
    changes: HashMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Batch {
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    /// The pending value of `key`: `None` if this batch does not touch it.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.changes.get(key).map(|value| value.as_deref())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl IntoIterator for Batch {
    type Item = (Vec<u8>, Option<Vec<u8>>);
    type IntoIter = std::collections::hash_map::IntoIter<Vec<u8>, Option<Vec<u8>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.changes.into_iter()
    }
}

/// The direction of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Forward,
    Reverse,
}

/// A key and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// An ordered map from bytes to bytes with durable, atomic batches.
///
/// Ranges come in pages instead of as iterators: a page holds no lock, snapshot
/// or file open between two calls, so a slow reader cannot hold up the engine.
pub(crate) trait Kv: Send + Sync {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// Up to `max` entries of the half-open `range`, from the end that `order` says.
    fn page(&self, range: Range<&[u8]>, order: Order, max: usize) -> Result<Vec<Entry>, KvError>;

    /// Makes `batch` durable; on an error none of it counts, and a later call
    /// may succeed again (for example when there is room on the disk).
    fn commit(&self, batch: Batch) -> Result<(), KvError>;
}

/// Opens `engine`'s database in `dir`, creating it if there is none. It refuses
/// to write when fewer than `reserve_bytes` are free on the disk.
pub(crate) fn open(engine: Engine, dir: &Path, reserve_bytes: u64) -> Result<Arc<dyn Kv>, KvError> {
    std::fs::create_dir_all(dir)?;
    Ok(match engine {
        Engine::Fjall => reserved(fjall::FjallKv::open(dir)?, dir, reserve_bytes),
        Engine::Sled => reserved(sled::SledKv::open(dir)?, dir, reserve_bytes),
    })
}

fn reserved(kv: impl Kv + 'static, dir: &Path, bytes: u64) -> Arc<dyn Kv> {
    Arc::new(Reserve { kv, dir: dir.to_owned(), bytes })
}

/// Runs an engine's call and turns a panic into its message: both engines
/// assert on what they read from disk, and a damaged file must not stop us.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "it panicked without a message".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Vec<u8> {
        vec![b'k', n]
    }

    fn filled(kv: &dyn Kv) {
        let mut batch = Batch::default();
        (0..10).for_each(|n| batch.put(key(n), vec![n]));
        kv.commit(batch).unwrap();
    }

    fn keys(kv: &dyn Kv, order: Order, max: usize) -> Vec<u8> {
        let page = kv.page(&key(2)..&key(7), order, max).unwrap();
        page.iter().map(|(key, _)| key[1]).collect()
    }

    fn each(check: impl Fn(&dyn Kv)) {
        check(&memory::MemoryKv::default());
        for engine in [Engine::Fjall, Engine::Sled] {
            let dir = tempfile::tempdir().unwrap();
            check(&*open(engine, dir.path(), 0).unwrap());
        }
    }

    #[test]
    fn ranges_go_both_ways_and_stop_at_the_limit() {
        each(|kv| {
            filled(kv);
            assert_eq!(keys(kv, Order::Forward, 100), [2, 3, 4, 5, 6]);
            assert_eq!(keys(kv, Order::Reverse, 2), [6, 5]);
        });
    }

    #[test]
    fn the_last_change_to_a_key_in_a_batch_wins() {
        each(|kv| {
            filled(kv);
            let mut batch = Batch::default();
            batch.delete(key(3));
            batch.put(key(4), vec![99]);
            batch.put(key(5), vec![1]);
            batch.delete(key(5));
            kv.commit(batch).unwrap();
            assert_eq!(kv.get(&key(3)).unwrap(), None);
            assert_eq!(kv.get(&key(4)).unwrap(), Some(vec![99]));
            assert_eq!(kv.get(&key(5)).unwrap(), None);
        });
    }

    #[test]
    fn what_was_committed_is_there_after_reopening() {
        for engine in [Engine::Fjall, Engine::Sled] {
            let dir = tempfile::tempdir().unwrap();
            filled(&*open(engine, dir.path(), 0).unwrap());
            let kv = open(engine, dir.path(), 0).unwrap();
            assert_eq!(keys(&*kv, Order::Forward, 100), [2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn a_second_opener_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(Engine::Fjall, dir.path(), 0).unwrap();
        assert!(matches!(open(Engine::Fjall, dir.path(), 0), Err(KvError::Locked { .. })));
    }
}
