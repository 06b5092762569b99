//! Legs at mints that remember outputs from elsewhere, that something stands before,
//! or that prove nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::settle::{End, Stage};
use hashpit_nips::eh06::Timing;
use hashpit_tests::mint_proxy::{MintProxy, Trick};
use hashpit_tests::trade_house::{QUICK, SATS, TradeHouse};
use nostr_sdk::EventId;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const LOTS: u32 = 100;
const PRICE: u64 = 12_345;
const PAID: u64 = 1_235;

/// A wallet as it is on a second machine, onto which its files were copied.
async fn copied(wallet: &Wallet, dir: &Path) -> Wallet {
    std::fs::create_dir(dir).unwrap();
    for entry in std::fs::read_dir(wallet.dir()).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            std::fs::copy(&from, dir.join(from.file_name().unwrap())).unwrap();
        }
    }
    Wallet::open(dir).await.unwrap()
}

/// Runs both settlers through one trade, `meanwhile` something else; how it ended for
/// the seller and for the buyer.
async fn trade(
    house: &TradeHouse,
    timing: Timing,
    meanwhile: impl Future<Output = ()>,
) -> [End; 2] {
    let stop = CancellationToken::new();
    let wallets = [&house.seller, &house.buyer];
    let (mut watch, mut tasks) = (Vec::new(), Vec::new());
    for wallet in wallets {
        let settler = house.settler(wallet).await.unwrap().with_timing(timing);
        watch.push(settler.progress());
        tasks.push(tokio::spawn(settler.run(stop.clone())));
    }
    let of = house.deal(LOTS, PRICE).await.unwrap();
    meanwhile.await;
    for progress in &mut watch {
        let done = progress.wait_for(|now| now.completed + now.failed == 1);
        timeout(Duration::from_secs(60), done).await.unwrap().unwrap();
    }
    stop.cancel();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    [end(wallets[0], of).await, end(wallets[1], of).await]
}

async fn end(wallet: &Wallet, of: EventId) -> End {
    match wallet.trade(of).await.unwrap().unwrap().stage {
        Stage::Over { end } => end,
        other => panic!("not over: {other:?}"),
    }
}

async fn assert_settled(house: &TradeHouse) {
    assert_eq!(house.ehash_of(&house.buyer).await.unwrap(), u64::from(LOTS));
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get() - u64::from(LOTS));
    assert_eq!(house.sats_of(&house.seller).await.unwrap(), PAID);
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS - PAID);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn outputs_that_another_machine_has_used_cost_nothing() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let unit = house.pool.epoch.id.to_string();
    let ehash = house.seller.send(7, Some(&unit)).await.unwrap();
    let twin = copied(&house.buyer, &dir.path().join("twin")).await;
    // By the counters that the buyer's change and its claim would have next.
    twin.receive(&house.sats.token(777).await.unwrap().to_string()).await.unwrap();
    twin.receive(&ehash.to_string()).await.unwrap();
    let ends = trade(&house, Timing::EH06, async {}).await;
    assert_eq!(ends, [End::Completed, End::Completed]);
    assert_eq!(house.ehash_of(&house.buyer).await.unwrap(), u64::from(LOTS));
    assert_eq!(house.sats_of(&house.seller).await.unwrap(), PAID);
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS - PAID);
    // All of it is there: the mints take it.
    house.buyer.send(u64::from(LOTS), Some(&unit)).await.unwrap();
    let sats = house.buyer.send(SATS - PAID, Some("sat")).await.unwrap();
    house.seller.receive(&sats.to_string()).await.unwrap();
    assert_eq!(house.sats_of(&house.seller).await.unwrap(), SATS);
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bare_status_is_not_the_mints_word() {
    let dir = TempDir::new().unwrap();
    let proxy = MintProxy::start().await.unwrap();
    let house = TradeHouse::start_behind(dir.path(), &proxy).await.unwrap();
    let before = proxy.seen("/swap").len();
    proxy.play("/swap", Trick::Turn(429));
    let turned = async {
        while proxy.seen("/swap").len() < before + 2 {
            sleep(Duration::from_millis(20)).await;
        }
        proxy.behave();
    };
    let ends = trade(&house, Timing::EH06, turned).await;
    assert_eq!(ends, [End::Completed, End::Completed]);
    assert_settled(&house).await;
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_locked_and_cannot_be_shown_is_taken_back() {
    let dir = TempDir::new().unwrap();
    let proxy = MintProxy::start().await.unwrap();
    let house = TradeHouse::start_behind(dir.path(), &proxy).await.unwrap();
    let unproven = |answer: String| {
        let Ok(mut answer) = serde_json::from_str::<Value>(&answer) else { return answer };
        for signature in answer["signatures"].as_array_mut().into_iter().flatten() {
            signature.as_object_mut().unwrap().remove("dleq");
        }
        answer.to_string()
    };
    for path in ["/swap", "/restore"] {
        proxy.play(path, Trick::Edit(Arc::new(unproven)));
    }
    let [seller, buyer] = trade(&house, QUICK, async {}).await;
    assert!(matches!(&seller, End::Refunded { why } if why.contains("DLEQ")), "{seller:?}");
    assert!(matches!(buyer, End::Refunded { .. }), "{buyer:?}");
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get());
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS);
    house.stop().await.unwrap();
}
