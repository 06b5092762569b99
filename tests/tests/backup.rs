//! The wallet's backup, on relays of ours and on relays that misbehave.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use hashpit_client::Wallet;
use hashpit_client::backup::{Backup, BackupError, FetchProgress, Found, Settings, fetch};
use hashpit_nips::kind;
use hashpit_tests::bad_relay::{BadRelay, Fault};
use hashpit_tests::house::{PoolHouse, RelayHouse, relay_and_pool};
use nostr_sdk::RelayUrl;
use std::sync::Arc;
use tokio::sync::watch;

/// A wallet with ehash, and who paid it.
struct Bench {
    relay: RelayHouse,
    pool: PoolHouse,
    wallet: Wallet,
    friend: Wallet,
}

impl Bench {
    async fn start(dir: &Path) -> Self {
        let (relay, pool) = relay_and_pool(dir).await.unwrap();
        let wallet = Wallet::create(&dir.join("wallet"), [7; 16]).await.unwrap();
        let friend = Wallet::create(&dir.join("friend"), [8; 16]).await.unwrap();
        let ehash = pool.pay_for_work(&wallet, &relay).await.unwrap();
        assert!(ehash.get() >= 3, "too little to play with: {ehash}");
        Self { relay, pool, wallet, friend }
    }

    /// Pays one unit to the friend: some proofs die and others are born.
    async fn pay(&self) {
        let token = self.wallet.send(1, None).await.unwrap();
        self.friend.receive(&token.to_string()).await.unwrap();
        // The next send learns that the token was received.
        let token = self.wallet.send(1, None).await.unwrap();
        self.wallet.receive(&token.to_string()).await.unwrap();
    }

    async fn stop(self) {
        self.pool.stop().await.unwrap();
        self.relay.stop().await.unwrap();
    }
}

fn settings(relays: &[&RelayUrl]) -> Settings {
    Settings { relays: relays.iter().map(|relay| (*relay).clone()).collect(), quorum: None }
}

async fn found(wallet: &Wallet, relays: &[RelayUrl]) -> Found {
    let (progress, _) = watch::channel(FetchProgress::default());
    let (ehash, identity) = (Arc::new(wallet.backup_keys()), Arc::new(wallet.keys()));
    fetch(ehash, identity, relays, progress).await.unwrap()
}

/// Units that were found, and how many proofs.
fn amount(found: &Found) -> u64 {
    found.tokens.values().flatten().map(|proof| u64::from(proof.amount)).sum()
}

async fn held(wallet: &Wallet) -> u64 {
    let balances = wallet.balances().await.unwrap();
    balances.iter().map(|balance| balance.amount + balance.pending).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_wallet_holds_is_on_the_relays_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path()).await;
    let [b, c] = [BadRelay::start(Fault::None).await, BadRelay::start(Fault::None).await];
    let (b, c) = (b.unwrap(), c.unwrap());
    let settings = settings(&[&bench.relay.url, &b.url, &c.url]);
    let backup = Backup::connect(&bench.wallet, settings.clone()).unwrap();
    assert!(!backup.status().await.unwrap().protected);
    let synced = backup.sync().await.unwrap();
    assert_eq!((synced.tokens, synced.written, synced.lagging.len()), (1, 1, 0), "{synced:?}");
    assert!(backup.status().await.unwrap().protected);
    let first = found(&bench.wallet, &settings.relays).await;
    assert_eq!(amount(&first), held(&bench.wallet).await);
    assert_eq!(first.ehash.pools[0].pool, bench.pool.key);
    assert_eq!(first.ehash.epochs[0].unit, bench.pool.epoch.id);
    assert_eq!((first.history.len(), first.stale.len()), (1, 0));

    for _ in 0..3 {
        bench.pay().await;
        let synced = backup.sync().await.unwrap();
        assert!(synced.lagging.is_empty() && synced.deleted > 0, "{synced:?}");
        for relay in &settings.relays {
            let found = found(&bench.wallet, std::slice::from_ref(relay)).await;
            assert_eq!(amount(&found), held(&bench.wallet).await);
            assert!(found.stale.is_empty() && found.unreadable.is_empty());
        }
        assert!(backup.verify().await.unwrap().is_clean());
    }
    let again = backup.sync().await.unwrap();
    assert_eq!((again.written, again.deleted), (0, 0), "nothing is new: {again:?}");
    bench.stop().await;
}
