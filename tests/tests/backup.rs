//! The wallet's backup, on relays of ours and on relays that misbehave.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use cdk::secret::Secret;
use hashpit_client::Wallet;
use hashpit_client::backup::{Backup, BackupError, FetchProgress, Finding, Found, Settings, fetch};
use hashpit_nips::eh03::TokenContent;
use hashpit_nips::kind;
use hashpit_tests::bad_relay::{BadRelay, Fault};
use hashpit_tests::house::{PoolHouse, RelayHouse, relay_and_pool};
use nostr_sdk::{Client, EventBuilder, Keys, NostrSigner, RelayUrl, Timestamp};
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
        let wallet = Wallet::open_or_create(&dir.join("wallet"), || [7; 16]).await.unwrap();
        let friend = Wallet::open_or_create(&dir.join("friend"), || [8; 16]).await.unwrap();
        let ehash = pool.pay_for_work(&wallet, &relay).await.unwrap();
        assert!(ehash.get() >= 3, "too little to play with: {ehash}");
        Self { relay, pool, wallet, friend }
    }

    /// Pays one unit to the friend and gets one back: some proofs die and others
    /// are born.
    async fn pay(&self) {
        let token = self.wallet.send(1, None).await.unwrap();
        self.friend.receive(&token.to_string()).await.unwrap();
        let token = self.friend.send(1, None).await.unwrap();
        // Looks after the first token before it takes the second.
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
    let (ehash, identity) = (Arc::new(wallet.backup_keys()), wallet.signer());
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
    let shown = format!("{first:?}");
    assert!(secrets(&first).iter().all(|secret| !shown.contains(secret)), "{shown}");

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

/// Two honest relays and one that misbehaves.
struct Three {
    honest: [BadRelay; 2],
    bad: BadRelay,
}

impl Three {
    async fn start(fault: Fault) -> Self {
        let honest = || async { BadRelay::start(Fault::None).await.unwrap() };
        let bad = BadRelay::start(fault).await.unwrap();
        Self { honest: [honest().await, honest().await], bad }
    }

    fn settings(&self) -> Settings {
        settings(&[&self.honest[0].url, &self.honest[1].url, &self.bad.url])
    }
}

/// The secrets of what was found.
fn secrets(found: &Found) -> BTreeSet<String> {
    found.tokens.values().flatten().map(|proof| proof.secret.to_string()).collect()
}

/// Backs up, pays, and backs up again, with one relay that misbehaves; what a
/// verification finds wrong there. Afterwards the relay mends its ways, and the
/// backup is repaired.
async fn with_a_fault(bench: &Bench, fault: Fault) -> Finding {
    let three = Three::start(fault).await;
    let (settings, bad) = (three.settings(), three.bad.url.clone());
    let backup = Backup::connect(&bench.wallet, settings.clone()).unwrap();
    for _ in 0..2 {
        bench.pay().await;
        backup.sync().await.unwrap();
    }
    let whole = found(&bench.wallet, &settings.relays).await;
    assert_eq!(amount(&whole), held(&bench.wallet).await, "{fault:?}");
    let found_wrong = backup.verify().await.unwrap();
    for finding in &found_wrong.relays {
        assert!(finding.relay == bad.to_string() || finding.is_clean(), "{fault:?}: {finding:?}");
    }
    let of_bad = |finding: &&Finding| finding.relay == bad.to_string();
    let finding = found_wrong.relays.iter().find(of_bad).unwrap().clone();

    three.bad.set(Fault::None);
    let repaired = backup.repair().await.unwrap();
    assert!(repaired.after.is_clean(), "{fault:?}: {repaired:?}");
    assert!(repaired.synced.lagging.is_empty(), "{fault:?}: {repaired:?}");
    let alone = found(&bench.wallet, &[bad]).await;
    assert_eq!(secrets(&alone), secrets(&whole), "{fault:?}");
    assert!(alone.stale.is_empty(), "{fault:?}");
    finding
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_relay_in_three_may_misbehave_in_any_way() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path()).await;
    for fault in [Fault::Lies, Fault::Loses(2), Fault::Refuses] {
        let finding = with_a_fault(&bench, fault).await;
        assert!(!finding.missing.is_empty(), "{fault:?}: {finding:?}");
    }
    for fault in [Fault::KeepsDeleted, Fault::DropsDeletions] {
        let finding = with_a_fault(&bench, fault).await;
        assert!(!finding.stale.is_empty(), "{fault:?}: {finding:?}");
    }
    let coped_with = [
        Fault::Reorders,
        Fault::RateLimits(2),
        Fault::HangsUp(7),
        Fault::AtMost(5),
        Fault::WantsAuth,
    ];
    for fault in coped_with {
        let finding = with_a_fault(&bench, fault).await;
        assert!(finding.is_clean(), "{fault:?}: {finding:?}");
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_deleted_and_the_same_events_are_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path()).await;
    let three = Three::start(Fault::None).await;
    let backup = Backup::connect(&bench.wallet, three.settings()).unwrap();
    backup.sync().await.unwrap();
    let [first, second] = &three.honest;
    let before = secrets(&found(&bench.wallet, std::slice::from_ref(&first.url)).await);

    bench.pay().await;
    second.set(Fault::Lies);
    three.bad.set(Fault::Refuses);
    let error = backup.sync().await.unwrap_err();
    let BackupError::NoQuorum { have: 1, need: 2, relays } = &error else { panic!("{error}") };
    assert!(relays[&second.url].contains("does not have"), "{error}");
    assert!(relays[&three.bad.url].contains("blocked"), "{error}");
    assert!(error.to_string().contains("the tokens are safe"), "{error}");
    for relay in [second, &three.bad] {
        assert_eq!(secrets(&found(&bench.wallet, std::slice::from_ref(&relay.url)).await), before);
    }
    let status = backup.status().await.unwrap();
    assert!(!status.protected && status.unwritten == 0, "{status:?}");

    // Another process takes over; the relays are well again.
    second.set(Fault::None);
    let wallet = Wallet::open(&dir.path().join("wallet")).await.unwrap();
    let backup = Backup::connect(&wallet, three.settings()).unwrap();
    let synced = backup.sync().await.unwrap();
    assert_eq!(synced.written, 0, "what was signed is sent: {synced:?}");
    assert_eq!(synced.lagging.keys().collect::<Vec<_>>(), [&three.bad.url]);
    let now = secrets(&found(&wallet, &three.settings().relays).await);
    assert_ne!(now, before);
    for relay in &three.honest {
        assert_eq!(secrets(&found(&wallet, std::slice::from_ref(&relay.url)).await), now);
    }
    // A relay without what is new keeps what is old.
    assert_eq!(secrets(&found(&wallet, std::slice::from_ref(&three.bad.url)).await), before);
    let status = backup.status().await.unwrap();
    let lagging = status.relays.iter().find(|relay| relay.relay == three.bad.url).unwrap();
    assert!(lagging.confirmed < lagging.expected && lagging.undeleted > 0, "{lagging:?}");
    assert!(lagging.trouble.as_ref().unwrap().contains("blocked"), "{lagging:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_lost_everything_gets_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path()).await;
    let three = Three::start(Fault::None).await;
    let backup = Backup::connect(&bench.wallet, three.settings()).unwrap();
    backup.sync().await.unwrap();
    three.bad.forget();
    three.honest[0].forget();
    assert!(backup.sync().await.unwrap().lagging.is_empty(), "the records know nothing of it");
    let verified = backup.verify().await.unwrap();
    let empty = verified.relays.iter().filter(|finding| finding.present == 0);
    assert_eq!(empty.count(), 2, "{verified:?}");
    assert!(!backup.status().await.unwrap().protected);
    let repaired = backup.repair().await.unwrap();
    assert!(repaired.after.is_clean(), "{repaired:?}");
    for relay in three.settings().relays {
        assert_eq!(amount(&found(&bench.wallet, &[relay]).await), held(&bench.wallet).await);
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_is_adopted_and_not_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path()).await;
    let three = Three::start(Fault::None).await;
    // The same wallet on another machine, which has never made a backup.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in ["wallet.seed", "wallet.sqlite", "wallet.sqlite-wal"] {
        let from = dir.path().join("wallet").join(file);
        if from.exists() {
            std::fs::copy(from, other.join(file)).unwrap();
        }
    }
    let backup = Backup::connect(&bench.wallet, three.settings()).unwrap();
    backup.sync().await.unwrap();
    let other = Wallet::open(&other).await.unwrap();
    assert_eq!(held(&other).await, held(&bench.wallet).await);
    let backup = Backup::connect(&other, three.settings()).unwrap();
    let seen = found(&other, &three.settings().relays).await;
    backup.adopt(&seen).await.unwrap();
    let synced = backup.sync().await.unwrap();
    assert_eq!((synced.written, synced.deleted), (0, 0), "{synced:?}");
    assert!(backup.verify().await.unwrap().is_clean());
    bench.stop().await;
}

/// Token events of one proof each, as another wallet may have written them.
async fn write_many(author: &Keys, relay: &BadRelay, count: u64) -> BTreeSet<String> {
    let example = include_str!("../../nips/EH-03.md");
    let example = example.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let mut content = TokenContent::decode(example).unwrap();
    content.del.clear();
    let client = Client::builder().signer(author.clone()).build();
    client.add_relay(&relay.url).await.unwrap();
    client.connect().await;
    let mut secrets = BTreeSet::new();
    for number in 0..count {
        content.proofs[0].secret = Secret::new(format!("{number:064x}"));
        secrets.insert(content.proofs[0].secret.to_string());
        let plain = content.encode();
        let sealed = author.nip44_encrypt(&author.public_key(), &plain).await.unwrap();
        let event = EventBuilder::new(kind::TOKEN, sealed);
        let event = event.custom_created_at(Timestamp::from(1_700_000_000 + number / 8));
        client.send_event_builder(event).await.unwrap();
    }
    client.shutdown().await;
    secrets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_many_events_is_read_to_its_end_from_any_relay() {
    let dir = tempfile::tempdir().unwrap();
    let wallet = Wallet::open_or_create(dir.path(), || [7; 16]).await.unwrap();
    let relay = BadRelay::start(Fault::None).await.unwrap();
    let written = write_many(&wallet.backup_keys(), &relay, 700).await;
    let faults = [Fault::None, Fault::AtMost(50), Fault::HangsUp(90), Fault::Reorders];
    for fault in faults.into_iter().chain([Fault::WantsAuth, Fault::AtMost(9)]) {
        relay.set(fault);
        let found = found(&wallet, std::slice::from_ref(&relay.url)).await;
        assert_eq!(found.events.len(), 700, "{fault:?}");
        assert_eq!(secrets(&found), written, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_may_back_up_one_wallet_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path()).await;
    let three = Three::start(Fault::None).await;
    let other = Wallet::open(&dir.path().join("wallet")).await.unwrap();
    let one = Backup::connect(&bench.wallet, three.settings()).unwrap();
    let two = Backup::connect(&other, three.settings()).unwrap();
    for _ in 0..3 {
        bench.pay().await;
        let (first, second) = tokio::join!(one.sync(), two.sync());
        let written = first.unwrap().written + second.unwrap().written;
        assert_eq!(written, 1, "one of them has written it");
    }
    one.sync().await.unwrap();
    let verified = two.verify().await.unwrap();
    assert!(verified.is_clean(), "{verified:?}");
    assert!(verified.relays.iter().all(|finding| finding.unknown.is_empty()), "{verified:?}");
    let whole = found(&bench.wallet, &three.settings().relays).await;
    assert_eq!(amount(&whole), held(&bench.wallet).await);
    bench.stop().await;
}
