//! The two sides of a market: levels by price, and in each a queue by priority.

use std::collections::BTreeMap;

use hashpit_nips::eh04::Side;
use hashpit_nips::{Lots, Price};

use super::offers::{Chain, List, Offers, Slot};

/// All offers of one side at one price.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    /// Sum of what is left of them.
    pub lots: u64,
    /// They, oldest first.
    pub queue: List,
}

/// Levels of both sides. The offers themselves live in the slab.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    buy: BTreeMap<Price, Level>,
    sell: BTreeMap<Price, Level>,
    offers: u32,
}

impl Book {
    /// How many offers stand.
    pub fn len(&self) -> u32 {
        self.offers
    }

    pub fn level(&self, side: Side, price: Price) -> Option<&Level> {
        self.side(side).get(&price)
    }

    /// Levels of a side, best first.
    pub fn levels(&self, side: Side) -> impl Iterator<Item = (Price, &Level)> {
        let levels = self.side(side).iter().map(|(&price, level)| (price, level));
        let (up, down) = match side {
            Side::Buy => (None, Some(levels.rev())),
            Side::Sell => (Some(levels), None),
        };
        up.into_iter().flatten().chain(down.into_iter().flatten())
    }

    /// Offers of a side, in order of priority.
    pub fn queue<'a>(&'a self, side: Side, offers: &'a Offers) -> impl Iterator<Item = Slot> + 'a {
        self.levels(side).flat_map(|(_, level)| offers.iter(level.queue, Chain::Level))
    }

    /// Puts an offer behind all others of its price.
    pub fn push(&mut self, offers: &mut Offers, slot: Slot) {
        let offer = &offers[slot];
        let (side, price, left, seq) = (offer.side, offer.price, offer.left, offer.seq);
        let level =
            self.side_mut(side).entry(price).or_insert(Level { lots: 0, queue: List::EMPTY });
        debug_assert!(
            level.queue.last().is_none_or(|last| offers[last].seq < seq),
            "a queue is in order of priority"
        );
        offers.append(&mut level.queue, slot, Chain::Level);
        level.lots += u64::from(left.get());
        self.offers += 1;
    }

    /// Takes an offer out, and its level if it was the last there.
    pub fn remove(&mut self, offers: &mut Offers, slot: Slot) {
        let (side, price, left) = (offers[slot].side, offers[slot].price, offers[slot].left);
        let levels = self.side_mut(side);
        let level = levels.get_mut(&price).expect("an offer stands on its level");
        offers.unlink(&mut level.queue, slot, Chain::Level);
        level.lots = less(level.lots, left);
        if level.queue.is_empty() {
            debug_assert_eq!(level.lots, 0, "a level's lots are its offers'");
            levels.remove(&price);
        }
        self.offers -= 1;
    }

    /// Counts lots that an offer of this level no longer wants.
    pub fn shrink(&mut self, side: Side, price: Price, lots: Lots) {
        let level = self.side_mut(side).get_mut(&price).expect("an offer stands on its level");
        level.lots = less(level.lots, lots);
    }

    fn side(&self, side: Side) -> &BTreeMap<Price, Level> {
        match side {
            Side::Buy => &self.buy,
            Side::Sell => &self.sell,
        }
    }

    fn side_mut(&mut self, side: Side) -> &mut BTreeMap<Price, Level> {
        match side {
            Side::Buy => &mut self.buy,
            Side::Sell => &mut self.sell,
        }
    }
}

fn less(total: u64, lots: Lots) -> u64 {
    total.checked_sub(u64::from(lots.get())).expect("a level's lots are its offers'")
}
