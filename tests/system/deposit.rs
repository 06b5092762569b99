//! Sats by the binary: deposited, withdrawn, lost with the laptop, and back from
//! words and a relay.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hashpit_tests::house::{PoolHouse, RelayHouse};
use serde_json::{Value, json};

/// Commands that are killed, at moments spread over the time that one takes.
const KILLS: u32 = 12;

/// Runs a wallet command. The house runs in this process, beside it.
async fn run(dir: &Path, args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir).arg("wallet").args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let stdin = stdin.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        // It may end without having read.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    });
    output.await.unwrap()
}

/// What a command that must succeed says, a line of JSON at a time.
async fn wallet(dir: &Path, args: &[&str], stdin: &str) -> Vec<Value> {
    let output = run(dir, &[args, &["--json"]].concat(), stdin).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Starts a wallet command, and kills it (SIGKILL) after a while. What it has said.
async fn killed(dir: &Path, args: &[&str], after: Duration) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir).arg("wallet").args(args).arg("--json");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    tokio::time::sleep(after).await;
    child.kill().unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    said
}

/// Moments at which to kill a command that takes so long.
fn moments(whole: Duration) -> impl Iterator<Item = Duration> {
    (1..=KILLS).map(move |n| whole * n / KILLS)
}

fn error(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sats_come_go_and_survive_the_laptop() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let config = || PoolHouse::config_with_sats(std::slice::from_ref(&relay.url));
    let near = PoolHouse::start(config(), &dir.join("near")).await.unwrap();
    let far = PoolHouse::start(config(), &dir.join("far")).await.unwrap();
    let (old, new, friend) = (dir.join("old"), dir.join("new"), dir.join("friend"));
    let made = wallet(&old, &["init"], "").await;
    let words = made[0]["words"].as_str().unwrap().to_owned();
    wallet(&friend, &["init"], "").await;
    let url = relay.url.to_string();
    wallet(&old, &["backup", "--relay", &url], "").await;

    let nowhere = error(&run(&old, &["deposit", "1000"], "").await);
    assert!(nowhere.contains("--mint"), "{nowhere}");
    let mint = near.sats_url.clone().unwrap().to_string();
    let said = wallet(&old, &["deposit", "1000", "--mint", &mint], "").await;
    assert!(said[0]["invoice"].as_str().unwrap().starts_with("lnbc"), "{said:?}");
    assert_eq!(said[1], json!({"deposited": 1000, "backed_up": true}));
    // From now on the mint is known.
    let shown = run(&old, &["deposit", "24", "--qr"], "").await;
    assert!(shown.status.success(), "{shown:?}");
    assert!(String::from_utf8_lossy(&shown.stdout).contains("24 sat deposited"));

    let far_mint = far.sats_url.clone().unwrap().to_string();
    let invoice = wallet(&friend, &["deposit", "300", "--mint", &far_mint], "").await;
    let invoice = invoice[0]["invoice"].as_str().unwrap().to_owned();
    let asked = run(&old, &["withdraw", &invoice], "no\n").await;
    assert!(error(&asked).contains("the fee is 1 sat at most"), "{asked:?}");
    let balance = wallet(&old, &["balance"], "").await;
    assert_eq!((&balance[0][0]["amount"], &balance[0][0]["pending"]), (&json!(1024), &json!(0)));
    let paid = wallet(&old, &["withdraw", &invoice], "").await;
    assert_eq!((&paid[0]["amount"], &paid[0]["fee"]), (&json!(300), &json!(1)));
    let twice = error(&run(&old, &["withdraw", &invoice, "--yes"], "").await);
    assert!(twice.to_lowercase().contains("paid"), "{twice}");
    let nonsense = error(&run(&old, &["withdraw", "lnbc1nonsense", "--yes"], "").await);
    assert!(nonsense.to_lowercase().contains("invoice"), "{nonsense}");
    let history = wallet(&old, &["history"], "").await;
    let entries = history[0].as_array().unwrap().iter().map(|it| (&it["what"], &it["status"]));
    let count = |what: &str, status: &str| {
        entries.clone().filter(|entry| *entry == (&json!(what), &json!(status))).count()
    };
    assert_eq!((count("deposited", "completed"), count("withdrawn", "completed")), (2, 1));
    assert_eq!(count("withdrawn", "failed"), 1, "the second time: {history:?}");

    std::fs::remove_dir_all(&old).unwrap();
    let restored = wallet(&new, &["restore", "--relay", &url], &words).await;
    let balance = &restored[0]["balances"][0];
    assert_eq!((&balance["unit"], &balance["amount"]), (&json!("sat"), &json!(723)));
    let token = wallet(&new, &["send", "723"], "").await[0]["token"].as_str().unwrap().to_owned();
    let received = wallet(&friend, &["receive", &token], "").await;
    assert_eq!(received[0]["amount"], 723);
    near.stop().await.unwrap();
    far.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_deposit_or_withdrawal_neither_loses_nor_doubles_a_sat() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let config = || PoolHouse::config_with_sats(std::slice::from_ref(&relay.url));
    let near = PoolHouse::start(config(), &dir.join("near")).await.unwrap();
    let far = PoolHouse::start(config(), &dir.join("far")).await.unwrap();
    let (own, payee) = (dir.join("own"), dir.join("payee"));
    wallet(&own, &["init"], "").await;
    wallet(&payee, &["init"], "").await;
    let mint = near.sats_url.clone().unwrap().to_string();
    let deposit = ["deposit", "1000", "--mint", &mint];
    let begun = Instant::now();
    wallet(&own, &deposit, "").await;
    let mut invoices = BTreeSet::new();
    for after in moments(begun.elapsed()) {
        let said = killed(&own, &deposit, after).await;
        let first = said.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
        invoices.extend(first.map(|first| first["invoice"].as_str().unwrap().to_owned()));
    }
    // Each invoice counts as paid. What is open is taken by any later command.
    wallet(&own, &["deposit", "1", "--mint", &mint], "").await;
    let balance = wallet(&own, &["balance"], "").await[0][0].clone();
    let (held, pending) = (balance["amount"].as_u64().unwrap(), &balance["pending"]);
    assert_eq!((held % 1000, pending), (1, &json!(0)), "{balance}");
    let deposits = held / 1000 - 1;
    println!("{} invoices were said, {deposits} deposits made", invoices.len());
    assert!(deposits >= invoices.len() as u64 && deposits <= KILLS.into());

    let far_mint = far.sats_url.clone().unwrap().to_string();
    let (mut whole, mut paid) = (begun.elapsed(), 0);
    for n in 0..=KILLS {
        let sats = (100 + n).to_string();
        let made = wallet(&payee, &["deposit", &sats, "--mint", &far_mint], "").await;
        let invoice = made[0]["invoice"].as_str().unwrap();
        let withdraw = ["withdraw", invoice, "--json"];
        if n == 0 {
            let begun = Instant::now();
            wallet(&own, &withdraw[..2], "").await;
            whole = begun.elapsed();
        } else {
            killed(&own, &withdraw[..2], whole * n / KILLS).await;
        }
        // Until the mint says that it has paid this one.
        loop {
            let again = run(&own, &withdraw, "").await;
            if !again.status.success() {
                let why = error(&again).to_lowercase();
                assert!(why.contains("paid"), "{why}");
                break;
            }
        }
        paid += u64::from(100 + n) + 1;
    }
    let balance = wallet(&own, &["balance"], "").await[0][0].clone();
    assert_eq!((&balance["amount"], &balance["pending"]), (&json!(held - paid), &json!(0)));
    // The mint agrees.
    let all = (held - paid).to_string();
    let token = wallet(&own, &["send", &all], "").await[0]["token"].as_str().unwrap().to_owned();
    assert_eq!(wallet(&payee, &["receive", &token], "").await[0]["amount"], held - paid);
    near.stop().await.unwrap();
    far.stop().await.unwrap();
    relay.stop().await.unwrap();
}
