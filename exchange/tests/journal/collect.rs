//! Collecting an exchange's events from relays that tell as little as a relay may,
//! or do not do as they are asked.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hashpit_exchange::audit::{Lie, audit, collect, complete};
use hashpit_mailbox::{Mailbox, MailboxError};
use hashpit_nips::eh01::EpochState;
use hashpit_nips::eh04::Side;
use hashpit_nips::eh05::Match;
use hashpit_nips::kind;
use nostr::filter::MatchEventOptions;
use nostr::{ClientMessage, Event, Filter, JsonUtil, Keys, RelayMessage, RelayUrl};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::world::{World, rules};

/// Events of one answer: no relay in use tells fewer.
const ANSWER: usize = 100;

/// A relay that holds these events, and tells the newest of what matches.
async fn relay(mut events: Vec<Event>, heeds_until: bool) -> RelayUrl {
    events.sort_by_key(|event| (std::cmp::Reverse(event.created_at), event.id));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, events.clone(), heeds_until));
        }
    });
    RelayUrl::parse(&format!("ws://{address}")).unwrap()
}

async fn serve(stream: TcpStream, events: Vec<Event>, heeds_until: bool) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let Ok(ClientMessage::Req { subscription_id, filters, .. }) =
            ClientMessage::from_json(text.as_str())
        else {
            continue;
        };
        let mut filter = filters[0].clone().into_owned();
        if !heeds_until {
            filter.until = None;
        }
        let found = events.iter().filter(|it| filter.match_event(it, MatchEventOptions::new()));
        for event in found.take(filter.limit.unwrap_or(ANSWER).min(ANSWER)) {
            let told = RelayMessage::event(subscription_id.as_ref().clone(), event.clone());
            socket.send(Message::text(told.as_json())).await.unwrap();
        }
        let all = RelayMessage::eose(subscription_id.into_owned());
        socket.send(Message::text(all.as_json())).await.unwrap();
    }
}

/// An exchange that took 150 offers in one second, and one that took them all.
async fn sweep() -> World {
    let world = World::open(rules());
    world.publish(1, EpochState::Open).await;
    world.pass(5_000);
    let (seller, buyer) = (Keys::generate(), Keys::generate());
    for _ in 0..150 {
        world.accepted(&world.offer(&seller, World::terms(Side::Sell, 10, 1))).await;
    }
    world.accepted(&world.offer(&buyer, World::terms(Side::Buy, 10, 150))).await;
    world
}

#[tokio::test]
async fn a_sweep_in_a_busy_second_is_collected_whole() {
    let world = sweep().await;
    let relays = [relay(world.records().into_iter().flatten().collect(), true).await];
    let key = world.exchange.public_key();
    let mut collected = collect(key, &relays, |_, _| {}).await.unwrap();
    let report = audit(key, &collected.evidence);
    let missed = report.withheld();
    assert_eq!((report.entries, report.matches), (153, 150));
    assert_eq!(report.findings.len(), missed.len(), "{:?}", report.findings);
    assert!(!missed.is_empty(), "the relay tells no more than {ANSWER} of one second");
    complete(key, &relays, &mut collected, &missed).await.unwrap();
    let report = audit(key, &collected.evidence);
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(collected.silent, []);
}

#[tokio::test]
async fn a_match_of_an_entry_that_does_not_exist_is_collected() {
    let world = World::open(rules());
    world.publish(1, EpochState::Open).await;
    let (seller, buyer) = (Keys::generate(), Keys::generate());
    world.accepted(&world.offer(&seller, World::terms(Side::Sell, 10, 1))).await;
    let taken = world.accepted(&world.offer(&buyer, World::terms(Side::Buy, 10, 1))).await;
    let honest = Match::decode(&world.record(taken.seq)[1]).unwrap();
    let made_up = Match { seq: 1_000_000, ..honest };
    let made_up = made_up.encode().unwrap().sign_with_keys(&world.exchange).unwrap();
    let all = world.records().into_iter().flatten().chain([made_up.clone()]);
    let relays = [relay(all.collect(), true).await];
    let key = world.exchange.public_key();
    let collected = collect(key, &relays, |_, _| {}).await.unwrap();
    let report = audit(key, &collected.evidence);
    let lies: Vec<_> = report.findings.iter().map(|finding| &finding.lie).collect();
    assert_eq!(lies, [&Lie::Invented(made_up.id)]);
}

#[tokio::test]
async fn a_relay_that_passes_over_until_is_not_asked_for_ever() {
    let world = sweep().await;
    for number in 0..150 {
        world.pass(1_000);
        world
            .accepted(&world.offer(&Keys::generate(), World::terms(Side::Sell, 20 + number, 1)))
            .await;
    }
    let events: Vec<Event> = world.records().into_iter().flatten().collect();
    let (unruly, honest) = (relay(events.clone(), false).await, relay(events, true).await);
    let relays = [unruly.clone(), honest.clone()];
    let mailbox = Mailbox::connect(Keys::generate(), &relays).await.unwrap();
    let entries = Filter::new().kind(kind::ENTRY);
    let patience = Duration::from_secs(20);
    let told = mailbox.stored(&unruly, entries.clone(), patience).await;
    assert!(matches!(told, Err(MailboxError::Unasked(relay)) if relay == unruly));
    // The other says that it may have more of the busy second, and ends as well.
    let told = mailbox.all_stored(&honest, entries, patience).await.unwrap();
    assert!(told.is_cut && told.events.len() >= 150 + ANSWER, "{}", told.events.len());
    mailbox.close().await;
}
