//! An open database that is opened again after a failed write.
//!
//! After an I/O error fjall refuses all writes, and sled keeps what it could not
//! flush where readers see it. Both come back clean when opened again, so a
//! failed commit closes the database and the next call opens it.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::KvError;

pub(super) struct Slot<T> {
    dir: PathBuf,
    opener: fn(&Path) -> Result<T, KvError>,
    database: RwLock<Option<T>>,
}

impl<T> Slot<T> {
    /// Opens the database in `dir`.
    pub(super) fn open(
        dir: &Path,
        opener: fn(&Path) -> Result<T, KvError>,
    ) -> Result<Self, KvError> {
        let database = RwLock::new(Some(opener(dir)?));
        Ok(Self { dir: dir.to_owned(), opener, database })
    }

    /// Calls with the database, beside others.
    pub(super) fn shared<R>(
        &self,
        call: impl FnOnce(&T) -> Result<R, KvError>,
    ) -> Result<R, KvError> {
        if let Some(database) = &*self.read_lock() {
            return call(database);
        }
        self.exclusive(call)
    }

    /// Calls with the database, alone.
    pub(super) fn exclusive<R>(
        &self,
        call: impl FnOnce(&T) -> Result<R, KvError>,
    ) -> Result<R, KvError> {
        let mut slot = self.write_lock();
        match &*slot {
            Some(database) => call(database),
            None => {
                let database = (self.opener)(&self.dir)?;
                tracing::info!("database opened again after a failed write");
                call(slot.insert(database))
            }
        }
    }

    /// Closes the database; the next call opens it again.
    pub(super) fn close(&self) {
        *self.write_lock() = None;
    }

    // The guarded value is whole even if a holder panicked: it is only replaced.
    fn read_lock(&self) -> RwLockReadGuard<'_, Option<T>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, Option<T>> {
        self.database.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_database_is_opened_by_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::open(dir.path(), |dir| Ok(dir.to_owned())).unwrap();
        slot.close();
        assert_eq!(slot.shared(|path| Ok(path.clone())).unwrap(), dir.path());
    }
}
