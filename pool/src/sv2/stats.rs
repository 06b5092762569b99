//! Counters for display. Writing one costs an atomic addition; refusals, which
//! are rare, a short lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What the front end has done since it started.
#[derive(Debug, Default)]
pub struct Stats {
    connections: AtomicU64,
    channels: AtomicU64,
    accepted: AtomicU64,
    blocks: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections open now.
    pub connections: u64,
    /// Channels open now.
    pub channels: u64,
    /// Shares recorded.
    pub accepted: u64,
    /// Shares refused, by Sv2 error code.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Blocks that the template source took.
    pub blocks: u64,
    /// Connections turned away at the door.
    pub connections_refused: u64,
    /// Connections dropped for what they did, or failed to do.
    pub connections_dropped: u64,
}

/// Counts one thing for as long as it lives.
#[derive(Debug)]
pub(super) struct Gauge<'a>(&'a AtomicU64);

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stats {
    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            connections: get(&self.connections),
            channels: get(&self.channels),
            accepted: get(&self.accepted),
            rejected: self.rejected.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            blocks: get(&self.blocks),
            connections_refused: get(&self.refused),
            connections_dropped: get(&self.dropped),
        }
    }

    pub(super) fn connected(&self) -> Gauge<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Gauge(&self.connections)
    }

    pub(super) fn channels_opened(&self) {
        self.channels.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn channels_closed(&self, count: usize) {
        self.channels.fetch_sub(count as u64, Ordering::Relaxed);
    }

    pub(super) fn accepted(&self, count: u32) {
        self.accepted.fetch_add(count.into(), Ordering::Relaxed);
    }

    pub(super) fn rejected(&self, code: &'static str) {
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner).entry(code).or_default() += 1;
    }

    pub(super) fn block(&self) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}
