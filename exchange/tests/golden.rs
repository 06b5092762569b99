//! EH-05's golden journal, audited: what the draft says and what the code does are
//! the same to the byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hashpit_exchange::audit::{Evidence, Report, audit};
use nostr::{Event, JsonUtil, Keys, RelayUrl, Timestamp};
use serde_json::Value;

const JOURNAL: &str = include_str!("../../nips/vectors/eh05.json");

fn audited(journal: &Value) -> Report {
    let exchange = Keys::parse(journal["exchange_secret"].as_str().unwrap()).unwrap().public_key();
    let relay = RelayUrl::parse("wss://relay.example").unwrap();
    let mut evidence = Evidence::new(Timestamp::from(1_700_001_000));
    let lists = ["entries", "matches", "settlements"].map(|name| journal[name].as_array().unwrap());
    for event in lists.into_iter().flatten().chain([&journal["checkpoint"]]) {
        evidence.add(exchange, &relay, Event::from_json(event.to_string()).unwrap());
    }
    audit(exchange, &evidence)
}

#[test]
fn every_outcome_match_settlement_and_digest_follows() {
    let report = audited(&serde_json::from_str(JOURNAL).unwrap());
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.entries, report.matches, report.lots), (8, 1, 200));
    assert_eq!((report.settlements, report.completed, report.checkpoints), (1, 0, 1));
}

#[test]
fn without_its_settlement_it_withholds_one() {
    let mut journal: Value = serde_json::from_str(JOURNAL).unwrap();
    journal["settlements"].as_array_mut().unwrap().clear();
    let report = audited(&journal);
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].seq, 5);
}
