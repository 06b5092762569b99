//! A wallet without a route to the mint: it claims, sends, receives, checks and
//! restores through the relay alone (EH-07).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::mint::{Line, Route};
use hashpit_nips::eh07::Method;
use hashpit_tests::house::{PoolHouse, RelayHouse};
use nostr_sdk::RelayUrl;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

/// Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// An address at which nobody listens.
async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A pool whose announced mint URL leads nowhere.
async fn unreachable_mint(dir: &Path, relays: &[RelayUrl]) -> PoolHouse {
    let mut config = PoolHouse::config(relays);
    config.public_mint = closed_port().await;
    PoolHouse::start(config, &dir.join("pool")).await.unwrap()
}

async fn wallet(dir: &Path, name: &str) -> Wallet {
    Wallet::open_or_create(&dir.join(name), rand::random).await.unwrap()
}

async fn held(wallet: &Wallet) -> (u64, u64) {
    let balances = wallet.balances().await.unwrap();
    let sum = |part: fn(&hashpit_client::wallet::Balance) -> u64| balances.iter().map(part).sum();
    (sum(|balance| balance.amount), sum(|balance| balance.pending))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ehash_changes_hands_without_a_route_to_the_mint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let pool = unreachable_mint(dir, std::slice::from_ref(&relay.url)).await;
    let payer = wallet(dir, "payer").await;
    let whole = pool.pay_for_work(&payer, &relay).await.unwrap().get();

    let begun = Instant::now();
    let token = payer.send(whole / 2 + 1, None).await.unwrap().to_string();
    println!("sent in {:?}", begun.elapsed());
    assert_eq!(held(&payer).await, (whole - whole / 2 - 1, whole / 2 + 1));

    let payee = wallet(dir, "payee").await.with_route(Route::Http);
    let lost = payee.receive(&token).await.unwrap_err().to_string();
    assert!(lost.contains("does not answer"), "{lost}");
    let payee = payee.with_route(Route::Nostr);
    let lost = payee.receive(&token).await.unwrap_err().to_string();
    assert!(lost.contains("--relay"), "{lost}");
    let payee = payee.with_relays(vec![relay.url.clone()]);
    let begun = Instant::now();
    let received = payee.receive(&token).await.unwrap();
    println!("received in {:?}", begun.elapsed());
    assert_eq!(received.amount, whole / 2 + 1);
    assert_eq!(held(&payee).await, (whole / 2 + 1, 0));
    let twice = payee.receive(&token).await.unwrap_err().to_string();
    assert!(twice.to_lowercase().contains("spent"), "{twice}");

    // The payer finds out that its token was received, and spends the rest.
    let begun = Instant::now();
    let rest = payer.send(1, None).await.unwrap().to_string();
    println!("sent again in {:?}", begun.elapsed());
    assert_eq!(held(&payer).await, (whole - whole / 2 - 2, 1));
    payee.receive(&rest).await.unwrap();
    assert_eq!(held(&payee).await.0, whole / 2 + 2);
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_answers_what_it_may_and_refuses_the_rest_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let relay = RelayHouse::start(&dir.join("relay")).await.unwrap();
    let pool = unreachable_mint(dir, std::slice::from_ref(&relay.url)).await;
    let line = Line::open(pool.key, std::slice::from_ref(&relay.url)).await.unwrap();
    let ask = async |method, path: &str, body| {
        let asked = timeout(PATIENCE, line.request(method, path.to_owned(), body)).await;
        asked.unwrap().unwrap()
    };
    let info = ask(Method::Get, "/v1/info", None).await;
    assert_eq!((info.status, &info.body["urls"]), (200, &json!([pool.mint_url])));
    let keyset = pool.epoch.keyset.id.to_string();
    let keys = ask(Method::Get, &format!("/v1/keys/{keyset}"), None).await;
    assert_eq!((keys.status, &keys.body["keysets"][0]["id"]), (200, &json!(keyset)));

    for (method, path, body, status, words) in [
        (Method::Get, "/v1/swap", None, 404, "not carried"),
        (Method::Get, "/v1/ws", None, 404, "not carried"),
        (Method::Post, "/v1/mint/quote/bolt11", Some(json!({})), 404, "not carried"),
        (Method::Get, "/../ehash/v1/info", None, 404, "not carried"),
        (Method::Post, "/v1/swap", Some(json!({"outputs": vec![0; 151]})), 413, "at most 150"),
        (Method::Post, "/v1/swap", Some(json!({"inputs": 7})), 422, ""),
        (Method::Post, "/v1/swap", None, 400, ""),
    ] {
        let refused = ask(method, path, body).await;
        assert_eq!(refused.status, status, "{path}: {refused:?}");
        assert!(refused.body.to_string().contains(words), "{refused:?}");
    }
    let long = json!({"Ys": vec!["02".repeat(33); 1000]});
    let unsent = line.request(Method::Post, "/v1/checkstate".to_owned(), Some(long)).await;
    assert!(unsent.unwrap_err().to_string().contains("ask for less"));
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
