//! A [`Kv`] in memory that fails when told to: the model the tests compare with.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Batch, Entry, Kv, KvError, Order};

#[derive(Default)]
pub(crate) struct MemoryKv {
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    full: AtomicBool,
}

impl MemoryKv {
    /// Lets every commit fail as a full disk does, or succeed again.
    pub(crate) fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.map.lock().unwrap().get(key).cloned())
    }

    fn page(&self, range: Range<&[u8]>, order: Order, max: usize) -> Result<Vec<Entry>, KvError> {
        let map = self.map.lock().unwrap();
        let entries = map
            .range(range.start.to_vec()..range.end.to_vec())
            .map(|(key, value)| (key.clone(), value.clone()));
        Ok(match order {
            Order::Forward => entries.take(max).collect(),
            Order::Reverse => entries.rev().take(max).collect(),
        })
    }

    fn commit(&self, batch: Batch) -> Result<(), KvError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(KvError::Io(io::ErrorKind::StorageFull.into()));
        }
        let mut map = self.map.lock().unwrap();
        for (key, value) in batch {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }
}
