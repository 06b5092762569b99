//! One Stratum V1 device: an actor that owns its connection. Its loop and its
//! deadlines are here; `requests` and `work` are what happens in it.
//!
//! `mining.subscribe` has to be answered with an extranonce, which only a
//! channel at the pool has, and the channel is best opened under the worker's
//! name, which only `mining.authorize` tells. So the answer waits a moment for
//! devices that send both together; for others the channel has no name, and each
//! share carries it instead (extension 0x0002).

mod requests;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Sv1;
use super::aggregate::Seat;
use super::allowance::Allowance;
use super::difficulty::Difficulty;
use super::feed::{Event, Feed};
use super::judge::Judge;
use super::line::{LineReader, LineWriter};
use super::vardiff::LocalTarget;
use crate::proxy::shares::Refusals;
use crate::proxy::stats::{Connected, Worker};
use crate::proxy::work::{Extranonce, Job};

/// How often the difficulty of an aggregated device is looked at.
const VARDIFF_TICK: Duration = Duration::from_secs(20);

/// Why a session ended other than by the device's or our own wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("the connection: {0}")]
    Connection(#[from] std::io::Error),
    #[error("it has not subscribed and authorized in time")]
    HandshakeTimeout,
    #[error("it has been silent for too long")]
    Idle,
    #[error("lines without sense")]
    Junk,
    #[error("too many lines")]
    Flood,
    #[error("it does not keep up with its jobs, or the channel has ended")]
    CutOff,
    #[error("no channel: {0}")]
    Refused(String),
    #[error("too many wrong shares in a row")]
    WrongShares,
    #[error("its extranonce changed, which it cannot be told")]
    ExtranonceChanged,
}

/// Whose a share is, and where its answer goes.
#[derive(Debug)]
pub(super) struct Ticket {
    /// The id of `mining.submit`; `None` if it was answered already.
    id: Option<Value>,
    worker: Arc<Worker>,
}

impl Ticket {
    pub(super) fn new(id: Value, worker: Arc<Worker>) -> Self {
        Self { id: Some(id), worker }
    }
}

/// Where a session's work comes from.
enum Source {
    // Boxed: the two differ much in size.
    Own(Box<Feed<Ticket>>),
    Seat(Seat),
}

/// How far `mining.subscribe` has come.
enum Subscription {
    None,
    /// Asked for; the channel is opened when a name has come, or at this time.
    Asked(Value, Instant),
    /// The channel is being opened.
    Opening(Value),
    Done,
}

/// A worker's name and counters.
struct User {
    name: String,
    label: Arc<str>,
    worker: Arc<Worker>,
    _connected: Connected,
}

pub(super) struct Session {
    sv1: Arc<Sv1>,
    writer: LineWriter,
    source: Option<Source>,
    subscription: Subscription,
    users: Vec<User>,
    /// Answers to `mining.authorize` that wait for that to `mining.subscribe`.
    authorized: Vec<Value>,
    extranonce: Option<Arc<Extranonce>>,
    /// Whether the device can be told of another extranonce.
    takes_extranonce: bool,
    /// The bits of the version that the device may roll, where a job's may be.
    mask: u32,
    /// The mask that it was told last.
    told_mask: u32,
    hashrate: f32,
    minimum: Option<Difficulty>,
    local: Option<LocalTarget>,
    difficulty: Option<Difficulty>,
    judge: Judge,
    newest: Option<Arc<Job>>,
    in_flight: usize,
    refusals: Refusals,
    strikes: u32,
    allowance: Allowance,
    out: VecDeque<Value>,
    begun: Instant,
    heard: Instant,
}

/// Serves one device until it leaves, errs, or `stop`.
pub(super) async fn run(
    sv1: Arc<Sv1>,
    stream: TcpStream,
    stop: CancellationToken,
) -> Result<(), SessionError> {
    let (read, write) = stream.into_split();
    let writer = LineWriter::new(write, sv1.settings.write_timeout());
    let mut session = Session::new(sv1, writer);
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = session.serve(LineReader::new(read)) => ended,
    }
}

impl Session {
    fn new(sv1: Arc<Sv1>, writer: LineWriter) -> Self {
        let (hashrate, now) = (sv1.settings.hashrate, Instant::now());
        let local = sv1.settings.aggregate.then(|| LocalTarget::new(&sv1.settings));
        Self {
            allowance: Allowance::new(sv1.settings.max_lines_per_second, now),
            sv1,
            writer,
            source: None,
            subscription: Subscription::None,
            users: Vec::new(),
            authorized: Vec::new(),
            extranonce: None,
            takes_extranonce: false,
            mask: 0,
            told_mask: 0,
            hashrate,
            minimum: None,
            local,
            difficulty: None,
            judge: Judge::default(),
            newest: None,
            in_flight: 0,
            refusals: Refusals::default(),
            strikes: 0,
            out: VecDeque::new(),
            begun: now,
            heard: now,
        }
    }

    async fn serve(&mut self, mut reader: LineReader) -> Result<(), SessionError> {
        let mut vardiff = Instant::now() + VARDIFF_TICK;
        loop {
            let may_read = self.in_flight < self.sv1.settings.max_in_flight;
            let (deadline, aggregated) = (self.deadline(), self.local.is_some());
            // Every branch is cancel-safe: each only waits, and works afterwards.
            tokio::select! {
                biased;
                event = next(&mut self.source), if self.source.is_some() => {
                    let event = event.ok_or(SessionError::CutOff)?;
                    if let Err(error) = self.take(event) {
                        self.flush().await?;
                        return Err(error);
                    }
                }
                () = tokio::time::sleep_until(deadline) => self.on_deadline().await?,
                () = tokio::time::sleep_until(vardiff), if aggregated => {
                    vardiff = Instant::now() + VARDIFF_TICK;
                    self.retarget();
                }
                line = reader.next(), if may_read => {
                    let Some(line) = line? else { return Ok(()) };
                    self.heard = Instant::now();
                    if !self.allowance.take(self.heard) {
                        return Err(SessionError::Flood);
                    }
                    self.answer(&line).await?;
                }
            }
            self.flush().await?;
        }
    }

    async fn flush(&mut self) -> Result<(), SessionError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.out);
        Ok(self.writer.send(&Vec::from(lines)).await?)
    }

    fn is_ready(&self) -> bool {
        matches!(self.subscription, Subscription::Done) && !self.users.is_empty()
    }

    fn deadline(&self) -> Instant {
        let settings = &self.sv1.settings;
        match &self.subscription {
            Subscription::Asked(_, at) => *at,
            // It waits for the pool, not for the device.
            Subscription::Opening(_) => self.heard + settings.idle_timeout(),
            _ if self.is_ready() => self.heard + settings.idle_timeout(),
            _ => self.begun + settings.handshake_timeout(),
        }
    }

    async fn on_deadline(&mut self) -> Result<(), SessionError> {
        match self.subscription {
            Subscription::Asked(..) => self.open().await,
            _ if self.is_ready() => Err(SessionError::Idle),
            Subscription::Opening(_) => Err(SessionError::Idle),
            _ => Err(SessionError::HandshakeTimeout),
        }
    }
}

async fn next(source: &mut Option<Source>) -> Option<Event<Ticket>> {
    match source.as_mut()? {
        Source::Own(feed) => feed.next().await,
        Source::Seat(seat) => seat.next().await,
    }
}
