//! What stays and what goes: replaceable and addressable events (NIP-01),
//! deletion (NIP-09), expiry (NIP-40).

use std::sync::atomic::Ordering;

use crate::harness::{NOW, TestRelay, event, note, tag};
use nostr::{Event, Keys};
use serde_json::json;

#[tokio::test]
async fn only_the_newest_replaceable_event_is_kept() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let [old, new] = [NOW - 10, NOW].map(|at| event(&keys, 10_002, at, [], ""));
    client.store(&new).await;
    let (accepted, reason) = client.publish(&old).await;
    assert!(!accepted && reason.starts_with("duplicate:"), "{reason}");
    let newer = event(&keys, 10_002, NOW + 1, [], "");
    client.store(&newer).await;
    client.store(&event(&Keys::generate(), 10_002, NOW, [], "someone else's")).await;
    let found = client.ids(json!({"kinds": [10_002], "authors": [keys.public_key()]})).await;
    assert_eq!(found, [newer.id.to_hex()]);
    assert_eq!(relay.gauges.stats().events_stored, 2);
}

#[tokio::test]
async fn of_two_equally_old_versions_the_lower_id_stays() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    for first_is_lower in [true, false] {
        let keys = Keys::generate();
        let mut pair = ["a", "b"].map(|text| event(&keys, 30_000, NOW, [tag(&["d", "x"])], text));
        pair.sort_by_key(|event| event.id);
        let [lower, higher] = &pair;
        let (first, second) = if first_is_lower { (lower, higher) } else { (higher, lower) };
        client.store(first).await;
        assert_eq!(client.publish(second).await.0, !first_is_lower);
        let found = client.ids(json!({"authors": [keys.public_key()]})).await;
        assert_eq!(found, [lower.id.to_hex()]);
    }
}

#[tokio::test]
async fn addressable_events_are_told_apart_by_their_d_tag() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let offer = |d: &str, at| event(&keys, 38_480, at, [tag(&["d", d])], "");
    let (a, b, a2) = (offer("a", NOW - 5), offer("b", NOW - 5), offer("a", NOW));
    for event in [&a, &b, &a2] {
        client.store(event).await;
    }
    assert_eq!(client.query(&[json!({"kinds": [38_480]})]).await, [a2, b]);
}

fn deletion(keys: &Keys, at: u64, targets: &[(&str, String)]) -> Event {
    event(keys, 5, at, targets.iter().map(|(name, value)| tag(&[name, value])), "")
}

#[tokio::test]
async fn a_deleted_event_is_gone_and_cannot_come_back() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let event = event(&keys, 1, NOW, [], "regret");
    client.store(&event).await;
    let delete = deletion(&keys, NOW, &[("e", event.id.to_hex())]);
    client.store(&delete).await;
    assert_eq!(client.ids(json!({})).await, [delete.id.to_hex()]);
    let (accepted, reason) = client.publish(&event).await;
    assert!(!accepted && reason.starts_with("blocked:"), "{reason}");
}

#[tokio::test]
async fn a_deletion_that_comes_first_holds_too() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let event = event(&keys, 1, NOW, [], "regret");
    client.store(&deletion(&keys, NOW, &[("e", event.id.to_hex())])).await;
    assert!(!client.publish(&event).await.0);
}

#[tokio::test]
async fn nobody_deletes_what_is_not_theirs() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (author, thief) = (Keys::generate(), Keys::generate());
    let note = event(&author, 1, NOW, [], "mine");
    let offer = event(&author, 38_480, NOW, [tag(&["d", "x"])], "mine");
    let late = event(&author, 1, NOW, [], "not here yet");
    client.store(&note).await;
    client.store(&offer).await;
    let address = format!("38480:{}:x", author.public_key());
    let targets = [("e", note.id.to_hex()), ("e", late.id.to_hex()), ("a", address)];
    client.store(&deletion(&thief, NOW, &targets)).await;
    client.store(&late).await;
    assert_eq!(client.ids(json!({"authors": [author.public_key()]})).await.len(), 3);
}

#[tokio::test]
async fn an_address_is_deleted_up_to_the_deletion_and_no_further() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let offer = |at| event(&keys, 38_480, at, [tag(&["d", "x"])], "");
    let address = format!("38480:{}:x", keys.public_key());
    client.store(&offer(NOW - 10)).await;
    client.store(&deletion(&keys, NOW - 5, &[("a", address.clone())])).await;
    assert!(client.ids(json!({"kinds": [38_480]})).await.is_empty());
    assert!(!client.publish(&offer(NOW - 5)).await.0);
    let newer = offer(NOW - 4);
    client.store(&newer).await;
    // An older deletion does not reach it, nor loosen the newer one.
    client.store(&deletion(&keys, NOW - 7, &[("a", address)])).await;
    assert_eq!(client.ids(json!({"kinds": [38_480]})).await, [newer.id.to_hex()]);
}

#[tokio::test]
async fn a_deletion_cannot_be_deleted() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let first = deletion(&keys, NOW - 1, &[("e", note("x").id.to_hex())]);
    client.store(&first).await;
    client.store(&deletion(&keys, NOW, &[("e", first.id.to_hex())])).await;
    assert_eq!(client.ids(json!({"kinds": [5]})).await.len(), 2);
}

#[tokio::test]
async fn expired_events_are_refused_not_served_and_removed() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let expiring =
        |at: u64| event(&Keys::generate(), 1, NOW, [tag(&["expiration", &at.to_string()])], "");
    let (accepted, reason) = client.publish(&expiring(NOW)).await;
    assert!(!accepted && reason.starts_with("invalid:") && reason.contains("expired"), "{reason}");
    let lasting = expiring(NOW + 100);
    client.store(&expiring(NOW + 10)).await;
    client.store(&lasting).await;
    relay.now.store(NOW + 10, Ordering::SeqCst);
    assert_eq!(client.ids(json!({"kinds": [1]})).await, [lasting.id.to_hex()]);
    while relay.gauges.stats().events_stored > 1 {
        tokio::task::yield_now().await;
    }
}
