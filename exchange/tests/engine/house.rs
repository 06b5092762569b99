//! An engine with a journal's counter before it, and orders in few words.

use hashpit_exchange::engine::{
    Address, Command, EndReason, Engine, Event, Limits, MarketId, MarketRules, Match, OfferId,
    Order, PayMask, Refusal, Seq, Trader,
};
use hashpit_nips::eh04::{MarketState, OnEpoch, SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};

/// The first market.
pub const MARKET: MarketId = MarketId(0);
/// No fees, prices in ones, lots up to a million.
pub const RULES: MarketRules = MarketRules {
    tick: Price::new(1),
    min_lots: Lots::new(1),
    max_lots: Lots::new(1_000_000),
    maker_fee_ppm: 0,
    taker_fee_ppm: 0,
};

pub fn trader(number: u8) -> Trader {
    Trader([number; 32])
}

pub fn id(number: u32) -> OfferId {
    let mut id = [0; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    OfferId(id)
}

pub fn address(number: u32) -> Address {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&number.to_be_bytes());
    Address(address)
}

/// An offer that rests, with event, address and number the same.
pub fn order(number: u32, whose: u8, side: Side, price: u64, lots: u32) -> Order {
    Order {
        id: id(number),
        address: address(number),
        trader: trader(whose),
        market: MARKET,
        side,
        price: Some(Price::new(price)),
        lots: Lots::new(lots),
        min: Lots::new(1),
        max: Lots::new(u32::MAX),
        tif: TimeInForce::Gtc,
        pay: PayMask(1),
        group: None,
        self_trade: SelfTrade::CancelNew,
        on_epoch: OnEpoch::Keep,
        expires: None,
    }
}

pub fn buy(number: u32, whose: u8, price: u64, lots: u32) -> Order {
    order(number, whose, Side::Buy, price, lots)
}

pub fn sell(number: u32, whose: u8, price: u64, lots: u32) -> Order {
    order(number, whose, Side::Sell, price, lots)
}

/// An engine, and what a journal knows.
pub struct House {
    pub engine: Engine,
    pub seq: Seq,
    pub now: u64,
}

impl House {
    /// One open market.
    pub fn new() -> Self {
        Self::with(RULES, Limits::default())
    }

    pub fn with(rules: MarketRules, limits: Limits) -> Self {
        let mut house = Self { engine: Engine::new(limits), seq: 0, now: 1_000 };
        assert_eq!(house.send(Command::OpenMarket(rules)), [Event::MarketOpened(MARKET)]);
        house
    }

    /// Applies a command at the present time, and gives all but depths.
    pub fn send(&mut self, command: Command) -> Vec<Event> {
        let mut events = self.send_all(command);
        events.retain(|event| !matches!(event, Event::Depth { .. }));
        events
    }

    pub fn send_all(&mut self, command: Command) -> Vec<Event> {
        self.seq += 1;
        let mut events = Vec::new();
        self.engine.apply(self.seq, Millis::new(self.now), command, &mut events);
        events
    }

    pub fn place(&mut self, order: Order) -> Vec<Event> {
        self.send(Command::Place(order))
    }

    pub fn amend(&mut self, prev: u32, order: Order) -> Vec<Event> {
        self.send(Command::Amend { prev: id(prev), order })
    }

    pub fn commit(&mut self, whose: u8, number: u32) -> Vec<Event> {
        self.send(Command::Commit { trader: trader(whose), market: MARKET, id: id(number) })
    }

    pub fn set(&mut self, state: MarketState) -> Vec<Event> {
        self.send(Command::SetState(MARKET, state))
    }

    /// Lets time pass until `now`.
    pub fn wait_until(&mut self, now: u64) -> Vec<Event> {
        self.now = now;
        self.send(Command::Time)
    }

    /// Numbers and lots of a side's offers, by priority.
    pub fn book(&self, side: Side) -> Vec<(u32, u32)> {
        let number = |id: OfferId| u32::from_be_bytes(id.0[..4].try_into().unwrap());
        self.engine.queue(MARKET, side).map(|o| (number(o.id), o.left.get())).collect()
    }
}

/// Maker, price and lots of each match.
pub fn fills(events: &[Event]) -> Vec<(OfferId, u64, u32)> {
    matches(events).iter().map(|m| (m.maker.id, m.price.get(), m.lots.get())).collect()
}

pub fn matches(events: &[Event]) -> Vec<Match> {
    let found = events.iter().filter_map(|event| match event {
        Event::Matched(found) => Some(*found),
        _ => None,
    });
    found.collect()
}

/// Offers that ended, and why.
pub fn ends(events: &[Event]) -> Vec<(OfferId, EndReason)> {
    let found = events.iter().filter_map(|event| match event {
        Event::Ended { id, reason, .. } => Some((*id, *reason)),
        _ => None,
    });
    found.collect()
}

/// Why the only event is a refusal.
pub fn refusal(events: &[Event]) -> Refusal {
    match events {
        [Event::Refused { refusal, .. }] => *refusal,
        other => panic!("not refused: {other:?}"),
    }
}
