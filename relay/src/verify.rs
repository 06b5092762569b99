//! Signature checks, on threads of their own.
//!
//! A [`Job`] is what one connection sent in one go: up to 16 events, so that two
//! threads share the work of a single busy connection. What is refused is
//! answered here; the rest goes to the writer.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::ws::Utf8Bytes;
use nostr::{EventId, PublicKey};
use tokio::sync::mpsc;

use crate::admission;
use crate::authentication::{self, Challenge};
use crate::clock::Clock;
use crate::config::Limits;
use crate::event::Event;
use crate::event::json::{Checker, claimed_id};
use crate::message::ClientMessage;
use crate::visibility::Viewer;
use crate::writer::Checked;

/// Threads that check signatures.
pub(crate) const THREADS: usize = 2;

/// A connection's answers. Bounded by its events in flight, each of which gets
/// one reply, so there is always room for one that is owed.
pub(crate) type Replies = mpsc::Sender<Vec<Reply>>;

/// Work for these threads.
pub(crate) enum Job {
    /// `EVENT` messages to check and store.
    Events { messages: Vec<Utf8Bytes>, viewer: Viewer, replies: Replies },
    /// An `AUTH` message to check.
    Auth { message: Utf8Bytes, challenge: Challenge, replies: Replies },
}

/// What became of one event.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Stored or refused, with the reason.
    Ok { id: EventId, accepted: bool, reason: String },
    /// It does not verify, or was not even an event with an id.
    Invalid { id: Option<EventId>, reason: String },
    /// An `AUTH` answer: the key that it proves, or why it proves none.
    Auth { id: Option<EventId>, proven: Result<PublicKey, String> },
}

/// One of the threads.
pub(crate) struct Verifier {
    pub(crate) jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    pub(crate) writer: SyncSender<Checked>,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
}

impl Verifier {
    /// Serves until no connection is left.
    pub(crate) fn run(self) {
        let mut checker = Checker::default();
        while let Some(job) = self.next_job() {
            match job {
                Job::Events { messages, viewer, replies } => {
                    self.check_events(&mut checker, &messages, &viewer, replies);
                }
                Job::Auth { message, challenge, replies } => {
                    let reply = self.check_auth(&mut checker, &message, &challenge);
                    answer(&replies, vec![reply]);
                }
            }
        }
    }

    /// The threads take turns at waiting, each holding the lock while it does.
    fn next_job(&self) -> Option<Job> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
    }

    fn check_events(
        &self,
        checker: &mut Checker,
        messages: &[Utf8Bytes],
        viewer: &Viewer,
        replies: Replies,
    ) {
        let mut events = Vec::with_capacity(messages.len());
        let mut refused = Vec::new();
        for message in messages {
            match self.check_event(checker, message, viewer) {
                Ok(event) => events.push(event),
                Err(reply) => refused.push(reply),
            }
        }
        if !refused.is_empty() {
            answer(&replies, refused);
        }
        if !events.is_empty() && self.writer.send(Checked { events, replies }).is_err() {
            tracing::error!("the writer is gone; events are dropped unanswered");
        }
    }

    fn check_event(
        &self,
        checker: &mut Checker,
        message: &str,
        viewer: &Viewer,
    ) -> Result<Event, Reply> {
        let event = self
            .verified(checker, message)
            .map_err(|Unverified { id, reason }| Reply::Invalid { id, reason })?;
        match admission::check(&event, viewer, self.clock.now(), &self.limits) {
            Ok(()) => Ok(event),
            Err(refusal) => {
                let reason = refusal.to_string();
                Err(Reply::Ok { id: event.id(), accepted: false, reason })
            }
        }
    }

    fn check_auth(&self, checker: &mut Checker, message: &str, challenge: &Challenge) -> Reply {
        let event = match self.verified(checker, message) {
            Ok(event) => event,
            Err(Unverified { id, reason }) => return Reply::Auth { id, proven: Err(reason) },
        };
        let max_age = self.limits.max_auth_age_seconds;
        let proven = authentication::check(&event, challenge, self.clock.now(), max_age);
        Reply::Auth { id: Some(event.id()), proven: proven.map_err(|error| error.to_string()) }
    }

    /// The event in an `EVENT` or `AUTH` message, its signature checked.
    fn verified(&self, checker: &mut Checker, message: &str) -> Result<Event, Unverified> {
        let json = match ClientMessage::parse(message, &self.limits) {
            Ok(ClientMessage::Event(json) | ClientMessage::Auth(json)) => json,
            Ok(_) => unreachable!("sessions hand over EVENT and AUTH messages only"),
            Err(error) => return Err(Unverified { id: None, reason: error.to_string() }),
        };
        checker.check(json).map_err(|error| Unverified {
            id: claimed_id(json).map(EventId::from_byte_array),
            reason: format!("invalid: {error}"),
        })
    }
}

/// An event that is not what it claims to be.
struct Unverified {
    id: Option<EventId>,
    reason: String,
}

/// Hands a connection what it is owed; if it is gone, nobody is.
pub(crate) fn answer(replies: &Replies, answers: Vec<Reply>) {
    let _ = replies.try_send(answers);
}
