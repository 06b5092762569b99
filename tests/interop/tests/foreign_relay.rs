//! Mining, claiming, backing up and restoring through a relay of another make.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use hashpit_client::backup::{Backup, FetchProgress, Settings, fetch};
use hashpit_client::mint::Route;
use hashpit_client::wallet::{Remains, Wallet};
use hashpit_interop::foreign_relay::ForeignRelay;
use hashpit_interop::pair::Pair;
use hashpit_interop::within_patience;
use hashpit_nips::HashUnits;
use hashpit_tests::sv1_miner::Sv1Miner;
use nostr_sdk::RelayUrl;
use tokio::sync::watch;

#[tokio::test(flavor = "multi_thread")]
async fn ehash_arrives_through_nostr_rs_relay() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = ForeignRelay::start(dir.path()).await.unwrap();
        let config = Pair::config(&relay.url, 20_000.0, 600.0).unwrap();
        let pair = Pair::start(dir.path(), config).await.unwrap();
        pair.mine(10).await.unwrap();
        let status = pair.claim().await.unwrap();

        // A share that was recorded as the miner left is in the books, and was
        // acknowledged to no one.
        assert!(status.totals.shares >= status.sv2.accepted && status.sv2.accepted >= 10);
        let ehash = pair.ehash().await.unwrap();
        assert!(ehash > HashUnits::ZERO);
        assert_eq!(ehash, pair.pool.epoch.work.units_in(status.totals.work).unwrap());
        assert_eq!(ehash, status.totals.issued);

        // The mint over Nostr: no relay but this one carries the swap.
        let payee = Wallet::open_or_create(&dir.path().join("payee"), || [8; 16]).await.unwrap();
        let payee = payee.with_route(Route::Nostr).with_relays(vec![relay.url.clone()]);
        let token = pair.wallet.send(ehash.get(), None).await.unwrap().to_string();
        assert_eq!(payee.receive(&token).await.unwrap().amount, ehash.get());
        pair.pool.stop().await.unwrap();
    })
    .await;
}

/// Only the words and this relay are left of the wallet. It has spent before, so
/// the relay holds events that others have replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_wallet_comes_back_from_nostr_rs_relay() {
    within_patience(async {
        let dir = tempfile::tempdir().unwrap();
        let relay = ForeignRelay::start(dir.path()).await.unwrap();
        let config = Pair::config(&relay.url, 20_000.0, 600.0).unwrap();
        let mut pair = Pair::start(dir.path(), config).await.unwrap();
        let settings = Settings { relays: vec![relay.url.clone()], quorum: None };
        pair.wallet.set_backup_settings(&settings).await.unwrap();
        let proxy = pair.proxy().await.unwrap();
        let mut device = Sv1Miner::connect(proxy.sv1, "rig").await.unwrap();
        assert!(device.mine(10).await.unwrap().rejected.is_empty());

        let status = pair.claim().await.unwrap();
        assert_eq!(pair.ehash().await.unwrap(), status.totals.issued);
        let earned = status.totals.issued.get();
        assert!(earned >= 3, "too little to spend: {earned}");
        let friend = Wallet::open_or_create(&dir.path().join("friend"), || [8; 16]).await.unwrap();
        let token = pair.wallet.send(earned / 3, None).await.unwrap().to_string();
        friend.receive(&token).await.unwrap();
        let backup = Backup::connect(&pair.wallet, settings.clone()).unwrap();
        assert!(backup.sync().await.unwrap().lagging.is_empty());

        let seed = pair.wallet.seed().clone();
        let lost = dir.path().join("wallet");
        std::fs::remove_dir_all(&lost).unwrap();
        pair.wallet = Wallet::create(&lost, seed, None).await.unwrap();
        restore(&pair.wallet, settings).await;
        let held = earned - earned / 3;
        assert_eq!(pair.ehash().await.unwrap(), HashUnits::new(held));

        // Mining goes on, and the pool's batches are counted on from there.
        device.mine(5).await.unwrap();
        let status = pair.settle().await.unwrap();
        assert!(status.totals.issued.get() > earned);
        let held = held + status.totals.issued.get() - earned;
        assert_eq!(pair.ehash().await.unwrap(), HashUnits::new(held));
        proxy.stop().await.unwrap();
        pair.pool.stop().await.unwrap();
    })
    .await;
}

/// Reads the backup, and leaves it complete: nothing is lacking or stale.
async fn restore(wallet: &Wallet, settings: Settings) {
    let (progress, _) = watch::channel(FetchProgress::default());
    let ehash = Arc::new(wallet.backup_keys());
    let relays: &[RelayUrl] = &settings.relays;
    let found = fetch(ehash, wallet.signer(), relays, progress).await.unwrap();
    assert!(found.unreadable.is_empty() && found.unread.is_empty(), "{found:?}");
    let report = wallet.restore(&Remains::of(&found), &|_| ()).await.unwrap();
    assert!(report.values().all(|at| at.unverified.is_none()), "{report:?}");
    wallet.set_backup_settings(&settings).await.unwrap();
    let backup = Backup::connect(wallet, settings).unwrap();
    backup.adopt(&found).await.unwrap();
    let verified = backup.verify().await.unwrap();
    assert!(verified.is_clean(), "{verified:?}");
}
