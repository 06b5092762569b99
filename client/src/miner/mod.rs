//! A miner on the CPU: an Sv2 client like any other, so that one machine can
//! try everything, and a test can mine.
//!
//! [`mine`] holds a session with one pool and comes back after every failure,
//! for ever, with a jittered pause. The hashing runs on threads of its own. It
//! tells the pool the hash rate that it has measured, and leaves a job at once
//! when the tip changes.
//!
//! | module | what lives in it |
//! |---|---|
//! | `header` | one header, hashed quickly |
//! | `hashers` | the threads |
//! | `session` | the talk with the pool |

mod hashers;
mod header;
mod session;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use hashpit_nips::MinerIdentity;
use rand::Rng;
pub use stratum_apps::key_utils::Secp256k1PublicKey as AuthorityKey;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use hashers::Hashers;
use session::Session;

/// How long the hash rate is measured before the first session.
const MEASURE: Duration = Duration::from_millis(500);
/// The first pause after a failure; each further one doubles it.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Whom to mine for, and how hard.
#[derive(Debug, Clone)]
pub struct Config {
    /// The pool's address, `host:port`.
    pub pool: String,
    /// The key by which the pool proves itself.
    pub authority: AuthorityKey,
    /// Who is credited.
    pub identity: MinerIdentity,
    /// Threads that hash.
    pub threads: NonZeroUsize,
    /// Hashes per second that all threads together may reach; no limit if
    /// `None`.
    pub max_hashrate: Option<f64>,
}

/// How the mining goes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Whether a channel is open.
    pub connected: bool,
    /// Hashes per second, lately.
    pub hashrate: f64,
    /// Shares sent.
    pub submitted: u64,
    /// Shares that the pool has acknowledged.
    pub accepted: u64,
    /// Shares that the pool has refused, by its error code.
    pub rejected: BTreeMap<String, u64>,
}

/// Mines until `shutdown`. Failures are logged and tried again: there is
/// nothing that the caller could do about them.
pub async fn mine(config: Config, progress: watch::Sender<Progress>, shutdown: CancellationToken) {
    let (mut hashers, mut found) = Hashers::start(config.threads, config.max_hashrate);
    let hashrate = tokio::select! {
        biased;
        () = shutdown.cancelled() => return,
        hashrate = hashers.measure(MEASURE) => hashrate,
    };
    progress.send_modify(|progress| progress.hashrate = hashrate);
    tracing::info!(hashrate, threads = config.threads, pool = config.pool, "mining");
    let mut pause = MIN_PAUSE;
    loop {
        let mut session = Session::new(&config, hashrate, &progress, &mut hashers, &mut found);
        let ended = session.run(&shutdown).await;
        let opened = session.opened();
        hashers.idle();
        progress.send_modify(|progress| progress.connected = false);
        match ended {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, pool = config.pool, "lost the pool; trying again"),
        }
        pause = if opened { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(jittered(pause)) => {}
        }
    }
}

/// Half to one and a half of `pause`, so that a pool's miners do not all come
/// back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}
