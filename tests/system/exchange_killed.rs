//! SIGKILL for an exchange at random moments, while offers come in on two relays.
//! Afterwards both relays hold one and the same whole journal, with each offer
//! acknowledged once.
//!
//! `HASHPIT_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hashpit_mailbox::Mailbox;
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::{MarketId, Side};
use hashpit_nips::eh05::{Entry, Outcome};
use hashpit_nips::{EpochId, kind};
use hashpit_tests::exchange_house::{BarePool, Onlooker, offer};
use hashpit_tests::house::RelayHouse;
use hashpit_tests::process::Process;
use nostr_sdk::{Event, Filter, Keys, RelayUrl, Timestamp, ToBech32};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

/// Times that it is killed.
const KILLS: usize = 8;
/// Longest time between two kills, and offers in it.
const LULL_MS: u64 = 800;
const OFFERS: u64 = 40;

fn launch(dir: &Path) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashpit"));
    command.arg("--data-dir").arg(dir).arg("--config").arg(dir.join("hashpit.toml"));
    command.args(["exchange", "-vv"]);
    Process::start(&mut command, &dir.join("exchange.log")).unwrap()
}

fn configure(dir: &Path, pool: &BarePool, relays: &[RelayUrl]) {
    let npub = pool.keys.public_key().to_bech32().unwrap();
    let relays: Vec<String> = relays.iter().map(ToString::to_string).collect();
    let text = format!(
        "[exchange]\npools = [{npub:?}]\nrelays = {relays:?}\n[exchange.rules]\npow_bits = 0\n\
         events_per_minute = 100000\noffers_per_trader = 100000\n"
    );
    fs::write(dir.join("hashpit.toml"), text).unwrap();
}

/// The key of the exchange, by the market that it opens.
async fn market(relay: &Onlooker, epoch: EpochId) -> MarketId {
    let filter = Filter::new().kind(kind::MARKET).identifier(epoch.to_string());
    let event = relay.sees(filter, |_| true).await.unwrap();
    MarketId { exchange: event.pubkey, epoch }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_is_killed_again_and_again_keeps_one_journal() {
    let seed = std::env::var("HASHPIT_SEED").ok().and_then(|it| it.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("HASHPIT_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let one = RelayHouse::start(&dir.path().join("one")).await.unwrap();
    let other = RelayHouse::start(&dir.path().join("other")).await.unwrap();
    let relays = [one.url.clone(), other.url.clone()];
    let (pool, trader) = (BarePool::new(), Keys::generate());
    configure(dir.path(), &pool, &relays);
    let mailbox = Mailbox::connect(trader.clone(), &relays).await.unwrap();
    let keyset = pool.keyset(1, EpochState::Open, Timestamp::now()).unwrap();
    assert_eq!(mailbox.connected(Duration::from_secs(10)).await, 2);
    mailbox.publish(&keyset).await.unwrap();

    let mut exchange = launch(dir.path());
    let reader = Onlooker::connect(&trader, &relays[0]).await.unwrap();
    let market = market(&reader, pool.epoch(1)).await;
    let mut offers: Vec<Event> = Vec::new();
    for _ in 0..KILLS {
        for _ in 0..OFFERS {
            let side = if rng.random() { Side::Sell } else { Side::Buy };
            let event = offer(&trader, market, side, rng.random_range(1..50), 1);
            mailbox.publish(&event).await.unwrap();
            offers.push(event);
        }
        // The kill falls somewhere into what the offers set off.
        sleep(Duration::from_millis(rng.random_range(0..LULL_MS))).await;
        exchange.kill();
        exchange = launch(dir.path());
    }
    for relay in &relays {
        let reader = Onlooker::connect(&trader, relay).await.unwrap();
        for event in &offers {
            reader.entry_of(market.exchange, event).await.unwrap();
        }
    }
    assert!(exchange.terminate().unwrap().success());
    compare(&relays, &trader, market, &offers).await;
}

async fn compare(relays: &[RelayUrl; 2], trader: &Keys, market: MarketId, offers: &[Event]) {
    let mut journals = Vec::new();
    for relay in relays {
        let reader = Onlooker::connect(trader, relay).await.unwrap();
        journals.push(reader.journal(market.exchange).await.unwrap());
    }
    assert_eq!(journals[0], journals[1]);
    let mut chain: Vec<(Entry, &Event)> =
        journals[0].iter().map(|event| (Entry::decode(event).unwrap(), event)).collect();
    chain.sort_by_key(|(entry, _)| entry.seq);
    for (seq, pair) in (0..).zip(chain.windows(2)) {
        assert_eq!((pair[0].0.seq, pair[1].0.seq), (seq, seq + 1));
        assert_eq!(pair[1].0.prev, pair[0].1.id);
    }
    let answered: Vec<_> = chain.iter().filter_map(|(it, _)| it.event().map(|it| it.id)).collect();
    let once: HashSet<_> = answered.iter().copied().collect();
    assert_eq!(once.len(), answered.len(), "nothing is acknowledged twice");
    assert!(offers.iter().all(|event| once.contains(&event.id)), "nothing is lost");
    let accepted = chain.iter().filter(|(entry, _)| entry.outcome == Outcome::Accepted).count();
    assert_eq!(accepted, chain.len());
}
