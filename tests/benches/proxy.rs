//! What the proxy costs: the time that it adds to a share, and its memory for
//! each Stratum V1 device. Prints figures; nothing here fails by being slow.
//!
//! `cargo bench -p hashpit-tests --bench proxy`

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod figures;

use std::io::{BufRead, BufReader as StdBufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use figures::{p50, print_conditions};
use hashpit_client::proxy::Settings;
use hashpit_tests::house::PoolHouse;
use hashpit_tests::proxy_house::{ProxyHouse, address};
use hashpit_tests::sv1_miner::Sv1Miner;
use hashpit_tests::sv2_peer::{Channel, Sv2Peer};
use nostr_sdk::{Keys, PublicKey, ToBech32};
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;

/// Shares timed on each path.
const SHARES: usize = 300;
/// Devices connected at once.
const DEVICES: u64 = 1_000;
/// Names the process that only runs a proxy.
const CHILD: &str = "HASHPIT_BENCH_PROXY";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Ok(pool) = std::env::var(CHILD) {
        runtime.block_on(run_proxy(&pool));
        return;
    }
    runtime.block_on(async {
        latency().await;
        memory().await;
    });
    print_conditions();
}

fn miner() -> PublicKey {
    Keys::parse(&format!("{:064}", 7)).unwrap().public_key()
}

/// A pool that asks for very few hashes a share.
async fn pool(dir: &std::path::Path) -> PoolHouse {
    let mut config = PoolHouse::config_without_blocks(&[]).unwrap();
    config.sv2.min_hashrate = 10_000.0;
    config.sv2.shares_per_minute = 6_000.0;
    PoolHouse::start(config, dir).await.unwrap()
}

/// Time from a share's leaving to the pool's word on it: straight to the pool,
/// through the proxy by Stratum V2 and by V1, one after the other.
async fn latency() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let pools = vec![address(&pool).unwrap()];
    let proxy = ProxyHouse::start(pools, miner(), ProxyHouse::settings()).await.unwrap();
    let identity = miner().to_bech32().unwrap();
    let mut direct = Sv2Peer::ready(pool.sv2).await.unwrap();
    let mut below = Sv2Peer::ready(proxy.sv2).await.unwrap();
    let mut direct_channel = direct.open_extended(&identity, 1.0).await.unwrap().unwrap();
    let mut below_channel = below.open_extended(&identity, 1.0).await.unwrap().unwrap();
    let mut device = Sv1Miner::connect(proxy.sv1, "device").await.unwrap();
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..SHARES {
        times[0].push(share(&mut direct, &mut direct_channel).await);
        times[1].push(share(&mut below, &mut below_channel).await);
        times[2].push(device.timed_share().await.unwrap());
    }
    let [direct, sv2, sv1] = times.map(p50);
    println!("share, submitted to acknowledged, p50 of {SHARES} (target: 1 ms added):");
    println!("  straight to the pool    {direct:?}");
    println!("  through the proxy, Sv2  {sv2:?} ({:+.3} ms)", added(sv2, direct));
    println!("  through the proxy, Sv1  {sv1:?} ({:+.3} ms)", added(sv1, direct));
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

async fn share(peer: &mut Sv2Peer, channel: &mut Channel) -> Duration {
    let share = channel.mine().unwrap();
    let begun = Instant::now();
    peer.send_mining(share.message()).await.unwrap();
    loop {
        match peer.next_mining().await.unwrap() {
            MiningOwned::SubmitSharesSuccess(_) => return begun.elapsed(),
            MiningOwned::SubmitSharesError(m) => panic!("{m:?}"),
            other => channel.follow(&other),
        }
    }
}

fn added(time: Duration, direct: Duration) -> f64 {
    (time.as_secs_f64() - direct.as_secs_f64()) * 1e3
}

/// Memory of a proxy in a process of its own, before and after devices come.
async fn memory() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    for aggregate in ["", " aggregated"] {
        let mut proxy = Proxy::start(&format!("{} {}{aggregate}", pool.sv2, pool.authority));
        // One device first, so that what is made once is made.
        let mut devices = vec![Sv1Miner::connect(proxy.sv1, "first").await.unwrap()];
        let before = proxy.resident_kb();
        for number in 0..DEVICES {
            let name = format!("device{number}");
            devices.push(Sv1Miner::connect(proxy.sv1, &name).await.unwrap());
        }
        let after = proxy.resident_kb();
        println!(
            "memory of {DEVICES} Sv1 devices{aggregate}: {:.1} KB each (target: 64 KB; {before} to {after} KB)",
            (after - before) as f64 / DEVICES as f64
        );
        drop(devices);
        proxy.child.kill().unwrap();
        proxy.child.wait().unwrap();
    }
    pool.stop().await.unwrap();
}

/// A proxy in a process of its own.
struct Proxy {
    child: Child,
    sv1: SocketAddr,
}

impl Proxy {
    fn start(pool: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child =
            command.env(CHILD, pool).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut out = StdBufReader::new(child.stdout.as_mut().unwrap());
        out.read_line(&mut line).unwrap();
        Self { child, sv1: line.trim().parse().unwrap() }
    }

    fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

async fn run_proxy(pool: &str) {
    let mut words = pool.split(' ');
    let address = words.next().unwrap().to_owned();
    let authority = words.next().unwrap().parse().unwrap();
    let settings = Settings { aggregate: words.next().is_some(), ..ProxyHouse::settings() };
    let pools = vec![hashpit_client::proxy::PoolAddress { address, authority }];
    let proxy = ProxyHouse::start(pools, miner(), settings).await.unwrap();
    println!("{}", proxy.sv1);
    // Until the process is killed, or its parent is gone.
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
        .await
        .unwrap()
        .ok();
}
