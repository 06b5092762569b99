//! A relay that misbehaves in one way at a time. Its events are in memory, and
//! tests may look at them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nostr_sdk::filter::MatchEventOptions;
use nostr_sdk::{Event, Filter, JsonUtil, Kind, RelayUrl};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How a relay misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    None,
    /// Loses the first of every n events that it holds, whenever a connection
    /// ends: what was there when it was read back is gone afterwards.
    Loses(usize),
    /// Says OK and stores nothing.
    Lies,
    /// Gives events in another order, and late.
    Reorders,
    /// Takes n events of a connection, then asks for patience for a while.
    RateLimits(usize),
    /// Stores deletions and does not act on them.
    KeepsDeleted,
    /// Says OK to deletions, and neither stores them nor acts on them.
    DropsDeletions,
    /// Closes the connection after each n messages that it sends.
    HangsUp(usize),
    /// Gives at most n events to one query.
    AtMost(usize),
    /// Serves and takes nothing before authentication (NIP-42).
    WantsAuth,
    /// Refuses every event.
    Refuses,
    /// Takes events, and never says so.
    Silent,
}

/// A running relay.
pub struct BadRelay {
    /// Where it listens.
    pub url: RelayUrl,
    state: Arc<Mutex<State>>,
    _stop: DropGuard,
}

struct State {
    fault: Fault,
    events: Vec<Event>,
}

impl BadRelay {
    /// Starts one that misbehaves in the way given.
    pub async fn start(fault: Fault) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("ws://{}", listener.local_addr()?).parse()?;
        let state = Arc::new(Mutex::new(State { fault, events: Vec::new() }));
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, Arc::clone(&state), stop.clone()));
        Ok(Self { url, state, _stop: stop.drop_guard() })
    }

    /// From now on it misbehaves in this way.
    pub fn set(&self, fault: Fault) {
        lock(&self.state).fault = fault;
    }

    /// What it holds.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.state).events.clone()
    }

    /// Loses everything.
    pub fn forget(&self) {
        lock(&self.state).events.clear();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>, stop: CancellationToken) {
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! { biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                let state = Arc::clone(&state);
                sessions.spawn(async move {
                    session(stream, &state).await;
                    lose(&state);
                });
            }
        }
    }
}

fn lose(state: &Mutex<State>) {
    let mut state = lock(state);
    let Fault::Loses(n) = state.fault else { return };
    let held = std::mem::take(&mut state.events);
    state.events = (0..).zip(held).filter(|(at, _)| at % n != 0).map(|(_, event)| event).collect();
}

/// One connection, until either side is done with it.
async fn session(stream: TcpStream, state: &Mutex<State>) {
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
    let (mut sent, mut published, mut authenticated) = (0, 0, false);
    if lock(state).fault == Fault::WantsAuth {
        let _ = say(&mut socket, &json!(["AUTH", "prove it"])).await;
    }
    while let Some(Ok(message)) = socket.next().await {
        let Ok(message) = serde_json::from_slice::<Value>(&message.into_data()) else { continue };
        let fault = lock(state).fault;
        let barred = fault == Fault::WantsAuth && !authenticated;
        let answers = match message[0].as_str() {
            Some("EVENT") => {
                published += 1;
                let limited = matches!(fault, Fault::RateLimits(n) if published > n);
                vec![match (barred, limited) {
                    (true, _) => ok(&message[1]["id"], "auth-required: who are you?"),
                    (_, true) => {
                        published = 0;
                        ok(&message[1]["id"], "rate-limited: slow down")
                    }
                    _ => take(state, &message[1]),
                }]
            }
            Some("REQ") if barred => {
                vec![json!(["CLOSED", message[1], "auth-required: who are you?"])]
            }
            Some("REQ") => stored(state, &message),
            Some("AUTH") => {
                authenticated = Event::from_json(message[1].to_string()).is_ok_and(|event| {
                    event.kind == Kind::Authentication && event.verify().is_ok()
                });
                vec![ok(&message[1]["id"], if authenticated { "" } else { "invalid: no" })]
            }
            _ => Vec::new(),
        };
        if fault == Fault::Silent && message[0] == "EVENT" {
            continue;
        }
        if fault == Fault::Reorders {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        for answer in answers {
            sent += 1;
            if matches!(fault, Fault::HangsUp(n) if sent > n) {
                return;
            }
            if say(&mut socket, &answer).await.is_err() {
                return;
            }
        }
    }
}

async fn say(socket: &mut WebSocketStream<TcpStream>, value: &Value) -> Result<(), ()> {
    socket.send(Message::text(value.to_string())).await.map_err(drop)
}

/// `OK`, and a refusal if there is a reason.
fn ok(id: &Value, reason: &str) -> Value {
    json!(["OK", id, reason.is_empty(), reason])
}

fn take(state: &Mutex<State>, event: &Value) -> Value {
    let mut state = lock(state);
    let Ok(parsed) = Event::from_json(event.to_string()) else {
        return ok(&event["id"], "invalid: no event");
    };
    let known = state.events.iter().any(|stored| stored.id == parsed.id);
    let is_deletion = parsed.kind == Kind::EventDeletion;
    match state.fault {
        Fault::Refuses => return ok(&event["id"], "blocked: not here"),
        Fault::Lies => return ok(&event["id"], ""),
        Fault::DropsDeletions if is_deletion => return ok(&event["id"], ""),
        _ => {}
    }
    if is_deletion && state.fault != Fault::KeepsDeleted {
        let doomed: Vec<_> = parsed.tags.event_ids().copied().collect();
        state.events.retain(|e| e.pubkey != parsed.pubkey || !doomed.contains(&e.id));
    }
    if parsed.kind.is_replaceable() {
        state.events.retain(|e| (e.pubkey, e.kind) != (parsed.pubkey, parsed.kind));
    }
    if !known {
        state.events.push(parsed);
    }
    ok(&event["id"], "")
}

/// Stored events and `EOSE`.
fn stored(state: &Mutex<State>, request: &Value) -> Vec<Value> {
    let state = lock(state);
    let mut answers = Vec::new();
    for filter in request.as_array().into_iter().flatten().skip(2) {
        let Ok(filter) = Filter::from_json(filter.to_string()) else { continue };
        let options = MatchEventOptions::new();
        let matching = state.events.iter().filter(|event| filter.match_event(event, options));
        let mut matching: Vec<_> = matching.collect();
        matching.sort_by_key(|event| std::cmp::Reverse((event.created_at, event.id)));
        let cap = if let Fault::AtMost(n) = state.fault { n } else { 500 };
        matching.truncate(filter.limit.unwrap_or(cap).min(cap));
        if state.fault == Fault::Reorders {
            // By id, which is as good as by chance, and each twice.
            matching.sort_by_key(|event| event.id);
            matching = [&matching[..], &matching[..]].concat();
        }
        answers.extend(matching.into_iter().map(|event| {
            json!([
                "EVENT",
                request[1],
                serde_json::from_str::<Value>(&event.as_json()).unwrap_or_default()
            ])
        }));
    }
    answers.push(json!(["EOSE", request[1]]));
    answers
}
