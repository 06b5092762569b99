//! The built-in CPU miner and the Sv2 front end, on an embedded chain.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::ScriptBuf;
use hashpit_client::miner::{self, Progress};
use hashpit_pool::share::{Outcome, Submission, Verdict};
use hashpit_pool::sv2::{self, Authority, Config, Front, Stats};
use hashpit_pool::template::embedded::system_clock;
use hashpit_pool::template::{EmbeddedChain, EmbeddedConfig};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
/// Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pool whose ledger records every share once.
struct Pool {
    address: SocketAddr,
    chain: EmbeddedChain,
    stats: Arc<Stats>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

fn authority() -> Authority {
    Authority::from_secret(&[9; 32]).unwrap()
}

impl Pool {
    async fn start(directory: &Path, address: SocketAddr) -> Self {
        // About 60 shares a block, and as many shares a second as a slow
        // machine finds.
        let bits =
            EmbeddedConfig { bits: "1e7fffff".parse().unwrap(), ..EmbeddedConfig::default() };
        let path = directory.join("blocks.dat");
        let (chain, task) = EmbeddedChain::open(bits, &path, system_clock()).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(stop.clone()));
        let (shares, ledger) = mpsc::channel(64);
        tasks.spawn(record(ledger));
        let stats = Arc::new(Stats::default());
        let front = Front {
            authority: authority(),
            templates: Arc::new(chain.clone()),
            shares,
            payout: ScriptBuf::from(vec![0x51]),
            coinbase_tag: "hashpit".to_owned(),
            config: Config {
                shares_per_minute: 2_000.0,
                min_hashrate: 1_000.0,
                ..Config::default()
            },
            stats: Arc::clone(&stats),
        };
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = sv2::serve(front, listener, stop.clone());
        tasks.spawn(async move { serving.await.unwrap() });
        Self { address, chain, stats, stop, tasks }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

async fn record(mut ledger: mpsc::Receiver<Submission>) {
    let mut seen = HashSet::new();
    while let Some(Submission { share, ticket, reply }) = ledger.recv().await {
        let new = seen.insert(share.header_hash);
        let outcome = if new { Outcome::Recorded } else { Outcome::Duplicate };
        // The connection may be gone.
        let _ = reply.try_send(Verdict { ticket, outcome });
    }
}

fn start_miner(pool: SocketAddr, stop: CancellationToken) -> watch::Receiver<Progress> {
    let config = miner::Config {
        pool: pool.to_string(),
        authority: authority().to_string().parse().unwrap(),
        identity: format!("{NPUB}.cpu").parse().unwrap(),
        threads: NonZeroUsize::MIN,
        max_hashrate: None,
    };
    let (progress, receiver) = watch::channel(Progress::default());
    tokio::spawn(miner::mine(config, progress, stop));
    receiver
}

async fn until(
    progress: &mut watch::Receiver<Progress>,
    wanted: impl Fn(&Progress) -> bool,
) -> Progress {
    let reached = progress.wait_for(|progress| wanted(progress));
    tokio::time::timeout(PATIENCE, reached).await.expect("progress").unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cpu_miner_mines_blocks_and_comes_back_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Pool::start(directory.path(), "127.0.0.1:0".parse().unwrap()).await;
    let address = pool.address;
    let stop = CancellationToken::new();
    let mut progress = start_miner(address, stop.clone());
    let before = until(&mut progress, |p| p.accepted > 0 && pool.chain.height() >= 2).await;
    assert!(before.connected && before.hashrate > 0.0);
    // Only a new tip makes a share of an honest miner wrong.
    assert!(before.rejected.keys().all(|code| code == "stale-share"), "{:?}", before.rejected);
    let stats = pool.stats.snapshot();
    assert!(stats.blocks >= 2 && stats.accepted >= before.accepted);
    let height = pool.chain.height();
    pool.stop().await;

    until(&mut progress, |p| !p.connected).await;
    let pool = Pool::start(directory.path(), address).await;
    assert!(pool.chain.height() >= height);
    until(&mut progress, |p| p.connected && p.accepted > before.accepted).await;
    stop.cancel();
    pool.stop().await;
}
