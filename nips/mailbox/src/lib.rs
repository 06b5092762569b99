//! Relays as a mailbox, for every part that talks through them: publish until
//! a relay has stored it, and a subscription that outlives connections.
//!
//! A thin layer over nostr-sdk, which reconnects (with jitter), authenticates
//! (NIP-42) and checks signatures. Two things are added:
//!
//! - A subscription is made anew on *every* connection (the SDK leaves it out when
//!   a relay returns within the second), and again if the relay closes it because
//!   it wants authentication first (the SDK asks again only if that comes neither
//!   too early nor too late).
//! - A publish counts only when some relay said OK.
//! - What a relay has stored is read to the end ([`Mailbox::stored`]).

mod pages;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hashpit_nips::eh02::{self, MessageError};
use nostr_sdk::prelude::{
    MachineReadablePrefix, Monitor, MonitorNotification, RelayPoolNotification,
};
use nostr_sdk::{
    Client, ClientMessage, Event, EventId, Filter, Keys, NostrSigner, PublicKey, RelayMessage,
    RelayOptions, RelayStatus, RelayUrl, SubscribeOptions, SubscriptionId, Timestamp,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, warn};

pub use pages::Stored;

/// How long relays keep an encrypted message (NIP-40). A side that was away for
/// longer asks for what it missed.
pub const MESSAGE_LIFETIME: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// First pause before a lost relay is tried again; the SDK lengthens and
/// jitters it.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// First and longest pause before a subscription that a relay has closed is made
/// again. Authentication takes less than the first.
const RESUBSCRIBE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Status changes that wait to be read; one relay makes a handful an hour.
const STATUS_QUEUE: usize = 256;

/// Why a mailbox could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// The SDK refused.
    #[error("relay: {0}")]
    Client(#[from] nostr_sdk::client::Error),
    /// The relay pool refused.
    #[error("relay: {0}")]
    Pool(#[from] nostr_sdk::pool::pool::Error),
    /// No relay stored the event.
    #[error("no relay stored the event: {0}")]
    NotStored(String),
    /// A relay did not tell what it has.
    #[error("{0} did not tell in time what it has stored; is it up?")]
    Silent(RelayUrl),
    /// A relay told what it was not asked for.
    #[error("{0} tells other events than it is asked for; use another relay")]
    Unasked(RelayUrl),
    /// The message could not be sealed.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Connections to some relays under one key.
#[derive(Debug, Clone)]
pub struct Mailbox {
    client: Client,
    signer: Arc<dyn NostrSigner>,
    public_key: PublicKey,
}

/// What became of an event at a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It has the event.
    Stored,
    /// It does not want it; its reason, mostly with a prefix of NIP-01.
    Refused(String),
    /// It gave no answer, or none to this event; why.
    Unanswered(String),
}

/// What comes in through a subscription.
#[derive(Debug)]
pub enum Arrival {
    /// A relay is connected (again) and the subscription stands on it.
    Connected(RelayUrl),
    /// An event that matches, its signature checked, mostly once.
    Event(Box<Event>),
}

impl Mailbox {
    /// Starts to connect to `relays`, and keeps at it; does not wait.
    pub async fn connect(keys: Keys, relays: &[RelayUrl]) -> Result<Self, MailboxError> {
        let public_key = keys.public_key();
        Self::connect_as(Arc::new(keys), public_key, relays).await
    }

    /// As [`Mailbox::connect`], with a key that somebody else may hold (NIP-46).
    pub async fn connect_as(
        signer: Arc<dyn NostrSigner>,
        public_key: PublicKey,
        relays: &[RelayUrl],
    ) -> Result<Self, MailboxError> {
        let monitor = Monitor::new(STATUS_QUEUE);
        let client = Client::builder().signer(signer.clone()).monitor(monitor).build();
        for relay in relays {
            let options = RelayOptions::new().retry_interval(RETRY_INTERVAL);
            client.pool().add_relay(relay, options).await?;
        }
        Ok(Self { client, signer, public_key })
    }

    /// Subscribes on every relay, now and whenever it connects.
    pub async fn subscribe(&self, filters: impl Into<Vec<Filter>>) -> Result<Inbox, MailboxError> {
        let monitor = self.client.monitor().expect("built with a monitor").subscribe();
        let inbox = Inbox {
            client: self.client.clone(),
            id: SubscriptionId::generate(),
            filters: filters.into(),
            notifications: self.client.notifications(),
            monitor,
            closed: HashSet::new(),
            told: HashSet::new(),
            retry_at: Instant::now(),
            pause: RESUBSCRIBE.0,
            missed: 0,
        };
        // Those that connect from here on are noticed by the monitor.
        for (url, relay) in self.client.pool().all_relays().await {
            if relay.is_connected() {
                inbox.subscribe(&url).await;
            }
        }
        self.client.connect().await;
        Ok(inbox)
    }

    /// What the relays have stored of what matches, and this mailbox has not seen
    /// before. Waits for the relays at most for `patience`; how many of them told
    /// all.
    pub async fn fetch(
        &self,
        filter: Filter,
        patience: Duration,
    ) -> Result<(Vec<Event>, usize), MailboxError> {
        let relays = self.client.pool().all_relays().await.len();
        let mut inbox = self.subscribe(filter).await?;
        let mut events = HashMap::new();
        let deadline = Instant::now() + patience;
        while inbox.told.len() < relays {
            let Ok(Some(arrival)) = timeout_at(deadline, inbox.step()).await else { break };
            if let Some(Arrival::Event(event)) = arrival {
                events.insert(event.id, *event);
            }
        }
        self.client.unsubscribe(&inbox.id).await;
        Ok((events.into_values().collect(), inbox.told.len()))
    }

    /// Waits, for at most `patience`, until every relay is connected; how many
    /// are.
    pub async fn connected(&self, patience: Duration) -> usize {
        self.client.connect().await;
        self.client.wait_for_connection(patience).await;
        let relays = self.client.pool().all_relays().await;
        relays.values().filter(|relay| relay.is_connected()).count()
    }

    /// The relays that are connected now.
    pub async fn reached(&self) -> Vec<RelayUrl> {
        let relays = self.client.pool().all_relays().await;
        relays.into_iter().filter(|(_, it)| it.is_connected()).map(|(url, _)| url).collect()
    }

    /// Publishes to every relay; returns once at least one has stored it.
    pub async fn publish(&self, event: &Event) -> Result<(), MailboxError> {
        let output = self.client.send_event(event).await?;
        if output.success.is_empty() {
            let reasons: Vec<_> =
                output.failed.iter().map(|(relay, why)| format!("{relay}: {why}")).collect();
            return Err(MailboxError::NotStored(reasons.join("; ")));
        }
        Ok(())
    }

    /// Publishes to every relay; what each made of it.
    pub async fn deliver(
        &self,
        event: &Event,
    ) -> Result<HashMap<RelayUrl, Delivery>, MailboxError> {
        let output = self.client.send_event(event).await?;
        let stored = output.success.into_iter().map(|relay| (relay, Delivery::Stored));
        let failed = output.failed.into_iter().map(|(relay, why)| (relay, delivery(why)));
        Ok(stored.chain(failed).collect())
    }

    /// Hands an event to every relay that is connected, after those handed over
    /// before, and waits for no answer.
    pub async fn cast(&self, event: &Event) -> Result<(), MailboxError> {
        let relays = self.reached().await;
        if !relays.is_empty() {
            let message = ClientMessage::event(event.clone());
            self.client.pool().send_msg_to(relays, message).await?;
        }
        Ok(())
    }

    /// Seals an EH-02 message and publishes it.
    pub async fn send<M: Serialize>(
        &self,
        to: &PublicKey,
        message: &M,
    ) -> Result<EventId, MailboxError> {
        let now = Timestamp::now();
        let expiration = now + MESSAGE_LIFETIME;
        let plain = serde_json::to_string(message).map_err(MessageError::from)?;
        let cipher = self.signer.nip44_encrypt(to, &plain).await.map_err(MessageError::from)?;
        let unsigned = eh02::envelope(cipher, self.public_key, to, now, expiration);
        let event = self.signer.sign_event(unsigned).await.map_err(MessageError::from)?;
        self.publish(&event).await?;
        Ok(event.id)
    }

    /// Verifies, decrypts and parses an EH-02 message to us.
    pub async fn open<M: DeserializeOwned>(&self, event: &Event) -> Result<M, MessageError> {
        eh02::check(event, &self.public_key)?;
        let plain = self.signer.nip44_decrypt(&event.pubkey, &event.content).await?;
        Ok(serde_json::from_str(&plain)?)
    }

    /// The key that it speaks as.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.client.shutdown().await;
    }
}

/// The SDK gives a relay's own words, or its own for what went wrong before. Some
/// relays' words have no prefix.
fn delivery(why: String) -> Delivery {
    use nostr_sdk::pool::relay::Error;
    let before = [
        Error::Timeout,
        Error::NotReady,
        Error::NotConnected,
        Error::Sleeping,
        Error::Banned,
        Error::TerminationRequest,
        Error::ReceivedShutdown,
        Error::AuthenticationFailed,
        Error::PrematureExit,
    ];
    match MachineReadablePrefix::parse(&why) {
        Some(MachineReadablePrefix::Duplicate) => Delivery::Stored,
        Some(_) => Delivery::Refused(why),
        None if why.starts_with("can't send message") => Delivery::Unanswered(why),
        None if before.iter().any(|it| it.to_string() == why) => Delivery::Unanswered(why),
        None => Delivery::Refused(why),
    }
}

/// A subscription.
#[derive(Debug)]
pub struct Inbox {
    client: Client,
    id: SubscriptionId,
    filters: Vec<Filter>,
    notifications: Receiver<RelayPoolNotification>,
    monitor: Receiver<MonitorNotification>,
    /// Relays that closed the subscription until we have authenticated.
    closed: HashSet<RelayUrl>,
    /// Relays that have sent all that they had stored.
    told: HashSet<RelayUrl>,
    /// When to ask them again, and how long to wait after that.
    retry_at: Instant,
    pause: Duration,
    missed: u64,
}

impl Inbox {
    /// How many notifications were lost since this was last asked, because the
    /// reader fell behind; there may have been events among them.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// The next arrival; `None` once the mailbox is closed.
    ///
    /// Cancel-safe. A reader that falls thousands of events behind loses the
    /// oldest; every protocol here can ask again.
    pub async fn next(&mut self) -> Option<Arrival> {
        loop {
            if let Some(arrival) = self.step().await? {
                return Some(arrival);
            }
        }
    }

    /// Waits for one thing to happen; `None` once the mailbox is closed.
    async fn step(&mut self) -> Option<Option<Arrival>> {
        tokio::select! {
            () = sleep_until(self.retry_at), if !self.closed.is_empty() => self.ask_again().await,
            status = self.monitor.recv() => match status {
                Ok(MonitorNotification::StatusChanged { relay_url, status }) => {
                    if status == RelayStatus::Connected {
                        self.pause = RESUBSCRIBE.0;
                        self.subscribe(&relay_url).await;
                        return Some(Some(Arrival::Connected(relay_url)));
                    }
                    debug!(relay = %relay_url, %status, "relay");
                }
                Err(RecvError::Lagged(missed)) => debug!(missed, "missed relay statuses"),
                Err(RecvError::Closed) => return None,
            },
            notification = self.notifications.recv() => match notification {
                Ok(notification) => return self.sort(notification),
                Err(RecvError::Lagged(missed)) => {
                    self.missed += missed;
                    warn!(missed, "fell behind; events lost");
                }
                Err(RecvError::Closed) => return None,
            },
        }
        Some(None)
    }

    /// `None` at shutdown, else what the notification means to the reader.
    fn sort(&mut self, notification: RelayPoolNotification) -> Option<Option<Arrival>> {
        match notification {
            RelayPoolNotification::Event { subscription_id, event, .. } => {
                Some((subscription_id == self.id).then_some(Arrival::Event(event)))
            }
            RelayPoolNotification::Message {
                relay_url,
                message: RelayMessage::Closed { subscription_id, message },
            } if *subscription_id == self.id => {
                if !message.starts_with("auth-required") {
                    warn!(relay = %relay_url, reason = %message, "relay closed our subscription");
                }
                self.retry_at = Instant::now() + self.pause;
                self.closed.insert(relay_url);
                Some(None)
            }
            RelayPoolNotification::Message {
                relay_url,
                message: RelayMessage::Ok { status: false, message, .. },
            } if self.closed.contains(&relay_url) => {
                warn!(relay = %relay_url, reason = %message, "relay refused our authentication");
                Some(None)
            }
            RelayPoolNotification::Message {
                relay_url,
                message: RelayMessage::EndOfStoredEvents(subscription_id),
            } if *subscription_id == self.id => {
                self.told.insert(relay_url);
                Some(None)
            }
            RelayPoolNotification::Message { .. } => Some(None),
            RelayPoolNotification::Shutdown => None,
        }
    }

    async fn ask_again(&mut self) {
        self.pause = (self.pause * 2).min(RESUBSCRIBE.1);
        for relay in std::mem::take(&mut self.closed) {
            self.subscribe(&relay).await;
        }
    }

    async fn subscribe(&self, relay: &RelayUrl) {
        let id = self.id.clone();
        let (filters, options) = (self.filters.clone(), SubscribeOptions::default());
        let pool = self.client.pool();
        let subscribed = pool.subscribe_with_id_to([relay], id, filters, options).await;
        if let Err(error) = subscribed {
            warn!(%relay, %error, "could not subscribe");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_answers_without_a_prefix_has_refused() {
        let said = |why: &str| delivery(why.to_owned());
        assert_eq!(said("duplicate: have it"), Delivery::Stored);
        for why in ["blocked: no", "kind 1059 is not allowed", ""] {
            assert_eq!(said(why), Delivery::Refused(why.to_owned()));
        }
        for why in ["timeout", "relay not connected", "can't send message to the 'nostr' channel"] {
            assert_eq!(said(why), Delivery::Unanswered(why.to_owned()));
        }
    }
}
