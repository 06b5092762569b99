//! The call auction: one price at which the offers that gathered trade.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use hashpit_nips::eh04::Side;
use hashpit_nips::{Lots, Price};

use super::Engine;
use super::command::MarketId;
use super::market::Market;
use super::offers::{Chain, Slot};
use super::place::Pair;
use super::plan::{Terms, takes};

/// Sellers that each buyer looks at, at most: every buyer of the market takes its
/// turn at once, and offers that fit nothing must not hold up everybody.
const SELLERS: u32 = 10_000;

impl Engine {
    /// Trades all that can be traded at the clearing price.
    pub(super) fn uncross(&mut self, market: MarketId) {
        let Some(price) = clearing_price(&self.markets[market.index()]) else { return };
        let buyers = self.willing(market, Side::Buy, price);
        let mut sellers: Vec<_> =
            self.willing(market, Side::Sell, price).into_iter().map(Some).collect();
        let mut first = 0;
        for buyer in buyers {
            while sellers.get(first).is_some_and(Option::is_none) {
                first += 1;
            }
            self.serve(market, price, buyer, &mut sellers[first..]);
        }
    }

    /// Trades a buyer with the sellers in order. Who is served leaves.
    fn serve(&mut self, market: MarketId, price: Price, buyer: Slot, sellers: &mut [Option<Slot>]) {
        let limit = self.limits.makers_per_order.min(SELLERS) as usize;
        for place in sellers.iter_mut().filter(|place| place.is_some()).take(limit) {
            let Some(seller) = *place else { continue };
            let (buys, sells) = (&self.offers[buyer], &self.offers[seller]);
            let (buys_on, sells_on) = (Terms::of(buys), Terms::of(sells));
            let strangers = buys.trader != sells.trader && !buys_on.same_group(&sells_on);
            let Some(lots) = buys_on.fill_with(&sells_on).filter(|_| strangers) else { continue };
            let pay = buys_on.pay.common(sells_on.pay);
            let (maker, taker, taker_side) = if buys.seq < sells.seq {
                (buyer, seller, Side::Sell)
            } else {
                (seller, buyer, Side::Buy)
            };
            let legs = (self.fill(maker, lots), self.fill(taker, lots));
            self.matched(
                market,
                Pair { maker: legs.0, taker: legs.1, taker_side, price, lots, pay },
            );
            let served = self.offers[buyer].left == Lots::ZERO;
            if self.offers[seller].left == Lots::ZERO {
                *place = None;
            }
            self.end_if_filled(maker);
            self.end_if_filled(taker);
            if served {
                return;
            }
        }
    }

    /// Offers of a side that take `price`, by priority.
    fn willing(&self, market: MarketId, side: Side, price: Price) -> Vec<Slot> {
        let levels = self.markets[market.index()].book.levels(side);
        levels
            .take_while(|&(limit, _)| takes(side, limit, price))
            .flat_map(|(_, level)| self.offers.iter(level.queue, Chain::Level))
            .collect()
    }
}

/// The price at which most lots trade; of several the one that leaves fewest
/// over, then the nearest to the last match's, then the lowest. None if no two
/// offers cross.
fn clearing_price(market: &Market) -> Option<Price> {
    let (lowest, _) = market.book.levels(Side::Sell).next()?;
    let (highest, _) = market.book.levels(Side::Buy).next()?;
    let mut bids: Vec<_> = levels(market, Side::Buy, lowest);
    bids.reverse();
    let asks = levels(market, Side::Sell, highest);
    let (mut bids, mut asks) = (bids.into_iter().peekable(), asks.into_iter().peekable());
    let mut demand: u64 = bids.clone().map(|(_, lots)| lots).sum();
    let mut supply = 0;
    let rank = |price: Price, demand: u64, supply: u64| {
        let distance = market.last.map_or(0, |last| price.get().abs_diff(last.get()));
        (Reverse(demand.min(supply)), demand.abs_diff(supply), distance, price)
    };
    let mut best = None;
    for price in candidates(market, lowest, highest) {
        while let Some((_, lots)) = bids.next_if(|&(bid, _)| bid < price) {
            demand -= lots;
        }
        while let Some((_, lots)) = asks.next_if(|&(ask, _)| ask <= price) {
            supply += lots;
        }
        let rank = rank(price, demand, supply);
        best = Some(best.map_or(rank, |best| rank.min(best)));
    }
    best.map(|(_, _, _, price)| price)
}

/// Prices and lots of a side's levels that take `limit`, best first.
fn levels(market: &Market, side: Side, limit: Price) -> Vec<(Price, u64)> {
    let levels = market.book.levels(side);
    let levels = levels.take_while(|&(price, _)| takes(side, price, limit));
    levels.map(|(price, level)| (price, level.lots)).collect()
}

/// Every price that can be the best one: those of levels, and between each two
/// of them the lowest, and those around the last match's.
fn candidates(market: &Market, lowest: Price, highest: Price) -> BTreeSet<Price> {
    let limits = levels(market, Side::Buy, lowest).into_iter();
    let limits = limits.chain(levels(market, Side::Sell, highest));
    let limits: BTreeSet<_> = limits.map(|(price, _)| price).collect();
    let tick = market.rules.tick.get();
    let mut prices = limits.clone();
    for (below, above) in limits.iter().zip(limits.iter().skip(1)) {
        let first = (below.get() / tick).saturating_add(1).saturating_mul(tick);
        let last = (above.get() - 1) / tick * tick;
        if first > last {
            continue;
        }
        let near = market.last.map_or(first, |last| last.get() / tick * tick);
        let near = [first, near, near.saturating_add(tick)];
        prices.extend(near.map(|price| Price::new(price.clamp(first, last))));
    }
    prices
}
