//! Collecting what relays hold of an exchange.

use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::future::join_all;
use hashpit_mailbox::{Mailbox, MailboxError};
use hashpit_nips::kind;
use nostr_sdk::{Alphabet, Event, Filter, Keys, PublicKey, RelayUrl, SingleLetterTag, Timestamp};

use super::{Evidence, Lie};

/// How long a relay may take to connect and to tell a page.
const PATIENCE: Duration = Duration::from_secs(20);
/// Entries that each relay is asked for first: the newest.
const NEWEST: usize = 100;
/// Sequences that are asked for at one time. Relays bound a filter's values.
const CHUNK: u64 = 250;

/// Why nothing could be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The relays could not be used.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// None told what it holds.
    #[error("none of the {0} relays told what it holds; name others with --relay")]
    Silent(usize),
    /// They hold nothing of the exchange.
    #[error(
        "the relays hold no journal by this exchange; name a relay that it writes to with --relay"
    )]
    Nothing,
}

/// What relays hold of an exchange, and which of them did not tell all.
#[derive(Debug)]
pub struct Collected {
    /// What they hold.
    pub evidence: Evidence,
    /// Relays that did not tell all that they were asked.
    pub silent: Vec<RelayUrl>,
}

/// Asks relays for all that an exchange has published, and for what traders have
/// published for it. `progress` is told how many sequences were asked for, and of
/// how many.
pub async fn collect(
    exchange: PublicKey,
    relays: &[RelayUrl],
    progress: impl FnMut(u64, u64),
) -> Result<Collected, CollectError> {
    let mailbox = Mailbox::connect(Keys::generate(), relays).await?;
    let collector = Collector {
        exchange,
        relays,
        mailbox: mailbox.clone(),
        collected: Collected { evidence: Evidence::new(Timestamp::now()), silent: Vec::new() },
    };
    let collected = collector.run(progress).await;
    mailbox.close().await;
    collected
}

struct Collector<'a> {
    exchange: PublicKey,
    relays: &'a [RelayUrl],
    mailbox: Mailbox,
    collected: Collected,
}

impl Collector<'_> {
    async fn run(mut self, mut progress: impl FnMut(u64, u64)) -> Result<Collected, CollectError> {
        // Traders' events first: what they sent has had time to be answered.
        let x = SingleLetterTag::lowercase(Alphabet::X);
        let offers = Filter::new().kinds([kind::OFFER, kind::COMMAND]);
        self.ask(&offers.custom_tag(x, self.exchange.to_hex())).await;
        let by_it = Filter::new().author(self.exchange);
        self.ask(&by_it.clone().kind(kind::CHECKPOINT)).await;
        self.newest(&by_it.clone().kind(kind::ENTRY).limit(NEWEST)).await;
        if self.collected.silent.len() == self.relays.len() {
            return Err(CollectError::Silent(self.relays.len()));
        }
        let kinds = [kind::ENTRY, kind::MATCH, kind::SETTLEMENT];
        let mut start = 0;
        // Of one second's entries a relay need not tell the newest first, so that
        // there may be later ones than it told. What a gap hides is of no use, and
        // an exchange may name any number.
        while self.has_all_before(start) && start <= self.newest_known()? {
            let range = start..=start.saturating_add(CHUNK - 1);
            start = range.end().saturating_add(1);
            self.ask(&numbered(by_it.clone().kinds(kinds), range)).await;
            let newest = self.newest_known()?;
            progress(start.min(newest), newest);
        }
        Ok(self.collected)
    }

    /// Whether no entry of the chunk before this sequence is missing, as far as
    /// later ones are known.
    fn has_all_before(&self, start: u64) -> bool {
        let entries = &self.collected.evidence.entries;
        let newest = entries.last_key_value().map_or(0, |(seq, _)| *seq);
        let chunk = start.saturating_sub(CHUNK)..start.min(newest.saturating_add(1));
        entries.range(chunk.clone()).count() as u64 == chunk.end.saturating_sub(chunk.start)
    }

    fn newest_known(&self) -> Result<u64, CollectError> {
        self.collected.evidence.newest().ok_or(CollectError::Nothing)
    }

    /// Asks every relay for all that matches.
    async fn ask(&mut self, filter: &Filter) {
        let told =
            self.relays.iter().map(|relay| self.mailbox.stored(relay, filter.clone(), PATIENCE));
        let told = join_all(told).await;
        for (relay, told) in self.relays.iter().zip(told) {
            match told {
                Ok(events) => self.keep(relay, events),
                Err(error) => self.missed(relay, &error),
            }
        }
    }

    /// Asks all relays for the newest of what matches.
    async fn newest(&mut self, filter: &Filter) {
        match self.mailbox.fetch(filter.clone(), PATIENCE).await {
            Ok((events, _)) => {
                if let Some(relay) = self.relays.first() {
                    self.keep(relay, events);
                }
            }
            Err(error) => tracing::warn!(%error, "the newest entries were not told"),
        }
    }

    fn keep(&mut self, relay: &RelayUrl, events: Vec<Event>) {
        for event in events {
            self.collected.evidence.add(self.exchange, relay, event);
        }
    }

    fn missed(&mut self, relay: &RelayUrl, error: &MailboxError) {
        tracing::warn!(%relay, %error, "part of what a relay holds was not told");
        if !self.collected.silent.contains(relay) {
            self.collected.silent.push(relay.clone());
        }
    }
}

/// Events that name one of these sequences.
fn numbered(filter: Filter, range: RangeInclusive<u64>) -> Filter {
    let n = SingleLetterTag::lowercase(Alphabet::N);
    filter.custom_tags(n, range.map(|seq| seq.to_string()))
}

impl Lie {
    /// Whether a relay that did not tell all could be the reason.
    pub fn may_be_the_relays(&self) -> bool {
        matches!(self, Self::Skips | Self::Withheld(_))
    }
}
