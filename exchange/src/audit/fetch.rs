//! Collecting what relays hold of an exchange.

use std::time::Duration;

use futures_util::future::join_all;
use hashpit_mailbox::{Mailbox, MailboxError};
use hashpit_nips::kind;
use nostr_sdk::{
    Alphabet, Event, EventId, Filter, Keys, PublicKey, RelayUrl, SingleLetterTag, Timestamp,
};

use super::{Evidence, Lie};

/// How long a relay may take to connect and to tell a page.
const PATIENCE: Duration = Duration::from_secs(20);
/// Entries that each relay is asked for first: the newest.
const NEWEST: usize = 100;
/// Sequences that are asked for at one time. Relays bound a filter's values.
const CHUNK: u64 = 250;
/// Events that are asked for one by one at one time: no more than any relay tells
/// in one answer.
const FEW: usize = 50;

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
    let mut collected = Collected { evidence: Evidence::new(Timestamp::now()), silent: Vec::new() };
    let mut collector =
        Collector { exchange, relays, mailbox: mailbox.clone(), collected: &mut collected };
    let done = collector.run(progress).await;
    mailbox.close().await;
    done.map(|()| collected)
}

/// Asks relays again for matches and settlements that an audit has missed: of one
/// second there may be more than a relay tells at one time.
pub async fn complete(
    exchange: PublicKey,
    relays: &[RelayUrl],
    collected: &mut Collected,
    missed: &[EventId],
) -> Result<(), CollectError> {
    let mailbox = Mailbox::connect(Keys::generate(), relays).await?;
    let mut collector = Collector { exchange, relays, mailbox: mailbox.clone(), collected };
    for ids in missed.chunks(FEW) {
        collector.ask(&Filter::new().author(exchange).ids(ids.iter().copied())).await;
    }
    mailbox.close().await;
    Ok(())
}

struct Collector<'a> {
    exchange: PublicKey,
    relays: &'a [RelayUrl],
    mailbox: Mailbox,
    collected: &'a mut Collected,
}

impl Collector<'_> {
    async fn run(&mut self, mut progress: impl FnMut(u64, u64)) -> Result<(), CollectError> {
        // Traders' events first: what they sent has had time to be answered. Then
        // what follows from entries, so that those are not behind it.
        let x = SingleLetterTag::lowercase(Alphabet::X);
        let offers = Filter::new().kinds([kind::OFFER, kind::COMMAND]);
        self.ask(&offers.custom_tag(x, self.exchange.to_hex())).await;
        let by_it = Filter::new().author(self.exchange);
        self.ask(&by_it.clone().kinds([kind::CHECKPOINT, kind::EXCHANGE])).await;
        // Whatever entry they name: it need not exist.
        let mut is_cut = false;
        for kind in [kind::MATCH, kind::SETTLEMENT] {
            is_cut |= self.ask(&by_it.clone().kind(kind)).await;
        }
        if !self.newest(&by_it.clone().kind(kind::ENTRY).limit(NEWEST)).await {
            return Err(CollectError::Silent(self.relays.len()));
        }
        let mut start = 0;
        // Of one second's entries a relay need not tell the newest first, so that
        // there may be a later one than it told. What a gap hides is of no use, and
        // an exchange may name any number.
        while self.has_all_before(start) && start <= self.newest_known()?.saturating_add(1) {
            let last = start.saturating_add(CHUNK - 1);
            self.ask(&numbered(by_it.clone().kind(kind::ENTRY), start..=last)).await;
            let missing = self.missing(start, last);
            for few in missing.chunks(FEW) {
                let few = few.iter().copied();
                self.ask(&numbered(by_it.clone().kind(kind::ENTRY), few)).await;
            }
            if is_cut {
                let kinds = [kind::MATCH, kind::SETTLEMENT];
                self.ask(&numbered(by_it.clone().kinds(kinds), start..=last)).await;
            }
            start = last.saturating_add(1);
            let newest = self.newest_known()?;
            progress(start.min(newest), newest);
        }
        Ok(())
    }

    /// Sequences of a chunk of which no entry was told. Those after the newest are
    /// among them: of one second's entries a relay may have told all but these.
    fn missing(&self, start: u64, last: u64) -> Vec<u64> {
        let entries = &self.collected.evidence.entries;
        (start..=last).filter(|seq| !entries.contains_key(seq)).collect()
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

    /// Asks every relay for all that matches; whether one may have more.
    async fn ask(&mut self, filter: &Filter) -> bool {
        let told = self
            .relays
            .iter()
            .map(|relay| self.mailbox.all_stored(relay, filter.clone(), PATIENCE));
        let told = join_all(told).await;
        let mut is_cut = false;
        for (relay, told) in self.relays.iter().zip(told) {
            match told {
                Ok(stored) => {
                    is_cut |= stored.is_cut;
                    self.keep(relay, stored.events);
                }
                Err(error) => self.missed(relay, &error),
            }
        }
        is_cut
    }

    /// Asks every relay for the newest of what matches; whether any told.
    async fn newest(&mut self, filter: &Filter) -> bool {
        let told = self.relays.iter().map(|it| self.mailbox.page(it, filter.clone(), PATIENCE));
        let told = join_all(told).await;
        let any = told.iter().any(Result::is_ok);
        for (relay, told) in self.relays.iter().zip(told) {
            match told {
                Ok(events) => self.keep(relay, events),
                Err(error) => self.missed(relay, &error),
            }
        }
        any
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
fn numbered(filter: Filter, sequences: impl IntoIterator<Item = u64>) -> Filter {
    let n = SingleLetterTag::lowercase(Alphabet::N);
    filter.custom_tags(n, sequences.into_iter().map(|seq| seq.to_string()))
}

impl Lie {
    /// Whether a relay that did not tell all could be the reason.
    pub fn may_be_the_relays(&self) -> bool {
        matches!(self, Self::Skips | Self::Withheld(_))
    }
}
