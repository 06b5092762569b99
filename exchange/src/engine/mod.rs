//! The matching engine: limit order books of many markets, as a pure function
//! from a journal of commands to events.
//!
//! It has no clock, no randomness, no input or output, and never walks a hash
//! map: the same commands with the same times give the same events and the same
//! [`Engine::digest`]. Who writes the journal owns the engine, applies each
//! command once it is durable, and tells the events to the world.
//!
//! | module | what lives in it |
//! |---|---|
//! | `command`, `event`, `refusal` | what goes in, and what comes out |
//! | `market`, `book`, `offers`, `traders` | the state |
//! | `place`, `plan` | offers that come in and are amended; what they will take |
//! | `cancel` | offers that end, and the dead man's switch |
//! | `states`, `auction` | a market's states, and the price that clears it |
//! | `commits` | places taken in advance, and what waits behind them |
//! | `view`, `digest` | the state, to read and to compare |
//!
//! **Priority** is price, then [`Seq`]. The older offer's price is the match's.
//!
//! **What an incoming offer takes** is planned before anything changes. It looks
//! at the other side in order of priority, and at each offer once. It passes
//! over those that take no payment that it takes, those for which the fill (what
//! is left of both, and no more than either's `max`) would be below either's
//! `min`, and those of its own group. An offer of its own trader is cancelled, or ends
//! the walk and the newcomer, as that asks. Then the plan is judged: fill or kill
//! needs all lots, post-only needs that nothing would match. A refused offer has
//! changed nothing.
//!
//! **Time** comes with the commands. Whatever was due by then happens first, in
//! order of (deadline, seq), as of its own deadline; so a [`Command::Time`] more
//! or less changes nothing but when its events are told.
//!
//! **Commits.** A [`Command::Commit`] names an offer's id and takes its place in
//! time. Until it is shown or burnt, all that would touch the market's book
//! waits; then it happens in order. So nobody, the exchange included, can use
//! the knowledge of an offer against it.

mod auction;
mod book;
mod cancel;
mod command;
mod commits;
mod digest;
mod event;
mod market;
mod offers;
mod place;
mod plan;
mod refusal;
mod states;
mod traders;
mod view;

use std::collections::BTreeSet;

pub use command::{
    Address, Command, Limits, MarketId, MarketRules, OfferId, Order, PayMask, Seq, Trader,
};
pub use event::{EndReason, Event, Leg, Match};
use hashpit_nips::eh04::Side;
use hashpit_nips::{Millis, Price};
use market::Market;
use offers::{Offers, Slot};
pub use refusal::Refusal;
use traders::Traders;
pub use view::Standing;

/// All markets, and all that stands in them.
#[derive(Debug, Clone)]
pub struct Engine {
    limits: Limits,
    now: Millis,
    markets: Vec<Market>,
    offers: Offers,
    traders: Traders,
    deadlines: BTreeSet<Deadline>,
    /// Markets in which a commit waits.
    deferring: BTreeSet<MarketId>,
    /// Levels that the command has touched so far.
    touched: Vec<(MarketId, Side, Price)>,
    /// The caller's events, while a command is applied.
    events: Vec<Event>,
}

/// Something that will happen by itself. No two have the same seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Deadline {
    at: Millis,
    seq: Seq,
    due: Due,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// An offer expires.
    Offer(Slot),
    /// A trader's switch ends all of its offers.
    Alive(u32),
    /// A commit is burnt.
    Commit(MarketId),
}

impl Engine {
    /// An engine without markets.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: Millis::ZERO,
            markets: Vec::new(),
            offers: Offers::default(),
            traders: Traders::default(),
            deadlines: BTreeSet::new(),
            deferring: BTreeSet::new(),
            touched: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Carries out what is due by `at`, then the command, and appends what
    /// happened to `events`.
    ///
    /// `seq` grows with every command and `at` never decreases; an earlier one
    /// counts as the latest.
    pub fn apply(&mut self, seq: Seq, at: Millis, command: Command, events: &mut Vec<Event>) {
        std::mem::swap(&mut self.events, events);
        self.pass_time(at);
        self.execute(seq, command);
        self.tell_depth();
        std::mem::swap(&mut self.events, events);
    }

    /// When something will happen by itself.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.first().map(|deadline| deadline.at)
    }

    fn pass_time(&mut self, at: Millis) {
        while let Some(&deadline) = self.deadlines.first()
            && deadline.at <= at
        {
            self.deadlines.remove(&deadline);
            self.now = self.now.max(deadline.at);
            match deadline.due {
                Due::Offer(slot) => self.end(slot, EndReason::Expired),
                Due::Alive(trader) => self.end_silent(trader),
                Due::Commit(market) => self.burn(market, deadline.seq),
            }
        }
        self.now = self.now.max(at);
    }

    fn execute(&mut self, seq: Seq, command: Command) {
        let id = command.offer();
        if let Err(refusal) = self.route(seq, command) {
            self.emit(Event::Refused { seq, id, refusal });
        }
    }

    fn route(&mut self, seq: Seq, command: Command) -> Result<(), Refusal> {
        match command {
            Command::OpenMarket(rules) => self.open_market(rules),
            Command::SetRules(market, rules) => self.set_rules(market, rules),
            Command::SetLimits(limits) => {
                self.limits = limits;
                Ok(())
            }
            Command::SetState(market, state) => self.set_state(market, state),
            Command::TurnEpoch(market) => self.turn_epoch(market),
            Command::Alive { trader, until } => self.set_alive(seq, trader, until),
            Command::Commit { trader, market, id } => self.commit(seq, trader, market, id),
            Command::CancelAll { trader, market } => self.cancel_offers(seq, trader, market),
            Command::Time => Ok(()),
            Command::Place(order) if self.show(&order) => Ok(()),
            command => {
                let market = self.market_of(&command)?;
                if self.deferring.contains(&market) && !self.ends_what_stands(&command) {
                    return self.defer(seq, market, command);
                }
                self.act(seq, market, command)
            }
        }
    }

    /// Carries out a command that touches the book of one market.
    fn act(&mut self, seq: Seq, market: MarketId, command: Command) -> Result<(), Refusal> {
        match command {
            Command::Place(order) => self.place(seq, &order),
            Command::Amend { prev, order } => self.amend(seq, prev, &order),
            Command::Cancel { trader, address, prev } => self.cancel(market, trader, address, prev),
            Command::CancelById { trader, id } => self.cancel_by_id(market, trader, id),
            Command::CancelAll { trader, .. } => self.cancel_all(market, trader),
            _ => unreachable!("only commands for one market's book come here"),
        }
    }

    /// The market whose book a command touches.
    fn market_of(&self, command: &Command) -> Result<MarketId, Refusal> {
        match command {
            Command::Place(order) | Command::Amend { order, .. } => self.known(order.market),
            Command::Cancel { trader, address, .. } => {
                let standing = self.offers.at(*address).map(|slot| self.offers[slot].market);
                let waiting = || self.waits_in(*trader, |offer| offer.0 == *address);
                standing.or_else(waiting).ok_or(Refusal::UnknownOffer)
            }
            Command::CancelById { trader, id } => {
                let standing = self.slots_of(*trader).find(|&slot| self.offers[slot].id == *id);
                let waiting = || self.waits_in(*trader, |offer| offer.1 == *id);
                let standing = standing.map(|slot| self.offers[slot].market);
                standing.or_else(waiting).ok_or(Refusal::UnknownOffer)
            }
            _ => unreachable!("only commands for one market's book come here"),
        }
    }

    fn known(&self, market: MarketId) -> Result<MarketId, Refusal> {
        let known = market.index() < self.markets.len();
        known.then_some(market).ok_or(Refusal::UnknownMarket)
    }

    fn market_mut(&mut self, market: MarketId) -> &mut Market {
        &mut self.markets[market.index()]
    }

    fn emit(&mut self, event: Event) {
        self.events.push(event);
    }

    fn touch(&mut self, market: MarketId, side: Side, price: Price) {
        let level = (market, side, price);
        if self.touched.last() != Some(&level) {
            self.touched.push(level);
        }
    }

    fn tell_depth(&mut self) {
        self.touched.sort_unstable();
        self.touched.dedup();
        for (market, side, price) in self.touched.drain(..) {
            let level = self.markets[market.index()].book.level(side, price);
            let (lots, offers) = level.map_or((0, 0), |level| (level.lots, level.queue.len()));
            self.events.push(Event::Depth { market, side, price, lots, offers });
        }
    }
}
