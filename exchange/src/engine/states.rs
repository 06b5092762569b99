//! Markets, their rules and states.

use hashpit_nips::eh04::{MarketState, OnEpoch, Side};

use super::Engine;
use super::command::{MarketId, MarketRules};
use super::event::{EndReason, Event};
use super::market::Market;
use super::offers::Slot;
use super::refusal::Refusal;

impl Engine {
    pub(super) fn open_market(&mut self, rules: MarketRules) -> Result<(), Refusal> {
        if !rules.are_sound() {
            return Err(Refusal::UnsoundRules);
        }
        let market = MarketId(u32::try_from(self.markets.len()).expect("fewer than 2^32 markets"));
        self.markets.push(Market::new(rules));
        self.emit(Event::MarketOpened(market));
        Ok(())
    }

    pub(super) fn set_rules(
        &mut self,
        market: MarketId,
        rules: MarketRules,
    ) -> Result<(), Refusal> {
        self.known(market)?;
        if !rules.are_sound() {
            return Err(Refusal::UnsoundRules);
        }
        self.market_mut(market).rules = rules;
        Ok(())
    }

    pub(super) fn set_state(
        &mut self,
        market: MarketId,
        state: MarketState,
    ) -> Result<(), Refusal> {
        self.known(market)?;
        self.flush(market);
        match state {
            MarketState::Open => {
                if std::mem::take(&mut self.market_mut(market).gathered) {
                    self.uncross(market);
                }
            }
            MarketState::Auction => self.market_mut(market).gathered = true,
            MarketState::Halted => {}
            MarketState::Closed => {
                self.market_mut(market).gathered = false;
                let slots = self.standing_in(market).collect();
                self.end_all(slots, EndReason::Closed);
            }
        }
        self.market_mut(market).state = state;
        self.emit(Event::State(market, state));
        Ok(())
    }

    pub(super) fn turn_epoch(&mut self, market: MarketId) -> Result<(), Refusal> {
        self.known(market)?;
        self.flush(market);
        let goes = |slot: &Slot| self.offers[*slot].on_epoch == OnEpoch::Cancel;
        let slots = self.standing_in(market).filter(goes).collect();
        self.end_all(slots, EndReason::Epoch);
        Ok(())
    }

    fn standing_in(&self, market: MarketId) -> impl Iterator<Item = Slot> {
        let book = &self.markets[market.index()].book;
        let sides = [Side::Buy, Side::Sell].into_iter();
        sides.flat_map(move |side| book.queue(side, &self.offers))
    }
}
