//! How a key has settled its matches.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use hashpit_nips::Msats;
use hashpit_nips::eh05::{Fate, Settlement};
use nostr_sdk::{EventId, PublicKey};
use serde::Serialize;

use super::Trade;

/// A key's record on one exchange. Never stored: it is counted anew, by whoever
/// wants to know, from matches (kind 8481) and settlements (8482).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reputation {
    /// The key.
    pub trader: PublicKey,
    /// Matches that it was a side of.
    pub matches: u64,
    /// Settled, as both sides said.
    pub completed: u64,
    /// Failed at a step that it was due to take.
    pub failed: u64,
    /// Those, by step.
    pub failed_at: Steps,
    /// Failed at the other side's step.
    pub failed_by_others: u64,
    /// Those, by step.
    pub failed_by_others_at: Steps,
    /// Neither yet.
    pub pending: u64,
    /// What changed hands in those that were completed.
    pub settled: Msats,
}

/// How many, by step (EH-06), where there are any.
pub type Steps = BTreeMap<u8, u64>;

impl Reputation {
    /// Counts what is `trader`'s of `matches` and what became of them. What is told
    /// twice counts once.
    pub(super) fn of(
        trader: PublicKey,
        matches: &[Trade],
        settled: &HashMap<EventId, Settlement>,
    ) -> Self {
        let mine =
            |trade: &&Trade| [trade.terms.maker.trader, trade.terms.taker.trader].contains(&trader);
        let matches: HashMap<EventId, &Trade> =
            matches.iter().filter(mine).map(|trade| (trade.id, trade)).collect();
        let mut found = Self {
            trader,
            matches: matches.len() as u64,
            completed: 0,
            failed: 0,
            failed_at: Steps::new(),
            failed_by_others: 0,
            failed_by_others_at: Steps::new(),
            pending: 0,
            settled: Msats::ZERO,
        };
        for (id, trade) in matches {
            match settled.get(&id).map(|settlement| &settlement.fate) {
                None => found.pending += 1,
                Some(Fate::Completed) => {
                    found.completed += 1;
                    let msats = trade.terms.msats().unwrap_or_default();
                    let most = Msats::new(u64::MAX);
                    found.settled = found.settled.checked_add(msats).unwrap_or(most);
                }
                Some(Fate::Failed { step, due }) if due.contains(&trader) => {
                    found.failed += 1;
                    *found.failed_at.entry(*step).or_default() += 1;
                }
                Some(Fate::Failed { step, .. }) => {
                    found.failed_by_others += 1;
                    *found.failed_by_others_at.entry(*step).or_default() += 1;
                }
            }
        }
        found
    }
}

/// `12 of 15 settled; failed: 1 by it (1 at step 4), 0 by others; 2 in flight`.
impl fmt::Display for Reputation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.matches == 0 {
            return f.write_str("no matches yet");
        }
        write!(f, "{} of {} settled; failed: ", self.completed, self.matches)?;
        write!(f, "{} by it{}, ", self.failed, in_words(&self.failed_at))?;
        let others = in_words(&self.failed_by_others_at);
        write!(f, "{} by others{others}; {} in flight", self.failed_by_others, self.pending)
    }
}

/// ` (2 at step 1, 1 at step 4)`.
fn in_words(steps: &Steps) -> String {
    let steps: Vec<_> = steps.iter().map(|(step, of)| format!("{of} at step {step}")).collect();
    if steps.is_empty() { String::new() } else { format!(" ({})", steps.join(", ")) }
}

#[cfg(test)]
pub(super) mod tests {
    use hashpit_nips::eh04::{MarketId, Side, Way};
    use hashpit_nips::eh05::{Leg, Match};
    use hashpit_nips::{EpochId, HashUnits, Lots, Millis, Price};
    use nostr_sdk::{Event, Keys};

    use super::super::tape::first_words;
    use super::*;

    pub fn trade(id: u8, maker: PublicKey, taker: PublicKey) -> Trade {
        let offer = EventId::from_byte_array([id; 32]);
        let leg = |trader| Leg { offer, trader, fee: Msats::ZERO };
        let epoch = EpochId { pool: maker, height: 1 };
        let terms = Match {
            seq: u64::from(id),
            index: 0,
            market: MarketId { exchange: maker, epoch },
            maker: leg(maker),
            taker: leg(taker),
            taker_side: Side::Buy,
            price: Price::new(1_500),
            lots: Lots::new(2),
            units: HashUnits::new(2),
            pay: vec![Way::Nwc],
            at: Millis::new(0),
        };
        Trade { id: offer, terms }
    }

    fn settled(id: u8, seq: u64, fate: Fate, keys: &Keys) -> Event {
        let traders = [Keys::generate(), Keys::generate()].map(|keys| keys.public_key());
        let traders = match &fate {
            Fate::Failed { due, .. } => [due[0], traders[0]],
            Fate::Completed => traders,
        };
        let of = EventId::from_byte_array([id; 32]);
        let settled = Settlement { seq, of, traders, fate, at: Millis::new(0) };
        settled.encode().sign_with_keys(keys).unwrap()
    }

    #[test]
    fn each_match_counts_once_and_only_for_its_own_sides() {
        let [me, other, third] = [1, 2, 3].map(|_| Keys::generate().public_key());
        let failed = |due: PublicKey| Fate::Failed { step: 2, due: vec![due] };
        let matches = [
            trade(1, me, other),
            trade(2, other, me),
            trade(3, me, other),
            trade(4, me, other),
            trade(5, other, third),
            trade(1, me, other),
        ];
        let settlements = [
            (1, 20, Fate::Completed),
            (2, 21, failed(other)),
            (3, 23, Fate::Completed),
            (3, 22, failed(me)),
            (5, 24, Fate::Completed),
            (9, 25, Fate::Completed),
        ];
        let exchange = Keys::generate();
        let settled = settlements.map(|(id, seq, fate)| settled(id, seq, fate, &exchange));
        let reputation = Reputation::of(me, &matches, &first_words(settled.iter()));
        let expected = Reputation {
            trader: me,
            matches: 4,
            completed: 1,
            failed: 1,
            failed_at: Steps::from([(2, 1)]),
            failed_by_others: 1,
            failed_by_others_at: Steps::from([(2, 1)]),
            pending: 1,
            settled: Msats::new(3_000),
        };
        assert_eq!(reputation, expected);
        let words = "1 of 4 settled; failed: 1 by it (1 at step 2), 1 by others (1 at step 2); \
                     1 in flight";
        assert_eq!(reputation.to_string(), words);
    }
}
