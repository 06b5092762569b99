//! What a client sends: reading a turn of messages and acting on each.

use axum::extract::ws::{Message, Utf8Bytes};
use futures_util::FutureExt;

use super::{End, Session, TOO_LARGE, TURN};
use crate::config::Limits;
use crate::filter::{Filter, FilterError};
use crate::message::{self, ClientMessage};
use crate::verify::{Job, Replies};

/// Bounds of a job: small enough that two threads share a busy connection's
/// events, and that a full queue of jobs holds little memory.
const MAX_JOB_EVENTS: usize = 16;
const MAX_JOB_BYTES: usize = 256 * 1024;

/// A connection's events on their way to the store.
pub(super) struct Intake {
    messages: Vec<Utf8Bytes>,
    bytes: usize,
    /// Events that have no answer yet.
    in_flight: usize,
    max_in_flight: usize,
    /// True while an `AUTH` is checked: what follows it must wait, because its
    /// answer depends on it.
    pub(super) authenticating: bool,
    replies: Replies,
}

impl Intake {
    pub(super) fn new(limits: &Limits, replies: Replies) -> Self {
        Self {
            messages: Vec::new(),
            bytes: 0,
            in_flight: 0,
            max_in_flight: limits.max_in_flight.max(1),
            authenticating: false,
            replies,
        }
    }

    /// True if the socket may be read.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight < self.max_in_flight && !self.authenticating
    }

    /// True if every event has its answer.
    pub(super) fn is_settled(&self) -> bool {
        self.in_flight == 0
    }

    /// Notes the answer to one event.
    pub(super) fn settle(&mut self) {
        self.in_flight -= 1;
    }

    fn push(&mut self, message: Utf8Bytes) {
        self.in_flight += 1;
        self.bytes += message.len();
        self.messages.push(message);
    }

    fn is_full(&self) -> bool {
        self.messages.len() >= MAX_JOB_EVENTS || self.bytes >= MAX_JOB_BYTES
    }
}

impl Session {
    /// Acts on `first` and on what else has arrived already.
    pub(super) async fn on_input(
        &mut self,
        first: Option<Result<Message, axum::Error>>,
    ) -> Result<(), End> {
        let mut input = first;
        for _ in 0..TURN {
            self.on_frame(input).await?;
            if !self.intake.has_room() {
                break;
            }
            match self.socket.recv().now_or_never() {
                Some(next) => input = next,
                None => break,
            }
        }
        self.hand_over().await
    }

    async fn on_frame(&mut self, input: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        self.last_heard = tokio::time::Instant::now();
        match input {
            Some(Ok(Message::Text(text))) => self.on_text(text).await,
            Some(Ok(Message::Binary(_))) => {
                self.push(message::notice("invalid: messages are text, not binary"));
                self.strike()
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
            Some(Err(error)) if is_too_large(&error) => Err(TOO_LARGE),
            Some(Ok(Message::Close(_)) | Err(_)) | None => Err(End::Gone),
        }
    }

    async fn on_text(&mut self, text: Utf8Bytes) -> Result<(), End> {
        match ClientMessage::parse(&text, self.limits()) {
            Ok(ClientMessage::Event(_)) => {
                self.intake.push(text);
                if self.intake.is_full() {
                    self.hand_over().await?;
                }
            }
            Ok(ClientMessage::Auth(_)) => self.on_auth(text).await?,
            Ok(ClientMessage::Req(name, filters)) => self.on_req(name, filters).await?,
            Ok(ClientMessage::BadReq(name, error)) => self.on_bad_req(&name, &error).await?,
            Ok(ClientMessage::Close(name)) => self.end_subscription(&name).await,
            Err(error) => {
                self.push(message::notice(&error.to_string()));
                self.strike()?;
            }
        }
        Ok(())
    }

    async fn on_auth(&mut self, message: Utf8Bytes) -> Result<(), End> {
        // Events before it are judged by the keys before it.
        self.hand_over().await?;
        self.intake.in_flight += 1;
        self.intake.authenticating = true;
        let replies = self.intake.replies.clone();
        self.give(Job::Auth { message, challenge: self.challenge.clone(), replies }).await
    }

    /// Opens a subscription: registers it for live events first, then asks the
    /// store, each on its own side of the watermark, so that no event is missed
    /// and none comes twice.
    async fn on_req(&mut self, name: String, mut filters: Vec<Filter>) -> Result<(), End> {
        self.end_subscription(&name).await;
        if filters.iter().all(|filter| self.viewer.must_authenticate_for(filter)) {
            let reason = "auth-required: these kinds are served to author and recipient only";
            self.push(message::closed(&name, reason));
            return Ok(());
        }
        if self.subscriptions.is_full() {
            let reason = "rate-limited: too many subscriptions; close one first";
            self.push(message::closed(&name, reason));
            return Ok(());
        }
        let (default, max) = (self.limits().default_limit, self.limits().max_limit);
        for filter in &mut filters {
            filter.limit = Some(filter.limit.unwrap_or(default).min(max));
        }
        let number = self.subscriptions.next_number();
        self.shared.hub.subscribe(self.id, number, filters.clone()).await;
        let watermark = self.shared.reader.last_sequence();
        self.subscriptions.open(name, number, watermark);
        self.queries.push(self.query(number, filters, watermark));
        Ok(())
    }

    /// A refused REQ still ends the subscription that it would have replaced.
    async fn on_bad_req(&mut self, name: &str, error: &FilterError) -> Result<(), End> {
        self.end_subscription(name).await;
        self.push(message::closed(name, &error.to_string()));
        self.strike()
    }

    pub(super) async fn end_subscription(&mut self, name: &str) {
        if let Some(number) = self.subscriptions.close(name) {
            self.queries.cancel(number);
            self.shared.hub.unsubscribe(self.id, number).await;
        }
    }

    /// Hands the events of this turn to the signature checks.
    async fn hand_over(&mut self) -> Result<(), End> {
        if self.intake.messages.is_empty() {
            return Ok(());
        }
        self.intake.bytes = 0;
        let messages = std::mem::take(&mut self.intake.messages);
        let replies = self.intake.replies.clone();
        self.give(Job::Events { messages, viewer: self.viewer.clone(), replies }).await
    }

    async fn give(&mut self, job: Job) -> Result<(), End> {
        // Waits while the queue is full: so does the client, by way of TCP.
        self.shared.jobs.send(job).await.map_err(|_| super::STOPPING)
    }
}

/// True if the client sent more than `max_message_bytes`.
fn is_too_large(error: &axum::Error) -> bool {
    // axum does not export the error below it.
    error.to_string().contains("Message too long")
}
