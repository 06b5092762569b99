//! Who offers: makes, amends and cancels, and waits for the journal's word.

use std::collections::HashMap;
use std::time::Duration;

use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use hashpit_nips::eh04::{Action, Command, DecodeError, Market, Offer, Terms};
use hashpit_nips::eh05::{Effect, Entry, Outcome};
use hashpit_nips::{EpochId, Lots, Millis, kind};
use nostr_sdk::{Event, EventBuilder, EventId, Filter, Keys, Timestamp};
use tokio::time::timeout;

use super::exchange::{PATIENCE, asked_for};
use super::offers::{DEFERRED, Records};
use super::{End, Exchange, OwnOffer, Standing, Trade, TradeError};

/// How long the exchange may take to answer; it does within a second.
const ANSWER: Duration = Duration::from_secs(10);
/// How long matches may follow their entry; they are on their way with it.
const MATCHES: Duration = Duration::from_millis(300);
/// Bits of work that are done for an exchange: a minute of one core.
pub(super) const MAX_POW: u8 = 26;
/// How far back an answer may be dated: the exchange's clock is not ours.
const SKEW: Duration = Duration::from_secs(120);

/// Deferred events that are looked after at one time, the newest.
const MAX_DEFERRED: usize = 20;

/// A trader at one exchange.
#[derive(Debug)]
pub struct Trader {
    exchange: Exchange,
    keys: Keys,
    mailbox: Mailbox,
    /// Entries and matches about this trader.
    answers: Inbox,
    filter: Filter,
    /// The date of the newest event that was sent for each offer: relays keep one
    /// of an address and second, and it need not be the newer.
    dated: HashMap<String, Timestamp>,
    /// Bits that the exchange asks for in this key's next event.
    pow: u8,
    patience: Duration,
}

/// The journal's entry on what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What was sent.
    pub event: EventId,
    /// The offer's name, if it was about one.
    pub d: Option<String>,
    /// The entry's sequence.
    pub seq: u64,
    /// The exchange's clock.
    pub at: Millis,
    /// What became of it.
    pub outcome: Outcome,
    /// How the offer that was sent has ended in the same entry, if it has: what
    /// could not be had at once, say.
    pub ended: Option<End>,
    /// What it matched at once, as far as the relays told.
    pub matches: Vec<Trade>,
}

impl Trader {
    /// A trader with `keys` at `exchange`, on the exchange's relays.
    pub async fn connect(keys: Keys, exchange: Exchange) -> Result<Self, TradeError> {
        // Of its own, since a mailbox tells each event once.
        let mailbox = Mailbox::connect(keys.clone(), exchange.relays()).await?;
        let filter = Filter::new()
            .author(exchange.key())
            .kinds([kind::ENTRY, kind::MATCH])
            .pubkey(keys.public_key())
            .since(Timestamp::now() - SKEW);
        let answers = mailbox.subscribe(filter.clone()).await?;
        if mailbox.connected(PATIENCE).await == 0 {
            return Err(TradeError::NoRelay);
        }
        let pow = match Self::is_known(&exchange, &keys).await? {
            true => 0,
            false => exchange.info().rules.pow_bits,
        };
        let dated = HashMap::new();
        Ok(Self { exchange, keys, mailbox, answers, filter, dated, pow, patience: ANSWER })
    }

    /// Whether the exchange has ever taken an event of this key: then it asks for
    /// no work.
    async fn is_known(exchange: &Exchange, keys: &Keys) -> Result<bool, TradeError> {
        let filter = Filter::new().author(exchange.key()).kind(kind::ENTRY);
        let entries = exchange.ask(filter.pubkey(keys.public_key()).limit(20)).await?;
        let taken = |event: &Event| {
            Entry::decode(event).is_ok_and(|entry| !matches!(entry.outcome, Outcome::Refused(_)))
        };
        Ok(entries.iter().any(taken))
    }

    /// This trader, waiting so long for each answer.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The exchange that it trades at.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Makes an offer under the name `d`, which should be random. A `hidden` one
    /// takes its place in the market's queue before anyone sees it (commit and
    /// reveal).
    pub async fn make(
        &mut self,
        market: &Market,
        d: String,
        terms: Terms,
        hidden: bool,
    ) -> Result<Answer, TradeError> {
        let id = self.exchange.id_of(market.epoch);
        let offer = Offer { d, market: id, prev: None, terms: Some(terms) };
        let event = self.sign_offer(&offer, Timestamp::now()).await?;
        if hidden && let Some(refusal) = self.commit(market.epoch, &event).await? {
            return Ok(Answer { d: Some(offer.d), ..refusal });
        }
        self.send_offer(offer, &event).await
    }

    /// Changes the terms of an offer that stands.
    pub async fn amend(&mut self, own: &OwnOffer, terms: Terms) -> Result<Answer, TradeError> {
        match &own.standing {
            Standing::Open => {}
            Standing::Over(end) => {
                return Err(TradeError::Over { d: own.d.clone(), end: end.clone() });
            }
            Standing::Unanswered | Standing::Deferred => {
                return Err(TradeError::NotStanding(own.d.clone()));
            }
        }
        self.replace(own, Some(own.event), Some(terms)).await
    }

    /// Cancels an offer, whatever event of it stands.
    pub async fn cancel(&mut self, own: &OwnOffer) -> Result<Answer, TradeError> {
        if let Standing::Over(end) = &own.standing {
            return Err(TradeError::Over { d: own.d.clone(), end: end.clone() });
        }
        self.replace(own, None, None).await
    }

    async fn replace(
        &mut self,
        own: &OwnOffer,
        prev: Option<EventId>,
        terms: Option<Terms>,
    ) -> Result<Answer, TradeError> {
        let offer = Offer { d: own.d.clone(), market: own.market, prev, terms };
        // Relays keep the newest event of an address, to the second.
        let newest = self.dated.get(&offer.d).copied().unwrap_or(own.dated).max(own.dated);
        let dated = Timestamp::now().max(newest + 1);
        self.dated.insert(offer.d.clone(), dated);
        let event = self.sign_offer(&offer, dated).await?;
        self.send_offer(offer, &event).await
    }

    /// Cancels every offer, or those in one market.
    pub async fn cancel_all(&mut self, epoch: Option<EpochId>) -> Result<Answer, TradeError> {
        self.command(Action::CancelAll(epoch)).await
    }

    /// Has every offer cancelled at `until`, unless a later time is told before;
    /// `None` takes that back.
    pub async fn alive(&mut self, until: Option<Timestamp>) -> Result<Answer, TradeError> {
        self.command(Action::Alive(until)).await
    }

    /// This trader's offers, newest first.
    pub async fn offers(&self) -> Result<Vec<OwnOffer>, TradeError> {
        let (exchange, me) = (&self.exchange, self.keys.public_key());
        let journal = Filter::new().author(exchange.key());
        let entries = journal.clone().kind(kind::ENTRY);
        let own = exchange.ask_all(Filter::new().author(me).kind(kind::OFFER)).await?;
        let mut told = exchange.ask_all(entries.clone().pubkey(me)).await?;
        told.sort_by_key(|event| event.created_at);
        // What was deferred is told of in entries of others.
        let deferred = told.iter().filter(|event| is_deferred(event)).map(|e| e.created_at);
        for since in deferred.rev().take(MAX_DEFERRED).collect::<Vec<_>>() {
            let then = journal.clone().kind(kind::ENTRY).since(since).until(since + DEFERRED);
            told.extend(exchange.ask_all(then).await?);
        }
        let pools: Vec<_> = exchange.markets().iter().map(|market| market.epoch.pool).collect();
        told.extend(exchange.ask_all(entries.pubkeys(pools)).await?);
        let matches = exchange.ask_all(journal.kind(kind::MATCH).pubkey(me)).await?;
        let matches: Vec<_> = matches.iter().filter_map(Trade::read).collect();
        let records = Records {
            trader: me,
            exchange: exchange.key(),
            entries: told.iter().filter_map(|event| Entry::decode(event).ok()).collect(),
            matches: &matches,
            own: &own,
            markets: exchange.markets(),
            now: Timestamp::now(),
        };
        Ok(records.offers())
    }

    /// The offer whose name, or whose event's id, begins with `name`.
    pub async fn offer(&self, name: &str) -> Result<OwnOffer, TradeError> {
        let mut offers = self.offers().await?;
        if let Some(exact) = offers.iter().position(|offer| offer.d == name) {
            return Ok(offers.swap_remove(exact));
        }
        offers.retain(|offer| {
            !name.is_empty()
                && (offer.d.starts_with(name) || offer.event.to_hex().starts_with(name))
        });
        match offers.len() {
            0 => Err(TradeError::NoOffer(name.to_owned())),
            1 => Ok(offers.remove(0)),
            _ => Err(TradeError::WhichOffer(name.to_owned())),
        }
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.mailbox.close().await;
        self.exchange.close().await;
    }

    async fn command(&mut self, action: Action) -> Result<Answer, TradeError> {
        let command = Command { exchange: self.exchange.key(), action };
        let event = self.sign(command.encode()).await?;
        self.send(&event, Lots::ZERO).await
    }

    /// Takes a place for an offer that is not shown yet; the answer if the exchange
    /// refused.
    async fn commit(
        &mut self,
        epoch: EpochId,
        offer: &Event,
    ) -> Result<Option<Answer>, TradeError> {
        match self.command(Action::Commit { epoch, offer: offer.id }).await {
            Ok(answer) if matches!(answer.outcome, Outcome::Refused(_)) => Ok(Some(answer)),
            Ok(_) => Ok(None),
            Err(TradeError::NoAnswer { seconds, .. }) => Err(TradeError::NoPlace { seconds }),
            Err(error) => Err(error),
        }
    }

    async fn sign_offer(&self, offer: &Offer, dated: Timestamp) -> Result<Event, TradeError> {
        let event = self.sign(offer.encode().custom_created_at(dated)).await?;
        // Terms that contradict each other are refused before anyone sees them.
        match Offer::decode(&event) {
            Ok(_) => Ok(event),
            Err(error @ (DecodeError::Contradiction(_) | DecodeError::Tag { .. })) => {
                Err(TradeError::Terms(error))
            }
            Err(error) => Err(TradeError::Sign(error.to_string())),
        }
    }

    async fn sign(&self, event: EventBuilder) -> Result<Event, TradeError> {
        if self.pow > MAX_POW {
            return Err(TradeError::TooMuchWork(self.pow));
        }
        let (keys, event) = (self.keys.clone(), event.pow(self.pow));
        // The work would hold up everything else on this thread.
        let signed = tokio::task::spawn_blocking(move || event.sign_with_keys(&keys)).await;
        let signed = signed.map_err(|error| TradeError::Sign(error.to_string()))?;
        signed.map_err(|error| TradeError::Sign(error.to_string()))
    }

    async fn send_offer(&mut self, offer: Offer, event: &Event) -> Result<Answer, TradeError> {
        let lots = offer.terms.map_or(Lots::ZERO, |terms| terms.lots);
        let answer = self.send(event, lots).await?;
        Ok(Answer { d: Some(offer.d), ..answer })
    }

    /// Publishes an event and waits for the journal's entry on it, and for matches of
    /// up to `lots`.
    async fn send(&mut self, event: &Event, lots: Lots) -> Result<Answer, TradeError> {
        self.mailbox.publish(event).await?;
        let seconds = self.patience.as_secs();
        let no_answer = TradeError::NoAnswer { event: event.id, seconds };
        let mut matches = Vec::new();
        let entry = match timeout(self.patience, self.entry_on(event.id, &mut matches)).await {
            Ok(Some(entry)) => entry,
            Ok(None) | Err(_) => return Err(no_answer),
        };
        if !matches!(entry.outcome, Outcome::Refused(_)) {
            self.pow = 0;
            self.collect(event.id, lots, &mut matches).await;
        }
        matches.sort_by_key(|trade| (trade.terms.seq, trade.terms.index));
        let Entry { seq, at, outcome, effects, .. } = entry;
        let ended = effects.iter().find_map(|effect| match effect {
            Effect::Ended(id, why) if *id == event.id => Some(End::named(why)),
            _ => None,
        });
        Ok(Answer { event: event.id, d: None, seq, at, outcome, ended, matches })
    }

    /// Gathers matches of `offer` until all `lots` have one, or no more come.
    async fn collect(&mut self, offer: EventId, lots: Lots, matches: &mut Vec<Trade>) {
        let filled = |matches: &[Trade]| {
            matches.iter().map(|trade| u64::from(trade.terms.lots.get())).sum::<u64>()
        };
        while filled(matches) < u64::from(lots.get()) {
            match timeout(MATCHES, self.answers.next()).await {
                Ok(Some(Arrival::Event(event))) => self.note(&event, offer, matches),
                Ok(Some(Arrival::Connected(_))) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// The entry on `event`, once it arrives; `None` once the mailbox is closed.
    async fn entry_on(&mut self, event: EventId, matches: &mut Vec<Trade>) -> Option<Entry> {
        loop {
            let Arrival::Event(arrived) = self.answers.next().await? else { continue };
            self.note(&arrived, event, matches);
            match Entry::decode(&arrived) {
                Ok(entry)
                    if entry.event().is_some_and(|inner| inner.id == event)
                        && asked_for(&self.filter, &arrived) =>
                {
                    return Some(entry);
                }
                _ => {}
            }
        }
    }

    /// Keeps what arrived if it is a match of `offer`.
    fn note(&self, arrived: &Event, offer: EventId, matches: &mut Vec<Trade>) {
        let Some(trade) = Trade::read(arrived) else { return };
        let legs = [trade.terms.maker.offer, trade.terms.taker.offer];
        let known = matches.iter().any(|known| known.id == trade.id);
        if legs.contains(&offer) && !known && asked_for(&self.filter, arrived) {
            matches.push(trade);
        }
    }
}

fn is_deferred(entry: &Event) -> bool {
    Entry::decode(entry).is_ok_and(|entry| entry.outcome == Outcome::Deferred)
}
