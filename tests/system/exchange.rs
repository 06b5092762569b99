//! Two traders with nothing but the commands, an exchange on two relays, and
//! somebody who checks it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh05::Match;
use hashpit_nips::{Price, kind, seed_file};
use hashpit_tests::exchange_house::{BarePool, ExchangeHouse, Onlooker};
use hashpit_tests::house::RelayHouse;
use nostr_sdk::{Filter, Keys, RelayUrl, Timestamp, ToBech32};
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// A data directory with a wallet, whose configuration names the exchange.
struct Home(PathBuf);

impl Home {
    async fn new(dir: PathBuf, exchange: &ExchangeHouse, relays: &[RelayUrl]) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        let npub = exchange.key.to_bech32().unwrap();
        let relays: Vec<_> = relays.iter().map(ToString::to_string).collect();
        let settings = format!("[trade]\nexchange = \"{npub}\"\nrelays = {relays:?}\n");
        std::fs::write(dir.join("hashpit.toml"), settings).unwrap();
        let home = Self(dir);
        home.json(&["wallet", "init"]).await;
        home
    }

    async fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
        command.arg("--data-dir").arg(&self.0).arg("--config").arg(self.0.join("hashpit.toml"));
        command.args(args);
        spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat()).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

async fn market(relay: &RelayHouse, exchange: &ExchangeHouse, pool: &BarePool) -> Onlooker {
    let onlooker = Onlooker::connect(&pool.keys, &relay.url).await.unwrap();
    let keyset = pool.keyset(840_000, EpochState::Open, Timestamp::now()).unwrap();
    onlooker.mailbox.publish(&keyset).await.unwrap();
    let market = Filter::new().kind(kind::MARKET).author(exchange.key);
    onlooker.sees(market, |_| true).await.unwrap();
    onlooker
}

/// Publishes a match at another price, signed by the exchange's own key.
async fn cheat(exchange: &Path, onlooker: &Onlooker) -> u64 {
    let seed = seed_file::read_or_create(&exchange.join("exchange.seed"), || unreachable!());
    let keys: Keys = seed.unwrap().nostr_keys(0);
    let filter = Filter::new().kind(kind::MATCH).author(keys.public_key());
    let honest = Match::decode(&onlooker.sees(filter, |_| true).await.unwrap()).unwrap();
    let lie = Match { price: Price::new(honest.price.get() + 1), ..honest };
    let event = lie.encode().unwrap().sign_with_keys(&keys).unwrap();
    onlooker.mailbox.publish(&event).await.unwrap();
    lie.seq
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_traders_meet_and_anyone_can_check_the_exchange() {
    let dir = tempfile::tempdir().unwrap();
    let relays = [
        RelayHouse::start(&dir.path().join("one")).await.unwrap(),
        RelayHouse::start(&dir.path().join("other")).await.unwrap(),
    ];
    let urls: Vec<RelayUrl> = relays.iter().map(|relay| relay.url.clone()).collect();
    let pool = BarePool::new();
    let mut config = ExchangeHouse::config(&urls, &[&pool]);
    config.rules.pow_bits = 8;
    let exchange_dir = dir.path().join("exchange");
    let exchange = ExchangeHouse::start(config, &exchange_dir).await.unwrap();
    let onlooker = market(&relays[0], &exchange, &pool).await;
    let seller = Home::new(dir.path().join("seller"), &exchange, &urls).await;
    let buyer = Home::new(dir.path().join("buyer"), &exchange, &urls[..1]).await;

    let sold = seller
        .json(&["offer", "make", "sell", "10", "--price", "1500", "--force", "--no-watch"])
        .await;
    assert_eq!(sold["outcome"], "accepted");
    let bought = buyer
        .json(&[
            "offer",
            "make",
            "buy",
            "4",
            "--price",
            "2000",
            "--hidden",
            "--force",
            "--no-watch",
        ])
        .await;
    assert_eq!(bought["outcome"], "accepted");
    assert_eq!(bought["matches"].as_array().unwrap().len(), 1, "{bought}");
    // A checkpoint follows within a second or two. A level is price, lots, offers.
    let six_left = async { while buyer.json(&["book"]).await["asks"][0][1] != "6" {} };
    timeout(Duration::from_secs(30), six_left).await.expect("the book shows six lots");
    let own = seller.json(&["offer", "list"]).await;
    assert_eq!((&own[0]["filled"], &own[0]["left"]), (&"4".into(), &"6".into()), "{own}");
    let amended = ["offer", "amend", own[0]["id"].as_str().unwrap(), "--price", "1600"];
    assert_eq!(seller.json(&amended).await["outcome"], "accepted");
    let refused = buyer
        .run(&[
            "offer",
            "make",
            "buy",
            "9",
            "--price",
            "1600",
            "--tif",
            "fok",
            "--force",
            "--no-watch",
        ])
        .await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("refused"), "only six are there");
    assert_eq!(seller.json(&["offer", "cancel-all"]).await["outcome"], "accepted");

    let report = buyer.json(&["audit", "exchange", "--relay", urls[1].as_str()]).await;
    assert_eq!((&report["clean"], &report["matches"]), (&true.into(), &1.into()), "{report}");
    let seq = cheat(&exchange_dir, &onlooker).await;
    let caught = buyer.run(&["audit", "exchange"]).await;
    let said = String::from_utf8_lossy(&caught.stderr).into_owned();
    assert_eq!(caught.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("sequence {seq} does not lead to")), "{said}");

    exchange.stop().await.unwrap();
    for relay in relays {
        relay.stop().await.unwrap();
    }
}
