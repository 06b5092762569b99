//! What a trader risks: matches beyond it are left alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use hashpit_client::settle::{End, Limits, Obstacle, Settler, Stage, obstacles};
use hashpit_nips::eh04::{Side, Terms};
use hashpit_nips::{Lots, Price};
use hashpit_tests::trade_house::{SATS, TradeHouse};
use nostr_sdk::EventId;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// Why the seller has left a trade alone; `None` if he has not.
async fn why(house: &TradeHouse, of: EventId) -> Option<String> {
    match house.seller.trade(of).await.unwrap().unwrap().stage {
        Stage::Over { end: End::Void { why } } => Some(why),
        Stage::Agreeing => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn trades_beyond_the_limits_are_left_alone() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let limits = Limits {
        max_trade_sats: 1_500,
        max_counterparty_sats: 2_000,
        min_trade_sats: 100,
        mints: vec![house.sats.url.clone()],
        ..Limits::default()
    };
    let exchange = house.connect().await.unwrap();
    let seller = Settler::open(house.seller.clone(), exchange, limits).await.unwrap();
    let (stop, mut settled) = (CancellationToken::new(), seller.progress());
    // The buyer does not answer, so that what is within the limits stays open.
    let large = house.deal(200, 10_000).await.unwrap();
    let small = house.deal(9, 10_000).await.unwrap();
    let [first, second] =
        [house.deal(100, 12_000).await.unwrap(), house.deal(100, 11_000).await.unwrap()];
    let running = tokio::spawn(seller.run(stop.clone()));
    timeout(PATIENCE, settled.wait_for(|now| now.failed == 3)).await.unwrap().unwrap();
    assert!(why(&house, large).await.unwrap().contains("more than 1500"));
    assert!(why(&house, small).await.unwrap().contains("fewer than 100"));
    assert_eq!(why(&house, first).await, None);
    assert!(why(&house, second).await.unwrap().contains("2000"));
    stop.cancel();
    running.await.unwrap().unwrap();
    house.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_could_not_be_settled_is_known_before_it_is_offered() {
    let dir = TempDir::new().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let exchange = house.connect().await.unwrap();
    let market = exchange.market(None).unwrap();
    let limits = Limits { min_trade_sats: 2, ..Limits::default() };
    let trusting = Limits { mints: vec![house.sats.url.clone()], ..limits.clone() };
    let terms = |side, lots, msats| {
        let pay = market.pay.iter().map(|payment| payment.way).collect();
        Terms::new(side, Some(Price::new(msats)), Lots::new(lots), pay)
    };

    let fair = terms(Side::Sell, 100, 12_345);
    let found = obstacles(&house.seller, &trusting, market, &fair).await.unwrap();
    assert_eq!(found, []);
    let found = obstacles(&house.seller, &limits, market, &fair).await.unwrap();
    assert!(matches!(&found[..], [Obstacle::NoMint(named)] if named.contains("127.0.0.1")));
    let greedy = terms(Side::Sell, u32::try_from(house.mined.get()).unwrap() + 1, 1_000_000);
    let found = obstacles(&house.seller, &trusting, market, &greedy).await.unwrap();
    assert!(matches!(found[..], [Obstacle::TooLarge(..), Obstacle::Ehash { .. }]), "{found:?}");

    // The buyer trusts the mint whose sats he has, and one lot of a fill is too little.
    let dear = terms(Side::Buy, u32::try_from(SATS).unwrap() + 1, 1_000);
    let found = obstacles(&house.buyer, &limits, market, &dear).await.unwrap();
    let [Obstacle::TooLarge(..), Obstacle::TooSmall(..), Obstacle::Sats { held, .. }] = &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!(held.get(), SATS);
    exchange.close().await;
    house.stop().await.unwrap();
}
