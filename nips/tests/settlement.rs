//! EH-06: the draft's examples survive a round trip, and the golden vector of a lock
//! opens as it did.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use cashu::KeySet;
use hashpit_nips::eh06::{HtlcLock, LegError, LockedProof, Message, Watch, amounts};
use nostr::{EventId, Keys};
use proptest::prelude::*;
use serde_json::Value;

const EH06: &str = include_str!("../EH-06.md");
const VECTOR: &str = include_str!("../vectors/eh06.json");

/// The ```json blocks of the draft.
fn examples() -> Vec<Value> {
    let blocks = EH06.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| serde_json::from_str(block).unwrap()).collect()
}

#[test]
fn every_example_survives_a_round_trip() {
    let mut seen = Vec::new();
    for example in examples() {
        let again = match example["type"].as_str() {
            Some(_) => {
                let message: Message = serde_json::from_value(example.clone()).unwrap();
                serde_json::to_value(message).unwrap()
            }
            None => {
                let watch: Watch = serde_json::from_value(example.clone()).unwrap();
                serde_json::to_value(watch).unwrap()
            }
        };
        assert_eq!(again, example);
        seen.push(example["type"].as_str().unwrap_or("watch").to_owned());
    }
    let expected = ["keys", "keys", "invoice", "locked", "claimed", "abort", "watch"];
    assert_eq!(seen, expected);
}

#[test]
fn the_golden_lock_opens() {
    let vector: Value = serde_json::from_str(VECTOR).unwrap();
    let part = |name: &str| vector[name].clone();
    let keyset: KeySet = serde_json::from_value(part("keyset")).unwrap();
    let lock: HtlcLock = serde_json::from_value(part("lock")).unwrap();
    let handed: Vec<LockedProof> = serde_json::from_value(part("proofs")).unwrap();
    let net = part("net").as_u64().unwrap();
    assert_eq!(lock.secret(&handed[0].nonce).to_string(), part("secret_0").as_str().unwrap());
    let agreed: Vec<u64> = handed.iter().map(|proof| proof.amount).collect();
    assert_eq!(amounts(net, &keyset).unwrap(), agreed);
    assert_eq!(lock.open(net, &keyset, &handed).unwrap().len(), handed.len());
    let later = HtlcLock { locktime: lock.locktime + 1, ..lock };
    assert_eq!(later.open(net, &keyset, &handed), Err(LegError::Signature));
}

#[test]
fn a_rumor_names_its_match() {
    let (keys, of) = (Keys::generate(), EventId::from_byte_array([7; 32]));
    let message = Message::Abort { reason: "no".to_owned() };
    let rumor = message.rumor(of, keys.public_key());
    assert_eq!(Message::read(&rumor).unwrap(), (of, message));
}

proptest! {
    #[test]
    fn mangled_messages_never_panic(at in 0usize..4_000, byte in any::<u8>()) {
        for example in examples() {
            let mut text = example.to_string().into_bytes();
            let at = at % text.len();
            text[at] = byte;
            let _ = serde_json::from_slice::<Message>(&text);
            let _ = serde_json::from_slice::<Watch>(&text);
        }
    }
}
