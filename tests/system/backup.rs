//! `hashpit wallet backup`: set once, then status, verify and repair.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use hashpit_client::Wallet;
use hashpit_tests::bad_relay::{BadRelay, Fault};
use hashpit_tests::house::relay_and_pool;
use serde_json::Value;

async fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir).args(["wallet", "backup"]).args(arguments);
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
}

async fn json(dir: &Path, arguments: &[&str]) -> Value {
    let output = run(dir, &[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_set_once_and_can_be_verified_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let wallet = Wallet::open_or_create(&dir.join("wallet"), || [7; 16]).await.unwrap();
    pool.pay_for_work(&wallet, &relay).await.unwrap();
    let other = BadRelay::start(Fault::None).await.unwrap();

    let unset = run(dir, &[]).await;
    assert!(!unset.status.success() && said(&unset.stderr).contains("--relay"));
    let relays = ["--relay", relay.url.as_str(), "--relay", other.url.as_str()];
    let too_many = run(dir, &[&relays[..], &["--quorum", "3"]].concat()).await;
    assert!(!too_many.status.success() && said(&too_many.stderr).contains("quorum of 3"));

    let synced = json(dir, &relays).await;
    assert_eq!((&synced["tokens"], &synced["written"]), (&1.into(), &1.into()), "{synced}");
    assert_eq!(json(dir, &[]).await["written"], 0, "the relays are remembered");
    let status = json(dir, &["status"]).await;
    assert_eq!((&status["protected"], &status["quorum"]), (&true.into(), &2.into()), "{status}");
    json(dir, &["verify"]).await;

    other.forget();
    let verified = run(dir, &["verify"]).await;
    assert!(!verified.status.success() && said(&verified.stderr).contains("repair"));
    let shown = said(&verified.stdout);
    assert!(shown.contains("missing") && shown.contains(other.url.as_str()), "{shown}");
    let repaired = json(dir, &["repair"]).await;
    assert_eq!(repaired["after"]["relays"][0]["missing"], Value::Array(Vec::new()), "{repaired}");
    let status = said(&run(dir, &["status"]).await.stdout);
    assert!(status.contains("Every token is on a quorum of relays. Quorum: 2 of 2."), "{status}");

    other.set(Fault::Lies);
    other.forget();
    run(dir, &["verify"]).await;
    let failed = run(dir, &[]).await;
    let why = said(&failed.stderr);
    assert!(!failed.status.success() && why.contains("the tokens are safe"), "{why}");
    let status = said(&run(dir, &["status"]).await.stdout);
    assert!(status.contains("Too few relays") && status.contains("says OK"), "{status}");
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
