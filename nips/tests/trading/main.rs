//! EH-04 and EH-05: the drafts' examples, the golden journal, refusals by name,
//! and events of every shape.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod any;
mod refusals;
mod round_trips;

use bitcoin::hashes::{Hash, sha256};
use hashpit_nips::eh04::{
    Action, Command, ExchangeInfo, Market, Offer, OnEpoch, SelfTrade, Side, Terms, TimeInForce, Way,
};
use hashpit_nips::eh05::{Checkpoint, Depth, Entry, Fate, GENESIS, Match, Settlement};
use hashpit_nips::{Lots, Price};
use nostr::{Event, EventBuilder, JsonUtil, Keys, Kind, Tag, Timestamp};
use serde_json::Value;

const EH04: &str = include_str!("../../EH-04.md");
const EH05: &str = include_str!("../../EH-05.md");
const MADE: &str = include_str!("../../vectors/eh04.json");
const JOURNAL: &str = include_str!("../../vectors/eh05.json");

/// The events that a draft shows.
fn examples(draft: &str) -> Vec<Event> {
    let blocks = draft.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let json = blocks.map(|block| serde_json::from_str::<Value>(block).unwrap());
    json.map(|event| Event::from_json(event.to_string()).unwrap()).collect()
}

fn journal() -> Value {
    serde_json::from_str(JOURNAL).unwrap()
}

fn events(of: &Value) -> Vec<Event> {
    let events = of.as_array().unwrap().iter();
    events.map(|event| Event::from_json(event.to_string()).unwrap()).collect()
}

/// The first event of a kind that the drafts show.
fn example(kind: u16) -> Event {
    let mut all = examples(EH04).into_iter().chain(examples(EH05));
    all.find(|event| event.kind.as_u16() == kind).unwrap()
}

fn decode_and_encode(event: &Event) -> EventBuilder {
    match event.kind.as_u16() {
        38480 => Offer::decode(event).unwrap().encode(),
        8483 => Command::decode(event).unwrap().encode(),
        38481 => Market::decode(event).unwrap().encode(),
        38482 => ExchangeInfo::decode(event).unwrap().encode(),
        8480 => Entry::decode(event).unwrap().encode(),
        8481 => Match::decode(event).unwrap().encode().unwrap(),
        8482 => Settlement::decode(event).unwrap().encode(),
        38483 => Checkpoint::decode(event).unwrap().encode(),
        28480 => Depth::decode(event).unwrap().encode(),
        other => panic!("the drafts show kind {other}"),
    }
}

#[test]
fn every_example_survives_a_round_trip() {
    let mut kinds = Vec::new();
    for event in examples(EH04).into_iter().chain(examples(EH05)) {
        event.verify().unwrap();
        kinds.push(event.kind.as_u16());
        if event.kind == Kind::EventDeletion {
            continue;
        }
        let again = decode_and_encode(&event).build(event.pubkey);
        assert_eq!(again.content, event.content);
        // Proof of work is the signer's business, not the codec's.
        let worked = |tag: &Tag| tag.as_slice()[0] == "nonce";
        let tags: Vec<Tag> = event.tags.iter().filter(|tag| !worked(tag)).cloned().collect();
        assert_eq!(again.tags.to_vec(), tags);
    }
    let eh04 = [38480, 38480, 38480, 5, 8483, 8483, 8483, 8483, 38480, 38481, 38482];
    let eh05 = [8480, 8480, 8480, 8480, 8480, 8481, 8482, 8482, 38483, 28480];
    assert_eq!(kinds, [&eh04[..], &eh05[..]].concat());
}

#[test]
fn a_first_event_shows_its_work_and_a_commit_names_the_offer_that_follows() {
    let shown = examples(EH04);
    let bits = ExchangeInfo::decode(&shown[10]).unwrap().rules.pow_bits;
    assert!(bits > 0 && shown[0].id.check_pow(bits));
    let commit = shown[7].tags.iter().find(|tag| tag.as_slice()[0] == "cmd").unwrap();
    assert_eq!(commit.as_slice()[2], shown[8].id.to_hex());
    assert_eq!(Offer::decode(&shown[1]).unwrap().prev, Some(shown[0].id));
}

#[test]
fn what_nostr_tools_has_signed_is_read() {
    let made: Value = serde_json::from_str(MADE).unwrap();
    let event = |name: &str| Event::from_json(made[name].to_string()).unwrap();
    let offer = |name: &str| {
        event(name).verify().unwrap();
        Offer::decode(&event(name)).unwrap()
    };
    let (side, price) = (Side::Sell, Some(Price::new(1500)));
    let plain = Terms::new(side, price, Lots::new(500), vec![Way::Nwc]);
    assert_eq!(offer("plain").terms, Some(plain));
    let full = Terms {
        min: Lots::new(2),
        max: Lots::new(100),
        tif: TimeInForce::Post,
        on_epoch: OnEpoch::Keep,
        group: Some("desk".to_owned()),
        self_trade: SelfTrade::CancelOld,
        expires: Some(Timestamp::from(1_700_000_600)),
        ..Terms::new(Side::Buy, Some(Price::new(u64::MAX)), Lots::new(500), vec![Way::Nwc])
    };
    assert_eq!((offer("full").terms, offer("full").prev), (Some(full), Some(event("plain").id)));
    let any_price = Terms::new(Side::Buy, None, Lots::new(u32::MAX), vec![Way::Nwc]);
    assert_eq!(any_price.tif, TimeInForce::Ioc);
    assert_eq!(offer("market_order").terms, Some(any_price));
    assert_eq!((offer("cancel").terms, offer("cancel").prev), (None, Some(event("plain").id)));
    let action = |name: &str| Command::decode(&event(name)).unwrap().action;
    assert_eq!(action("cancel_all"), Action::CancelAll(None));
    assert_eq!(action("alive"), Action::Alive(Some(Timestamp::from(1_700_000_060))));
    assert_eq!(action("off"), Action::Alive(None));
}

#[test]
fn the_golden_journal_is_a_chain_from_zero() {
    let journal = journal();
    let exchange = Keys::parse(journal["exchange_secret"].as_str().unwrap()).unwrap();
    let mut prev = GENESIS.to_owned();
    let mut at = 0;
    for (n, event) in events(&journal["entries"]).into_iter().enumerate() {
        event.verify().unwrap();
        let entry = Entry::decode(&event).unwrap();
        assert_eq!((event.pubkey, entry.seq), (exchange.public_key(), n as u64));
        assert_eq!(entry.prev.to_hex(), prev);
        assert!(entry.at.get() >= at);
        if let Some(inner) = entry.event() {
            inner.verify().unwrap();
        }
        assert_eq!(decode_and_encode(&event).build(event.pubkey).id(), event.id);
        (prev, at) = (event.id.to_hex(), entry.at.get());
    }
}

#[test]
fn the_golden_journal_holds_what_the_draft_shows() {
    let journal = journal();
    let golden = ["entries", "matches", "settlements"].map(|name| events(&journal[name])).concat();
    let shown: Vec<Event> = examples(EH05);
    let of_entries = |event: &&Event| [8480, 8481].contains(&event.kind.as_u16());
    assert!(shown.iter().filter(of_entries).all(|event| golden.contains(event)));
    assert!(shown.contains(&golden[9]), "the match that failed");
    let settled = Settlement::decode(&golden[9]).unwrap();
    let matched = Match::decode(&golden[8]).unwrap();
    assert_eq!((settled.of, settled.seq), (golden[8].id, 5));
    assert_eq!(settled.traders, [matched.seller().trader, matched.buyer().trader]);
    let seller = matched.seller().trader;
    assert_eq!(settled.fate, Fate::Failed { step: 1, due: vec![seller] });
}

#[test]
fn the_terms_hash_is_of_the_bytes_that_the_draft_shows() {
    let journal = journal();
    let terms = |name: &str| journal["terms"][name].as_str().unwrap().to_owned();
    let hash = sha256::Hash::hash(terms("preimage").as_bytes()).to_byte_array();
    assert_eq!(hex::encode(hash), terms("sha256"));
    let matched = &events(&journal["matches"])[0];
    assert_eq!(Match::decode(matched).unwrap().terms().unwrap(), hash);
    for text in [terms("preimage"), terms("sha256")] {
        assert!(EH05.contains(&format!("```\n{text}\n```")), "{text}");
    }
}

#[test]
fn the_terms_bind_both_sides_whoever_was_the_maker() {
    let matched = Match::decode(&example(8481)).unwrap();
    let mut turned = matched.clone();
    (turned.maker, turned.taker) = (matched.taker, matched.maker);
    turned.taker_side = matched.taker_side.opposite();
    assert_eq!(turned.terms().unwrap(), matched.terms().unwrap());
    turned.maker.fee = hashpit_nips::Msats::new(151);
    assert_ne!(turned.terms().unwrap(), matched.terms().unwrap());
}

#[test]
fn the_checkpoint_holds_the_digest_of_the_golden_bytes() {
    let journal = journal();
    let checkpoint = Event::from_json(journal["checkpoint"].to_string()).unwrap();
    assert!(examples(EH05).contains(&checkpoint));
    let checkpoint = Checkpoint::decode(&checkpoint).unwrap();
    let bytes = hex::decode(journal["digest"]["preimage"].as_str().unwrap()).unwrap();
    assert_eq!(sha256::Hash::hash(&bytes).to_byte_array(), checkpoint.digest);
    assert_eq!(journal["digest"]["after"], checkpoint.seq);
    assert_eq!(events(&journal["entries"])[3].id, checkpoint.entry);
}
