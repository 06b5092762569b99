//! The mint's HTTP door, with clients that leave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use cdk::amount::SplitTarget;
use cdk::nuts::{
    CheckStateRequest, PreMintSecrets, Proofs, ProofsMethods, State, SwapRequest, Token,
};
use cdk::wallet::MintConnector;
use cdk::{Amount, HttpClient};
use hashpit_client::Wallet;
use hashpit_tests::house::{PoolHouse, relay_and_pool};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Longer than a swap takes on a quiet machine.
const LONGEST_STAY: Duration = Duration::from_millis(24);
const VISITS: u32 = 60;
const PATIENCE: Duration = Duration::from_secs(30);

fn proofs(token: &Token, pool: &PoolHouse) -> Proofs {
    let keyset = &pool.epoch.keyset;
    let info = json!({"id": keyset.id, "unit": keyset.unit, "active": true, "input_fee_ppk": 0});
    token.proofs(&[serde_json::from_value(info).unwrap()]).unwrap()
}

/// Asks for a swap, and leaves after a while without having read the answer.
async fn visit(pool: &PoolHouse, proofs: Proofs, stay: Duration) {
    let keyset = &pool.epoch.keyset;
    let amounts = keyset.keys.iter().map(|(amount, _)| u64::from(*amount)).collect::<Vec<_>>();
    let total = proofs.total_amount().unwrap();
    let split = SplitTarget::Value(Amount::from(1));
    let outputs = PreMintSecrets::random(keyset.id, total, &split, &(0, amounts).into()).unwrap();
    let swap = SwapRequest::new(proofs, outputs.blinded_messages());
    let body = serde_json::to_string(&swap).unwrap();
    let (host, path) = pool.mint_url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "POST /{path}/v1/swap HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    sleep(stay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_of_a_swap_leaves_no_proof_pending() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let wallet = Wallet::open_or_create(&dir.join("wallet"), rand::random).await.unwrap();
    pool.pay_for_work(&wallet, &relay).await.unwrap();
    let mint = HttpClient::new(pool.mint_url.parse().unwrap(), None);
    let begun = Instant::now();
    for number in 0..VISITS {
        let token = wallet.send(1, None).await.unwrap();
        let proofs = proofs(&token, &pool);
        let ys = proofs.ys().unwrap();
        visit(&pool, proofs, LONGEST_STAY * number / VISITS).await;
        let settled = timeout(PATIENCE, async {
            loop {
                let asked = CheckStateRequest { ys: ys.clone() };
                let states = mint.post_check_state(asked).await.unwrap().states;
                if states.iter().all(|one| one.state != State::Pending) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        settled.await.unwrap_or_else(|_| panic!("visit {number} left a proof pending"));
    }
    println!("{VISITS} visits in {:?}", begun.elapsed());
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
