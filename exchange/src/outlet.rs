//! Brings the whole journal to one relay. Each relay has an outlet of its own,
//! with a cursor of its own, so that each ends up with all of it, whatever was
//! down in between, and none waits for another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use hashpit_mailbox::{Delivery, Mailbox};
use nostr_sdk::{Event, Keys, RelayUrl};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Error;
use crate::desk::Desk;
use crate::reader::Reader;

/// Events on their way to a relay at one time.
const IN_FLIGHT: usize = 64;
/// Records that are read at one time.
const BATCH: usize = 256;
/// How long a relay may take to connect before that is looked at again.
const CONNECT: Duration = Duration::from_secs(30);
/// Pause after a relay that is connected gave no answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause before an entry that the relay refused is offered to it again.
const RETRY: Duration = Duration::from_secs(60);
/// Entries that a relay may refuse before it gets no further ones.
const MAX_REFUSED: usize = 1000;

/// A relay's outlet.
#[derive(Debug)]
pub(crate) struct Outlet {
    relay: RelayUrl,
    mailbox: Mailbox,
    reader: Reader,
    /// The first sequence that was not offered to the relay.
    next: u64,
    /// Sequences before that which it does not want. The cursor stays behind
    /// the first.
    refused: BTreeSet<u64>,
    retry_at: Instant,
    /// Whether the operator was told that it refuses.
    told: bool,
}

impl Outlet {
    /// An outlet to `relay`, from where it stopped.
    pub(crate) async fn open(desk: &Desk, keys: Keys, relay: RelayUrl) -> Result<Self, Error> {
        let reader = Reader::open(desk, relay.to_string()).await?;
        let mailbox = Mailbox::connect(keys, std::slice::from_ref(&relay)).await?;
        let next = reader.noted();
        let retry_at = Instant::now();
        Ok(Self { relay, mailbox, reader, next, refused: BTreeSet::new(), retry_at, told: false })
    }

    /// Runs until `finish`, and then until the relay has everything; whoever
    /// does not want to wait for that drops it.
    pub(crate) async fn run(mut self, finish: CancellationToken) -> Result<(), Error> {
        loop {
            let full = self.refused.len() >= MAX_REFUSED;
            tokio::select! { biased;
                () = sleep_until(self.retry_at), if !self.refused.is_empty() => {
                    self.offer_again().await?;
                    continue;
                }
                more = self.reader.wait(self.next, &finish), if !full => if !more { break },
                () = finish.cancelled() => break,
            }
            let records = self.reader.read(self.next, BATCH).await?;
            self.offer(records).await?;
        }
        self.mailbox.close().await;
        Ok(())
    }

    async fn offer_again(&mut self) -> Result<(), Error> {
        let mut records = Vec::new();
        for seq in std::mem::take(&mut self.refused) {
            records.extend(self.reader.read(seq, 1).await?);
        }
        self.offer(records).await
    }

    /// Publishes records until the relay has said something to each of them.
    async fn offer(&mut self, records: Vec<(u64, Vec<Event>)>) -> Result<(), Error> {
        let next = records.last().map_or(self.next, |(seq, _)| self.next.max(seq + 1));
        let flat = records.into_iter();
        let mut waiting: Vec<(u64, Event)> =
            flat.flat_map(|(seq, events)| events.into_iter().map(move |it| (seq, it))).collect();
        let mut refusals = BTreeMap::new();
        while !waiting.is_empty() {
            while self.mailbox.connected(CONNECT).await == 0 {}
            waiting = self.publish(waiting, &mut refusals).await?;
            if !waiting.is_empty() {
                sleep(PAUSE).await;
            }
        }
        self.next = next;
        self.keep(refusals);
        self.reader.note(self.refused.first().copied().unwrap_or(self.next)).await
    }

    /// Publishes events once; those that got no answer.
    async fn publish(
        &self,
        events: Vec<(u64, Event)>,
        refusals: &mut BTreeMap<u64, String>,
    ) -> Result<Vec<(u64, Event)>, Error> {
        let mut sent = stream::iter(events)
            .map(|(seq, event)| async move { (self.mailbox.deliver(&event).await, seq, event) })
            .buffer_unordered(IN_FLIGHT);
        let mut unanswered = Vec::new();
        while let Some((answer, seq, event)) = sent.next().await {
            match answer?.remove(&self.relay) {
                Some(Delivery::Stored) => {}
                Some(Delivery::Refused(reason)) => {
                    refusals.insert(seq, reason);
                }
                Some(Delivery::Unanswered(reason)) => {
                    debug!(relay = %self.relay, seq, reason, "no answer to a journal entry");
                    unanswered.push((seq, event));
                }
                None => unanswered.push((seq, event)),
            }
        }
        Ok(unanswered)
    }

    fn keep(&mut self, refusals: BTreeMap<u64, String>) {
        let Some((seq, reason)) = refusals.first_key_value() else { return };
        if !std::mem::replace(&mut self.told, true) {
            let count = refusals.len();
            warn!(relay = %self.relay, seq, reason, count, "the relay refuses journal entries");
        }
        if self.refused.is_empty() {
            self.retry_at = Instant::now() + RETRY;
        }
        self.refused.extend(refusals.into_keys());
    }
}
