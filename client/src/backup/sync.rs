//! Makes the relays hold what the wallet holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cdk::mint_url::MintUrl;
use cdk::nuts::CurrencyUnit;
use hashpit_nips::eh03::{
    Direction, HistoryContent, Marker, TokenContent, WalletContent, deletion,
};
use hashpit_nips::kind;
use nostr_sdk::{Event, EventBuilder, EventId, Kind, NostrSigner, RelayUrl, Timestamp};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::book::{Body, Book, Record, Token};
use super::fetch::newest_wallet;
use super::plan::{Plan, plan};
use super::records::Live;
use super::relay::{Relay, WINDOW};
use super::{Author, Backup, BackupError, state};

/// How long nothing may happen before what is missing counts as refused.
const STALL: Duration = Duration::from_secs(20);
/// How long slower relays are waited for once a quorum has everything.
const GRACE: Duration = Duration::from_secs(3);
/// How long a relay may take to delete.
const DELETE: Duration = Duration::from_secs(15);
/// Events signed with the same second: relays that give few at once can then be
/// read to the end (`until` has the grain of a second).
const PER_SECOND: u64 = 8;
/// Events named in one deletion, and in one entry of the history.
const MAX_NAMED: usize = 100;
/// How often to plan anew when another process was faster.
const ATTEMPTS: usize = 5;
/// Reports that wait to be read; a relay that has more to say waits.
const REPORTS: usize = 64;

/// What a sync did, and which relays still lack something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Synced {
    /// Token events that a quorum holds: all that are live.
    pub tokens: usize,
    /// Token events written by this sync.
    pub written: usize,
    /// Token events deleted by this sync, on some relay.
    pub deleted: usize,
    /// Relays that lack something, and why. They get it at another sync.
    pub lagging: BTreeMap<RelayUrl, String>,
}

/// What planning left for later.
struct Prepared {
    written: usize,
    state: WalletContent,
    sat_mints: Vec<MintUrl>,
}

/// What is wrong at which relay.
pub(super) type Reasons = BTreeMap<RelayUrl, String>;

impl Backup {
    /// Makes the relays hold exactly the wallet's unspent proofs, and those that
    /// may come back. On success a quorum has all of them, read back.
    pub async fn sync(&self) -> Result<Synced, BackupError> {
        let prepared = self.prepare().await?;
        let mut reasons = self.deliver().await?;
        let book = self.wallet.backup_book().await?;
        if !book.has_quorum(&self.settings) {
            self.note_troubles(&reasons).await?;
            return Err(BackupError::NoQuorum {
                have: book.complete(&self.settings),
                need: self.settings.needed(),
                relays: reasons,
            });
        }
        let written = prepared.written;
        if self.renew_wallets(prepared, &mut reasons).await? {
            reasons.extend(self.deliver().await?);
        }
        let deleted = self.delete(&mut reasons).await?;
        self.update(|book| book.sweep(&self.settings)).await?;
        self.note_troubles(&reasons).await?;
        Ok(Synced { tokens: book.held().len(), written, deleted, lagging: reasons })
    }

    /// Plans, signs, and stores what is to be sent. The lock is released while
    /// the signer works; whoever was faster makes us plan anew.
    async fn prepare(&self) -> Result<Prepared, BackupError> {
        for _ in 0..ATTEMPTS {
            let (book, live, mut state) = {
                let _lock = self.wallet.lock().await?;
                let book = self.wallet.backup_book().await?;
                (book, self.wallet.live_proofs().await?, self.wallet.gather_state().await?)
            };
            state.held = live.held();
            let sats = live.coins.values().map(|coin| &coin.purse);
            let sats = sats.filter(|(_, unit)| *unit == CurrencyUnit::Sat);
            let sat_mints: BTreeSet<_> = sats.map(|(mint, _)| mint.clone()).collect();
            let plan = plan(&live.coins, &book.held());
            let signed = self.sign_plan(&plan, &book, &live).await?;
            let _lock = self.wallet.lock().await?;
            let mut now = self.wallet.backup_book().await?;
            if now.ids() != book.ids() {
                continue;
            }
            for (event, record) in signed {
                self.wallet.save_event(&event).await?;
                now.add(record);
            }
            now.retire(&plan.retired);
            self.wallet.save_book(&mut now).await?;
            self.wallet.drop_orphans(&now.ids()).await?;
            let (written, sat_mints) = (plan.drafts.len(), sat_mints.into_iter().collect());
            return Ok(Prepared { written, state, sat_mints });
        }
        Err(BackupError::Unsteady)
    }

    async fn sign_plan(
        &self,
        plan: &Plan,
        book: &Book,
        live: &Live,
    ) -> Result<Vec<(Event, Record)>, BackupError> {
        let mut signed = Vec::new();
        let now = Timestamp::now();
        for (draft, left) in plan.drafts.iter().zip((0..plan.drafts.len() as u64).rev()) {
            let (mint, unit) = draft.purse.clone();
            let proofs = draft.coins.iter().filter_map(|y| live.proofs.get(y).cloned());
            let (proofs, del) = (proofs.collect(), draft.replaces.clone());
            let content = TokenContent { mint, unit, proofs, del };
            let author = Author::of(&content.unit);
            let at = now - left / PER_SECOND;
            let event = self.seal(author, kind::TOKEN, &content.encode(), at).await?;
            let body = Body::Token(Token {
                amount: content.amount().unwrap_or(u64::MAX),
                mint: content.mint,
                unit: content.unit,
                coins: draft.coins.clone(),
                replaces: draft.replaces.clone(),
                retired: false,
                deleted: BTreeSet::new(),
            });
            signed.push((event.clone(), record(&event, author, body)));
        }
        for (unit, content) in changes(plan, book, &signed) {
            let author = Author::of(&unit);
            let event = self.seal(author, kind::HISTORY, &content.encode(), now).await?;
            signed.push((event.clone(), record(&event, author, Body::History {})));
        }
        Ok(signed)
    }

    async fn seal(
        &self,
        author: Author,
        kind: Kind,
        plaintext: &str,
        at: Timestamp,
    ) -> Result<Event, BackupError> {
        let signer = self.signers.of(author);
        let failed = |reason: String| BackupError::Signer { author, reason };
        let key = signer.get_public_key().await.map_err(|error| failed(error.to_string()))?;
        let sealed = signer.nip44_encrypt(&key, plaintext).await;
        let sealed = sealed.map_err(|error| failed(error.to_string()))?;
        let event = EventBuilder::new(kind, sealed).custom_created_at(at).sign(&signer).await;
        event.map_err(|error| failed(error.to_string()))
    }

    /// Sends each relay what it lacks. Returns once all have it, or a quorum has
    /// and the others had their grace, or nothing moves any more.
    async fn deliver(&self) -> Result<Reasons, BackupError> {
        let mut book = self.wallet.backup_book().await?;
        let (report, mut reports) = mpsc::channel(REPORTS);
        let mut tasks = JoinSet::new();
        let mut reasons = Reasons::new();
        for relay in &self.settings.relays {
            let wanting: Vec<_> = book.wanting(relay).into_iter().cloned().collect();
            if !wanting.is_empty() {
                reasons.insert(relay.clone(), "it did not take everything in time".to_owned());
                tasks.spawn(self.clone().deliver_to(relay.clone(), wanting, report.clone()));
            }
        }
        drop(report);
        let mut confirmed = Vec::new();
        let mut deadline = Instant::now() + STALL;
        let mut has_quorum = book.has_quorum(&self.settings);
        while let Ok(Some(Report { relay, held, done })) =
            timeout_at(deadline, reports.recv()).await
        {
            for id in held {
                book.confirm(&relay, &id);
                confirmed.push((relay.clone(), id));
            }
            match done {
                Some(Ok(())) => drop(reasons.remove(&relay)),
                Some(Err(why)) => drop(reasons.insert(relay, why)),
                None => {}
            }
            // From then on, the deadline stands.
            if !has_quorum {
                has_quorum = book.has_quorum(&self.settings);
                deadline = Instant::now() + if has_quorum { GRACE } else { STALL };
            }
        }
        tasks.shutdown().await;
        self.update(|book| confirmed.iter().for_each(|(relay, id)| book.confirm(relay, id)))
            .await?;
        Ok(reasons)
    }

    async fn deliver_to(self, url: RelayUrl, wanting: Vec<Record>, report: mpsc::Sender<Report>) {
        let mut trouble = None;
        let mut links = Author::ALL.map(|author| Relay::new(url.clone(), self.signers.of(author)));
        // Tokens first; what relies on them is not sent without them.
        let (tokens, others): (Vec<_>, Vec<_>) =
            wanting.iter().partition(|record| matches!(record.body, Body::Token(_)));
        'all: for group in [tokens, others] {
            for (author, link) in Author::ALL.into_iter().zip(&mut links) {
                let ids = group.iter().filter(|record| record.author == author);
                let ids: Vec<_> = ids.map(|record| record.id).collect();
                for window in ids.chunks(WINDOW) {
                    let Ok(events) = self.saved_events(window).await else { break 'all };
                    let (held, why) = link.deliver(&events).await;
                    let given_up = held.is_empty() && why.is_some();
                    trouble = trouble.or(why);
                    let (relay, done) = (url.clone(), None);
                    // Nobody listens any more when it took too long.
                    let _ = report.send(Report { relay, held, done }).await;
                    if given_up {
                        break 'all;
                    }
                }
            }
            if trouble.is_some() {
                break;
            }
        }
        let done = trouble.map_or(Ok(()), |why| Err(why.to_string()));
        let _ = report.send(Report { relay: url, held: BTreeSet::new(), done: Some(done) }).await;
    }

    async fn saved_events(&self, ids: &[EventId]) -> Result<Vec<Event>, BackupError> {
        let mut events = Vec::new();
        for id in ids {
            events.push(self.wallet.saved_event(id).await?);
        }
        Ok(events)
    }

    /// Writes the wallet events anew where there is something new to say. What
    /// the relays have of other wallets is kept, so they are read first.
    async fn renew_wallets(
        &self,
        prepared: Prepared,
        reasons: &mut Reasons,
    ) -> Result<bool, BackupError> {
        let Prepared { state, sat_mints, .. } = prepared;
        let mut renewed = false;
        for (author, ours) in state::contents(&self.wallet, state, sat_mints, &self.settings) {
            let plaintext = ours.encode();
            let book = self.wallet.backup_book().await?;
            let before = book.wallet(author);
            if before.is_some_and(|(_, before)| before == plaintext) {
                continue;
            }
            let before = before.map(|(record, _)| (record.id, record.created_at));
            let last = before.map(|(_, at)| at).unwrap_or_default();
            let signer = self.signers.of(author);
            let (theirs, answered) = newest_wallet(&signer, &self.settings.relays).await;
            if answered < self.settings.needed() {
                let missing =
                    self.settings.relays.iter().filter(|relay| !reasons.contains_key(*relay));
                let missing: Vec<_> = missing.cloned().collect();
                let why = "the wallet event waits until it can be read by a quorum".to_owned();
                reasons.extend(missing.into_iter().map(|relay| (relay, why.clone())));
                continue;
            }
            let at = theirs.as_ref().map(|(at, _)| *at).unwrap_or_default();
            let at = Timestamp::now().max(at + 1).max(last + 1);
            let theirs = theirs.map(|(_, content)| content).unwrap_or_default();
            let content = state::united(author, ours, theirs).encode();
            let event = self.seal(author, kind::WALLET, &content, at).await?;
            let record = record(&event, author, Body::Wallet { plaintext });
            let _lock = self.wallet.lock().await?;
            let mut book = self.wallet.backup_book().await?;
            if book.wallet(author).map(|(record, _)| record.id) != before.map(|(id, _)| id) {
                // Another process was faster; of two, relays would keep either.
                continue;
            }
            self.wallet.save_event(&event).await?;
            book.add(record);
            book.sweep(&self.settings);
            self.wallet.save_book(&mut book).await?;
            renewed = true;
        }
        Ok(renewed)
    }

    /// Deletes what was replaced, on the relays that have everything live. Only
    /// called when a quorum has it.
    async fn delete(&self, reasons: &mut Reasons) -> Result<usize, BackupError> {
        let book = self.wallet.backup_book().await?;
        let whole = |relay: &&RelayUrl| {
            book.wanting(relay).iter().all(|record| !matches!(record.body, Body::Token(_)))
        };
        let mut jobs: BTreeMap<(Author, Vec<EventId>), Vec<RelayUrl>> = BTreeMap::new();
        for relay in self.settings.relays.iter().filter(whole) {
            for author in Author::ALL {
                let doomed = book.doomed(relay);
                let doomed = doomed.into_iter().filter(|record| record.author == author);
                let doomed: Vec<_> = doomed.map(|record| record.id).collect();
                for ids in doomed.chunks(MAX_NAMED) {
                    jobs.entry((author, ids.to_vec())).or_default().push(relay.clone());
                }
            }
        }
        let mut deleted = BTreeSet::new();
        for ((author, ids), relays) in jobs {
            let gone = self.delete_on(author, &ids, &relays, reasons).await?;
            deleted.extend(gone.iter().map(|(_, id)| *id));
            self.update(|book| gone.iter().for_each(|(relay, id)| book.deleted(relay, id))).await?;
        }
        Ok(deleted.len())
    }

    /// Publishes one deletion on some relays. It is done where the relay gives
    /// the deletion back, or no longer the event.
    pub(super) async fn delete_on(
        &self,
        author: Author,
        ids: &[EventId],
        relays: &[RelayUrl],
        reasons: &mut Reasons,
    ) -> Result<Vec<(RelayUrl, EventId)>, BackupError> {
        let signer = self.signers.of(author);
        let event = deletion(ids.iter().copied()).sign(&signer).await;
        let event =
            event.map_err(|error| BackupError::Signer { author, reason: error.to_string() })?;
        let event = Arc::new(event);
        let mut tasks = JoinSet::new();
        for relay in relays {
            let (relay, signer, event) = (relay.clone(), signer.clone(), Arc::clone(&event));
            let ids = ids.to_vec();
            tasks.spawn(async move {
                let gone = timeout(DELETE, delete_at(&relay, signer, &event, &ids)).await;
                (relay, gone.unwrap_or_else(|_| Err("deleting took too long".to_owned())))
            });
        }
        let mut gone = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok((relay, Ok(ids))) => gone.extend(ids.into_iter().map(|id| (relay.clone(), id))),
                Ok((relay, Err(why))) => drop(reasons.insert(relay, why)),
                Err(error) => tracing::error!(%error, "a deletion ended early"),
            }
        }
        Ok(gone)
    }
}

/// What a relay's task has to say.
struct Report {
    relay: RelayUrl,
    held: BTreeSet<EventId>,
    /// Whether it has everything, or why not; said last.
    done: Option<Result<(), String>>,
}

async fn delete_at(
    relay: &RelayUrl,
    signer: Arc<dyn NostrSigner>,
    deletion: &Event,
    ids: &[EventId],
) -> Result<Vec<EventId>, String> {
    let mut relay = Relay::new(relay.clone(), signer);
    let said = relay.publish(std::slice::from_ref(deletion)).await;
    let said = said.map_err(|error| error.to_string())?;
    if let Some(Err(why)) = said.get(&deletion.id) {
        return Err(format!("it refused a deletion: {why}"));
    }
    let asked: Vec<_> = std::iter::once(deletion.id).chain(ids.iter().copied()).collect();
    let held = relay.held(&asked).await.map_err(|error| error.to_string())?;
    let gone = |id: &&EventId| held.contains(&deletion.id) || !held.contains(*id);
    let gone: Vec<_> = ids.iter().filter(gone).copied().collect();
    if gone.is_empty() {
        return Err("it says OK to a deletion and does not delete".to_owned());
    }
    Ok(gone)
}

pub(super) fn record(event: &Event, author: Author, body: Body) -> Record {
    Record {
        version: Record::VERSION,
        id: event.id,
        author,
        created_at: event.created_at,
        confirmed: BTreeSet::new(),
        body,
    }
}

/// What the plan changes about the balance of each unit.
fn changes(
    plan: &Plan,
    book: &Book,
    signed: &[(Event, Record)],
) -> Vec<(CurrencyUnit, HistoryContent)> {
    #[derive(Default)]
    struct Change {
        sum: i128,
        events: Vec<(EventId, Marker)>,
    }
    let mut changes: BTreeMap<CurrencyUnit, Change> = BTreeMap::new();
    let mut note = |record: &Record, sign: i128, marker| {
        let Body::Token(token) = &record.body else { return };
        let change = changes.entry(token.unit.clone()).or_default();
        change.sum += sign * i128::from(token.amount);
        change.events.push((record.id, marker));
    };
    for (_, record) in signed {
        note(record, 1, Marker::Created);
    }
    let replaced = plan.drafts.iter().flat_map(|draft| &draft.replaces);
    for record in replaced.chain(&plan.retired).filter_map(|id| book.get(id)) {
        note(record, -1, Marker::Destroyed);
    }
    let changed = changes.into_iter().filter(|(_, change)| change.sum != 0);
    changed
        .map(|(unit, Change { sum, mut events })| {
            events.truncate(MAX_NAMED);
            let direction = if sum > 0 { Direction::In } else { Direction::Out };
            let amount = u64::try_from(sum.unsigned_abs()).unwrap_or(u64::MAX);
            let other = Vec::new();
            (unit.clone(), HistoryContent { direction, amount, unit, events, other })
        })
        .collect()
}
