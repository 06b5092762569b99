//! Trades as a user sees them: two wallets whose offers met, settled by the real
//! binary in the background, in the foreground, and after a kill.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hashpit_client::Wallet;
use hashpit_client::settle::Settler;
use hashpit_tests::process::Process;
use hashpit_tests::trade_house::{SATS, TradeHouse};
use nostr_sdk::ToBech32;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(60);
/// Sats of 100 lots at 12.345.
const PRICE: u64 = 1_235;

/// A house, and the data directories of its two traders.
struct Floor {
    house: TradeHouse,
    dir: TempDir,
    background: Vec<String>,
}

impl Floor {
    async fn open() -> Self {
        let dir = TempDir::new().unwrap();
        let house = TradeHouse::start(dir.path()).await.unwrap();
        house.connect().await.unwrap().close().await;
        for trader in ["seller", "buyer"] {
            let data = dir.path().join(format!("{trader}s"));
            std::fs::create_dir(&data).unwrap();
            symlink(dir.path().join(trader), data.join("wallet")).unwrap();
        }
        let settings = format!(
            "[trade]\nexchange = \"{}\"\nrelays = [\"{relay}\"]\nmints = [\"{}\"]\n\
             [watch]\nrelays = [\"{relay}\"]\n",
            house.exchange.key.to_bech32().unwrap(),
            house.sats.url,
            relay = house.relay.url,
        );
        std::fs::write(dir.path().join("hashpit.toml"), settings).unwrap();
        Self { house, dir, background: Vec::new() }
    }

    fn command(&self, trader: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
        command.arg("--data-dir").arg(self.dir.path().join(format!("{trader}s")));
        command.arg("--config").arg(self.dir.path().join("hashpit.toml")).args(args);
        command.env("HASHPIT_PASSWORD", "correct horse");
        command
    }

    async fn run(&self, trader: &str, args: &[&str]) -> Output {
        let mut command = self.command(trader, args);
        spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn json(&self, trader: &str, args: &[&str]) -> Value {
        let output = self.run(trader, &[args, &["--json"]].concat()).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        let lines = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(lines.lines().last().unwrap()).unwrap()
    }

    async fn refused(&self, trader: &str, args: &[&str]) -> String {
        let output = self.run(trader, args).await;
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Makes an offer of 100 lots; what it matched, if anything.
    async fn offer(&mut self, trader: &str, side: &str, more: &[&str]) -> Option<String> {
        let make = ["offer", "make", side, "100", "--price", "12345", "--json"];
        let output = self.run(trader, &[&make, more].concat()).await;
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let process = said.split("by process ").nth(1).and_then(|rest| rest.split(',').next());
        self.background.extend(process.map(str::to_owned));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        Some(answer["matches"].get(0)?["match"].as_str()?.to_owned())
    }

    /// Has both offers met, with nobody who settles them.
    async fn deal(&mut self) -> String {
        assert_eq!(self.offer("seller", "sell", &["--no-watch"]).await, None);
        self.offer("buyer", "buy", &["--no-watch"]).await.unwrap()
    }

    fn start(&self, trader: &str, args: &[&str], log: &str) -> Process {
        let mut command = self.command(trader, args);
        Process::start(&mut command, &self.dir.path().join(log)).unwrap()
    }

    /// The trade once it is as wanted.
    async fn sees(&self, trader: &str, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let trades = self.json(trader, &["trade", "list", "--all"]).await;
            let trades = trades.as_array().unwrap();
            match trades.iter().find(|trade| trade["id"] == id && wanted(trade)) {
                Some(trade) => return trade.clone(),
                None => assert!(begun.elapsed() < PATIENCE, "{trades:?}"),
            }
        }
    }

    async fn value_has_moved(&self) {
        let house = &self.house;
        assert_eq!(house.ehash_of(&house.buyer).await.unwrap(), 100);
        assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get() - 100);
        assert_eq!(house.sats_of(&house.seller).await.unwrap(), PRICE);
        assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS - PRICE);
    }

    async fn until_nobody_settles(&self, wallet: &Wallet) {
        let begun = Instant::now();
        while Settler::is_running(wallet, self.house.exchange.key).unwrap() {
            assert!(begun.elapsed() < PATIENCE);
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn log_of(&self, trader: &str) -> PathBuf {
        self.dir.path().join(trader).join("trades.log")
    }
}

impl Drop for Floor {
    /// The processes in the background end by themselves, but not if a test fails.
    fn drop(&mut self) {
        for process in &self.background {
            let _ = Command::new("kill").arg(process).output();
        }
    }
}

fn knows_password(process: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap();
    String::from_utf8_lossy(&environment).contains("HASHPIT_PASSWORD")
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_that_meet_are_settled_in_the_background() {
    let mut floor = Floor::open().await;
    assert!(floor.run("buyer", &["wallet", "keys", "--encrypt"]).await.status.success());
    assert_eq!(floor.offer("seller", "sell", &[]).await, None);
    let id = floor.offer("buyer", "buy", &[]).await.unwrap();
    let [seller, buyer] = &floor.background[..] else { panic!("{:?}", floor.background) };
    assert!(!knows_password(seller));
    assert!(knows_password(buyer));
    for trader in ["seller", "buyer"] {
        let trade = floor.sees(trader, &id, |trade| trade["state"] == "completed").await;
        assert_eq!((&trade["sats"], &trade["lots"]), (&"1235".into(), &"100".into()));
        let shown = floor.json(trader, &["trade", "show", &id[..6]]).await;
        assert_eq!(shown["reputation"]["matches"], 1);
        assert!(shown["steps"][5]["done"].as_bool().unwrap());
        let text = floor.run(trader, &["trade", "show", &id[..6]]).await;
        let text = String::from_utf8(text.stdout).unwrap();
        for word in ["settled", "step 4", "Nothing is left to do", "npub1"] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
    }
    floor.value_has_moved().await;
    assert!(floor.json("seller", &["trade", "list"]).await.as_array().unwrap().is_empty());
    // Nothing is left to do, and so nobody is left to do it.
    floor.until_nobody_settles(&floor.house.seller).await;
    floor.until_nobody_settles(&floor.house.buyer).await;
    assert_eq!(mode(&floor.log_of("seller")), 0o600);
    let log = std::fs::read_to_string(floor.log_of("seller")).unwrap();
    assert!(log.contains("settled"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_match_is_cancelled_before_anything_is_locked() {
    let mut floor = Floor::open().await;
    let make = ["offer", "make", "sell", "4000000000", "--price", "12345"];
    let said = floor.refused("seller", &make).await;
    assert!(said.contains("max_trade_sats"), "{said}");
    let said = floor.refused("seller", &["offer", "make", "sell", "4000000000"]).await;
    assert!(said.contains("holds") && said.contains("--force"), "{said}");

    let id = floor.deal().await;
    let said = floor.refused("seller", &["trade", "cancel", &id]).await;
    assert!(said.contains("trade list"), "{said}");
    let mut watch = floor.start("seller", &["trade", "watch"], "seller.log");
    let trade = floor.sees("seller", &id, |_| true).await;
    assert_eq!((&trade["state"], &trade["side"]), (&"agreeing".into(), &"sell".into()));
    let said = floor.refused("seller", &["trade", "refund", &id[..8]]).await;
    assert!(said.contains("nothing of yours is locked"), "{said}");
    let trade = floor.json("seller", &["trade", "cancel", &id[..8]]).await;
    assert_eq!(trade["state"], "void");
    assert!(trade["why"].as_str().unwrap().contains("canceled"), "{trade}");
    let said = floor.refused("seller", &["trade", "cancel", &id[..8]]).await;
    assert!(said.contains("it is over"), "{said}");
    assert!(watch.terminate().unwrap().success());
    assert!(watch.output().contains("void"), "{}", watch.output());
    assert_eq!(floor.house.ehash_of(&floor.house.seller).await.unwrap(), floor.house.mined.get());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_killed_is_resumed() {
    let mut floor = Floor::open().await;
    let id = floor.deal().await;
    let mut watch = floor.start("seller", &["trade", "watch"], "seller.log");
    floor.sees("seller", &id, |_| true).await;
    let said = floor.refused("seller", &["trade", "resume"]).await;
    assert!(said.contains("another hashpit process"), "{said}");
    watch.kill();
    let shown = floor.json("seller", &["trade", "show", &id]).await;
    assert_eq!(shown["settling"], false);
    assert!(shown["advice"].as_str().unwrap().contains("trade watch"), "{shown}");

    let mut buyer = floor.start("buyer", &["trade", "watch", "--until-idle"], "buyer.log");
    let trade = floor.json("seller", &["trade", "resume", &id[..8]]).await;
    assert_eq!(trade["state"], "completed");
    floor.sees("buyer", &id, |trade| trade["state"] == "completed").await;
    floor.value_has_moved().await;
    floor.until_nobody_settles(&floor.house.buyer).await;
    assert!(buyer.ended().unwrap().is_none_or(|status| status.success()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_settles_what_its_wallet_sells() {
    let mut floor = Floor::open().await;
    let (sv2, authority) = (floor.house.pool.sv2.to_string(), floor.house.pool.authority.clone());
    let proxy = ["proxy", "--pool", &sv2, "--authority", &authority];
    let ports = ["--sv1", "127.0.0.1:0", "--sv2", "127.0.0.1:0"];
    let mut proxy = floor.start("seller", &[&proxy[..], &ports].concat(), "proxy.log");
    let id = floor.deal().await;
    let _buyer = floor.start("buyer", &["trade", "watch", "--until-idle"], "buyer.log");
    floor.sees("seller", &id, |trade| trade["state"] == "completed").await;
    floor.value_has_moved().await;
    assert!(proxy.terminate().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watchtower_keeps_its_key() {
    let floor = Floor::open().await;
    let mut told = Vec::new();
    for log in ["first.log", "second.log"] {
        let mut tower = floor.start("seller", &["watch"], log);
        let begun = Instant::now();
        while !tower.output().contains("npub1") {
            assert!(begun.elapsed() < PATIENCE);
            sleep(Duration::from_millis(50)).await;
        }
        assert!(tower.terminate().unwrap().success());
        told.extend(
            tower.output().lines().find(|line| line.starts_with("npub1")).map(str::to_owned),
        );
    }
    assert_eq!(told.len(), 2);
    assert_eq!(told[0], told[1]);
    assert_eq!(mode(&floor.dir.path().join("sellers/watch/watch.seed")), 0o600);
}
