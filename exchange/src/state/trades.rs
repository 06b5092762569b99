//! Matches that are being settled, by what the two traders report. The exchange
//! holds nothing of theirs: it only watches the clock.

use std::collections::{BTreeSet, HashMap};

use hashpit_nips::Millis;
use hashpit_nips::eh05::{Fate, Match, Settlement};
use nostr::{EventId, PublicKey};

/// Seconds after the match by which each step has to be reported (EH-05).
const DEADLINES_SECS: [u64; STEPS] = [60, 120, 240, 360, 5_280, 5_400];
const STEPS: usize = 6;

/// Who is due, by step: the seller, the buyer, or both.
const DUE: [[bool; 2]; STEPS] =
    [[true, true], [false, true], [true, false], [false, true], [true, false], [true, true]];

#[derive(Debug)]
struct Trade {
    /// Seller and buyer.
    traders: [PublicKey; 2],
    since: Millis,
    /// What the seller and the buyer have reported.
    done: [[bool; 2]; STEPS],
}

/// All matches that have not ended.
#[derive(Debug, Default)]
pub(super) struct Trades {
    open: HashMap<EventId, Trade>,
    /// When the next step of each has to be there.
    due: BTreeSet<(Millis, EventId)>,
}

impl Trade {
    /// The first step that is not reported, and by when it must be.
    fn next(&self) -> (usize, Millis) {
        let missing = (0..STEPS).find(|&step| self.done[step] != DUE[step]);
        let step = missing.expect("a trade whose every step is reported has ended");
        (step, Millis::new(self.since.get().saturating_add(DEADLINES_SECS[step] * 1000)))
    }

    fn is_complete(&self) -> bool {
        self.done[STEPS - 1] == DUE[STEPS - 1]
    }

    fn settlement(&self, of: EventId, fate: Fate, seq: u64, at: Millis) -> Settlement {
        Settlement { seq, of, traders: self.traders, fate, at }
    }
}

impl Trades {
    /// Begins to watch a match.
    pub(super) fn open(&mut self, id: EventId, matched: &Match) {
        let traders = [matched.seller().trader, matched.buyer().trader];
        let trade = Trade { traders, since: matched.at, done: [[false; 2]; STEPS] };
        self.due.insert((trade.next().1, id));
        self.open.insert(id, trade);
    }

    /// The time at which the next trade fails.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Ends the trades whose time has come, in the order of their deadlines.
    pub(super) fn advance(&mut self, seq: u64, at: Millis) -> Vec<Settlement> {
        let mut ended = Vec::new();
        while let Some(&(due, id)) = self.due.first().filter(|(due, _)| *due <= at) {
            self.due.remove(&(due, id));
            let Some(trade) = self.open.remove(&id) else { continue };
            let (step, _) = trade.next();
            let late = (0..2).filter(|&who| DUE[step][who] && !trade.done[step][who]);
            let due = late.map(|who| trade.traders[who]).collect();
            let step = step as u8 + 1;
            ended.push(trade.settlement(id, Fate::Failed { step, due }, seq, at));
        }
        ended
    }

    /// A trader says that it has done a step, 1 to 6.
    ///
    /// Errors with a refusal that names what is wrong.
    pub(super) fn report(
        &mut self,
        (of, step): (EventId, u8),
        by: PublicKey,
        seq: u64,
        at: Millis,
    ) -> Result<Option<Settlement>, &'static str> {
        let unknown = "invalid: no match with this id is being settled here";
        let trade = self.open.get_mut(&of).ok_or(unknown)?;
        let who = trade.traders.iter().position(|trader| *trader == by).ok_or(unknown)?;
        let step = usize::from(step - 1);
        if !DUE[step][who] {
            return Err("invalid: this step is the other trader's");
        }
        if trade.done[step][who] {
            return Err("duplicate: you have reported this step");
        }
        self.due.remove(&(trade.next().1, of));
        trade.done[step][who] = true;
        if trade.is_complete() {
            let settled = trade.settlement(of, Fate::Completed, seq, at);
            self.open.remove(&of);
            return Ok(Some(settled));
        }
        self.due.insert((trade.next().1, of));
        Ok(None)
    }

    /// Feeds what is open to a digest, in a canonical order.
    pub(super) fn digest(&self, mut feed: impl FnMut(&[u8])) {
        for (due, id) in &self.due {
            let trade = &self.open[id];
            feed(&due.get().to_be_bytes());
            feed(id.as_bytes());
            trade.traders.iter().for_each(|trader| feed(trader.as_bytes()));
            feed(&trade.done.as_flattened().iter().map(|&done| u8::from(done)).collect::<Vec<_>>());
        }
    }
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh04::{MarketId, Side, Way};
    use hashpit_nips::eh05::Leg;
    use hashpit_nips::{EpochId, HashUnits, Lots, Msats, Price};
    use nostr::Keys;

    use super::*;

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
    fn who_lets_a_step_lapse_is_named() {
        let (seller, buyer) = (Keys::generate().public_key(), Keys::generate().public_key());
        let (mut trades, id) = (Trades::default(), EventId::all_zeros());
        trades.open(id, &matched(seller, buyer));
        assert_eq!(trades.next_deadline(), Some(Millis::new(61_000)));
        assert_eq!(trades.report((id, 1), seller, 8, Millis::new(2_000)), Ok(None));
        assert!(trades.report((id, 1), seller, 8, Millis::new(2_000)).is_err(), "twice");
        assert!(trades.report((id, 2), seller, 8, Millis::new(2_000)).is_err(), "the buyer's");
        assert!(trades.advance(9, Millis::new(60_999)).is_empty());
        let ended = trades.advance(9, Millis::new(61_000));
        assert_eq!(ended[0].fate, Fate::Failed { step: 1, due: vec![buyer] });
        assert_eq!(trades.next_deadline(), None);
        assert!(trades.report((id, 1), buyer, 10, Millis::new(62_000)).is_err(), "it has ended");
    }

    #[test]
    fn a_trade_is_complete_when_both_say_so() {
        let (seller, buyer) = (Keys::generate().public_key(), Keys::generate().public_key());
        let (mut trades, id) = (Trades::default(), EventId::all_zeros());
        trades.open(id, &matched(seller, buyer));
        let at = Millis::new(2_000);
        for (step, who) in [(1, seller), (1, buyer), (2, buyer), (3, seller), (4, buyer)] {
            assert_eq!(trades.report((id, step), who, 8, at), Ok(None));
        }
        assert_eq!(trades.next_deadline(), Some(Millis::new(1_000 + 5_280_000)));
        assert_eq!(trades.report((id, 6), seller, 8, at), Ok(None));
        let settled = trades.report((id, 6), buyer, 9, at).unwrap().unwrap();
        assert_eq!((settled.fate, settled.traders), (Fate::Completed, [seller, buyer]));
        assert_eq!(trades.next_deadline(), None);
    }
}
