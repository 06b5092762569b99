//! A [`Kv`] that stops writing while there is still room on the disk.
//!
//! Engines flush and compact in the background, and neither survives a full disk
//! well: fjall's worker dies and its writer then waits for it without end. So a
//! commit is refused before that, and taken again when there is room.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Batch, Entry, Kv, KvError, Order};

pub(super) struct Reserve<K> {
    pub(super) kv: K,
    pub(super) dir: PathBuf,
    /// Bytes that must stay free.
    pub(super) bytes: u64,
}

impl<K: Kv> Kv for Reserve<K> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.kv.get(key)
    }

    fn page(&self, range: Range<&[u8]>, order: Order, max: usize) -> Result<Vec<Entry>, KvError> {
        self.kv.page(range, order, max)
    }

    fn commit(&self, batch: Batch) -> Result<(), KvError> {
        let free = free_bytes(&self.dir)?;
        if free < self.bytes {
            return Err(KvError::NoRoom { dir: self.dir.clone(), free, reserve: self.bytes });
        }
        self.kv.commit(batch)
    }
}

/// Bytes that we may still use on the disk that holds `dir`.
fn free_bytes(dir: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryKv;
    use super::*;

    #[test]
    fn a_commit_needs_the_reserve_to_be_free() {
        let dir = tempfile::tempdir().unwrap();
        let commit = |bytes| {
            let kv = MemoryKv::default();
            Reserve { kv, dir: dir.path().to_owned(), bytes }.commit(Batch::default())
        };
        assert!(commit(0).is_ok());
        let error = commit(u64::MAX).unwrap_err();
        assert!(matches!(error, KvError::NoRoom { reserve: u64::MAX, .. }), "{error}");
    }
}
