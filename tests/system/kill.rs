//! SIGKILL for relay, pool and proxy at random moments, while a Stratum V1 and a
//! Stratum V2 miner mine through the proxy. Afterwards nothing is lost and
//! nothing is doubled: every acknowledged share is credited; credited = issued ×
//! 2^k + remainder; issued = what the wallet holds; the same comes back from the
//! words and the relay; and all of it can be spent.
//!
//! `HASHPIT_SEED` repeats a run; `HASHPIT_KILLS` makes it longer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hashpit_client::proxy::{Listeners, PoolAddress, Proxy, Settings};
use hashpit_client::wallet::account;
use hashpit_client::{Wallet, miner, proxy};
use hashpit_nips::{EpochId, HashUnits, MinerIdentity};
use hashpit_tests::house::PoolHouse;
use hashpit_tests::process::{Process, free_port};
use hashpit_tests::sv1_miner::Sv1Miner;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const WORK_BITS: u8 = 12;
/// Kills in a run, unless `HASHPIT_KILLS` says otherwise.
const KILLS: u32 = 20;
/// Longest time between two kills.
const LULL_MS: u64 = 1500;
/// How long the survivors may take to agree in the end.
const SETTLING: Duration = Duration::from_secs(120);

fn from_env<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// The three that are killed, by command line.
struct Victims {
    commands: [Vec<String>; 3],
    running: [Process; 3],
    dir: std::path::PathBuf,
}

impl Victims {
    fn start(dir: &Path, commands: [Vec<String>; 3]) -> Self {
        let running = [0, 1, 2].map(|index| launch(dir, &commands[index]));
        Self { commands, running, dir: dir.to_owned() }
    }

    fn kill_and_restart(&mut self, which: &[usize]) {
        for &index in which {
            self.running[index].kill();
        }
        for &index in which {
            self.running[index] = launch(&self.dir, &self.commands[index]);
        }
    }
}

fn launch(dir: &Path, args: &[String]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir).args(args);
    Process::start(&mut command, &dir.join("victims.log")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled() {
    let seed = from_env("HASHPIT_SEED").unwrap_or_else(rand::random);
    println!("HASHPIT_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay_port = free_port().unwrap();
    let (mint_port, sv2_port) = (free_port().unwrap(), free_port().unwrap());
    let (proxy_sv1, proxy_sv2) = (free_port().unwrap(), free_port().unwrap());
    let relay_url = format!("ws://127.0.0.1:{relay_port}");
    let config = format!(
        "[listen]\nrelay = {relay_port}\nmint = {mint_port}\nsv2 = {sv2_port}\n\
         proxy_sv1 = {proxy_sv1}\nproxy_sv2 = {proxy_sv2}\n\
         [pool]\nrelays = [\"{relay_url}\"]\nwork_bits = {WORK_BITS}\nissue_interval_ms = 0\n\
         [pool.sv2]\nshares_per_minute = 240.0\n\
         [proxy.devices]\nhashrate = 100000.0\n"
    );
    let config_file = dir.join("hashpit.toml");
    fs::write(&config_file, config).unwrap();

    // A first start makes the keys that the miner has to know.
    let relays = [relay_url.parse().unwrap()];
    let pool = PoolHouse::start(PoolHouse::config(&relays), &dir.join("pool")).await.unwrap();
    let (key, epoch, authority) = (pool.key, pool.epoch.id, pool.authority.clone());
    pool.stop().await.unwrap();
    let wallet = Wallet::open_or_create(&dir.join("wallet"), rand::random).await.unwrap();

    let args = |text: &str| {
        let config = ["--config".to_owned(), config_file.display().to_string()];
        config.into_iter().chain(text.split(' ').map(str::to_owned)).collect::<Vec<_>>()
    };
    let proxying = format!(
        "proxy --pool 127.0.0.1:{sv2_port} --authority {authority} --npub {} --relay {relay_url}",
        key.to_hex()
    );
    let mut victims = Victims::start(dir, [args("relay"), args("pool"), args(&proxying)]);

    let (progress, mined) = watch::channel(miner::Progress::default());
    let stop_mining = CancellationToken::new();
    let miner = miner::Config {
        pool: format!("127.0.0.1:{proxy_sv2}"),
        authority: proxy_authority(&wallet, &authority).await.parse().unwrap(),
        identity: MinerIdentity { miner: wallet.public_key(), worker: None },
        threads: std::num::NonZeroUsize::MIN,
        max_hashrate: Some(100_000.0),
    };
    let mining = tokio::spawn(miner::mine(miner, progress, stop_mining.clone()));
    let device = tokio::spawn(sv1_device(proxy_sv1, stop_mining.clone()));

    for _ in 0..from_env("HASHPIT_KILLS").unwrap_or(KILLS) {
        sleep(Duration::from_millis(rng.random_range(0..LULL_MS))).await;
        let all = [0, 1, 2];
        let which = match rng.random_range(0..4) {
            3 => &all[..],
            one => &all[one..=one],
        };
        victims.kill_and_restart(which);
    }
    // The miner has to have mined something between the kills.
    let mut seen = mined.clone();
    timeout(SETTLING, seen.wait_for(|progress| progress.accepted > 0)).await.unwrap().unwrap();
    stop_mining.cancel();
    mining.await.unwrap();
    let by_device = device.await.unwrap();
    let acknowledged = mined.borrow().accepted + by_device;
    println!("{by_device} of the shares came by Stratum V1");

    settle(dir, &wallet, epoch).await;
    let held = wallet.ehash(epoch).await.unwrap();
    assert_eq!(restored(dir, &wallet, &relay_url).await, held, "the relay has all of it");
    let other = Wallet::open_or_create(&dir.join("other"), rand::random).await.unwrap();
    let token = wallet.send(held.get(), None).await.unwrap();
    let spent = other.receive(&token.to_string()).await.unwrap();
    assert_eq!(spent.amount, held.get(), "all of it can be spent");
    drop(victims);
    check_books(dir, held, acknowledged).await;
}

/// The proxy's authority key, as it prints it.
async fn proxy_authority(wallet: &Wallet, pool: &str) -> String {
    let keys = wallet.seed().nostr_keys(account::PROXY_AUTHORITY);
    let pool = PoolAddress { address: "127.0.0.1:1".to_owned(), authority: pool.parse().unwrap() };
    let config = proxy::Config {
        pools: vec![pool],
        miner: wallet.public_key(),
        authority: keys.secret_key().to_secret_bytes(),
        settings: Settings::default(),
    };
    let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listeners = Listeners { sv1: listen().await, sv2: listen().await };
    Proxy::open(config, listeners).unwrap().authority()
}

/// A device that mines whenever there is a proxy; the shares that it was told
/// were accepted.
async fn sv1_device(port: u16, stop: CancellationToken) -> u64 {
    let mut accepted = 0;
    while !stop.is_cancelled() {
        let Ok(mut miner) = Sv1Miner::connect(([127, 0, 0, 1], port).into(), "device").await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::select! { biased;
            () = stop.cancelled() => {}
            // Ends with the connection.
            _ = miner.mine(u64::MAX / 2) => {}
        }
        accepted += miner.tally().accepted;
    }
    accepted
}

/// What a wallet on another machine gets back from the words and the relay.
async fn restored(dir: &Path, wallet: &Wallet, relay: &str) -> HashUnits {
    let elsewhere = dir.join("elsewhere");
    let mut restore = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    restore.arg("--data-dir").arg(&elsewhere).args(["wallet", "restore", "--relay", relay]);
    restore.stdin(Stdio::piped()).stdout(Stdio::null());
    let words = wallet.seed().words();
    let restored = tokio::task::spawn_blocking(move || {
        let mut child = restore.spawn().unwrap();
        child.stdin.take().unwrap().write_all(words.as_bytes()).unwrap();
        child.wait().unwrap()
    });
    assert!(restored.await.unwrap().success());
    let balances = Wallet::open(&elsewhere.join("wallet")).await.unwrap().balances().await.unwrap();
    HashUnits::new(balances.iter().map(|one| one.amount).sum())
}

/// Waits until the wallet holds all that the pool owes: no whole unit is left.
async fn settle(dir: &Path, wallet: &Wallet, epoch: EpochId) {
    let begun = Instant::now();
    loop {
        let mut claim = Command::new(env!("CARGO_BIN_EXE_hashpit"));
        claim.arg("--data-dir").arg(dir).args(["wallet", "claim", "--wait", "20", "--json"]);
        let claimed = tokio::task::spawn_blocking(move || claim.output().unwrap()).await.unwrap();
        if claimed.status.success() && wallet.ehash(epoch).await.unwrap().get() > 0 {
            return;
        }
        let complaint = String::from_utf8_lossy(&claimed.stderr).into_owned();
        assert!(begun.elapsed() < SETTLING, "not settled: {complaint}");
    }
}

async fn check_books(dir: &Path, held: HashUnits, acknowledged: u64) {
    let pool = PoolHouse::start(PoolHouse::config(&[]), &dir.join("pool")).await.unwrap();
    let totals = pool.monitor.status().totals;
    pool.stop().await.unwrap();
    println!(
        "{acknowledged} shares acknowledged, {} credited, {} issued in {} batches",
        totals.shares, totals.issued, totals.batches
    );
    assert!(acknowledged > 0);
    assert!(totals.shares >= acknowledged, "an acknowledged share is not in the ledger");
    let units = totals.work.get() >> WORK_BITS;
    assert_eq!(u128::from(totals.issued.get()), units, "credited = issued × 2^k + remainder");
    assert_eq!(held, totals.issued, "issued = in the wallet");
}
