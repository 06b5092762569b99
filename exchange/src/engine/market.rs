//! One market: its rules, state and book, and what it asks of an order.

use std::collections::VecDeque;

use hashpit_nips::eh04::{MarketState, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};

use super::book::Book;
use super::command::{MarketRules, Order};
use super::commits::Queued;
use super::refusal::Refusal;

#[derive(Debug, Clone)]
pub(super) struct Market {
    pub rules: MarketRules,
    pub state: MarketState,
    /// Whether offers have gathered without matching since it was last open.
    pub gathered: bool,
    /// Price of the last match.
    pub last: Option<Price>,
    pub book: Book,
    /// Commits, and what waits behind them. Its first is a commit that has not
    /// been shown; nothing waits in a market that is not open.
    pub queue: VecDeque<Queued>,
}

impl Market {
    pub fn new(rules: MarketRules) -> Self {
        Self {
            rules,
            state: MarketState::Open,
            gathered: false,
            last: None,
            book: Book::default(),
            queue: VecDeque::new(),
        }
    }

    /// Whether an order may come in, whatever else stands here.
    pub fn check(&self, order: &Order, now: Millis) -> Result<(), Refusal> {
        let at_once = takes_at_once(order.tif);
        match self.state {
            MarketState::Halted => return Err(Refusal::Halted),
            MarketState::Closed => return Err(Refusal::Closed),
            MarketState::Auction if at_once => return Err(Refusal::Auction),
            MarketState::Open | MarketState::Auction => {}
        }
        if order.expires.is_some_and(|expires| expires <= now) {
            return Err(Refusal::Expired);
        }
        let MarketRules { tick, min_lots, max_lots, .. } = self.rules;
        if order.lots < min_lots || order.lots > max_lots {
            return Err(Refusal::Lots { min: min_lots, max: max_lots });
        }
        if order.min == Lots::ZERO || order.min > order.max {
            return Err(Refusal::FillSizes);
        }
        if order.pay.is_empty() {
            return Err(Refusal::NoPayment);
        }
        match order.price {
            None if !at_once => Err(Refusal::NoPrice),
            None => Ok(()),
            Some(price) if price == Price::ZERO || price.get() % tick.get() != 0 => {
                Err(Refusal::Price { tick })
            }
            Some(price) => price.of(order.lots).map(drop).map_err(|_| Refusal::Value),
        }
    }
}

/// Whether an offer never stands.
pub(super) fn takes_at_once(tif: TimeInForce) -> bool {
    matches!(tif, TimeInForce::Ioc | TimeInForce::Fok)
}
