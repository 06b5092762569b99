//! Reads a backup from relays, whoever wrote it, and touches no wallet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cdk::mint_url::MintUrl;
use cdk::nuts::{CurrencyUnit, Proof};
use hashpit_nips::eh03::{HistoryContent, TokenContent, WalletContent, deleted_by};
use hashpit_nips::kind;
use nostr_sdk::{Event, EventId, Filter, Kind, NostrSigner, RelayUrl, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::book::{Body, Token};
use super::relay::Relay;
use super::sync::{Reasons, record};
use super::{Author, Backup, BackupError};

/// What a backup consists of.
const KINDS: [Kind; 4] = [kind::WALLET, kind::TOKEN, kind::HISTORY, Kind::EventDeletion];
/// Longest that one relay may take to give everything.
const READ: Duration = Duration::from_secs(120);
/// Longest to wait for wallet events alone.
const WALLETS: Duration = Duration::from_secs(10);
/// Events that wait to be opened; relays wait when it is full.
const QUEUE: usize = 256;

/// What a backup held.
#[derive(Clone, Default)]
pub struct Found {
    /// The ehash wallet: pools, epochs, counters (the lowest of all relays).
    pub ehash: WalletContent,
    /// The identity's wallet of sats.
    pub identity: WalletContent,
    /// Proofs by mint and unit, each once. Some may be spent: ask the mint.
    pub tokens: BTreeMap<(MintUrl, CurrencyUnit), Vec<Proof>>,
    /// Changes of balances, oldest first.
    pub history: Vec<(Timestamp, HistoryContent)>,
    /// The token events that the proofs stood in.
    pub events: Vec<FoundToken>,
    /// Token events that others replaced or deleted, and some relay still has.
    pub stale: Vec<FoundToken>,
    /// Events that do not decrypt or parse, and why.
    pub unreadable: BTreeMap<EventId, String>,
    /// Relays that could not be read to the end, and why.
    pub unread: BTreeMap<RelayUrl, String>,
}

/// Proofs are money: only their number is shown.
impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proofs: usize = self.tokens.values().map(Vec::len).sum();
        f.debug_struct("Found")
            .field("ehash", &self.ehash)
            .field("identity", &self.identity)
            .field("tokens", &format_args!("<{proofs} redacted>"))
            .field("events", &self.events.len())
            .field("stale", &self.stale.len())
            .field("unreadable", &self.unreadable)
            .field("unread", &self.unread)
            .finish_non_exhaustive()
    }
}

/// A token event and where it was seen.
#[derive(Debug, Clone)]
pub struct FoundToken {
    /// The event.
    pub event: Event,
    /// Whose it is.
    pub author: Author,
    /// What it holds.
    pub content: TokenContent,
    /// Relays that gave it.
    pub seen: BTreeSet<RelayUrl>,
}

/// How far reading is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchProgress {
    /// Events read, each once.
    pub events: usize,
    /// Relays read to the end, or given up.
    pub relays_done: usize,
}

/// What was read before anything is concluded from it.
#[derive(Default)]
struct Reading {
    tokens: BTreeMap<EventId, FoundToken>,
    wallets: BTreeMap<EventId, (Author, WalletContent)>,
    history: BTreeMap<EventId, (Timestamp, HistoryContent)>,
    deleted: BTreeSet<(Author, EventId)>,
    unreadable: BTreeMap<EventId, String>,
}

/// Reads everything that `ehash` and `identity` backed up from all `relays`.
///
/// Errors only if no relay could be read to the end.
pub async fn fetch(
    ehash: Arc<dyn NostrSigner>,
    identity: Arc<dyn NostrSigner>,
    relays: &[RelayUrl],
    progress: watch::Sender<FetchProgress>,
) -> Result<Found, BackupError> {
    let (sender, mut events) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    for url in relays {
        for (author, signer) in [(Author::Ehash, &ehash), (Author::Identity, &identity)] {
            let relay = Relay::new(url.clone(), signer.clone());
            tasks.spawn(read(relay, author, sender.clone()));
        }
    }
    drop(sender);
    let (mut reading, mut unread, mut open) = (Reading::default(), Reasons::new(), tasks.len());
    while let Some(message) = events.recv().await {
        match message {
            Message::Event { relay, author, event } => {
                let signer = if author == Author::Ehash { &ehash } else { &identity };
                reading.take(relay, author, signer, *event).await;
            }
            Message::Done { relay, result } => {
                open -= 1;
                if let Err(why) = result {
                    unread.insert(relay, why);
                }
            }
        }
        progress.send_modify(|now| {
            now.events = reading.count();
            now.relays_done = relays.len() - open.div_ceil(Author::ALL.len());
        });
    }
    if unread.len() == relays.len() {
        return Err(BackupError::Unread(unread));
    }
    Ok(reading.conclude(unread))
}

enum Message {
    Event { relay: RelayUrl, author: Author, event: Box<Event> },
    Done { relay: RelayUrl, result: Result<(), String> },
}

async fn read(mut relay: Relay, author: Author, sender: mpsc::Sender<Message>) {
    let url = relay.url.clone();
    let result = timeout(READ, async {
        let key = relay.key().await?;
        let (pages, mut page) = mpsc::unbounded_channel();
        let reading = relay.all(key, &KINDS, move |event| drop(pages.send(event)));
        let forward = async {
            while let Some(event) = page.recv().await {
                let (relay, event) = (url.clone(), Box::new(event));
                // The reader is gone: nobody wants the rest.
                let _ = sender.send(Message::Event { relay, author, event }).await;
            }
        };
        tokio::join!(reading, forward).0.map_err(|error| error.to_string())
    });
    let result = result.await.unwrap_or_else(|_| Err(format!("not done in {READ:?}")));
    let result = result.map(drop);
    let _ = sender.send(Message::Done { relay: url.clone(), result }).await;
}

impl Reading {
    fn count(&self) -> usize {
        self.tokens.len() + self.wallets.len() + self.history.len() + self.unreadable.len()
    }

    async fn take(
        &mut self,
        relay: RelayUrl,
        author: Author,
        signer: &Arc<dyn NostrSigner>,
        event: Event,
    ) {
        let id = event.id;
        if let Some(token) = self.tokens.get_mut(&id) {
            token.seen.insert(relay);
            return;
        }
        if event.kind == Kind::EventDeletion {
            self.deleted.extend(deleted_by(&event).map(|id| (author, id)));
            return;
        }
        let known = self.wallets.contains_key(&id) || self.history.contains_key(&id);
        if known || self.unreadable.contains_key(&id) {
            return;
        }
        if let Err(why) = self.open(relay, author, signer, event).await {
            self.unreadable.insert(id, why);
        }
    }

    async fn open(
        &mut self,
        relay: RelayUrl,
        author: Author,
        signer: &Arc<dyn NostrSigner>,
        event: Event,
    ) -> Result<(), String> {
        let plain = signer.nip44_decrypt(&event.pubkey, &event.content).await;
        let plain = plain.map_err(|error| error.to_string())?;
        if event.kind == kind::TOKEN {
            let content = TokenContent::decode(&plain).map_err(|error| error.to_string())?;
            let seen = BTreeSet::from([relay]);
            self.tokens.insert(event.id, FoundToken { event, author, content, seen });
        } else if event.kind == kind::WALLET {
            let content = WalletContent::decode(&plain).map_err(|error| error.to_string())?;
            self.wallets.insert(event.id, (author, content));
        } else {
            let content = HistoryContent::decode(&plain).map_err(|error| error.to_string())?;
            self.history.insert(event.id, (event.created_at, content));
        }
        Ok(())
    }

    fn conclude(self, unread: Reasons) -> Found {
        let mut gone = self.deleted;
        for token in self.tokens.values() {
            gone.extend(token.content.del.iter().map(|id| (token.author, *id)));
        }
        let mut found = Found { unread, unreadable: self.unreadable, ..Found::default() };
        let mut known = BTreeSet::new();
        for (id, token) in self.tokens {
            if gone.contains(&(token.author, id)) {
                found.stale.push(token);
                continue;
            }
            let purse = (token.content.mint.clone(), token.content.unit.clone());
            let proofs = found.tokens.entry(purse).or_default();
            let new =
                token.content.proofs.iter().filter(|proof| known.insert(proof.secret.clone()));
            proofs.extend(new.cloned());
            found.events.push(token);
        }
        for (author, content) in self.wallets.into_values() {
            match author {
                Author::Ehash => found.ehash.merge(content),
                Author::Identity => found.identity.merge(content),
            }
        }
        found.history = self.history.into_values().collect();
        found.history.sort_by_key(|(at, _)| *at);
        found
    }
}

/// The newest wallet event of the signer on some relays, and how many relays
/// answered. One that does not decrypt counts as no answer.
pub(super) async fn newest_wallet(
    signer: &Arc<dyn NostrSigner>,
    relays: &[RelayUrl],
) -> (Option<(Timestamp, WalletContent)>, usize) {
    let mut tasks = JoinSet::new();
    for relay in relays {
        let (mut relay, signer) = (Relay::new(relay.clone(), signer.clone()), signer.clone());
        tasks.spawn(timeout(WALLETS, async move {
            let key = relay.key().await?;
            let filter = Filter::new().author(key).kind(kind::WALLET).limit(1);
            let events = relay.read(&filter).await.map_err(|error| error.to_string())?;
            let newest = events.into_iter().max_by_key(|event| event.created_at);
            let Some(newest) = newest.filter(|event| event.pubkey == key) else { return Ok(None) };
            let plain = signer.nip44_decrypt(&key, &newest.content).await;
            let plain = plain.map_err(|error| error.to_string())?;
            let content = WalletContent::decode(&plain).map_err(|error| error.to_string())?;
            Ok::<_, String>(Some((newest.created_at, content)))
        }));
    }
    let (mut newest, mut answered) = (None, 0);
    while let Some(ended) = tasks.join_next().await {
        let Ok(Ok(Ok(content))) = ended else { continue };
        answered += 1;
        let later = |(at, _): &(Timestamp, WalletContent)| {
            newest.as_ref().is_none_or(|(last, _)| at > last)
        };
        if let Some(content) = content.filter(later) {
            newest = Some(content);
        }
    }
    (newest, answered)
}

impl Backup {
    /// Takes what [`fetch`](fn@fetch) found as written by this wallet, so that
    /// the next sync writes only what is new, and deletes what is stale. Call it
    /// once the proofs are in the wallet.
    pub async fn adopt(&self, found: &Found) -> Result<(), BackupError> {
        let _lock = self.wallet.lock().await?;
        let mut book = self.wallet.backup_book().await?;
        let live = found.events.iter().map(|token| (token, false));
        let stale = found.stale.iter().map(|token| (token, true));
        for (token, retired) in live.chain(stale) {
            if book.get(&token.event.id).is_some() {
                continue;
            }
            let mut coins = BTreeSet::new();
            for proof in &token.content.proofs {
                coins.insert(
                    proof
                        .y()
                        .map_err(cdk::Error::from)
                        .map_err(crate::wallet::WalletError::from)?
                        .to_hex(),
                );
            }
            let gone = self.settings.relays.iter().filter(|relay| !token.seen.contains(*relay));
            let body = Body::Token(Token {
                mint: token.content.mint.clone(),
                unit: token.content.unit.clone(),
                coins,
                amount: token.content.amount().unwrap_or(u64::MAX),
                replaces: Vec::new(),
                retired,
                deleted: if retired { gone.cloned().collect() } else { BTreeSet::new() },
            });
            let mut record = record(&token.event, token.author, body);
            record.confirmed = token.seen.clone();
            self.wallet.save_event(&token.event).await?;
            book.add(record);
        }
        self.wallet.save_book(&mut book).await?;
        Ok(())
    }
}
