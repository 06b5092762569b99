//! Who sees what: NIP-42, private kinds (NIP-17/59, EH-02), NIP-70; and that
//! stored and live delivery agree.

use crate::harness::{NOW, TestRelay, as_value, event, note, tag};
use futures_util::SinkExt;
use nostr::{Event, Keys};
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

fn wrap(kind: u16, to: &Keys) -> Event {
    event(&Keys::generate(), kind, NOW, [tag(&["p", &to.public_key().to_hex()])], "sealed")
}

#[tokio::test]
async fn private_kinds_need_authentication() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let recipient = Keys::generate();
    for kind in hashpit_nips::kind::PRIVATE {
        client.store(&wrap(kind, &recipient)).await;
        client.req("private", &[json!({"kinds": [kind]})]).await;
        let reason = client.closed("private").await;
        assert!(reason.starts_with("auth-required:"), "{reason}");
    }
}

#[tokio::test]
async fn only_recipient_and_author_see_a_private_event() {
    let relay = TestRelay::start().await;
    let (author, recipient, third) = (Keys::generate(), Keys::generate(), Keys::generate());
    let mut client = relay.client().await;
    let private =
        event(&author, 8470, NOW, [tag(&["p", &recipient.public_key().to_hex()])], "sealed");
    client.store(&private).await;
    for (keys, sees) in [(&author, true), (&recipient, true), (&third, false)] {
        let mut client = relay.client().await;
        client.authenticate(keys).await;
        for filter in [
            json!({"kinds": [8470]}),
            json!({}),
            json!({"ids": [private.id]}),
            json!({"authors": [author.public_key()]}),
            json!({"#p": [recipient.public_key()]}),
        ] {
            assert_eq!(client.ids(filter.clone()).await.len(), usize::from(sees), "{filter}");
        }
    }
}

#[tokio::test]
async fn no_filter_reveals_a_private_event_to_a_stranger() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let recipient = Keys::generate();
    let (private, public) = (wrap(1059, &recipient), note("public"));
    client.store(&private).await;
    client.store(&public).await;
    for filter in [
        json!({}),
        json!({"ids": [private.id, public.id]}),
        json!({"kinds": [1, 1059]}),
        json!({"limit": 1}),
        json!({"since": NOW}),
    ] {
        assert_eq!(client.ids(filter.clone()).await, [public.id.to_hex()], "{filter}");
    }
    assert!(client.ids(json!({"#p": [recipient.public_key()]})).await.is_empty());
    assert!(client.ids(json!({"authors": [private.pubkey]})).await.is_empty());
}

#[tokio::test]
async fn live_delivery_checks_the_recipient_too() {
    let relay = TestRelay::start().await;
    let recipient = Keys::generate();
    let (mut theirs, mut strangers) = (relay.client().await, relay.client().await);
    theirs.authenticate(&recipient).await;
    strangers.authenticate(&Keys::generate()).await;
    for client in [&mut theirs, &mut strangers] {
        client.req("all", &[json!({})]).await;
        client.until_eose("all").await;
    }
    let mut writer = relay.client().await;
    // EH-07's is ephemeral: it is delivered live or never.
    for kind in [1059, 28470] {
        let (private, public) = (wrap(kind, &recipient), note(&format!("after {kind}")));
        writer.store(&private).await;
        writer.store(&public).await;
        theirs.expect_event("all", &private).await;
        theirs.expect_event("all", &public).await;
        strangers.expect_event("all", &public).await;
    }
}

#[tokio::test]
async fn a_connection_may_prove_several_keys() {
    let relay = TestRelay::start().await;
    let (one, two) = (Keys::generate(), Keys::generate());
    let mut client = relay.client().await;
    client.authenticate(&one).await;
    client.req("inbox", &[json!({"kinds": [1059]})]).await;
    client.until_eose("inbox").await;
    // A subscription that is open sees what a key proven later may see.
    client.authenticate(&two).await;
    let mut writer = relay.client().await;
    for keys in [&one, &two] {
        let event = wrap(1059, keys);
        writer.store(&event).await;
        client.expect_event("inbox", &event).await;
    }
    assert_eq!(client.ids(json!({"kinds": [1059]})).await.len(), 2);
}

#[tokio::test]
async fn what_follows_an_auth_is_judged_after_it() {
    let relay = TestRelay::start().await;
    let keys = Keys::generate();
    let mut client = relay.client().await;
    client.store(&wrap(1059, &keys)).await;
    let answer = client.auth_answer(&keys, &format!("ws://{}", relay.addr));
    // In one packet: the relay has both before it can have checked the first.
    let auth = json!(["AUTH", as_value(&answer)]).to_string();
    let req = json!(["REQ", "inbox", {"kinds": [1059]}]).to_string();
    client.socket.feed(Message::text(auth)).await.unwrap();
    client.socket.feed(Message::text(req)).await.unwrap();
    client.socket.flush().await.unwrap();
    assert!(client.ok_of(&answer).await.0);
    assert_eq!(client.until_eose("inbox").await.len(), 1);
}

#[tokio::test]
async fn wrong_answers_prove_nothing() {
    let relay = TestRelay::start().await;
    let keys = Keys::generate();
    let here = format!("ws://{}/", relay.addr);
    let mut client = relay.client().await;
    let other = relay.client().await;
    assert_ne!(client.challenge, other.challenge);
    let challenge = client.challenge.clone();
    let tags = || [tag(&["challenge", &challenge]), tag(&["relay", &here])];
    let answers = [
        other.auth_answer(&keys, &here),
        client.auth_answer(&keys, "wss://elsewhere.example"),
        event(&keys, 22242, NOW - 1_000, tags(), ""),
        event(&keys, 1, NOW, tags(), ""),
    ];
    for answer in answers {
        client.send(json!(["AUTH", as_value(&answer)])).await;
        let (accepted, reason) = client.ok_of(&answer).await;
        assert!(!accepted && reason.starts_with("invalid:"), "{reason}");
    }
    client.req("inbox", &[json!({"kinds": [1059]})]).await;
    assert!(client.closed("inbox").await.starts_with("auth-required:"));
    // An answer is no publication: it would prove the key to whoever reads it.
    let answer = client.auth_answer(&keys, &here);
    assert!(!client.publish(&answer).await.0);
}

#[tokio::test]
async fn an_auth_that_does_not_verify_is_answered_and_no_more() {
    let relay = TestRelay::start().await;
    let keys = Keys::generate();
    let mut client = relay.client().await;
    let answer = client.auth_answer(&keys, &format!("ws://{}/", relay.addr));
    let mut forged = as_value(&answer);
    forged["pubkey"] = json!(Keys::generate().public_key());
    client.send(json!(["AUTH", forged])).await;
    assert!(!client.ok_of(&answer).await.0);
    client.send(json!(["AUTH", "no event"])).await;
    assert_eq!(client.recv().await[0], "NOTICE");
    client.authenticate(&keys).await;
}

#[tokio::test]
async fn a_configured_url_is_what_an_answer_must_name() {
    let relay = TestRelay::with(|config| config.url = Some("wss://relay.example".into())).await;
    let keys = Keys::generate();
    let mut client = relay.client().await;
    for (url, accepted) in
        [(format!("ws://{}", relay.addr), false), ("wss://Relay.example:443/".into(), true)]
    {
        let answer = client.auth_answer(&keys, &url);
        client.send(json!(["AUTH", as_value(&answer)])).await;
        assert_eq!(client.ok_of(&answer).await.0, accepted, "{url}");
    }
}

#[tokio::test]
async fn protected_events_come_from_their_author() {
    let relay = TestRelay::start().await;
    let author = Keys::generate();
    let protected = event(&author, 1, NOW, [tag(&["-"])], "");
    let mut client = relay.client().await;
    let (accepted, reason) = client.publish(&protected).await;
    assert!(!accepted && reason.starts_with("auth-required:"), "{reason}");
    client.authenticate(&Keys::generate()).await;
    let (accepted, reason) = client.publish(&protected).await;
    assert!(!accepted && reason.starts_with("restricted:"), "{reason}");
    client.authenticate(&author).await;
    client.store(&protected).await;
}
