//! Mining and claiming through a relay of another make.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hashpit_client::mint::Route;
use hashpit_client::wallet::Wallet;
use hashpit_interop::foreign_relay::ForeignRelay;
use hashpit_interop::pair::Pair;
use hashpit_interop::within_patience;
use hashpit_nips::HashUnits;

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
