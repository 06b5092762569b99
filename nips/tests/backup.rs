//! EH-03: the draft's examples, a golden vector, round trips and mangled input.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cashu::secret::Secret;
use cashu::{Amount, CurrencyUnit, Proof};
use hashpit_nips::eh03::{
    CounterTag, Direction, HistoryContent, MAX_PLAINTEXT, Marker, TokenContent, WalletContent,
    split,
};
use nostr::nips::nip44;
use nostr::{Event, EventId, JsonUtil, Keys};
use proptest::prelude::*;
use serde_json::{Value, json};

const EH03: &str = include_str!("../EH-03.md");
const SEALED: &str = include_str!("../vectors/eh03.json");

fn examples() -> Vec<Value> {
    let blocks = EH03.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| serde_json::from_str(block).unwrap()).collect()
}

/// Decodes what it looks like, and encodes it again.
fn again(plaintext: &str) -> Value {
    let value: Value = serde_json::from_str(plaintext).unwrap();
    let encoded = match &value {
        Value::Object(_) => TokenContent::decode(plaintext).unwrap().encode(),
        Value::Array(tags) if tags[0][0] == "direction" => {
            HistoryContent::decode(plaintext).unwrap().encode()
        }
        _ => WalletContent::decode(plaintext).unwrap().encode(),
    };
    serde_json::from_str(&encoded).unwrap()
}

fn token() -> TokenContent {
    TokenContent::decode(&examples()[0].to_string()).unwrap()
}

fn proof(number: usize, with_dleq: bool) -> Proof {
    let mut proof = token().proofs.remove(0);
    proof.secret = Secret::new(format!("{number:064x}"));
    proof.amount = Amount::from(1 << (number % 40));
    if !with_dleq {
        proof.dleq = None;
    }
    proof
}

#[test]
fn every_example_of_eh03_survives_a_round_trip() {
    let examples = examples();
    assert_eq!(examples.len(), 4);
    for example in examples {
        assert_eq!(again(&example.to_string()), example);
    }
}

#[test]
fn the_examples_mean_what_the_draft_says() {
    let examples: Vec<String> = examples().iter().map(Value::to_string).collect();
    let owner = WalletContent::decode(&examples[1]).unwrap();
    assert_eq!((owner.mints.len(), owner.privkeys.len(), owner.relays.len()), (1, 1, 1));
    assert_eq!(owner.other, [["colour", "of another wallet"]]);
    let ehash = WalletContent::decode(&examples[2]).unwrap();
    assert_eq!((ehash.pools.len(), ehash.pools[0].relays.len()), (1, 1));
    assert_eq!((ehash.epochs[0].batches, ehash.epochs[0].received.get()), (17, 91_250));
    let counter = CounterTag { keyset: ehash.epochs[0].keyset, from: 153, next: 217 };
    assert_eq!(ehash.counters, [counter]);
    assert_eq!((ehash.held.len(), ehash.held[0].amount), (1, 91_250));
    assert!(ehash.other.is_empty());
    let history = HistoryContent::decode(&examples[3]).unwrap();
    assert_eq!((history.direction, history.amount), (Direction::In, 9));
    assert_eq!(history.events[0].1, Marker::Created);
}

#[test]
fn a_token_without_a_unit_is_sat_and_a_unit_is_always_written() {
    let plain = json!({"mint": "https://mint.example", "proofs": []}).to_string();
    let token = TokenContent::decode(&plain).unwrap();
    assert_eq!(token.unit, CurrencyUnit::Sat);
    assert!(token.encode().contains(r#""unit":"sat""#));
}

#[test]
fn tags_that_do_not_parse_are_kept_as_they_were() {
    let strange = json!([
        ["mint", "no url"],
        ["counter", "012e", "-1", "2"],
        ["epoch", "sat"],
        ["held", "https://mint.example", "sat", "all"],
        ["pool", "f930"],
        ["mint"],
        [],
        ["privkey", "xyz"],
        ["relay", "https://not.a.relay"]
    ]);
    let content = WalletContent::decode(&strange.to_string()).unwrap();
    assert_eq!(content.other.len(), 9);
    assert_eq!(again(&strange.to_string()), strange);
}

#[test]
fn merging_takes_the_lower_counter_the_later_epoch_and_both_of_all_else() {
    let text = examples()[2].to_string();
    let ours = WalletContent::decode(&text).unwrap();
    let theirs = text.replace("\"153\"", "\"60\"").replace("\"17\"", "\"18\"");
    let theirs = theirs.replace("_840000\",\"91250\"", "_840000\",\"91251\"");
    let theirs = WalletContent::decode(&theirs.replace("relay.example", "other.example")).unwrap();
    let mut merged = ours.clone();
    merged.merge(theirs.clone());
    assert_eq!((merged.counters[0].from, merged.epochs[0].batches), (60, 18));
    assert_eq!((merged.held.len(), merged.held[0].amount), (1, 91_251));
    assert_eq!((merged.epochs.len(), merged.relays.len(), merged.mints.len()), (1, 2, 1));
    assert_eq!((merged.pools.len(), merged.pools[0].relays.len()), (1, 2));
    let mut other_way = theirs;
    other_way.merge(ours);
    assert_eq!((other_way.counters[0].from, other_way.epochs[0].batches), (60, 18));
}

#[test]
fn nothing_secret_is_printed() {
    let shown = format!("{:?}", token());
    assert!(shown.contains("1 redacted") && !shown.contains("407915bc"), "{shown}");
    let wallet = WalletContent::decode(&examples()[1].to_string()).unwrap();
    assert!(!format!("{wallet:?}").contains("0101010101"));
}

#[test]
fn the_golden_event_opens_to_the_drafts_token() {
    let vector: Value = serde_json::from_str(SEALED).unwrap();
    let author = Keys::parse(vector["author_secret"].as_str().unwrap()).unwrap();
    let event = Event::from_json(vector["event"].to_string()).unwrap();
    event.verify().unwrap();
    let plain = nip44::decrypt(author.secret_key(), &event.pubkey, &event.content).unwrap();
    assert_eq!(TokenContent::decode(&plain).unwrap(), token());
    assert_eq!(plain, token().encode());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn splitting_keeps_every_proof_and_the_limit(
        dleq in prop::collection::vec(any::<bool>(), 0..400)
    ) {
        let TokenContent { mint, unit, .. } = token();
        let proofs: Vec<_> = dleq.iter().enumerate().map(|(n, dleq)| proof(n, *dleq)).collect();
        let contents = split(&mint, &unit, proofs.clone());
        let total: Vec<_> = contents.iter().flat_map(|content| content.proofs.clone()).collect();
        prop_assert_eq!(total, proofs);
        for content in &contents {
            let encoded = content.encode();
            prop_assert!(encoded.len() <= MAX_PLAINTEXT);
            prop_assert_eq!(&TokenContent::decode(&encoded).unwrap(), content);
        }
        // None could have taken the first proof of the next.
        for pair in contents.windows(2) {
            let mut fuller = pair[0].clone();
            fuller.proofs.push(pair[1].proofs[0].clone());
            prop_assert!(fuller.encode().len() > MAX_PLAINTEXT);
        }
    }

    #[test]
    fn any_history_survives_a_round_trip(
        amount: u64, incoming: bool, ids in prop::collection::vec(any::<[u8; 32]>(), 0..5)
    ) {
        let direction = if incoming { Direction::In } else { Direction::Out };
        let id = |bytes: [u8; 32]| (EventId::from_byte_array(bytes), Marker::Destroyed);
        let events = ids.into_iter().map(id).collect();
        let unit = CurrencyUnit::Sat;
        let other = vec![vec!["note".to_owned()]];
        let history = HistoryContent { direction, amount, unit, events, other };
        prop_assert_eq!(HistoryContent::decode(&history.encode()).unwrap(), history);
    }

    #[test]
    fn mangled_plaintexts_never_panic(cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for example in examples() {
            let mut bytes = example.to_string().into_bytes();
            let at = cut.index(bytes.len());
            bytes[at] = byte;
            let text = String::from_utf8_lossy(&bytes);
            let _ = TokenContent::decode(&text);
            let _ = WalletContent::decode(&text);
            let _ = HistoryContent::decode(&text);
        }
    }
}
