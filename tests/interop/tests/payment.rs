//! Payment requests and gift wraps, with a payee of another make.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use hashpit_client::pay::{self, Order, Payee, RequestTerms};
use hashpit_interop::pair::Pair;
use hashpit_interop::{node, within_patience};
use hashpit_mailbox::Mailbox;
use hashpit_tests::house::RelayHouse;
use nostr_sdk::nips::nip19::Nip19Profile;
use nostr_sdk::{Event, Filter, JsonUtil, Keys, Kind, RelayUrl, ToBech32};
use serde_json::{Value, json};

/// The gift wraps for a key.
async fn wraps(key: &Keys, relay: &RelayUrl) -> Vec<Event> {
    let mailbox = Mailbox::connect(key.clone(), std::slice::from_ref(relay)).await.unwrap();
    let filter = Filter::new().kind(Kind::GiftWrap).pubkey(key.public_key());
    let (wraps, answered) = mailbox.fetch(filter, Duration::from_secs(10)).await.unwrap();
    mailbox.close().await;
    assert_eq!(answered, 1);
    wraps
}

/// What the payee finds in the only wrap that is not `known`, and receives.
async fn received(key: &Keys, relay: &RelayUrl, known: &mut Vec<Event>) -> Value {
    let mut wraps = wraps(key, relay).await;
    wraps.retain(|wrap| !known.contains(wrap));
    assert_eq!(wraps.len(), 1);
    known.extend(wraps.clone());
    let secret = key.secret_key().to_secret_hex();
    node("paid.mjs", &["receive", &secret, &wraps[0].as_json()]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cashu_ts_reads_our_requests_and_is_paid() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
        let config = Pair::config(&relay.url, 20_000.0, 600.0).unwrap();
        let pair = Pair::start(dir.path(), config).await.unwrap();
        pair.mine(10).await.unwrap();
        pair.claim().await.unwrap();
        let (unit, mint) = (pair.pool.epoch.id.to_string(), pair.pool.mint_url.clone());

        let terms = RequestTerms { amount: Some(21), ..RequestTerms::default() };
        let ours = pay::request(&pair.wallet, terms).await.unwrap();
        let read = node("paid.mjs", &["read", &ours.to_string()]).await.unwrap();
        assert_eq!((&read["id"], &read["amount"]), (&json!(ours.payment_id), &json!("21")));
        assert_eq!((&read["unit"], &read["mints"]), (&json!(unit), &json!([mint])));
        let transport = json!([{
            "type": "nostr", "target": ours.transports[0].target, "tags": [["n", "17"]]
        }]);
        assert_eq!(read["transport"], transport);

        let payee = Keys::generate();
        let profile = Nip19Profile::new(payee.public_key(), [relay.url.clone()]);
        let args = ["ask", "tea-1", "3", &unit, &mint, &profile.to_bech32().unwrap()];
        let asked = node("paid.mjs", &args).await.unwrap();
        let request: Payee = asked["request"].as_str().unwrap().parse().unwrap();
        assert_eq!(request.to_string(), "\"tea\"");
        let mut known = Vec::new();
        pay::pay(&pair.wallet, &request, &Order::default()).await.unwrap();
        let paid = received(&payee, &relay.url, &mut known).await;
        assert_eq!((&paid["id"], &paid["kind"]), (&json!("tea-1"), &json!(14)));
        assert_eq!((&paid["amount"], &paid["unit"]), (&json!("3"), &json!(unit)));

        let npub: Payee = payee.public_key().to_bech32().unwrap().parse().unwrap();
        let order = Order { amount: Some(2), ..Order::default() };
        pay::pay(&pair.wallet, &npub, &order).await.unwrap();
        let sent = received(&payee, &relay.url, &mut known).await;
        assert_eq!((&sent["amount"], &sent["unit"]), (&json!("2"), &json!(unit)));
        for given in [paid, sent] {
            pair.wallet.receive(given["token"].as_str().unwrap()).await.unwrap();
        }
        pair.pool.stop().await.unwrap();
        relay.stop().await.unwrap();
    })
    .await;
}
