//! What our own offers bind us to: an exchange can sign any match, and so can
//! whoever holds its key.

use hashpit_nips::eh04::{Action, Command, Offer, Side, Terms};
use hashpit_nips::eh05::{Entry, Outcome, Subject};
use hashpit_nips::kind;
use nostr_sdk::{Event, EventId, Filter, Timestamp};

use super::SettleError;
use super::agree::Lack;
use super::record::Role;
use super::trade::Trade;
use crate::wallet::NAMESPACE;

/// Units of a market's lot, as they were first heard of.
const LOTS: &str = "market_lots";
/// Names of own offers that matches were accepted of, by the offer's id.
const OFFERS: &str = "matched_offers";
/// Entries of our own that are looked through for a cancellation.
const ENTRIES: usize = 200;

impl Trade {
    /// Whether the match is one that our offer agreed to.
    pub(super) async fn follows_from_our_offer(&self) -> Result<(), Lack> {
        let (own, side) = match self.role() {
            Role::Seller => (self.terms.seller(), Side::Sell),
            Role::Buyer => (self.terms.buyer(), Side::Buy),
        };
        if own.trader != self.shared.keys.public_key() {
            return Err(reason("another trader"));
        }
        let (event, seq) = self.own_offer(own.offer).await?;
        let offer = Offer::decode(&event).map_err(|error| reason(&error.to_string()))?;
        let terms = offer.terms.clone().ok_or_else(|| reason("it was canceled"))?;
        if offer.market != self.terms.market {
            return Err(reason("another market"));
        }
        self.keeps_to(&terms, side)?;
        self.is_of_the_markets_lots().await?;
        self.still_stands(&event, &offer, seq).await?;
        self.is_within(&event, &offer.d, terms.lots.get().into()).await
    }

    /// Our offer as the journal shows it, and its place there.
    async fn own_offer(&self, id: EventId) -> Result<(Event, u64), Lack> {
        let exchange = &self.shared.exchange;
        let entries = Filter::new().author(exchange.key()).kind(kind::ENTRY).event(id);
        let entries = exchange.ask(entries).await.map_err(|e| Lack::NotNow(e.to_string()))?;
        let shown = entries.iter().filter_map(|entry| Entry::decode(entry).ok());
        let mut ours = shown.filter_map(|entry| match entry.subject {
            Subject::Trader(event) if event.id == id => Some((*event, entry.seq)),
            _ => None,
        });
        let me = self.shared.keys.public_key();
        let ours = ours.find(|(event, _)| event.pubkey == me && event.verify().is_ok());
        ours.ok_or_else(|| Lack::NotNow("the journal does not show our offer".to_owned()))
    }

    fn keeps_to(&self, terms: &Terms, side: Side) -> Result<(), Lack> {
        let worse = terms.price.is_some_and(|limit| match side {
            Side::Sell => self.terms.price < limit,
            Side::Buy => self.terms.price > limit,
        });
        let matched = self.terms.at.get() / 1000;
        let (skew, expires) = (self.timing().skew, terms.expires.map(|at| at.as_secs()));
        if terms.side != side {
            Err(reason("another side"))
        } else if worse {
            Err(reason("a worse price"))
        } else if self.terms.lots > terms.max {
            Err(reason("more lots"))
        } else if !self.terms.pay.iter().all(|way| terms.pay.contains(way)) {
            Err(reason("another way of payment"))
        } else if expires.is_some_and(|expired| matched > expired.saturating_add(skew)) {
            Err(reason("it had expired"))
        } else if matched > self.now().saturating_add(skew) {
            Err(reason("it is dated in the future; check this machine's clock"))
        } else {
            Ok(())
        }
    }

    /// Lots are of so many units for ever: what the market said first counts.
    async fn is_of_the_markets_lots(&self) -> Result<(), Lack> {
        let lot = self.shared.lot(self.terms.market.epoch).await?;
        let units = u64::from(self.terms.lots.get()).checked_mul(lot);
        if units == Some(self.terms.units.get()) {
            return Ok(());
        }
        Err(reason("its units are not those of the market's lots"))
    }

    /// Whether the journal had taken nothing of ours before the match that ended the
    /// offer.
    async fn still_stands(&self, event: &Event, offer: &Offer, seq: u64) -> Result<(), Lack> {
        let (exchange, me) = (&self.shared.exchange, self.shared.keys.public_key());
        let since = event.created_at.min(Timestamp::from(self.terms.at.get() / 1000));
        let entries = Filter::new().author(exchange.key()).kind(kind::ENTRY).pubkey(me);
        let entries = entries.since(since - self.timing().skew).limit(ENTRIES);
        let entries = exchange.ask(entries).await.map_err(|e| Lack::NotNow(e.to_string()))?;
        let entries = entries.iter().filter_map(|entry| Entry::decode(entry).ok());
        let mut taken = entries.filter(|entry| {
            entry.outcome == Outcome::Accepted && entry.seq > seq && entry.seq < self.terms.seq
        });
        let ends = |entry: Entry| match entry.subject {
            Subject::Trader(own) if own.kind == kind::OFFER => {
                Offer::decode(&own).is_ok_and(|it| it.d == offer.d && it.market == offer.market)
            }
            Subject::Trader(own) => match Command::decode(&own).map(|command| command.action) {
                Ok(Action::CancelAll(epoch)) => epoch.is_none_or(|it| it == offer.market.epoch),
                _ => false,
            },
            _ => false,
        };
        if taken.any(ends) { Err(reason("we had replaced or canceled it")) } else { Ok(()) }
    }

    /// The sum of all matches of one offer is not more than it offers, whatever is
    /// matched one by one.
    async fn is_within(&self, event: &Event, d: &str, lots: u64) -> Result<(), Lack> {
        let store = &self.shared.wallet.store;
        let id = event.id.to_hex();
        let noted = store.kv_write(NAMESPACE, OFFERS, &id, d.as_bytes()).await;
        noted.map_err(SettleError::from)?;
        let mut sum = 0u64;
        for record in self.shared.wallet.trades().await? {
            let (terms, role) = (record.terms(), record.role);
            let own = if role == Role::Seller { terms.seller() } else { terms.buyer() };
            let name = store.kv_read(NAMESPACE, OFFERS, &own.offer.to_hex()).await;
            let same = name.map_err(SettleError::from)?.is_some_and(|it| it == d.as_bytes());
            if same && terms.market == self.terms.market {
                sum = sum.saturating_add(terms.lots.get().into());
            }
        }
        if sum <= lots { Ok(()) } else { Err(reason("with its other matches more lots")) }
    }
}

impl super::settler::Shared {
    /// Units of a lot in a market, as this wallet first heard.
    pub(super) async fn lot(&self, epoch: hashpit_nips::EpochId) -> Result<u64, Lack> {
        let store = &self.wallet.store;
        let key = self.exchange.key().to_hex();
        let key = format!("{}-{}", &key[..32], super::keys::short(&epoch.to_string()));
        let known = store.kv_read(NAMESPACE, LOTS, &key).await.map_err(SettleError::from)?;
        let known = known.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        if let Some(lot) = known {
            return Ok(lot);
        }
        let told = self.exchange.lot(epoch).await.map_err(|e| Lack::NotNow(e.to_string()))?;
        let lot = told.ok_or_else(|| Lack::NotNow("no relay knows the market".to_owned()))?;
        let bytes = lot.get().to_be_bytes();
        store.kv_write(NAMESPACE, LOTS, &key, &bytes).await.map_err(SettleError::from)?;
        Ok(lot.get())
    }
}

fn reason(why: &str) -> Lack {
    Lack::Reason(format!("the match is not what we offered: {why}"))
}
