//! Offers that come in, and amendments.

use hashpit_nips::eh04::{MarketState, Side};
use hashpit_nips::{Lots, Millis, Msats, Price};

use super::command::{MarketId, OfferId, Order, PayMask, Seq};
use super::event::{EndReason, Event, Leg, Match};
use super::market::takes_at_once;
use super::offers::{Chain, Offer, Slot};
use super::plan::{Plan, Step, Terms};
use super::refusal::Refusal;
use super::{Deadline, Due, Engine};

/// An order that comes in, and what it brings with it.
#[derive(Debug, Clone, Copy)]
struct Incoming<'a> {
    order: &'a Order,
    seq: Seq,
    /// Lots that were filled before it was amended.
    filled: Lots,
}

/// A match, without what follows from price and rules.
pub(super) struct Pair {
    pub maker: Leg,
    pub taker: Leg,
    pub taker_side: Side,
    pub price: Price,
    pub lots: Lots,
    pub pay: PayMask,
}

impl Engine {
    pub(super) fn place(&mut self, seq: Seq, order: &Order) -> Result<(), Refusal> {
        self.markets[self.known(order.market)?.index()].check(order, self.now)?;
        if self.offers.at(order.address).is_some() {
            return Err(Refusal::AddressTaken);
        }
        if !takes_at_once(order.tif) {
            self.check_room(order)?;
        }
        self.enter(Incoming { order, seq, filled: Lots::ZERO }, None)
    }

    pub(super) fn amend(&mut self, seq: Seq, prev: OfferId, order: &Order) -> Result<(), Refusal> {
        self.markets[self.known(order.market)?.index()].check(order, self.now)?;
        let slot = self.own_at(order.trader, order.address)?;
        let old = &self.offers[slot];
        if old.id != prev {
            return Err(Refusal::Superseded { standing: old.id });
        }
        if (old.market, old.side) != (order.market, order.side) {
            return Err(Refusal::OtherOffer);
        }
        let filled = old.filled;
        let left = order.lots.checked_sub(filled).unwrap_or_default();
        let no_looser = Terms::of_order(order, left).is_no_looser_than(&Terms::of(old));
        let keeps_place = order.price == Some(old.price) && no_looser && !takes_at_once(order.tif);
        if order.lots <= filled {
            self.end(slot, EndReason::Amended);
            self.accept(&Incoming { order, seq, filled: order.lots });
            self.ended(order, Lots::ZERO, EndReason::Filled);
        } else if keeps_place {
            self.amend_in_place(slot, order);
        } else {
            self.enter(Incoming { order, seq, filled }, Some(slot))?;
        }
        Ok(())
    }

    /// Whether one more offer may stand.
    fn check_room(&self, order: &Order) -> Result<(), Refusal> {
        let limit = self.limits.open_offers_per_trader;
        if self.open_offers(order.trader) >= limit {
            return Err(Refusal::OffersOfTrader { limit });
        }
        let limit = self.limits.open_offers_per_market;
        if self.markets[order.market.index()].book.len() >= limit {
            return Err(Refusal::OffersOfMarket { limit });
        }
        Ok(())
    }

    /// Matches an order as far as it goes, in the place of an offer of the same
    /// address if there is one; or refuses it and changes nothing.
    fn enter(&mut self, incoming: Incoming<'_>, replaced: Option<Slot>) -> Result<(), Refusal> {
        let order = incoming.order;
        let left = order.lots.checked_sub(incoming.filled).expect("lots are left");
        let matches = self.markets[order.market.index()].state == MarketState::Open;
        let plan = if matches { self.plan(order, left) } else { Plan::to_rest(left) };
        if matches {
            plan.judge(order.tif)?;
        }
        if let Some(slot) = replaced {
            self.end(slot, EndReason::Amended);
        }
        self.accept(&incoming);
        self.carry_out(incoming, &plan);
        Ok(())
    }

    fn carry_out(&mut self, mut incoming: Incoming<'_>, plan: &Plan) {
        for &step in &plan.steps {
            match step {
                Step::Cancel(slot) => self.end(slot, EndReason::SelfTrade),
                Step::Fill(slot, lots) => self.take(&mut incoming, slot, lots),
            }
        }
        let order = incoming.order;
        if plan.left == Lots::ZERO {
            self.ended(order, plan.left, EndReason::Filled);
        } else if plan.stopped {
            self.ended(order, plan.left, EndReason::SelfTrade);
        } else if takes_at_once(order.tif) {
            self.ended(order, plan.left, EndReason::Immediate);
        } else {
            self.rest(&incoming);
        }
    }

    /// Trades an incoming order with one that stands.
    fn take(&mut self, incoming: &mut Incoming<'_>, slot: Slot, lots: Lots) {
        let order = incoming.order;
        incoming.filled = incoming.filled.checked_add(lots).expect("a fill is at most its order");
        let left = order.lots.checked_sub(incoming.filled).expect("a fill is at most its order");
        let (price, pay) = (self.offers[slot].price, self.offers[slot].pay.common(order.pay));
        let taker = Leg { id: order.id, trader: order.trader, seq: incoming.seq, left };
        let maker = self.fill(slot, lots);
        let taker_side = order.side;
        self.matched(order.market, Pair { maker, taker, taker_side, price, lots, pay });
        self.end_if_filled(slot);
    }

    /// Fills an offer that stands.
    pub(super) fn fill(&mut self, slot: Slot, lots: Lots) -> Leg {
        let offer = &mut self.offers[slot];
        offer.fill(lots);
        let (market, side, price) = (offer.market, offer.side, offer.price);
        let trader = self.traders.entry(offer.trader).key;
        let leg = Leg { id: offer.id, trader, seq: offer.seq, left: offer.left };
        self.market_mut(market).book.shrink(side, price, lots);
        self.touch(market, side, price);
        leg
    }

    pub(super) fn end_if_filled(&mut self, slot: Slot) {
        if self.offers[slot].left == Lots::ZERO {
            self.end(slot, EndReason::Filled);
        }
    }

    /// Notes and tells a match.
    pub(super) fn matched(&mut self, market: MarketId, pair: Pair) {
        let Pair { maker, taker, taker_side, price, lots, pay } = pair;
        let state = self.market_mut(market);
        state.last = Some(price);
        // No dearer than an offer of as many lots that was checked on arrival.
        let msats = price.of(lots).expect("a fill costs no more than its order could");
        let maker_fee = fee(msats, state.rules.maker_fee_ppm);
        let taker_fee = fee(msats, state.rules.taker_fee_ppm);
        self.emit(Event::Matched(Match {
            market,
            maker,
            taker,
            taker_side,
            price,
            lots,
            msats,
            maker_fee,
            taker_fee,
            pay,
        }));
    }

    /// Puts what is left of an order into the book.
    fn rest(&mut self, incoming: &Incoming<'_>) {
        let Incoming { order, seq, filled } = *incoming;
        let price = order.price.expect("an offer without a price does not stand");
        let trader = self.traders.intern(order.trader);
        let slot = self.offers.insert(Offer::new(order, price, seq, trader, filled));
        let own = &mut self.traders.entry_mut(trader).offers;
        self.offers.append(own, slot, Chain::Trader);
        self.markets[order.market.index()].book.push(&mut self.offers, slot);
        self.set_expiry(slot, order.expires);
        self.touch(order.market, order.side, price);
    }

    fn amend_in_place(&mut self, slot: Slot, order: &Order) {
        self.clear_expiry(slot);
        let (market, price, before) =
            (order.market, self.offers[slot].price, self.offers[slot].left);
        let old = self.ended_event(slot, EndReason::Amended);
        self.emit(old);
        let offer = &mut self.offers[slot];
        offer.take_terms(order);
        let less = before.checked_sub(offer.left).expect("only fewer lots keep the place");
        let (id, seq, left) = (offer.id, offer.seq, offer.left);
        self.market_mut(market).book.shrink(order.side, price, less);
        self.set_expiry(slot, order.expires);
        self.touch(market, order.side, price);
        self.emit(Event::Accepted { market, id, seq, left });
    }

    fn set_expiry(&mut self, slot: Slot, expires: Option<Millis>) {
        if let Some(at) = expires {
            let seq = self.offers[slot].seq;
            self.deadlines.insert(Deadline { at, seq, due: Due::Offer(slot) });
        }
    }

    pub(super) fn clear_expiry(&mut self, slot: Slot) {
        let offer = &self.offers[slot];
        if let Some(at) = offer.expires() {
            self.deadlines.remove(&Deadline { at, seq: offer.seq, due: Due::Offer(slot) });
        }
    }

    fn accept(&mut self, incoming: &Incoming<'_>) {
        let Incoming { order, seq, filled } = *incoming;
        let left = order.lots.checked_sub(filled).expect("no more is filled than was wanted");
        self.emit(Event::Accepted { market: order.market, id: order.id, seq, left });
    }

    /// Tells that an order ended that did not stand.
    fn ended(&mut self, order: &Order, left: Lots, reason: EndReason) {
        let &Order { market, id, trader, side, price, .. } = order;
        self.emit(Event::Ended { market, id, trader, side, price, left, reason });
    }
}

/// `ppm` millionths of `msats`, rounded up.
fn fee(msats: Msats, ppm: u32) -> Msats {
    let fee = (u128::from(msats.get()) * u128::from(ppm)).div_ceil(1_000_000);
    Msats::new(u64::try_from(fee).expect("a fee is at most what is paid"))
}
