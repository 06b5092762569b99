//! Live delivery: from a durable event to every connection that asked for it.
//!
//! [`run`] owns the live subscriptions on a thread of its own, so a wide fan-out
//! delays no commit. It never waits for a connection: one that does not keep up
//! is told to close, because it would miss events silently otherwise.

mod index;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::index::{LiveIndex, SubscriptionKey};
use crate::event::Event;
use crate::filter::Filter;
use crate::visibility::Viewer;

/// Commands that wait for the hub. When full, connections and the writer wait,
/// which slows publishing down to what fan-out can do.
const QUEUE: usize = 1_024;

/// The sequence of an event that is not stored: after all others.
pub(crate) const EPHEMERAL: u64 = u64::MAX;

/// An event on its way to subscribers.
pub(crate) struct Published {
    pub(crate) event: Event,
    pub(crate) sequence: u64,
    json: OnceLock<String>,
}

impl Published {
    pub(crate) fn new(event: Event, sequence: u64) -> Arc<Self> {
        Arc::new(Self { event, sequence, json: OnceLock::new() })
    }

    /// Its JSON, written once for all subscribers.
    pub(crate) fn json(&self) -> &str {
        self.json.get_or_init(|| self.event.to_json())
    }
}

/// An event for one of a connection's subscriptions.
pub(crate) struct Delivery {
    pub(crate) subscription: u64,
    pub(crate) published: Arc<Published>,
}

enum Command {
    Join { session: u64, mailbox: mpsc::Sender<Delivery>, lagged: CancellationToken },
    Leave { session: u64 },
    Authenticated { session: u64, viewer: Viewer },
    Subscribe { key: SubscriptionKey, filters: Vec<Filter> },
    Unsubscribe { key: SubscriptionKey },
    Publish(Vec<Arc<Published>>),
}

/// Speaks to the hub. It stops when the last handle is gone.
#[derive(Clone)]
pub(crate) struct Hub(mpsc::Sender<Command>);

impl Hub {
    /// A handle, and the hub to [`run`](State::run).
    pub(crate) fn new() -> (Self, State) {
        let (sender, commands) = mpsc::channel(QUEUE);
        (Self(sender), State { commands, sessions: HashMap::new(), index: LiveIndex::default() })
    }

    /// Adds a connection. `lagged` is cancelled when its `mailbox` is full.
    pub(crate) async fn join(
        &self,
        session: u64,
        mailbox: mpsc::Sender<Delivery>,
        lagged: CancellationToken,
    ) {
        self.send(Command::Join { session, mailbox, lagged }).await;
    }

    pub(crate) async fn leave(&self, session: u64) {
        self.send(Command::Leave { session }).await;
    }

    pub(crate) async fn authenticated(&self, session: u64, viewer: Viewer) {
        self.send(Command::Authenticated { session, viewer }).await;
    }

    pub(crate) async fn subscribe(&self, session: u64, number: u64, filters: Vec<Filter>) {
        let key = SubscriptionKey { session, number };
        self.send(Command::Subscribe { key, filters }).await;
    }

    pub(crate) async fn unsubscribe(&self, session: u64, number: u64) {
        self.send(Command::Unsubscribe { key: SubscriptionKey { session, number } }).await;
    }

    /// Publishes events that are durable (or ephemeral); for the writer's thread.
    pub(crate) fn publish(&self, events: Vec<Arc<Published>>) {
        // The hub is gone only while the relay stops, with nobody to deliver to.
        let _ = self.0.blocking_send(Command::Publish(events));
    }

    async fn send(&self, command: Command) {
        // As above.
        let _ = self.0.send(command).await;
    }
}

struct Session {
    mailbox: mpsc::Sender<Delivery>,
    lagged: CancellationToken,
    viewer: Viewer,
    subscriptions: Vec<u64>,
}

/// The hub's own state.
pub(crate) struct State {
    commands: mpsc::Receiver<Command>,
    sessions: HashMap<u64, Session>,
    index: LiveIndex,
}

impl State {
    /// Serves until the last handle is gone.
    pub(crate) fn run(mut self) {
        while let Some(command) = self.commands.blocking_recv() {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Join { session, mailbox, lagged } => {
                let viewer = Viewer::default();
                let joined = Session { mailbox, lagged, viewer, subscriptions: Vec::new() };
                self.sessions.insert(session, joined);
            }
            Command::Leave { session } => self.forget(session),
            Command::Authenticated { session, viewer } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.viewer = viewer;
                }
            }
            Command::Subscribe { key, filters } => {
                if let Some(session) = self.sessions.get_mut(&key.session) {
                    session.subscriptions.push(key.number);
                    self.index.insert(key, filters);
                }
            }
            Command::Unsubscribe { key } => {
                if let Some(session) = self.sessions.get_mut(&key.session) {
                    session.subscriptions.retain(|number| *number != key.number);
                    self.index.remove(key);
                }
            }
            Command::Publish(events) => events.iter().for_each(|event| self.deliver(event)),
        }
    }

    fn deliver(&mut self, published: &Arc<Published>) {
        for key in self.index.matching(&published.event) {
            let Some(session) = self.sessions.get(&key.session) else { continue };
            if !session.viewer.may_see(&published.event) {
                continue;
            }
            let published = Arc::clone(published);
            let delivery = Delivery { subscription: key.number, published };
            if session.mailbox.try_send(delivery).is_err() {
                session.lagged.cancel();
                self.forget(key.session);
            }
        }
    }

    fn forget(&mut self, session: u64) {
        let Some(gone) = self.sessions.remove(&session) else { return };
        for number in gone.subscriptions {
            self.index.remove(SubscriptionKey { session, number });
        }
    }
}

#[cfg(test)]
mod tests;
