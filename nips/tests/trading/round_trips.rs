//! Every event survives a round trip, and none makes a reader panic.

use hashpit_nips::eh04::{Command, ExchangeInfo, Market, Offer};
use hashpit_nips::eh05::{Checkpoint, Depth, Entry, Match, Settlement};
use nostr::{Event, JsonUtil, PublicKey};
use proptest::prelude::*;
use serde_json::Value;

use crate::any::{self, unsigned};
use crate::{EH04, EH05, examples};

proptest! {
    #[test]
    fn offers(offer in any::offer(), by in any::key()) {
        prop_assert_eq!(Offer::decode(&unsigned(offer.encode(), by)), Ok(offer));
    }

    #[test]
    fn commands(command in any::command(), by in any::key()) {
        prop_assert_eq!(Command::decode(&unsigned(command.encode(), by)), Ok(command));
    }

    #[test]
    fn markets(market in any::market(), by in any::key()) {
        prop_assert_eq!(Market::decode(&unsigned(market.encode(), by)), Ok(market));
    }

    #[test]
    fn infos(info in any::info(), by in any::key()) {
        prop_assert_eq!(ExchangeInfo::decode(&unsigned(info.encode(), by)), Ok(info));
    }

    #[test]
    fn entries(entry in any::entry(), by in any::key()) {
        prop_assert_eq!(Entry::decode(&unsigned(entry.encode(), by)), Ok(entry));
    }

    #[test]
    fn matches(matched in any::matched()) {
        let event = unsigned(matched.encode().unwrap(), matched.market.exchange);
        prop_assert_eq!(Match::decode(&event), Ok(matched));
    }

    #[test]
    fn settlements(settlement in any::settlement(), by in any::key()) {
        prop_assert_eq!(Settlement::decode(&unsigned(settlement.encode(), by)), Ok(settlement));
    }

    #[test]
    fn checkpoints(checkpoint in any::checkpoint(), by in any::key()) {
        prop_assert_eq!(Checkpoint::decode(&unsigned(checkpoint.encode(), by)), Ok(checkpoint));
    }

    #[test]
    fn depths(depth in any::depth()) {
        let event = unsigned(depth.encode(), depth.market.exchange);
        prop_assert_eq!(Depth::decode(&event), Ok(depth));
    }

    #[test]
    fn who_trades_at_its_own_exchange_is_named_like_all_others(
        matched in any::matched(), settlement in any::settlement(), entry in any::entry(),
        info in any::info(),
    ) {
        let mut matched = matched;
        matched.taker.trader = matched.market.exchange;
        let event = unsigned(matched.encode().unwrap(), matched.market.exchange);
        prop_assert_eq!(Match::decode(&event), Ok(matched));
        let event = unsigned(settlement.encode(), settlement.traders[1]);
        prop_assert_eq!(Settlement::decode(&event), Ok(settlement));
        if let Some(author) = entry.event().map(|event| event.pubkey) {
            prop_assert_eq!(Entry::decode(&unsigned(entry.encode(), author)), Ok(entry));
        }
        if let Some(pool) = info.pools.first().copied() {
            prop_assert_eq!(ExchangeInfo::decode(&unsigned(info.encode(), pool)), Ok(info));
        }
    }

    #[test]
    fn mangled_examples_never_panic(
        which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
        byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let all: Vec<Event> = examples(EH04).into_iter().chain(examples(EH05)).collect();
        let mut text = which.get(&all).as_json().into_bytes();
        let at = at.index(text.len());
        if cut { text.truncate(at) } else { text[at] = byte }
        if let Ok(event) = Event::from_json(&text) {
            read(&event);
        }
    }

    #[test]
    fn events_of_any_tags_never_panic(
        kind in prop::sample::select(vec![
            38480u16, 8483, 38481, 38482, 8480, 8481, 8482, 38483, 28480,
        ]),
        tags in prop::collection::vec(tag(), 0..16), content in ".{0,80}",
    ) {
        let mut event: Value = serde_json::from_str(&examples(EH04)[0].as_json()).unwrap();
        event["kind"] = Value::from(kind);
        event["tags"] = Value::from(tags);
        event["content"] = Value::from(content);
        read(&Event::from_json(event.to_string()).unwrap());
    }
}

/// Tags of our names whose values are now and then sound.
fn tag() -> impl Strategy<Value = Vec<String>> {
    let names = prop::sample::select(vec![
        "d",
        "a",
        "x",
        "e",
        "p",
        "n",
        "i",
        "s",
        "side",
        "price",
        "qty",
        "min",
        "max",
        "tif",
        "pay",
        "on_epoch",
        "group",
        "stp",
        "expiration",
        "prev",
        "cmd",
        "mint",
        "state",
        "lot",
        "tick",
        "fee",
        "until",
        "name",
        "relay",
        "at",
        "act",
        "outcome",
        "ended",
        "late",
        "burnt",
        "market",
        "more",
        "units",
        "msat",
        "sat",
        "terms",
        "fate",
        "digest",
        "depth",
    ]);
    let id = any::key().prop_map(|key: PublicKey| key.to_hex());
    let words = prop::sample::select(vec!["buy", "open", "time", "accepted", "failed", "step"]);
    let words = words.prop_map(str::to_owned);
    let number = any::<u64>().prop_map(|number| number.to_string());
    let value = prop_oneof![".{0,80}", id, words, number, Just("1".to_owned())];
    (names, prop::collection::vec(value, 0..4))
        .prop_map(|(name, values)| std::iter::once(name.to_owned()).chain(values).collect())
}

fn read(event: &Event) {
    let _ = Offer::decode(event);
    let _ = Command::decode(event);
    let _ = Market::decode(event);
    let _ = ExchangeInfo::decode(event);
    let _ = Entry::decode(event);
    let _ = Match::decode(event);
    let _ = Settlement::decode(event);
    let _ = Checkpoint::decode(event);
    let _ = Depth::decode(event);
}
