//! Checks that indexes and events agree, for tests and for operators.

use std::collections::BTreeSet;

use super::{Reader, StoreError, keys};
use crate::event::Event;
use crate::kv::Order;

/// Entries read at a time.
const PAGE: usize = 1_024;

/// What an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Events read.
    pub events: u64,
    /// Index entries that are missing, wrong or left over.
    pub mismatches: u64,
}

impl Reader {
    /// Reads the whole store and compares its indexes with its events. Holds all
    /// index keys in memory; not for a store that is being written.
    pub fn audit(&self) -> Result<Audit, StoreError> {
        let mut found = BTreeSet::new();
        for range in keys::indexes() {
            self.scan(range, |key, value| {
                found.insert((key, value));
                Ok(())
            })?;
        }
        let mut audit = Audit { events: 0, mismatches: 0 };
        self.scan(keys::events(), |key, record| {
            let sequence = keys::sequence(&key).ok_or(StoreError::Damaged("event key"))?;
            audit.events += 1;
            // An event may hold the same tag twice.
            let entries = keys::of_event(&Event::from_record(record)?, sequence);
            for entry in BTreeSet::from_iter(entries) {
                audit.mismatches += u64::from(!found.remove(&entry));
            }
            Ok(())
        })?;
        audit.mismatches += found.len() as u64;
        audit.mismatches += u64::from(audit.events != self.events());
        Ok(audit)
    }

    fn scan(
        &self,
        (mut start, end): (Vec<u8>, Vec<u8>),
        mut each: impl FnMut(Vec<u8>, Vec<u8>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        loop {
            let page = self.kv.page(&start..&end, Order::Forward, PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            start = [last, &[0][..]].concat();
            for (key, value) in page {
                each(key, value)?;
            }
        }
    }
}
