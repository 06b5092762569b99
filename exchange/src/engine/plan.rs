//! What an incoming offer will take. Nothing changes here.

use hashpit_nips::eh04::{SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Price};

use super::Engine;
use super::command::{Order, PayMask};
use super::offers::{Chain, Offer, Slot};
use super::refusal::Refusal;

/// What two offers have to agree on, besides the price.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub left: Lots,
    min: Lots,
    max: Lots,
    pub pay: PayMask,
    group: Option<u64>,
}

impl Terms {
    pub fn of_order(order: &Order, left: Lots) -> Self {
        Self { left, min: order.min, max: order.max, pay: order.pay, group: order.group }
    }

    pub fn of(offer: &Offer) -> Self {
        Self {
            left: offer.left,
            min: offer.min,
            max: offer.max,
            pay: offer.pay,
            group: offer.group(),
        }
    }

    /// How many lots they trade, if payment and sizes allow any.
    pub fn fill_with(&self, other: &Self) -> Option<Lots> {
        let lots = self.left.min(other.left).min(self.max).min(other.max);
        let enough = lots > Lots::ZERO && lots >= self.smallest() && lots >= other.smallest();
        (enough && !self.pay.common(other.pay).is_empty()).then_some(lots)
    }

    pub fn same_group(&self, other: &Self) -> bool {
        self.group.is_some() && self.group == other.group
    }

    /// Whether all that fits the one fits the other: what changed from `old` lets
    /// nothing match that did not match before.
    pub fn is_no_looser_than(&self, old: &Self) -> bool {
        self.left <= old.left
            && self.smallest() >= old.smallest()
            && self.max <= old.max
            && self.pay.common(old.pay) == self.pay
            && self.group == old.group
    }

    fn smallest(&self) -> Lots {
        self.min.min(self.left)
    }
}

/// One thing that an incoming offer does to one that stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Fill(Slot, Lots),
    /// The trader's own.
    Cancel(Slot),
}

/// What an incoming offer does.
#[derive(Debug)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    /// What it still wants afterwards.
    pub left: Lots,
    /// Whether an offer of its own trader ends it.
    pub stopped: bool,
}

impl Plan {
    /// Of an offer that only stands.
    pub fn to_rest(left: Lots) -> Self {
        Self { steps: Vec::new(), left, stopped: false }
    }

    /// Whether an offer may come in and do this.
    pub fn judge(&self, tif: TimeInForce) -> Result<(), Refusal> {
        let meets = self.stopped || !self.steps.is_empty();
        match tif {
            TimeInForce::Fok if self.left > Lots::ZERO => Err(Refusal::NotFillable),
            TimeInForce::Post if meets => Err(Refusal::WouldMatch),
            _ => Ok(()),
        }
    }
}

impl Engine {
    /// Walks the other side for `order`, of which `left` lots are wanted.
    pub(super) fn plan(&self, order: &Order, left: Lots) -> Plan {
        let mut plan = Plan::to_rest(left);
        let mut terms = Terms::of_order(order, left);
        for slot in self.crossed(order).take(self.limits.makers_per_order as usize) {
            let (maker, its) = (&self.offers[slot], Terms::of(&self.offers[slot]));
            let Some(lots) = terms.fill_with(&its) else { continue };
            if self.traders.entry(maker.trader).key == order.trader {
                if order.self_trade == SelfTrade::CancelNew {
                    plan.stopped = true;
                    break;
                }
                plan.steps.push(Step::Cancel(slot));
            } else if !terms.same_group(&its) {
                plan.steps.push(Step::Fill(slot, lots));
                terms.left = terms.left.checked_sub(lots).expect("a fill is at most what is left");
            }
            // One is enough to refuse a post-only offer.
            let refused = order.tif == TimeInForce::Post && !plan.steps.is_empty();
            if refused || terms.left == Lots::ZERO {
                break;
            }
        }
        plan.left = terms.left;
        plan
    }

    /// Offers of the other side whose price an order takes, by priority.
    fn crossed(&self, order: &Order) -> impl Iterator<Item = Slot> {
        let (side, limit) = (order.side, order.price);
        let book = &self.markets[order.market.index()].book;
        book.levels(side.opposite())
            .take_while(move |&(price, _)| limit.is_none_or(|limit| takes(side, limit, price)))
            .flat_map(|(_, level)| self.offers.iter(level.queue, Chain::Level))
    }
}

/// Whether an offer of `side` limited to `limit` takes `price`.
pub(super) fn takes(side: Side, limit: Price, price: Price) -> bool {
    match side {
        Side::Buy => price <= limit,
        Side::Sell => price >= limit,
    }
}
