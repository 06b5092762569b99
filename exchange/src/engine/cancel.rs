//! Offers that end, by their trader's word or silence.

use hashpit_nips::Millis;
use hashpit_nips::eh04::MarketState;

use super::command::{Address, Command, MarketId, OfferId, Seq, Trader};
use super::event::{EndReason, Event};
use super::offers::{Chain, Slot};
use super::refusal::Refusal;
use super::{Deadline, Due, Engine};

impl Engine {
    pub(super) fn cancel(
        &mut self,
        market: MarketId,
        trader: Trader,
        address: Address,
        prev: Option<OfferId>,
    ) -> Result<(), Refusal> {
        let slot = self.own_at(trader, address)?;
        let standing = self.offers[slot].id;
        if self.offers[slot].market != market {
            return Err(Refusal::UnknownOffer);
        }
        if prev.is_some_and(|prev| prev != standing) {
            return Err(Refusal::Superseded { standing });
        }
        self.end(slot, EndReason::Cancelled);
        Ok(())
    }

    /// Looks at each of the trader's offers, which a limit keeps few.
    pub(super) fn cancel_by_id(
        &mut self,
        market: MarketId,
        trader: Trader,
        id: OfferId,
    ) -> Result<(), Refusal> {
        let is_it = |&slot: &Slot| self.offers[slot].id == id && self.offers[slot].market == market;
        let slot = self.slots_of(trader).find(is_it).ok_or(Refusal::UnknownOffer)?;
        self.end(slot, EndReason::Cancelled);
        Ok(())
    }

    pub(super) fn cancel_all(&mut self, market: MarketId, trader: Trader) -> Result<(), Refusal> {
        if self.markets[market.index()].state == MarketState::Closed {
            return Err(Refusal::Closed);
        }
        let here = |slot: &Slot| self.offers[*slot].market == market;
        let slots = self.slots_of(trader).filter(here).collect();
        self.end_all(slots, EndReason::Cancelled);
        Ok(())
    }

    /// Ends a trader's offers, in one market or in all. What of them waits behind a
    /// commit is ended in its turn.
    pub(super) fn cancel_offers(
        &mut self,
        seq: Seq,
        trader: Trader,
        market: Option<MarketId>,
    ) -> Result<(), Refusal> {
        if let Some(market) = market
            && self.markets[self.known(market)?.index()].state == MarketState::Closed
        {
            return Err(Refusal::Closed);
        }
        let here = |slot: &Slot| market.is_none_or(|market| self.offers[*slot].market == market);
        let slots = self.slots_of(trader).filter(here).collect();
        self.end_all(slots, EndReason::Cancelled);
        let waits = |at: &MarketId| market.is_none_or(|market| market == *at);
        let waiting = self.deferring.iter().copied().filter(waits);
        let waiting: Vec<_> = waiting.filter(|at| self.offers_wait_in(trader, *at)).collect();
        for market in waiting {
            let part = Command::CancelAll { trader, market: Some(market) };
            if let Err(refusal) = self.defer(seq, market, part) {
                self.emit(Event::Refused { seq, id: None, refusal });
            }
        }
        Ok(())
    }

    /// Whether a command ends an offer that stands. Such a one waits for no commit:
    /// nobody should be held to a price because of another's secret.
    pub(super) fn ends_what_stands(&self, command: &Command) -> bool {
        match command {
            Command::Cancel { address, .. } => self.offers.at(*address).is_some(),
            Command::CancelById { trader, id } => {
                self.slots_of(*trader).any(|slot| self.offers[slot].id == *id)
            }
            _ => false,
        }
    }

    pub(super) fn set_alive(
        &mut self,
        seq: Seq,
        trader: Trader,
        until: Option<Millis>,
    ) -> Result<(), Refusal> {
        if until.is_some_and(|until| until <= self.now) {
            return Err(Refusal::Past);
        }
        let number = self.traders.intern(trader);
        let due = Due::Alive(number);
        let entry = self.traders.entry_mut(number);
        if let Some((at, seq)) = std::mem::replace(&mut entry.alive, until.map(|at| (at, seq))) {
            self.deadlines.remove(&Deadline { at, seq, due });
        }
        if let Some(at) = until {
            self.deadlines.insert(Deadline { at, seq, due });
        }
        self.traders.forget_idle(number);
        self.emit(Event::Alive { trader, until });
        Ok(())
    }

    /// A trader has been silent for as long as it said.
    pub(super) fn end_silent(&mut self, number: u32) {
        let entry = self.traders.entry_mut(number);
        entry.alive = None;
        let (trader, offers) = (entry.key, entry.offers);
        let slots = self.offers.iter(offers, Chain::Trader).collect();
        self.end_all(slots, EndReason::DeadMan);
        self.traders.forget_idle(number);
        self.emit(Event::Alive { trader, until: None });
    }

    /// Ends offers in order of their priority.
    pub(super) fn end_all(&mut self, mut slots: Vec<Slot>, reason: EndReason) {
        slots.sort_unstable_by_key(|&slot| self.offers[slot].seq);
        for slot in slots {
            self.end(slot, reason);
        }
    }

    /// Ends an offer that stands.
    pub(super) fn end(&mut self, slot: Slot, reason: EndReason) {
        let ended = self.ended_event(slot, reason);
        self.emit(ended);
        self.clear_expiry(slot);
        let offer = &self.offers[slot];
        let (market, side, price, trader) = (offer.market, offer.side, offer.price, offer.trader);
        self.touch(market, side, price);
        self.markets[market.index()].book.remove(&mut self.offers, slot);
        let own = &mut self.traders.entry_mut(trader).offers;
        self.offers.unlink(own, slot, Chain::Trader);
        self.offers.remove(slot);
        self.traders.forget_idle(trader);
    }

    pub(super) fn ended_event(&self, slot: Slot, reason: EndReason) -> Event {
        let offer = &self.offers[slot];
        Event::Ended {
            market: offer.market,
            id: offer.id,
            trader: self.traders.entry(offer.trader).key,
            side: offer.side,
            price: Some(offer.price),
            left: offer.left,
            reason,
        }
    }

    /// The offer of a trader at an address.
    pub(super) fn own_at(&self, trader: Trader, address: Address) -> Result<Slot, Refusal> {
        let slot = self.offers.at(address).ok_or(Refusal::UnknownOffer)?;
        let owner = self.traders.entry(self.offers[slot].trader).key;
        (owner == trader).then_some(slot).ok_or(Refusal::UnknownOffer)
    }

    /// A trader's offers of all markets, in no order that a result may show.
    pub(super) fn slots_of(&self, trader: Trader) -> impl Iterator<Item = Slot> {
        let offers = self.traders.get(trader).map(|entry| entry.offers);
        offers.into_iter().flat_map(|list| self.offers.iter(list, Chain::Trader))
    }
}
