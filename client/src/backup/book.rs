//! What the relays hold, as far as we know. Pure; `records` keeps it on disk.
//!
//! A token event is *live*, or *retired*: to be deleted, once a quorum has every
//! live one. The book forgets a retired event when every relay has deleted it.

use std::collections::{BTreeMap, BTreeSet};

use cdk::mint_url::MintUrl;
use cdk::nuts::CurrencyUnit;
use nostr_sdk::{EventId, RelayUrl, Timestamp};
use serde::{Deserialize, Serialize};

use super::plan::{Held, Y};
use super::{Author, Settings};

/// An event that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u8,
    pub(super) id: EventId,
    pub(super) author: Author,
    pub(super) created_at: Timestamp,
    /// Relays that took it and gave it back.
    pub(super) confirmed: BTreeSet<RelayUrl>,
    pub(super) body: Body,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Body {
    /// Kind 7375.
    Token(Token),
    /// Kind 17375, with its plaintext.
    Wallet {
        /// To tell whether there is anything new to say.
        plaintext: String,
    },
    /// Kind 7376.
    History {},
}

/// A token event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    pub(super) mint: MintUrl,
    pub(super) unit: CurrencyUnit,
    pub(super) coins: BTreeSet<Y>,
    pub(super) amount: u64,
    pub(super) replaces: Vec<EventId>,
    pub(super) retired: bool,
    /// Relays that deleted it.
    pub(super) deleted: BTreeSet<RelayUrl>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    records: BTreeMap<EventId, Record>,
    /// To be written to disk, and to be removed from it.
    pub(super) changed: BTreeSet<EventId>,
    pub(super) forgotten: BTreeSet<EventId>,
}

impl Record {
    fn token(&self) -> Option<&Token> {
        match &self.body {
            Body::Token(token) => Some(token),
            Body::Wallet { .. } | Body::History {} => None,
        }
    }

    fn is_retired(&self) -> bool {
        self.token().is_some_and(|token| token.retired)
    }

    /// Tokens go first: the counters in the wallet's event rely on them.
    fn rank(&self) -> u8 {
        match self.body {
            Body::Token(_) => 0,
            Body::Wallet { .. } => 1,
            Body::History {} => 2,
        }
    }
}

impl Book {
    /// From what was on disk. A crash may have come between a new event and the
    /// note on the one that it replaces.
    pub(super) fn new(records: impl IntoIterator<Item = Record>) -> Self {
        let records = records.into_iter().map(|record| (record.id, record)).collect();
        let mut book = Self { records, ..Self::default() };
        let tokens = book.records.values().filter_map(Record::token);
        let replaced: Vec<_> = tokens.flat_map(|token| token.replaces.clone()).collect();
        book.retire(&replaced);
        book
    }

    pub(super) fn get(&self, id: &EventId) -> Option<&Record> {
        self.records.get(id)
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub(super) fn ids(&self) -> BTreeSet<EventId> {
        self.records.keys().copied().collect()
    }

    /// Live token events.
    pub(super) fn held(&self) -> Vec<Held<'_>> {
        let live = self.records.values().filter(|record| !record.is_retired());
        live.filter_map(|record| {
            let token = record.token()?;
            let purse = (token.mint.clone(), token.unit.clone());
            Some(Held { id: record.id, purse, coins: &token.coins })
        })
        .collect()
    }

    /// The newest wallet event of an author.
    pub(super) fn wallet(&self, author: Author) -> Option<(&Record, &str)> {
        let wallets = self.records.values().filter_map(|record| match &record.body {
            Body::Wallet { plaintext } if record.author == author => {
                Some((record, plaintext.as_str()))
            }
            Body::Token(_) | Body::Wallet { .. } | Body::History {} => None,
        });
        wallets.max_by_key(|(record, _)| record.created_at)
    }

    /// Takes a new event up, and retires those that it replaces.
    pub(super) fn add(&mut self, record: Record) {
        let replaced = record.token().map(|token| token.replaces.clone());
        self.changed.insert(record.id);
        self.records.insert(record.id, record);
        self.retire(&replaced.unwrap_or_default());
    }

    pub(super) fn retire(&mut self, ids: &[EventId]) {
        for id in ids {
            let Some(record) = self.records.get_mut(id) else { continue };
            if let Body::Token(token) = &mut record.body
                && !token.retired
            {
                token.retired = true;
                self.changed.insert(*id);
            }
        }
    }

    /// What a relay should have and is not known to have, in the order in which
    /// it is to get it.
    pub(super) fn wanting(&self, relay: &RelayUrl) -> Vec<&Record> {
        let wanting = self.records.values();
        let wanting = wanting.filter(|r| !r.is_retired() && !r.confirmed.contains(relay));
        let mut wanting: Vec<_> = wanting.collect();
        wanting.sort_by_key(|record| (record.rank(), record.created_at, record.id));
        wanting
    }

    pub(super) fn confirm(&mut self, relay: &RelayUrl, id: &EventId) {
        if let Some(record) = self.records.get_mut(id)
            && record.confirmed.insert(relay.clone())
        {
            self.changed.insert(*id);
        }
    }

    /// The relay turns out not to have it.
    pub(super) fn lost(&mut self, relay: &RelayUrl, id: &EventId) {
        if let Some(record) = self.records.get_mut(id)
            && record.confirmed.remove(relay)
        {
            self.changed.insert(*id);
        }
    }

    /// True once a quorum has every live token event: only then may any be
    /// deleted.
    pub(super) fn has_quorum(&self, settings: &Settings) -> bool {
        let mut live = self.records.values().filter(|r| r.token().is_some() && !r.is_retired());
        live.all(|record| settings.confirmations(&record.confirmed) >= settings.needed())
    }

    /// Relays that have every live token event.
    pub(super) fn complete(&self, settings: &Settings) -> usize {
        let whole = |relay: &&RelayUrl| self.wanting(relay).iter().all(|r| r.token().is_none());
        settings.relays.iter().filter(whole).count()
    }

    /// What is to be deleted on a relay.
    pub(super) fn doomed(&self, relay: &RelayUrl) -> Vec<&Record> {
        let retired = self.records.values().filter(|record| record.is_retired());
        retired.filter(|r| r.token().is_some_and(|t| !t.deleted.contains(relay))).collect()
    }

    pub(super) fn deleted(&mut self, relay: &RelayUrl, id: &EventId) {
        if let Some(Record { body: Body::Token(token), .. }) = self.records.get_mut(id)
            && token.deleted.insert(relay.clone())
        {
            self.changed.insert(*id);
        }
    }

    /// Forgets what needs no more care: deleted tokens, history that a quorum
    /// has, wallet events with a newer one.
    pub(super) fn sweep(&mut self, settings: &Settings) {
        let newest = Author::ALL.map(|author| self.wallet(author).map(|(record, _)| record.id));
        let done = self.records.values().filter(|record| match &record.body {
            Body::Token(token) => {
                token.retired && settings.relays.iter().all(|relay| token.deleted.contains(relay))
            }
            Body::Wallet { .. } => !newest.contains(&Some(record.id)),
            Body::History {} => settings.confirmations(&record.confirmed) >= settings.needed(),
        });
        let done: Vec<_> = done.map(|record| record.id).collect();
        for id in done {
            self.records.remove(&id);
            self.changed.remove(&id);
            self.forgotten.insert(id);
        }
    }
}
