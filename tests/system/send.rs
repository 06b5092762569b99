//! SIGKILL for `hashpit wallet send` at random moments: what was in the wallet is
//! in it still, or in a token.
//!
//! `HASHPIT_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_tests::house::relay_and_pool;
use hashpit_tests::process::Process;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tokio::time::sleep;

const SENDS: u32 = 6;
/// Longer than a send takes in a debug build, so that some are not cut short.
const LIFE_MS: u64 = 400;

/// Starts to send one unit and kills that. The token, if it was printed.
async fn cut_short(dir: &Path, log: &Path, life: Duration) -> Option<String> {
    let mut send = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    send.arg("--data-dir").arg(dir).args(["wallet", "send", "1", "--json"]);
    let mut send = Process::start(&mut send, log).unwrap();
    sleep(life).await;
    send.kill();
    let printed = send.output();
    let sent: Option<Value> = printed.lines().find_map(|line| serde_json::from_str(line).ok());
    sent.map(|sent| sent["token"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_that_is_cut_short_loses_nothing() {
    let seed = std::env::var("HASHPIT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("HASHPIT_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let sender = Wallet::open_or_create(&dir.join("wallet"), rand::random).await.unwrap();
    let receiver = Wallet::open_or_create(&dir.join("receiver"), rand::random).await.unwrap();
    let whole = pool.pay_for_work(&sender, &relay).await.unwrap().get();

    let mut received = 0;
    for number in 0..SENDS {
        let life = Duration::from_millis(rng.random_range(0..LIFE_MS));
        let log = dir.join(format!("send-{number}.log"));
        if let Some(token) = cut_short(dir, &log, life).await {
            received += receiver.receive(&token).await.unwrap().amount;
        }
        // One that is not cut short looks after what the other left.
        let token = sender.send(1, None).await.unwrap();
        received += receiver.receive(&token.to_string()).await.unwrap().amount;
    }
    let left = sender.send(1, None).await.unwrap();
    let held = sender.balances().await.unwrap();
    let amount: u64 = held.iter().map(|balance| balance.amount).sum();
    let pending: u64 = held.iter().map(|balance| balance.pending).sum();
    println!("{whole} at first: {amount} left, {pending} in tokens, {received} received");
    assert!(pending >= 1, "the last token is out");
    assert_eq!(amount + pending + received, whole);
    drop(left);
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
