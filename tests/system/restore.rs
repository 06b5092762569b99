//! The laptop burns; twelve words and a relay bring back every token.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use hashpit_nips::Seed;
use hashpit_tests::house::relay_and_pool;
use serde_json::{Value, json};

/// Runs a wallet command that must succeed; its JSON.
async fn wallet(dir: &Path, args: &[&str], stdin: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir).arg("wallet").args(args).arg("--json");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let stdin = stdin.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_words_and_a_relay_bring_back_every_token() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let (old, new, friend) = (dir.join("old"), dir.join("new"), dir.join("friend"));
    let made = wallet(&old, &["init"], "").await;
    let words = made["words"].as_str().unwrap();
    let npub = words.parse::<Seed>().unwrap().nostr_keys(0).public_key();
    wallet(&friend, &["init"], "").await;

    let (key, url) = (pool.key.to_hex(), relay.url.to_string());
    let claim = ["claim", "--pool", &key, "--relay", &url];
    wallet_until_blanks_are_there(&old, &claim).await;
    pool.work_for(npub).await.unwrap();
    let claimed = wallet(&old, &claim, "").await;
    assert_eq!(claimed["backed_up"], true, "{claimed}");
    let token = wallet(&old, &["send", "2"], "").await["token"].as_str().unwrap().to_owned();
    let received = wallet(&friend, &["receive", &token], "").await;
    // The friend has named no relay to back up to.
    assert_eq!((&received["amount"], &received["backed_up"]), (&json!(2), &json!(false)));
    let before = wallet(&old, &["balance"], "").await;
    std::fs::remove_dir_all(&old).unwrap();

    let restored = wallet(&new, &["restore", "--relay", &url], words).await;
    assert_eq!(restored["npub"], made["npub"]);
    assert_eq!(restored["balances"][0]["amount"], before[0]["amount"]);
    // Nothing was written anew: the relay's events were taken up.
    let verified = wallet(&new, &["backup", "verify"], "").await;
    assert_eq!(verified["relays"][0]["missing"], json!([]), "{verified}");
    assert_eq!(verified["relays"][0]["stale"], json!([]), "{verified}");

    // The pool was in the backup too: mining and claiming go on.
    pool.work_for(npub).await.unwrap();
    let claimed = wallet(&new, &["claim"], "").await;
    assert_eq!(claimed["backed_up"], true);
    let issued = pool.monitor.status().totals.issued.get();
    assert_eq!(claimed["ehash"], json!(issued - 2));
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

/// The pool signs only blanks that it has.
async fn wallet_until_blanks_are_there(dir: &Path, claim: &[&str]) {
    let claimed = wallet(dir, claim, "").await;
    assert_eq!(claimed["ehash"], 0);
}
