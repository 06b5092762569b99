//! How a key has settled its matches.

use std::collections::HashMap;

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
    /// Failed at the other side's step.
    pub failed_by_others: u64,
    /// Neither yet.
    pub pending: u64,
    /// What changed hands in those that were completed.
    pub settled: Msats,
}

impl Reputation {
    /// Counts what is `trader`'s of `matches` and what became of them. What is
    /// told twice counts once, and the exchange's first word on a match stands.
    pub(super) fn of(trader: PublicKey, matches: &[Trade], settlements: &[Settlement]) -> Self {
        let mut fates: HashMap<EventId, &Settlement> = HashMap::new();
        for settlement in settlements {
            let known = fates.entry(settlement.of).or_insert(settlement);
            if settlement.seq < known.seq {
                *known = settlement;
            }
        }
        let mine =
            |trade: &&Trade| [trade.terms.maker.trader, trade.terms.taker.trader].contains(&trader);
        let matches: HashMap<EventId, &Trade> =
            matches.iter().filter(mine).map(|trade| (trade.id, trade)).collect();
        let mut found = Self {
            trader,
            matches: matches.len() as u64,
            completed: 0,
            failed: 0,
            failed_by_others: 0,
            pending: 0,
            settled: Msats::ZERO,
        };
        for (id, trade) in matches {
            match fates.get(&id).map(|settlement| &settlement.fate) {
                None => found.pending += 1,
                Some(Fate::Completed) => {
                    found.completed += 1;
                    let msats = trade.terms.msats().unwrap_or_default();
                    let most = Msats::new(u64::MAX);
                    found.settled = found.settled.checked_add(msats).unwrap_or(most);
                }
                Some(Fate::Failed { due, .. }) if due.contains(&trader) => found.failed += 1,
                Some(Fate::Failed { .. }) => found.failed_by_others += 1,
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh04::{MarketId, Side, Way};
    use hashpit_nips::eh05::{Leg, Match};
    use hashpit_nips::{EpochId, HashUnits, Lots, Millis, Price};
    use nostr_sdk::Keys;

    use super::*;

    fn trade(id: u8, maker: PublicKey, taker: PublicKey) -> Trade {
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

    fn settled(id: u8, seq: u64, fate: Fate) -> Settlement {
        let key = Keys::parse(&"11".repeat(32)).unwrap().public_key();
        let of = EventId::from_byte_array([id; 32]);
        Settlement { seq, of, traders: [key; 2], fate, at: Millis::new(0) }
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
            settled(1, 20, Fate::Completed),
            settled(2, 21, failed(other)),
            settled(3, 23, Fate::Completed),
            settled(3, 22, failed(me)),
            settled(5, 24, Fate::Completed),
            settled(9, 25, Fate::Completed),
        ];
        let reputation = Reputation::of(me, &matches, &settlements);
        let expected = Reputation {
            trader: me,
            matches: 4,
            completed: 1,
            failed: 1,
            failed_by_others: 1,
            pending: 1,
            settled: Msats::new(3_000),
        };
        assert_eq!(reputation, expected);
    }
}
