//! What became of a trader's offers, as far as public records tell.
//!
//! An entry of the journal (kind 8480) is found by the key in its `p` tag, which is
//! that of the event inside. So a trader finds what its own events led to and what a
//! pool's block did; but an offer that ends because its time has come ends in
//! somebody else's entry. The terms say when, so that is worked out here.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::Duration;

use hashpit_nips::eh04::{Action, Command, Market, MarketId, MarketState, Offer, OnEpoch, Terms};
use hashpit_nips::eh05::{Effect, Entry, Outcome, Subject};
use hashpit_nips::{EpochId, Lots, Millis, kind};
use nostr_sdk::{Event, EventId, Kind, PublicKey, Timestamp};

use super::Trade;

/// How long an event that was deferred may wait; what became of it is looked for in
/// the entries of that time.
pub(super) const DEFERRED: Duration = Duration::from_secs(60);

/// An offer of this trader's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnOffer {
    /// Its name.
    pub d: String,
    /// Its market.
    pub market: MarketId,
    /// The event that stands, or the last that stood.
    pub event: EventId,
    /// What that event says.
    pub terms: Terms,
    /// Lots that were matched.
    pub filled: Lots,
    /// Where it stands.
    pub standing: Standing,
    /// Sequence of its acknowledgement.
    pub seq: Option<u64>,
    /// When it was acknowledged, by the exchange's clock.
    pub at: Option<Millis>,
    /// A relay has a newer event for it that the exchange has not answered.
    pub unanswered: bool,
    /// When the newest event for it is dated; what replaces it must be later.
    pub dated: Timestamp,
    /// Every event by which it stood.
    events: Vec<EventId>,
}

/// Where an offer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// On a relay, without a word from the exchange.
    Unanswered,
    /// Acknowledged, and behind a commit.
    Deferred,
    /// In the book.
    Open,
    /// Not any more.
    Over(End),
}

/// How an offer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All of its lots were matched.
    Filled,
    /// By its trader.
    Canceled,
    /// Its time was over.
    Expired,
    /// Its trader was not heard of in time (dead man's switch).
    DeadMan,
    /// Its epoch closed.
    Epoch,
    /// Its market closed.
    Closed,
    /// It would have matched another offer of its own key.
    SelfTrade,
    /// What it could not take at once.
    AtOnce,
    /// The exchange refused it; why.
    Refused(String),
    /// In another way, as the journal calls it.
    Other(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filled => "filled",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::DeadMan => "ended by the dead man's switch",
            Self::Epoch => "ended with its epoch",
            Self::Closed => "ended with its market",
            Self::SelfTrade => "ended at an offer of your own",
            Self::AtOnce => "done, as far as it could be at once",
            Self::Refused(why) => return write!(f, "refused ({why})"),
            Self::Other(why) => return write!(f, "ended ({why})"),
        })
    }
}

impl End {
    /// By the words of EH-05's `ended` tags.
    pub(super) fn named(why: &str) -> Self {
        match why {
            "expired" => Self::Expired,
            "dead_man" => Self::DeadMan,
            "epoch" => Self::Epoch,
            "closed" => Self::Closed,
            "self" => Self::SelfTrade,
            "ioc" => Self::AtOnce,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl OwnOffer {
    /// Lots that are still on offer.
    pub fn left(&self) -> Lots {
        match self.standing {
            Standing::Over(_) => Lots::ZERO,
            _ => self.terms.lots.checked_sub(self.filled).unwrap_or(Lots::ZERO),
        }
    }

    fn new(event: &Event, offer: &Offer, terms: Terms, standing: Standing) -> Self {
        Self {
            d: offer.d.clone(),
            market: offer.market,
            event: event.id,
            terms,
            filled: Lots::ZERO,
            standing,
            seq: None,
            at: None,
            unanswered: false,
            dated: event.created_at,
            events: vec![event.id],
        }
    }

    fn is_live(&self) -> bool {
        !matches!(self.standing, Standing::Over(_))
    }

    fn end(&mut self, end: End) {
        if self.is_live() {
            self.standing = Standing::Over(end);
        }
    }
}

/// What is known of a trader and its exchange.
pub(super) struct Records<'a> {
    pub trader: PublicKey,
    pub exchange: PublicKey,
    /// Entries with events of the trader, and of pools; in any order.
    pub entries: Vec<Entry>,
    /// The trader's matches.
    pub matches: &'a [Trade],
    /// The trader's own offers as relays have them (kind 38480).
    pub own: &'a [Event],
    pub markets: &'a [Market],
    pub now: Timestamp,
}

impl Records<'_> {
    /// The trader's offers, the newest first.
    pub(super) fn offers(mut self) -> Vec<OwnOffer> {
        self.entries.sort_by_key(|entry| entry.seq);
        self.entries.dedup_by_key(|entry| entry.seq);
        let mut log = Log::new(self.trader, self.exchange);
        for entry in &self.entries {
            log.enter(entry);
        }
        log.amend_in_place(self.now);
        log.time(self.now);
        log.fill(self.matches);
        log.close(self.markets);
        log.note_unanswered(self.own);
        let mut offers: Vec<_> = log.offers.into_values().collect();
        offers.sort_by_key(|offer| std::cmp::Reverse((offer.seq.unwrap_or(u64::MAX), offer.dated)));
        offers
    }
}

/// The journal as it is gone through, in order.
struct Log {
    trader: PublicKey,
    exchange: PublicKey,
    offers: BTreeMap<String, OwnOffer>,
    /// When the dead man's switch goes off.
    alive: Option<Timestamp>,
    /// Offers that have their place and were not carried out, with that place.
    deferred: Vec<(Event, Offer, (u64, Millis))>,
    answered: HashSet<EventId>,
}

impl Log {
    fn new(trader: PublicKey, exchange: PublicKey) -> Self {
        Self {
            trader,
            exchange,
            offers: BTreeMap::new(),
            alive: None,
            deferred: Vec::new(),
            answered: HashSet::new(),
        }
    }

    fn enter(&mut self, entry: &Entry) {
        self.time(Timestamp::from(entry.at.get() / 1000));
        if let Subject::Trader(event) = &entry.subject
            && event.pubkey == self.trader
            && event.verify().is_ok()
        {
            self.answered.insert(event.id);
            self.act(entry, event);
        }
        for effect in &entry.effects {
            self.effect(entry, effect);
        }
    }

    fn act(&mut self, entry: &Entry, event: &Event) {
        let carried_out = !matches!(entry.outcome, Outcome::Refused(_));
        if let Ok(offer) = Offer::decode(event)
            && offer.market.exchange == self.exchange
        {
            self.offer((entry.seq, entry.at), event, offer, &entry.outcome);
        } else if let Ok(command) = Command::decode(event)
            && carried_out
        {
            match command.action {
                Action::CancelAll(epoch) => self.end_all(epoch, &End::Canceled),
                Action::Alive(until) => self.alive = until,
                Action::Commit { .. } | Action::Step { .. } => {}
            }
        } else if event.kind == Kind::EventDeletion && carried_out {
            self.delete(event);
        }
    }

    fn offer(&mut self, at: (u64, Millis), event: &Event, offer: Offer, outcome: &Outcome) {
        if let Some(known) = self.offers.get_mut(&offer.d) {
            known.dated = known.dated.max(event.created_at);
        }
        let known = self.offers.get_mut(&offer.d);
        let live = known.filter(|known| known.is_live() && known.event != event.id);
        let standing = match outcome {
            Outcome::Accepted => Standing::Open,
            Outcome::Deferred => {
                self.deferred.push((event.clone(), offer.clone(), at));
                Standing::Deferred
            }
            Outcome::Refused(why) => Standing::Over(End::Refused(why.clone())),
        };
        match (live, offer.terms.clone()) {
            // Cancelling that waits is as good as done: nothing is told of it later.
            (Some(live), None) if !matches!(standing, Standing::Over(_)) => {
                live.end(End::Canceled);
            }
            (Some(live), Some(terms)) if standing == Standing::Open => {
                live.events.push(event.id);
                (live.event, live.terms, live.standing) = (event.id, terms, standing);
                (live.seq, live.at) = (Some(at.0), Some(at.1));
            }
            // What was not carried out leaves standing what stands.
            (Some(_), _) | (None, None) => {}
            (None, Some(terms)) => {
                let (seq, at) = (Some(at.0), Some(at.1));
                let new = OwnOffer { seq, at, ..OwnOffer::new(event, &offer, terms, standing) };
                self.offers.insert(offer.d, new);
            }
        }
    }

    fn effect(&mut self, entry: &Entry, effect: &Effect) {
        match effect {
            Effect::Ended(event, why) => {
                let ended = self.offers.values_mut().filter(|offer| offer.event == *event);
                ended.for_each(|offer| offer.end(End::named(why)));
            }
            Effect::Late(id, outcome) => {
                let Some(n) = self.deferred.iter().position(|(event, ..)| event.id == *id) else {
                    return;
                };
                let (event, offer, _) = self.deferred.remove(n);
                self.offer((entry.seq, entry.at), &event, offer, outcome);
            }
            // A list that was too long to be told.
            Effect::Market(epoch, MarketState::Halted, _) if entry.more > 0 => {
                let leaves = |offer: &&mut OwnOffer| {
                    offer.market.epoch == *epoch && offer.terms.on_epoch == OnEpoch::Cancel
                };
                self.offers.values_mut().filter(leaves).for_each(|offer| offer.end(End::Epoch));
            }
            Effect::Market(epoch, MarketState::Closed, _) => {
                self.end_all(Some(*epoch), &End::Closed)
            }
            Effect::Market(..) | Effect::Burnt(_) => {}
        }
    }

    /// An amendment that waited, and that took the old one's place: nothing is told
    /// of that, while anything else is, in good time.
    fn amend_in_place(&mut self, now: Timestamp) {
        for (event, offer, at) in std::mem::take(&mut self.deferred) {
            let told = Timestamp::from(at.1.get() / 1000) + DEFERRED;
            let known = self.offers.get(&offer.d).filter(|known| known.is_live());
            let stands = known.is_some_and(|known| offer.prev == Some(known.event));
            if stands && told < now {
                self.offer(at, &event, offer, &Outcome::Accepted);
            }
        }
    }

    /// NIP-09: by the event's id, or by its address.
    fn delete(&mut self, event: &Event) {
        let ids: HashSet<_> = event.tags.event_ids().copied().collect();
        let addresses: HashSet<_> =
            event.tags.coordinates().map(|address| address.to_string()).collect();
        let address = |d: &str| format!("{}:{}:{d}", kind::OFFER.as_u16(), self.trader.to_hex());
        for offer in self.offers.values_mut() {
            if ids.contains(&offer.event) || addresses.contains(&address(&offer.d)) {
                offer.end(End::Canceled);
            }
        }
    }

    fn end_all(&mut self, epoch: Option<EpochId>, end: &End) {
        let all = self.offers.values_mut();
        all.filter(|offer| epoch.is_none_or(|epoch| offer.market.epoch == epoch))
            .for_each(|offer| offer.end(end.clone()));
    }

    /// What happens without a word of the trader's by `now`.
    fn time(&mut self, now: Timestamp) {
        let ended = |offer: &&mut OwnOffer| offer.terms.expires.is_some_and(|end| end <= now);
        self.offers.values_mut().filter(ended).for_each(|offer| offer.end(End::Expired));
        if self.alive.is_some_and(|until| until <= now) {
            self.alive = None;
            self.end_all(None, &End::DeadMan);
        }
    }

    fn fill(&mut self, matches: &[Trade]) {
        for offer in self.offers.values_mut() {
            let mut seen = HashSet::new();
            for trade in matches.iter().filter(|trade| seen.insert(trade.id)) {
                let legs = [trade.terms.maker, trade.terms.taker];
                if legs.iter().any(|leg| offer.events.contains(&leg.offer)) {
                    let filled = offer.filled.checked_add(trade.terms.lots);
                    offer.filled = filled.unwrap_or(offer.terms.lots);
                }
            }
            if offer.filled >= offer.terms.lots {
                offer.standing = Standing::Over(End::Filled);
            } else if offer.filled > Lots::ZERO && offer.standing == Standing::Deferred {
                offer.standing = Standing::Open;
            }
        }
    }

    fn close(&mut self, markets: &[Market]) {
        for market in markets.iter().filter(|market| market.state == MarketState::Closed) {
            self.end_all(Some(market.epoch), &End::Closed);
        }
    }

    fn note_unanswered(&mut self, own: &[Event]) {
        for event in own.iter().filter(|event| !self.answered.contains(&event.id)) {
            let Ok(offer) = Offer::decode(event) else { continue };
            if offer.market.exchange != self.exchange {
                continue;
            }
            match (self.offers.get_mut(&offer.d), offer.terms.clone()) {
                (Some(known), _) => {
                    known.unanswered |= known.is_live() && event.created_at >= known.dated;
                    known.dated = known.dated.max(event.created_at);
                }
                (None, Some(terms)) => {
                    let new = OwnOffer::new(event, &offer, terms, Standing::Unanswered);
                    self.offers.insert(offer.d, new);
                }
                (None, None) => {}
            }
        }
    }
}
