//! The drafts' own examples, the golden vectors, and mangled input.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hashpit_nips::Work;
use hashpit_nips::eh01::{EpochKeyset, MintAnnouncement, PoolAnnouncement, SupplyAttestation};
use hashpit_nips::eh02::{self, MinerMessage, PoolMessage};
use hashpit_nips::eh07::{self, Method, Request, RequestId, Response};
use nostr::secp256k1::rand::{CryptoRng, Error as RandError, RngCore};
use nostr::{Event, EventBuilder, JsonUtil, Keys, Timestamp};
use proptest::prelude::*;
use serde_json::Value;

const EH01: &str = include_str!("../EH-01.md");
const EH02: &str = include_str!("../EH-02.md");
const EH07: &str = include_str!("../EH-07.md");
const MINT: &str = include_str!("../vectors/eh07.json");
const SEALED: &str = include_str!("../vectors/eh02.json");
const WORK: &str = include_str!("../vectors/work.json");

/// The ```json blocks of a draft.
fn examples(draft: &str) -> Vec<Value> {
    let blocks = draft.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| serde_json::from_str(block).unwrap()).collect()
}

fn decode_and_encode(event: &Event) -> EventBuilder {
    match event.kind.as_u16() {
        38470 => PoolAnnouncement::decode(event).unwrap().encode(),
        38471 => EpochKeyset::decode(event).unwrap().encode(),
        8471 => SupplyAttestation::decode(event).unwrap().encode(),
        38172 => MintAnnouncement::decode(event).unwrap().encode(),
        other => panic!("the draft shows kind {other}"),
    }
}

#[test]
fn every_example_of_eh01_survives_a_round_trip() {
    let examples = examples(EH01);
    assert_eq!(examples.len(), 4);
    for example in examples {
        let event = Event::from_json(example.to_string()).unwrap();
        event.verify().unwrap();
        let again = decode_and_encode(&event).build(event.pubkey);
        assert_eq!(again.content, event.content);
        assert_eq!(again.tags.to_vec(), event.tags.to_vec());
    }
}

#[test]
fn every_example_of_eh02_survives_a_round_trip() {
    let mut seen = Vec::new();
    for example in examples(EH02) {
        let again = match example["type"].as_str() {
            None => continue,
            Some("hello" | "blanks" | "ack" | "resend") => {
                let message: MinerMessage = serde_json::from_value(example.clone()).unwrap();
                serde_json::to_value(message).unwrap()
            }
            Some(_) => {
                let message: PoolMessage = serde_json::from_value(example.clone()).unwrap();
                serde_json::to_value(message).unwrap()
            }
        };
        assert_eq!(again, example);
        seen.push(example["type"].as_str().unwrap().to_owned());
    }
    let all = ["hello", "blanks", "ack", "resend", "keyset", "signatures", "statement", "refused"];
    assert_eq!(seen, all);
}

#[test]
fn a_keyset_by_the_wrong_author_or_with_another_key_is_refused() {
    let example = examples(EH01).remove(1);
    let event = Event::from_json(example.to_string()).unwrap();
    let template = EventBuilder::new(event.kind, &event.content).tags(event.tags.clone());
    let stranger = template.sign_with_keys(&Keys::generate()).unwrap();
    assert!(EpochKeyset::decode(&stranger).unwrap_err().to_string().contains("another pool"));

    let mut swapped = event.clone();
    swapped.content = event.content.replacen("\"1\":", "\"16\":", 1);
    assert!(EpochKeyset::decode(&swapped).unwrap_err().to_string().contains("keyset"));
}

#[test]
fn tags_that_are_missing_repeated_or_malformed_are_refused_by_name() {
    let example = examples(EH01).remove(1);
    for (name, index) in [("block", 1), ("state", 2), ("work", 3), ("issued", 7)] {
        let refusal = |tags: Vec<Value>| {
            let mut event = example.clone();
            event["tags"] = Value::Array(tags);
            let event = Event::from_json(event.to_string()).unwrap();
            EpochKeyset::decode(&event).unwrap_err().to_string()
        };
        let tags = example["tags"].as_array().unwrap();
        let mut missing = tags.clone();
        missing.remove(index);
        assert!(refusal(missing).contains(name));
        let mut repeated = tags.clone();
        repeated.push(tags[index].clone());
        assert!(refusal(repeated).contains(name));
        let mut malformed = tags.clone();
        malformed[index][1] = Value::from("-1");
        assert!(refusal(malformed).contains(name));
    }
}

/// Yields one fixed nonce.
struct FixedNonce([u8; 32]);

impl RngCore for FixedNonce {
    fn next_u32(&mut self) -> u32 {
        self.0[0].into()
    }

    fn next_u64(&mut self) -> u64 {
        self.0[0].into()
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        dest.copy_from_slice(&self.0);
    }

    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), RandError> {
        self.fill_bytes(dest);
        Ok(())
    }
}

impl CryptoRng for FixedNonce {}

fn sealed_vector() -> (Keys, Keys, [u8; 32], MinerMessage, Event) {
    let vector: Value = serde_json::from_str(SEALED).unwrap();
    let keys = |name: &str| Keys::parse(vector[name].as_str().unwrap()).unwrap();
    let mut nonce = [0; 32];
    hex::decode_to_slice(vector["nonce"].as_str().unwrap(), &mut nonce).unwrap();
    (
        keys("sender_secret"),
        keys("recipient_secret"),
        nonce,
        serde_json::from_value(vector["message"].clone()).unwrap(),
        Event::from_json(vector["event"].to_string()).unwrap(),
    )
}

#[test]
fn sealing_reproduces_the_golden_vector() {
    let (miner, pool, nonce, message, golden) = sealed_vector();
    let to = pool.public_key();
    let expiration = *golden.tags.expiration().unwrap();
    let rng = &mut FixedNonce(nonce);
    let sealed = eh02::seal(&message, &miner, &to, golden.created_at, expiration, rng).unwrap();
    assert_eq!((sealed.id, &sealed.content), (golden.id, &golden.content));
    assert_eq!(eh02::open::<MinerMessage>(&golden, &pool).unwrap(), message);
}

#[test]
fn only_the_recipient_opens_a_message_and_only_in_its_direction() {
    let (miner, pool, _, _, golden) = sealed_vector();
    assert!(eh02::open::<MinerMessage>(&golden, &Keys::generate()).is_err());
    assert!(eh02::open::<MinerMessage>(&golden, &miner).is_err());
    assert!(eh02::open::<PoolMessage>(&golden, &pool).is_err());
    let mut forged = golden.clone();
    forged.created_at = Timestamp::from(1);
    assert!(eh02::open::<MinerMessage>(&forged, &pool).is_err());
}

#[test]
fn every_example_of_eh07_survives_a_round_trip() {
    let (mut requests, mut responses) = (0, 0);
    for example in examples(EH07) {
        let again = if example.get("method").is_some() {
            requests += 1;
            serde_json::to_value(serde_json::from_value::<Request>(example.clone()).unwrap())
        } else if example.get("status").is_some() {
            responses += 1;
            serde_json::to_value(serde_json::from_value::<Response>(example.clone()).unwrap())
        } else {
            let event = Event::from_json(example.to_string()).unwrap();
            event.verify().unwrap();
            assert_eq!(event.kind, hashpit_nips::kind::MINT);
            Ok(example.clone())
        };
        assert_eq!(again.unwrap(), example);
    }
    assert_eq!((requests, responses), (2, 3));
}

#[test]
fn sealing_a_mint_request_reproduces_the_golden_vector() {
    let vector: Value = serde_json::from_str(MINT).unwrap();
    let keys = |name: &str| Keys::parse(vector[name].as_str().unwrap()).unwrap();
    let (wallet, pool) = (keys("sender_secret"), keys("recipient_secret"));
    let mut nonce = [0; 32];
    hex::decode_to_slice(vector["nonce"].as_str().unwrap(), &mut nonce).unwrap();
    let request: Request = serde_json::from_value(vector["message"].clone()).unwrap();
    let golden = Event::from_json(vector["event"].to_string()).unwrap();
    assert!(examples(EH07).contains(&vector["event"]), "the draft shows it");
    let (to, at) = (pool.public_key(), golden.created_at);
    let sealed = eh07::seal(&request, &wallet, &to, at, &mut FixedNonce(nonce)).unwrap();
    assert_eq!((sealed.id, &sealed.content), (golden.id, &golden.content));
    assert_eq!(eh07::open::<Request>(&golden, &pool).unwrap(), request);
    assert!(eh07::open::<Request>(&golden, &wallet).is_err());
    assert!(eh07::open::<Response>(&golden, &pool).is_err());
    let mut forged = golden.clone();
    forged.created_at = Timestamp::from(1);
    assert!(eh07::open::<Request>(&forged, &pool).is_err());
}

#[test]
fn what_does_not_fit_into_one_event_is_refused_and_what_fits_is_not() {
    let (from, to) = (Keys::generate(), Keys::generate());
    let (id, method) = (RequestId::new([7; 16]), Method::Post);
    let request = |length| {
        let body = Some(Value::from("x".repeat(length)));
        Request { id, method, path: "/v1/swap".to_owned(), body }
    };
    let around = serde_json::to_string(&request(0)).unwrap().len();
    let seal = |length| {
        let now = Timestamp::from(1_700_000_000);
        let message = request(length - around);
        eh07::seal(&message, &from, &to.public_key(), now, &mut FixedNonce([5; 32]))
    };
    let longest = seal(eh07::MAX_MESSAGE).unwrap();
    assert!(eh07::open::<Request>(&longest, &to).is_ok());
    let refused = seal(eh07::MAX_MESSAGE + 1).unwrap_err();
    assert!(matches!(refused, eh07::MessageError::TooLong(length) if length > eh07::MAX_MESSAGE));
}

#[test]
fn request_ids_are_32_lower_case_hex_digits() {
    let id = RequestId::new([0xa5; 16]);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!("0".repeat(32).parse(), Ok(RequestId::new([0; 16])));
    for bad in ["", "a5", &"A5".repeat(16), &"a5".repeat(17), &"+5".repeat(16), &"é".repeat(16)] {
        assert!(bad.parse::<RequestId>().is_err(), "{bad}");
    }
}

#[test]
fn work_agrees_with_python() {
    let vectors: Value = serde_json::from_str(WORK).unwrap();
    for vector in vectors["work"].as_array().unwrap() {
        let bits = u32::from_str_radix(vector["bits"].as_str().unwrap(), 16).unwrap();
        let target = bitcoin::CompactTarget::from_consensus(bits).into();
        let expected = vector["work"].as_str().unwrap().parse().unwrap();
        assert_eq!(Work::of_target(target), Ok(Work::new(expected)));
    }
}

/// An event of `kind` with any tags and content; decoders never see a
/// signature, so none is made.
fn any_event(kind: u16) -> impl Strategy<Value = Event> {
    let names = prop::sample::select(vec![
        "d", "e", "u", "n", "name", "sv2", "mint", "relay", "fee", "scheme", "min_work", "block",
        "state", "work", "keyset", "fee_ppk", "issued", "reward", "shares", "redeemed", "root",
        "nuts",
    ]);
    let tag = (names, prop::collection::vec(".{0,80}", 0..3)).prop_map(|(name, values)| {
        std::iter::once(name.to_owned()).chain(values).collect::<Vec<_>>()
    });
    (prop::collection::vec(tag, 0..12), ".{0,200}").prop_map(move |(tags, content)| {
        let mut event = examples(EH01).remove(0);
        event["kind"] = Value::from(kind);
        event["tags"] = Value::from(tags);
        event["content"] = Value::from(content);
        Event::from_json(event.to_string()).unwrap()
    })
}

proptest! {
    #[test]
    fn mangled_events_never_panic(
        event in prop::sample::select(vec![38470u16, 38471, 8471, 38172]).prop_flat_map(any_event)
    ) {
        let _ = PoolAnnouncement::decode(&event);
        let _ = EpochKeyset::decode(&event);
        let _ = SupplyAttestation::decode(&event);
        let _ = MintAnnouncement::decode(&event);
    }

    #[test]
    fn mangled_messages_never_panic(cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for example in examples(EH02) {
            let mut text = example.to_string().into_bytes();
            let at = cut.index(text.len());
            text[at] = byte;
            let _ = serde_json::from_slice::<MinerMessage>(&text);
            let _ = serde_json::from_slice::<PoolMessage>(&text);
        }
    }

    #[test]
    fn mangled_mint_messages_never_panic(cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for example in examples(EH07) {
            let mut text = example.to_string().into_bytes();
            let at = cut.index(text.len());
            text[at] = byte;
            let _ = serde_json::from_slice::<Request>(&text);
            let _ = serde_json::from_slice::<Response>(&text);
            let Ok(event) = Event::from_json(&text) else { continue };
            let pool = Keys::parse(&format!("{:064x}", 3)).unwrap();
            let _ = eh07::open::<Request>(&event, &pool);
        }
    }
}
