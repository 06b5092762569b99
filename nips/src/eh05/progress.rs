//! How far the settlement of a match has come, by what its two traders report: who
//! is due to report which step, and by when. The exchange keeps one of each match,
//! and who reads its journal comes to the same.

use nostr::PublicKey;

use super::Match;
use crate::Millis;

/// Steps of a settlement, numbered from 1.
pub const STEPS: u8 = 6;

/// Seconds after the match by which each step has to be reported.
const DEADLINES_SECS: [u64; STEPS as usize] = [60, 120, 240, 360, 5_280, 5_400];

/// Who is due, by step: the seller, the buyer, or both.
const DUE: [[bool; 2]; STEPS as usize] =
    [[true, true], [false, true], [true, false], [false, true], [true, false], [true, true]];

/// What the traders of a match have reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Seller and buyer.
    traders: [PublicKey; 2],
    since: Millis,
    /// What the seller and the buyer have reported.
    done: [[bool; 2]; STEPS as usize],
}

/// Why a report does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDue {
    /// The match is not this key's.
    #[error("the match is another's")]
    Stranger,
    /// The other side takes this step.
    #[error("this step is the other trader's")]
    OtherSide,
    /// It was said before.
    #[error("this step was reported")]
    Repeated,
}

impl Progress {
    /// A match of which nothing was reported yet.
    pub fn of(matched: &Match) -> Self {
        let traders = [matched.seller().trader, matched.buyer().trader];
        Self { traders, since: matched.at, done: [[false; 2]; STEPS as usize] }
    }

    /// Seller and buyer.
    pub fn traders(&self) -> [PublicKey; 2] {
        self.traders
    }

    /// Whether a report of a step, 1 to 6, counts, as far as time has no part in it.
    pub fn check(&self, step: u8, by: PublicKey) -> Result<(), NotDue> {
        let who = self.traders.iter().position(|trader| *trader == by);
        let (who, step) = (who.ok_or(NotDue::Stranger)?, index(step));
        match (DUE[step][who], self.done[step][who]) {
            (false, _) => Err(NotDue::OtherSide),
            (true, true) => Err(NotDue::Repeated),
            (true, false) => Ok(()),
        }
    }

    /// Notes that a trader has done a step, 1 to 6. Steps come in any order.
    ///
    /// Errors, with nothing changed, as [`Progress::check`] does.
    pub fn report(&mut self, step: u8, by: PublicKey) -> Result<(), NotDue> {
        self.check(step, by)?;
        let [seller, buyer] = &mut self.done[index(step)];
        *(if by == self.traders[0] { seller } else { buyer }) = true;
        Ok(())
    }

    /// Whether both have reported the last step: the match is completed then,
    /// whatever was not reported before.
    pub fn is_complete(&self) -> bool {
        self.done[DUE.len() - 1] == DUE[DUE.len() - 1]
    }

    /// The first step that is not reported by all who are due, and the time at which
    /// it is too late; `None` once the match is complete.
    pub fn next(&self) -> Option<(u8, Millis)> {
        let missing = || std::iter::zip(&self.done, &DUE).position(|(done, due)| done != due);
        let step = if self.is_complete() { None } else { missing() }?;
        let step = step as u8 + 1;
        Some((step, self.deadline(step)))
    }

    /// The time at which it is too late to report a step, 1 to 6.
    pub fn deadline(&self, step: u8) -> Millis {
        Millis::new(self.since.get().saturating_add(DEADLINES_SECS[index(step)] * 1000))
    }

    /// Who has not reported a step, 1 to 6, and should: seller before buyer.
    pub fn missing(&self, step: u8) -> Vec<PublicKey> {
        let late = |who: &usize| DUE[index(step)][*who] && !self.done[index(step)][*who];
        (0..2).filter(late).map(|who| self.traders[who]).collect()
    }

    /// What was reported, by step, the seller's before the buyer's.
    pub fn reported(&self) -> impl Iterator<Item = bool> {
        self.done.as_flattened().iter().copied()
    }
}

fn index(step: u8) -> usize {
    assert!((1..=STEPS).contains(&step), "whoever decodes a step checks its number");
    usize::from(step) - 1
}

#[cfg(test)]
mod tests {
    use nostr::{EventId, Keys};

    use super::*;
    use crate::eh04::{MarketId, Side, Way};
    use crate::eh05::Leg;
    use crate::{EpochId, HashUnits, Lots, Msats, Price};

    fn matched(seller: PublicKey, buyer: PublicKey) -> Match {
        let leg = |trader| Leg { offer: EventId::all_zeros(), trader, fee: Msats::ZERO };
        let epoch = EpochId { pool: seller, height: 1 };
        Match {
            seq: 7,
            index: 0,
            market: MarketId { exchange: buyer, epoch },
            maker: leg(seller),
            taker: leg(buyer),
            taker_side: Side::Buy,
            price: Price::new(5),
            lots: Lots::new(1),
            units: HashUnits::new(1),
            pay: vec![Way::Nwc],
            at: Millis::new(1_000),
        }
    }

    #[test]
    fn the_first_step_that_lacks_a_report_is_next_and_the_last_one_ends_it() {
        let (seller, buyer) = (Keys::generate().public_key(), Keys::generate().public_key());
        let mut progress = Progress::of(&matched(seller, buyer));
        let by = |seconds: u64| Millis::new(1_000 + seconds * 1_000);
        assert_eq!(progress.next(), Some((1, by(60))));
        assert_eq!(progress.missing(1), [seller, buyer]);
        progress.report(1, seller).unwrap();
        assert_eq!((progress.next(), progress.missing(1)), (Some((1, by(60))), vec![buyer]));
        progress.report(1, buyer).unwrap();
        progress.report(3, seller).unwrap();
        assert_eq!((progress.next(), progress.missing(2)), (Some((2, by(120))), vec![buyer]));
        progress.report(6, buyer).unwrap();
        assert!(!progress.is_complete());
        progress.report(6, seller).unwrap();
        assert_eq!((progress.is_complete(), progress.next()), (true, None), "step 2 or not");
    }

    #[test]
    fn what_nobody_waits_for_does_not_count() {
        let [seller, buyer, other] = [1, 2, 3].map(|_| Keys::generate().public_key());
        let mut progress = Progress::of(&matched(seller, buyer));
        assert_eq!(progress.report(1, other), Err(NotDue::Stranger));
        assert_eq!(progress.report(2, seller), Err(NotDue::OtherSide));
        assert_eq!(progress.report(3, buyer), Err(NotDue::OtherSide));
        progress.report(2, buyer).unwrap();
        assert_eq!(progress.report(2, buyer), Err(NotDue::Repeated));
        assert_eq!(progress.reported().filter(|done| *done).count(), 1);
    }
}
