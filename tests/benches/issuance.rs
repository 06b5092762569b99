//! How long after the pool has accepted a share its ehash is in the wallet, and
//! how long until it is backed up there: a device below the proxy, a pool that
//! issues as often as it does by default, one relay.
//!
//!     cargo bench -p hashpit-tests --bench issuance

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod figures;

use std::time::{Duration, Instant};

use figures::{p50, print_conditions};
use hashpit_client::Wallet;
use hashpit_client::backup::Settings;
use hashpit_client::issuance::{self, Progress, Until};
use hashpit_nips::HashUnits;
use hashpit_tests::house::{PoolHouse, RelayHouse};
use hashpit_tests::proxy_house::{ProxyHouse, address};
use hashpit_tests::sv1_miner::Sv1Miner;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Shares timed.
const SHARES: usize = 200;
/// From one share to the next: no divisor of the pool's interval, so that shares
/// fall anywhere in it.
const PACE: Duration = Duration::from_millis(370);

/// An accepted share, and the units that have to arrive until it is paid.
struct Share {
    accepted: Instant,
    owed: HashUnits,
}

/// Something that changed in the wallet.
struct Change {
    at: Instant,
    received: HashUnits,
    safe: bool,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
    print_conditions();
}

async fn measure() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let relays = vec![relay.url.clone()];
    let mut config = PoolHouse::config_without_blocks(&relays).unwrap();
    config.issue_interval_ms = hashpit_pool::Config::default().issue_interval_ms;
    let interval = config.issue_interval_ms;
    let pool = PoolHouse::start(config, &dir.path().join("pool")).await.unwrap();
    let wallet = Wallet::open_or_create(&dir.path().join("wallet"), || [7; 16]).await.unwrap();
    let settings = Settings { relays: relays.clone(), quorum: None };
    wallet.set_backup_settings(&settings).await.unwrap();
    let (miner, pools) = (wallet.public_key(), vec![address(&pool).unwrap()]);
    let proxy = ProxyHouse::start(pools, miner, ProxyHouse::settings()).await.unwrap();

    let (sender, mut progress) = watch::channel(Progress::default());
    let changes = tokio::spawn(changes(progress.clone()));
    let (key, stop) = (pool.key, CancellationToken::new());
    let stopped = stop.clone();
    let claiming = tokio::spawn(async move {
        issuance::claim(&wallet, key, &relays, Until::Shutdown, sender, stopped).await.unwrap()
    });
    // Before that the pool has no blanks to sign.
    progress.wait_for(|now| now.epoch.is_some()).await.unwrap();
    let shares = mine(&proxy, &pool).await;
    let all = shares.last().unwrap().owed;
    progress.wait_for(|now| now.received >= all && now.safe).await.unwrap();
    stop.cancel();
    claiming.await.unwrap();
    report(&shares, &changes.await.unwrap(), interval);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

/// Mines below the proxy, one share after the other.
async fn mine(proxy: &ProxyHouse, pool: &PoolHouse) -> Vec<Share> {
    let mut device = Sv1Miner::connect(proxy.sv1, "device").await.unwrap();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shares = Vec::new();
    for _ in 0..SHARES {
        pace.tick().await;
        device.timed_share().await.unwrap();
        let accepted = Instant::now();
        let work = pool.monitor.status().totals.work;
        shares.push(Share { accepted, owed: pool.epoch.work.units_in(work).unwrap() });
    }
    assert!(device.tally().rejected.is_empty(), "{:?}", device.tally());
    shares
}

/// All that changes until the claim ends.
async fn changes(mut progress: watch::Receiver<Progress>) -> Vec<Change> {
    let mut changes = Vec::new();
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update();
        changes.push(Change { at: Instant::now(), received: now.received, safe: now.safe });
    }
    changes
}

fn report(shares: &[Share], changes: &[Change], interval_ms: u64) {
    let arrived: Vec<_> = changes.iter().map(|change| (change.at, change.received)).collect();
    // What was there when something was not safe yet is what became safe.
    let mut unsafe_until = HashUnits::ZERO;
    let mut backed_up = Vec::new();
    for change in changes {
        if change.safe {
            backed_up.push((change.at, unsafe_until));
        } else {
            unsafe_until = change.received;
        }
    }
    let [arrived, backed_up] = [arrived, backed_up].map(|steps| times(shares, &steps));
    println!("share accepted by the pool, device below the proxy, p50 of {SHARES}:");
    println!("  ehash in the wallet  {:.2} s", p50(arrived).as_secs_f64());
    println!("  and backed up        {:.2} s (target: 2 s)", p50(backed_up).as_secs_f64());
    println!(
        "  the pool issues to a miner every {:.1} s: half of that is waited for on average",
        interval_ms as f64 / 1e3
    );
}

/// How long each share took until the first step that covers it.
fn times(shares: &[Share], steps: &[(Instant, HashUnits)]) -> Vec<Duration> {
    let covers = |share: &Share| {
        let step = steps.iter().find(|(_, units)| *units >= share.owed).unwrap();
        step.0.saturating_duration_since(share.accepted)
    };
    shares.iter().map(covers).collect()
}
