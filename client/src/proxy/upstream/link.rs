//! One connection to a pool, and the next one when it is lost: an actor that
//! opens the channels of its lines, again on every connection, and carries
//! messages between the pool and their owners. On a connection to a fallback it
//! goes on trying the pools before it, and moves to the first that takes one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitcoin::Target;
use rand::Rng;
use stratum_apps::stratum_core::binary_sv2::Seq064KOwned;
use stratum_apps::stratum_core::channels_sv2::target::hash_rate_from_target;
use stratum_apps::stratum_core::common_messages_sv2::{Protocol, SetupConnectionOwned};
use stratum_apps::stratum_core::extensions_sv2::{
    EXTENSION_TYPE_WORKER_HASHRATE_TRACKING as WORKER_LABELS, RequestExtensionsOwned,
};
use stratum_apps::stratum_core::mining_sv2::{
    CloseChannelOwned, OpenExtendedMiningChannelOwned, OpenStandardMiningChannelOwned,
};
use stratum_apps::stratum_core::parsers_sv2::{
    AnyMessageOwned, CommonMessagesOwned, ExtensionsNegotiationOwned, ExtensionsOwned, MiningOwned,
};
use stratum_apps::utils::types::OutboundFrame;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Events, FromPool, Kind, Opened, PoolAddress, Pools, Request};
use crate::proxy::settings::{
    MAX_FRAME_BYTES, MAX_SILENCE, POOL_PATIENCE, RECONNECT, SUGGESTED_SHARES_PER_MINUTE,
};
use hashpit_noise::{Limits, NoiseError, Reader, Writer, framed, text};

/// Commands that go out together.
const BURST: usize = 64;
/// Devices below roll versions (`REQUIRES_VERSION_ROLLING`, Sv2 5.3.1).
const VERSION_ROLLING: u32 = 1 << 2;
/// A pool says so of a channel that belongs to no group.
const NO_GROUP: u32 = 0;

/// What the owners of lines ask of a link.
#[derive(Debug)]
pub(super) enum Command {
    Open { key: u64, tag: u32, request: Request, events: Events, cut_off: Arc<AtomicBool> },
    Send { generation: u64, frame: OutboundFrame },
    Close { key: u64 },
}

/// Why a connection was not made, or ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("cannot connect: {0}; is the address right, and is the pool running?")]
    Connect(std::io::Error),
    #[error(transparent)]
    Noise(#[from] NoiseError),
    #[error("the pool refused the connection: {0}")]
    Refused(String),
    #[error("the pool sent {0} where it should have answered SetupConnection")]
    Unexpected(String),
    #[error("the pool has been silent for {MAX_SILENCE:?}")]
    Silent,
}

/// A connection that is set up, and which of the pools it leads to.
struct Connection {
    pool: usize,
    reader: Reader,
    writer: Writer,
}

/// The actor.
pub(super) struct Link {
    pools: Arc<Pools>,
    /// Pause between two tries of the pools before the one in use.
    retry_better: Duration,
    inbox: mpsc::Receiver<Command>,
    lines: HashMap<u64, Entry>,
    /// Which line asked for a channel, by request id.
    asked: HashMap<u32, u64>,
    /// Which line has a channel, by channel id.
    open: HashMap<u32, u64>,
    last_request_id: u32,
    generation: u64,
    connected: bool,
    labels: bool,
    /// Which of the pools the connection leads to.
    pool: usize,
}

#[derive(Debug)]
struct Entry {
    tag: u32,
    request: Request,
    events: Events,
    cut_off: Arc<AtomicBool>,
    /// Its id and its group's.
    channel: Option<(u32, u32)>,
}

impl Link {
    pub(super) fn new(
        pools: Arc<Pools>,
        retry_better: Duration,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            pools,
            retry_better,
            inbox,
            lines: HashMap::new(),
            asked: HashMap::new(),
            open: HashMap::new(),
            last_request_id: 0,
            generation: 0,
            connected: false,
            labels: false,
            pool: 0,
        }
    }

    /// Connects, again and again, until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            // Cancelled with the whole connection, so that no half-written
            // frame is ever followed by another.
            () = self.connect_for_ever() => {}
        }
    }

    async fn connect_for_ever(&mut self) {
        let mut pause = RECONNECT.0;
        loop {
            let mut connected = self.connect_to_first().await;
            while let Some(connection) = connected.take() {
                let begun = Instant::now();
                connected = self.stay(connection).await;
                if begun.elapsed() > RECONNECT.1 {
                    pause = RECONNECT.0;
                }
            }
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.5));
            self.wait(tokio::time::sleep(jittered)).await;
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    /// Uses a connection until it is lost, or there is one to a better pool.
    async fn stay(&mut self, connection: Connection) -> Option<Connection> {
        let pools = Arc::clone(&self.pools);
        let pool = connection.pool;
        self.pool = pool;
        pools.connections[pool].fetch_add(1, Ordering::Relaxed);
        let ended = self.talk(connection).await;
        pools.connections[pool].fetch_sub(1, Ordering::Relaxed);
        self.forget_connection();
        let address = &pools.list[pool].0.address;
        match ended {
            Ok(better) => {
                let back = &pools.list[better.pool].0.address;
                tracing::info!(pool = back, from = address, "a better pool is back; moving to it");
                Some(better)
            }
            Err(error) => {
                tracing::warn!(pool = address, %error, "lost the pool; connecting again");
                None
            }
        }
    }

    /// The first pool of the list that takes the connection.
    async fn connect_to_first(&mut self) -> Option<Connection> {
        let pools = Arc::clone(&self.pools);
        for (number, (pool, _)) in pools.list.iter().enumerate() {
            match self.wait(connect(pool)).await {
                Ok((reader, writer)) => {
                    tracing::info!(pool = pool.address, "connected to the pool");
                    return Some(Connection { pool: number, reader, writer });
                }
                Err(error) => {
                    tracing::warn!(pool = pool.address, %error, "no connection to the pool");
                }
            }
        }
        None
    }

    /// Does `work`, and meanwhile takes note of commands: nothing can be sent.
    async fn wait<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                Some(command) = self.inbox.recv() => drop(self.obey(command)),
            }
        }
    }

    /// Carries messages until there is a connection to a better pool, or this
    /// one is lost.
    async fn talk(&mut self, connection: Connection) -> Result<Connection, LinkError> {
        let Connection { pool, mut reader, mut writer } = connection;
        let better = better_pool(Arc::clone(&self.pools), pool, self.retry_better);
        tokio::pin!(better);
        self.generation += 1;
        self.connected = true;
        self.labels = false;
        let mut first = vec![framed(ask_for_labels())?];
        let keys: Vec<u64> = self.lines.keys().copied().collect();
        first.extend(keys.into_iter().filter_map(|key| self.ask(key)));
        writer.send(first).await?;
        let mut heard = Instant::now();
        loop {
            // Every branch is cancel-safe: each only waits, and works afterwards.
            tokio::select! {
                biased;
                connection = &mut better => return Ok(connection),
                message = reader.next(&[]) => {
                    heard = Instant::now();
                    match message {
                        Ok((message, _)) => writer.send(self.receive(message)).await?,
                        Err(NoiseError::Message(error)) => {
                            tracing::debug!(?error, "the pool sent what cannot be understood");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Some(command) = self.inbox.recv() => {
                    if self.is_idle() {
                        heard = Instant::now();
                    }
                    let mut frames: Vec<_> = self.obey(command).into_iter().collect();
                    while frames.len() < BURST && let Ok(command) = self.inbox.try_recv() {
                        frames.extend(self.obey(command));
                    }
                    writer.send(frames).await?;
                }
                () = tokio::time::sleep_until(heard + MAX_SILENCE), if !self.is_idle() => {
                    return Err(LinkError::Silent);
                }
            }
        }
    }

    /// Whether the pool has nothing to say.
    fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.open.is_empty()
    }

    /// Takes a command, and says what has to be sent for it.
    fn obey(&mut self, command: Command) -> Option<OutboundFrame> {
        match command {
            Command::Open { key, tag, request, events, cut_off } => {
                self.lines.insert(key, Entry { tag, request, events, cut_off, channel: None });
                self.ask(key)
            }
            Command::Send { generation, frame } => {
                (generation == self.generation && self.connected).then_some(frame)
            }
            Command::Close { key } => self.close(key),
        }
    }

    /// Asks the pool for a line's channel.
    fn ask(&mut self, key: u64) -> Option<OutboundFrame> {
        if !self.connected {
            return None;
        }
        let request = self.lines.get(&key)?.request.clone();
        self.last_request_id = self.last_request_id.wrapping_add(1);
        let request_id = self.last_request_id;
        self.asked.insert(request_id, key);
        let user_identity = text(&request.identity);
        let (nominal_hash_rate, max_target) = (request.hashrate, request.max_target.into());
        let message = match request.kind {
            Kind::Standard => {
                MiningOwned::OpenStandardMiningChannel(OpenStandardMiningChannelOwned {
                    request_id,
                    user_identity,
                    nominal_hash_rate,
                    max_target,
                })
            }
            Kind::Extended { min_extranonce } => {
                MiningOwned::OpenExtendedMiningChannel(OpenExtendedMiningChannelOwned {
                    request_id,
                    user_identity,
                    nominal_hash_rate,
                    max_target,
                    min_extranonce_size: min_extranonce,
                })
            }
        };
        mining(message)
    }

    fn close(&mut self, key: u64) -> Option<OutboundFrame> {
        let (channel_id, _) = self.lines.remove(&key)?.channel?;
        self.open.remove(&channel_id);
        mining(close_channel(channel_id))
    }

    /// The connection is gone, and every channel with it.
    fn forget_connection(&mut self) {
        self.connected = false;
        self.asked.clear();
        self.open.clear();
        let lost: Vec<u64> = self.lines.keys().copied().collect();
        for key in lost {
            let was_open = self.lines.get_mut(&key).is_some_and(|e| e.channel.take().is_some());
            if was_open {
                self.tell(key, FromPool::Lost);
            }
        }
    }

    /// Gives a message to whom it concerns; what has to be answered.
    fn receive(&mut self, message: AnyMessageOwned) -> Vec<OutboundFrame> {
        match message {
            AnyMessageOwned::Mining(message) => self.route(message),
            AnyMessageOwned::Extensions(ExtensionsOwned::ExtensionsNegotiation(
                ExtensionsNegotiationOwned::RequestExtensionsSuccess(agreed),
            )) => {
                self.labels = agreed.supported_extensions.as_slice().contains(&WORKER_LABELS);
                Vec::new()
            }
            other => {
                tracing::debug!(%other, "passed over");
                Vec::new()
            }
        }
    }

    fn route(&mut self, message: MiningOwned) -> Vec<OutboundFrame> {
        match message {
            MiningOwned::OpenStandardMiningChannelSuccess(m) => {
                let channel = (m.channel_id, m.group_channel_id);
                let target = Target::from_le_bytes(m.target.to_array());
                self.opened(m.request_id, channel, target, m.extranonce_prefix.as_bytes(), 0)
            }
            MiningOwned::OpenExtendedMiningChannelSuccess(m) => {
                let channel = (m.channel_id, m.group_channel_id);
                let target = Target::from_le_bytes(m.target.to_array());
                let size = m.extranonce_size.into();
                self.opened(m.request_id, channel, target, m.extranonce_prefix.as_bytes(), size)
            }
            MiningOwned::OpenMiningChannelError(m) => {
                if let Some(key) = self.asked.remove(&m.request_id) {
                    self.tell(key, FromPool::Refused(m.error_code.as_utf8_or_hex()));
                    self.lines.remove(&key);
                }
                Vec::new()
            }
            MiningOwned::CloseChannel(m) => {
                if let Some(key) = self.open.remove(&m.channel_id) {
                    self.tell(key, FromPool::Refused(m.reason_code.as_utf8_or_hex()));
                    self.lines.remove(&key);
                }
                Vec::new()
            }
            MiningOwned::SetGroupChannel(m) => {
                for channel_id in m.channel_ids.as_slice() {
                    let key = self.open.get(channel_id);
                    if let Some(entry) = key.and_then(|key| self.lines.get_mut(key)) {
                        entry.channel = Some((*channel_id, m.group_channel_id));
                    }
                }
                Vec::new()
            }
            other => self.deliver(other),
        }
    }

    fn opened(
        &mut self,
        request_id: u32,
        channel: (u32, u32),
        target: Target,
        prefix: &[u8],
        extranonce_size: usize,
    ) -> Vec<OutboundFrame> {
        let key = self.asked.remove(&request_id);
        let Some((key, entry)) = key.and_then(|key| Some((key, self.lines.get_mut(&key)?))) else {
            // Its owner has left meanwhile.
            return mining(close_channel(channel.0)).into_iter().collect();
        };
        entry.channel = Some(channel);
        self.open.insert(channel.0, key);
        let opened = Opened {
            generation: self.generation,
            channel_id: channel.0,
            target,
            prefix: prefix.to_vec(),
            extranonce_size,
            labels: self.labels,
            tally: Arc::clone(&self.pools.list[self.pool].1),
        };
        self.tell(key, FromPool::Opened(Box::new(opened))).into_iter().collect()
    }

    /// Gives a message to its channel, or to all channels of its group.
    fn deliver(&mut self, message: MiningOwned) -> Vec<OutboundFrame> {
        let Some(channel_id) = channel_of(&message) else {
            tracing::debug!(%message, "passed over");
            return Vec::new();
        };
        if let Some(key) = self.open.get(&channel_id).copied() {
            self.note_target(key, &message);
            return self.tell(key, FromPool::Message(Box::new(message))).into_iter().collect();
        }
        let in_group = |entry: &Entry| {
            channel_id != NO_GROUP && entry.channel.is_some_and(|(_, group)| group == channel_id)
        };
        let members = self.lines.iter().filter(|(_, entry)| in_group(entry));
        let members: Vec<u64> = members.map(|(key, _)| *key).collect();
        let tell = |key| self.tell(key, FromPool::Message(Box::new(message.clone())));
        members.into_iter().filter_map(tell).collect()
    }

    /// The target that a pool sets tells the hash rate that it has found: the
    /// next pool need not begin from nothing.
    fn note_target(&mut self, key: u64, message: &MiningOwned) {
        let MiningOwned::SetTarget(set) = message else { return };
        let found = hash_rate_from_target(set.maximum_target.clone(), SUGGESTED_SHARES_PER_MINUTE);
        if let (Ok(hashrate), Some(entry)) = (found, self.lines.get_mut(&key)) {
            entry.request.hashrate = hashrate as f32;
        }
    }

    /// Tells the owner of a line, without waiting. An owner that has gone or
    /// does not keep up loses the line; what has to be sent to the pool then.
    fn tell(&mut self, key: u64, event: FromPool) -> Option<OutboundFrame> {
        let entry = self.lines.get(&key)?;
        match entry.events.try_send((entry.tag, event)) {
            Ok(()) => None,
            Err(_) => {
                entry.cut_off.store(true, Ordering::Relaxed);
                self.close(key)
            }
        }
    }
}

/// The channel that a message from the pool is for.
fn channel_of(message: &MiningOwned) -> Option<u32> {
    match message {
        MiningOwned::NewExtendedMiningJob(m) => Some(m.channel_id),
        MiningOwned::NewMiningJob(m) => Some(m.channel_id),
        MiningOwned::SetExtranoncePrefix(m) => Some(m.channel_id),
        MiningOwned::SetNewPrevHash(m) => Some(m.channel_id),
        MiningOwned::SetTarget(m) => Some(m.channel_id),
        MiningOwned::SubmitSharesError(m) => Some(m.channel_id),
        MiningOwned::SubmitSharesSuccess(m) => Some(m.channel_id),
        MiningOwned::UpdateChannelError(m) => Some(m.channel_id),
        _ => None,
    }
}

/// Tries the pools before this one, again and again; the first connection that
/// one of them takes. For ever, if there is none before it.
async fn better_pool(pools: Arc<Pools>, pool: usize, pause: Duration) -> Connection {
    if pool == 0 {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(pause).await;
        for (number, (better, _)) in pools.list[..pool].iter().enumerate() {
            match connect(better).await {
                Ok((reader, writer)) => return Connection { pool: number, reader, writer },
                Err(error) => {
                    tracing::debug!(pool = better.address, %error, "the better pool is not back");
                }
            }
        }
    }
}

/// Connects and sets up.
async fn connect(pool: &PoolAddress) -> Result<(Reader, Writer), LinkError> {
    let timed_out = |_| LinkError::Noise(NoiseError::Timeout);
    let stream = timeout(POOL_PATIENCE, TcpStream::connect(&pool.address)).await;
    let stream = stream.map_err(timed_out)?.map_err(LinkError::Connect)?;
    let limits = Limits { handshake: POOL_PATIENCE, write: POOL_PATIENCE, frame: MAX_FRAME_BYTES };
    let (mut reader, mut writer) = hashpit_noise::connect(stream, &pool.authority, limits).await?;
    writer.send([framed(setup(&pool.address))?]).await?;
    let answer = timeout(POOL_PATIENCE, reader.next(&[])).await.map_err(timed_out)?;
    match answer?.0 {
        AnyMessageOwned::Common(CommonMessagesOwned::SetupConnectionSuccess(_)) => {
            Ok((reader, writer))
        }
        AnyMessageOwned::Common(CommonMessagesOwned::SetupConnectionError(m)) => {
            Err(LinkError::Refused(m.error_code.as_utf8_or_hex()))
        }
        other => Err(LinkError::Unexpected(other.to_string())),
    }
}

fn setup(address: &str) -> AnyMessageOwned {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    AnyMessageOwned::Common(CommonMessagesOwned::SetupConnection(SetupConnectionOwned {
        protocol: Protocol::MiningProtocol,
        min_version: 2,
        max_version: 2,
        flags: VERSION_ROLLING,
        endpoint_host: text(host),
        endpoint_port: port.parse().unwrap_or_default(),
        vendor: text("hashpit"),
        hardware_version: text("proxy"),
        firmware: text(env!("CARGO_PKG_VERSION")),
        device_id: text(""),
    }))
}

fn ask_for_labels() -> AnyMessageOwned {
    let request = RequestExtensionsOwned {
        request_id: 0,
        requested_extensions: Seq064KOwned::new(vec![WORKER_LABELS]).expect("one fits"),
    };
    AnyMessageOwned::Extensions(ExtensionsOwned::ExtensionsNegotiation(
        ExtensionsNegotiationOwned::RequestExtensions(request),
    ))
}

fn close_channel(channel_id: u32) -> MiningOwned {
    MiningOwned::CloseChannel(CloseChannelOwned { channel_id, reason_code: text("") })
}

/// A frame of a message that is ours, and so fits.
fn mining(message: MiningOwned) -> Option<OutboundFrame> {
    framed(AnyMessageOwned::Mining(message)).ok()
}
