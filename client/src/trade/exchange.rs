//! An exchange as anyone may read it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashpit_mailbox::Mailbox;
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh04::{ExchangeInfo, Market, MarketId, MarketState};
use hashpit_nips::eh05::{Checkpoint, Match};
use hashpit_nips::{EpochId, HashUnits, kind};
use nostr_sdk::filter::MatchEventOptions;
use nostr_sdk::{
    Alphabet, Event, EventId, Filter, Keys, PublicKey, RelayUrl, SingleLetterTag, Timestamp,
};

use super::tape::first_words;
use super::{Book, BookFeed, Reputation, TradeError};

/// How long relays may take to connect and to tell what they have.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Events asked for at once, which every relay gives, and how often: 10,000 events
/// of one trader are years of work, or spam.
pub(super) const PAGE: usize = 200;
pub(super) const PAGES: usize = 50;
/// Relays of an exchange's own that are used; its info could name any number.
const MAX_RELAYS: usize = 8;

/// A connection to an exchange's relays under a key that lives as long as it: who
/// reads is nobody's business.
#[derive(Debug)]
pub struct Exchange {
    key: PublicKey,
    relays: Vec<RelayUrl>,
    mailbox: Mailbox,
    info: ExchangeInfo,
    markets: Vec<Market>,
    heard: Mutex<HashMap<EventId, Event>>,
    /// One question at a time: the mailbox tells each event once, to whoever asks
    /// first, and relays count open subscriptions.
    asking: tokio::sync::Mutex<()>,
}

/// A match, and the id of its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trade {
    /// The event (kind 8481).
    pub id: EventId,
    /// What it says.
    pub terms: Match,
}

impl Exchange {
    /// Finds the exchange `key` on `relays`, with its rules and markets. If it
    /// reads none of those, the relays that it names are used too.
    pub async fn connect(key: PublicKey, relays: &[RelayUrl]) -> Result<Self, TradeError> {
        let found = Self::connect_at(key, relays.to_vec()).await?;
        let own = &found.info.relays;
        if own.is_empty() || own.iter().any(|relay| relays.contains(relay)) {
            return Ok(found);
        }
        let more = own.iter().take(MAX_RELAYS).chain(relays).cloned().collect();
        found.close().await;
        Self::connect_at(key, more).await
    }

    async fn connect_at(key: PublicKey, relays: Vec<RelayUrl>) -> Result<Self, TradeError> {
        let mailbox = Mailbox::connect(Keys::generate(), &relays).await?;
        // Apart: a relay tells the newest of what is asked for, and there may be more
        // markets than it tells at once.
        let by_it = Filter::new().author(key);
        let info = by_it.clone().kind(kind::EXCHANGE).identifier(ExchangeInfo::D);
        let markets = by_it.kind(kind::MARKET).limit(PAGE);
        let ((infos, answered), (markets, _)) =
            tokio::try_join!(newest(&mailbox, info), newest(&mailbox, markets))?;
        let Some(info) = infos.iter().find_map(|event| ExchangeInfo::decode(event).ok()) else {
            mailbox.close().await;
            let error =
                if answered == 0 { TradeError::NoRelay } else { TradeError::NoExchange(key) };
            return Err(error);
        };
        let markets = markets.iter().filter_map(|event| Market::decode(event).ok());
        let mut markets: Vec<_> = markets.collect();
        markets.sort_by_key(|market| (market.epoch.pool, market.epoch.height));
        Ok(Self {
            key,
            relays,
            mailbox,
            info,
            markets,
            heard: Mutex::default(),
            asking: Default::default(),
        })
    }

    /// The exchange's key.
    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// The relays that it is read from.
    pub fn relays(&self) -> &[RelayUrl] {
        &self.relays
    }

    /// Its name, relays, pools and rules, as they were when it was found.
    pub fn info(&self) -> &ExchangeInfo {
        &self.info
    }

    /// Its markets, as they were when it was found, by pool and height.
    pub fn markets(&self) -> &[Market] {
        &self.markets
    }

    /// The market called `named`: by its unit, the unit as it is shown shortened
    /// (`hash_02ab…cdef_840000`), or its height. Without a name, the only one that
    /// is not closed.
    pub fn market(&self, named: Option<&str>) -> Result<&Market, TradeError> {
        let live = |market: &&Market| market.state != MarketState::Closed;
        let units = |markets: &[&Market]| {
            let units: Vec<_> = markets.iter().map(|market| market.epoch.to_string()).collect();
            TradeError::WhichMarket(units.join(", "))
        };
        let found: Vec<&Market> = match named {
            None => self.markets.iter().filter(live).collect(),
            Some(name) => self.markets.iter().filter(|m| is_called(m.epoch, name)).collect(),
        };
        match (found.as_slice(), named) {
            ([market], _) => Ok(market),
            ([], None) => Err(TradeError::NoMarket),
            ([], Some(name)) => Err(TradeError::UnknownMarket(name.to_owned())),
            (several, _) => Err(units(several)),
        }
    }

    /// A market's id.
    pub fn id_of(&self, epoch: EpochId) -> MarketId {
        MarketId { exchange: self.key, epoch }
    }

    /// What the pool says of an epoch, if these relays know.
    pub async fn keyset(&self, epoch: EpochId) -> Result<Option<EpochKeyset>, TradeError> {
        let filter = Filter::new().author(epoch.pool).kind(kind::EPOCH_KEYSET);
        let events = self.ask(filter.identifier(epoch.to_string())).await?;
        let keysets = newest_of_each(events.into_iter());
        Ok(keysets.iter().find_map(|event| EpochKeyset::decode(event).ok()))
    }

    /// Units of ehash in one lot of a market, if these relays know it.
    pub(crate) async fn lot(&self, epoch: EpochId) -> Result<Option<HashUnits>, TradeError> {
        if let Some(market) = self.markets.iter().find(|market| market.epoch == epoch) {
            return Ok(Some(market.lot));
        }
        let filter = Filter::new().author(self.key).kind(kind::MARKET);
        let told = self.ask(filter.identifier(epoch.to_string())).await?;
        let markets = newest_of_each(told.into_iter());
        Ok(markets.iter().find_map(|event| Some(Market::decode(event).ok()?.lot)))
    }

    /// A market's book as of its newest checkpoint.
    pub async fn book(&self, epoch: EpochId) -> Result<Book, TradeError> {
        let mut book = Book::new(self.id_of(epoch));
        for event in self.ask(self.checkpoints(epoch)).await? {
            if let Ok(checkpoint) = Checkpoint::decode(&event) {
                book.checkpoint(checkpoint);
            }
        }
        Ok(book)
    }

    /// A market's book from now on.
    pub async fn follow_book(&self, epoch: EpochId) -> Result<BookFeed, TradeError> {
        // Changes first, so that none is missed after the book; checkpoints last, since
        // the mailbox tells each once, and the book needs the newest.
        let changes = self.of_market(epoch).kind(kind::DEPTH);
        let changes = (self.mailbox.subscribe(changes.clone()).await?, changes);
        let book = self.book(epoch).await?;
        let checkpoints = self.checkpoints(epoch);
        let checkpoints = (self.mailbox.subscribe(checkpoints.clone()).await?, checkpoints);
        Ok(BookFeed { book, checkpoints, changes })
    }

    /// The newest `limit` matches of a market, newest first, whatever became of them.
    pub async fn trades(&self, epoch: EpochId, limit: usize) -> Result<Vec<Trade>, TradeError> {
        let filter = self.of_market(epoch).kind(kind::MATCH);
        let events = if limit <= PAGE {
            self.ask(filter.limit(limit)).await?
        } else {
            self.ask_most(filter, limit).await?
        };
        let mut trades: Vec<_> = events.iter().filter_map(Trade::read).collect();
        trades.sort_by_key(|trade| std::cmp::Reverse((trade.terms.seq, trade.terms.index)));
        trades.truncate(limit);
        Ok(trades)
    }

    /// How `trader` has settled on this exchange, counted anew from its public
    /// records.
    pub async fn reputation(&self, trader: PublicKey) -> Result<Reputation, TradeError> {
        let of_trader = Filter::new().author(self.key).pubkey(trader);
        let matches = self.ask_all(of_trader.clone().kind(kind::MATCH)).await?;
        let matches: Vec<_> = matches.iter().filter_map(Trade::read).collect();
        let settled = self.ask_all(of_trader.kind(kind::SETTLEMENT)).await?;
        Ok(Reputation::of(trader, &matches, &first_words(settled.iter())))
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.mailbox.close().await;
    }

    pub(super) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    pub(super) fn checkpoints(&self, epoch: EpochId) -> Filter {
        let filter = Filter::new().author(self.key).kind(kind::CHECKPOINT);
        filter.identifier(epoch.to_string())
    }

    pub(super) fn of_market(&self, epoch: EpochId) -> Filter {
        let a = SingleLetterTag::lowercase(Alphabet::A);
        Filter::new().author(self.key).custom_tag(a, self.id_of(epoch).to_string())
    }

    /// What the relays have that matches; a limit is each relay's.
    pub(crate) async fn ask(&self, filter: Filter) -> Result<Vec<Event>, TradeError> {
        let _turn = self.asking.lock().await;
        let (events, answered) = self.mailbox.fetch(filter.clone(), PATIENCE).await?;
        if answered == 0 {
            return Err(TradeError::NoRelay);
        }
        // The mailbox tells each event once, so what it told is kept.
        let mut heard = self.heard();
        heard.extend(events.into_iter().map(|event| (event.id, event)));
        Ok(heard.values().filter(|event| asked_for(&filter, event)).cloned().collect())
    }

    /// As [`Exchange::ask`], without a relay's limit.
    pub(super) async fn ask_all(&self, filter: Filter) -> Result<Vec<Event>, TradeError> {
        self.ask_most(filter, PAGE * PAGES).await
    }

    /// As [`Exchange::ask`], the newest `most` at least, if there are so many.
    async fn ask_most(&self, filter: Filter, most: usize) -> Result<Vec<Event>, TradeError> {
        let mut until = Timestamp::from(u64::from(u32::MAX));
        for _ in 0..most.div_ceil(PAGE).clamp(1, PAGES) {
            let page = self.ask(filter.clone().until(until).limit(PAGE)).await?;
            let mut times: Vec<_> = page.iter().map(|event| event.created_at).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            // No relay has left out anything newer than this.
            let Some(&reached) = times.get(PAGE - 1) else { break };
            // A second with more than a page is left behind.
            until = if reached == until { reached - 1 } else { reached };
        }
        let heard = self.heard();
        Ok(heard.values().filter(|event| asked_for(&filter, event)).cloned().collect())
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<EventId, Event>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the relays have that matches, the newest of each address, and how many of
/// them told all.
async fn newest(mailbox: &Mailbox, filter: Filter) -> Result<(Vec<Event>, usize), TradeError> {
    let (events, answered) = mailbox.fetch(filter.clone(), PATIENCE).await?;
    let asked = events.into_iter().filter(|event| asked_for(&filter, event));
    Ok((newest_of_each(asked), answered))
}

impl Trade {
    pub(super) fn read(event: &Event) -> Option<Self> {
        Some(Self { id: event.id, terms: Match::decode(event).ok()? })
    }
}

/// A relay may send what nobody asked for.
pub(super) fn asked_for(filter: &Filter, event: &Event) -> bool {
    filter.match_event(event, MatchEventOptions::default())
}

/// Of addressable events the one that counts, by NIP-01: the newest, and of one
/// second that with the lowest id.
pub(super) fn newest_of_each(events: impl Iterator<Item = Event>) -> Vec<Event> {
    let mut newest: HashMap<_, Event> = HashMap::new();
    for event in events {
        let d = event.tags.identifier().unwrap_or_default().to_owned();
        let address = (event.kind.as_u16(), event.pubkey, d);
        let rank = |event: &Event| (event.created_at, std::cmp::Reverse(event.id));
        match newest.get(&address) {
            Some(known) if rank(known) >= rank(&event) => {}
            _ => drop(newest.insert(address, event)),
        }
    }
    newest.into_values().collect()
}

fn is_called(epoch: EpochId, name: &str) -> bool {
    let unit = epoch.to_string();
    let shortened = name.split_once('…').is_some_and(|(head, tail)| {
        head.starts_with("hash_02")
            && unit.starts_with(head)
            && unit.ends_with(tail)
            && tail.contains('_')
    });
    unit == name || shortened || epoch.height.to_string() == name
}

#[cfg(test)]
mod tests {
    use nostr_sdk::EventBuilder;

    use super::*;

    #[test]
    fn a_market_is_called_by_its_unit_its_short_unit_or_its_height() {
        let pool = Keys::generate().public_key();
        let epoch = EpochId { pool, height: 840_000 };
        let (unit, key) = (epoch.to_string(), pool.to_hex());
        let short = format!("hash_02{}…{}_840000", &key[..2], &key[60..]);
        for name in [unit.as_str(), short.as_str(), "840000"] {
            assert!(is_called(epoch, name), "{name}");
        }
        let other = format!("hash_02{}…{}_840001", &key[..2], &key[60..]);
        for name in ["", "…", "hash_02…", "84000", "0840000", other.as_str()] {
            assert!(!is_called(epoch, name), "{name}");
        }
    }

    #[test]
    fn of_an_address_the_newest_event_counts() {
        let keys = Keys::generate();
        let event = |d: &str, at: u64, content: &str| {
            EventBuilder::new(kind::MARKET, content)
                .tag(nostr_sdk::Tag::identifier(d))
                .custom_created_at(Timestamp::from(at))
                .sign_with_keys(&keys)
                .unwrap()
        };
        let events = [event("a", 2, "new"), event("a", 1, "old"), event("b", 1, "other")];
        let mut found: Vec<_> =
            newest_of_each(events.into_iter()).into_iter().map(|event| event.content).collect();
        found.sort();
        assert_eq!(found, ["new", "other"]);
    }
}
