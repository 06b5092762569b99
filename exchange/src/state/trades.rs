//! Matches that are being settled, by what the two traders report. The exchange
//! holds nothing of theirs: it only watches the clock.

use std::collections::{BTreeSet, HashMap};

use hashpit_nips::Millis;
use hashpit_nips::eh05::{Fate, LastTrade, Match, NotDue, Progress, Settlement};
use nostr::{EventId, PublicKey};

use crate::engine::MarketId;

/// A match that is being settled.
#[derive(Debug)]
struct Trade {
    print: Print,
    progress: Progress,
}

/// What a match is on the tape, once it is completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Print {
    pub(super) market: MarketId,
    /// Sequence of its entry, and its number among that one's matches.
    pub(super) place: (u64, u32),
    pub(super) trade: LastTrade,
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
    fn next(&self) -> (u8, Millis) {
        self.progress.next().expect("a trade that is complete has ended")
    }

    fn settlement(&self, of: EventId, fate: Fate, seq: u64, at: Millis) -> Settlement {
        Settlement { seq, of, traders: self.progress.traders(), fate, at }
    }
}

impl Trades {
    /// Begins to watch a match.
    pub(super) fn open(&mut self, id: EventId, market: MarketId, matched: &Match) {
        let &Match { seq, index, price, lots, at, .. } = matched;
        let print = Print { market, place: (seq, index), trade: LastTrade { price, lots, at } };
        let trade = Trade { print, progress: Progress::of(matched) };
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
            let due = trade.progress.missing(step);
            ended.push(trade.settlement(id, Fate::Failed { step, due }, seq, at));
        }
        ended
    }

    /// Whether [`Trades::report`] would take a report of a step at `at`.
    pub(super) fn awaits(&self, (of, step): (EventId, u8), by: PublicKey, at: Millis) -> bool {
        let trade = self.open.get(&of).filter(|trade| trade.next().1 > at);
        trade.is_some_and(|trade| trade.progress.check(step, by).is_ok())
    }

    /// A trader says that it has done a step, 1 to 6; what it completes.
    ///
    /// Errors with a refusal that names what is wrong.
    pub(super) fn report(
        &mut self,
        (of, step): (EventId, u8),
        by: PublicKey,
        seq: u64,
        at: Millis,
    ) -> Result<Option<(Settlement, Print)>, &'static str> {
        let unknown = "invalid: no match with this id is being settled here";
        let trade = self.open.get_mut(&of).ok_or(unknown)?;
        let before = trade.next().1;
        trade.progress.report(step, by).map_err(|why| match why {
            NotDue::Stranger => unknown,
            NotDue::OtherSide => "invalid: this step is the other trader's",
            NotDue::Repeated => "duplicate: you have reported this step",
        })?;
        self.due.remove(&(before, of));
        if trade.progress.is_complete() {
            let completed = (trade.settlement(of, Fate::Completed, seq, at), trade.print);
            self.open.remove(&of);
            return Ok(Some(completed));
        }
        self.due.insert((trade.next().1, of));
        Ok(None)
    }

    /// Feeds what is open to a digest, in a canonical order.
    pub(super) fn digest(&self, mut feed: impl FnMut(&[u8])) {
        for (due, id) in &self.due {
            let progress = &self.open[id].progress;
            feed(&due.get().to_be_bytes());
            feed(id.as_bytes());
            progress.traders().iter().for_each(|trader| feed(trader.as_bytes()));
            feed(&progress.reported().map(u8::from).collect::<Vec<_>>());
        }
    }
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh04::{self, Side, Way};
    use hashpit_nips::eh05::Leg;
    use hashpit_nips::{EpochId, HashUnits, Lots, Msats, Price};
    use nostr::Keys;

    use super::*;

    const MARKET: MarketId = MarketId(3);

    fn matched(seller: PublicKey, buyer: PublicKey) -> Match {
        let leg = |trader| Leg { offer: EventId::all_zeros(), trader, fee: Msats::ZERO };
        let epoch = EpochId { pool: seller, height: 1 };
        Match {
            seq: 7,
            index: 0,
            market: eh04::MarketId { exchange: buyer, epoch },
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
        trades.open(id, MARKET, &matched(seller, buyer));
        assert_eq!(trades.next_deadline(), Some(Millis::new(61_000)));
        assert!(trades.awaits((id, 1), seller, Millis::new(60_999)));
        assert!(!trades.awaits((id, 1), seller, Millis::new(61_000)), "too late");
        assert_eq!(trades.report((id, 1), seller, 8, Millis::new(2_000)), Ok(None));
        assert!(!trades.awaits((id, 1), seller, Millis::new(2_000)), "twice");
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
        trades.open(id, MARKET, &matched(seller, buyer));
        let at = Millis::new(2_000);
        for (step, who) in [(1, seller), (1, buyer), (2, buyer), (3, seller), (4, buyer)] {
            assert_eq!(trades.report((id, step), who, 8, at), Ok(None));
        }
        assert_eq!(trades.next_deadline(), Some(Millis::new(1_000 + 5_280_000)));
        assert_eq!(trades.report((id, 6), seller, 8, at), Ok(None));
        let (settled, print) = trades.report((id, 6), buyer, 9, at).unwrap().unwrap();
        assert_eq!((print.market, print.place), (MARKET, (7, 0)));
        assert_eq!(print.trade.at, Millis::new(1_000), "the time of the match");
        assert_eq!((settled.fate, settled.traders), (Fate::Completed, [seller, buyer]));
        assert_eq!(trades.next_deadline(), None);
    }
}
