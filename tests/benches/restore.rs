//! How long it takes to read a backup of 10,000 proofs from a relay of this
//! machine, against the time that their decryption alone takes.
//!
//!     cargo bench -p hashpit-tests --bench restore

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdk::mint_url::MintUrl;
use cdk::nuts::{CurrencyUnit, Id, Proof, SecretKey};
use cdk::secret::Secret;
use hashpit_client::backup::{FetchProgress, fetch};
use hashpit_nips::eh03::{TokenContent, split};
use hashpit_nips::{Seed, kind};
use hashpit_tests::house::RelayHouse;
use nostr_sdk::nips::nip44::{self, Version};
use nostr_sdk::{Client, Event, EventBuilder, Keys, Timestamp};
use tokio::sync::watch;

const PROOFS: u64 = 10_000;

fn proof(number: u64, keyset: Id) -> Proof {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    let key = SecretKey::from_slice(&bytes).unwrap();
    let secret = Secret::new(key.to_secret_hex());
    let mut proof = Proof::new((1 << (number % 20)).into(), keyset, secret, key.public_key());
    proof.dleq = Some(cdk::nuts::ProofDleq::new(key.clone(), key.clone(), key));
    proof
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

async fn measure(what: &str, author: &Keys, contents: Vec<TokenContent>, per_second: u64) {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let events = seal(author, &contents, per_second);
    let client = Client::builder().build();
    client.add_relay(&relay.url).await.unwrap();
    client.connect().await;
    for event in &events {
        assert!(client.send_event(event).await.unwrap().failed.is_empty());
    }
    client.shutdown().await;

    let begun = Instant::now();
    for event in &events {
        nip44::decrypt(author.secret_key(), &author.public_key(), &event.content).unwrap();
    }
    let limit = begun.elapsed();
    let identity = Keys::generate();
    let (progress, _) = watch::channel(FetchProgress::default());
    let begun = Instant::now();
    let (ehash, identity) = (Arc::new(author.clone()), Arc::new(identity));
    let found = fetch(ehash, identity, std::slice::from_ref(&relay.url), progress).await.unwrap();
    let took = begun.elapsed();
    let proofs: usize = found.tokens.values().map(Vec::len).sum();
    assert_eq!(proofs as u64, PROOFS, "all of them");
    report(what, events.len(), took, limit);
    relay.stop().await.unwrap();
}

fn report(what: &str, events: usize, took: Duration, limit: Duration) {
    let (seconds, ratio) = (took.as_secs_f64(), took.as_secs_f64() / limit.as_secs_f64());
    let limit = limit.as_secs_f64();
    println!(
        "{what}: {PROOFS} proofs in {events} events read in {seconds:.2} s, \
         {ratio:.1} times the {limit:.2} s of decryption alone"
    );
}

fn main() {
    let author = Seed::from_entropy(&[5; 16]).nostr_keys(1);
    let keyset: Id =
        "012e441f8aa623135a07baed9b3d4382221caf2cbf0f3f3dec35e2798e5a07deb0".parse().unwrap();
    let mint: MintUrl = "https://pool.example/ehash".parse().unwrap();
    let unit = CurrencyUnit::custom(format!("hash_02{}_840000", "f9".repeat(32)));
    let proofs: Vec<_> = (0..PROOFS).map(|number| proof(number, keyset)).collect();
    let full = split(&mint, &unit, proofs.clone());
    let single = |proof| TokenContent {
        mint: mint.clone(),
        unit: unit.clone(),
        proofs: vec![proof],
        del: Vec::new(),
    };
    let single = proofs.into_iter().map(single).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        measure("as hashpit writes them", &author, full, 8).await;
        measure("each in an event of its own", &author, single, 100).await;
    });
}
