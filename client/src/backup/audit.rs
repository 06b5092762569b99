//! What is where: as the records say, as the relays say, and how to mend the
//! difference.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hashpit_nips::eh03::deleted_by;
use hashpit_nips::kind;
use nostr_sdk::{EventId, Kind, RelayUrl};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::book::{Body, Book};
use super::relay::Relay;
use super::{Author, Backup, BackupError, Synced};

/// Longest that one relay may take to be read to the end.
const READ: Duration = Duration::from_secs(120);
/// What is read.
const KINDS: [Kind; 3] = [kind::TOKEN, kind::WALLET, Kind::EventDeletion];

/// What the records say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// True if a quorum held every token when it was last asked, and no proof of
    /// the wallet is missing in them.
    pub protected: bool,
    /// How many relays must hold every token.
    pub quorum: usize,
    /// Proofs of the wallet that are in no token event yet.
    pub unwritten: usize,
    /// One entry for each relay.
    pub relays: Vec<RelayStatus>,
}

/// What the records say of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RelayStatus {
    /// The relay.
    pub relay: RelayUrl,
    /// Events that it should hold.
    pub expected: usize,
    /// How many of them it has given back.
    pub confirmed: usize,
    /// Events that it should delete and has not.
    pub undeleted: usize,
    /// What last went wrong, if it has not gone well since.
    pub trouble: Option<String>,
    /// When that was, in seconds since 1970.
    pub trouble_at: Option<u64>,
}

/// What the relays say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// One entry for each relay.
    pub relays: Vec<Finding>,
}

/// What a relay was found to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The relay's URL.
    pub relay: String,
    /// Events that it should hold and gave back whole.
    pub present: usize,
    /// Events that it should hold and did not give.
    pub missing: Vec<EventId>,
    /// Token events that it still gives though they were deleted.
    pub stale: Vec<EventId>,
    /// Events that it gave with a wrong id or signature.
    pub damaged: usize,
    /// Token events by our keys that this wallet has no record of: another
    /// machine's, or another wallet's. `wallet restore` takes them up.
    pub unknown: Vec<EventId>,
    /// Why it could not be read to the end.
    pub error: Option<String>,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// What was found at first.
    pub before: Verified,
    /// What was sent.
    pub synced: Synced,
    /// What was found afterwards.
    pub after: Verified,
}

impl Verified {
    /// True if every relay has what it should and nothing else of this wallet's.
    pub fn is_clean(&self) -> bool {
        self.relays.iter().all(Finding::is_clean)
    }
}

impl Finding {
    /// True if nothing is to be repaired here.
    pub fn is_clean(&self) -> bool {
        self.error.is_none()
            && self.missing.is_empty()
            && self.stale.is_empty()
            && self.damaged == 0
    }
}

/// What a relay gave.
#[derive(Default)]
struct Sight {
    present: BTreeSet<EventId>,
    tokens: BTreeMap<EventId, Author>,
    deleted: BTreeSet<(Author, EventId)>,
    damaged: usize,
    error: Option<String>,
}

impl Backup {
    /// What the records say; asks no relay.
    pub async fn status(&self) -> Result<Status, BackupError> {
        let _lock = self.wallet.lock().await?;
        let book = self.wallet.backup_book().await?;
        let live = self.wallet.live_proofs().await?;
        let held = book.held();
        let written: BTreeSet<_> = held.iter().flat_map(|event| event.coins).collect();
        let unwritten = live.coins.keys().filter(|y| !written.contains(y)).count();
        let mut troubles = self.wallet.backup_troubles().await?.relays;
        let relays = self.settings.relays.iter().map(|relay| {
            let expected = expected(&book).count();
            let trouble = troubles.remove(relay);
            RelayStatus {
                relay: relay.clone(),
                expected,
                confirmed: expected - book.wanting(relay).len(),
                undeleted: book.doomed(relay).len(),
                trouble_at: trouble.as_ref().map(|trouble| trouble.at.as_secs()),
                trouble: trouble.map(|trouble| trouble.reason),
            }
        });
        Ok(Status {
            protected: unwritten == 0 && book.has_quorum(&self.settings),
            quorum: self.settings.needed(),
            unwritten,
            relays: relays.collect(),
        })
    }

    /// Reads everything back from every relay and compares. The records follow
    /// what was found, so that the next sync sends what is missing.
    pub async fn verify(&self) -> Result<Verified, BackupError> {
        let book = self.wallet.backup_book().await?;
        let mut tasks = JoinSet::new();
        for relay in &self.settings.relays {
            tasks.spawn(self.clone().look(relay.clone(), expected(&book).collect()));
        }
        let mut sights = BTreeMap::new();
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok((relay, sight)) => drop(sights.insert(relay, sight)),
                Err(error) => tracing::error!(%error, "a verification ended early"),
            }
        }
        let deleted: BTreeSet<_> =
            sights.values().flat_map(|sight| sight.deleted.iter().copied()).collect();
        let mut relays = Vec::new();
        for (relay, sight) in sights {
            let finding = compare(&relay, &sight, &book, &deleted);
            let (present, missing) = (&sight.present, &finding.missing);
            self.update(|book| {
                missing.iter().for_each(|id| book.lost(&relay, id));
                present.iter().for_each(|id| book.confirm(&relay, id));
            })
            .await?;
            relays.push(finding);
        }
        Ok(Verified { relays })
    }

    /// Sends what is missing, also to a relay that has lost everything, deletes
    /// what is stale, and looks again.
    pub async fn repair(&self) -> Result<Repaired, BackupError> {
        let before = self.verify().await?;
        let synced = self.sync().await?;
        let book = self.wallet.backup_book().await?;
        for finding in &before.relays {
            let Ok(relay) = finding.relay.parse::<RelayUrl>() else { continue };
            for author in Author::ALL {
                // What the book retires, the sync has deleted.
                let of_author = |id: &&EventId| match book.get(id) {
                    Some(record) => record.author == author,
                    None => true,
                };
                let stale: Vec<_> = finding.stale.iter().filter(of_author).copied().collect();
                if !stale.is_empty() {
                    let relays = std::slice::from_ref(&relay);
                    let mut reasons = BTreeMap::new();
                    self.delete_on(author, &stale, relays, &mut reasons).await?;
                }
            }
        }
        Ok(Repaired { before, synced, after: self.verify().await? })
    }

    async fn look(self, url: RelayUrl, expected: Vec<EventId>) -> (RelayUrl, Sight) {
        let mut sight = Sight::default();
        let looked = timeout(READ, async {
            for author in Author::ALL {
                let mut relay = Relay::new(url.clone(), self.signers.of(author));
                let key = relay.key().await?;
                let (present, tokens) = (&mut sight.present, &mut sight.tokens);
                let deleted = &mut sight.deleted;
                let read = relay.all(key, &KINDS, |event| {
                    present.insert(event.id);
                    if event.kind == kind::TOKEN {
                        tokens.insert(event.id, author);
                    }
                    deleted.extend(deleted_by(&event).map(|id| (author, id)));
                });
                sight.damaged += read.await.map_err(|error| error.to_string())?;
            }
            // Pages may skip what a relay does have.
            let rest = expected.iter().filter(|id| !sight.present.contains(*id));
            let rest: Vec<_> = rest.copied().collect();
            let mut relay = Relay::new(url.clone(), self.signers.of(Author::Ehash));
            let found = relay.held(&rest).await.map_err(|error| error.to_string())?;
            sight.present.extend(found);
            Ok(())
        });
        let looked = looked.await.unwrap_or_else(|_| Err(format!("not done in {READ:?}")));
        sight.error = looked.err();
        (url, sight)
    }
}

/// What each relay should hold. History is only sent, never kept track of.
fn expected(book: &Book) -> impl Iterator<Item = EventId> {
    let expected = book.records().filter(|record| match &record.body {
        Body::Token(token) => !token.retired,
        Body::Wallet { .. } => true,
        Body::History {} => false,
    });
    expected.map(|record| record.id)
}

fn compare(
    relay: &RelayUrl,
    sight: &Sight,
    book: &Book,
    deleted: &BTreeSet<(Author, EventId)>,
) -> Finding {
    let expected: BTreeSet<_> = expected(book).collect();
    let mut finding = Finding {
        relay: relay.to_string(),
        damaged: sight.damaged,
        error: sight.error.clone(),
        ..Finding::default()
    };
    for id in &expected {
        match sight.present.contains(id) {
            true => finding.present += 1,
            // What was not looked at is not missed.
            false if sight.error.is_none() => finding.missing.push(*id),
            false => {}
        }
    }
    for (id, author) in &sight.tokens {
        if expected.contains(id) {
            continue;
        }
        match book.get(id).is_some() || deleted.contains(&(*author, *id)) {
            true => finding.stale.push(*id),
            false => finding.unknown.push(*id),
        }
    }
    finding
}
