//! The call auction, by trying every price.

use hashpit_exchange::engine::{EndReason, MarketId, Seq};
use hashpit_nips::eh04::Side;

use super::matching::{fill, same_group};
use super::{Model, Open};

impl Model {
    /// Tries every price that is a step of the market's, or some offer's.
    fn clearing_price(&self, market: MarketId) -> Option<u64> {
        let its = &self.markets[market.0 as usize];
        let wanted = |side, price| -> u64 {
            let willing = self.ranked(market, side, Some(price));
            willing.iter().map(|open| u64::from(open.left())).sum()
        };
        let here = || self.open.iter().filter(|o| o.order.market == market);
        let highest = here().map(Open::price).max()?;
        let is_price = |price: &u64| {
            price.is_multiple_of(its.rules.tick.get()) || here().any(|o| o.price() == *price)
        };
        let ranked = (1..=highest).filter(is_price).filter_map(|price| {
            let (demand, supply) = (wanted(Side::Buy, price), wanted(Side::Sell, price));
            let traded = demand.min(supply);
            let far = its.last.map_or(0, |last| price.abs_diff(last.get()));
            let rank = (u64::MAX - traded, demand.abs_diff(supply), far, price);
            (traded > 0).then_some(rank)
        });
        ranked.min().map(|(_, _, _, price)| price)
    }

    pub fn clear(&mut self, market: MarketId) {
        let Some(price) = self.clearing_price(market) else { return };
        let seqs = |side| -> Vec<Seq> {
            self.ranked(market, side, Some(price)).iter().map(|open| open.seq).collect()
        };
        let (buyers, sellers) = (seqs(Side::Buy), seqs(Side::Sell));
        for buyer in buyers {
            let mut looked_at = 0;
            for &seller in &sellers {
                let find = |seq| self.open.iter().find(|o| o.seq == seq).cloned();
                let (Some(buyer), Some(seller)) = (find(buyer), find(seller)) else { continue };
                looked_at += 1;
                if looked_at > self.limits.makers_per_order {
                    break;
                }
                self.pair(&buyer, &seller, price);
            }
        }
    }

    fn pair(&mut self, buyer: &Open, seller: &Open, price: u64) {
        let (b, s) = (&buyer.order, &seller.order);
        if b.trader == s.trader || same_group(b, s) {
            return;
        }
        let Some(lots) = fill((b, buyer.left()), (s, seller.left())) else { return };
        self.fill_open(buyer.seq, lots);
        self.fill_open(seller.seq, lots);
        let (older, newer) = if buyer.seq < seller.seq { (buyer, seller) } else { (seller, buyer) };
        let after = Open { filled: newer.filled + lots, ..newer.clone() };
        self.tell_match(older, &after, price, lots);
        for open in [older, newer] {
            if open.left() == lots {
                self.end(open.seq, EndReason::Filled);
            }
        }
    }
}
