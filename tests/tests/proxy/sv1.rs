//! Stratum V1 devices below the proxy.

use hashpit_client::proxy::{Settings, WorkerStats};
use hashpit_nips::Work;
use hashpit_tests::house::PoolHouse;
use hashpit_tests::proxy_house::{ProxyHouse, address};
use hashpit_tests::sv1_miner::Sv1Miner;

use crate::{miner, pool, proxy, within_patience};

/// What two devices, that mined `shares` each, were told is what the proxy has
/// counted and what the pool's ledger holds.
async fn mine_with_two(pool: &PoolHouse, proxy: &ProxyHouse, shares: u64) {
    let (mut first, mut second) = tokio::try_join!(
        Sv1Miner::connect(proxy.sv1, "npub1whoever.first"),
        Sv1Miner::connect(proxy.sv1, "second"),
    )
    .unwrap();
    let (first, second) = tokio::try_join!(first.mine(shares), second.mine(shares)).unwrap();
    assert!(first.rejected.is_empty() && second.rejected.is_empty(), "{first:?} {second:?}");
    let accepted = first.accepted + second.accepted;
    assert_eq!(accepted, 2 * shares);

    let (books, totals) = (proxy.monitor.books(), pool.monitor.status().totals);
    assert_eq!(books.in_flight, Work::ZERO);
    assert_eq!((totals.shares, totals.work), (books.shares, books.acknowledged));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_for_each_device_and_the_ledger_agrees_to_the_hash() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    within_patience(mine_with_two(&pool, &proxy, 10)).await;
    let status = proxy.monitor.status();
    assert_eq!(status.pools, [(pool.sv2.to_string(), 1)]);
    let workers: Vec<_> = status.workers.iter().map(|w| (w.worker.as_str(), w.accepted)).collect();
    assert_eq!(workers, [("first", 10), ("second", 10)]);
    assert_eq!(pool.monitor.status().totals.shares, 20);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_channel_for_all_devices() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    // Both devices together are to find what the pool asks of one channel, so
    // they get difficulties that are easier than its.
    let settings = Settings {
        aggregate: true,
        hashrate: 10_000.0,
        shares_per_minute: 60.0,
        ..ProxyHouse::settings()
    };
    let pools = vec![address(&pool).unwrap()];
    let proxy = ProxyHouse::start(pools, miner(), settings).await.unwrap();
    within_patience(mine_with_two(&pool, &proxy, 20)).await;
    let workers = proxy.monitor.status().workers;
    let sum = |count: fn(&WorkerStats) -> u64| workers.iter().map(count).sum::<u64>();
    assert_eq!(sum(|w| w.accepted) + sum(|w| w.local), 40);
    assert!(sum(|w| w.local) > 0, "{workers:?}");
    assert_eq!(sum(|w| w.accepted), pool.monitor.status().totals.shares);
    assert_eq!(pool.monitor.status().sv2.channels, 1);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn powers_of_two_never_hold_back_what_the_pool_takes() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let settings = Settings { power_of_two_difficulty: true, ..ProxyHouse::settings() };
    let pools = vec![address(&pool).unwrap()];
    let proxy = ProxyHouse::start(pools, miner(), settings).await.unwrap();
    let mut device = within_patience(Sv1Miner::connect(proxy.sv1, "coarse")).await.unwrap();
    let target = device.target().to_work();
    let tally = within_patience(device.mine(30)).await.unwrap();
    assert_eq!((tally.accepted, tally.rejected.len()), (30, 0));
    // A power of two has one bit; so has the work of its target, up to the
    // 0xffff in place of 0x10000 that difficulty 1 is.
    let bits = target.log2().fract();
    assert!(bits.min(1.0 - bits) < 1e-3, "{bits}");
    let worker = &proxy.monitor.status().workers[0];
    assert_eq!(worker.accepted + worker.local, 30);
    assert_eq!(worker.accepted, pool.monitor.status().totals.shares);
    assert_eq!(worker.work, pool.monitor.status().totals.work);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}
