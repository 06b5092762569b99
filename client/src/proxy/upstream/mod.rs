//! The proxy's side towards the pools: channels that outlive connections.
//!
//! [`Upstream::open`] gives a [`Line`]: a mining channel that is opened anew
//! whenever the connection to the pool was lost, at the first pool of the list
//! that takes it, and again when a pool before that one is back. Several lines share one connection (`link`). What a channel's
//! owner is told comes by a bounded queue that the connection never waits for:
//! an owner that does not read is cut off.

mod link;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitcoin::Target;
use stratum_apps::key_utils::Secp256k1PublicKey as AuthorityKey;
use stratum_apps::stratum_core::extensions_sv2::UserIdentity;
use stratum_apps::stratum_core::mining_sv2::SubmitSharesExtendedOwned;
use stratum_apps::stratum_core::parsers_sv2::{AnyMessageOwned, MiningOwned, TlvField, TlvList};
use stratum_apps::utils::types::{InboundFrame, OutboundFrame};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::settings::LINK_QUEUE;
use super::shares::{Books, Tally};
use hashpit_noise::framed;
use link::{Command, Link};

/// Longest worker name that a share can carry (extension 0x0002).
const MAX_LABEL_BYTES: usize = 32;

/// A pool's mining port.
#[derive(Debug, Clone)]
pub struct PoolAddress {
    /// `host:port`.
    pub address: String,
    /// The key by which the pool proves itself. Addresses with the same key are
    /// one pool.
    pub authority: AuthorityKey,
}

/// What a channel is opened with, each time.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// `npub1…[.worker]`.
    pub(super) identity: String,
    /// Hashes per second.
    pub(super) hashrate: f32,
    /// The easiest target wanted, little-endian.
    pub(super) max_target: [u8; 32],
}

/// Which kind of channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Header-only mining.
    Standard,
    /// With so many bytes of extranonce to roll, at least.
    Extended { min_extranonce: u16 },
}

/// What the owner of a channel is told.
#[derive(Debug)]
pub(super) enum FromPool {
    /// The channel is open, for the first time or again.
    Opened(Box<Opened>),
    /// A message for this channel.
    Message(Box<MiningOwned>),
    /// The connection is gone; `Opened` comes once there is another.
    Lost,
    /// The pool does not open the channel, or has closed it, for this reason.
    Refused(String),
}

/// An open channel, as the pool describes it.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    /// Which connection it is on. Frames of an earlier one are not sent.
    pub(super) generation: u64,
    pub(super) channel_id: u32,
    pub(super) target: Target,
    pub(super) prefix: Vec<u8>,
    /// Bytes to roll; 0 on a standard channel.
    pub(super) extranonce_size: usize,
    /// Whether a share may say which worker found it (extension 0x0002).
    pub(super) labels: bool,
    /// What this pool has acknowledged.
    pub(super) tally: Arc<Tally>,
}

/// Where a channel's owner listens: events bear the tag.
pub(super) type Events = mpsc::Sender<(u32, FromPool)>;

/// All connections to the pools.
#[derive(Debug)]
pub(super) struct Upstream {
    pools: Arc<Pools>,
    channels_per_link: usize,
    /// Pause between two tries of the pools before the one in use.
    retry_better: Duration,
    links: Mutex<Vec<LinkHandle>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The list of pools, and what is known of each.
#[derive(Debug)]
struct Pools {
    list: Vec<(PoolAddress, Arc<Tally>)>,
    /// Connections to each, in the order of the list.
    connections: Vec<AtomicUsize>,
}

#[derive(Debug)]
struct LinkHandle {
    commands: mpsc::Sender<Command>,
    /// Lines on it.
    load: Arc<AtomicUsize>,
}

impl Upstream {
    /// `pools` must not be empty.
    pub(super) fn new(
        pools: Vec<PoolAddress>,
        channels_per_link: usize,
        retry_better: Duration,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let mut list: Vec<(PoolAddress, Arc<Tally>)> = Vec::new();
        for pool in pools {
            let key = pool.authority.into_bytes();
            let same = list.iter().find(|(other, _)| other.authority.into_bytes() == key);
            let tally = same.map(|(_, tally)| Arc::clone(tally)).unwrap_or_default();
            list.push((pool, tally));
        }
        let connections = list.iter().map(|_| AtomicUsize::new(0)).collect();
        let pools = Arc::new(Pools { list, connections });
        Self { pools, channels_per_link, retry_better, links: Mutex::default(), stop, tasks }
    }

    /// Makes the first connection before a device asks for it.
    pub(super) fn connect(&self) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.is_empty() {
            links.push(self.start_link());
        }
    }

    /// Opens a channel; `events` hears of it under `tag`.
    pub(super) async fn open(&self, request: Request, tag: u32, events: Events) -> Line {
        let line = self.line();
        let cut_off = Arc::clone(&line.cut_off);
        let open = Command::Open { key: line.key, tag, request, events, cut_off };
        // The link lives until the proxy stops, and then nothing matters.
        let _ = line.commands.send(open).await;
        line
    }

    /// The first pool's books: what it has acknowledged on all connections.
    pub(super) fn books(&self) -> Books {
        self.pools.list.first().map(|(_, tally)| tally.books()).unwrap_or_default()
    }

    /// The pools that there are connections to, and how many.
    pub(super) fn connected(&self) -> Vec<(String, usize)> {
        let counts = self.pools.connections.iter().map(|count| count.load(Ordering::Relaxed));
        let pools = self.pools.list.iter().map(|(pool, _)| pool.address.clone());
        pools.zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    fn line(&self) -> Line {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let room = |link: &&LinkHandle| link.load.load(Ordering::Relaxed) < self.channels_per_link;
        let link = links.iter().position(|link| room(&link)).unwrap_or_else(|| {
            links.push(self.start_link());
            links.len() - 1
        });
        let LinkHandle { commands, load } = &links[link];
        load.fetch_add(1, Ordering::Relaxed);
        let (commands, load) = (commands.clone(), Arc::clone(load));
        Line { key: rand::random(), cut_off: Arc::default(), commands, load }
    }

    fn start_link(&self) -> LinkHandle {
        let (commands, inbox) = mpsc::channel(LINK_QUEUE);
        let link = Link::new(Arc::clone(&self.pools), self.retry_better, inbox);
        self.tasks.spawn(link.run(self.stop.clone()));
        LinkHandle { commands, load: Arc::default() }
    }
}

/// A channel of ours at the pool. Dropping it closes the channel.
#[derive(Debug)]
pub(super) struct Line {
    key: u64,
    /// Set by the link when the owner's queue was full.
    cut_off: Arc<AtomicBool>,
    commands: mpsc::Sender<Command>,
    load: Arc<AtomicUsize>,
}

impl Line {
    /// Whether its owner has missed an event, and the channel is gone.
    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Sends a frame over the connection of this generation, if it still
    /// stands. Waits while the link's queue is full.
    pub(super) async fn send(&self, generation: u64, frame: OutboundFrame) {
        // Nobody listens only when the proxy stops.
        let _ = self.commands.send(Command::Send { generation, frame }).await;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        // If there is no room for it, the link finds out at the next job, since
        // nobody listens to it.
        let _ = self.commands.try_send(Command::Close { key: self.key });
    }
}

/// The frame of a submission, with the worker's name behind it if the pool
/// takes such.
pub(super) fn submission(
    message: SubmitSharesExtendedOwned,
    label: Option<&str>,
) -> Option<OutboundFrame> {
    let message = MiningOwned::SubmitSharesExtended(message);
    let label = label.map(|label| &label[..label.floor_char_boundary(MAX_LABEL_BYTES)]);
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return framed(AnyMessageOwned::Mining(message)).ok();
    };
    let tlv = UserIdentity::new(label).ok()?.to_tlv().ok()?;
    let bytes = TlvList::from_slice(&[tlv]).ok()?.build_frame_bytes_with_tlvs(message).ok()?;
    InboundFrame::from_bytes(bytes.into()).ok().map(OutboundFrame::Raw)
}
