//! NIP-01, 11 and the limits, through a real WebSocket.

use crate::harness::{Client, NOW, TestRelay, as_value, event, note, tag};
use futures_util::{SinkExt, StreamExt};
use nostr::Keys;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn an_event_is_stored_and_a_second_copy_is_a_duplicate() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let event = note("hello \"world\" \n ü \u{1}");
    client.store(&event).await;
    assert_eq!(relay.gauges.stats().events_stored, 1);
    let (accepted, reason) = client.publish(&event).await;
    assert!(accepted && reason.starts_with("duplicate:"), "{reason}");
    assert_eq!(client.query(&[json!({"ids": [event.id]})]).await, [event]);
}

#[tokio::test]
async fn results_are_newest_first_and_then_by_id() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let mut events = Vec::new();
    for n in 0..30 {
        let event = event(&keys, 1, NOW - n % 7, [], &n.to_string());
        client.store(&event).await;
        events.push(event);
    }
    events.sort_by_key(|event| (std::cmp::Reverse(event.created_at), event.id));
    assert_eq!(client.query(&[json!({"kinds": [1]})]).await, events);
    assert_eq!(client.query(&[json!({"kinds": [1], "limit": 8})]).await, events[..8]);
    assert_eq!(client.query(&[json!({"since": NOW - 2, "until": NOW - 1})]).await.len(), 9);
}

#[tokio::test]
async fn filters_are_merged_without_doubles_and_each_has_its_limit() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let events: Vec<_> = (0..6).map(|n| event(&keys, 1, NOW - n, [], &n.to_string())).collect();
    for event in &events {
        client.store(event).await;
    }
    let filters =
        [json!({"kinds": [1], "limit": 2}), json!({"authors": [keys.public_key()], "limit": 3})];
    assert_eq!(client.query(&filters).await, events[..3]);
}

#[tokio::test]
async fn limit_zero_gives_eose_and_then_live_events() {
    let relay = TestRelay::start().await;
    let (mut reader, mut writer) = (relay.client().await, relay.client().await);
    writer.store(&note("old")).await;
    reader.req("live", &[json!({"kinds": [1], "limit": 0})]).await;
    assert!(reader.until_eose("live").await.is_empty());
    let event = note("new");
    writer.store(&event).await;
    reader.expect_event("live", &event).await;
}

#[tokio::test]
async fn a_new_req_replaces_the_old_and_close_ends_it() {
    let relay = TestRelay::start().await;
    let (mut reader, mut writer) = (relay.client().await, relay.client().await);
    reader.req("s", &[json!({"kinds": [1]})]).await;
    reader.until_eose("s").await;
    reader.req("s", &[json!({"kinds": [7]})]).await;
    reader.until_eose("s").await;
    let keys = Keys::generate();
    writer.store(&note("not asked for any more")).await;
    let reaction = event(&keys, 7, NOW, [], "+");
    writer.store(&reaction).await;
    reader.expect_event("s", &reaction).await;
    reader.send(json!(["CLOSE", "s"])).await;
    reader.expect_nothing().await;
    writer.store(&event(&keys, 7, NOW, [], "-")).await;
    reader.expect_nothing().await;
}

#[tokio::test]
async fn events_stored_while_a_query_runs_come_once() {
    let relay = TestRelay::start().await;
    let (mut reader, mut writer) = (relay.client().await, relay.client().await);
    let keys = Keys::generate();
    let events: Vec<_> = (0..200).map(|n| event(&keys, 1, NOW, [], &n.to_string())).collect();
    let publish = async {
        for event in &events {
            writer.store(event).await;
        }
    };
    let read = async {
        let mut seen = Vec::new();
        for round in 0..20 {
            let id = format!("s{round}");
            reader.req(&id, &[json!({"kinds": [1]})]).await;
            let mut ids: Vec<String> = Vec::new();
            loop {
                let message = reader.recv().await;
                match message[0].as_str() {
                    _ if message[1] != id.as_str() => {}
                    Some("EVENT") => ids.push(message[2]["id"].as_str().unwrap().to_owned()),
                    Some("EOSE") => break,
                    _ => panic!("{message}"),
                }
            }
            seen.push((id, ids));
        }
        seen
    };
    let ((), seen) = tokio::join!(publish, read);
    // The last subscription goes on live: together each event exactly once.
    let (id, mut ids) = seen.into_iter().next_back().unwrap();
    while ids.len() < events.len() {
        let message = reader.recv().await;
        if message[1] == id.as_str() {
            ids.push(message[2]["id"].as_str().unwrap().to_owned());
        }
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), events.len());
    reader.send(json!(["CLOSE", id])).await;
}

#[tokio::test]
async fn ephemeral_events_are_passed_on_and_not_kept() {
    let relay = TestRelay::start().await;
    let (mut reader, mut writer) = (relay.client().await, relay.client().await);
    reader.req("e", &[json!({"kinds": [20_001]})]).await;
    reader.until_eose("e").await;
    let ephemeral = event(&Keys::generate(), 20_001, NOW, [], "");
    writer.store(&ephemeral).await;
    reader.expect_event("e", &ephemeral).await;
    assert!(writer.ids(json!({"kinds": [20_001]})).await.is_empty());
}

#[tokio::test]
async fn forged_events_are_invalid() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let event = note("honest");
    let mut forged = as_value(&event);
    forged["content"] = json!("forged");
    client.send(json!(["EVENT", forged])).await;
    let (accepted, reason) = client.ok_of(&event).await;
    assert!(!accepted && reason.starts_with("invalid:"), "{reason}");
    client.send(json!(["EVENT", {"id": event.id, "kind": "x"}])).await;
    assert!(!client.ok_of(&event).await.0);
    assert_eq!(relay.gauges.stats().events_stored, 0);
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_so() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (accepted, reason) = client.publish(&event(&Keys::generate(), 1, NOW + 901, [], "")).await;
    assert!(!accepted && reason.starts_with("invalid:") && reason.contains("clock"), "{reason}");
    client.store(&event(&Keys::generate(), 1, NOW + 900, [], "")).await;
}

#[tokio::test]
async fn nonsense_gets_a_notice_and_in_the_end_a_close() {
    let relay = TestRelay::with(|config| config.limits.max_strikes = 6).await;
    let mut client = relay.client().await;
    for text in
        ["hello", "[]", "[\"COUNT\",\"x\",{}]", "[\"REQ\"]", "[\"EVENT\",7]", "[\"CLOSE\",\"\"]"]
    {
        client.send_text(text).await;
        let notice = client.recv().await;
        assert_eq!(notice[0], "NOTICE", "{text}: {notice}");
        assert!(notice[1].as_str().unwrap().starts_with("invalid:"), "{notice}");
    }
    client.send_text("once more").await;
    let last = [client.recv().await, client.recv().await, client.recv().await];
    assert!(last.contains(&Value::Null), "{last:?}");
}

#[tokio::test]
async fn refused_requests_are_closed_with_a_reason() {
    let relay = TestRelay::with(|config| {
        config.limits.max_subscriptions = 2;
        config.limits.max_filters = 2;
        config.limits.max_filter_values = 3;
    })
    .await;
    let mut client = relay.client().await;
    let cases = [
        (vec![json!({"search": "x"})], "unsupported:"),
        (vec![json!({"ids": ["ab"]})], "invalid:"),
        (vec![json!({"kinds": [1, 2, 3, 4]})], "invalid:"),
        (vec![json!({}), json!({}), json!({})], "invalid:"),
        (vec![json!(7)], "invalid:"),
    ];
    for (filters, prefix) in cases {
        client.req("bad", &filters).await;
        let reason = client.closed("bad").await;
        assert!(reason.starts_with(prefix), "{filters:?}: {reason}");
    }
    for id in ["a", "b"] {
        client.req(id, &[json!({})]).await;
        client.until_eose(id).await;
    }
    client.req("c", &[json!({})]).await;
    assert!(client.closed("c").await.starts_with("rate-limited:"));
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_connection_and_no_other() {
    let relay = TestRelay::with(|config| config.limits.max_message_bytes = 2_000).await;
    let (mut loud, mut other) = (relay.client().await, relay.client().await);
    loud.send_text(&"x".repeat(2_001)).await;
    while loud.recv().await != Value::Null {}
    other.store(&note("still here")).await;
}

#[tokio::test]
async fn connections_have_a_limit_per_address() {
    let relay = TestRelay::with(|config| config.limits.max_connections_per_ip = 1).await;
    let mut first = relay.client().await;
    let url = format!("ws://{}/", relay.addr);
    assert!(tokio_tungstenite::connect_async(url).await.is_err());
    first.store(&note("the first is not disturbed")).await;
    assert_eq!(relay.gauges.stats().connections, 1);
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_closed_and_told() {
    let relay = TestRelay::with(|config| {
        config.limits.live_queue = 16;
        config.limits.write_timeout_seconds = 1;
    })
    .await;
    let (mut lazy, mut writer) = (relay.client().await, relay.client().await);
    lazy.req("all", &[json!({"kinds": [1], "limit": 0})]).await;
    lazy.until_eose("all").await;
    // Far more than socket buffers hold, while nobody reads.
    let keys = Keys::generate();
    let long = "x".repeat(100_000);
    for n in 0..200 {
        writer.store(&event(&keys, 1, NOW, [], &format!("{n}{long}"))).await;
        if relay.gauges.stats().connections == 1 {
            break;
        }
    }
    while lazy.recv().await != Value::Null {}
    assert_eq!(writer.query(&[json!({"limit": 1})]).await.len(), 1);
}

#[tokio::test]
async fn a_burst_without_waiting_gets_every_ok() {
    let relay = TestRelay::with(|config| config.limits.max_in_flight = 8).await;
    let client = relay.client().await;
    let (mut sink, mut stream) = client.socket.split();
    let events: Vec<_> = (0..300).map(|n| note(&n.to_string())).collect();
    let send = async {
        for event in &events {
            let text = json!(["EVENT", as_value(event)]).to_string();
            sink.feed(Message::text(text)).await.unwrap();
        }
        sink.flush().await.unwrap();
    };
    let receive = async {
        for _ in &events {
            let text = stream.next().await.unwrap().unwrap().into_text().unwrap();
            assert!(text.contains(",true,"), "{text}");
        }
    };
    tokio::join!(send, receive);
    assert_eq!(relay.gauges.stats().events_stored, 300);
}

#[tokio::test]
async fn stopping_answers_what_was_sent_and_keeps_it() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let event = note("last words");
    client.store(&event).await;
    let dir = relay.stop().await;
    while client.recv().await != Value::Null {}
    let relay = TestRelay::open(hashpit_relay::Config::default(), dir).await;
    assert_eq!(relay.gauges.stats().events_stored, 1);
    assert_eq!(relay.client().await.ids(json!({})).await, [event.id.to_hex()]);
}

#[tokio::test]
async fn a_long_answer_comes_whole() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let keys = Keys::generate();
    let long = "x".repeat(20_000);
    for n in 0..40 {
        let tags = [tag(&["t", "long"]), tag(&["r", if n % 2 == 0 { "even" } else { "odd" }])];
        client.store(&event(&keys, 1, NOW - n, tags, &long)).await;
    }
    assert_eq!(client.ids(json!({"#t": ["long"]})).await.len(), 40);
    assert_eq!(client.ids(json!({"#t": ["long"], "#r": ["odd"]})).await.len(), 20);
    assert_eq!(client.ids(json!({"authors": [keys.public_key()], "limit": 5})).await.len(), 5);
}

#[tokio::test]
async fn every_query_ends_with_eose_however_many_wait() {
    let relay = TestRelay::with(|config| config.limits.max_running_queries = 1).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(relay.client().await);
    }
    let keys = Keys::generate();
    for n in 0..50 {
        clients[0].store(&event(&keys, 1, NOW, [], &n.to_string())).await;
    }
    for client in &mut clients {
        for n in 0..20 {
            client.req(&n.to_string(), &[json!({"authors": [keys.public_key()]})]).await;
        }
    }
    for client in &mut clients {
        for n in 0..20 {
            assert_eq!(client.until_eose(&n.to_string()).await.len(), 50);
        }
    }
}

/// What a plain HTTP client gets.
async fn http(client: &TestRelay, head: &str) -> (String, String) {
    let mut stream = TcpStream::connect(client.addr).await.unwrap();
    let request = format!(
        "{head} HTTP/1.1\r\nHost: x\r\nAccept: application/nostr+json\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn half_a_request_does_not_hold_up_stopping() {
    let relay = TestRelay::with(|config| config.limits.stop_timeout_seconds = 5).await;
    let _idle = TcpStream::connect(relay.addr).await.unwrap();
    let mut half = TcpStream::connect(relay.addr).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    while relay.gauges.stats().connections < 2 {
        tokio::task::yield_now().await;
    }
    // Its `serve` must return without an error.
    relay.stop().await;
}

#[tokio::test]
async fn the_nip_11_document_tells_the_truth() {
    let relay = TestRelay::with(|config| {
        config.name = "test".to_owned();
        config.limits.max_subscriptions = 3;
    })
    .await;
    let (head, body) = http(&relay, "GET /").await;
    assert!(head.contains("application/nostr+json"), "{head}");
    assert!(head.contains("access-control-allow-origin: *"), "{head}");
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(document["name"], "test");
    assert_eq!(document["limitation"]["max_subscriptions"], 3);
    assert_eq!(document["supported_nips"], json!([1, 9, 11, 17, 40, 42, 59, 70]));
    assert_eq!(http(&relay, "GET /health").await.1, "ok");
    assert!(http(&relay, "OPTIONS /").await.0.contains("access-control-allow-headers"));
}

#[tokio::test]
async fn clients_come_and_go_and_are_counted() {
    let relay = TestRelay::start().await;
    let clients: Vec<Client> = vec![relay.client().await, relay.client().await];
    assert_eq!(relay.gauges.stats().connections, 2);
    drop(clients);
    while relay.gauges.stats().connections > 0 {
        tokio::task::yield_now().await;
    }
}
