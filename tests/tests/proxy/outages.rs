//! Pools that come and go.

use std::num::NonZeroUsize;

use hashpit_client::miner::{self, Progress};
use hashpit_client::proxy::{PoolAddress, Settings};
use hashpit_tests::house::PoolHouse;
use hashpit_tests::process::free_port;
use hashpit_tests::proxy_house::{ProxyHouse, address};
use hashpit_tests::sv1_miner::{Handshake, Sv1Miner};
use hashpit_tests::sv2_peer::{Channel, Sv2Peer};
use stratum_apps::stratum_core::parsers_sv2::MiningOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{miner, pool, proxy, within_patience};

/// A device that can be told of another extranonce.
const MOVABLE: Handshake = Handshake {
    lines: &[
        r#"{"id":1,"method":"mining.subscribe","params":[]}"#,
        r#"{"id":2,"method":"mining.authorize","params":["movable","x"]}"#,
        r#"{"id":3,"method":"mining.extranonce.subscribe","params":[]}"#,
    ],
    pipelined: false,
    rolls_version: false,
    user: "movable",
};

async fn restarted(pool: PoolHouse, dir: &std::path::Path) -> PoolHouse {
    let sv2 = pool.sv2;
    pool.stop().await.unwrap();
    let config = PoolHouse::config_without_blocks(&[]).unwrap();
    PoolHouse::start_at(config, dir, sv2).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_stay_where_their_protocol_allows_it_and_no_share_counts_twice() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    let mut movable = within_patience(Sv1Miner::shake_hands(proxy.sv1, MOVABLE)).await.unwrap();
    let mut plain = within_patience(Sv1Miner::connect(proxy.sv1, "plain")).await.unwrap();
    let (first, second) =
        within_patience(async { tokio::try_join!(movable.mine(5), plain.mine(5)) }).await.unwrap();
    assert_eq!((first.accepted, second.accepted), (5, 5));

    let pool = restarted(pool, dir.path()).await;
    within_patience(movable.moved()).await.unwrap();
    let tally = within_patience(movable.mine(5)).await.unwrap();
    assert_eq!((tally.accepted, tally.rejected.len()), (10, 0), "{tally:?}");
    // It has not asked for mining.set_extranonce, so it is sent to come back.
    within_patience(plain.hung_up()).await;
    let mut plain = within_patience(Sv1Miner::connect(proxy.sv1, "plain")).await.unwrap();
    assert_eq!(within_patience(plain.mine(5)).await.unwrap().accepted, 5);

    let (books, totals) = (proxy.monitor.books(), pool.monitor.status().totals);
    assert_eq!((totals.shares, totals.work), (books.shares, books.acknowledged));
    assert_eq!(totals.shares, 20);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sv2_device_never_notices() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    let config = miner::Config {
        pool: proxy.sv2.to_string(),
        authority: proxy.authority.parse().unwrap(),
        // Its own npub is replaced by the wallet's.
        identity: "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg.cpu"
            .parse()
            .unwrap(),
        threads: NonZeroUsize::MIN,
        max_hashrate: Some(200_000.0),
    };
    let (sender, mut progress) = watch::channel(Progress::default());
    let stop = CancellationToken::new();
    let mining = tokio::spawn(miner::mine(config, sender, stop.clone()));
    let accepted = |count: u64| move |now: &Progress| now.accepted >= count;
    let before = within_patience(progress.wait_for(accepted(3))).await.unwrap().accepted;

    let pool = restarted(pool, dir.path()).await;
    let mut was_connected = true;
    let after = within_patience(progress.wait_for(|now| {
        was_connected &= now.connected;
        now.accepted >= before + 3
    }));
    drop(after.await.unwrap());
    assert!(was_connected);
    stop.cancel();
    mining.await.unwrap();
    let worker = &proxy.monitor.status().workers[0];
    assert_eq!(worker.worker, "cpu");
    let books = proxy.monitor.books();
    let totals = pool.monitor.status().totals;
    assert!(totals.work >= books.acknowledged, "{totals:?} {books:?}");
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

/// Mines shares on an extended channel until one has been accepted.
async fn accepted(peer: &mut Sv2Peer, channel: &mut Channel) {
    let share = channel.mine().unwrap();
    peer.send_mining(share.message()).await.unwrap();
    loop {
        match peer.next_mining().await.unwrap() {
            MiningOwned::SubmitSharesSuccess(m) => {
                assert_eq!((m.channel_id, m.new_submits_accepted_count), (channel.id, 1));
                return;
            }
            MiningOwned::SubmitSharesError(m) => panic!("{m:?}"),
            other => channel.follow(&other),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extended_channels_get_another_prefix_and_keep_their_ids() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let proxy = proxy(&pool).await;
    let mut peer = Sv2Peer::ready(proxy.sv2).await.unwrap();
    let mut first = peer.open_extended("anyone.first", 1.0).await.unwrap().unwrap();
    accepted(&mut peer, &mut first).await;

    let pool = restarted(pool, dir.path()).await;
    let before = std::mem::take(&mut first.extranonce_prefix);
    (first.tip, first.jobs) = (None, Default::default());
    while first.tip.is_none() {
        match peer.next_mining().await.unwrap() {
            MiningOwned::SetExtranoncePrefix(m) => {
                assert_eq!(m.channel_id, first.id);
                first.extranonce_prefix = m.extranonce_prefix.as_bytes().to_vec();
            }
            other => first.follow(&other),
        }
    }
    assert_eq!(first.extranonce_prefix.len(), before.len());
    assert_ne!(first.extranonce_prefix, before);
    accepted(&mut peer, &mut first).await;
    assert_eq!(pool.monitor.status().totals.shares, 2);
    assert_eq!(proxy.monitor.books().shares, 2);
    assert_eq!(proxy.monitor.status().workers[0].worker, "first");
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pool_of_the_list_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path()).await;
    let live = address(&pool).unwrap();
    let gone =
        PoolAddress { address: format!("127.0.0.1:{}", free_port().unwrap()), ..live.clone() };
    let stranger = PoolAddress {
        authority: hashpit_pool::sv2::Authority::from_secret(&[5; 32])
            .unwrap()
            .to_string()
            .parse()
            .unwrap(),
        ..live.clone()
    };
    let pools = vec![gone, stranger, live];
    let proxy = ProxyHouse::start(pools, miner(), ProxyHouse::settings()).await.unwrap();
    let mut device = within_patience(Sv1Miner::connect(proxy.sv1, "rig")).await.unwrap();
    assert_eq!(within_patience(device.mine(2)).await.unwrap().accepted, 2);
    assert_eq!(proxy.monitor.status().pools, [(pool.sv2.to_string(), 1)]);
    // The one with the right key: addresses with one key are one pool.
    assert_eq!(proxy.monitor.books().shares, 2);
    proxy.stop().await.unwrap();
    pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_pool_is_used_again_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let first = pool(&dir.path().join("first")).await;
    let (sv2, best) = (first.sv2, address(&first).unwrap());
    first.stop().await.unwrap();
    let second = pool(&dir.path().join("second")).await;
    let pools = vec![best, address(&second).unwrap()];
    let settings = Settings { retry_better_pool_secs: 1, ..ProxyHouse::settings() };
    let proxy = ProxyHouse::start(pools, miner(), settings).await.unwrap();
    let mut movable = within_patience(Sv1Miner::shake_hands(proxy.sv1, MOVABLE)).await.unwrap();
    assert_eq!(within_patience(movable.mine(2)).await.unwrap().accepted, 2);
    assert_eq!(proxy.monitor.status().pools, [(second.sv2.to_string(), 1)]);

    let config = PoolHouse::config_without_blocks(&[]).unwrap();
    let first = PoolHouse::start_at(config, &dir.path().join("first"), sv2).await.unwrap();
    within_patience(movable.moved()).await.unwrap();
    let tally = within_patience(movable.mine(2)).await.unwrap();
    assert_eq!((tally.accepted, tally.rejected.len()), (4, 0), "{tally:?}");
    assert_eq!(proxy.monitor.status().pools, [(first.sv2.to_string(), 1)]);
    assert_eq!(proxy.monitor.books().shares, 2);
    proxy.stop().await.unwrap();
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}
