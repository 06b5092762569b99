//! What is refused, and by which name.

use hashpit_nips::eh04::{Command, DecodeError, ExchangeInfo, Market, Offer, Rules};
use hashpit_nips::eh05::{Checkpoint, Depth, Entry, MAX_EFFECTS, Match, Settlement};
use nostr::{Event, JsonUtil};
use serde_json::{Value, json};

use crate::example;

fn decode(event: &Event) -> Result<(), DecodeError> {
    match event.kind.as_u16() {
        38480 => Offer::decode(event).map(drop),
        8483 => Command::decode(event).map(drop),
        38481 => Market::decode(event).map(drop),
        38482 => ExchangeInfo::decode(event).map(drop),
        8480 => Entry::decode(event).map(drop),
        8481 => Match::decode(event).map(drop),
        8482 => Settlement::decode(event).map(drop),
        38483 => Checkpoint::decode(event).map(drop),
        _ => Depth::decode(event).map(drop),
    }
}

/// What a reader says of an example after `change`.
fn refusal(kind: u16, change: impl FnOnce(&mut Value)) -> String {
    let mut event: Value = serde_json::from_str(&example(kind).as_json()).unwrap();
    change(&mut event);
    let event = Event::from_json(event.to_string()).unwrap();
    decode(&event).expect_err("it should be refused").to_string()
}

fn tags(event: &mut Value) -> &mut Vec<Value> {
    event["tags"].as_array_mut().unwrap()
}

fn place(event: &mut Value, name: &str) -> usize {
    tags(event).iter().position(|tag| tag[0] == name).unwrap()
}

/// Refusal of an example whose tag `name` holds these values.
fn with(kind: u16, name: &str, values: &[&str]) -> String {
    refusal(kind, |event| {
        let at = place(event, name);
        tags(event)[at] = json!([&[name], values].concat());
    })
}

/// Refusal of an example that has one more tag.
fn and(kind: u16, tag: &[&str]) -> String {
    refusal(kind, |event| tags(event).push(json!(tag)))
}

#[test]
fn tags_that_are_missing_repeated_or_malformed_are_refused_by_name() {
    let all: [(u16, &[&str]); 9] = [
        (38480, &["d", "a", "x", "side", "qty"]),
        (8483, &["x", "cmd"]),
        (38481, &["d", "mint", "state", "n", "lot", "tick", "fee"]),
        (38482, &["d", "name"]),
        (8480, &["n", "prev", "at", "act", "outcome"]),
        (8481, &["n", "i", "a", "side", "price", "qty", "units", "msat", "sat", "fee", "at"]),
        (8482, &["n", "e", "fate", "at"]),
        (38483, &["d", "n", "e", "digest", "depth", "at"]),
        (28480, &["a", "depth", "n"]),
    ];
    for (kind, names) in all {
        for name in names {
            let quoted = format!("tag {name:?}");
            let missing = refusal(kind, |event| {
                let at = place(event, name);
                tags(event).remove(at);
            });
            assert!(missing.contains(&quoted), "{kind}: {missing}");
            let repeated = refusal(kind, |event| {
                let at = place(event, name);
                let again = tags(event)[at].clone();
                tags(event).push(again);
            });
            assert!(repeated.contains(&quoted), "{kind}: {repeated}");
            let free_text = *name == "name" || (kind, *name) == (38480, "d");
            if !free_text {
                let malformed = with(kind, name, &["-1"]);
                let known = malformed.contains(name) || malformed.contains("different exchanges");
                assert!(known, "{kind} {name}: {malformed}");
            }
        }
    }
}

#[test]
fn optional_tags_may_stand_once_and_must_parse() {
    for (name, value) in [
        ("prev", "1"),
        ("s", "closed"),
        ("price", "0x10"),
        ("min", "01"),
        ("max", "4294967296"),
        ("tif", "day"),
        ("pay", "paypal"),
        ("on_epoch", "stay"),
        ("group", ""),
        ("stp", "both"),
        ("expiration", "18446744073709551615"),
    ] {
        let malformed = refusal(38480, |event| {
            tags(event).retain(|tag| tag[0] != name);
            tags(event).push(json!([name, value]));
        });
        assert!(malformed.contains(&format!("tag {name:?}")), "{malformed}");
        if name != "pay" {
            let twice = refusal(38480, |event| {
                tags(event).extend([json!([name, "1"]), json!([name, "1"])]);
            });
            assert!(twice.contains("stands more than once"), "{twice}");
        }
    }
}

#[test]
fn an_id_and_a_key_have_one_spelling() {
    let capitals = example(8481).id.to_hex().to_uppercase();
    let note = "note1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqn2l0z3";
    for id in [capitals.as_str(), note, "", "é"] {
        assert!(and(38480, &["prev", id]).contains("64 lower-case hex digits"), "{id}");
        assert!(with(8482, "e", &[id]).contains("64 lower-case hex digits"), "{id}");
    }
    let key = example(8480).pubkey.to_hex().to_uppercase();
    assert!(with(8483, "x", &[&key]).contains("64 lower-case hex digits"));
    let mint = format!("cashu:02{key}");
    assert!(with(38480, "pay", &[&mint]).contains("lower-case"));
    let market = refusal(38480, |event| {
        let at = place(event, "a");
        let text = tags(event)[at][1].as_str().unwrap().replacen(&key.to_lowercase(), &key, 1);
        tags(event)[at][1] = json!(text);
    });
    assert!(market.contains("38481:"), "{market}");
}

#[test]
fn terms_that_contradict_each_other_are_refused() {
    for (name, value, why) in [
        ("qty", "0", "qty must be 1 or more"),
        ("min", "0", "1 <= min <= max <= qty"),
        ("min", "501", "1 <= min <= max <= qty"),
        ("price", "0", "price must be 1 or more"),
    ] {
        assert!(with(38480, name, &[value]).contains(why), "{name} {value}");
    }
    assert!(and(38480, &["max", "9"]).contains("1 <= min <= max <= qty"));
    let no =
        |name: &'static str| refusal(38480, move |event| tags(event).retain(|tag| tag[0] != name));
    assert!(no("pay").contains("1 to 32 pay tags"));
    assert!(no("price").contains("needs tif ioc or fok"));
    let stranger = "0".repeat(63) + "1";
    assert!(with(38480, "x", &[&stranger]).contains("different exchanges"));
    let many = refusal(38480, |event| tags(event).extend(vec![json!(["pay", "nwc"]); 31]));
    assert!(many.contains("1 to 32 pay tags"));
    assert!(with(38480, "d", &[&"d".repeat(65)]).contains("1 to 64 bytes"));
}

#[test]
fn commands_have_their_values_and_no_others() {
    for words in [
        &["cancel_all", "now"][..],
        &["alive"],
        &["alive", "soon"],
        &["alive", "18446744073709552"],
        &["commit"],
        &["commit", "1"],
        &["step", "0"],
        &["step", "7"],
        &["sell"],
    ] {
        let refused = refusal(8483, |event| {
            tags(event).push(json!(["e", "1".repeat(64)]));
            let at = place(event, "cmd");
            tags(event)[at] = json!([&["cmd"], words].concat());
        });
        assert!(refused.contains("tag \"cmd\""), "{words:?}: {refused}");
    }
    assert!(with(8483, "cmd", &["step", "1"]).contains("tag \"e\" is missing"));
    assert!(with(8483, "x", &[&"1".repeat(64)]).contains("different exchanges"));
}

#[test]
fn rules_that_no_market_can_be_held_by_are_refused() {
    for (name, value, why) in [
        ("lot", json!("0"), "lot"),
        ("lot", json!("4294967296"), "lot"),
        ("tick", json!("0"), "tick"),
        ("min_lots", json!("0"), "min_lots"),
        ("max_lots", json!("0"), "max_lots"),
        ("maker_fee_ppm", json!(1_000_001), "fees must be 1000000"),
        ("taker_fee_ppm", json!(1_000_001), "fees must be 1000000"),
        ("pay", json!([]), "1 to 32 ways of payment"),
        ("pay", json!([{"way": "nwc"}, {"way": "nwc"}]), "each once"),
        ("pay", json!([{"way": "paypal"}]), "content"),
        ("tax", json!(1), "unknown field"),
        // A string where JavaScript would lose digits, and only there.
        ("lot", json!(1000), "content"),
        ("tick", json!("010"), "content"),
        ("pow_bits", json!("16"), "content"),
        ("pow_bits", json!(256), "content"),
        ("reveal_ms", json!(-1), "content"),
    ] {
        for kind in [38482, 8480] {
            let refused = refusal(kind, |event| {
                let mut rules: Value =
                    serde_json::from_str(event["content"].as_str().unwrap()).unwrap();
                rules[name] = value.clone();
                event["content"] = json!(rules.to_string());
            });
            assert!(refused.contains(why), "{name} {value}: {refused}");
        }
    }
    assert_eq!(serde_json::from_str::<Rules>("{}").unwrap(), Rules::default());
    assert!(Rules::default().check().is_ok());
}

#[test]
fn an_entry_that_does_not_fit_together_is_refused() {
    assert!(with(8480, "n", &["1"]).contains("prev of zeros"));
    assert!(with(8480, "prev", &[&"1".repeat(64)]).contains("prev of zeros"));
    assert!(with(8480, "at", &["1700000002000"]).contains("created_at"));
    assert!(with(8480, "act", &["time"]).contains("act"));
    assert!(with(8480, "outcome", &["deferred"]).contains("always accepted"));
    assert!(with(8480, "outcome", &["refused"]).contains("outcome"));
    for effect in [
        &["ended", "1", "expired"][..],
        &["ended", &"1".repeat(64), "bored"],
        &["ended"],
        &["late", &"1".repeat(64)],
        &["late", &"1".repeat(64), "perhaps"],
        &["burnt", "NO"],
        &["market", "sat", "open"],
        &["market", "sat"],
        &["more", "-1"],
    ] {
        assert!(and(8480, effect).contains(&format!("tag {:?}", effect[0])), "{effect:?}");
    }
    let crowded = refusal(8480, |event| {
        tags(event).extend(vec![json!(["burnt", "1".repeat(64)]); MAX_EFFECTS + 1]);
    });
    assert!(crowded.contains("200 effects"));
    let swapped = refusal(8480, |event| {
        let offer = example(38480);
        event["content"] = json!(offer.as_json());
        let at = place(event, "act");
        tags(event)[at] = json!(["act", "trader"]);
    });
    assert!(swapped.contains("first entry must be rules"), "{swapped}");
}

#[test]
fn an_entry_says_whose_event_it_holds_and_of_which_kind() {
    let second = |act: &str, inner: &Event, id: &str| {
        refusal(8480, |event| {
            event["content"] = json!(inner.as_json());
            *tags(event) = vec![
                json!(["n", "1"]),
                json!(["prev", "1".repeat(64)]),
                json!(["at", "1700000001000"]),
                json!(["act", act]),
                json!(["e", id]),
                json!(["p", inner.pubkey.to_hex()]),
                json!(["outcome", "accepted"]),
            ];
        })
    };
    let offer = example(38480);
    assert!(second("epoch", &offer, &offer.id.to_hex()).contains("another kind"));
    assert!(second("trader", &offer, &"1".repeat(64)).contains("e and p are not"));
    let market = example(38481);
    assert!(second("trader", &market, &market.id.to_hex()).contains("another kind"));
}

#[test]
fn a_match_whose_sums_or_parties_are_wrong_is_refused() {
    assert!(with(8481, "msat", &["300001"]).contains("price times qty"));
    assert!(with(8481, "sat", &["299"]).contains("price times qty"));
    assert!(with(8481, "terms", &[&"0".repeat(64)]).contains("hash of the match's terms"));
    assert!(with(8481, "units", &["200001"]).contains("hash of the match's terms"));
    assert!(with(8481, "at", &["1700000041000"]).contains("created_at"));
    assert!(with(8481, "price", &["18446744073709551615"]).contains("price"));
    assert!(with(8481, "fee", &["0"]).contains("maker and taker"));
    assert!(and(8481, &["p", &"1".repeat(64)]).contains("maker and taker"));
    let unpaid = refusal(8481, |event| tags(event).retain(|tag| tag[0] != "pay"));
    assert!(unpaid.contains("way of payment"));
    let stranger = refusal(8481, |event| event["pubkey"] = json!("1".repeat(64)));
    assert!(stranger.contains("another exchange's"));
    let alone = refusal(8481, |event| {
        let maker = place(event, "p");
        tags(event)[maker + 1] = tags(event)[maker].clone();
    });
    assert!(alone.contains("does not meet himself"));
}

#[test]
fn a_settlement_names_a_step_and_who_was_due() {
    let (seller, buyer) = {
        let matched = Match::decode(&example(8481)).unwrap();
        (matched.seller().trader.to_hex(), matched.buyer().trader.to_hex())
    };
    for fate in [
        &["done"][..],
        &["completed", "6"],
        &["failed", "1"],
        &["failed", "0", &seller],
        &["failed", "7", &seller],
        &["failed", "1", &"1".repeat(64)],
        &["failed", "1", &buyer, &seller],
        &["failed", "1", &seller, &seller],
    ] {
        assert!(with(8482, "fate", fate).contains("tag \"fate\""), "{fate:?}");
    }
    assert!(with(8482, "at", &["1"]).contains("created_at"));
    assert!(and(8482, &["p", &seller]).contains("seller and buyer"));
}

#[test]
fn levels_are_strings_and_counts_numbers() {
    for (kind, from, to) in [
        (38483, "\"1500\",\"300\",1", "1500,\"300\",1"),
        (38483, "\"1500\",\"300\",1", "\"1500\",300,1"),
        (28480, "\"1400\",\"50\",1", "\"1400\",\"50\",\"1\""),
        (28480, "\"1400\",\"50\",1", "\"1400\",\"50\""),
        (28480, "\"state\":\"open\"", "\"state\":\"ajar\""),
        (38483, "\"bids\":[]", "\"bids\":[],\"tips\":[]"),
    ] {
        let refused = refusal(kind, |event| {
            let content = event["content"].as_str().unwrap();
            assert!(content.contains(from));
            event["content"] = json!(content.replacen(from, to, 1));
        });
        assert!(refused.contains("content"), "{to}: {refused}");
    }
    let stranger = refusal(28480, |event| event["pubkey"] = json!("1".repeat(64)));
    assert!(stranger.contains("another exchange's"));
}
