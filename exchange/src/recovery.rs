//! Before an exchange accepts anything, its journal on disk is compared with
//! what the relays hold of it. A journal that was lost is mended from them; two
//! chains under one key are never begun.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hashpit_mailbox::{Mailbox, MailboxError};
use hashpit_nips::kind;
use nostr_sdk::{
    Alphabet, Event, EventId, Filter, Keys, PublicKey, RelayUrl, SingleLetterTag, Tag,
    UnsignedEvent,
};
use tracing::{info, warn};

use crate::Error;
use crate::desk::opening;
use crate::journal::{self, Journal, JournalError};
use crate::reader::blocking;
use crate::replay::{Fault, Replay};

/// How long a relay may take to connect and to tell a page.
const PATIENCE: Duration = Duration::from_secs(10);
/// Entries that each relay is asked for first: the newest.
const NEWEST: usize = 100;
/// Sequences that are asked for at one time.
const CHUNK: u64 = 500;

/// Why an exchange does not start. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// Nothing on disk, and not every relay could be asked.
    #[error(
        "there is no journal on disk, and {silent} of {relays} relays did not tell whether they \
         hold one. Bring them up; or, if this key never traded, start with --new"
    )]
    Unknown {
        /// Relays that gave no answer.
        silent: usize,
        /// All of them.
        relays: usize,
    },
    /// A journal on disk, and no word from a relay that could know more.
    #[error(
        "no relay that had all of the journal tells whether it holds more than the disk ({silent} \
         of {relays} gave no answer). Were the disk an old copy, a second journal would begin. \
         Bring the relays up; or, if this directory is the one that this key traded from last, \
         start with --new"
    )]
    Unheard {
        /// Relays that gave no answer.
        silent: usize,
        /// All of them.
        relays: usize,
    },
    /// A relay holds an entry that contradicts the one on disk.
    #[error(
        "the relays hold another entry {seq} than the disk: {theirs}, not {ours}. Someone else \
         runs an exchange with this key, or the disk is an old copy. Stop the other one, keep the \
         directory, and start with the journal that traders have seen"
    )]
    Differs {
        /// The sequence.
        seq: u64,
        /// The relays' entry.
        theirs: EventId,
        /// Ours.
        ours: EventId,
    },
    /// The relays hold two entries of one sequence.
    #[error(
        "the relays hold two entries {seq}: {one} and {other}. Two exchanges ran with this key; \
         traders cannot know which counts. Start a new one with a new key"
    )]
    Fork {
        /// The sequence.
        seq: u64,
        /// An entry.
        one: EventId,
        /// The other.
        other: EventId,
    },
    /// Entries are missing.
    #[error(
        "the relays hold later entries of the journal, {newest} among them, and not all that the \
         disk lacks: {missing} is missing. Name a relay that has it under `relays`, or bring back the \
         directory"
    )]
    Gap {
        /// The first that is missing.
        missing: u64,
        /// A later one that there should be.
        newest: u64,
    },
    /// Later entries must have been.
    #[error(
        "a checkpoint names entry {named}, but neither the disk nor a relay has it; the newest \
         found is {newest}. Name a relay that has it under `relays`, or bring back the directory"
    )]
    Behind {
        /// What the checkpoint names.
        named: u64,
        /// The newest that was found; `none` if there is none.
        newest: String,
    },
    /// An entry does not follow from the one before.
    #[error(
        "entry {seq} on the relays does not follow from those before it: {fault}. Bring back the \
         directory, or start with the version of hashpit that wrote it"
    )]
    Broken {
        /// The sequence.
        seq: u64,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What the relays say before anything is fetched.
#[derive(Debug, Default)]
struct Survey {
    /// Relays that told all they were asked.
    answered: usize,
    /// Whether one of them had as much of the journal as any, by the disk.
    current: bool,
    /// The newest entries of each relay, by sequence.
    entries: BTreeMap<u64, BTreeSet<EventId>>,
    /// The highest sequence that a checkpoint names.
    named: Option<u64>,
}

/// Compares the journal with the relays', and adds what it lacks. `new` is the
/// operator's word that this key never traded, or only from this disk.
pub(crate) async fn recover(
    journal: &Arc<Journal>,
    keys: &Keys,
    relays: &[RelayUrl],
    new: bool,
) -> Result<(), Error> {
    let mailboxes = join_all(relays.iter().map(|relay| connect(keys, relay)));
    let mailboxes: Vec<(RelayUrl, Mailbox)> =
        mailboxes.await.into_iter().collect::<Result<_, _>>()?;
    let recovered = recover_from(journal, keys, &mailboxes, new).await;
    join_all(mailboxes.iter().map(|(_, mailbox)| mailbox.close())).await;
    recovered
}

async fn connect(keys: &Keys, relay: &RelayUrl) -> Result<(RelayUrl, Mailbox), MailboxError> {
    let mailbox = Mailbox::connect(keys.clone(), std::slice::from_ref(relay)).await?;
    Ok((relay.clone(), mailbox))
}

async fn recover_from(
    journal: &Arc<Journal>,
    keys: &Keys,
    mailboxes: &[(RelayUrl, Mailbox)],
    new: bool,
) -> Result<(), Error> {
    let key = keys.public_key();
    let surveys = join_all(mailboxes.iter().map(|mailbox| survey(key, mailbox))).await;
    let cursors = mailboxes.iter().map(|(relay, _)| journal.cursor(relay.to_string().as_str()));
    let cursors = cursors.collect::<Result<Vec<_>, _>>()?;
    let mut all = Survey::default();
    for (survey, cursor) in surveys.into_iter().zip(&cursors) {
        let survey = survey?;
        all.answered += survey.answered;
        all.current |= survey.answered > 0 && Some(cursor) == cursors.iter().max();
        all.named = all.named.max(survey.named);
        for (seq, ids) in survey.entries {
            all.entries.entry(seq).or_default().extend(ids);
        }
    }
    let ids = all.entries.keys().map(|seq| Ok((*seq, id_at(journal, *seq)?)));
    let ours = ids.collect::<Result<BTreeMap<_, _>, JournalError>>()?;
    let id_at = |seq| ours.get(&seq).copied().flatten();
    match missing(&all, mailboxes.len(), journal.newest()?, id_at, new)? {
        None => Ok(()),
        Some(missing) => restore(journal, keys, mailboxes, missing).await,
    }
}

fn id_at(journal: &Journal, seq: u64) -> Result<Option<EventId>, JournalError> {
    let record = journal.record(seq)?;
    Ok(record.and_then(|events| events.first().map(|entry| entry.id)))
}

/// The newest that a relay has.
async fn survey(
    key: PublicKey,
    (relay, mailbox): &(RelayUrl, Mailbox),
) -> Result<Survey, MailboxError> {
    let entries = Filter::new().kind(kind::ENTRY).author(key).limit(NEWEST);
    let (entries, told) = mailbox.fetch(entries, PATIENCE).await?;
    let mut survey = Survey { answered: told, ..Survey::default() };
    if told == 0 {
        return Ok(survey);
    }
    for event in entries.iter().filter(|event| event.pubkey == key) {
        if let Some(seq) = number(event) {
            survey.entries.entry(seq).or_default().insert(event.id);
        }
    }
    beyond(key, (relay, mailbox), &mut survey).await;
    let checkpoints = Filter::new().kind(kind::CHECKPOINT).author(key);
    let (checkpoints, _) = mailbox.fetch(checkpoints, PATIENCE).await?;
    let by_us = checkpoints.iter().filter(|event| event.pubkey == key);
    survey.named = by_us.filter_map(number).max();
    Ok(survey)
}

/// Entries beyond those that were found: within a second relays sort by id, so
/// the newest by time are not the newest by sequence.
async fn beyond(key: PublicKey, (relay, mailbox): (&RelayUrl, &Mailbox), survey: &mut Survey) {
    while let Some((&newest, _)) = survey.entries.last_key_value() {
        let next = newest.saturating_add(1)..=newest.saturating_add(CHUNK);
        let later = ask(key, relay, mailbox, next.collect()).await;
        if later.is_empty() {
            return;
        }
        for (seq, event) in later {
            survey.entries.entry(seq).or_default().insert(event.id);
        }
    }
}

/// A relay's entries of these sequences.
async fn ask(
    key: PublicKey,
    relay: &RelayUrl,
    mailbox: &Mailbox,
    sequences: Vec<u64>,
) -> Vec<(u64, Event)> {
    let n = SingleLetterTag::lowercase(Alphabet::N);
    let numbers = sequences.iter().map(u64::to_string);
    let filter = Filter::new().kind(kind::ENTRY).author(key).custom_tags(n, numbers);
    let events = mailbox.stored(relay, filter, PATIENCE).await.unwrap_or_else(|error| {
        warn!(%relay, %error, "part of the journal was not told");
        Vec::new()
    });
    let ours = events.into_iter().filter(|it| it.pubkey == key && it.kind == kind::ENTRY);
    let numbered = ours.filter_map(|event| Some((number(&event)?, event)));
    numbered.filter(|(seq, _)| sequences.contains(seq)).collect()
}

/// The first and last sequence that the relays have and the disk has not; `None`
/// if there are none. `ours` is the newest on disk, and `id_at` the id of an entry
/// there. Since each entry names the one before, equal ids at one sequence mean
/// equal journals up to there.
fn missing(
    survey: &Survey,
    relays: usize,
    ours: Option<u64>,
    id_at: impl Fn(u64) -> Option<EventId>,
    new: bool,
) -> Result<Option<(u64, u64)>, RecoveryError> {
    let silent = relays - survey.answered;
    for (&seq, ids) in &survey.entries {
        let mut ids = ids.iter();
        if let (Some(&one), Some(&other)) = (ids.next(), ids.next()) {
            return Err(RecoveryError::Fork { seq, one, other });
        }
    }
    for (&seq, ids) in &survey.entries {
        let Some(ours) = id_at(seq) else { continue };
        if let Some(&theirs) = ids.iter().find(|&&theirs| theirs != ours) {
            return Err(RecoveryError::Differs { seq, theirs, ours });
        }
    }
    let theirs = survey.entries.last_key_value().map(|(seq, _)| *seq);
    let newest = ours.max(theirs);
    if let Some(named) = survey.named.filter(|named| Some(*named) > newest) {
        let newest = newest.map_or("none".to_owned(), |newest| newest.to_string());
        return Err(RecoveryError::Behind { named, newest });
    }
    match (newest, theirs) {
        (None, _) if silent > 0 && !new => Err(RecoveryError::Unknown { silent, relays }),
        _ if ours.is_some() && !survey.current && !new => {
            Err(RecoveryError::Unheard { silent, relays })
        }
        (_, Some(theirs)) if ours.is_none_or(|ours| theirs > ours) => {
            Ok(Some((ours.map_or(0, |ours| ours + 1), theirs)))
        }
        _ => {
            if silent > 0 {
                warn!(silent, relays, "some relays did not tell what they hold of the journal");
            }
            Ok(None)
        }
    }
}

/// Adds the entries `from` to `to` to the journal, a chunk at a time. What they
/// brought about follows from them.
async fn restore(
    journal: &Arc<Journal>,
    keys: &Keys,
    mailboxes: &[(RelayUrl, Mailbox)],
    (from, to): (u64, u64),
) -> Result<(), Error> {
    info!(from, to, "restoring the journal from the relays");
    let author = keys.public_key();
    let mut replay = blocking(journal, move |journal| opening::replay(journal, author)).await?;
    for start in (from..=to).step_by(CHUNK as usize) {
        let range = start..=to.min(start + CHUNK - 1);
        let entries = entries(author, mailboxes, range.clone()).await;
        let keys = keys.clone();
        let added = blocking(journal, move |journal| {
            add(journal, &mut replay, &keys, entries, range).map(|()| replay)
        });
        replay = added.await?;
    }
    Ok(())
}

/// Entries by sequence and id, from whichever relay has them. Those that are
/// missing from an answer are asked for again with fewer others: a relay may have
/// more of one second than it tells at once.
async fn entries(
    key: PublicKey,
    mailboxes: &[(RelayUrl, Mailbox)],
    range: RangeInclusive<u64>,
) -> BTreeMap<u64, BTreeMap<EventId, Event>> {
    let mut entries: BTreeMap<u64, BTreeMap<EventId, Event>> = BTreeMap::new();
    for size in [CHUNK as usize, 50, 5, 1] {
        let missing: Vec<u64> = range.clone().filter(|seq| !entries.contains_key(seq)).collect();
        for some in missing.chunks(size) {
            let told = mailboxes.iter().map(|(relay, it)| ask(key, relay, it, some.to_vec()));
            for (seq, event) in join_all(told).await.into_iter().flatten() {
                entries.entry(seq).or_default().insert(event.id, event);
            }
        }
    }
    entries
}

/// Follows entries, and makes them and what they brought about durable.
fn add(
    journal: &Journal,
    replay: &mut Replay,
    keys: &Keys,
    mut entries: BTreeMap<u64, BTreeMap<EventId, Event>>,
    range: RangeInclusive<u64>,
) -> Result<(), Error> {
    let mut records = Vec::new();
    for seq in range.clone() {
        let mut found = entries.remove(&seq).unwrap_or_default().into_values();
        let Some(entry) = found.next() else {
            journal.append(&records)?;
            return Err(RecoveryError::Gap { missing: seq, newest: *range.end() }.into());
        };
        if let Some(other) = found.next() {
            return Err(RecoveryError::Fork { seq, one: entry.id, other: other.id }.into());
        }
        let all = replay.entry(&entry).map_err(|fault| RecoveryError::Broken { seq, fault })?;
        let sign = |event: UnsignedEvent| {
            event.sign_with_keys(keys).expect("a key that we hold signs any event")
        };
        let record: Vec<Event> =
            std::iter::once(entry).chain(all.events.into_iter().map(sign)).collect();
        records.push((seq, journal::encode(&record)));
    }
    Ok(journal.append(&records)?)
}

/// The sequence that an entry or a checkpoint names.
fn number(event: &Event) -> Option<u64> {
    let named = |tag: &&Tag| tag.as_slice().first().is_some_and(|name| name == "n");
    event.tags.iter().find(named)?.content()?.parse().ok()
}

#[cfg(test)]
mod tests;
