//! The relay as a whole: opening, serving, and stopping in order.

use std::io;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::clock::Clock;
use crate::config::Config;
use crate::http;
use crate::listener::{Connections, Gate};
use crate::live::Hub;
use crate::session::Shared;
use crate::store::{self, EventStore, StoreError};
use crate::threads::Threads;
use crate::verify::{self, Verifier};
use crate::writer::Writer;

/// Why the relay could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refused a thread or the socket.
    #[error("the system refused: {0}")]
    Io(#[from] io::Error),
    /// A thread died, which is a bug; what was acknowledged is safe.
    #[error("the relay's thread {0} died; the log says why")]
    Thread(&'static str),
    /// Stopping took too long; what was acknowledged is safe.
    #[error("the relay did not stop within {0} s; what was left is abandoned")]
    Deadline(u64),
}

/// A relay whose store is open.
pub struct Relay {
    config: Config,
    clock: Clock,
    store: EventStore,
    connections: Arc<Connections>,
}

/// Numbers for those who watch a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Events stored now.
    pub events_stored: u64,
    /// Connections open now.
    pub connections: usize,
}

/// Tells [`Stats`] at any time, while the relay serves and after. Cheap to clone.
#[derive(Clone)]
pub struct Gauges {
    store: Arc<store::Counters>,
    connections: Arc<Connections>,
}

impl Gauges {
    /// The numbers now.
    pub fn stats(&self) -> Stats {
        Stats { events_stored: self.store.events(), connections: self.connections.total() }
    }
}

/// Opens the relay in `dir` and serves on `listener` until `shutdown`.
pub async fn run(
    config: Config,
    dir: &Path,
    clock: Clock,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    Relay::open(config, dir, clock)?.serve(listener, shutdown).await
}

impl Relay {
    /// Opens the store in `dir`, creating it if there is none. A damaged one is
    /// an error that says what to do.
    pub fn open(config: Config, dir: &Path, clock: Clock) -> Result<Self, Error> {
        let store = EventStore::open(config.store, dir, config.limits.disk_reserve_bytes)?;
        let connections = Connections::new(&config.limits);
        tracing::info!(events = store.reader().events(), engine = ?config.store, "store opened");
        Ok(Self { config, clock, store, connections })
    }

    /// A handle that tells how many events and connections there are.
    pub fn gauges(&self) -> Gauges {
        let store = self.store.reader().counters();
        Gauges { store, connections: Arc::clone(&self.connections) }
    }

    /// Serves on `listener` until `shutdown`, then stops in order: no new
    /// connections, sessions closed once their events are answered, the writer
    /// drained, the store closed.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let deadline = self.config.limits.stop_timeout_seconds;
        let gate = Gate { listener, connections: Arc::clone(&self.connections) };
        let mut threads = Threads::default();
        let stop = shutdown.child_token();
        // Whoever drops this future stops the relay too.
        let _guard = stop.clone().drop_guard();
        let shared = self.start(&mut threads, stop.clone())?;
        let sessions = TaskTracker::new();
        let app = http::router(&shared, sessions.clone());
        let server = axum::serve(gate, app).with_graceful_shutdown(stop.clone().cancelled_owned());
        let server = AbortOnDropHandle::new(tokio::spawn(server.into_future()));

        let died = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            name = threads.next_ended() => name,
        };
        stop.cancel();
        sessions.close();
        let stopped = timeout(Duration::from_secs(deadline), async {
            sessions.wait().await;
            drop((shared, server));
            threads.all_ended().await;
        });
        let stopped = stopped.await;
        match (died, stopped) {
            (Some(name), _) => Err(Error::Thread(name)),
            (None, Err(_)) => Err(Error::Deadline(deadline)),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Starts the threads. Each ends when those before it have: sessions hold
    /// the queue of the verifiers, they the writer's, it the hub's.
    fn start(self, threads: &mut Threads, stop: CancellationToken) -> Result<Arc<Shared>, Error> {
        let limits = self.config.limits.clone();
        let queue = limits.ingest_queue.max(1);
        let (hub, hub_state) = Hub::new();
        // Both bounded: when full, verifiers wait for the writer, sessions for
        // the verifiers, and clients for their sessions.
        let (jobs, pending) = mpsc::channel(queue);
        let (checked, inbox) = sync_channel(queue);
        let reader = self.store.reader();
        let clock = self.clock.clone();
        let writer = Writer { store: self.store, inbox, hub: hub.clone(), clock, failing: false };
        threads.spawn("relay-live", move || hub_state.run())?;
        threads.spawn("relay-writer", move || writer.run())?;
        let pending = Arc::new(Mutex::new(pending));
        for _ in 0..verify::THREADS {
            let (jobs, writer) = (Arc::clone(&pending), checked.clone());
            let (clock, limits) = (self.clock.clone(), limits.clone());
            let verifier = Verifier { jobs, writer, clock, limits };
            threads.spawn("relay-verify", move || verifier.run())?;
        }
        Ok(Arc::new(Shared {
            query_permits: Arc::new(Semaphore::new(limits.max_running_queries.max(1))),
            config: self.config,
            clock: self.clock,
            reader,
            jobs,
            hub,
            stop,
        }))
    }
}
