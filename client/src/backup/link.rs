//! One connection to one relay, spoken to in turns: NIP-01, and NIP-42 where the
//! relay insists.
//!
//! nostr-sdk's own fetch ends the same way whether a relay has sent everything
//! or has hung up in the middle. A backup must know which.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_wsocket::{ConnectionMode, Message, WebSocket};
use futures_util::{SinkExt, StreamExt};
use nostr_sdk::{
    ClientMessage, Event, EventBuilder, EventId, Filter, JsonUtil, NostrSigner, RelayMessage,
    RelayUrl, SubscriptionId,
};
use tokio::time::timeout;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for a relay to take what we send, and between two messages of it.
const ANSWER: Duration = Duration::from_secs(10);
/// Most events that one query may bring: relays send 500 or 1,000.
const MAX_EVENTS: usize = 10_000;

/// Why a relay could not be used.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no answer in {0:?}")]
    Silent(Duration),
    #[error("refused: {0}")]
    Refused(String),
    #[error("cannot sign the authentication that it wants: {0}")]
    Signer(String),
}

/// What a relay said to an event: `Err` with its reason.
pub(super) type Verdicts = BTreeMap<EventId, Result<(), String>>;

pub(super) struct Link {
    url: RelayUrl,
    signer: Arc<dyn NostrSigner>,
    socket: WebSocket,
    challenge: Option<String>,
    authenticated: bool,
    queries: u64,
}

impl Link {
    pub(super) async fn connect(
        url: &RelayUrl,
        signer: Arc<dyn NostrSigner>,
    ) -> Result<Self, LinkError> {
        let address = url.clone().into();
        let socket = WebSocket::connect(&address, &ConnectionMode::Direct, CONNECT)
            .await
            .map_err(|error| LinkError::Connect(error.to_string()))?;
        let (url, challenge) = (url.clone(), None);
        Ok(Self { url, signer, socket, challenge, authenticated: false, queries: 0 })
    }

    /// Publishes all of `events` before it waits for the first verdict. What the
    /// relay said before an error stands in `verdicts`.
    pub(super) async fn publish(
        &mut self,
        events: &[&Event],
        verdicts: &mut Verdicts,
    ) -> Result<(), LinkError> {
        let wants_auth = self.publish_once(events, verdicts).await?;
        if wants_auth.is_empty() || self.authenticated {
            return Ok(());
        }
        self.authenticate().await?;
        let again = events.iter().filter(|event| wants_auth.contains(&event.id));
        let again: Vec<_> = again.copied().collect();
        self.publish_once(&again, verdicts).await?;
        Ok(())
    }

    /// The events that want authentication first.
    async fn publish_once(
        &mut self,
        events: &[&Event],
        verdicts: &mut Verdicts,
    ) -> Result<BTreeSet<EventId>, LinkError> {
        let (mut open, mut wants_auth) = (BTreeSet::new(), BTreeSet::new());
        for event in events {
            self.send(ClientMessage::Event(Cow::Borrowed(event))).await?;
            open.insert(event.id);
        }
        while !open.is_empty() {
            let RelayMessage::Ok { event_id, status, message } = self.receive().await? else {
                continue;
            };
            if !open.remove(&event_id) {
                continue;
            }
            if !status && message.starts_with("auth-required") {
                wants_auth.insert(event_id);
            }
            // The event is there already, which is what was asked for.
            let stored = status || message.starts_with("duplicate");
            verdicts.insert(event_id, if stored { Ok(()) } else { Err(message.into_owned()) });
        }
        Ok(wants_auth)
    }

    /// Hands each stored event that matches to `take`, as the relay sent it:
    /// unchecked, in any order. `Ok` only if the relay said that this was all.
    pub(super) async fn query(
        &mut self,
        filter: &Filter,
        mut take: impl FnMut(Event),
    ) -> Result<(), LinkError> {
        let mut id = self.request(filter).await?;
        let mut count = 0;
        loop {
            match self.receive().await? {
                RelayMessage::Event { subscription_id, event } if *subscription_id == id => {
                    count += 1;
                    if count > MAX_EVENTS {
                        return Err(LinkError::Refused("it sends without end".to_owned()));
                    }
                    take(event.into_owned());
                }
                RelayMessage::EndOfStoredEvents(of) if *of == id => {
                    return self.send(ClientMessage::Close(Cow::Borrowed(&id))).await;
                }
                RelayMessage::Closed { subscription_id, message } if *subscription_id == id => {
                    if self.authenticated || !message.starts_with("auth-required") {
                        return Err(LinkError::Refused(message.into_owned()));
                    }
                    self.authenticate().await?;
                    id = self.request(filter).await?;
                }
                _ => {}
            }
        }
    }

    async fn request(&mut self, filter: &Filter) -> Result<SubscriptionId, LinkError> {
        self.queries += 1;
        let id = SubscriptionId::new(self.queries.to_string());
        self.send(ClientMessage::req(id.clone(), vec![filter.clone()])).await?;
        Ok(id)
    }

    /// Answers the relay's challenge (NIP-42), which may be still on its way.
    async fn authenticate(&mut self) -> Result<(), LinkError> {
        let challenge = loop {
            match self.challenge.take() {
                Some(challenge) => break challenge,
                None => drop(self.receive().await?),
            }
        };
        let answer = EventBuilder::auth(challenge, self.url.clone())
            .sign(&self.signer)
            .await
            .map_err(|error| LinkError::Signer(error.to_string()))?;
        self.send(ClientMessage::Auth(Cow::Borrowed(&answer))).await?;
        loop {
            match self.receive().await? {
                RelayMessage::Ok { event_id, status: true, .. } if event_id == answer.id => break,
                RelayMessage::Ok { event_id, message, .. } if event_id == answer.id => {
                    return Err(LinkError::Refused(message.into_owned()));
                }
                _ => {}
            }
        }
        self.authenticated = true;
        Ok(())
    }

    async fn send(&mut self, message: ClientMessage<'_>) -> Result<(), LinkError> {
        let sent = timeout(ANSWER, self.socket.send(Message::Text(message.as_json()))).await;
        let sent = sent.map_err(|_| LinkError::Silent(ANSWER))?;
        sent.map_err(|error| LinkError::Broken(error.to_string()))
    }

    /// The relay's next message. What is no Nostr message is passed over.
    async fn receive(&mut self) -> Result<RelayMessage<'static>, LinkError> {
        loop {
            let next = timeout(ANSWER, self.socket.next()).await;
            let text = match next.map_err(|_| LinkError::Silent(ANSWER))? {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(_))) | None => {
                    return Err(LinkError::Broken("the relay closed it".to_owned()));
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(LinkError::Broken(error.to_string())),
            };
            match RelayMessage::from_json(text) {
                Ok(RelayMessage::Auth { challenge }) => {
                    self.challenge = Some(challenge.into_owned());
                    // Whoever waits for a challenge looks again.
                    return Ok(RelayMessage::Notice(Cow::Borrowed("challenge")));
                }
                Ok(message) => return Ok(message),
                Err(_) => {}
            }
        }
    }
}
