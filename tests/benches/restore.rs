//! How long it takes to restore a wallet of 10,000 proofs: to read them from a
//! relay of this machine, to ask a mint of this machine about each, and to store
//! them. Beside it the time that their decryption and hashing alone take.
//!
//!     cargo bench -p hashpit-tests --bench restore

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod figures;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdk::nuts::{CurrencyUnit, Proof};
use figures::{p50, print_conditions};
use hashpit_client::Wallet;
use hashpit_client::backup::{Backup, FetchProgress, Settings, fetch};
use hashpit_client::wallet::Remains;
use hashpit_nips::eh03::{TokenContent, split};
use hashpit_nips::{Seed, kind};
use hashpit_tests::house::RelayHouse;
use hashpit_tests::sat_mint::SatMint;
use nostr_sdk::nips::nip44::{self, Version};
use nostr_sdk::{Client, Event, EventBuilder, Keys, RelayUrl, Timestamp};
use tokio::sync::watch;

const PROOFS: usize = 10_000;
/// An amount of ten proofs.
const TOKEN: u64 = 1_023;
/// Times that each restore is measured.
const RUNS: usize = 3;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mint = SatMint::start(&dir.path().join("mint")).await.unwrap();
        let mut proofs = Vec::new();
        while proofs.len() < PROOFS {
            proofs.extend(mint.proofs(TOKEN).await.unwrap());
        }
        let full = split(&mint.url, &CurrencyUnit::Sat, proofs.clone());
        let single = |proof| TokenContent {
            mint: mint.url.clone(),
            unit: CurrencyUnit::Sat,
            proofs: vec![proof],
            del: Vec::new(),
        };
        let single = proofs.into_iter().map(single).collect();
        measure("as hashpit writes them", full, 8).await;
        measure("each in an event of its own", single, 100).await;
    });
    print_conditions();
}

async fn measure(what: &str, contents: Vec<TokenContent>, per_second: u64) {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(&dir.path().join("relay")).await.unwrap();
    let seed = Seed::from_entropy(&[5; 16]);
    let events = seal(&seed.nostr_keys(0), &contents, per_second);
    publish(&relay.url, &events).await;
    let limit = limit(&seed.nostr_keys(0), &events);
    let mut times = [const { Vec::new() }; 4];
    for run in 0..RUNS {
        let dir = dir.path().join(run.to_string());
        let taken = restore(&dir, seed.clone(), &relay.url).await;
        times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
    }
    relay.stop().await.unwrap();
    let [read, stored, restored, adopted] = times.map(|times| p50(times).as_secs_f64());
    let (events, limit) = (events.len(), limit.as_secs_f64());
    println!(
        "restore of {PROOFS} proofs in {events} events, {what}, p50 of {RUNS}: {restored:.2} s \
         (target: 5 s)"
    );
    println!("  read {read:.2} s, checked at the mint and stored {stored:.2} s");
    println!("  decryption and hashing alone {limit:.2} s: {:.1} times that", restored / limit);
    println!("  then the events are taken up as the new wallet's own: {adopted:.2} s");
}

fn seal(author: &Keys, contents: &[TokenContent], per_second: u64) -> Vec<Event> {
    let now = Timestamp::now();
    let sealed = contents.iter().zip(0u64..).map(|(content, number)| {
        let (key, plain) = (author.secret_key(), content.encode());
        let cipher = nip44::encrypt(key, &author.public_key(), plain, Version::V2).unwrap();
        let event = EventBuilder::new(kind::TOKEN, cipher);
        let event = event.custom_created_at(now - number / per_second);
        event.sign_with_keys(author).unwrap()
    });
    sealed.collect()
}

async fn publish(relay: &RelayUrl, events: &[Event]) {
    let client = Client::builder().build();
    client.add_relay(relay).await.unwrap();
    client.connect().await;
    for event in events {
        assert!(client.send_event(event).await.unwrap().failed.is_empty());
    }
    client.shutdown().await;
}

/// What no restore can do without, one thing after the other: to decrypt every
/// event, and to find each proof's Y, by which a mint is asked.
fn limit(author: &Keys, events: &[Event]) -> Duration {
    let begun = Instant::now();
    for event in events {
        let (key, from) = (author.secret_key(), author.public_key());
        let content = nip44::decrypt(key, &from, &event.content).unwrap();
        let proofs: Vec<Proof> = TokenContent::decode(&content).unwrap().proofs;
        assert!(proofs.iter().all(|proof| proof.y().is_ok()));
    }
    begun.elapsed()
}

/// Restores a new wallet in `dir`: how long reading took, storing, both, and to
/// take up the events.
async fn restore(dir: &Path, seed: Seed, relay: &RelayUrl) -> [Duration; 4] {
    let begun = Instant::now();
    let wallet = Wallet::create(dir, seed, None).await.unwrap();
    let (progress, _) = watch::channel(FetchProgress::default());
    let ehash = Arc::new(wallet.backup_keys());
    let relays = std::slice::from_ref(relay);
    let found = fetch(ehash, wallet.signer(), relays, progress).await.unwrap();
    let read = begun.elapsed();
    let report = wallet.restore(&Remains::of(&found), &|_| ()).await.unwrap();
    let restored = begun.elapsed();
    let settings = Settings { relays: relays.to_vec(), quorum: None };
    Backup::connect(&wallet, settings).unwrap().adopt(&found).await.unwrap();
    let adopted = begun.elapsed() - restored;

    assert!(report.values().all(|at| at.proofs == PROOFS && at.unverified.is_none()));
    let held = wallet.balances().await.unwrap()[0].amount;
    assert_eq!(held, TOKEN * (PROOFS / 10) as u64, "all of them");
    [read, restored - read, restored, adopted]
}
