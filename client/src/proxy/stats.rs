//! What each worker has done, for display.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashpit_nips::Work;
use serde::Serialize;

use super::shares::plus;

/// Workers that are counted apart; what further ones do is counted together.
const MAX_WORKERS: usize = 8_192;
/// Reasons that a worker's refusals are told apart by.
const MAX_REASONS: usize = 16;
/// The name under which further workers and reasons are counted.
const OTHERS: &str = "others";
/// Hash rates are averaged over this many minutes.
const MINUTES: usize = 10;

/// A worker's counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WorkerStats {
    /// Its name; empty for devices that have none.
    pub worker: String,
    /// Devices connected under this name.
    pub connected: u32,
    /// Shares that the pool has accepted.
    pub accepted: u64,
    /// Their work.
    pub work: Work,
    /// Shares refused, by the proxy or the pool, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Shares that the pool had not judged when its connection ended.
    pub unknown: u64,
    /// Shares that met the device's difficulty but not the pool's.
    pub local: u64,
    /// Hashes per second over the last minutes, by its shares.
    pub hashrate: f64,
}

/// All workers.
#[derive(Debug, Default)]
pub(super) struct Workers(Mutex<BTreeMap<String, Arc<Worker>>>);

/// One worker's counters.
#[derive(Debug, Default)]
pub(super) struct Worker(Mutex<Counters>);

#[derive(Debug, Default)]
struct Counters {
    stats: WorkerStats,
    rate: Rate,
}

/// Work done, minute by minute.
#[derive(Debug, Default)]
struct Rate {
    begun: Option<Instant>,
    minute: u64,
    work: [f64; MINUTES],
}

impl Workers {
    /// The counters of a name.
    pub(super) fn named(&self, name: &str) -> Arc<Worker> {
        let mut workers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = workers.len() >= MAX_WORKERS && !workers.contains_key(name);
        let name = if full { OTHERS } else { name };
        let made = || {
            let stats = WorkerStats { worker: name.to_owned(), ..WorkerStats::default() };
            Arc::new(Worker(Mutex::new(Counters { stats, rate: Rate::default() })))
        };
        Arc::clone(workers.entry(name.to_owned()).or_insert_with(made))
    }

    /// Every worker's counters.
    pub(super) fn snapshot(&self) -> Vec<WorkerStats> {
        let workers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        workers.values().map(|worker| worker.snapshot()).collect()
    }
}

impl Worker {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self) -> WorkerStats {
        let counters = self.lock();
        let hashrate = counters.rate.per_second(Instant::now());
        WorkerStats { hashrate, ..counters.stats.clone() }
    }

    /// Counts a device for as long as the answer lives.
    pub(super) fn connected(self: &Arc<Self>) -> Connected {
        self.lock().stats.connected += 1;
        Connected(Arc::clone(self))
    }

    /// The device found a hash that took it so much work.
    pub(super) fn found(&self, work: Work) {
        self.lock().rate.add(Instant::now(), work);
    }

    pub(super) fn accepted(&self, work: Work) {
        let mut counters = self.lock();
        counters.stats.accepted += 1;
        counters.stats.work = plus(counters.stats.work, work);
    }

    pub(super) fn rejected(&self, reason: &str) {
        let rejected = &mut self.lock().stats.rejected;
        let full = rejected.len() >= MAX_REASONS && !rejected.contains_key(reason);
        let reason = if full { OTHERS } else { reason };
        *rejected.entry(reason.to_owned()).or_default() += 1;
    }

    pub(super) fn unknown(&self) {
        self.lock().stats.unknown += 1;
    }

    pub(super) fn local(&self) {
        self.lock().stats.local += 1;
    }
}

/// A device that is connected.
#[derive(Debug)]
pub(super) struct Connected(Arc<Worker>);

impl Drop for Connected {
    fn drop(&mut self) {
        let connected = &mut self.0.lock().stats.connected;
        *connected = connected.saturating_sub(1);
    }
}

impl Rate {
    fn add(&mut self, now: Instant, work: Work) {
        let begun = *self.begun.get_or_insert(now);
        let minute = now.duration_since(begun).as_secs() / 60;
        for passed in (self.minute + 1..=minute).take(MINUTES) {
            self.work[passed as usize % MINUTES] = 0.0;
        }
        self.minute = minute;
        self.work[minute as usize % MINUTES] += work.get() as f64;
    }

    fn per_second(&self, now: Instant) -> f64 {
        let Some(begun) = self.begun else { return 0.0 };
        let elapsed = now.duration_since(begun);
        let minute = elapsed.as_secs() / 60;
        let first = (minute + 1).saturating_sub(MINUTES as u64);
        let sum: f64 =
            (first..=self.minute).map(|minute| self.work[minute as usize % MINUTES]).sum();
        let window = elapsed - Duration::from_secs(first * 60).min(elapsed);
        // The first share alone tells nothing of the time that it took.
        sum / window.as_secs_f64().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_minutes() {
        let (mut rate, begun) = (Rate::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(rate.per_second(at(5)), 0.0);
        (0..600).for_each(|second| rate.add(at(second), Work::new(1_000)));
        assert!((rate.per_second(at(600)) - 1_000.0).abs() < 150.0);
        rate.add(at(10_000), Work::new(60_000));
        assert!((rate.per_second(at(10_000)) - 100.0).abs() < 20.0);
        assert_eq!(rate.per_second(at(20_000)), 0.0);
    }

    #[test]
    fn there_is_an_end_to_names_and_reasons() {
        let workers = Workers::default();
        (0..MAX_WORKERS + 5).for_each(|n| workers.named(&n.to_string()).accepted(Work::new(1)));
        let snapshot = workers.snapshot();
        assert_eq!(snapshot.len(), MAX_WORKERS + 1);
        assert_eq!(snapshot.iter().find(|w| w.worker == OTHERS).unwrap().accepted, 5);
        let worker = workers.named("0");
        (0..100).for_each(|n| worker.rejected(&n.to_string()));
        assert_eq!(worker.snapshot().rejected.len(), MAX_REASONS + 1);
    }
}
