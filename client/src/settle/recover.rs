//! Open trades of a machine that is gone: found again from the words and a relay.
//!
//! What a trade needs beside the words is what the other trader has told. Before
//! anything is locked that depends on it, a copy is sealed by the trader's own key
//! and wrapped to it ([`Trade::keep`](super::trade::Trade::keep)): our own keys, those
//! of the other trader, and, for a seller, the sats as they are locked; once the trade
//! is over, that it is. The secrets
//! derive ([`super::keys`]), and the mints know the rest: what was locked, claimed or
//! taken back.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use hashpit_mailbox::{Mailbox, MailboxError, Stored};
use hashpit_nips::eh05::Match;
use hashpit_nips::eh06::{Keys as Brought, Leg, LockedProof, Message};
use hashpit_nips::kind;
use nostr_sdk::{Event, EventId, Filter, Kind, PublicKey, RelayUrl};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::SettleError;
use super::post::{self, Incoming};
use super::record::{Record, Role};
use crate::wallet::{NAMESPACE, Wallet};

/// How long a relay may take for one page of what it has stored.
const PATIENCE: Duration = Duration::from_secs(10);
/// First pause before a relay is asked again that has not told.
const PAUSE: Duration = Duration::from_millis(250);
/// Ids in one question.
const AT_ONCE: usize = 100;
/// Exchanges whose relays were asked.
const TABLE: &str = "recovered";
/// Trades that another machine has ended.
const OVER: &str = "ended-elsewhere";

/// Finds on `relays` the trades that another machine with this wallet's words began,
/// and records those that this one has no record of; a
/// [`Settler`](super::Settler) finishes them, or takes back what was locked. How many
/// were found: some may be over by their mints, which the settler sees.
///
/// Errors where no relay could be read to its end.
pub async fn recover(wallet: &Wallet, relays: &[RelayUrl]) -> Result<usize, SettleError> {
    let mailbox = Mailbox::connect(wallet.trade_keys(), relays).await?;
    let found = recover_through(wallet, &mailbox, relays).await;
    mailbox.close().await;
    Ok(found?.count)
}

/// What was found.
pub(super) struct Found {
    /// Trades that there was no record of.
    pub(super) count: usize,
    /// Whether every relay has told all, and of every trade.
    pub(super) is_all: bool,
}

/// As [`recover`], in connections that stand, made under the trader's key.
pub(super) async fn recover_through(
    wallet: &Wallet,
    mailbox: &Mailbox,
    relays: &[RelayUrl],
) -> Result<Found, SettleError> {
    let me = wallet.trade_keys();
    let wraps = Filter::new().kind(Kind::GiftWrap).pubkey(me.public_key());
    let (mut told, wraps) = everywhere(mailbox, relays, wraps).await?;
    let mut messages: HashMap<EventId, Vec<Incoming>> = HashMap::new();
    for wrap in &wraps {
        if let Some(incoming) = post::open(&me, wrap).await {
            messages.entry(incoming.of).or_default().push(incoming);
        }
    }
    // Without keys of our own there is nothing of ours in it.
    let is_mine = |it: &&Incoming| it.from == me.public_key();
    let is_over = |it: &Incoming| matches!(it.message, Message::Abort { .. });
    for (of, _) in messages.iter().filter(|(_, all)| all.iter().filter(is_mine).any(is_over)) {
        // A match that is told once more is not begun again.
        wallet.note_over(*of).await?;
    }
    messages.retain(|_, all| {
        let mut mine = all.iter().filter(is_mine).peekable();
        mine.peek().is_some() && !mine.any(is_over)
    });
    let ids: Vec<EventId> = messages.keys().copied().collect();
    let mut count = 0;
    for ids in ids.chunks(AT_ONCE) {
        let matches = Filter::new().kind(kind::MATCH).ids(ids.iter().copied());
        let (answered, matches) = everywhere(mailbox, relays, matches).await?;
        told = told.min(answered);
        for event in matches {
            let Some(all) = messages.remove(&event.id) else { continue };
            let Some(record) = record(event, me.public_key(), &all) else { continue };
            if wallet.trade(record.id()).await?.is_none() {
                wallet.save_trade(&record).await?;
                count += 1;
            }
        }
    }
    for of in messages.keys() {
        warn!(trade = %of, "no relay has the match of a trade of ours");
    }
    Ok(Found { count, is_all: told == relays.len() && messages.is_empty() })
}

/// What the relays have that matches, each event once, and how many of them told all.
/// Errors if none did.
async fn everywhere(
    mailbox: &Mailbox,
    relays: &[RelayUrl],
    filter: Filter,
) -> Result<(usize, Vec<Event>), MailboxError> {
    mailbox.connected(PATIENCE).await;
    let (mut told, mut known, mut events, mut last) = (0, HashSet::new(), Vec::new(), None);
    for relay in relays {
        match all_of(mailbox, relay, &filter).await {
            Ok(stored) => {
                told += usize::from(!stored.is_cut);
                events.extend(stored.events.into_iter().filter(|event| known.insert(event.id)));
            }
            Err(error) => {
                warn!(%relay, %error, "not read to its end");
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if told == 0 && events.is_empty() => Err(error),
        _ => Ok((told, events)),
    }
}

/// All that a relay has that matches. The first questions may come before it has our
/// authentication, which it wants for wraps.
pub(super) async fn all_of(
    mailbox: &Mailbox,
    relay: &RelayUrl,
    filter: &Filter,
) -> Result<Stored, MailboxError> {
    let mut pause = PAUSE;
    loop {
        match mailbox.all_stored(relay, filter.clone(), PATIENCE).await {
            Err(error) if pause > PATIENCE => return Err(error),
            Err(error) => debug!(%relay, %error, "asking again"),
            told => return told,
        }
        sleep(pause).await;
        pause *= 2;
    }
}

/// The record of a trade, as far as what was told goes; `None` where nothing can have
/// been locked.
fn record(event: Event, me: PublicKey, all: &[Incoming]) -> Option<Record> {
    let terms = event.verify().ok().and_then(|()| Match::decode(&event).ok())?;
    let role = match (terms.seller().trader == me, terms.buyer().trader == me) {
        (true, false) => Role::Seller,
        (false, true) => Role::Buyer,
        _ => return None,
    };
    let mut record = Record::new(event, role);
    let counterparty = record.counterparty();
    // Only a buyer says how it pays.
    let is_ours = |keys: &&Brought| keys.pays.is_some() == (role == Role::Buyer);
    record.mine = keys(all, me).find(is_ours).cloned();
    let ours = keys(all, me).find(|keys| !is_ours(keys));
    record.theirs = ours.or_else(|| keys(all, counterparty).next()).cloned();
    let (Some(_), Some(theirs)) = (&record.mine, &record.theirs) else {
        debug!(trade = %record.id(), "nothing was agreed on");
        return None;
    };
    let leg = if role == Role::Buyer { Leg::Ehash } else { Leg::Sats };
    let from = theirs.key;
    record.got = locked(all, me, leg).or_else(|| locked(all, from, leg)).unwrap_or_default();
    record.invoice = all.iter().find_map(|it| match &it.message {
        Message::Invoice { bolt11 } if [me, from].contains(&it.from) => Some(bolt11.clone()),
        _ => None,
    });
    record.recovered = true;
    Some(record)
}

fn keys(all: &[Incoming], from: PublicKey) -> impl Iterator<Item = &Brought> {
    all.iter().filter(move |it| it.from == from).filter_map(|it| match &it.message {
        Message::Keys(keys) => Some(&**keys),
        _ => None,
    })
}

fn locked(all: &[Incoming], from: PublicKey, wanted: Leg) -> Option<Vec<LockedProof>> {
    all.iter().filter(|it| it.from == from).find_map(|it| match &it.message {
        Message::Locked { leg, proofs } if *leg == wanted => Some(proofs.clone()),
        _ => None,
    })
}

impl Wallet {
    /// Whether the relays of an exchange have been asked for trades of another machine.
    pub(super) async fn has_looked_for_trades(&self, at: PublicKey) -> Result<bool, SettleError> {
        Ok(self.store.kv_read(NAMESPACE, TABLE, &at.to_hex()).await?.is_some())
    }

    pub(super) async fn note_looked_for_trades(&self, at: PublicKey) -> Result<(), SettleError> {
        Ok(self.store.kv_write(NAMESPACE, TABLE, &at.to_hex(), &[1]).await?)
    }

    async fn note_over(&self, of: EventId) -> Result<(), SettleError> {
        Ok(self.store.kv_write(NAMESPACE, OVER, &of.to_hex(), &[1]).await?)
    }

    /// Whether another machine of ours has ended a trade.
    pub(super) async fn ended_elsewhere(&self, of: EventId) -> Result<bool, SettleError> {
        Ok(self.store.kv_read(NAMESPACE, OVER, &of.to_hex()).await?.is_some())
    }
}
