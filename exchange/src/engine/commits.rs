//! Places that are taken in advance, and what waits behind them.

use hashpit_nips::Millis;
use hashpit_nips::eh04::MarketState;

use super::command::{Address, Command, MarketId, OfferId, Order, Seq, Trader};
use super::event::Event;
use super::refusal::Refusal;
use super::traders::Waiting;
use super::{Deadline, Due, Engine};

/// What waits in a market, in order of seq.
#[derive(Debug, Clone)]
pub(super) enum Queued {
    Commit {
        seq: Seq,
        trader: Trader,
        id: OfferId,
        until: Millis,
        /// The offer, if it was shown while an earlier commit still waits.
        shown: Option<Order>,
    },
    Command {
        seq: Seq,
        command: Command,
    },
}

impl Queued {
    fn seq(&self) -> Seq {
        match self {
            Self::Commit { seq, .. } | Self::Command { seq, .. } => *seq,
        }
    }
}

impl Engine {
    pub(super) fn commit(
        &mut self,
        seq: Seq,
        trader: Trader,
        market: MarketId,
        id: OfferId,
    ) -> Result<(), Refusal> {
        match self.markets[self.known(market)?.index()].state {
            MarketState::Open => {}
            MarketState::Halted => return Err(Refusal::Halted),
            MarketState::Auction => return Err(Refusal::Auction),
            MarketState::Closed => return Err(Refusal::Closed),
        }
        if self.committed(trader, market, id).is_some() {
            return Err(Refusal::Committed);
        }
        let limit = self.limits.commits_per_trader;
        if self.waiting(trader, true) >= limit as usize {
            return Err(Refusal::CommitsOfTrader { limit });
        }
        self.check_queue(market)?;
        let until = Millis::new(self.now.get().saturating_add(self.limits.reveal_ms));
        self.deadlines.insert(Deadline { at: until, seq, due: Due::Commit(market) });
        self.enqueue(market, trader, None, Queued::Commit { seq, trader, id, until, shown: None });
        self.emit(Event::Committed { market, trader, id, until });
        Ok(())
    }

    /// Takes an order for the offer that its trader has committed to, if it is.
    pub(super) fn show(&mut self, order: &Order) -> bool {
        let &Order { id, trader, market, address, .. } = order;
        let Some(index) = self.committed(trader, market, id) else { return false };
        let Queued::Commit { seq, until, shown, .. } = &mut self.market_mut(market).queue[index]
        else {
            return false;
        };
        let deadline = Deadline { at: *until, seq: *seq, due: Due::Commit(market) };
        *shown = Some(*order);
        self.deadlines.remove(&deadline);
        let number = self.traders.find(trader).expect("who has a commit is known");
        let waiting = &mut self.traders.entry_mut(number).waiting;
        let own = waiting.iter_mut().find(|own| own.seq == deadline.seq);
        own.expect("a trader's commits are listed").offer = Some((address, id));
        if index > 0 {
            self.emit(Event::Deferred { seq: deadline.seq, market, id: Some(id) });
        }
        self.proceed(market);
        true
    }

    /// Lets a command wait behind a commit.
    pub(super) fn defer(
        &mut self,
        seq: Seq,
        market: MarketId,
        command: Command,
    ) -> Result<(), Refusal> {
        let trader = command.trader().expect("a trader's commands are deferred, and no others");
        let limit = self.limits.deferred_per_trader;
        if self.waiting(trader, false) >= limit as usize {
            return Err(Refusal::DeferredOfTrader { limit });
        }
        self.check_queue(market)?;
        let offer = match &command {
            Command::Place(order) | Command::Amend { order, .. } => Some((order.address, order.id)),
            _ => None,
        };
        let id = command.offer();
        self.enqueue(market, trader, offer, Queued::Command { seq, command });
        self.emit(Event::Deferred { seq, market, id });
        Ok(())
    }

    /// A commit's time has run out.
    pub(super) fn burn(&mut self, market: MarketId, seq: Seq) {
        let queue = &mut self.market_mut(market).queue;
        let index = queue.iter().position(|queued| queued.seq() == seq);
        let burnt = index.and_then(|index| queue.remove(index));
        let Some(Queued::Commit { trader, id, .. }) = burnt else {
            unreachable!("a commit waits until its deadline")
        };
        let number = self.traders.intern(trader);
        self.traders.entry_mut(number).burnt += 1;
        self.forget_waiting(trader, market, seq);
        self.emit(Event::Burnt { market, trader, id, counted: true });
        self.proceed(market);
    }

    /// Drops the commits of a market and carries out what waited behind them.
    pub(super) fn flush(&mut self, market: MarketId) {
        while !self.market_mut(market).queue.is_empty() {
            self.drop_first(market);
            self.proceed(market);
        }
    }

    fn drop_first(&mut self, market: MarketId) {
        let Some(Queued::Commit { seq, trader, id, until, .. }) =
            self.market_mut(market).queue.pop_front()
        else {
            unreachable!("a commit stands before what waits")
        };
        self.deadlines.remove(&Deadline { at: until, seq, due: Due::Commit(market) });
        self.forget_waiting(trader, market, seq);
        self.emit(Event::Burnt { market, trader, id, counted: false });
    }

    /// Carries out what waits, up to the next commit that has not been shown.
    fn proceed(&mut self, market: MarketId) {
        while let Some(queued) = self.pop_ready(market) {
            let (seq, command) = match queued {
                Queued::Commit { seq, shown: Some(order), .. } => (seq, Command::Place(order)),
                Queued::Command { seq, command } => (seq, command),
                Queued::Commit { shown: None, .. } => unreachable!("it is not ready"),
            };
            let (id, trader) = (command.offer(), command.trader());
            self.forget_waiting(trader.expect("only traders wait"), market, seq);
            if let Err(refusal) = self.act(seq, market, command) {
                self.emit(Event::Refused { seq, id, refusal });
            }
        }
        if self.market_mut(market).queue.is_empty() {
            self.deferring.remove(&market);
        }
    }

    fn pop_ready(&mut self, market: MarketId) -> Option<Queued> {
        let waits = |first: &mut Queued| !matches!(first, Queued::Commit { shown: None, .. });
        self.market_mut(market).queue.pop_front_if(waits)
    }

    /// Place in a market's queue of a commit that has not been shown.
    fn committed(&self, trader: Trader, market: MarketId, id: OfferId) -> Option<usize> {
        if !self.deferring.contains(&market) || self.waiting(trader, true) == 0 {
            return None;
        }
        let queue = &self.markets[market.index()].queue;
        queue.iter().position(|queued| match queued {
            Queued::Commit { trader: whose, id: its, shown: None, .. } => {
                (*whose, *its) == (trader, id)
            }
            _ => false,
        })
    }

    fn check_queue(&self, market: MarketId) -> Result<(), Refusal> {
        let waiting = self.markets[market.index()].queue.len();
        let full = waiting >= self.limits.deferred_per_market as usize;
        if full { Err(Refusal::DeferredOfMarket) } else { Ok(()) }
    }

    fn enqueue(
        &mut self,
        market: MarketId,
        trader: Trader,
        offer: Option<(Address, OfferId)>,
        queued: Queued,
    ) {
        let commit = matches!(queued, Queued::Commit { .. });
        let waiting = Waiting { seq: queued.seq(), market, commit, offer };
        let number = self.traders.intern(trader);
        self.traders.entry_mut(number).waiting.push(waiting);
        self.market_mut(market).queue.push_back(queued);
        self.deferring.insert(market);
    }

    /// One command can wait in several markets, once in each.
    fn forget_waiting(&mut self, trader: Trader, market: MarketId, seq: Seq) {
        let number = self.traders.find(trader).expect("who waits is known");
        let waiting = &mut self.traders.entry_mut(number).waiting;
        if let Some(at) = waiting.iter().position(|own| (own.seq, own.market) == (seq, market)) {
            waiting.remove(at);
        }
        self.traders.forget_idle(number);
    }

    /// How many commits, or other commands, of a trader wait.
    fn waiting(&self, trader: Trader, commits: bool) -> usize {
        let waiting = self.traders.get(trader).map_or(&[][..], |entry| &entry.waiting);
        waiting.iter().filter(|own| own.commit == commits).count()
    }

    /// Whether offers or amendments of a trader wait in a market.
    pub(super) fn offers_wait_in(&self, trader: Trader, market: MarketId) -> bool {
        let waiting = self.traders.get(trader).map_or(&[][..], |entry| &entry.waiting);
        waiting.iter().any(|own| own.market == market && own.offer.is_some())
    }

    /// The market where a trader's command waits that will place or amend such
    /// an offer.
    pub(super) fn waits_in(
        &self,
        trader: Trader,
        is_it: impl Fn(&(Address, OfferId)) -> bool,
    ) -> Option<MarketId> {
        let waiting = &self.traders.get(trader)?.waiting;
        waiting.iter().find(|own| own.offer.as_ref().is_some_and(&is_it)).map(|own| own.market)
    }
}
