//! A wallet is lost and comes back from its words.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::backup::{self, Backup, FetchProgress, Settings};
use hashpit_client::issuance::{self, Progress, Until};
use hashpit_client::mint::Route;
use hashpit_client::wallet::{Remains, What};
use hashpit_nips::HashUnits;
use hashpit_tests::house::{PoolHouse, RelayHouse, relay_and_pool};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

async fn wallet(dir: &Path) -> Wallet {
    Wallet::open_or_create(dir, rand::random).await.unwrap()
}

async fn held(wallet: &Wallet) -> u64 {
    wallet.balances().await.unwrap().iter().map(|one| one.amount + one.pending).sum()
}

async fn claim(wallet: &Wallet, relay: &RelayHouse, pool: &PoolHouse) -> HashUnits {
    let (progress, _) = watch::channel(Progress::default());
    let until = Until::Settled(Duration::from_secs(60));
    let relays = [relay.url.clone()];
    let stop = CancellationToken::new();
    issuance::claim(wallet, pool.key, &relays, until, progress, stop).await.unwrap().received
}

fn from_mint(pool: &PoolHouse) -> Remains {
    let mints = BTreeSet::from([pool.mint_url.parse().unwrap()]);
    Remains { mints, ..Remains::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_and_the_mint_bring_back_every_unit_and_mining_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let (lost, other) = (wallet(&dir.join("lost")).await, wallet(&dir.join("other")).await);
    let earned = pool.pay_for_work(&lost, &relay).await.unwrap().get();
    let token = lost.send(earned / 2, None).await.unwrap().to_string();
    other.receive(&token).await.unwrap();
    let back = other.send(earned / 4, None).await.unwrap().to_string();
    lost.receive(&back).await.unwrap();
    let due = earned - earned / 2 + earned / 4;
    assert_eq!(held(&lost).await, due);
    let seed = lost.seed().clone();
    drop(lost);

    let restored = Wallet::create(&dir.join("restored"), seed, None).await.unwrap();
    let report = restored.restore(&from_mint(&pool), &|_| ()).await.unwrap();
    assert!(report.values().all(|found| found.unverified.is_none() && found.proofs > 0));
    assert_eq!(held(&restored).await, due);
    // Again: nothing is counted twice.
    restored.restore(&from_mint(&pool), &|_| ()).await.unwrap();
    assert_eq!(held(&restored).await, due);
    // The pool's word is taken for what was before, and work is paid from there.
    assert_eq!(claim(&restored, &relay, &pool).await.get(), earned);
    assert_eq!(held(&restored).await, due);
    pool.pay_for_work(&restored, &relay).await.unwrap();
    let issued = pool.monitor.status().totals.issued.get();
    assert!(issued > earned);
    assert_eq!(held(&restored).await, issued - earned + due);
    // What came back can be spent.
    let all = restored.send(held(&restored).await, None).await.unwrap().to_string();
    other.receive(&all).await.unwrap();
    assert_eq!(held(&other).await, issued);
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_issued_while_the_wallet_was_lost_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let lost = wallet(&dir.join("lost")).await;
    pool.pay_for_work(&lost, &relay).await.unwrap();
    let seed = lost.seed().clone();
    // The blanks stay at the pool, and it goes on signing them.
    pool.work_for(lost.public_key()).await.unwrap();
    drop(lost);

    let restored = Wallet::create(&dir.join("restored"), seed, None).await.unwrap();
    restored.restore(&from_mint(&pool), &|_| ()).await.unwrap();
    pool.pay_for_work(&restored, &relay).await.unwrap();
    assert_eq!(held(&restored).await, pool.monitor.status().totals.issued.get());
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn history_tells_claims_tokens_and_what_was_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let wallet = wallet(&dir.join("wallet")).await;
    let earned = pool.pay_for_work(&wallet, &relay).await.unwrap().get();
    let token = wallet.send(1, None).await.unwrap().to_string();
    let entry = wallet.history().await.unwrap().into_iter().find(|one| one.what == What::Sent);
    let id = entry.unwrap().id;
    assert_eq!(wallet.reclaim(&id[id.len() - 8..]).await.unwrap().amount, 1);
    assert_eq!(wallet.balances().await.unwrap()[0].amount, earned);
    assert!(wallet.reclaim(&id).await.unwrap_err().to_string().contains("not pending"));
    assert!(wallet.reclaim("ffff").await.unwrap_err().to_string().contains("history"));
    // The token is void.
    assert!(wallet.receive(&token).await.is_err());
    let history = wallet.history().await.unwrap();
    let claimed = history.iter().filter(|entry| entry.what == What::Claimed);
    assert_eq!(claimed.map(|entry| entry.amount).sum::<u64>(), earned);
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_has_lost_is_asked_of_the_mint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let lost = wallet(&dir.join("lost")).await;
    let settings = Settings { relays: vec![relay.url.clone()], quorum: None };
    lost.set_backup_settings(&settings).await.unwrap();
    pool.pay_for_work(&lost, &relay).await.unwrap();
    Backup::connect(&lost, settings).unwrap().sync().await.unwrap();
    let due = held(&lost).await;
    let seed = lost.seed().clone();

    for kept in [usize::MAX, 1, 0] {
        let (progress, _) = watch::channel(FetchProgress::default());
        let ehash = Arc::new(lost.backup_keys());
        let relays = [relay.url.clone()];
        let mut found = backup::fetch(ehash, lost.signer(), &relays, progress).await.unwrap();
        found.tokens.values_mut().for_each(|proofs| proofs.truncate(kept));
        let again = dir.join(kept.to_string());
        let restored = Wallet::create(&again, seed.clone(), None).await.unwrap();
        let remains = Remains::of(&found);
        assert!(
            remains.counters.values().any(|counter| counter.from > 0),
            "there is something to skip"
        );
        restored.restore(&remains, &|_| ()).await.unwrap();
        assert_eq!(held(&restored).await, due, "{kept} proofs kept");
    }
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_silent_mint_could_not_say_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (relay, pool) = relay_and_pool(dir).await.unwrap();
    let (lost, other) = (wallet(&dir.join("lost")).await, wallet(&dir.join("other")).await);
    let settings = Settings { relays: vec![relay.url.clone()], quorum: None };
    lost.set_backup_settings(&settings).await.unwrap();
    let earned = pool.pay_for_work(&lost, &relay).await.unwrap().get();
    let (progress, _) = watch::channel(FetchProgress::default());
    let (ehash, relays) = (Arc::new(lost.backup_keys()), [relay.url.clone()]);
    let found = backup::fetch(ehash, lost.signer(), &relays, progress).await.unwrap();
    // The relays do not hear of this any more.
    let token = lost.send(3, None).await.unwrap().to_string();
    other.receive(&token).await.unwrap();

    let remains = Remains::of(&found);
    let restored = Wallet::create(&dir.join("restored"), lost.seed().clone(), None).await.unwrap();
    // No relay of the pool is known, so there is no way to the mint.
    let cut_off = restored.clone().with_route(Route::Nostr);
    let report = cut_off.restore(&remains, &|_| ()).await.unwrap();
    assert!(report.values().all(|found| found.unverified.is_some()), "{report:?}");
    assert_eq!(held(&restored).await, earned);
    let report = restored.restore(&remains, &|_| ()).await.unwrap();
    assert!(report.values().all(|found| found.unverified.is_none() && found.spent > 0));
    assert_eq!(held(&restored).await, earned - 3);
    pool.stop().await.unwrap();
    relay.stop().await.unwrap();
}
