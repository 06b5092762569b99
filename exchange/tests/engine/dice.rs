//! Random commands, of few traders, addresses and prices, so that everything
//! meets everything. One seed decides all.

use hashpit_exchange::engine::{
    Address, Command, Limits, MarketId, MarketRules, OfferId, Order, PayMask, Trader,
};
use hashpit_nips::eh04::{MarketState, OnEpoch, SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::house::{address, id, trader};
use crate::model::Model;

pub struct Dice {
    rng: StdRng,
    next_id: u32,
    traders: u8,
    prices: u64,
    addresses: u32,
    /// How often, of a thousand commands, a market changes or a commit is made.
    upheaval: u32,
    /// Offers that were committed to.
    hidden: Vec<Order>,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            next_id: 0,
            traders: rng.random_range(2..8),
            prices: rng.random_range(2..14),
            addresses: rng.random_range(6..60),
            upheaval: rng.random_range(0..60),
            hidden: Vec::new(),
            rng,
        }
    }

    pub fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn below(&mut self, n: u32) -> u32 {
        self.rng.random_range(0..n)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    /// Mostly no time, sometimes more than any offer lasts.
    pub fn pause(&mut self) -> u64 {
        match self.below(20) {
            0..=11 => 0,
            12..=18 => u64::from(self.below(4)),
            _ => u64::from(self.below(60)),
        }
    }

    pub fn limits(&mut self) -> Limits {
        let generous = self.one_in(2);
        let mut limit = |tight: u32| if generous { 1_000 } else { 1 + self.below(tight) };
        Limits {
            open_offers_per_trader: limit(10),
            open_offers_per_market: limit(25),
            makers_per_order: limit(8),
            commits_per_trader: 1 + limit(2) % 4,
            reveal_ms: u64::from(limit(10)) % 12,
            deferred_per_market: limit(8),
            deferred_per_trader: limit(4),
        }
    }

    pub fn rules(&mut self) -> MarketRules {
        let min = self.pick(&[1, 1, 1, 2]);
        MarketRules {
            tick: Price::new(self.pick(&[1, 1, 2, 3])),
            min_lots: Lots::new(min),
            max_lots: Lots::new(self.pick(&[6, 12, 20])),
            maker_fee_ppm: self.pick(&[0, 1, 300_000, 1_000_000]),
            taker_fee_ppm: self.pick(&[0, 2_500, 500_000]),
        }
    }

    fn broken_rules(&mut self) -> MarketRules {
        let mut rules = self.rules();
        match self.below(4) {
            0 => rules.tick = Price::ZERO,
            1 => rules.min_lots = Lots::ZERO,
            2 => rules.max_lots = Lots::ZERO,
            _ => rules.taker_fee_ppm = 1_000_001,
        }
        rules
    }

    fn id(&mut self) -> OfferId {
        self.next_id += 1;
        id(self.next_id)
    }

    fn trader(&mut self) -> Trader {
        let number = self.rng.random_range(0..self.traders);
        trader(number)
    }

    /// Sometimes one that was never opened.
    fn market(&mut self, model: &Model) -> MarketId {
        let open = u32::try_from(model.markets.len()).unwrap();
        MarketId(if self.one_in(300) { open } else { self.below(open) })
    }

    fn address(&mut self) -> Address {
        let number = self.below(self.addresses);
        address(number)
    }

    fn order(&mut self, model: &Model) -> Order {
        let market = self.market(model);
        let tif = self.pick(&[
            TimeInForce::Gtc,
            TimeInForce::Gtc,
            TimeInForce::Gtc,
            TimeInForce::Post,
            TimeInForce::Ioc,
            TimeInForce::Fok,
        ]);
        let min = self.pick(&[1, 1, 1, 1, 2, 4, 7]);
        let max = if self.one_in(4) { min + self.below(6) } else { u32::MAX };
        let mut order = Order {
            id: self.id(),
            address: self.address(),
            trader: self.trader(),
            market,
            side: self.pick(&[Side::Buy, Side::Sell]),
            price: Some(self.price(model, market)),
            lots: Lots::new(1 + self.below(12)),
            min: Lots::new(min),
            max: Lots::new(max),
            tif,
            pay: PayMask(self.pick(&[0b01, 0b10, 0b11, 0b11, 0b11])),
            group: self.pick(&[None, None, None, Some(1), Some(2)]),
            self_trade: self.pick(&[SelfTrade::CancelNew, SelfTrade::CancelOld]),
            on_epoch: self.pick(&[OnEpoch::Cancel, OnEpoch::Keep]),
            expires: None,
        };
        if self.one_in(5) {
            order.expires = Some(Millis::new(model.now + u64::from(self.below(40))));
        }
        if self.one_in(12) {
            order.price = None;
        }
        if self.one_in(40) {
            self.spoil(&mut order);
        }
        order
    }

    /// A multiple of the tick, nearly always.
    fn price(&mut self, model: &Model, market: MarketId) -> Price {
        let tick = model.markets.get(market.0 as usize).map_or(1, |m| m.rules.tick.get());
        let steps = self.rng.random_range(1..=self.prices);
        Price::new(if self.one_in(60) { steps } else { steps * tick })
    }

    fn spoil(&mut self, order: &mut Order) {
        match self.below(7) {
            0 => order.lots = Lots::ZERO,
            1 => order.lots = Lots::new(u32::MAX),
            2 => order.min = Lots::ZERO,
            3 => order.max = Lots::ZERO,
            4 => order.pay = PayMask(0),
            5 => order.price = Some(Price::ZERO),
            _ => {
                let price = Price::new(u64::MAX / 6 * 6);
                (order.price, order.lots) = (Some(price), Lots::new(6));
            }
        }
    }

    /// The next command, with what stands in mind.
    pub fn command(&mut self, model: &Model) -> Command {
        if model.markets.is_empty() || (model.markets.len() < 3 && self.one_in(200)) {
            return Command::OpenMarket(self.rules());
        }
        if !self.hidden.is_empty() && self.one_in(3) {
            let index = self.rng.random_range(0..self.hidden.len());
            return Command::Place(self.hidden.swap_remove(index));
        }
        if self.rng.random_range(0..1_000) < self.upheaval {
            return self.upheaval(model);
        }
        match self.below(100) {
            0..=54 => Command::Place(self.order(model)),
            55..=71 => self.amendment(model),
            72..=89 => self.cancellation(model),
            90..=93 => Command::CancelById { trader: self.trader(), id: self.known_id(model) },
            94 => self.cancel_all(model),
            95..=96 => self.alive(model),
            _ => Command::Time,
        }
    }

    fn upheaval(&mut self, model: &Model) -> Command {
        let market = self.market(model);
        match self.below(16) {
            0 => Command::SetRules(market, self.rules()),
            1 => Command::SetRules(market, self.broken_rules()),
            2 => Command::SetLimits(self.limits()),
            3..=4 => Command::TurnEpoch(market),
            5..=9 => Command::SetState(market, self.state(model, market)),
            _ => {
                let order = self.order(model);
                self.hidden.push(order);
                Command::Commit { trader: order.trader, market: order.market, id: order.id }
            }
        }
    }

    /// Open more often than not, so that markets trade.
    fn state(&mut self, model: &Model, market: MarketId) -> MarketState {
        let now = model.markets.get(market.0 as usize).map(|market| market.state);
        if now != Some(MarketState::Open) && self.one_in(2) {
            return MarketState::Open;
        }
        self.pick(&[
            MarketState::Open,
            MarketState::Halted,
            MarketState::Auction,
            MarketState::Auction,
            MarketState::Closed,
        ])
    }

    fn alive(&mut self, model: &Model) -> Command {
        let until = Millis::new(model.now + u64::from(self.below(50)));
        Command::Alive { trader: self.trader(), until: (!self.one_in(3)).then_some(until) }
    }

    fn cancel_all(&mut self, model: &Model) -> Command {
        let market = self.market(model);
        Command::CancelAll { trader: self.trader(), market: (!self.one_in(3)).then_some(market) }
    }

    /// Some offer that stands, if one does.
    fn standing(&mut self, model: &Model) -> Option<Order> {
        let count = u32::try_from(model.open.len()).unwrap();
        (count > 0).then(|| model.open[self.below(count) as usize].order)
    }

    fn known_id(&mut self, model: &Model) -> OfferId {
        match self.standing(model) {
            Some(order) if !self.one_in(4) => order.id,
            _ => {
                let number = self.below(self.next_id + 1);
                id(number)
            }
        }
    }

    fn amendment(&mut self, model: &Model) -> Command {
        let mut order = self.order(model);
        let Some(old) = self.standing(model) else {
            return Command::Amend { prev: self.known_id(model), order };
        };
        if !self.one_in(10) {
            (order.address, order.trader) = (old.address, old.trader);
        }
        if !self.one_in(20) {
            (order.market, order.side) = (old.market, old.side);
        }
        if self.one_in(2) {
            order.price = old.price;
        }
        let prev = if self.one_in(10) { self.known_id(model) } else { old.id };
        Command::Amend { prev, order }
    }

    fn cancellation(&mut self, model: &Model) -> Command {
        let (mut trader, mut address, mut prev) = (self.trader(), self.address(), None);
        if let Some(old) = self.standing(model)
            && !self.one_in(5)
        {
            (trader, address) = (old.trader, old.address);
            prev = self.pick(&[None, Some(old.id)]);
        }
        if self.one_in(10) {
            prev = Some(self.known_id(model));
        }
        Command::Cancel { trader, address, prev }
    }
}
