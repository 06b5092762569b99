//! From a signed offer to its durable, signed and chained acknowledgement: how
//! many a second, how long one takes at half of that, and how long the journal
//! takes to be followed again. Beside what the machine can do at most: check and
//! make signatures. Prints figures; nothing here fails by being slow.
//!
//! `cargo bench -p hashpit-tests --bench exchange` (`OFFERS=1000000` for a million)

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod figures;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use figures::{p50, print_conditions};
use hashpit_exchange::desk::{Answer, Clock, Desk, DeskThread};
use hashpit_exchange::journal::Journal;
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{MarketId, Offer, Rules, Side, Terms, Way};
use hashpit_nips::{Lots, Millis, Price};
use hashpit_tests::exchange_house::BarePool;
use nostr_sdk::{Event, Keys, Timestamp};
use tokio::sync::{mpsc, oneshot};

/// Traders, and offers if the environment names no other number.
const TRADERS: usize = 1_000;
const OFFERS: usize = 100_000;
/// Threads that check signatures; the desk has one of its own.
const CHECKERS: usize = 2;
/// How long offers come at half the rate.
const HALF_LOAD: Duration = Duration::from_secs(5);

fn main() {
    let offers = std::env::var("OFFERS").ok().and_then(|number| number.parse().ok());
    let offers: usize = offers.unwrap_or(OFFERS);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(offers));
    print_conditions();
}

async fn run(offers: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (keys, pool) = (Keys::generate(), BarePool::new());
    let traders: Vec<Keys> = (0..TRADERS).map(|_| Keys::generate()).collect();
    let market = MarketId { exchange: keys.public_key(), epoch: pool.epoch(1) };
    let (desk, thread) = open(dir.path(), &keys).await;
    let keyset = pool.keyset(1, EpochState::Open, Timestamp::now()).unwrap();
    assert_eq!(desk.submit(keyset).await.unwrap(), Answer::Entry(1));

    let begun = Instant::now();
    let signed = sign(&traders, market, 0..offers);
    let signing = begun.elapsed();
    println!("one core signs {:.0} offers/s", offers as f64 / signing.as_secs_f64() / 2.0);
    let sample = &signed[..offers.min(20_000)];
    let begun = Instant::now();
    assert!(sample.iter().all(|event| event.verify().is_ok()));
    println!("one core checks {:.0} offers/s", sample.len() as f64 / begun.elapsed().as_secs_f64());

    let begun = Instant::now();
    flood(&desk, signed).await;
    let rate = offers as f64 / begun.elapsed().as_secs_f64();
    println!("signed offers to durable acknowledgements: {rate:.0}/s");
    half_load(&desk, &traders, market, offers, rate / 2.0).await;

    let before = desk.digest().await.unwrap();
    drop(desk);
    thread.ended().await.unwrap();
    let begun = Instant::now();
    let (desk, thread) = open(dir.path(), &keys).await;
    let replayed = begun.elapsed();
    assert_eq!(desk.digest().await.unwrap(), before, "the same state");
    let entries = before.0.unwrap() + 1;
    let million = replayed.as_secs_f64() * 1e6 / entries as f64;
    println!("{entries} journal entries followed again: {replayed:.1?}; a million: {million:.1} s");
    drop(desk);
    thread.ended().await.unwrap();
}

async fn open(dir: &Path, keys: &Keys) -> (Desk, DeskThread) {
    let journal = Arc::new(Journal::open(&dir.join("journal")).unwrap());
    // Signing a million offers takes longer than offers may be old.
    let rules = Rules {
        pow_bits: 0,
        max_drift_secs: 86_400,
        events_per_minute: u32::MAX,
        offers_per_trader: u32::MAX,
        offers_per_market: u32::MAX,
        ..Rules::default()
    };
    let clock: Clock = Arc::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Millis::new(now.as_millis() as u64)
    });
    Desk::open(journal, keys.clone(), rules, clock).unwrap()
}

/// Offers of many traders around one price; a third of them match.
fn sign(traders: &[Keys], market: MarketId, numbers: std::ops::Range<usize>) -> Vec<Event> {
    let one = |number: usize| {
        let side = if number.is_multiple_of(2) { Side::Buy } else { Side::Sell };
        let away = number as u64 * 7_919 % 1_000;
        let price = match side {
            Side::Buy => 100_330 - away,
            Side::Sell => 99_670 + away,
        };
        let lots = Lots::new(1 + number as u32 % 9);
        let terms = Terms::new(side, Some(Price::new(price)), lots, vec![Way::Nwc]);
        let offer = Offer { d: number.to_string(), market, prev: None, terms: Some(terms) };
        offer.encode().sign_with_keys(&traders[number % traders.len()]).unwrap()
    };
    let numbers: Vec<usize> = numbers.collect();
    std::thread::scope(|scope| {
        let halves = numbers.chunks(numbers.len().div_ceil(2).max(1));
        let halves = halves.map(|half| scope.spawn(move || half.iter().map(|n| one(*n)).collect()));
        let halves: Vec<_> = halves.collect();
        halves
            .into_iter()
            .flat_map(|half: std::thread::ScopedJoinHandle<'_, Vec<_>>| half.join().unwrap())
            .collect()
    })
}

/// All at once: signatures are checked on some threads, and the desk answers.
async fn flood(desk: &Desk, offers: Vec<Event>) {
    let share = offers.len().div_ceil(CHECKERS);
    let (answers, mut waiting) = mpsc::channel::<oneshot::Receiver<Answer>>(8_192);
    let mut offers = offers.into_iter();
    for _ in 0..CHECKERS {
        let (part, desk): (Vec<Event>, _) = (offers.by_ref().take(share).collect(), desk.clone());
        let (answers, runtime) = (answers.clone(), tokio::runtime::Handle::current());
        std::thread::spawn(move || {
            for event in part {
                assert!(event.verify().is_ok());
                let answer = runtime.block_on(desk.enqueue(event)).unwrap();
                runtime.block_on(answers.send(answer)).unwrap();
            }
        });
    }
    drop(answers);
    while let Some(answer) = waiting.recv().await {
        assert!(matches!(answer.await.unwrap(), Answer::Entry(_)));
    }
}

/// At a steady rate; prints how long each took.
async fn half_load(desk: &Desk, traders: &[Keys], market: MarketId, from: usize, rate: f64) {
    let number = (rate * HALF_LOAD.as_secs_f64()) as usize;
    let offers = sign(traders, market, from..from + number);
    let begun = Instant::now();
    let mut answers = Vec::with_capacity(number);
    for (index, event) in offers.into_iter().enumerate() {
        let due = Duration::from_secs_f64(index as f64 / rate);
        if due > begun.elapsed() + Duration::from_millis(1) {
            tokio::time::sleep(due - begun.elapsed()).await;
        }
        let desk = desk.clone();
        answers.push(tokio::spawn(async move {
            let due = begun + due;
            assert!(event.verify().is_ok());
            let answer = desk.submit(event).await.unwrap();
            assert!(matches!(answer, Answer::Entry(_)));
            due.elapsed()
        }));
    }
    let mut times = Vec::with_capacity(number);
    for answer in answers {
        times.push(answer.await.unwrap());
    }
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    println!("at half of that, offer to acknowledgement: p50 {:.1?}, p99 {p99:.1?}", p50(times));
}
