//! A relay killed in the middle of its work loses nothing that it said OK to.
//!
//! The relay runs in a child process: this test binary again, told by an
//! environment variable to be the relay. It is killed with SIGKILL while events
//! are on their way, then its store is opened and compared.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use futures_util::{SinkExt, StreamExt};
use hashpit_relay::store::{Engine, EventStore};
use hashpit_relay::{Clock, Config};
use nostr::{Event, EventId, Keys};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::harness::{Client, ENGINES, NOW, as_value, event, tag};

const DIR: &str = "HASHPIT_TEST_CRASH_DIR";
const ENGINE: &str = "HASHPIT_TEST_CRASH_ENGINE";
const ROUNDS: usize = 4;

/// Not a test of its own: what the child process runs.
#[test]
fn child_relay() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let sled = std::env::var(ENGINE).unwrap() == "Sled";
    let store = if sled { Engine::Sled } else { Engine::Fjall };
    let config = Config { store, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("\nADDR {}", listener.local_addr().unwrap());
        let never = CancellationToken::new();
        hashpit_relay::run(config, Path::new(&dir), Clock::system(), listener, never)
            .await
            .unwrap();
    });
}

struct ChildRelay {
    process: Child,
    addr: SocketAddr,
}

impl ChildRelay {
    fn start(engine: Engine, dir: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child_relay", "--exact", "--nocapture"])
            .env(DIR, dir)
            .env(ENGINE, format!("{engine:?}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let addr = lines.find_map(|line| line.unwrap().strip_prefix("ADDR ")?.parse().ok());
        Self { process, addr: addr.expect("the child tells its address") }
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for ChildRelay {
    fn drop(&mut self) {
        // Killed already, unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Mostly notes; every fifth event replaces the one before it.
fn events(keys: &Keys, rng: &mut StdRng, count: usize) -> Vec<Event> {
    let make = |n: usize| {
        let kind = if n.is_multiple_of(5) { 10_002 } else { 1 };
        let tags = [tag(&["t", "crash"]), tag(&["r", &rng.random::<u64>().to_string()])];
        event(keys, kind, NOW + n as u64, tags, &"x".repeat(rng.random_range(0..600)))
    };
    (0..count).map(make).collect()
}

/// Publishes without waiting, and kills the relay after `kill_after` answers.
/// Gives back what was acknowledged.
async fn publish_and_kill(
    relay: &mut ChildRelay,
    events: &[Event],
    kill_after: usize,
) -> Vec<EventId> {
    let (mut sink, mut stream) = Client::connect(relay.addr).await.socket.split();
    let texts: Vec<_> =
        events.iter().map(|event| json!(["EVENT", as_value(event)]).to_string()).collect();
    let sender = tokio::spawn(async move {
        for text in texts {
            // The relay dies in the middle of this; that is the test.
            if sink.send(Message::text(text)).await.is_err() {
                return;
            }
        }
    });
    let mut acknowledged = Vec::new();
    while let Some(Ok(message)) = stream.next().await {
        let Ok(text) = message.into_text() else { continue };
        let Ok(ok) = serde_json::from_str::<Value>(&text) else { continue };
        if ok[0] == "OK" && ok[2] == true {
            acknowledged.push(EventId::from_hex(ok[1].as_str().unwrap()).unwrap());
        }
        if acknowledged.len() == kill_after {
            relay.kill();
        }
    }
    sender.await.unwrap();
    acknowledged
}

#[tokio::test]
async fn a_killed_relay_has_everything_that_it_acknowledged() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for engine in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let mut acknowledged = Vec::new();
        for round in 0..ROUNDS {
            let events = events(&Keys::generate(), &mut rng, 600);
            let notes: Vec<_> = events
                .iter()
                .filter(|event| event.kind.as_u16() == 1)
                .map(|event| event.id)
                .collect();
            let mut relay = ChildRelay::start(engine, dir.path());
            let kill_after = rng.random_range(1..500);
            let acked = publish_and_kill(&mut relay, &events, kill_after).await;
            assert!(acked.len() >= kill_after, "{engine:?} round {round}: {}", acked.len());
            acknowledged.extend(acked.into_iter().filter(|id| notes.contains(id)));

            let reader = EventStore::open(engine, dir.path(), 0).unwrap().reader();
            let lost = acknowledged.iter().filter(|id| reader.get(id).unwrap().is_none()).count();
            assert_eq!(lost, 0, "{engine:?} round {round} of seed {seed}");
            let audit = reader.audit().unwrap();
            assert_eq!(audit.mismatches, 0, "{engine:?} round {round} of seed {seed}");
        }
    }
}
