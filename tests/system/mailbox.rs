//! Relays that serve private messages only after authentication: the reader gets
//! its message on every connection, however the relay's answers are timed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hashpit_mailbox::{Arrival, Mailbox};
use hashpit_nips::eh02::{self, MinerMessage};
use hashpit_nips::kind;
use hashpit_tests::house::RelayHouse;
use nostr_sdk::{Event, EventBuilder, Filter, JsonUtil, Keys};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(10);
const CONNECTIONS: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_message_arrives_on_every_connection() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let relays = [relay.url.clone()];
    let (sender, reader) = (Keys::generate(), Keys::generate());
    let filter = Filter::new().kind(kind::ISSUANCE).pubkey(reader.public_key());

    let outbox = Mailbox::connect(sender, &relays).await.unwrap();
    let _connected = outbox.subscribe(Filter::new().kind(kind::POOL)).await.unwrap().next().await;
    let sent = outbox.send(&reader.public_key(), &MinerMessage::Hello {}).await.unwrap();
    for _ in 0..CONNECTIONS {
        let event = first_event(&reader, relay.url.as_str(), filter.clone()).await;
        assert_eq!(event.id, sent);
        assert_eq!(eh02::open::<MinerMessage>(&event, &reader).unwrap(), MinerMessage::Hello {});
    }
    outbox.close().await;
    relay.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mailbox_that_is_connected_can_be_asked_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let relay = RelayHouse::start(dir.path()).await.unwrap();
    let (sender, reader) = (Keys::generate(), Keys::generate());
    let relays = [relay.url.clone()];
    let outbox = Mailbox::connect(sender, &relays).await.unwrap();
    let mailbox = Mailbox::connect(reader.clone(), &relays).await.unwrap();
    outbox.connected(PATIENCE).await;
    let filter = Filter::new().kind(kind::ISSUANCE).pubkey(reader.public_key());
    // Each event is told once to a mailbox.
    for count in [0, 1, 1] {
        let (events, answered) = mailbox.fetch(filter.clone(), PATIENCE).await.unwrap();
        assert_eq!((events.len(), answered), (count, 1));
        outbox.send(&reader.public_key(), &MinerMessage::Hello {}).await.unwrap();
    }
    // A subscription sees what comes after, too.
    let mut inbox = mailbox.subscribe(filter.clone()).await.unwrap();
    let sent = outbox.send(&reader.public_key(), &MinerMessage::Hello {}).await.unwrap();
    let seen = timeout(PATIENCE, async {
        loop {
            match inbox.next().await.unwrap() {
                Arrival::Event(event) if event.id == sent => return,
                _ => {}
            }
        }
    });
    seen.await.expect("the event in time");
    for mailbox in [outbox, mailbox] {
        mailbox.close().await;
    }
    relay.stop().await.unwrap();
}

async fn first_event(reader: &Keys, relay: &str, filter: Filter) -> Event {
    let mailbox = Mailbox::connect(reader.clone(), &[relay.parse().unwrap()]).await.unwrap();
    let mut inbox = mailbox.subscribe(filter).await.unwrap();
    let arrived = timeout(PATIENCE, async {
        loop {
            if let Arrival::Event(event) = inbox.next().await.unwrap() {
                return *event;
            }
        }
    });
    let event = arrived.await.expect("an event in time");
    mailbox.close().await;
    event
}

/// A relay that closes the first subscription only after it has accepted the
/// authentication, when the SDK no longer looks for that.
async fn serve_with_a_late_refusal(listener: TcpListener, event: Event) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
    let text = |value: Value| Message::text(value.to_string());
    let (mut first, mut authenticated) = (None, false);
    while let Some(Ok(message)) = socket.next().await {
        let Ok(message) = serde_json::from_slice::<Value>(&message.into_data()) else { continue };
        let mut answers = Vec::new();
        match message[0].as_str() {
            Some("REQ") if first.is_none() => {
                first = Some(message[1].clone());
                answers.push(json!(["AUTH", "challenge"]));
            }
            Some("REQ") if authenticated => {
                let event: Value = serde_json::from_str(&event.as_json()).unwrap();
                answers.push(json!(["EVENT", message[1], event]));
            }
            Some("AUTH") => {
                authenticated = true;
                answers.push(json!(["OK", message[1]["id"], true, ""]));
                answers.push(json!(["CLOSED", first, "auth-required: who are you?"]));
            }
            _ => {}
        }
        for answer in answers {
            socket.send(text(answer)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_was_closed_late_is_made_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let event = EventBuilder::text_note("hello").sign_with_keys(&Keys::generate()).unwrap();
    let relay = tokio::spawn(serve_with_a_late_refusal(listener, event.clone()));
    let filter = Filter::new().kind(event.kind);
    assert_eq!(first_event(&Keys::generate(), &url, filter).await.id, event.id);
    relay.abort();
}
