//! The mining front end: an Sv2 server (Sv2 4 and 5) behind Noise.
//!
//! [`serve`] accepts connections and gives each a task of its own, which owns
//! its channels. Templates come by a `watch`; shares leave by a bounded queue to
//! the ledger and their verdicts come back to the connection, which only then
//! acknowledges them. It promises that no share is acknowledged before the
//! ledger has recorded it, that what one peer sends costs no other anything,
//! and that every queue and buffer has a limit.
//!
//! | module | what lives in it |
//! |---|---|
//! | `config` | settings and fixed limits, each with its reason |
//! | `setup` | `SetupConnection` and extension negotiation |
//! | `connection` | one peer: its loop and its queues |
//! | `dispatch` | one peer: what each of its messages does |
//! | `channel` | one mining channel: jobs, targets, credit |
//! | `acks` | the order in which verdicts become answers |
//! | `codes` | the library's refusals as Sv2 error codes |
//! | `stats` | counters for display |

mod acks;
mod channel;
mod codes;
mod config;
mod connection;
mod dispatch;
mod setup;
mod stats;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bitcoin::ScriptBuf;
pub use hashpit_noise::Authority;
use stratum_apps::stratum_core::channels_sv2::extranonce_manager::{
    AllocatedExtranoncePrefix, ExtranonceAllocator, ExtranonceAllocatorError,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::share::Submission;
use crate::template::TemplateSource;
pub use config::{Config, MAX_TAG_BYTES};
use hashpit_noise::{Admission, Refused, Seat};
pub use stats::{Snapshot, Stats};

/// How long connections may take to deliver what they hold when the front end
/// stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Random bytes at the head of every extranonce, drawn at each start: a
/// restarted pool must not hand out the header space of its earlier self.
const BOOT_NONCE_BYTES: usize = 6;
/// Channels at one time in the whole front end: two bytes of extranonce.
const MAX_CHANNELS: u32 = 1 << 16;
/// Bytes that the owner of an extended channel rolls. Room for a proxy to put
/// its own devices' index before the 8 bytes that some of them can handle.
const ROLLABLE_BYTES: u16 = 12;
/// The whole extranonce: boot nonce, channel index, rollable bytes.
const EXTRANONCE_BYTES: u8 = BOOT_NONCE_BYTES as u8 + 2 + ROLLABLE_BYTES as u8;

/// All that the front end needs of the rest of the pool.
#[derive(Debug)]
pub struct Front {
    /// Proves to miners that they speak to this pool.
    pub authority: Authority,
    /// Where work comes from and blocks go.
    pub templates: Arc<dyn TemplateSource>,
    /// The way to the ledger. When it is full, connections stop reading.
    pub shares: mpsc::Sender<Submission>,
    /// Whom the coinbase pays.
    pub payout: ScriptBuf,
    /// What the coinbase says, at most [`MAX_TAG_BYTES`].
    pub coinbase_tag: String,
    /// Settings.
    pub config: Config,
    /// Counters, for whoever shows them.
    pub stats: Arc<Stats>,
}

/// Why the front end does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of range.
    #[error("{setting} must be {expected}")]
    Config {
        /// Its name.
        setting: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The ledger has stopped: no share can be recorded.
    #[error("the share ledger has stopped")]
    LedgerStopped,
    /// The extranonce does not fit: a contradiction among constants.
    #[error("extranonce layout: {0}")]
    Extranonce(ExtranonceAllocatorError),
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    front: Front,
    extranonces: Mutex<ExtranonceAllocator>,
}

impl Shared {
    fn new(front: Front) -> Result<Self, Error> {
        front.config.check()?;
        if front.coinbase_tag.len() > MAX_TAG_BYTES {
            return Err(Error::Config { setting: "coinbase_tag", expected: "at most 64 bytes" });
        }
        let boot_nonce: [u8; BOOT_NONCE_BYTES] = rand::random();
        let extranonces =
            ExtranonceAllocator::new(boot_nonce.to_vec(), EXTRANONCE_BYTES, MAX_CHANNELS)
                .map_err(Error::Extranonce)?;
        Ok(Self { front, extranonces: Mutex::new(extranonces) })
    }

    /// A part of the header space that no other channel has; dropping it gives
    /// it back.
    fn allocate(
        &self,
        kind: channel::Request,
    ) -> Result<AllocatedExtranoncePrefix, ExtranonceAllocatorError> {
        let mut extranonces = self.extranonces.lock().unwrap_or_else(PoisonError::into_inner);
        match kind {
            channel::Request::Standard => extranonces.allocate_standard(),
            channel::Request::Extended { min_extranonce_bytes } => {
                extranonces.allocate_extended(min_extranonce_bytes.into())
            }
        }
    }
}

/// Serves miners on `listener` until `shutdown`, then delivers what is in
/// flight, within a deadline.
///
/// Fails at once if a setting is out of range, and later only if the ledger
/// stops, since from then on no share could be recorded.
pub async fn serve(
    front: Front,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admission =
        Admission::new(front.config.max_connections, front.config.max_connections_per_ip);
    let shared = Arc::new(Shared::new(front)?);
    let stop = shutdown.child_token();
    let mut connections = JoinSet::new();
    let result = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            () = shared.front.shares.closed() => break Err(Error::LedgerStopped),
            Some(ended) = connections.join_next() => note_end(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match admission.admit(peer.ip()) {
                    Ok(seat) => drop(connections.spawn(attend(
                        Arc::clone(&shared), stream, peer, seat, stop.clone(),
                    ))),
                    Err(reason) => refuse(&shared.front.stats, peer, reason),
                },
                Err(error) => pause_after(error).await,
            },
        }
    };
    drop(listener);
    stop.cancel();
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    };
    if tokio::time::timeout(DRAIN_DEADLINE, drained).await.is_err() {
        tracing::warn!("connections did not end in time; dropping them");
    }
    result
}

/// One connection, from its handshake to its end.
async fn attend(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    seat: Seat,
    stop: CancellationToken,
) {
    let stats = Arc::clone(&shared.front.stats);
    let _counted = stats.connected();
    let span = tracing::info_span!("sv2", %peer);
    let ended = connection::run(shared, stream, stop).instrument(span.clone()).await;
    drop(seat);
    match ended {
        Ok(()) => tracing::debug!(parent: &span, "connection closed"),
        Err(error) if error.is_peers_fault() => {
            stats.dropped();
            tracing::info!(parent: &span, %error, "dropped the connection");
        }
        Err(error) => tracing::info!(parent: &span, %error, "connection ended"),
    }
}

fn refuse(stats: &Stats, peer: SocketAddr, reason: Refused) {
    stats.refused();
    tracing::debug!(%peer, %reason, "refused a connection");
}

async fn pause_after(error: io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_BACKOFF).await;
}

fn note_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task broke");
    }
}
