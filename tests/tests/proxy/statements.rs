//! The pool's statements against the proxy's books.

use std::time::{Duration, Instant};

use hashpit_client::Wallet;
use hashpit_client::issuance::{self, Progress, Until};
use hashpit_client::proxy::reconcile;
use hashpit_nips::Work;
use hashpit_nips::eh02::Statement;
use hashpit_tests::house::{PoolHouse, RelayHouse};
use hashpit_tests::proxy_house::{ProxyHouse, address};
use hashpit_tests::sv1_miner::Sv1Miner;
use nostr_sdk::EventId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{PATIENCE, within_patience};

/// Longer than the pause between two looks at the books.
const A_WHILE: Duration = Duration::from_secs(2);

async fn mine_a_while(device: &mut Sv1Miner) {
    let begun = Instant::now();
    while begun.elapsed() < A_WHILE {
        within_patience(device.mine(1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_pool_is_believed_and_one_that_forgets_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let relays = [relay.url.clone()];
    let config = PoolHouse::config_without_blocks(&relays).unwrap();
    let pool = PoolHouse::start(config, &dir.path().join("pool")).await.unwrap();
    let wallet = Wallet::open_or_create(&dir.path().join("wallet"), || [7; 16]).await.unwrap();
    let miner = wallet.public_key();
    let pools = vec![address(&pool).unwrap()];
    let proxy = ProxyHouse::start(pools, miner, ProxyHouse::settings()).await.unwrap();
    let (progress, claiming) = watch::channel(Progress::default());
    let (found, mut shortfall) = watch::channel(None);
    let stop = CancellationToken::new();
    let comparing = reconcile::watch(proxy.monitor.clone(), claiming.clone(), found, stop.clone());
    let comparing = tokio::spawn(comparing);

    let mut device = Sv1Miner::connect(proxy.sv1, "rig").await.unwrap();
    let statement = || claiming.borrow().statement.clone().unwrap();
    let mut stated = Vec::new();
    for _ in 0..2 {
        mine_a_while(&mut device).await;
        // Or the second claim would take the first one's statement for its own.
        progress.send_replace(Progress::default());
        let (progress, stop) = (progress.clone(), CancellationToken::new());
        let until = Until::Settled(PATIENCE);
        issuance::claim(&wallet, pool.key, &relays, until, progress, stop).await.unwrap();
        stated.push(statement().work);
    }
    assert!(stated[0] < stated[1]);
    assert_eq!(stated[1], proxy.monitor.books().acknowledged);
    mine_a_while(&mut device).await;
    assert_eq!(*shortfall.borrow(), None);

    // What a pool would say that kept these last shares to itself.
    let honest = statement();
    let forged = Statement { of: EventId::from_byte_array([1; 32]), ..honest.clone() };
    progress.send_modify(|progress| {
        progress.statement = Some(forged.clone());
        progress.statement_asked_at = Some(tokio::time::Instant::now());
    });
    let shortfall = within_patience(shortfall.wait_for(Option::is_some)).await.unwrap().clone();
    let shortfall = shortfall.unwrap();
    assert_eq!((shortfall.stated, shortfall.statements), (Work::ZERO, [honest.of, forged.of]));
    assert!(shortfall.acknowledged > Work::ZERO);
    assert!(shortfall.to_string().contains("grew by only 0"));
    stop.cancel();
    comparing.await.unwrap();
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
