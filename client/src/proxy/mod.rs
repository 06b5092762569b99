//! The miner's proxy: devices below, pools above.
//!
//! It lets any device mine for the wallet's npub: Stratum V1 devices, which
//! know neither Noise nor npubs, and Stratum V2 devices, whose identity it
//! rewrites. Towards the pools it keeps channels open over connections that come
//! and go, so that devices stay connected where their protocol allows it. It
//! promises that a device hears `true` only of a share that the pool has
//! acknowledged (unless a setting says otherwise), that each share is answered
//! once, that what one device sends costs no other anything (one whose shares
//! the pool refuses again and again is dropped, before the pool drops the
//! connection that it shares), and that every queue and buffer has a limit. It counts what the pool has acknowledged, for
//! comparison with what the pool has signed ([`reconcile`]).
//!
//! | module | what lives in it |
//! |---|---|
//! | `settings` | settings and fixed limits, each with its reason |
//! | `identity` | whose work it is |
//! | `door` | lets devices in |
//! | `upstream` | channels at the pools that outlive connections |
//! | `work` | an extended channel's jobs, targets and hashes |
//! | `shares` | shares that wait for the pool's word, and the sums |
//! | `sv1` | Stratum V1 devices |
//! | `sv2` | Stratum V2 devices |
//! | `stats` | what each worker has done |
//! | [`reconcile`] | the pool's statements against our own count |

mod door;
mod identity;
pub mod reconcile;
mod settings;
mod shares;
mod stats;
mod sv1;
mod sv2;
mod upstream;
mod work;

use std::fmt;
use std::io;
use std::sync::Arc;

use hashpit_noise::Authority;
use nostr_sdk::PublicKey;
use serde::Serialize;
pub use stratum_apps::key_utils::Secp256k1PublicKey as AuthorityKey;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use settings::DRAIN_DEADLINE;
pub use settings::Settings;
pub use shares::Books;
pub use stats::WorkerStats;
use stats::Workers;
use sv1::Sv1;
use sv2::Sv2;
pub use upstream::PoolAddress;
use upstream::Upstream;

/// Whom to mine for, and where.
#[derive(Clone)]
pub struct Config {
    /// The pools, the best first. Another is used only while those before it
    /// take no connection, which is tried anew every few minutes
    /// ([`Settings::retry_better_pool_secs`]).
    pub pools: Vec<PoolAddress>,
    /// Who is credited: the wallet's key.
    pub miner: PublicKey,
    /// Secret of the key by which the proxy proves itself to Sv2 devices.
    pub authority: [u8; 32],
    /// Settings.
    pub settings: Settings,
}

/// Prints no secret.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("pools", &self.pools)
            .field("miner", &self.miner)
            .field("authority", &"<redacted>")
            .field("settings", &self.settings)
            .finish()
    }
}

/// Sockets that the caller has bound.
#[derive(Debug)]
pub struct Listeners {
    /// For Stratum V1.
    pub sv1: TcpListener,
    /// For Stratum V2.
    pub sv2: TcpListener,
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No pool is named.
    #[error("no pool to mine at; name one with its address and authority key")]
    NoPool,
    /// A setting is out of range.
    #[error("[proxy.devices] {setting} must be {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The authority secret is zero or above the curve's order.
    #[error("the proxy's authority secret is no secp256k1 key")]
    Authority,
    /// A socket has no address.
    #[error("listener: {0}")]
    Listener(#[from] io::Error),
}

/// A proxy that is ready to serve.
pub struct Proxy {
    config: Config,
    listeners: Listeners,
    authority: Authority,
    upstream: Arc<Upstream>,
    workers: Arc<Workers>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What a proxy shows of itself; cheap to clone.
#[derive(Clone)]
pub struct Monitor {
    upstream: Arc<Upstream>,
    workers: Arc<Workers>,
}

/// A proxy at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Connections to pools, by address.
    pub pools: Vec<(String, usize)>,
    /// Every worker since the start.
    pub workers: Vec<WorkerStats>,
}

impl Proxy {
    /// Checks the configuration.
    pub fn open(config: Config, listeners: Listeners) -> Result<Self, Error> {
        config.settings.check()?;
        if config.pools.is_empty() {
            return Err(Error::NoPool);
        }
        let authority = Authority::from_secret(&config.authority).map_err(|_| Error::Authority)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let upstream = Upstream::new(
            config.pools.clone(),
            config.settings.channels_per_connection,
            config.settings.retry_better_pool(),
            stop.clone(),
            tasks.clone(),
        );
        let workers = Arc::default();
        Ok(Self {
            config,
            listeners,
            authority,
            upstream: Arc::new(upstream),
            workers,
            stop,
            tasks,
        })
    }

    /// The key that Sv2 devices must know, in base58 (Sv2 4.7).
    pub fn authority(&self) -> String {
        self.authority.to_string()
    }

    /// What there is to see.
    pub fn monitor(&self) -> Monitor {
        let (upstream, workers) = (Arc::clone(&self.upstream), Arc::clone(&self.workers));
        Monitor { upstream, workers }
    }

    /// Serves devices until `shutdown`. A pool that is not there is no error:
    /// it is tried again for ever.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { config, listeners, authority, upstream, workers, stop, tasks } = self;
        upstream.connect();
        let Config { miner, settings, .. } = config;
        let sv1 = Sv1::new(settings.clone(), miner, Arc::clone(&upstream), Arc::clone(&workers));
        let sv2 = Sv2::new(settings, miner, authority, upstream, workers);
        tasks.spawn(sv1.serve(listeners.sv1, stop.clone(), tasks.clone()));
        tasks.spawn(sv2.serve(listeners.sv2, stop.clone(), tasks.clone()));
        shutdown.cancelled().await;
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(DRAIN_DEADLINE, tasks.wait()).await.is_err() {
            tracing::warn!("connections did not end in time; dropping them");
        }
    }
}

impl Monitor {
    /// The proxy now.
    pub fn status(&self) -> Status {
        Status { pools: self.upstream.connected(), workers: self.workers.snapshot() }
    }

    /// What the first pool has acknowledged.
    pub fn books(&self) -> Books {
        self.upstream.books()
    }
}
