//! The one thread that writes to the store.
//!
//! It takes all that waits, up to a bound, as one transaction; makes it durable;
//! and only then says every `OK` and lets the live hub have the events. Waiting
//! for the disk gathers the next batch, so no timer is needed.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nostr::Timestamp;

use crate::clock::Clock;
use crate::event::{Class, Event};
use crate::live::{EPHEMERAL, Hub, Published};
use crate::store::{EventStore, Outcome, StoreError};
use crate::verify::{Replies, Reply, answer};

/// Events of one transaction. More would only make the first of them wait.
const MAX_BATCH: usize = 256;
/// How often expired events are looked for, and how many go at a time.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const MAX_SWEEP: usize = 256;

/// Events of one connection that may be stored.
pub(crate) struct Checked {
    pub(crate) events: Vec<Event>,
    pub(crate) replies: Replies,
}

/// What the store decided about an event of the batch.
#[derive(Clone, Copy)]
enum Verdict {
    /// Ephemeral: passed on.
    Passed,
    Judged(Outcome),
    /// The batch could not be stored.
    Failed,
}

/// Owns the store.
pub(crate) struct Writer {
    pub(crate) store: EventStore,
    pub(crate) inbox: Receiver<Checked>,
    pub(crate) hub: Hub,
    pub(crate) clock: Clock,
    /// True from a failed write to the next that works: each is logged once.
    pub(crate) failing: bool,
}

impl Writer {
    /// Serves until the last sender is gone and all that they sent is written.
    pub(crate) fn run(mut self) {
        let mut next_sweep = Instant::now();
        loop {
            let wait = next_sweep.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(wait) {
                Ok(first) => {
                    let batch = self.gather(first);
                    self.write(batch);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next_sweep {
                self.sweep();
                next_sweep = Instant::now() + SWEEP_EVERY;
            }
        }
    }

    fn gather(&self, first: Checked) -> Vec<Checked> {
        let mut events = first.events.len();
        let mut batch = vec![first];
        while events < MAX_BATCH
            && let Ok(next) = self.inbox.try_recv()
        {
            events += next.events.len();
            batch.push(next);
        }
        batch
    }

    fn write(&mut self, batch: Vec<Checked>) {
        let stored = self.store(&batch);
        self.note(stored.as_ref().err());
        let verdicts = stored.unwrap_or_else(|_| failed(&batch));
        let mut published = Vec::new();
        for (checked, verdicts) in batch.into_iter().zip(verdicts) {
            let events = checked.events.into_iter().zip(verdicts);
            let replies = events.map(|(event, verdict)| {
                let reply = reply(&event, verdict);
                published.extend(sequence(verdict).map(|at| Published::new(event, at)));
                reply
            });
            answer(&checked.replies, replies.collect());
        }
        if !published.is_empty() {
            self.hub.publish(published);
        }
    }

    /// Judges and stores the batch; returns when it is durable.
    fn store(&mut self, batch: &[Checked]) -> Result<Vec<Vec<Verdict>>, StoreError> {
        let mut transaction = self.store.begin();
        let mut judge = |event: &Event| match event.class() {
            Class::Ephemeral => Ok(Verdict::Passed),
            Class::Regular | Class::Replaceable | Class::Addressable => {
                transaction.insert(event).map(Verdict::Judged)
            }
        };
        let verdicts = batch
            .iter()
            .map(|checked| checked.events.iter().map(&mut judge).collect())
            .collect::<Result<_, StoreError>>()?;
        transaction.commit()?;
        Ok(verdicts)
    }

    fn sweep(&mut self) {
        let now = self.clock.now();
        let swept = remove_expired(&mut self.store, now);
        self.note(swept.as_ref().err());
        if let Ok(events) = swept
            && events > 0
        {
            tracing::debug!(events, "removed expired events");
        }
    }

    /// Logs where failing begins and ends.
    fn note(&mut self, error: Option<&StoreError>) {
        match error {
            Some(error) if !self.failing => {
                tracing::error!(%error, "events cannot be stored; refusing them until they can");
            }
            None if self.failing => tracing::info!("events can be stored again"),
            _ => {}
        }
        self.failing = error.is_some();
    }
}

fn remove_expired(store: &mut EventStore, now: Timestamp) -> Result<usize, StoreError> {
    let mut transaction = store.begin();
    let events = transaction.remove_expired(now, MAX_SWEEP)?;
    transaction.commit()?;
    Ok(events)
}

/// Nothing was stored; ephemeral events do not mind.
fn failed(batch: &[Checked]) -> Vec<Vec<Verdict>> {
    let verdict = |event: &Event| match event.class() {
        Class::Ephemeral => Verdict::Passed,
        Class::Regular | Class::Replaceable | Class::Addressable => Verdict::Failed,
    };
    batch.iter().map(|checked| checked.events.iter().map(verdict).collect()).collect()
}

/// The sequence under which an event is delivered live, if it is.
fn sequence(verdict: Verdict) -> Option<u64> {
    match verdict {
        Verdict::Passed => Some(EPHEMERAL),
        Verdict::Judged(Outcome::Stored(sequence)) => Some(sequence),
        Verdict::Judged(Outcome::Duplicate | Outcome::Superseded | Outcome::Deleted)
        | Verdict::Failed => None,
    }
}

fn reply(event: &Event, verdict: Verdict) -> Reply {
    let (accepted, reason) = match verdict {
        Verdict::Passed | Verdict::Judged(Outcome::Stored(_)) => (true, ""),
        Verdict::Judged(Outcome::Duplicate) => (true, "duplicate: already have this event"),
        Verdict::Judged(Outcome::Superseded) => (false, "duplicate: a newer version is stored"),
        Verdict::Judged(Outcome::Deleted) => (false, "blocked: its author has deleted this event"),
        // The details are the operator's business, and in the log.
        Verdict::Failed => (false, "error: events cannot be stored right now; try again later"),
    };
    Reply::Ok { id: event.id(), accepted, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc::sync_channel};

    use nostr::{EventBuilder, JsonUtil, Keys, Kind};

    use super::*;
    use crate::event::json::Checker;
    use crate::kv::memory::MemoryKv;

    fn event(kind: u16, content: &str) -> Event {
        let event = EventBuilder::new(Kind::from(kind), content).sign_with_keys(&Keys::generate());
        Checker::default().check(&event.unwrap().as_json()).unwrap()
    }

    fn accepted(replies: &[Reply]) -> Vec<bool> {
        let accepted = |reply: &Reply| matches!(reply, Reply::Ok { accepted: true, .. });
        replies.iter().map(accepted).collect()
    }

    #[test]
    fn a_full_disk_refuses_events_until_there_is_room() {
        let kv = Arc::new(MemoryKv::default());
        let store = EventStore::over(kv.clone()).unwrap();
        let reader = store.reader();
        let (_sender, inbox) = sync_channel(1);
        let (hub, _state) = Hub::new();
        let mut writer = Writer { store, inbox, hub, clock: Clock::system(), failing: false };
        let (replies, mut answers) = tokio::sync::mpsc::channel(8);
        let events = vec![event(1, "a"), event(20_000, "b"), event(1, "c")];
        let mut write = |writer: &mut Writer| {
            writer.write(vec![Checked { events: events.clone(), replies: replies.clone() }]);
            accepted(&answers.try_recv().unwrap())
        };

        kv.set_full(true);
        assert_eq!(write(&mut writer), [false, true, false]);
        assert_eq!(write(&mut writer), [false, true, false]);
        assert_eq!((reader.events(), reader.last_sequence()), (0, 0));
        kv.set_full(false);
        assert_eq!(write(&mut writer), [true, true, true]);
        assert_eq!((reader.events(), reader.last_sequence()), (2, 2));
        assert_eq!(reader.audit().unwrap().mismatches, 0);
    }
}
