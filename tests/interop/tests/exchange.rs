//! Offers made with a Nostr library and the drafts alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use hashpit_interop::{node, within_patience};
use hashpit_nips::eh01::EpochState;
use hashpit_nips::kind;
use hashpit_tests::exchange_house::{BarePool, ExchangeHouse, Onlooker};
use hashpit_tests::house::RelayHouse;
use nostr_sdk::{Filter, Keys, Timestamp};
use serde_json::{Value, json};

#[tokio::test]
async fn nostr_tools_trades_at_our_exchange() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
        let pool = BarePool::new();
        let config = ExchangeHouse::config(std::slice::from_ref(&relay.url), &[&pool]);
        let exchange = ExchangeHouse::start(config, &dir.path().join("exchange")).await.unwrap();
        let epoch = pool.epoch(840_000);
        let keyset = pool.keyset(epoch.height, EpochState::Open, Timestamp::now()).unwrap();
        let onlooker = Onlooker::connect(&pool.keys, &relay.url).await.unwrap();
        onlooker.mailbox.publish(&keyset).await.unwrap();
        let opened = Filter::new().kind(kind::MARKET).author(exchange.key);
        onlooker.sees(opened.identifier(epoch.to_string()), |_| true).await.unwrap();

        let (url, market) = (relay.url.to_string(), exchange.market(epoch).to_string());
        let [seller, buyer] = [(); 2].map(|()| Keys::generate().secret_key().to_secret_hex());
        let answers = node("offer.mjs", &["trade", &url, &market, &seller, &buyer]).await.unwrap();
        for name in ["offered", "amended", "taken", "cancelled", "again", "removed", "nothing"] {
            assert_eq!(answers[name]["outcome"], json!(["accepted"]), "{name}");
        }
        for (name, begins) in
            [("stale", "invalid: prev is not what stands"), ("malformed", "invalid: tag \"price\"")]
        {
            let outcome = &answers[name]["outcome"];
            assert_eq!(outcome[0], "refused", "{name}");
            assert!(outcome[1].as_str().unwrap().starts_with(begins), "{outcome}");
        }
        let matched = &answers["match"];
        assert_eq!(matched["e"], json!([answers["amended"]["id"], answers["taken"]["id"]]));
        assert_eq!((&matched["price"], &matched["qty"]), (&json!("1480"), &json!("150")));
        assert_eq!((&matched["sat"], &matched["reckoned"]), (&json!("222"), &matched["terms"]));
        exchange.stop().await.unwrap();
        relay.stop().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn nostr_tools_checks_the_golden_journal() {
    within_patience(async {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nips/vectors/eh05.json");
        let found: Value = node("offer.mjs", &["journal", root.to_str().unwrap()]).await.unwrap();
        let whole = json!({"entries": 8, "chained": true, "terms": true, "digest": true});
        assert_eq!(found, whole);
    })
    .await;
}
