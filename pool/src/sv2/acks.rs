//! In what order verdicts become answers on one channel.
//!
//! `SubmitShares.Success` names the last sequence number that it covers, and a
//! miner takes all earlier ones for accepted unless an error has named them
//! (Sv2 5.3.13). So verdicts are answered in the order of submission, however
//! they come; those that wait together become one message; and errors of the
//! range are sent before it.

use std::collections::VecDeque;

use hashpit_nips::Work;

use crate::share::{Outcome, Verdict};

/// Shares of one channel that wait for their verdict, in order of submission.
#[derive(Debug, Default)]
pub(super) struct Acks {
    awaiting: VecDeque<Awaiting>,
}

#[derive(Debug)]
struct Awaiting {
    sequence_number: u32,
    verdict: Option<Verdict>,
}

/// What can be answered now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    /// Sequence numbers of duplicates.
    pub(super) duplicates: Vec<u32>,
    /// What was recorded, if anything.
    pub(super) success: Option<Success>,
}

/// The contents of one `SubmitShares.Success`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Success {
    pub(super) last_sequence_number: u32,
    pub(super) count: u32,
    pub(super) work: Work,
}

impl Acks {
    /// A share has gone to the ledger.
    pub(super) fn submitted(&mut self, sequence_number: u32) {
        self.awaiting.push_back(Awaiting { sequence_number, verdict: None });
    }

    /// The ledger has judged a share. A number used twice is answered in the
    /// order of its uses.
    pub(super) fn judged(&mut self, verdict: Verdict) {
        let number = verdict.ticket.sequence_number;
        let waiting = self.awaiting.iter_mut();
        let slot = waiting.filter(|a| a.verdict.is_none()).find(|a| a.sequence_number == number);
        if let Some(slot) = slot {
            slot.verdict = Some(verdict);
        }
    }

    /// Takes the answers up to the first share that still waits.
    pub(super) fn take(&mut self) -> Answers {
        let mut answers = Answers::default();
        while let Some(verdict) = self.awaiting.front().and_then(|a| a.verdict) {
            self.awaiting.pop_front();
            answers.add(verdict);
        }
        answers
    }
}

impl Answers {
    fn add(&mut self, verdict: Verdict) {
        let number = verdict.ticket.sequence_number;
        match verdict.outcome {
            Outcome::Duplicate => self.duplicates.push(number),
            Outcome::Recorded => {
                let (count, work) = self.success.map_or((0, Work::ZERO), |s| (s.count, s.work));
                self.success = Some(Success {
                    last_sequence_number: number,
                    count: count + 1,
                    // Only for the miner's display: a sum beyond 2^128 stands still.
                    work: work.checked_add(verdict.ticket.work).unwrap_or(work),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::share::Ticket;

    fn verdict(sequence_number: u32, outcome: Outcome) -> Verdict {
        Verdict { ticket: Ticket { channel_id: 1, sequence_number, work: Work::new(10) }, outcome }
    }

    fn success(last_sequence_number: u32, count: u32) -> Option<Success> {
        Some(Success { last_sequence_number, count, work: Work::new(u128::from(count) * 10) })
    }

    #[test]
    fn verdicts_are_answered_in_order_of_submission() {
        let mut acks = Acks::default();
        (5..=7).for_each(|n| acks.submitted(n));
        acks.judged(verdict(7, Outcome::Recorded));
        assert_eq!(acks.take(), Answers::default());
        acks.judged(verdict(5, Outcome::Recorded));
        assert_eq!(acks.take(), Answers { duplicates: vec![], success: success(5, 1) });
        acks.judged(verdict(6, Outcome::Duplicate));
        assert_eq!(acks.take(), Answers { duplicates: vec![6], success: success(7, 1) });
        assert_eq!(acks.take(), Answers::default());
    }

    #[test]
    fn verdicts_that_wait_together_become_one_success() {
        let mut acks = Acks::default();
        for n in 0..4 {
            acks.submitted(n);
            acks.judged(verdict(n, Outcome::Recorded));
        }
        assert_eq!(acks.take().success, success(3, 4));
    }

    proptest! {
        /// Against a dumb model: whatever the order of verdicts and of looking,
        /// each share is answered once, and never before an earlier one.
        #[test]
        fn every_share_is_answered_once_and_in_order(
            duplicates in proptest::collection::vec(any::<bool>(), 1..40),
            order in any::<proptest::sample::Index>(),
            stride in 1usize..40,
        ) {
            let total = duplicates.len();
            let stride = (stride..).find(|s| gcd(*s, total) == 1).unwrap();
            let mut acks = Acks::default();
            (0..total).for_each(|n| acks.submitted(n as u32));
            let (mut judged, mut answered) = (vec![false; total], 0);
            for step in 0..total {
                let n = (order.index(total) + step * stride) % total;
                judged[n] = true;
                let outcome = if duplicates[n] { Outcome::Duplicate } else { Outcome::Recorded };
                acks.judged(verdict(n as u32, outcome));
                let answers = acks.take();
                let ready = judged.iter().take_while(|j| **j).count();
                let range = answered..ready;
                let refused: Vec<u32> = range.clone().filter(|n| duplicates[*n]).map(|n| n as u32).collect();
                let last = range.clone().rev().find(|n| !duplicates[*n]);
                prop_assert_eq!(&answers.duplicates, &refused);
                prop_assert_eq!(answers.success.map(|s| s.last_sequence_number), last.map(|n| n as u32));
                prop_assert_eq!(answers.success.map_or(0, |s| s.count) as usize, range.len() - refused.len());
                answered = ready;
            }
            prop_assert_eq!(answered, total);
        }
    }

    fn gcd(a: usize, b: usize) -> usize {
        if b == 0 { a } else { gcd(b, a % b) }
    }
}
