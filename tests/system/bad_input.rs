//! Junk on every port and in every message: refused with a reason, and it
//! costs nobody else anything.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_mailbox::{Arrival, Mailbox};
use hashpit_nips::eh02::{self, PoolMessage};
use hashpit_nips::kind;
use hashpit_tests::house::{PoolHouse, RelayHouse, relay_and_pool};
use nostr_sdk::{Filter, Keys};
use rand::RngCore;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

async fn an_honest_miner_is_paid(dir: &Path, relay: &RelayHouse, pool: &PoolHouse) {
    let wallet = Wallet::open_or_create(dir, rand::random).await.unwrap();
    let paid = pool.pay_for_work(&wallet, relay).await.unwrap();
    assert!(paid.get() > 0);
}

/// What the pool answers to `message`, from a key that it has never heard of.
async fn answer(relay: &RelayHouse, pool: &PoolHouse, message: &Value) -> PoolMessage {
    let keys = Keys::generate();
    let mailbox = Mailbox::connect(keys.clone(), std::slice::from_ref(&relay.url)).await.unwrap();
    let filter = Filter::new().kind(kind::ISSUANCE).pubkey(keys.public_key());
    let mut inbox = mailbox.subscribe(filter).await.unwrap();
    let answer = timeout(PATIENCE, async {
        loop {
            match inbox.next().await.unwrap() {
                Arrival::Connected(_) => drop(mailbox.send(&pool.key, message).await.unwrap()),
                Arrival::Event(event) => return eh02::open(&event, &keys).unwrap(),
            }
        }
    });
    let answer = answer.await.unwrap();
    mailbox.close().await;
    answer
}

#[tokio::test]
async fn every_bad_message_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (relay, pool) = relay_and_pool(dir.path()).await.unwrap();
    let keyset = pool.epoch.keyset.id.to_string();
    let point = "02505f234a81fe3af88625ebda259dbaec44c72b181e2f64735f8b8ec8d7cf7377";
    let no_point = format!("02{}", "ff".repeat(32));
    let other_unit = format!("hash_02{}_1", pool.key.to_hex());
    let cases = [
        (json!("hello"), "invalid"),
        (json!({"type": "gimme"}), "invalid"),
        (json!({"type": "hello", "extra": 1}), "invalid"),
        (json!({"type": "blanks", "keyset": keyset, "outputs": [no_point]}), "invalid"),
        (json!({"type": "blanks", "keyset": keyset, "outputs": []}), "1 to 100"),
        (json!({"type": "blanks", "keyset": keyset, "outputs": vec![point; 101]}), "1 to 100"),
        (json!({"type": "blanks", "keyset": "00d0a1b24d1c1a53", "outputs": [point]}), "keyset"),
        (json!({"type": "ack", "unit": other_unit, "batches": [0]}), "not the open epoch"),
        (json!({"type": "resend", "unit": "sat", "from": 0}), "invalid"),
    ];
    for (message, word) in cases {
        match answer(&relay, &pool, &message).await {
            PoolMessage::Refused { reason, .. } => assert!(reason.contains(word), "{reason}"),
            other => panic!("{message} was answered with {other:?}"),
        }
    }
    an_honest_miner_is_paid(&dir.path().join("wallet"), &relay, &pool).await;
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn garbage_on_every_port_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (relay, pool) = relay_and_pool(dir.path()).await.unwrap();
    let host = |url: &str| url.split('/').nth(2).unwrap().to_owned();
    let ports = [host(relay.url.as_str()), host(&pool.mint_url), pool.sv2.to_string()];
    let mut held = Vec::new();
    for port in &ports {
        for length in [0, 1, 64, 100_000] {
            let mut garbage = vec![0; length];
            rand::rng().fill_bytes(&mut garbage);
            let mut socket = TcpStream::connect(port).await.unwrap();
            // The server may hang up on us while we are at it.
            let _ = timeout(PATIENCE, socket.write_all(&garbage)).await.unwrap();
            held.push(socket);
        }
        let mut half = TcpStream::connect(port).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: webso").await.unwrap();
        held.push(half);
    }
    an_honest_miner_is_paid(&dir.path().join("wallet"), &relay, &pool).await;
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test]
async fn two_pools_never_share_their_books() {
    let dir = tempfile::tempdir().unwrap();
    let pool = PoolHouse::start(PoolHouse::config(&[]), dir.path()).await.unwrap();
    let second = PoolHouse::start(PoolHouse::config(&[]), dir.path()).await.err().unwrap();
    assert!(second.to_string().contains("in use by another process"), "{second}");
    pool.stop().await.unwrap();
    PoolHouse::start(PoolHouse::config(&[]), dir.path()).await.unwrap().stop().await.unwrap();
}
