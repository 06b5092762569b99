//! One Stratum V1 device: an actor that owns its connection.
//!
//! `mining.subscribe` has to be answered with an extranonce, which only a
//! channel at the pool has, and the channel is best opened under the worker's
//! name, which only `mining.authorize` tells. So the answer waits a moment for
//! devices that send both together; for others the channel has no name, and each
//! share carries it instead (extension 0x0002).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Target;
use hashpit_nips::Work;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Sv1;
use super::aggregate::Seat;
use super::difficulty::Difficulty;
use super::feed::{Event, Feed, Share};
use super::judge::{Judge, Refusal, Verdict};
use super::line::{LineReader, LineWriter};
use super::request::{self, Call, Configure, Submit};
use super::vardiff::LocalTarget;
use crate::proxy::identity::worker_name;
use crate::proxy::settings::SUGGESTED_SHARES_PER_MINUTE;
use crate::proxy::shares::Waiting;
use crate::proxy::stats::{Connected, Worker};
use crate::proxy::work::{Extranonce, Job};

/// How long the answer to `mining.subscribe` waits for `mining.authorize`.
const NAME_GRACE: Duration = Duration::from_millis(100);
/// The bits of a version that may be rolled (BIP 320).
const ROLLABLE: u32 = 0x1fff_e000;
/// Events from the pool that wait for a device: a refusal for each share in
/// flight, and jobs.
const FEED_QUEUE: usize = 256;
/// Workers that may be authorized on one connection.
const MAX_USERS: usize = 8;
/// Lines without sense before a device is dropped.
const MAX_STRIKES: u32 = 10;
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

/// Where a session's work comes from.
enum Source {
    Own(Feed<Ticket>),
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
    mask: u32,
    hashrate: f32,
    minimum: Option<Difficulty>,
    local: Option<LocalTarget>,
    difficulty: Option<Difficulty>,
    judge: Judge,
    newest: Option<Arc<Job>>,
    in_flight: usize,
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
            hashrate,
            minimum: None,
            local,
            difficulty: None,
            judge: Judge::default(),
            newest: None,
            in_flight: 0,
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

    // ------------------------------------------------------------- deadlines

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

    // -------------------------------------------------------------- requests

    async fn answer(&mut self, line: &[u8]) -> Result<(), SessionError> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let Some(request::Request { id, call }) = request::parse(line) else {
            return self.strike();
        };
        match call {
            Call::Subscribe { agent } => return self.subscribe(id, &agent).await,
            Call::Authorize { user } => return self.authorize(id, user).await,
            Call::Submit(share) => return self.submit(id, share).await,
            Call::Configure(asked) => {
                let agreed = self.configure(asked).await;
                self.reply(id, agreed);
            }
            Call::SuggestDifficulty(number) => {
                self.suggest(Difficulty::of_number(number)).await;
                self.reply(id, Value::Bool(true));
            }
            Call::SuggestTarget(target) => {
                let target = Target::from_le_bytes(target);
                let sane = Work::of_target(target).is_ok();
                self.suggest(sane.then(|| Difficulty::of_target(target))).await;
                self.reply(id, Value::Bool(true));
            }
            Call::ExtranonceSubscribe => {
                self.takes_extranonce = true;
                self.reply(id, Value::Bool(true));
            }
            // An Antminer's way to ask for several versions; the mask is
            // agreed on by mining.configure.
            Call::MultiVersion => self.reply(id, Value::Bool(true)),
            Call::Ping => self.reply(id, Value::from("pong")),
            Call::Unknown(method) => {
                self.refuse(id, &Refusal::new(20, format!("method {method} not found")));
            }
            Call::Invalid(reason) => {
                self.refuse(id, &Refusal::new(20, reason));
                return self.strike();
            }
            Call::Nothing => {}
        }
        Ok(())
    }

    fn strike(&mut self) -> Result<(), SessionError> {
        self.strikes += 1;
        if self.strikes >= MAX_STRIKES {
            return Err(SessionError::Junk);
        }
        Ok(())
    }

    fn reply(&mut self, id: Value, result: Value) {
        self.out.push_back(json!({ "id": id, "result": result, "error": null }));
    }

    fn refuse(&mut self, id: Value, Refusal { code, reason }: &Refusal) {
        self.out.push_back(json!({ "id": id, "result": null, "error": [code, reason, null] }));
    }

    fn notify(&mut self, method: &str, params: Value) {
        self.out.push_back(json!({ "id": null, "method": method, "params": params }));
    }

    async fn subscribe(&mut self, id: Value, agent: &str) -> Result<(), SessionError> {
        match &self.subscription {
            Subscription::None => {
                tracing::debug!(agent, "a device subscribes");
                let named = !self.users.is_empty();
                let patience = if named { Duration::ZERO } else { NAME_GRACE };
                self.subscription = Subscription::Asked(id, Instant::now() + patience);
                if named { self.open().await } else { Ok(()) }
            }
            Subscription::Done => {
                self.subscribed(id);
                Ok(())
            }
            Subscription::Asked(..) | Subscription::Opening(_) => {
                self.refuse(id, &Refusal::new(20, "mining.subscribe is being answered"));
                self.strike()
            }
        }
    }

    /// Asks for a channel, or for a place on the common one.
    async fn open(&mut self) -> Result<(), SessionError> {
        let Subscription::Asked(id, _) =
            std::mem::replace(&mut self.subscription, Subscription::None)
        else {
            return Ok(());
        };
        self.subscription = Subscription::Opening(id);
        let sv1 = Arc::clone(&self.sv1);
        self.source = Some(match &sv1.aggregate {
            Some(aggregate) => {
                let seat = aggregate.join().await;
                Source::Seat(seat.ok_or_else(|| SessionError::Refused("no place left".into()))?)
            }
            None => {
                let worker = self.users.first().map(|user| &*user.label);
                let request = sv1.request(worker, self.hashrate, self.max_target());
                Source::Own(Feed::open(&sv1.upstream, request, FEED_QUEUE).await)
            }
        });
        Ok(())
    }

    fn max_target(&self) -> [u8; 32] {
        self.minimum.map_or([0xff; 32], |minimum| minimum.target().to_le_bytes())
    }

    async fn authorize(&mut self, id: Value, user: String) -> Result<(), SessionError> {
        let known = self.users.iter().any(|known| known.name == user);
        if !known && self.users.len() == MAX_USERS {
            self.refuse(id, &Refusal::new(24, "too many workers on one connection"));
            return Ok(());
        }
        if !known {
            let label: Arc<str> = worker_name(&user).into();
            let worker = self.sv1.workers.named(&label);
            tracing::info!(worker = &*label, "a device is authorized");
            let connected = worker.connected();
            self.users.push(User { name: user, label, worker, _connected: connected });
        }
        match self.subscription {
            Subscription::Asked(..) => {
                self.authorized.push(id);
                self.open().await
            }
            Subscription::Opening(_) => {
                self.authorized.push(id);
                Ok(())
            }
            Subscription::None | Subscription::Done => {
                self.reply(id, Value::Bool(true));
                self.work();
                Ok(())
            }
        }
    }

    async fn configure(&mut self, asked: Configure) -> Value {
        let mut agreed = serde_json::Map::new();
        let mut put = |name: &str, value: Value| drop(agreed.insert(name.to_owned(), value));
        if let Some(mask) = asked.version_rolling {
            self.mask = mask & ROLLABLE;
            put("version-rolling", Value::Bool(true));
            put("version-rolling.mask", Value::from(format!("{:08x}", self.mask)));
        }
        if let Some(minimum) = asked.minimum_difficulty {
            let minimum = Difficulty::of_number(minimum);
            put("minimum-difficulty", Value::Bool(minimum.is_some()));
            self.minimum = minimum.or(self.minimum);
        }
        if asked.subscribe_extranonce {
            self.takes_extranonce = true;
            put("subscribe-extranonce", Value::Bool(true));
        }
        if asked.info {
            put("info", Value::Bool(true));
        }
        for unknown in &asked.unknown {
            put(unknown, Value::Bool(false));
        }
        if asked.minimum_difficulty.is_some() {
            self.tell_pool().await;
        }
        Value::Object(agreed)
    }

    /// A difficulty that a device suggests tells its hash rate.
    async fn suggest(&mut self, difficulty: Option<Difficulty>) {
        let Some(difficulty) = difficulty else { return };
        let hashes = difficulty.number() * 2f64.powi(32);
        self.hashrate = (hashes * SUGGESTED_SHARES_PER_MINUTE / 60.0).clamp(1.0, 1e24) as f32;
        if let Some(local) = &mut self.local {
            local.set_hashrate(self.hashrate);
            self.set_difficulty();
        }
        self.tell_pool().await;
    }

    async fn tell_pool(&self) {
        if let Some(Source::Own(feed)) = &self.source {
            feed.update(self.hashrate, self.max_target()).await;
        }
    }

    // ----------------------------------------------------------------- events

    fn take(&mut self, event: Event<Ticket>) -> Result<(), SessionError> {
        match event {
            Event::Opened { prefix, size } => return self.opened(prefix, size),
            Event::Job { job, clean } => self.job(job, clean),
            Event::Accepted(shares) => {
                for Waiting { work, ticket, .. } in shares {
                    self.in_flight -= 1;
                    ticket.worker.accepted(work);
                    if let Some(id) = ticket.id {
                        self.reply(id, Value::Bool(true));
                    }
                }
            }
            Event::Rejected(share, code) => {
                self.in_flight -= 1;
                self.reject(share.ticket, &Refusal::of_pool(code));
            }
            Event::Lost(shares) => self.lost(shares),
            Event::Refused(reason) => {
                if let Subscription::Opening(id) = &self.subscription {
                    let refusal = Refusal::new(20, format!("the pool opens no channel: {reason}"));
                    self.refuse(id.clone(), &refusal);
                }
                return Err(SessionError::Refused(reason));
            }
        }
        Ok(())
    }

    fn opened(&mut self, prefix: Vec<u8>, size: usize) -> Result<(), SessionError> {
        let extranonce = self.divide(prefix, size)?;
        let changed = self.extranonce.as_deref() != Some(&extranonce);
        self.extranonce = Some(Arc::new(extranonce));
        match std::mem::replace(&mut self.subscription, Subscription::Done) {
            Subscription::Opening(id) => {
                self.subscribed(id);
                for id in std::mem::take(&mut self.authorized) {
                    self.reply(id, Value::Bool(true));
                }
            }
            _ if !changed => {}
            _ if self.takes_extranonce => {
                let (first, rolled) = self.extranonce_parts();
                self.notify("mining.set_extranonce", json!([first, rolled]));
            }
            _ => {
                // Most devices come back at once, and are then told.
                self.notify("client.reconnect", json!([]));
                return Err(SessionError::ExtranonceChanged);
            }
        }
        Ok(())
    }

    /// Which bytes of the extranonce are whose.
    fn divide(&self, prefix: Vec<u8>, size: usize) -> Result<Extranonce, SessionError> {
        let slot = match &self.source {
            Some(Source::Seat(seat)) => seat.slot.to_be_bytes().to_vec(),
            _ => Vec::new(),
        };
        let room = size.saturating_sub(slot.len());
        let rolled = room.min(self.sv1.settings.extranonce2_bytes);
        if rolled < super::MIN_EXTRANONCE2 {
            return Err(SessionError::Refused(format!("only {size} bytes of extranonce")));
        }
        let mut fixed = vec![0; room - rolled];
        fixed.extend(slot);
        Ok(Extranonce { prefix, fixed, rolled })
    }

    fn extranonce_parts(&self) -> (String, usize) {
        let extranonce = self.extranonce.as_ref();
        extranonce.map_or((String::new(), 0), |e| (hex(&e.first()), e.rolled))
    }

    fn subscribed(&mut self, id: Value) {
        let (first, rolled) = self.extranonce_parts();
        let subscriptions = json!([["mining.set_difficulty", "1"], ["mining.notify", "1"]]);
        self.reply(id, json!([subscriptions, first, rolled]));
    }

    fn job(&mut self, job: Arc<Job>, clean: bool) {
        let first = self.newest.is_none();
        self.newest = Some(Arc::clone(&job));
        if self.is_ready() {
            self.give(job, clean || first);
        }
    }

    /// Gives the newest job, if the device has none yet.
    fn work(&mut self) {
        if let Some(job) = self.newest.clone().filter(|_| self.is_ready()) {
            self.give(job, true);
        }
    }

    fn give(&mut self, job: Arc<Job>, clean: bool) {
        let Some(extranonce) = self.extranonce.clone() else { return };
        if clean {
            self.judge.clear();
        }
        self.set_difficulty();
        let name = self.judge.issue(Arc::clone(&job), extranonce);
        if let Some(notify) = job.notify(&name, clean) {
            let message: stratum_apps::stratum_core::sv1_api::json_rpc::Message = notify.into();
            self.out.push_back(serde_json::to_value(message).unwrap_or_default());
        }
    }

    /// Tells the difficulty of the newest job, if it is another.
    fn set_difficulty(&mut self) {
        let Some(job) = &self.newest else { return };
        let mut target = job.target;
        if let Some(local) = &self.local {
            let minimum = self.minimum.map(Difficulty::target);
            let wanted = minimum.map_or(local.target(), |minimum| minimum.min(local.target()));
            // A share that the pool takes is never held back.
            target = target.max(wanted);
        }
        let mut difficulty = Difficulty::of_target(target);
        if self.sv1.settings.power_of_two_difficulty {
            difficulty = difficulty.power_of_two();
        }
        if self.difficulty.replace(difficulty) != Some(difficulty) {
            self.notify("mining.set_difficulty", json!([difficulty.json()]));
        }
    }

    fn retarget(&mut self) {
        if self.is_ready() && self.local.as_mut().is_some_and(LocalTarget::adjust) {
            self.set_difficulty();
        }
    }

    fn lost(&mut self, shares: Vec<Waiting<Ticket>>) {
        self.judge.clear();
        self.newest = None;
        for Waiting { ticket, .. } in shares {
            self.in_flight -= 1;
            ticket.worker.unknown();
            if let Some(id) = ticket.id {
                let reason = "unknown: the connection to the pool ended before its answer";
                self.refuse(id, &Refusal::new(20, reason));
            }
        }
    }

    // ----------------------------------------------------------------- shares

    async fn submit(&mut self, id: Value, share: Submit) -> Result<(), SessionError> {
        let user = self.users.iter().find(|user| user.name == share.user);
        // Some devices submit under another name than they were authorized as.
        let Some(user) = user.or(self.users.first()) else {
            self.refuse(id, &Refusal::new(24, "not authorized; send mining.authorize first"));
            return Ok(());
        };
        let (worker, label) = (Arc::clone(&user.worker), Arc::clone(&user.label));
        let ticket = Ticket { id: Some(id), worker };
        if !matches!(self.subscription, Subscription::Done) {
            self.reject(ticket, &Refusal::new(25, "not subscribed; send mining.subscribe first"));
            return Ok(());
        }
        if self.newest.is_none() {
            self.reject(ticket, &Refusal::new(21, "stale: there is no connection to the pool"));
            return Ok(());
        }
        match self.judge.judge(&share, self.mask, self.local_target()) {
            Err(refusal) => self.reject(ticket, &refusal),
            Ok(Verdict::Local) => {
                self.found(&ticket.worker, None);
                ticket.worker.local();
                self.reply(ticket.id.unwrap_or_default(), Value::Bool(true));
            }
            Ok(Verdict::ForPool { job, extranonce, found }) => {
                self.found(&ticket.worker, Some(&job));
                let share = Share { job, extranonce, found, worker: label, ticket };
                self.forward(share).await;
            }
        }
        Ok(())
    }

    /// The target that a share has to meet for the device's own difficulty,
    /// where that is another than the pool's.
    fn local_target(&self) -> Option<Target> {
        let settings = &self.sv1.settings;
        let own = settings.aggregate || settings.power_of_two_difficulty;
        self.difficulty.filter(|_| own).map(Difficulty::target)
    }

    fn found(&mut self, worker: &Worker, job: Option<&Job>) {
        let target = self.local_target().or(job.map(|job| job.target));
        if let Some(Ok(work)) = target.map(Work::of_target) {
            worker.found(work);
        }
        if let Some(local) = &mut self.local {
            local.found_share();
        }
    }

    async fn forward(&mut self, mut share: Share<Ticket>) {
        if self.sv1.settings.optimistic
            && let Some(id) = share.ticket.id.take()
        {
            self.reply(id, Value::Bool(true));
        }
        self.in_flight += 1;
        let gone = match &mut self.source {
            Some(Source::Own(feed)) => feed.submit(share).await.err(),
            Some(Source::Seat(seat)) => {
                seat.submit(share).await;
                None
            }
            None => Some(share.ticket),
        };
        if let Some(ticket) = gone {
            self.in_flight -= 1;
            self.reject(ticket, &Refusal::new(21, "stale: there is no connection to the pool"));
        }
    }

    fn reject(&mut self, ticket: Ticket, refusal: &Refusal) {
        ticket.worker.rejected(&refusal.reason);
        if let Some(id) = ticket.id {
            self.refuse(id, refusal);
        }
    }
}

async fn next(source: &mut Option<Source>) -> Option<Event<Ticket>> {
    match source.as_mut()? {
        Source::Own(feed) => feed.next().await,
        Source::Seat(seat) => seat.next().await,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lines that a device may send: so many a second, and ten seconds' worth at
/// once.
struct Allowance {
    per_second: f64,
    left: f64,
    since: Instant,
}

impl Allowance {
    fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second * 10.0, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.since).as_secs_f64() * self.per_second;
        self.left = (self.left + earned).min(self.per_second * 10.0) - 1.0;
        self.since = now;
        self.left >= 0.0
    }
}
