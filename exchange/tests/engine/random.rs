//! The engine against the naive model, on random commands.

use std::collections::BTreeSet;
use std::ops::Range;

use hashpit_exchange::engine::{Command, Engine, Event, MarketId, Seq, Standing};
use hashpit_nips::eh04::Side;
use hashpit_nips::{Millis, Price};

use crate::dice::Dice;
use crate::house::trader;
use crate::model::{Model, Open};

/// Commands of one seed. A new house every so often keeps bad states apart.
const COMMANDS: u64 = 2_000;

/// A million commands in four parts, so that they run side by side.
#[test]
fn engine_and_model_agree_1() {
    agree(0..125);
}

#[test]
fn engine_and_model_agree_2() {
    agree(125..250);
}

#[test]
fn engine_and_model_agree_3() {
    agree(250..375);
}

#[test]
fn engine_and_model_agree_4() {
    agree(375..500);
}

fn agree(seeds: Range<u64>) {
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| Pair::new(seed).run());
        assert!(outcome.is_ok(), "engine and model differ with seed {seed}");
    }
}

struct Pair {
    dice: Dice,
    engine: Engine,
    model: Model,
    now: u64,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let limits = dice.limits();
        Self { engine: Engine::new(limits), model: Model::new(limits), dice, now: 0 }
    }

    fn run(mut self) {
        for seq in 1..=COMMANDS {
            let command = self.dice.command(&self.model);
            self.now += self.dice.pause();
            self.step(seq, command);
            if self.dice.one_in(40) {
                self.compare_books();
            }
        }
        self.compare_books();
    }

    fn step(&mut self, seq: Seq, command: Command) {
        let at = Millis::new(self.now);
        let before = self.levels();
        let expected = self.model.apply(seq, at, command.clone());
        let mut events = Vec::new();
        self.engine.apply(seq, at, command.clone(), &mut events);
        let (depths, events): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| matches!(event, Event::Depth { .. }));
        assert_eq!(events, expected, "{seq}: {command:?}");
        self.compare_depths(&before, &depths);
        let next = self.model.next_deadline().map(|(at, _)| Millis::new(at));
        assert_eq!(self.engine.next_deadline(), next);
    }

    /// Every level of the model.
    fn levels(&self) -> BTreeSet<(MarketId, Side, Price, u64, u32)> {
        let mut all = BTreeSet::new();
        for number in 0..self.model.markets.len() {
            let market = MarketId(u32::try_from(number).unwrap());
            for side in [Side::Buy, Side::Sell] {
                let levels = self.model.levels(market, side).into_iter();
                all.extend(levels.map(|(price, lots, n)| (market, side, price, lots, n)));
            }
        }
        all
    }

    /// Every level that changed was told, once, and as it is.
    fn compare_depths(
        &self,
        before: &BTreeSet<(MarketId, Side, Price, u64, u32)>,
        depths: &[Event],
    ) {
        let after = self.levels();
        let mut told = BTreeSet::new();
        for depth in depths {
            let &Event::Depth { market, side, price, lots, offers } = depth else { panic!() };
            assert!(told.insert((market, side, price)), "a level was told twice");
            let is_it = |level: &&(MarketId, Side, Price, u64, u32)| {
                (level.0, level.1, level.2) == (market, side, price)
            };
            let found = after.iter().find(is_it).map_or((0, 0), |level| (level.3, level.4));
            assert_eq!((lots, offers), found);
        }
        for level in before.symmetric_difference(&after) {
            assert!(told.contains(&(level.0, level.1, level.2)), "{level:?} was not told");
        }
    }

    fn compare_books(&self) {
        let mut count = 0;
        for number in 0..self.model.markets.len() {
            let market = MarketId(u32::try_from(number).unwrap());
            assert_eq!(self.engine.state(market), Some(self.model.markets[number].state));
            assert_eq!(self.engine.last_price(market), self.model.markets[number].last);
            assert_eq!(self.engine.deferred_in(market), self.model.markets[number].queue.len());
            for side in [Side::Buy, Side::Sell] {
                let queue: Vec<_> = self.engine.queue(market, side).collect();
                let expected = self.model.ranked(market, side, None);
                assert_eq!(queue.len(), expected.len());
                count += queue.len();
                for (standing, open) in queue.iter().zip(&expected) {
                    self.compare_offer(standing, open);
                }
                let levels: Vec<_> = self.engine.levels(market, side).collect();
                assert_eq!(levels, self.model.levels(market, side));
            }
        }
        assert_eq!(count, self.model.open.len());
        self.compare_traders();
    }

    fn compare_offer(&self, standing: &Standing, open: &Open) {
        let order = &open.order;
        assert_eq!((standing.id, standing.seq), (order.id, open.seq));
        assert_eq!((standing.trader, standing.price), (order.trader, order.price.unwrap()));
        assert_eq!((standing.left.get(), standing.filled.get()), (open.left(), open.filled));
        assert_eq!((standing.min, standing.max), (order.min, order.max));
        assert_eq!((standing.pay, standing.group), (order.pay, order.group));
        assert_eq!((standing.tif, standing.on_epoch), (order.tif, order.on_epoch));
        assert_eq!(standing.expires, order.expires);
        assert_eq!(self.engine.offer(order.address).as_ref(), Some(standing));
    }

    fn compare_traders(&self) {
        for trader in (0..8).map(trader) {
            let own: BTreeSet<_> = self.engine.offers_of(trader).map(|o| o.seq).collect();
            let expected = self.model.open.iter().filter(|o| o.order.trader == trader);
            let expected: BTreeSet<_> = expected.map(|o| o.seq).collect();
            assert_eq!(own, expected);
            assert_eq!(self.engine.open_offers(trader) as usize, expected.len());
            let burnt = self.model.burnt.get(&trader).copied().unwrap_or_default();
            assert_eq!(self.engine.burnt(trader), burnt);
            let alive = self.model.alive.get(&trader).map(|&(until, _)| Millis::new(until));
            assert_eq!(self.engine.alive_until(trader), alive);
        }
    }
}
