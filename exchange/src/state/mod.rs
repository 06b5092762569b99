//! The exchange as a pure function of its journal: who may speak, which markets
//! there are, what matches, what became of it. The desk uses it to say what is
//! true, and an auditor to check that the desk did.
//!
//! No clock: time is what the entries say.

mod admission;
mod events;
mod markets;
mod trader;
mod trades;

use std::collections::BTreeSet;

use hashpit_nips::Millis;
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh04::{MarketState, Rules, Side};
use hashpit_nips::eh05::{Book, Effect, Level, Outcome, Settlement, Subject};
use nostr::{Event, EventBuilder, EventId, PublicKey, UnsignedEvent};
use sha2::{Digest, Sha256};

use crate::engine::{self, Command, Engine, Limits};
use admission::Gate;
pub(crate) use markets::Seats;
use trades::{Print, Trades};

/// The state of an exchange after some entries.
#[derive(Debug)]
pub struct State {
    /// The exchange's key.
    exchange: PublicKey,
    rules: Rules,
    engine: Engine,
    seats: Seats,
    gate: Gate,
    trades: Trades,
    /// Sequence of the next entry.
    next: u64,
    /// Time of the newest entry.
    at: Millis,
    /// The event that is being carried out.
    subject: Option<EventId>,
    /// Offers that wait behind a commit.
    deferred: BTreeSet<EventId>,
    /// Whether the command that runs has changed anything.
    done: bool,
    /// What the engine says, before it is sorted.
    said: Vec<engine::Event>,
}

/// What follows from a subject.
#[derive(Debug)]
pub enum Verdict {
    /// It gets no entry, and nothing has changed.
    Ignored(&'static str),
    /// It is the next entry.
    Entry(Box<Consequences>),
}

/// What an entry brings about.
#[derive(Debug, Default)]
pub struct Consequences {
    /// What became of the subject.
    pub outcome: Option<Outcome>,
    /// What else happened.
    pub effects: Vec<Effect>,
    /// The events that tell matches and settlements, unsigned, in the order in
    /// which a record holds them.
    pub events: Vec<UnsignedEvent>,
    /// How many of them there are.
    pub tally: Tally,
    /// Markets whose state or newest completed match is another now.
    pub markets: Vec<engine::MarketId>,
    /// Levels that are not as they were: market, side, price, lots, offers.
    pub depth: Vec<engine::Event>,
    /// The key whose further events of this minute get no entry.
    pub too_fast: Option<PublicKey>,
}

/// Matches and settlements, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Offers that met.
    pub matches: u64,
    /// Lots of those.
    pub lots: u64,
    /// Matches that were completed.
    pub completed: u64,
    /// Matches that failed.
    pub failed: u64,
}

impl Consequences {
    /// The ids of the events that tell matches and settlements.
    pub fn ids(&self) -> impl Iterator<Item = EventId> {
        self.events.iter().map(|event| event.id.expect("it was reckoned when it was made"))
    }
}

impl State {
    /// An exchange before its first entry.
    pub fn new(exchange: PublicKey) -> Self {
        Self {
            exchange,
            rules: Rules::default(),
            engine: Engine::new(limits(&Rules::default())),
            seats: Seats::default(),
            gate: Gate::default(),
            trades: Trades::default(),
            next: 0,
            at: Millis::ZERO,
            subject: None,
            deferred: BTreeSet::new(),
            done: false,
            said: Vec::new(),
        }
    }

    /// Sequence of the next entry.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Time of the newest entry.
    pub fn at(&self) -> Millis {
        self.at
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn seats(&self) -> &Seats {
        &self.seats
    }

    /// Whether an event has its entry.
    pub fn is_answered(&self, id: &EventId) -> bool {
        self.gate.is_answered(id)
    }

    /// Whether this exchange owes an entry to an event that came in at `from` or
    /// later: it is a trader's, for this exchange, of a key that was known before
    /// that, or with as much proof of work as was ever asked for.
    pub fn owes(&self, event: &Event, from: Millis) -> bool {
        self.gate.knew(event, from) && self.concerns(event)
    }

    /// A market's book, all levels, and its newest match that was completed.
    pub(crate) fn book(&self, market: engine::MarketId) -> Book {
        let levels = |side| {
            let levels = self.engine.levels(market, side);
            levels.map(|(price, lots, offers)| Level(price, lots, offers)).collect()
        };
        Book {
            state: self.market_state(market),
            bids: levels(Side::Buy),
            asks: levels(Side::Sell),
            cut: false,
            last: self.seats.seat(market).last,
        }
    }

    /// Where a market stands.
    pub(crate) fn market_state(&self, market: engine::MarketId) -> MarketState {
        self.engine.state(market).unwrap_or(MarketState::Closed)
    }

    /// When something happens by itself.
    pub fn next_deadline(&self) -> Option<Millis> {
        let deadlines =
            [self.engine.next_deadline(), self.trades.next_deadline(), self.seats.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Makes a subject the next entry at `at`, if it can be one. `at` must not be
    /// earlier than the entry before.
    pub fn apply(&mut self, at: Millis, subject: &Subject) -> Verdict {
        debug_assert!(at >= self.at, "time never goes back");
        let mut all = Consequences::default();
        match subject {
            Subject::Rules(rules) => self.set_rules(at, rules, &mut all),
            _ if self.next == 0 => return Verdict::Ignored("the first entry holds the rules"),
            Subject::Epoch(event) => match self.epoch(at, event, &mut all) {
                Ok(()) => {}
                Err(why) => return Verdict::Ignored(why),
            },
            Subject::Trader(event) => match self.trader(at, event, &mut all) {
                Ok(()) => {}
                Err(why) => return Verdict::Ignored(why),
            },
            Subject::Time => self.advance(at, &mut all),
        }
        all.outcome.get_or_insert(Outcome::Accepted);
        self.at = at;
        self.next += 1;
        Verdict::Entry(Box::new(all))
    }

    fn set_rules(&mut self, at: Millis, rules: &Rules, all: &mut Consequences) {
        self.advance(at, all);
        self.rules = rules.clone();
        self.gate.ruled(rules);
        self.run(at, Command::SetLimits(limits(rules)), all);
        for market in self.seats.all().map(|(id, _)| id).collect::<Vec<_>>() {
            self.run(at, Command::SetRules(market, markets::market_rules(rules)), all);
        }
    }

    fn epoch(
        &mut self,
        at: Millis,
        event: &Event,
        all: &mut Consequences,
    ) -> Result<(), &'static str> {
        if self.gate.is_answered(&event.id) {
            return Err("it has its entry");
        }
        let keyset = EpochKeyset::decode(event).map_err(|_| "it is no epoch keyset")?;
        if !self.seats.concerns(&keyset, event.created_at) {
            return Err("nothing follows from it");
        }
        self.advance(at, all);
        let steps = self.seats.epoch(&keyset, event.created_at, at, &self.rules);
        self.gate.answered_pool(event.id);
        for step in steps {
            self.run(at, step, all);
        }
        Ok(())
    }

    /// Lets happen what has to happen by `at`.
    fn advance(&mut self, at: Millis, all: &mut Consequences) {
        self.run(at, Command::Time, all);
        while let Some(command) = self.seats.take_phase(at, &self.rules) {
            self.run(at, command, all);
        }
        for failed in self.trades.advance(self.next, at) {
            self.tell(failed.encode(), all);
            all.tally.failed += 1;
        }
    }

    /// Adds that a match was completed.
    fn completed(&mut self, settled: &Settlement, print: Print, all: &mut Consequences) {
        self.tell(settled.encode(), all);
        all.tally.completed += 1;
        all.markets.extend(self.seats.traded(print).then_some(print.market));
    }

    /// Adds an event to what is published; its id.
    fn tell(&self, event: EventBuilder, all: &mut Consequences) -> EventId {
        let mut event = event.build(self.exchange);
        let id = event.id();
        all.events.push(event);
        id
    }

    /// Has the engine carry out a command, and sorts what it says.
    fn run(&mut self, at: Millis, command: Command, all: &mut Consequences) {
        let mut said = std::mem::take(&mut self.said);
        self.engine.apply(self.next, at, command, &mut said);
        for event in said.drain(..) {
            self.sort(at, event, all);
        }
        self.said = said;
    }

    /// SHA-256 of the whole state but the memory of who was answered, which is
    /// the journal itself.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update([2]);
        hash.update(self.next.to_be_bytes());
        hash.update(self.at.get().to_be_bytes());
        hash.update(serde_json::to_string(&self.rules).expect("plain data is JSON"));
        hash.update(self.engine.digest_of_house());
        for (market, _) in self.seats.all() {
            hash.update(self.engine.digest(market));
        }
        self.seats.digest(|bytes| hash.update(bytes));
        self.trades.digest(|bytes| hash.update(bytes));
        hash.finalize().into()
    }
}

fn limits(rules: &Rules) -> Limits {
    Limits {
        open_offers_per_trader: rules.offers_per_trader,
        open_offers_per_market: rules.offers_per_market,
        makers_per_order: rules.makers_per_offer,
        commits_per_trader: rules.commits_per_trader,
        reveal_ms: rules.reveal_ms.into(),
        deferred_per_market: rules.deferred_per_market,
        deferred_per_trader: rules.deferred_per_trader,
    }
}
