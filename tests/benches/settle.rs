//! How long a trade takes from its match until both sides have what they bought, at
//! mints of this machine; and how long 200 take that are matched while none is done,
//! all between the same two wallets.
//!
//!     cargo bench -p hashpit-tests --bench settle

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod figures;

use std::time::{Duration, Instant};

use figures::{p50, print_conditions};
use hashpit_client::settle::{Limits, Progress, Settler, Timing};
use hashpit_client::trade::Trader;
use hashpit_client::wallet::Wallet;
use hashpit_nips::eh04::{Side, Terms};
use hashpit_nips::{Lots, Price};
use hashpit_tests::trade_house::TradeHouse;
use nostr_sdk::Keys;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Trades timed one after another.
const SINGLE: usize = 20;
/// Trades in flight at once.
const MANY: usize = 200;
const MSATS_A_LOT: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(240);

fn main() {
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt::init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure());
    print_conditions();
}

async fn measure() {
    let dir = tempfile::tempdir().unwrap();
    let house = TradeHouse::start(dir.path()).await.unwrap();
    let stop = CancellationToken::new();
    let mut sides =
        [start(&house, &house.seller, &stop).await, start(&house, &house.buyer, &stop).await];
    let mut times = Vec::new();
    for trade in 0..SINGLE {
        house.deal(1, MSATS_A_LOT).await.unwrap();
        let begun = Instant::now();
        until(&mut sides, trade + 1).await;
        times.push(begun.elapsed());
    }
    println!("one trade, from the match until both are complete: p50 {:?} of {SINGLE}", p50(times));
    let peak = tokio::spawn(peak(sides[0].0.clone()));
    let begun = many(&house).await;
    until(&mut sides, SINGLE + MANY).await;
    println!("{MANY} trades matched at once, until all are complete: {:?}", begun.elapsed());
    println!("at most {} were under way at once on one wallet", peak.await.unwrap());
    stop.cancel();
    for (_, task) in sides {
        task.await.unwrap();
    }
}

/// The most trades that were under way at once, once all are over.
async fn peak(mut progress: watch::Receiver<Progress>) -> usize {
    let mut most = 0;
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update();
        most = most.max(now.open);
        if now.completed + now.failed == SINGLE + MANY {
            break;
        }
    }
    most
}

/// A settler that runs.
type Running = (watch::Receiver<Progress>, JoinHandle<()>);

async fn start(house: &TradeHouse, wallet: &Wallet, stop: &CancellationToken) -> Running {
    let mints = vec![house.sats.url.clone()];
    let limits = Limits { mints, max_counterparty_sats: 1_000_000, ..Limits::default() };
    let exchange = house.connect().await.unwrap();
    let settler = Settler::open(wallet.clone(), exchange, limits).await.unwrap();
    let settler = settler.with_timing(Timing::EH06);
    let (progress, stop) = (settler.progress(), stop.clone());
    (progress, tokio::spawn(async move { settler.run(stop).await.unwrap() }))
}

/// Both sides have completed so many trades.
async fn until(sides: &mut [Running], count: usize) {
    for (progress, _) in sides {
        let done = progress.wait_for(|now| now.completed + now.failed >= count);
        let done = timeout(PATIENCE, done).await;
        let now = done.map(|now| now.unwrap().clone());
        let now = now.unwrap_or_else(|_| panic!("{:?}", progress.borrow()));
        assert_eq!((now.completed, now.failed), (count, 0), "{now:?}");
    }
}

/// The seller offers one lot after another; then the buyer takes all with one offer.
/// When it did.
async fn many(house: &TradeHouse) -> Instant {
    let mut seller = trader(house, &house.seller).await;
    for _ in 0..MANY {
        make(&mut seller, Side::Sell, 1).await;
    }
    let mut buyer = trader(house, &house.buyer).await;
    let begun = Instant::now();
    make(&mut buyer, Side::Buy, u32::try_from(MANY).unwrap()).await;
    seller.close().await;
    buyer.close().await;
    begun
}

async fn trader(house: &TradeHouse, wallet: &Wallet) -> Trader {
    Trader::connect(wallet.trade_keys(), house.connect().await.unwrap()).await.unwrap()
}

async fn make(trader: &mut Trader, side: Side, lots: u32) {
    let market = trader.exchange().market(None).unwrap().clone();
    let pay = market.pay.iter().map(|payment| payment.way).collect();
    let terms = Terms::new(side, Some(Price::new(MSATS_A_LOT)), Lots::new(lots), pay);
    let d = Keys::generate().public_key().to_hex();
    trader.make(&market, d, terms, false).await.unwrap();
}
