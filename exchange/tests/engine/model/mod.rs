//! A deliberately naive engine, to compare the real one with: one list of
//! offers, searched and sorted anew for every step. It knows the engine's
//! commands and events, and nothing of how it works.

mod auction;
mod matching;

use std::collections::BTreeMap;

use hashpit_exchange::engine::{
    Address, Command, EndReason, Event, Limits, MarketId, MarketRules, OfferId, Order, Refusal,
    Seq, Trader,
};
use hashpit_nips::eh04::{MarketState, OnEpoch, Side};
use hashpit_nips::{Lots, Millis, Price};

/// An offer that stands.
#[derive(Debug, Clone)]
pub struct Open {
    /// Its last amendment.
    pub order: Order,
    pub seq: Seq,
    pub filled: u32,
}

impl Open {
    pub fn left(&self) -> u32 {
        self.order.lots.get() - self.filled
    }

    pub fn price(&self) -> u64 {
        self.order.price.unwrap().get()
    }
}

#[derive(Debug, Clone)]
pub struct Market {
    pub rules: MarketRules,
    pub state: MarketState,
    pub gathered: bool,
    pub last: Option<Price>,
    pub queue: Vec<Waiting>,
}

#[derive(Debug, Clone)]
pub enum Waiting {
    Commit { seq: Seq, trader: Trader, id: OfferId, until: u64, shown: Option<Order> },
    Command { seq: Seq, command: Command },
}

pub struct Model {
    pub limits: Limits,
    pub now: u64,
    pub markets: Vec<Market>,
    pub open: Vec<Open>,
    pub alive: BTreeMap<Trader, (u64, Seq)>,
    pub burnt: BTreeMap<Trader, u32>,
    pub events: Vec<Event>,
}

type Verdict = Result<(), Refusal>;

impl Model {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: 0,
            markets: Vec::new(),
            open: Vec::new(),
            alive: BTreeMap::new(),
            burnt: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    pub fn apply(&mut self, seq: Seq, at: Millis, command: Command) -> Vec<Event> {
        while let Some((when, seq)) = self.next_deadline()
            && when <= at.get()
        {
            self.now = self.now.max(when);
            self.fall_due(when, seq);
        }
        self.now = at.get();
        let id = command.offer();
        let verdict = self.carry_out(seq, command);
        self.note(seq, id, verdict);
        std::mem::take(&mut self.events)
    }

    fn note(&mut self, seq: Seq, id: Option<OfferId>, verdict: Verdict) {
        if let Err(refusal) = verdict {
            self.events.push(Event::Refused { seq, id, refusal });
        }
    }

    /// The earliest deadline, and the seq that it belongs to.
    pub fn next_deadline(&self) -> Option<(u64, Seq)> {
        let mut all: Vec<(u64, Seq)> = self.alive.values().copied().collect();
        for open in &self.open {
            all.extend(open.order.expires.map(|at| (at.get(), open.seq)));
        }
        for market in &self.markets {
            for waiting in &market.queue {
                if let Waiting::Commit { seq, until, shown: None, .. } = waiting {
                    all.push((*until, *seq));
                }
            }
        }
        all.into_iter().min()
    }

    fn fall_due(&mut self, when: u64, due: Seq) {
        if let Some((&trader, _)) = self.alive.iter().find(|(_, of)| **of == (when, due)) {
            self.alive.remove(&trader);
            self.end_where(EndReason::DeadMan, |open| open.order.trader == trader);
            self.events.push(Event::Alive { trader, until: None });
            return;
        }
        for number in 0..self.markets.len() {
            let is_it =
                |w: &Waiting| matches!(w, Waiting::Commit { seq, shown: None, .. } if *seq == due);
            let queue = &mut self.markets[number].queue;
            let Some(index) = queue.iter().position(is_it) else { continue };
            let Waiting::Commit { trader, id, .. } = queue.remove(index) else { panic!() };
            *self.burnt.entry(trader).or_default() += 1;
            let market = MarketId(number as u32);
            self.events.push(Event::Burnt { market, trader, id, counted: true });
            return self.drain(number);
        }
        self.end_where(EndReason::Expired, |open| open.seq == due);
    }

    /// Ends all offers that fit, oldest first.
    pub fn end_where(&mut self, reason: EndReason, fits: impl Fn(&Open) -> bool) {
        let mut seqs: Vec<_> = self.open.iter().filter(|o| fits(o)).map(|o| o.seq).collect();
        seqs.sort();
        for seq in seqs {
            self.end(seq, reason);
        }
    }

    pub fn end(&mut self, seq: Seq, reason: EndReason) {
        let index = self.open.iter().position(|open| open.seq == seq).unwrap();
        let open = self.open.remove(index);
        self.tell_end(&open.order, open.left(), reason);
    }

    pub fn tell_end(&mut self, order: &Order, left: u32, reason: EndReason) {
        self.events.push(Event::Ended {
            market: order.market,
            id: order.id,
            trader: order.trader,
            side: order.side,
            price: order.price,
            left: Lots::new(left),
            reason,
        });
    }

    fn carry_out(&mut self, seq: Seq, command: Command) -> Verdict {
        match command {
            Command::Time => {}
            Command::SetLimits(limits) => self.limits = limits,
            Command::OpenMarket(rules) => {
                sound(&rules)?;
                let (state, queue) = (MarketState::Open, Vec::new());
                let number = self.markets.len() as u32;
                self.markets.push(Market { rules, state, gathered: false, last: None, queue });
                self.events.push(Event::MarketOpened(MarketId(number)));
            }
            Command::SetRules(market, rules) => {
                let number = self.number(market)?;
                sound(&rules)?;
                self.markets[number].rules = rules;
            }
            Command::SetState(market, state) => self.set_state(market, state)?,
            Command::TurnEpoch(market) => {
                let number = self.number(market)?;
                self.flush(number);
                self.end_where(EndReason::Epoch, |open| {
                    open.order.market == market && open.order.on_epoch == OnEpoch::Cancel
                });
            }
            Command::Alive { trader, until } => {
                if until.is_some_and(|until| until.get() <= self.now) {
                    return Err(Refusal::Past);
                }
                self.alive.remove(&trader);
                self.alive.extend(until.map(|until| (trader, (until.get(), seq))));
                self.events.push(Event::Alive { trader, until });
            }
            Command::Commit { trader, market, id } => self.commit(seq, trader, market, id)?,
            Command::CancelAll { trader, market } => self.cancel_offers(seq, trader, market)?,
            command => return self.defer_or_act(seq, command),
        }
        Ok(())
    }

    pub fn number(&self, market: MarketId) -> Result<usize, Refusal> {
        let number = market.0 as usize;
        if number < self.markets.len() { Ok(number) } else { Err(Refusal::UnknownMarket) }
    }

    fn set_state(&mut self, market: MarketId, state: MarketState) -> Verdict {
        let number = self.number(market)?;
        self.flush(number);
        match state {
            MarketState::Auction => self.markets[number].gathered = true,
            MarketState::Closed => {
                self.markets[number].gathered = false;
                self.end_where(EndReason::Closed, |open| open.order.market == market);
            }
            MarketState::Open => {
                if self.markets[number].gathered {
                    self.clear(market);
                }
                self.markets[number].gathered = false;
            }
            MarketState::Halted => {}
        }
        self.markets[number].state = state;
        self.events.push(Event::State(market, state));
        Ok(())
    }

    fn cancel_offers(&mut self, seq: Seq, trader: Trader, market: Option<MarketId>) -> Verdict {
        if let Some(market) = market
            && self.markets[self.number(market)?].state == MarketState::Closed
        {
            return Err(Refusal::Closed);
        }
        let here = |at: MarketId| market.is_none_or(|market| market == at);
        self.end_where(EndReason::Cancelled, |open| {
            open.order.trader == trader && here(open.order.market)
        });
        let own = |order: &Order| order.trader == trader && here(order.market);
        let mut waiting: Vec<_> =
            self.waiting_orders().filter(|(_, o)| own(o)).map(|(_, o)| o.market).collect();
        waiting.sort();
        waiting.dedup();
        for market in waiting {
            let part = Command::CancelAll { trader, market: Some(market) };
            let verdict = self.defer(seq, market.0 as usize, part);
            self.note(seq, None, verdict);
        }
        Ok(())
    }

    fn defer_or_act(&mut self, seq: Seq, command: Command) -> Verdict {
        if let Command::Place(order) = &command
            && self.show(order)
        {
            return Ok(());
        }
        let number = self.where_to(&command)?;
        let ends = match &command {
            Command::Cancel { address, .. } => {
                self.open.iter().any(|open| open.order.address == *address)
            }
            Command::CancelById { trader, id } => {
                self.open.iter().any(|open| (open.order.trader, open.order.id) == (*trader, *id))
            }
            _ => false,
        };
        if self.markets[number].queue.is_empty() || ends {
            self.act(number, seq, command)
        } else {
            self.defer(seq, number, command)
        }
    }

    fn where_to(&self, command: &Command) -> Result<usize, Refusal> {
        let named = |trader: Trader, at: Option<Address>, id: Option<OfferId>| {
            let fits = |order: &Order| {
                at.is_none_or(|at| order.address == at)
                    && id.is_none_or(|id| order.id == id)
                    && (at.is_some() || order.trader == trader)
            };
            let standing = self.open.iter().find(|open| fits(&open.order)).map(|o| o.order.market);
            let mut waiting: Vec<_> = self.waiting_orders().collect();
            // In the order in which the orders came or their commits did.
            waiting.sort_by_key(|(seq, _)| *seq);
            let waiting = waiting.iter().find(|(_, o)| o.trader == trader && fits(o));
            standing.or(waiting.map(|(_, o)| o.market)).ok_or(Refusal::UnknownOffer)
        };
        let market = match command {
            Command::Place(order) | Command::Amend { order, .. } => order.market,
            Command::Cancel { trader, address, .. } => named(*trader, Some(*address), None)?,
            Command::CancelById { trader, id } => named(*trader, None, Some(*id))?,
            other => panic!("{other:?}"),
        };
        self.number(market)
    }

    /// Orders that will be placed, or amend, when what is before them is done.
    fn waiting_orders(&self) -> impl Iterator<Item = (Seq, &Order)> {
        self.markets.iter().flat_map(|market| &market.queue).filter_map(|waiting| match waiting {
            Waiting::Commit { seq, shown, .. } => shown.as_ref().map(|order| (*seq, order)),
            Waiting::Command {
                seq,
                command: Command::Place(order) | Command::Amend { order, .. },
            } => Some((*seq, order)),
            Waiting::Command { .. } => None,
        })
    }

    /// Does what a command asks of one market's book.
    fn act(&mut self, number: usize, seq: Seq, command: Command) -> Verdict {
        let market = MarketId(number as u32);
        match command {
            Command::Place(order) => self.place(seq, order),
            Command::Amend { prev, order } => self.amend(seq, prev, order),
            Command::Cancel { trader, address, prev } => {
                let is_it = |o: &&Open| {
                    let order = &o.order;
                    (order.address, order.trader, order.market) == (address, trader, market)
                };
                let open = self.open.iter().find(is_it).ok_or(Refusal::UnknownOffer)?;
                let (seq, standing) = (open.seq, open.order.id);
                if prev.is_some_and(|prev| prev != standing) {
                    return Err(Refusal::Superseded { standing });
                }
                self.end(seq, EndReason::Cancelled);
                Ok(())
            }
            Command::CancelById { trader, id } => {
                let is_it = |o: &&Open| {
                    (o.order.id, o.order.trader, o.order.market) == (id, trader, market)
                };
                let open = self.open.iter().find(is_it).ok_or(Refusal::UnknownOffer)?;
                self.end(open.seq, EndReason::Cancelled);
                Ok(())
            }
            Command::CancelAll { trader, .. } => {
                if self.markets[number].state == MarketState::Closed {
                    return Err(Refusal::Closed);
                }
                self.end_where(EndReason::Cancelled, |open| {
                    (open.order.trader, open.order.market) == (trader, market)
                });
                Ok(())
            }
            other => panic!("{other:?}"),
        }
    }

    // Commits.

    fn commit(&mut self, seq: Seq, trader: Trader, market: MarketId, id: OfferId) -> Verdict {
        let number = self.number(market)?;
        match self.markets[number].state {
            MarketState::Open => {}
            MarketState::Halted => return Err(Refusal::Halted),
            MarketState::Auction => return Err(Refusal::Auction),
            MarketState::Closed => return Err(Refusal::Closed),
        }
        let all = || self.markets.iter().flat_map(|market| &market.queue);
        let own = |w: &&Waiting| matches!(w, Waiting::Commit { trader: t, .. } if *t == trader);
        let same = |w: &Waiting| {
            matches!(w, Waiting::Commit { trader: t, id: i, shown: None, .. }
                if (*t, *i) == (trader, id))
        };
        if self.markets[number].queue.iter().any(same) {
            return Err(Refusal::Committed);
        }
        let limit = self.limits.commits_per_trader;
        if all().filter(own).count() >= limit as usize {
            return Err(Refusal::CommitsOfTrader { limit });
        }
        self.check_queue(number)?;
        let until = self.now + self.limits.reveal_ms;
        let commit = Waiting::Commit { seq, trader, id, until, shown: None };
        self.markets[number].queue.push(commit);
        self.events.push(Event::Committed { market, trader, id, until: Millis::new(until) });
        Ok(())
    }

    fn show(&mut self, order: &Order) -> bool {
        let Ok(number) = self.number(order.market) else { return false };
        for (index, waiting) in self.markets[number].queue.iter_mut().enumerate() {
            let Waiting::Commit { seq, trader, id, shown, .. } = waiting else { continue };
            if (*trader, *id) != (order.trader, order.id) || shown.is_some() {
                continue;
            }
            *shown = Some(*order);
            if index > 0 {
                let (seq, market) = (*seq, order.market);
                self.events.push(Event::Deferred { seq, market, id: Some(order.id) });
            }
            self.drain(number);
            return true;
        }
        false
    }

    fn defer(&mut self, seq: Seq, number: usize, command: Command) -> Verdict {
        let limit = self.limits.deferred_per_trader;
        let whose = command.trader();
        let all = self.markets.iter().flat_map(|market| &market.queue);
        let own = |w: &&Waiting| matches!(w, Waiting::Command { command, .. } if command.trader() == whose);
        if all.filter(own).count() >= limit as usize {
            return Err(Refusal::DeferredOfTrader { limit });
        }
        self.check_queue(number)?;
        let (market, id) = (MarketId(number as u32), command.offer());
        self.markets[number].queue.push(Waiting::Command { seq, command });
        self.events.push(Event::Deferred { seq, market, id });
        Ok(())
    }

    fn check_queue(&self, number: usize) -> Verdict {
        let full = self.markets[number].queue.len() >= self.limits.deferred_per_market as usize;
        if full { Err(Refusal::DeferredOfMarket) } else { Ok(()) }
    }

    /// Does what waits, up to a commit that has not been shown.
    fn drain(&mut self, number: usize) {
        loop {
            let (seq, command) = match self.markets[number].queue.first() {
                None | Some(Waiting::Commit { shown: None, .. }) => return,
                Some(Waiting::Commit { seq, shown: Some(order), .. }) => {
                    (*seq, Command::Place(*order))
                }
                Some(Waiting::Command { seq, command }) => (*seq, command.clone()),
            };
            self.markets[number].queue.remove(0);
            let id = command.offer();
            let verdict = self.act(number, seq, command);
            self.note(seq, id, verdict);
        }
    }

    fn flush(&mut self, number: usize) {
        while let Some(Waiting::Commit { trader, id, .. }) =
            self.markets[number].queue.first().cloned()
        {
            self.markets[number].queue.remove(0);
            let market = MarketId(number as u32);
            self.events.push(Event::Burnt { market, trader, id, counted: false });
            self.drain(number);
        }
    }

    /// Prices, lots and offers of a side, best first.
    pub fn levels(&self, market: MarketId, side: Side) -> Vec<(Price, u64, u32)> {
        let mut levels: BTreeMap<Price, (u64, u32)> = BTreeMap::new();
        for open in &self.open {
            if (open.order.market, open.order.side) == (market, side) {
                let level = levels.entry(open.order.price.unwrap()).or_default();
                level.0 += u64::from(open.left());
                level.1 += 1;
            }
        }
        let mut levels: Vec<_> = levels.into_iter().map(|(p, (lots, n))| (p, lots, n)).collect();
        if side == Side::Buy {
            levels.reverse();
        }
        levels
    }
}

fn sound(rules: &MarketRules) -> Verdict {
    let lots = rules.min_lots.get() >= 1 && rules.min_lots <= rules.max_lots;
    let fees = rules.maker_fee_ppm <= 1_000_000 && rules.taker_fee_ppm <= 1_000_000;
    if rules.tick.get() >= 1 && lots && fees { Ok(()) } else { Err(Refusal::UnsoundRules) }
}
