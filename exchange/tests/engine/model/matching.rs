//! Orders that come in.

use hashpit_exchange::engine::{
    EndReason, Event, Leg, MarketId, Match, OfferId, Order, PayMask, Refusal, Seq,
};
use hashpit_nips::eh04::{MarketState, SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Msats, Price};

use super::{Model, Open, Verdict};

/// What two offers would trade, apart from whose they are.
pub fn fill(a: (&Order, u32), b: (&Order, u32)) -> Option<u32> {
    let (a_left, b_left) = (a.1, b.1);
    let lots = a_left.min(b_left).min(a.0.max.get()).min(b.0.max.get());
    let payable = a.0.pay.0 & b.0.pay.0 != 0;
    let enough = lots >= a_left.min(a.0.min.get()) && lots >= b_left.min(b.0.min.get());
    (payable && enough && lots > 0).then_some(lots)
}

pub fn same_group(a: &Order, b: &Order) -> bool {
    matches!((a.group, b.group), (Some(a), Some(b)) if a == b)
}

fn at_once(tif: TimeInForce) -> bool {
    tif == TimeInForce::Ioc || tif == TimeInForce::Fok
}

impl Model {
    fn check(&self, order: &Order) -> Verdict {
        let market = &self.markets[self.number(order.market)?];
        if market.state == MarketState::Closed {
            return Err(Refusal::Closed);
        }
        if market.state == MarketState::Halted {
            return Err(Refusal::Halted);
        }
        if market.state == MarketState::Auction && at_once(order.tif) {
            return Err(Refusal::Auction);
        }
        if order.expires.is_some_and(|expires| expires.get() <= self.now) {
            return Err(Refusal::Expired);
        }
        let (min, max, tick) = (market.rules.min_lots, market.rules.max_lots, market.rules.tick);
        if !(min..=max).contains(&order.lots) {
            return Err(Refusal::Lots { min, max });
        }
        if order.min.get() == 0 || order.max < order.min {
            return Err(Refusal::FillSizes);
        }
        if order.pay.0 == 0 {
            return Err(Refusal::NoPayment);
        }
        let Some(price) = order.price else {
            return if at_once(order.tif) { Ok(()) } else { Err(Refusal::NoPrice) };
        };
        if price.get() == 0 || !price.get().is_multiple_of(tick.get()) {
            return Err(Refusal::Price { tick });
        }
        let value = price.get().checked_mul(u64::from(order.lots.get()));
        value.map(drop).ok_or(Refusal::Value)
    }

    pub fn place(&mut self, seq: Seq, order: Order) -> Verdict {
        self.check(&order)?;
        if self.open.iter().any(|open| open.order.address == order.address) {
            return Err(Refusal::AddressTaken);
        }
        if !at_once(order.tif) {
            let own = self.open.iter().filter(|o| o.order.trader == order.trader).count();
            let here = self.open.iter().filter(|o| o.order.market == order.market).count();
            let limit = self.limits.open_offers_per_trader;
            if own >= limit as usize {
                return Err(Refusal::OffersOfTrader { limit });
            }
            let limit = self.limits.open_offers_per_market;
            if here >= limit as usize {
                return Err(Refusal::OffersOfMarket { limit });
            }
        }
        self.enter(Open { order, seq, filled: 0 }, None)
    }

    pub fn amend(&mut self, seq: Seq, prev: OfferId, order: Order) -> Verdict {
        self.check(&order)?;
        let is_it = |o: &Open| (o.order.address, o.order.trader) == (order.address, order.trader);
        let index = self.open.iter().position(is_it).ok_or(Refusal::UnknownOffer)?;
        let old = self.open[index].clone();
        if old.order.id != prev {
            return Err(Refusal::Superseded { standing: old.order.id });
        }
        if old.order.market != order.market || old.order.side != order.side {
            return Err(Refusal::OtherOffer);
        }
        if order.lots.get() <= old.filled {
            self.end(old.seq, EndReason::Amended);
            self.tell_accepted(&order, seq, 0);
            self.tell_end(&order, 0, EndReason::Filled);
            return Ok(());
        }
        let (was, now) = (old.left(), order.lots.get() - old.filled);
        let smallest = |min: Lots, left: u32| min.get().min(left);
        let stays = order.price == old.order.price
            && now <= was
            && smallest(order.min, now) >= smallest(old.order.min, was)
            && order.max <= old.order.max
            && order.pay.0 & !old.order.pay.0 == 0
            && order.group == old.order.group;
        if stays && !at_once(order.tif) {
            self.tell_end(&old.order, old.left(), EndReason::Amended);
            self.open[index].order = order;
            let left = self.open[index].left();
            self.tell_accepted(&order, old.seq, left);
            return Ok(());
        }
        self.enter(Open { order, seq, filled: old.filled }, Some(old.seq))
    }

    fn tell_accepted(&mut self, order: &Order, seq: Seq, left: u32) {
        let (market, id, left) = (order.market, order.id, Lots::new(left));
        self.events.push(Event::Accepted { market, id, seq, left });
    }

    /// Offers of a side that trade at `price`, by priority.
    pub fn ranked(&self, market: MarketId, side: Side, price: Option<u64>) -> Vec<Open> {
        let mut ranked: Vec<_> = self
            .open
            .iter()
            .filter(|o| o.order.market == market && o.order.side == side)
            .filter(|o| match (side, price) {
                (_, None) => true,
                (Side::Buy, Some(price)) => o.price() >= price,
                (Side::Sell, Some(price)) => o.price() <= price,
            })
            .cloned()
            .collect();
        ranked.sort_by_key(|o| match side {
            Side::Buy => (u64::MAX - o.price(), o.seq),
            Side::Sell => (o.price(), o.seq),
        });
        ranked
    }

    fn enter(&mut self, mut new: Open, replaced: Option<Seq>) -> Verdict {
        let order = new.order;
        let open = self.markets[order.market.0 as usize].state == MarketState::Open;
        // Each step: the maker, and its lots, or none if it is cancelled.
        let mut steps: Vec<(Open, Option<u32>)> = Vec::new();
        let (mut left, mut met_own, mut stopped) = (new.left(), false, false);
        let price = order.price.map(Price::get);
        let makers = self.ranked(order.market, order.side.opposite(), price);
        for maker in makers.into_iter().take(self.limits.makers_per_order as usize) {
            if left == 0 || stopped || !open {
                break;
            }
            let Some(lots) = fill((&order, left), (&maker.order, maker.left())) else { continue };
            if maker.order.trader == order.trader {
                met_own = true;
                match order.self_trade {
                    SelfTrade::CancelNew => stopped = true,
                    SelfTrade::CancelOld => steps.push((maker, None)),
                }
            } else if !same_group(&order, &maker.order) {
                left -= lots;
                steps.push((maker, Some(lots)));
            }
        }
        if order.tif == TimeInForce::Fok && left > 0 {
            return Err(Refusal::NotFillable);
        }
        if order.tif == TimeInForce::Post && (met_own || !steps.is_empty()) {
            return Err(Refusal::WouldMatch);
        }
        if let Some(seq) = replaced {
            self.end(seq, EndReason::Amended);
        }
        self.tell_accepted(&order, new.seq, new.left());
        for (maker, lots) in steps {
            let Some(lots) = lots else {
                self.end(maker.seq, EndReason::SelfTrade);
                continue;
            };
            new.filled += lots;
            self.fill_open(maker.seq, lots);
            self.tell_match(&maker, &new, maker.price(), lots);
            if maker.left() == lots {
                self.end(maker.seq, EndReason::Filled);
            }
        }
        match (left, stopped) {
            (0, _) => self.tell_end(&order, 0, EndReason::Filled),
            (_, true) => self.tell_end(&order, left, EndReason::SelfTrade),
            _ if at_once(order.tif) => self.tell_end(&order, left, EndReason::Immediate),
            _ => self.open.push(new),
        }
        Ok(())
    }

    pub fn fill_open(&mut self, seq: Seq, lots: u32) {
        self.open.iter_mut().find(|open| open.seq == seq).unwrap().filled += lots;
    }

    /// `maker` as it was before the match, `taker` as it is after it.
    pub fn tell_match(&mut self, maker: &Open, taker: &Open, price: u64, lots: u32) {
        let market = &mut self.markets[taker.order.market.0 as usize];
        market.last = Some(Price::new(price));
        let msats = price * u64::from(lots);
        let fee = |ppm: u32| Msats::new((msats * u64::from(ppm)).div_ceil(1_000_000));
        let leg = |open: &Open, left| {
            let order = &open.order;
            Leg { id: order.id, trader: order.trader, seq: open.seq, left: Lots::new(left) }
        };
        let found = Match {
            market: taker.order.market,
            maker: leg(maker, maker.left() - lots),
            taker: leg(taker, taker.left()),
            taker_side: taker.order.side,
            price: Price::new(price),
            lots: Lots::new(lots),
            msats: Msats::new(msats),
            maker_fee: fee(market.rules.maker_fee_ppm),
            taker_fee: fee(market.rules.taker_fee_ppm),
            pay: PayMask(maker.order.pay.0 & taker.order.pay.0),
        };
        self.events.push(Event::Matched(found));
    }
}
