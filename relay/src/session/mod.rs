//! One connection: an actor that owns its socket, subscriptions and keys.
//!
//! Everything that it is sent comes through bounded queues: answers to its
//! events (it has at most `max_in_flight`, and reads no more until some are
//! answered), live events (when that queue is full it is closed), and pages of
//! one query at a time. It writes with a time limit, so a client that does not
//! read is closed and costs no memory.

mod input;
mod queries;
mod subscriptions;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use futures_util::SinkExt;
use nostr::{EventId, PublicKey};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::input::Intake;
use self::queries::{Queries, Step};
use self::subscriptions::Subscriptions;
use crate::authentication::Challenge;
use crate::clock::Clock;
use crate::config::Config;
use crate::live::{Delivery, Hub};
use crate::message;
use crate::store::Reader;
use crate::verify::{Job, Reply};
use crate::visibility::Viewer;

/// Queue entries taken in one turn, so that no queue starves the others.
const TURN: usize = 64;
/// How long a client may take to accept our goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) reader: Reader,
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) hub: Hub,
    /// Queries that may run; the others wait for a permit.
    pub(crate) query_permits: Arc<Semaphore>,
    pub(crate) stop: CancellationToken,
}

/// Why a session ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The client closed, or the connection broke.
    Gone,
    /// We close it and say why.
    Told(u16, &'static str),
}

const STOPPING: End = End::Told(close_code::AWAY, "the relay is stopping");
const TOO_SLOW: End = End::Told(close_code::POLICY, "this client does not keep up with its events");
const SILENT: End = End::Told(close_code::POLICY, "this client answers no pings");
const STRIKES: End = End::Told(close_code::POLICY, "too many messages that make no sense");
const TOO_LARGE: End = End::Told(close_code::SIZE, "a message is larger than this relay takes");

pub(crate) struct Session {
    id: u64,
    shared: Arc<Shared>,
    socket: WebSocket,
    challenge: Challenge,
    viewer: Viewer,
    subscriptions: Subscriptions,
    queries: Queries,
    intake: Intake,
    replies: mpsc::Receiver<Vec<Reply>>,
    live: mpsc::Receiver<Delivery>,
    lagged: CancellationToken,
    /// Texts of this turn; sent together at its end.
    outbox: Vec<Utf8Bytes>,
    strikes: u32,
    last_heard: Instant,
}

/// What a turn of the session is about.
enum Turn {
    Stop,
    Lagged,
    Replies,
    Live,
    Query(Step),
    Input(Option<Result<Message, axum::Error>>),
    Ping,
}

impl Session {
    /// A session for a client that connected to `host`.
    pub(crate) async fn open(
        id: u64,
        shared: Arc<Shared>,
        socket: WebSocket,
        host: Option<String>,
    ) -> Self {
        let limits = &shared.config.limits;
        // One reply per event in flight: never full (see `verify::Replies`).
        let (reply_sender, replies) = mpsc::channel(limits.max_in_flight.max(1));
        // When full, the hub cancels `lagged` and this session closes.
        let (mailbox, live) = mpsc::channel(limits.live_queue.max(1));
        let lagged = CancellationToken::new();
        shared.hub.join(id, mailbox, lagged.clone()).await;
        Self {
            id,
            socket,
            challenge: Challenge { text: random_challenge(), host },
            viewer: Viewer::default(),
            subscriptions: Subscriptions::new(limits),
            queries: Queries::new(Arc::clone(&shared.query_permits)),
            intake: Intake::new(limits, reply_sender),
            replies,
            live,
            lagged,
            outbox: Vec::new(),
            strikes: 0,
            last_heard: Instant::now(),
            shared,
        }
    }

    /// Serves the client until either side ends it.
    pub(crate) async fn run(mut self) {
        let end = self.serve().await.err().unwrap_or(End::Gone);
        self.shared.hub.leave(self.id).await;
        tracing::debug!(session = self.id, ?end, "connection closed");
        if let End::Told(code, reason) = end {
            // It may be gone already, or not read; both are its own affair.
            let _ = timeout(GOODBYE, self.say_goodbye(code, reason)).await;
        }
    }

    async fn say_goodbye(&mut self, code: u16, reason: &'static str) -> Result<(), axum::Error> {
        let notice = message::notice(&format!("error: {reason}"));
        self.socket.send(Message::Text(notice.into())).await?;
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        self.socket.send(Message::Close(Some(frame))).await
    }

    async fn serve(&mut self) -> Result<(), End> {
        let mut ping = interval(Duration::from_secs(self.limits().ping_seconds.max(1)));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.tick().await;
        self.push(message::auth(&self.challenge.text));
        let (mut replies, mut deliveries) = (Vec::new(), Vec::new());
        loop {
            self.flush().await?;
            let stopping = self.shared.stop.is_cancelled();
            if stopping && self.intake.is_settled() {
                return Err(STOPPING);
            }
            // Not biased: a busy queue must not starve the others. Each branch
            // loses nothing when dropped: channels and the socket keep what was
            // not taken, a query is a task of its own.
            let turn = tokio::select! {
                () = self.shared.stop.cancelled(), if !stopping => Turn::Stop,
                () = self.lagged.cancelled() => Turn::Lagged,
                _ = self.replies.recv_many(&mut replies, TURN) => Turn::Replies,
                _ = self.live.recv_many(&mut deliveries, TURN) => Turn::Live,
                step = self.queries.step() => Turn::Query(step),
                input = self.socket.recv(), if !stopping && self.intake.has_room() => {
                    Turn::Input(input)
                }
                _ = ping.tick() => Turn::Ping,
            };
            match turn {
                Turn::Stop => {}
                Turn::Lagged => return Err(TOO_SLOW),
                Turn::Replies => self.on_replies(&mut replies).await?,
                Turn::Live => self.on_live(&mut deliveries)?,
                Turn::Query(step) => self.on_step(step).await?,
                Turn::Input(first) => self.on_input(first).await?,
                Turn::Ping => self.on_ping().await?,
            }
        }
    }

    async fn on_replies(&mut self, replies: &mut Vec<Vec<Reply>>) -> Result<(), End> {
        for reply in replies.drain(..).flatten() {
            self.intake.settle();
            match reply {
                Reply::Ok { id, accepted, reason } => {
                    self.push(message::ok(&id, accepted, &reason))
                }
                Reply::Invalid { id, reason } => self.refuse(id, &reason)?,
                Reply::Auth { id, proven } => self.on_auth_reply(id, proven).await?,
            }
        }
        Ok(())
    }

    async fn on_auth_reply(
        &mut self,
        id: Option<EventId>,
        proven: Result<PublicKey, String>,
    ) -> Result<(), End> {
        self.intake.authenticating = false;
        let key = match proven {
            Ok(key) => key,
            Err(reason) => return self.refuse(id, &reason),
        };
        if !self.viewer.is(&key) {
            let known = self.viewer.keys();
            if known.len() >= self.limits().max_auth_keys {
                return self.refuse(id, "restricted: no more keys here; open another connection");
            }
            self.viewer = Viewer::new([known, &[key]].concat());
            self.shared.hub.authenticated(self.id, self.viewer.clone()).await;
        }
        if let Some(id) = id {
            self.push(message::ok(&id, true, ""));
        }
        Ok(())
    }

    /// Refuses what does not verify or proves nothing, and counts it.
    fn refuse(&mut self, id: Option<EventId>, reason: &str) -> Result<(), End> {
        self.push(match id {
            Some(id) => message::ok(&id, false, reason),
            None => message::notice(reason),
        });
        self.strike()
    }

    fn on_live(&mut self, deliveries: &mut Vec<Delivery>) -> Result<(), End> {
        for delivery in deliveries.drain(..) {
            let text = self.subscriptions.deliver(delivery).map_err(|_| TOO_SLOW)?;
            self.outbox.extend(text.map(Utf8Bytes::from));
        }
        Ok(())
    }

    async fn on_ping(&mut self) -> Result<(), End> {
        let silence = Duration::from_secs(self.limits().ping_seconds.max(1) * 2);
        if self.last_heard.elapsed() > silence {
            return Err(SILENT);
        }
        let ping = Message::Ping(Bytes::new());
        let sent = timeout(self.write_timeout(), self.socket.send(ping)).await;
        sent.map_err(|_| TOO_SLOW)?.map_err(|_| End::Gone)
    }

    /// Counts a message that makes no sense.
    fn strike(&mut self) -> Result<(), End> {
        self.strikes += 1;
        if self.strikes > self.limits().max_strikes { Err(STRIKES) } else { Ok(()) }
    }

    fn push(&mut self, text: String) {
        self.outbox.push(text.into());
    }

    /// Sends the outbox in one go.
    async fn flush(&mut self) -> Result<(), End> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let limit = self.write_timeout();
        let (socket, outbox) = (&mut self.socket, &mut self.outbox);
        let send = async {
            for text in outbox.drain(..) {
                socket.feed(Message::Text(text)).await?;
            }
            socket.flush().await
        };
        timeout(limit, send).await.map_err(|_| TOO_SLOW)?.map_err(|_| End::Gone)
    }

    fn limits(&self) -> &crate::config::Limits {
        &self.shared.config.limits
    }

    fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.limits().write_timeout_seconds.max(1))
    }
}

/// 128 random bits: nobody can have an answer to it in advance.
fn random_challenge() -> String {
    let mut text = String::with_capacity(32);
    crate::event::push_hex(&mut text, &rand::random::<[u8; 16]>());
    text
}
