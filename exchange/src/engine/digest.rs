//! The state in a canonical order, hashed, so that two who hold the same journal
//! can see that they agree.

use hashpit_nips::eh04::{MarketState, OnEpoch, SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};
use sha2::{Digest, Sha256};

use super::Engine;
use super::command::{Command, Limits, MarketId, MarketRules, OfferId, Order, Seq};
use super::commits::Queued;
use super::view::Standing;

/// First byte of what is hashed; another meaning of the rest takes another.
const VERSION: u8 = 1;

impl Engine {
    /// SHA-256 over all of a market: rules, state, last price, every offer by
    /// side and priority, and what waits behind commits. All zeros if no such
    /// market was opened.
    pub fn digest(&self, market: MarketId) -> [u8; 32] {
        let Some(its) = self.markets.get(market.index()) else { return [0; 32] };
        let mut hash = Hash::new(b'm');
        hash.number(market.0);
        hash.rules(&its.rules);
        hash.bytes(&[state(its.state), u8::from(its.gathered)]);
        hash.option(its.last.map(Price::get));
        for side in [Side::Buy, Side::Sell] {
            hash.number(its.book.queue(side, &self.offers).count() as u64);
            for offer in self.queue(market, side) {
                hash.standing(&offer);
            }
        }
        hash.number(its.queue.len() as u64);
        for queued in &its.queue {
            hash.queued(queued);
        }
        hash.finish()
    }

    /// SHA-256 over what belongs to no market: limits, how many markets there
    /// are, and each trader's dead man's switch and burnt commits.
    pub fn digest_of_house(&self) -> [u8; 32] {
        let mut hash = Hash::new(b'h');
        hash.limits(&self.limits);
        hash.number(self.markets());
        for trader in self.traders.sorted() {
            if trader.alive.is_none() && trader.burnt == 0 {
                continue;
            }
            hash.bytes(&trader.key.0);
            hash.number(trader.burnt);
            hash.option(trader.alive.map(|(until, _)| until.get()));
            hash.option(trader.alive.map(|(_, seq)| seq));
        }
        hash.finish()
    }
}

/// Numbers are 8 bytes, the most significant first. What may be missing has a
/// byte before it. A byte before each kind of thing tells it from the others.
struct Hash(Sha256);

impl Hash {
    fn new(what: u8) -> Self {
        Self(Sha256::new_with_prefix([VERSION, what]))
    }

    fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn number(&mut self, number: impl Into<u64>) {
        self.bytes(&number.into().to_be_bytes());
    }

    fn option(&mut self, number: Option<u64>) {
        self.bytes(&[u8::from(number.is_some())]);
        self.number(number.unwrap_or_default());
    }

    fn id(&mut self, id: Option<OfferId>) {
        self.bytes(&[u8::from(id.is_some())]);
        self.bytes(&id.unwrap_or(OfferId([0; 32])).0);
    }

    fn rules(&mut self, rules: &MarketRules) {
        let &MarketRules { tick, min_lots, max_lots, maker_fee_ppm, taker_fee_ppm } = rules;
        self.number(tick.get());
        self.lots([min_lots, max_lots]);
        self.number(maker_fee_ppm);
        self.number(taker_fee_ppm);
    }

    fn limits(&mut self, limits: &Limits) {
        let &Limits {
            open_offers_per_trader,
            open_offers_per_market,
            makers_per_order,
            commits_per_trader,
            reveal_ms,
            deferred_per_market,
            deferred_per_trader,
        } = limits;
        self.number(open_offers_per_trader);
        self.number(open_offers_per_market);
        self.number(makers_per_order);
        self.number(commits_per_trader);
        self.number(reveal_ms);
        self.number(deferred_per_market);
        self.number(deferred_per_trader);
    }

    fn lots<const N: usize>(&mut self, lots: [Lots; N]) {
        for lots in lots {
            self.number(lots.get());
        }
    }

    fn standing(&mut self, offer: &Standing) {
        let Standing { id, address, trader, market, seq, side, price, left, filled, .. } = offer;
        self.bytes(&id.0);
        self.bytes(&address.0);
        self.bytes(&trader.0);
        self.number(market.0);
        self.number(*seq);
        self.number(price.get());
        self.lots([*left, *filled, offer.min, offer.max]);
        self.number(offer.pay.0);
        self.option(offer.group);
        self.option(offer.expires.map(Millis::get));
        self.bytes(&[side_byte(*side), tif(offer.tif), on_epoch(offer.on_epoch)]);
    }

    fn order(&mut self, order: &Order) {
        let Order { id, address, trader, market, side, price, lots, min, max, .. } = order;
        self.bytes(&id.0);
        self.bytes(&address.0);
        self.bytes(&trader.0);
        self.number(market.0);
        self.option(price.map(Price::get));
        self.lots([*lots, *min, *max]);
        self.number(order.pay.0);
        self.option(order.group);
        self.option(order.expires.map(Millis::get));
        self.bytes(&[side_byte(*side), tif(order.tif), on_epoch(order.on_epoch)]);
        self.bytes(&[match order.self_trade {
            SelfTrade::CancelNew => 0,
            SelfTrade::CancelOld => 1,
        }]);
    }

    fn queued(&mut self, queued: &Queued) {
        match queued {
            Queued::Commit { seq, trader, id, until, shown } => {
                self.tag(0, *seq);
                self.bytes(&trader.0);
                self.bytes(&id.0);
                self.number(until.get());
                self.bytes(&[u8::from(shown.is_some())]);
                if let Some(order) = shown {
                    self.order(order);
                }
            }
            Queued::Command { seq, command } => self.command(*seq, command),
        }
    }

    /// One that was deferred.
    fn command(&mut self, seq: Seq, command: &Command) {
        match command {
            Command::Place(order) => {
                self.tag(1, seq);
                self.order(order);
            }
            Command::Amend { prev, order } => {
                self.tag(2, seq);
                self.bytes(&prev.0);
                self.order(order);
            }
            Command::Cancel { trader, address, prev } => {
                self.tag(3, seq);
                self.bytes(&trader.0);
                self.bytes(&address.0);
                self.id(*prev);
            }
            Command::CancelById { trader, id } => {
                self.tag(4, seq);
                self.bytes(&trader.0);
                self.bytes(&id.0);
            }
            Command::CancelAll { trader, .. } => {
                self.tag(5, seq);
                self.bytes(&trader.0);
            }
            _ => unreachable!("only commands for one market's book wait"),
        }
    }

    fn tag(&mut self, kind: u8, seq: Seq) {
        self.bytes(&[kind]);
        self.number(seq);
    }
}

fn side_byte(side: Side) -> u8 {
    match side {
        Side::Buy => 0,
        Side::Sell => 1,
    }
}

fn tif(tif: TimeInForce) -> u8 {
    match tif {
        TimeInForce::Gtc => 0,
        TimeInForce::Ioc => 1,
        TimeInForce::Fok => 2,
        TimeInForce::Post => 3,
    }
}

fn on_epoch(on_epoch: OnEpoch) -> u8 {
    match on_epoch {
        OnEpoch::Cancel => 0,
        OnEpoch::Keep => 1,
    }
}

fn state(state: MarketState) -> u8 {
    match state {
        MarketState::Open => 0,
        MarketState::Halted => 1,
        MarketState::Auction => 2,
        MarketState::Closed => 3,
    }
}
