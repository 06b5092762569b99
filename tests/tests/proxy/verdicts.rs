//! A device hears what the pool says, once the pool has said it. The pool's
//! ledger is played by the test.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bitcoin::ScriptBuf;
use hashpit_client::proxy::{PoolAddress, Settings};
use hashpit_pool::share::{Outcome, Submission, Verdict};
use hashpit_pool::sv2::{self, Authority, Config, Front, Stats};
use hashpit_pool::template::embedded::system_clock;
use hashpit_pool::template::{Bits, EmbeddedChain, EmbeddedConfig};
use hashpit_tests::proxy_house::ProxyHouse;
use hashpit_tests::sv1_miner::{Handshake, Sv1Miner};
use hashpit_tests::sv2_peer::Sv2Peer;
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{miner, within_patience};

const SECRET: [u8; 32] = [9; 32];
/// Not the one that the proxy mines for.
const STRANGER: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";

/// Shares refused in a row after which a device is dropped.
const REFUSALS: u64 = 100;

/// The pool's front end, and where its ledger would stand.
struct Pool {
    sv2: SocketAddr,
    ledger: mpsc::Receiver<Submission>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Pool {
    async fn start(dir: &Path) -> Self {
        let bits = Bits::new(0x1a00_ffff).unwrap();
        let config = EmbeddedConfig { bits, ..EmbeddedConfig::default() };
        let (chain, task) =
            EmbeddedChain::open(config, &dir.join("blocks.dat"), system_clock()).unwrap();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(task.run(stop.clone()));
        let (shares, ledger) = mpsc::channel(64);
        let front = Front {
            authority: Authority::from_secret(&SECRET).unwrap(),
            templates: Arc::new(chain),
            shares,
            payout: ScriptBuf::from(vec![0x51]),
            coinbase_tag: "hashpit".to_owned(),
            config: Config { shares_per_minute: 60.0, min_hashrate: 20_000.0, ..Config::default() },
            stats: Arc::new(Stats::default()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sv2 = listener.local_addr().unwrap();
        let serving = sv2::serve(front, listener, stop.clone());
        tasks.spawn(async move { serving.await.unwrap() });
        Self { sv2, ledger, stop, tasks }
    }

    async fn proxy(&self, settings: Settings) -> ProxyHouse {
        let authority = Authority::from_secret(&SECRET).unwrap().to_string().parse().unwrap();
        let pools = vec![PoolAddress { address: self.sv2.to_string(), authority }];
        ProxyHouse::start(pools, miner(), settings).await.unwrap()
    }

    /// The next share; it is the wallet's, whoever the device says that it is.
    async fn share(&mut self) -> Submission {
        let submission = within_patience(self.ledger.recv()).await.unwrap();
        assert_eq!(submission.share.miner, miner());
        submission
    }

    /// The process is gone, without a word.
    async fn die(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        self.stop.cancel();
    }
}

fn say(Submission { ticket, reply, .. }: Submission, outcome: Outcome) {
    reply.try_send(Verdict { ticket, outcome }).unwrap();
}

const DEVICE: Handshake = Handshake {
    lines: &[
        r#"{"id":1,"method":"mining.subscribe","params":[]}"#,
        r#"{"id":2,"method":"mining.authorize","params":["rig","x"]}"#,
    ],
    pipelined: false,
    rolls_version: false,
    user: "rig",
};

#[tokio::test(flavor = "multi_thread")]
async fn true_is_said_after_the_ledger_has_spoken_and_errors_keep_their_kind() {
    let dir = tempfile::tempdir().unwrap();
    let mut pool = Pool::start(dir.path()).await;
    let proxy = pool.proxy(ProxyHouse::settings()).await;
    let mut device = within_patience(Sv1Miner::shake_hands(proxy.sv1, DEVICE)).await.unwrap();
    let mining = tokio::spawn(async move { device.mine(2).await.map(|tally| (device, tally)) });
    let (first, second) = (pool.share().await, pool.share().await);
    assert!(!mining.is_finished());
    assert_eq!(proxy.monitor.books().in_flight.get(), 2 * first.share.work.get());
    say(first, Outcome::Recorded);
    say(second, Outcome::Duplicate);
    let (_device, tally) = within_patience(mining).await.unwrap().unwrap();
    assert_eq!(tally.accepted, 1);
    let reasons: Vec<_> = tally.rejected.keys().collect();
    assert_eq!(reasons, [r#"[22,"duplicate-share",null]"#]);
    let worker = &proxy.monitor.status().workers[0];
    assert_eq!((worker.accepted, worker.rejected["duplicate-share"]), (1, 1));
    proxy.stop().await.unwrap();
    pool.die().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_that_a_pool_takes_to_its_grave_are_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let mut pool = Pool::start(dir.path()).await;
    let proxy = pool.proxy(ProxyHouse::settings()).await;
    let mut device = within_patience(Sv1Miner::shake_hands(proxy.sv1, DEVICE)).await.unwrap();
    let mut peer = Sv2Peer::ready(proxy.sv2).await.unwrap();
    let mut channel = peer.open_standard(STRANGER, 1.0).await.unwrap().unwrap();
    let mining = tokio::spawn(async move { device.mine(2).await });
    drop((pool.share().await, pool.share().await));
    let share = channel.mine().unwrap();
    peer.send_mining(share.message()).await.unwrap();
    let work = pool.share().await.share.work;
    pool.die().await;

    let tally = within_patience(mining).await.unwrap().unwrap();
    assert_eq!(tally.accepted, 0);
    assert!(tally.rejected.keys().all(|reason| reason.contains("unknown: ")), "{tally:?}");
    let told = loop {
        match within_patience(peer.next_mining()).await.unwrap() {
            MiningOwned::SubmitSharesError(error) => break error,
            other => channel.follow(&other),
        }
    };
    assert_eq!(told.sequence_number, share.sequence_number);
    assert!(told.error_code.as_utf8_or_hex().contains("unknown"));
    let books = proxy.monitor.books();
    assert_eq!((books.shares, books.in_flight.get()), (0, 0));
    assert_eq!(books.unknown.get(), 3 * work.get());
    proxy.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optimist_says_true_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut pool = Pool::start(dir.path()).await;
    let proxy = pool.proxy(Settings { optimistic: true, ..ProxyHouse::settings() }).await;
    let mut device = within_patience(Sv1Miner::shake_hands(proxy.sv1, DEVICE)).await.unwrap();
    let tally = within_patience(device.mine(1)).await.unwrap();
    assert_eq!(tally.accepted, 1);
    assert_eq!(proxy.monitor.status().workers[0].accepted, 0, "the pool has said nothing");
    say(pool.share().await, Outcome::Recorded);
    proxy.stop().await.unwrap();
    pool.die().await;
}

/// What its own judge lets through, the proxy does not let through for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_shares_the_pool_refuses_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut pool = Pool::start(dir.path()).await;
    let proxy = pool.proxy(ProxyHouse::settings()).await;
    let mut device = within_patience(Sv1Miner::shake_hands(proxy.sv1, DEVICE)).await.unwrap();
    let mining = tokio::spawn(async move { device.mine(u64::MAX).await.map(drop) });
    for _ in 0..REFUSALS {
        assert!(!mining.is_finished());
        say(pool.share().await, Outcome::Duplicate);
    }
    assert!(within_patience(mining).await.unwrap().is_err());
    assert_eq!(proxy.monitor.status().workers[0].rejected["duplicate-share"], REFUSALS);
    proxy.stop().await.unwrap();
    pool.die().await;
}
