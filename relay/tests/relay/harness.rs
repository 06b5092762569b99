//! A relay on a free port and a client that speaks to it, for all tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hashpit_relay::store::Engine;
use hashpit_relay::{Clock, Config, Error, Gauges, Relay};
use nostr::{Event, EventBuilder, JsonUtil, Keys, Kind, Tag, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::CancellationToken;

/// Where the tests' clock stands at first.
pub(crate) const NOW: u64 = 1_700_000_000;
/// No answer takes this long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running relay.
pub(crate) struct TestRelay {
    pub(crate) addr: SocketAddr,
    pub(crate) gauges: Gauges,
    pub(crate) now: Arc<AtomicU64>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), Error>>,
    /// Kept until the relay is gone.
    dir: Option<TempDir>,
}

impl TestRelay {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A relay whose settings `change` has changed.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        Self::open(config, tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn open(config: Config, dir: TempDir) -> Self {
        let now = Arc::new(AtomicU64::new(NOW));
        let clock = Arc::clone(&now);
        let clock = Clock::from_fn(move || Timestamp::from_secs(clock.load(Ordering::SeqCst)));
        let relay = Relay::open(config, dir.path(), clock).unwrap();
        let gauges = relay.gauges();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(relay.serve(listener, stop.clone()));
        Self { addr, gauges, now, stop, serving, dir: Some(dir) }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.addr).await
    }

    /// Stops it and hands back its folder.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        (&mut self.serving).await.unwrap().unwrap();
        self.dir.take().unwrap()
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A client with one connection.
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) challenge: String,
    pub(crate) addr: SocketAddr,
}

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let (socket, _) = connect_async(format!("ws://{addr}/")).await.unwrap();
        let mut client = Self { socket, challenge: String::new(), addr };
        let auth = client.recv().await;
        assert_eq!(auth[0], "AUTH", "the challenge comes on connect: {auth}");
        client.challenge = auth[1].as_str().unwrap().to_owned();
        client
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message; `null` once the relay has closed.
    pub(crate) async fn recv(&mut self) -> Value {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            match next.expect("the relay answers in time") {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Value::Null,
                Some(Ok(other)) => panic!("unexpected frame {other:?}"),
            }
        }
    }

    /// Publishes and gives back whether it was accepted, and the reason.
    pub(crate) async fn publish(&mut self, event: &Event) -> (bool, String) {
        self.send(json!(["EVENT", as_value(event)])).await;
        self.ok_of(event).await
    }

    /// Publishes what must be accepted.
    pub(crate) async fn store(&mut self, event: &Event) {
        assert_eq!(self.publish(event).await, (true, String::new()));
    }

    /// Waits for the `OK` of an event.
    pub(crate) async fn ok_of(&mut self, event: &Event) -> (bool, String) {
        let ok = self.recv().await;
        assert_eq!((&ok[0], &ok[1]), (&json!("OK"), &json!(event.id.to_hex())), "{ok}");
        (ok[2].as_bool().unwrap(), ok[3].as_str().unwrap().to_owned())
    }

    pub(crate) async fn req(&mut self, id: &str, filters: &[Value]) {
        let mut message = vec![json!("REQ"), json!(id)];
        message.extend_from_slice(filters);
        self.send(Value::Array(message)).await;
    }

    /// What is stored for `filters`, in the relay's order; the subscription is
    /// closed after it.
    pub(crate) async fn query(&mut self, filters: &[Value]) -> Vec<Event> {
        self.req("query", filters).await;
        let events = self.until_eose("query").await;
        self.send(json!(["CLOSE", "query"])).await;
        events
    }

    /// The ids that [`Self::query`] gives.
    pub(crate) async fn ids(&mut self, filter: Value) -> Vec<String> {
        self.query(&[filter]).await.iter().map(|event| event.id.to_hex()).collect()
    }

    /// The events of a subscription up to EOSE.
    pub(crate) async fn until_eose(&mut self, id: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let message = self.recv().await;
            assert_eq!(message[1], id, "{message}");
            match message[0].as_str() {
                Some("EVENT") => events.push(Event::from_json(message[2].to_string()).unwrap()),
                Some("EOSE") => return events,
                _ => panic!("unexpected {message}"),
            }
        }
    }

    /// The next message must be this event for this subscription.
    pub(crate) async fn expect_event(&mut self, id: &str, event: &Event) {
        assert_eq!(self.recv().await, json!(["EVENT", id, as_value(event)]));
    }

    /// The reason of the `CLOSED` that must come next.
    pub(crate) async fn closed(&mut self, id: &str) -> String {
        let closed = self.recv().await;
        assert_eq!((&closed[0], &closed[1]), (&json!("CLOSED"), &json!(id)), "{closed}");
        closed[2].as_str().unwrap().to_owned()
    }

    /// Nothing else was waiting: the answer to a void question comes next.
    pub(crate) async fn expect_nothing(&mut self) {
        self.req("nothing", &[json!({"kinds": []})]).await;
        assert_eq!(self.recv().await, json!(["EOSE", "nothing"]));
    }

    /// Proves `keys` (NIP-42).
    pub(crate) async fn authenticate(&mut self, keys: &Keys) {
        let url = format!("ws://{}/", self.addr);
        let answer = self.auth_answer(keys, &url);
        self.send(json!(["AUTH", as_value(&answer)])).await;
        assert_eq!(self.ok_of(&answer).await, (true, String::new()));
    }

    pub(crate) fn auth_answer(&self, keys: &Keys, relay: &str) -> Event {
        let tags = [tag(&["challenge", &self.challenge]), tag(&["relay", relay])];
        event(keys, 22242, NOW, tags, "")
    }
}

pub(crate) fn as_value(event: &Event) -> Value {
    serde_json::from_str(&event.as_json()).unwrap()
}

pub(crate) fn tag(items: &[&str]) -> Tag {
    Tag::parse(items.iter().copied()).unwrap()
}

pub(crate) fn event(
    keys: &Keys,
    kind: u16,
    created_at: u64,
    tags: impl IntoIterator<Item = Tag>,
    content: &str,
) -> Event {
    EventBuilder::new(Kind::from(kind), content)
        .tags(tags)
        .allow_self_tagging()
        .custom_created_at(Timestamp::from_secs(created_at))
        .sign_with_keys(keys)
        .unwrap()
}

/// A plain note.
pub(crate) fn note(content: &str) -> Event {
    event(&Keys::generate(), 1, NOW, [], content)
}

pub(crate) const ENGINES: [Engine; 2] = [Engine::Fjall, Engine::Sled];
