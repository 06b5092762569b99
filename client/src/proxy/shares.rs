//! Shares between their submission and the pool's word on them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashpit_nips::Work;

use super::settings::MAX_REFUSED_IN_A_ROW;

/// What one pool has said of our shares, all connections together.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Books>);

/// Sums of work, in expected hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// Shares that the pool has acknowledged.
    pub shares: u64,
    /// Their work.
    pub acknowledged: Work,
    /// Work of the shares that it has not judged yet.
    pub in_flight: Work,
    /// Work of the shares that it never judged, since the connection ended.
    pub unknown: Work,
}

impl Tally {
    /// The sums now.
    pub(super) fn books(&self) -> Books {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, work: Work) {
        let mut books = self.lock();
        books.in_flight = plus(books.in_flight, work);
    }

    fn judged(&self, work: Work, verdict: Judged) {
        let mut books = self.lock();
        // In flight since it was sent, so the difference exists.
        books.in_flight = books.in_flight.checked_sub(work).unwrap_or_default();
        match verdict {
            Judged::Accepted => {
                books.shares += 1;
                books.acknowledged = plus(books.acknowledged, work);
            }
            Judged::Refused => {}
            Judged::Unknown => books.unknown = plus(books.unknown, work),
        }
    }
}

/// A sum that stands still at 2^128, which no miner reaches.
pub(super) fn plus(sum: Work, work: Work) -> Work {
    sum.checked_add(work).unwrap_or(sum)
}

#[derive(Debug, Clone, Copy)]
enum Judged {
    Accepted,
    Refused,
    Unknown,
}

/// How many of one device's shares the pool has refused in a row, stale ones not
/// counted.
#[derive(Debug, Default)]
pub(super) struct Refusals(u32);

impl Refusals {
    pub(super) fn accepted(&mut self) {
        self.0 = 0;
    }

    /// A share was refused with this error code.
    pub(super) fn refused(&mut self, code: &str) {
        if code != "stale-share" {
            self.0 = self.0.saturating_add(1);
        }
    }

    /// Whether the device is to be dropped.
    pub(super) fn are_too_many(&self) -> bool {
        self.0 >= MAX_REFUSED_IN_A_ROW
    }
}

/// A share that waits for the pool's word, and whose it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Waiting<T> {
    pub(super) sequence_number: u32,
    pub(super) work: Work,
    pub(super) ticket: T,
}

/// Shares of one channel that wait, in order of submission. Those that are left
/// when it is dropped are counted as unknown.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    waiting: VecDeque<Waiting<T>>,
    tally: Arc<Tally>,
}

impl<T> InFlight<T> {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self { waiting: VecDeque::new(), tally }
    }

    /// To be called before the share leaves: the pool may be quick.
    pub(super) fn sent(&mut self, share: Waiting<T>) {
        self.tally.sent(share.work);
        self.waiting.push_back(share);
    }

    /// The shares that a `SubmitShares.Success` covers: all up to this one
    /// that no error has named (Sv2 5.3.13).
    pub(super) fn accepted_up_to(&mut self, last: u32) -> Vec<Waiting<T>> {
        let Some(place) = self.waiting.iter().position(|share| share.sequence_number == last)
        else {
            return Vec::new();
        };
        let accepted: Vec<_> = self.waiting.drain(..=place).collect();
        for share in &accepted {
            self.tally.judged(share.work, Judged::Accepted);
        }
        accepted
    }

    /// The share that a `SubmitShares.Error` names.
    pub(super) fn refused(&mut self, sequence_number: u32) -> Option<Waiting<T>> {
        let named = |share: &Waiting<T>| share.sequence_number == sequence_number;
        let share = self.waiting.iter().position(named).and_then(|at| self.waiting.remove(at))?;
        self.tally.judged(share.work, Judged::Refused);
        Some(share)
    }

    /// All that wait: the connection is gone, and nobody will say.
    pub(super) fn lost(&mut self) -> Vec<Waiting<T>> {
        let lost: Vec<_> = self.waiting.drain(..).collect();
        for share in &lost {
            self.tally.judged(share.work, Judged::Unknown);
        }
        lost
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.lost();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(sequence_number: u32) -> Waiting<u32> {
        Waiting { sequence_number, work: Work::new(10), ticket: sequence_number * 100 }
    }

    fn books(shares: u64, acknowledged: u128, in_flight: u128, unknown: u128) -> Books {
        let [acknowledged, in_flight, unknown] = [acknowledged, in_flight, unknown].map(Work::new);
        Books { shares, acknowledged, in_flight, unknown }
    }

    #[test]
    fn success_covers_what_no_error_has_named() {
        let tally = Arc::new(Tally::default());
        let mut in_flight = InFlight::new(Arc::clone(&tally));
        (1..=5).for_each(|n| in_flight.sent(share(n)));
        assert_eq!(tally.books(), books(0, 0, 50, 0));
        assert_eq!(in_flight.refused(2), Some(share(2)));
        assert_eq!(in_flight.refused(2), None);
        assert_eq!(in_flight.accepted_up_to(3), [share(1), share(3)]);
        assert_eq!(in_flight.accepted_up_to(3), []);
        assert_eq!(tally.books(), books(2, 20, 20, 0));
        assert_eq!(in_flight.lost(), [share(4), share(5)]);
        assert_eq!(tally.books(), books(2, 20, 0, 20));
    }

    #[test]
    fn refusals_count_in_a_row_and_stale_shares_do_not() {
        let mut refusals = Refusals::default();
        let mut refuse = |code, times, acceptance: bool| {
            (0..times).for_each(|_| refusals.refused(code));
            if acceptance {
                refusals.accepted();
            }
            refusals.are_too_many()
        };
        assert!(!refuse("difficulty-too-low", MAX_REFUSED_IN_A_ROW - 1, true));
        assert!(!refuse("stale-share", 2 * MAX_REFUSED_IN_A_ROW, false));
        assert!(!refuse("invalid-job-id", MAX_REFUSED_IN_A_ROW - 1, false));
        assert!(refuse("duplicate-share", 1, false));
    }

    #[test]
    fn what_is_dropped_is_unknown() {
        let tally = Arc::new(Tally::default());
        let mut in_flight = InFlight::new(Arc::clone(&tally));
        in_flight.sent(share(1));
        drop(in_flight);
        assert_eq!(tally.books(), books(0, 0, 0, 10));
    }
}
