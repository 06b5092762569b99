//! A market's book, put together from checkpoints (kind 38483) and depth events
//! (28480) however they arrive: twice, late, in any order, or not at all.
//!
//! Depth events are numbered. One that is next is applied; one that is ahead of a
//! gap waits; a checkpoint that is newer replaces the book and lets go on from
//! there what waits. So the book is at every moment the true one of some number,
//! and the newest one after a checkpoint.

use std::collections::BTreeMap;

use hashpit_nips::eh04::{MarketId, MarketState};
use hashpit_nips::eh05::{Checkpoint, Depth, LastTrade, Level};
use hashpit_nips::{Millis, Price};

/// Depth events that wait for a checkpoint. Beyond, the oldest is dropped: it is
/// the likeliest to be in the next one.
const MAX_WAITING: usize = 1024;

/// A market's book as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    market: MarketId,
    at: Option<Place>,
    state: MarketState,
    bids: Side,
    asks: Side,
    cut: bool,
    last: Option<LastTrade>,
    waiting: BTreeMap<u64, Depth>,
}

/// Lots and number of offers, by price.
type Side = BTreeMap<Price, (u64, u32)>;

/// How much of the journal a book contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Number of the newest depth event.
    number: u64,
    /// The newest entry.
    seq: u64,
    /// The clock of the newest checkpoint.
    checked: Millis,
}

impl Book {
    /// The book of `market`, of which nothing is known yet.
    pub fn new(market: MarketId) -> Self {
        Self {
            market,
            at: None,
            state: MarketState::Closed,
            bids: Side::new(),
            asks: Side::new(),
            cut: false,
            last: None,
            waiting: BTreeMap::new(),
        }
    }

    /// Takes a checkpoint; true if the book is another now.
    pub fn checkpoint(&mut self, checkpoint: Checkpoint) -> bool {
        let Checkpoint { epoch, seq, depth: number, at, book, .. } = checkpoint;
        let old = self.at.map(|at| (at.seq, at.number));
        if epoch != self.market.epoch || old >= Some((seq, number)) {
            return false;
        }
        if self.at.is_some_and(|at| number < at.number) {
            // The exchange counts anew; what waits was counted by the old way.
            self.waiting.clear();
        }
        let side = |levels: Vec<Level>| {
            let live = levels.into_iter().filter(|level| level.1 > 0);
            live.map(|Level(price, lots, offers)| (price, (lots, offers))).collect()
        };
        self.at = Some(Place { number, seq, checked: at });
        self.state = book.state;
        self.bids = side(book.bids);
        self.asks = side(book.asks);
        self.cut = book.cut;
        self.last = book.last;
        self.waiting.retain(|&waiting, _| waiting > number);
        self.catch_up();
        true
    }

    /// Takes a depth event; true if the book is another now.
    pub fn depth(&mut self, depth: Depth) -> bool {
        let old =
            depth.market != self.market || self.at.is_some_and(|at| depth.number <= at.number);
        if old {
            return false;
        }
        self.waiting.insert(depth.number, depth);
        if self.waiting.len() > MAX_WAITING {
            self.waiting.pop_first();
        }
        self.catch_up()
    }

    /// Applies what waits, up to the next gap; true if there was anything.
    fn catch_up(&mut self) -> bool {
        let Some(mut at) = self.at else { return false };
        let before = at;
        while let Some(depth) = at.number.checked_add(1).and_then(|n| self.waiting.remove(&n)) {
            at = Place { number: depth.number, seq: depth.seq.max(at.seq), ..at };
            self.state = depth.change.state;
            self.last = depth.change.last.or(self.last);
            update(&mut self.bids, depth.change.bids);
            update(&mut self.asks, depth.change.asks);
        }
        self.at = Some(at);
        at != before
    }

    /// The market.
    pub fn market(&self) -> MarketId {
        self.market
    }

    /// Sequence of the newest entry that it contains; `None` while nothing is
    /// known.
    pub fn seq(&self) -> Option<u64> {
        self.at.map(|at| at.seq)
    }

    /// The exchange's clock at the newest checkpoint.
    pub fn checked_at(&self) -> Option<Millis> {
        self.at.map(|at| at.checked)
    }

    /// True if something was missed, and the book is older than what has been
    /// heard of; the next checkpoint mends it.
    pub fn has_gap(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Where the market stands.
    pub fn state(&self) -> MarketState {
        self.state
    }

    /// Levels of buyers, best (highest) first.
    pub fn bids(&self) -> impl Iterator<Item = Level> {
        self.bids.iter().rev().map(level)
    }

    /// Levels of sellers, best (lowest) first.
    pub fn asks(&self) -> impl Iterator<Item = Level> {
        self.asks.iter().map(level)
    }

    /// True if the exchange left out levels that are far from the best.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The newest trade.
    pub fn last(&self) -> Option<LastTrade> {
        self.last
    }

    /// What lies between the best bid and the best ask, if there are both and
    /// they have not met (as in an auction).
    pub fn spread(&self) -> Option<Price> {
        let (bid, ask) = (self.bids().next()?.0, self.asks().next()?.0);
        ask.checked_sub(bid).ok()
    }
}

fn level((&price, &(lots, offers)): (&Price, &(u64, u32))) -> Level {
    Level(price, lots, offers)
}

fn update(side: &mut Side, levels: Vec<Level>) {
    for Level(price, lots, offers) in levels {
        match lots {
            0 => side.remove(&price),
            _ => side.insert(price, (lots, offers)),
        };
    }
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh05::{self, Change};
    use hashpit_nips::{EpochId, Lots};
    use nostr_sdk::{EventId, Keys};
    use proptest::prelude::*;

    use super::*;

    fn market() -> MarketId {
        let key = Keys::parse(&"11".repeat(32)).unwrap().public_key();
        MarketId { exchange: key, epoch: EpochId { pool: key, height: 7 } }
    }

    /// One change of a book: a side, a price, and its lots from then on.
    type Step = (bool, u64, u64);

    fn depth(number: u64, &(bid, price, lots): &Step) -> Depth {
        let levels = vec![Level(Price::new(price), lots, u32::from(lots > 0))];
        let (bids, asks) = if bid { (levels, vec![]) } else { (vec![], levels) };
        let last =
            LastTrade { price: Price::new(price), lots: Lots::new(1), at: Millis::new(number) };
        let change = Change { state: MarketState::Open, bids, asks, last: Some(last) };
        Depth { market: market(), number, seq: number * 3, change }
    }

    /// The book after the first `number` steps, by nothing but arithmetic.
    fn truth(steps: &[Step], number: u64) -> eh05::Book {
        let taken = &steps[..usize::try_from(number).unwrap()];
        let side = |bids: bool| {
            let mut lots = [0; 10];
            for &(bid, price, now) in taken {
                if bid == bids {
                    lots[usize::try_from(price).unwrap()] = now;
                }
            }
            let levels = (0..10u64).zip(lots).filter(|&(_, lots)| lots > 0);
            let levels = levels.map(|(price, lots)| Level(Price::new(price), lots, 1));
            levels.collect::<Vec<_>>()
        };
        let last = taken.last().map(|&(_, price, _)| LastTrade {
            price: Price::new(price),
            lots: Lots::new(1),
            at: Millis::new(number),
        });
        let bids = side(true).into_iter().rev().collect();
        eh05::Book { state: MarketState::Open, bids, asks: side(false), cut: false, last }
    }

    fn checkpoint(steps: &[Step], number: u64) -> Checkpoint {
        Checkpoint {
            epoch: market().epoch,
            seq: number * 3 + 1,
            entry: EventId::all_zeros(),
            digest: [0; 32],
            depth: number,
            at: Millis::new(number),
            book: truth(steps, number),
        }
    }

    fn shown(book: &Book) -> eh05::Book {
        eh05::Book {
            state: book.state(),
            bids: book.bids().collect(),
            asks: book.asks().collect(),
            cut: book.is_cut(),
            last: book.last(),
        }
    }

    #[derive(Debug, Clone)]
    enum Heard {
        Depth(u64),
        Checkpoint(u64),
    }

    /// Steps; the number of the newest checkpoint; and what arrives: of the depth
    /// events up to that number any, after it all, some of them twice, and older
    /// checkpoints, all in any order.
    fn arrivals() -> impl Strategy<Value = (Vec<Step>, u64, Vec<Heard>)> {
        let steps = prop::collection::vec((any::<bool>(), 1..10u64, 0..4u64), 1..40);
        let with_newest = steps.prop_flat_map(|steps| {
            let all = steps.len() as u64;
            (Just(steps), 0..=all)
        });
        with_newest.prop_flat_map(|(steps, newest)| {
            let all = steps.len() as u64;
            let copies = prop::collection::vec(0..3usize, steps.len());
            let older = prop::collection::vec(0..=newest, 0..3);
            let heard = (copies, older).prop_map(move |(copies, older)| {
                let mut heard = vec![Heard::Checkpoint(newest)];
                heard.extend(older.into_iter().map(Heard::Checkpoint));
                for (number, copies) in (1..=all).zip(copies) {
                    let copies = if number > newest { copies.max(1) } else { copies };
                    heard.extend(std::iter::repeat_n(Heard::Depth(number), copies));
                }
                heard
            });
            (Just(steps), Just(newest), heard.prop_shuffle())
        })
    }

    proptest! {
        #[test]
        fn any_loss_order_and_repetition_converges_by_a_checkpoint(
            (steps, _newest, heard) in arrivals()
        ) {
            let mut book = Book::new(market());
            for heard in heard {
                let changed = match heard {
                    Heard::Checkpoint(number) => book.checkpoint(checkpoint(&steps, number)),
                    Heard::Depth(number) => {
                        book.depth(depth(number, &steps[usize::try_from(number - 1).unwrap()]))
                    }
                };
                let Some(at) = book.at else {
                    prop_assert!(!changed);
                    continue;
                };
                // Whatever is shown was the book once.
                prop_assert_eq!(shown(&book), truth(&steps, at.number));
            }
            prop_assert_eq!(shown(&book), truth(&steps, steps.len() as u64));
            prop_assert!(!book.has_gap());
        }
    }

    #[test]
    fn a_gap_is_noticed_and_the_next_checkpoint_closes_it() {
        let steps = [(true, 1, 1), (false, 5, 2), (true, 2, 3), (true, 1, 0)];
        let mut book = Book::new(market());
        assert!(!book.depth(depth(1, &steps[0])) && book.seq().is_none());
        assert!(book.checkpoint(checkpoint(&steps, 1)) && !book.has_gap());
        assert!(!book.depth(depth(3, &steps[2])) && book.has_gap());
        assert_eq!(shown(&book), truth(&steps, 1));
        assert!(!book.checkpoint(checkpoint(&steps, 1)), "an old one mends nothing");
        assert!(book.checkpoint(checkpoint(&steps, 2)) && !book.has_gap());
        assert_eq!(shown(&book), truth(&steps, 3), "what waited goes on from there");
        assert_eq!(book.spread(), Some(Price::new(3)));
    }

    #[test]
    fn an_exchange_that_counts_anew_is_followed() {
        let steps = [(true, 1, 1), (false, 5, 2), (true, 2, 3)];
        let mut book = Book::new(market());
        book.checkpoint(checkpoint(&steps, 2));
        assert!(book.has_gap() || !book.depth(Depth { number: 9, ..depth(3, &steps[2]) }));
        let anew = Checkpoint { depth: 0, seq: 100, ..checkpoint(&steps, 3) };
        assert!(book.checkpoint(anew) && !book.has_gap());
        assert_eq!(book.seq(), Some(100));
        assert!(book.depth(Depth { number: 1, seq: 101, ..depth(1, &(true, 9, 1)) }));
        assert_eq!(book.bids().next(), Some(Level(Price::new(9), 1, 1)));
    }

    #[test]
    fn what_waits_is_bounded_and_the_newest_is_kept() {
        let mut book = Book::new(market());
        let far = MAX_WAITING as u64 + 10;
        for number in 2..=far {
            book.depth(depth(number, &(true, 1, number)));
        }
        assert_eq!(book.waiting.len(), MAX_WAITING);
        let base = Checkpoint { depth: far - 1, ..checkpoint(&[], 0) };
        assert!(book.checkpoint(base));
        assert_eq!(book.bids().next(), Some(Level(Price::new(1), far, 1)));
    }

    #[test]
    fn another_markets_events_change_nothing() {
        let mut book = Book::new(market());
        let other = MarketId { epoch: EpochId { height: 8, ..market().epoch }, ..market() };
        assert!(!book.depth(Depth { market: other, ..depth(1, &(true, 1, 1)) }));
        assert!(!book.checkpoint(Checkpoint { epoch: other.epoch, ..checkpoint(&[], 0) }));
        assert_eq!(book, Book::new(market()));
    }
}
