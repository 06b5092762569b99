//! Two wallets trade ehash for sats, with nobody in between.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use hashpit_client::settle::{End, Stage};
use hashpit_tests::trade_house::{SATS, TradeHouse};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_trade_is_settled_at_both_mints() {
    if std::env::var("RUST_LOG").is_ok() {
        tracing_subscriber::fmt::init();
    }
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let stop = CancellationToken::new();
    let (seller, buyer) =
        (house.settler(&house.seller).await.unwrap(), house.settler(&house.buyer).await.unwrap());
    let mut watch = [seller.progress(), buyer.progress()];
    let tasks = [tokio::spawn(seller.run(stop.clone())), tokio::spawn(buyer.run(stop.clone()))];
    let begun = std::time::Instant::now();
    let of = house.deal(100, 12_345).await.unwrap();
    eprintln!("matched after {:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    for progress in &mut watch {
        let done = progress.wait_for(|now| now.completed + now.failed == 1);
        timeout(Duration::from_secs(30), done).await.unwrap().unwrap();
    }
    eprintln!("settled after {:?}", begun.elapsed());
    for wallet in [&house.seller, &house.buyer] {
        let trade = wallet.trade(of).await.unwrap().unwrap();
        assert_eq!(trade.stage, Stage::Over { end: End::Completed });
    }
    assert_eq!(house.ehash_of(&house.buyer).await.unwrap(), 100);
    assert_eq!(house.ehash_of(&house.seller).await.unwrap(), house.mined.get() - 100);
    assert_eq!(house.sats_of(&house.seller).await.unwrap(), 1_235);
    assert_eq!(house.sats_of(&house.buyer).await.unwrap(), SATS - 1_235);
    for progress in &mut watch {
        let attested = progress.wait_for(|now| now.attested == 1);
        timeout(Duration::from_secs(10), attested).await.unwrap().unwrap();
    }
    stop.cancel();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    house.stop().await.unwrap();
}
