//! What became of matches: in flight, completed or failed; and the tape, which
//! completed ones make.
//!
//! A match (kind 8481) is known by itself, its end (8482) names it, and how far it
//! has come follows from the journal's entries on what its traders reported (8483).

use std::collections::HashMap;

use hashpit_nips::eh04::{Action, Command};
use hashpit_nips::eh05::{
    Checkpoint, Entry, Fate, LastTrade, Outcome, Progress, STEPS, Settlement, Subject,
};
use hashpit_nips::{EpochId, Millis, kind};
use nostr_sdk::{Event, EventId, Filter, PublicKey, Timestamp};

use super::exchange::{PAGE, PAGES};
use super::{Candle, Exchange, TapeFeed, Ticker, Trade, TradeError};

/// Ids that one filter names.
const IDS: usize = 100;
/// A ticker's day.
const DAY_SECS: u64 = 86_400;

/// A match, and what has become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The match.
    pub trade: Trade,
    /// Where its settlement stands.
    pub stage: Stage,
}

/// Where the settlement of a match stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Its traders are at it.
    InFlight {
        /// The first step that is not reported by all who are due, 1 to 6.
        step: u8,
        /// Who has to report it: seller, buyer, or seller and buyer; nobody if all
        /// have, and the exchange's word on that is on its way.
        due: Vec<PublicKey>,
        /// When that is too late.
        by: Millis,
    },
    /// It has ended.
    Ended {
        /// How.
        fate: Fate,
        /// When; the exchange's clock.
        at: Millis,
    },
}

/// The completed matches of a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tape {
    /// Since when: nothing that was matched from then on, and completed, is missing.
    /// Later than what was asked for if there was more than relays tell.
    pub since: Timestamp,
    /// In the order in which they were matched.
    pub trades: Vec<Trade>,
}

impl Line {
    /// True if both traders have said that it is settled.
    pub fn is_completed(&self) -> bool {
        matches!(self.stage, Stage::Ended { fate: Fate::Completed, .. })
    }

    fn of(trade: Trade, settled: Option<&Settlement>, progress: &Progress) -> Self {
        let stage = match (settled, progress.next()) {
            (Some(settled), _) => Stage::ended(settled),
            (None, Some((step, by))) => Stage::InFlight { step, due: progress.missing(step), by },
            // The exchange's word on it is on its way.
            (None, None) => {
                Stage::InFlight { step: STEPS, due: Vec::new(), by: progress.deadline(STEPS) }
            }
        };
        Self { trade, stage }
    }

    /// A match that nobody has reported anything of.
    pub(super) fn new(trade: Trade) -> Self {
        let progress = Progress::of(&trade.terms);
        Self::of(trade, None, &progress)
    }
}

impl Tape {
    /// Of matches those that were completed, if they are not older than `since`.
    fn of(
        mut trades: Vec<Trade>,
        settled: &HashMap<EventId, Settlement>,
        since: Timestamp,
    ) -> Self {
        trades.retain(|trade| {
            let settled = settled.get(&trade.id);
            settled.is_some_and(|settled| settled.fate == Fate::Completed)
                && trade.terms.at.get() / 1000 >= since.as_secs()
        });
        trades.sort_by_key(|trade| (trade.terms.seq, trade.terms.index));
        Self { since, trades }
    }
}

impl Stage {
    pub(super) fn ended(settled: &Settlement) -> Self {
        Self::Ended { fate: settled.fate.clone(), at: settled.at }
    }
}

impl Exchange {
    /// The newest `limit` matches of a market with what became of them, newest first.
    pub async fn lines(&self, epoch: EpochId, limit: usize) -> Result<Vec<Line>, TradeError> {
        let trades = self.trades(epoch, limit).await?;
        self.stages(trades).await
    }

    /// The newest `limit` completed matches of a market, newest first.
    pub async fn settled(&self, epoch: EpochId, limit: usize) -> Result<Vec<Line>, TradeError> {
        // Most matches are settled; who looks for few does not read all.
        let mut most = limit.max(1);
        loop {
            let trades = self.trades(epoch, most).await?;
            let all = trades.len() < most;
            let settled = self.settlements_of(&ids(&trades)).await?;
            let line =
                |trade: Trade| Some(Line { stage: Stage::ended(settled.get(&trade.id)?), trade });
            let lines = trades.into_iter().filter_map(line).filter(Line::is_completed);
            let lines: Vec<_> = lines.take(limit).collect();
            if all || lines.len() == limit || most >= PAGE * PAGES {
                return Ok(lines);
            }
            most = (most * 4).min(PAGE * PAGES);
        }
    }

    /// What became of matches, in their order.
    pub async fn stages(&self, trades: Vec<Trade>) -> Result<Vec<Line>, TradeError> {
        let settled = self.settlements_of(&ids(&trades)).await?;
        let open = trades.iter().filter(|trade| !settled.contains_key(&trade.id));
        let mut open: HashMap<EventId, Progress> =
            open.map(|trade| (trade.id, Progress::of(&trade.terms))).collect();
        self.follow_reports(&mut open).await?;
        let line = |trade: Trade| {
            let fresh = || Progress::of(&trade.terms);
            let progress = open.remove(&trade.id).unwrap_or_else(fresh);
            let settled = settled.get(&trade.id);
            Line::of(trade, settled, &progress)
        };
        Ok(trades.into_iter().map(line).collect())
    }

    /// The completed matches of a market since a time.
    pub async fn tape(&self, epoch: EpochId, since: Timestamp) -> Result<Tape, TradeError> {
        let matches = self.matches_since(self.of_market(epoch), since).await?;
        let trades: Vec<_> = matches.iter().filter_map(Trade::read).collect();
        let settled = self.settlements_of(&ids(&trades)).await?;
        Ok(Tape::of(trades, &settled, reached(&matches).unwrap_or(since).max(since)))
    }

    /// The completed matches of all markets since a time.
    async fn tape_of_all(&self, since: Timestamp) -> Result<Tape, TradeError> {
        let by_it = Filter::new().author(self.key());
        let matches = self.matches_since(by_it.clone(), since).await?;
        // Nothing is settled before it is matched.
        let ends = self.ask_all(by_it.kind(kind::SETTLEMENT).since(since)).await?;
        let reached = reached(&matches).max(reached(&ends)).unwrap_or(since).max(since);
        let trades = matches.iter().filter_map(Trade::read).collect();
        Ok(Tape::of(trades, &first_words(ends.iter()), reached))
    }

    async fn matches_since(&self, of: Filter, since: Timestamp) -> Result<Vec<Event>, TradeError> {
        self.ask_all(of.kind(kind::MATCH).since(since)).await
    }

    /// How a market was traded in the last 24 hours, and at what price last; or all
    /// markets, in their order.
    pub async fn tickers(&self, epoch: Option<EpochId>) -> Result<Vec<Ticker>, TradeError> {
        let all = || Filter::new().author(self.key()).kind(kind::CHECKPOINT).limit(PAGE);
        let shown = self.ask(epoch.map_or_else(all, |epoch| self.checkpoints(epoch))).await?;
        let since = Timestamp::now() - DAY_SECS;
        let tape = match epoch {
            Some(epoch) => self.tape(epoch, since).await?,
            None => self.tape_of_all(since).await?,
        };
        let last = last_of_each(&shown);
        let epochs = self.markets().iter().map(|market| market.epoch);
        let epochs = epochs.filter(|it| epoch.is_none_or(|epoch| epoch == *it));
        Ok(epochs.map(|epoch| Ticker::of(epoch, last.get(&epoch).copied(), &tape)).collect())
    }

    /// Candles of a market from completed matches, oldest first: of the last `number`
    /// periods of `every` seconds, which begin at multiples of that (UTC), with the one
    /// that has not ended. A period without trades has none.
    ///
    /// Also the time since when they are whole.
    pub async fn candles(
        &self,
        epoch: EpochId,
        every: u64,
        number: u64,
    ) -> Result<(Timestamp, Vec<Candle>), TradeError> {
        let newest = Timestamp::now().as_secs() / every.max(1);
        let first = (newest + 1).saturating_sub(number) * every;
        let tape = self.tape(epoch, Timestamp::from(first)).await?;
        Ok((tape.since, Candle::all(&tape.trades, tape.since, every)))
    }

    /// Matches of a market from now on, and what becomes of these and earlier ones.
    pub async fn follow_tape(&self, epoch: EpochId) -> Result<TapeFeed<'_>, TradeError> {
        let since = Timestamp::now() - super::exchange::PATIENCE;
        let matches = self.of_market(epoch).kind(kind::MATCH).since(since);
        let ends = Filter::new().author(self.key()).kind(kind::SETTLEMENT).since(since);
        Ok(TapeFeed {
            exchange: self,
            market: self.id_of(epoch),
            known: HashMap::new(),
            matches: (self.mailbox().subscribe(matches.clone()).await?, matches),
            ends: (self.mailbox().subscribe(ends.clone()).await?, ends),
        })
    }

    /// A match by its id, if the relays have it.
    pub(super) async fn trade(&self, id: EventId) -> Result<Option<Trade>, TradeError> {
        let filter = Filter::new().author(self.key()).kind(kind::MATCH).id(id);
        Ok(self.ask(filter).await?.iter().find_map(Trade::read))
    }

    /// How matches have ended, of those that have.
    async fn settlements_of(
        &self,
        ids: &[EventId],
    ) -> Result<HashMap<EventId, Settlement>, TradeError> {
        let mut events = Vec::new();
        for ids in ids.chunks(IDS) {
            let filter = Filter::new().author(self.key()).kind(kind::SETTLEMENT);
            events.extend(self.ask_all(filter.events(ids.iter().copied())).await?);
        }
        Ok(first_words(events.iter()))
    }

    /// Adds what the journal has taken of the traders' reports.
    async fn follow_reports(
        &self,
        open: &mut HashMap<EventId, Progress>,
    ) -> Result<(), TradeError> {
        let matches: Vec<_> = open.keys().copied().collect();
        let mut reports = Vec::new();
        for ids in matches.chunks(IDS) {
            let traders = ids.iter().filter_map(|id| open.get(id)).flat_map(Progress::traders);
            let filter = Filter::new().kind(kind::COMMAND).authors(traders);
            reports.extend(self.ask_all(filter.events(ids.iter().copied())).await?);
        }
        reports.retain(|event| step(event).is_some());
        let reports: Vec<_> = reports.iter().map(|event| event.id).collect();
        for ids in reports.chunks(IDS) {
            let filter = Filter::new().author(self.key()).kind(kind::ENTRY);
            for entry in self.ask_all(filter.events(ids.iter().copied())).await? {
                note(&entry, open);
            }
        }
        Ok(())
    }
}

/// Notes the report that an entry has taken, if it has.
fn note(entry: &Event, open: &mut HashMap<EventId, Progress>) {
    let Ok(entry) = Entry::decode(entry) else { return };
    let (Outcome::Accepted, Subject::Trader(event)) = (entry.outcome, entry.subject) else {
        return;
    };
    if let Some((of, step)) = step(&event)
        && let Some(progress) = open.get_mut(&of)
    {
        // The journal has taken it; what does not fit is another exchange's.
        let _ = progress.report(step, event.pubkey);
    }
}

/// The match and step that an event reports.
fn step(event: &Event) -> Option<(EventId, u8)> {
    match Command::decode(event).ok()?.action {
        Action::Step { of, step } => Some((of, step)),
        _ => None,
    }
}

fn ids(trades: &[Trade]) -> Vec<EventId> {
    trades.iter().map(|trade| trade.id).collect()
}

/// The exchange's word on each match; the first one stands.
pub(super) fn first_words<'a>(
    events: impl Iterator<Item = &'a Event>,
) -> HashMap<EventId, Settlement> {
    let mut first: HashMap<EventId, Settlement> = HashMap::new();
    for settled in events.filter_map(|event| Settlement::decode(event).ok()) {
        match first.get(&settled.of) {
            Some(known) if known.seq <= settled.seq => {}
            _ => drop(first.insert(settled.of, settled)),
        }
    }
    first
}

/// The time since when events are all there, if it were more than relays tell.
fn reached(events: &[Event]) -> Option<Timestamp> {
    let oldest = || events.iter().map(|event| event.created_at).min();
    if events.len() < PAGE * PAGES { None } else { oldest().map(|at| at + 1) }
}

/// The newest completed match that checkpoints tell, by market.
fn last_of_each(events: &[Event]) -> HashMap<EpochId, LastTrade> {
    let mut newest: HashMap<EpochId, Checkpoint> = HashMap::new();
    for shown in events.iter().filter_map(|event| Checkpoint::decode(event).ok()) {
        match newest.get(&shown.epoch) {
            Some(known) if known.seq >= shown.seq => {}
            _ => drop(newest.insert(shown.epoch, shown)),
        }
    }
    newest.into_iter().filter_map(|(epoch, shown)| Some((epoch, shown.book.last?))).collect()
}
