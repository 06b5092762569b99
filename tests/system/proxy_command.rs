//! `hashpit proxy` as a miner with a device meets it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hashpit_tests::house::{PoolHouse, RelayHouse};
use hashpit_tests::process::{Process, free_port};
use hashpit_tests::sv1_miner::Sv1Miner;
use nostr_sdk::ToBech32;
use serde_json::Value;

/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

fn hashpit(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir);
    command
}

/// The command's wallet, by its own words: units to spend.
fn balance(dir: &Path) -> u64 {
    let output = hashpit(dir).args(["wallet", "balance", "--json"]).output().unwrap();
    let balances: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    balances[0]["amount"].as_u64().unwrap_or_default()
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_earns_ehash_for_the_wallet() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let config = PoolHouse::config_without_blocks(std::slice::from_ref(&relay.url)).unwrap();
    let pool = PoolHouse::start(config, &dir.path().join("pool")).await.unwrap();
    let (home, log) = (dir.path().join("home"), dir.path().join("proxy.log"));
    let settings = dir.path().join("hashpit.toml");
    std::fs::write(&settings, "[proxy.devices]\nhashrate = 1.0\n").unwrap();
    let sv1 = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let mut command = hashpit(&home);
    command.arg("--config").arg(&settings).args(["proxy", "--json", "--interval", "1"]);
    command.args(["--pool", &pool.sv2.to_string(), "--authority", &pool.authority]);
    command.args(["--npub", &pool.key.to_bech32().unwrap(), "--relay", relay.url.as_str()]);
    command.args(["--sv1", &sv1.to_string(), "--sv2", "127.0.0.1:0"]);
    let mut proxy = Process::start(&mut command, &log).unwrap();

    let mut device = until("proxy", async || Sv1Miner::connect(sv1, "garage").await.ok()).await;
    let tally = device.mine(10).await.unwrap();
    assert_eq!((tally.accepted, tally.rejected.len()), (10, 0));
    let due = pool.epoch.work.units_in(pool.monitor.status().totals.work).unwrap().get();
    until("ehash", async || (balance(&home) == due).then_some(())).await;
    let report = until("report", async || {
        let output = proxy.output();
        let mut lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.rfind(|line| line["shares"] == 10)
    });
    let report = report.await;
    assert_eq!(report["workers"][0]["worker"], "garage", "{report}");
    assert_eq!(report["workers"][0]["accepted"], 10);
    assert_eq!(report["shortfall"], Value::Null);
    assert!(proxy.terminate().unwrap().success(), "{}", proxy.output());
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[test]
fn mistakes_are_answered_with_what_to_do_next() {
    let dir = tempfile::tempdir().unwrap();
    let said = |args: &[&str], words: &str| {
        let output = hashpit(dir.path()).arg("proxy").args(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(words), "{args:?}: {error}");
    };
    let key = "9auqWEzQDVyd2oe1JVGFLMLHZtCo2FFqZwtKA5gd9xbuEu7PH72";
    said(&[], "--pool <host:port> --authority <key>");
    said(&["--pool", "pool.example", "--authority", key], "<host>:<port>");
    said(&["--pool", "127.0.0.1:1", "--authority", "nonsense"], "the pool prints it");
    said(&["--pool", "127.0.0.1:1"], "its --authority");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let pool = ["--pool", "127.0.0.1:1", "--authority", key];
    said(&[&pool[..], &["--sv1", &taken]].concat(), "choose another with --sv1");
    let npub = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
    let ports = ["--sv1", "127.0.0.1:0", "--sv2", "127.0.0.1:0"];
    said(&[&pool[..], &ports, &["--npub", npub]].concat(), "name one that the pool reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_there_or_not_who_it_should_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let pool = PoolHouse::start(PoolHouse::config(&[]), &dir.path().join("pool")).await.unwrap();
    let stranger = hashpit_pool::sv2::Authority::from_secret(&[5; 32]).unwrap().to_string();
    let gone = format!("127.0.0.1:{}", free_port().unwrap());
    let mut command = hashpit(&dir.path().join("home"));
    command.args(["proxy", "--sv1", "127.0.0.1:0", "--sv2", "127.0.0.1:0"]);
    command.args(["--pool", &gone, "--pool", &pool.sv2.to_string(), "--authority", &stranger]);
    let proxy = Process::start(&mut command, &dir.path().join("proxy.log")).unwrap();
    until("complaint", async || {
        let said = proxy.output();
        let both = said.contains("is the pool running?") && said.contains("is the authority key");
        both.then_some(())
    })
    .await;
    drop(proxy);
    pool.stop().await.unwrap();
}
