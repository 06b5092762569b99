//! Everything that one relay has stored, however much of it a single answer
//! holds.

use std::collections::HashMap;
use std::time::Duration;

use nostr_sdk::prelude::{MatchEventOptions, RelayPoolNotification};
use nostr_sdk::{Event, EventId, Filter, RelayMessage, RelayUrl, SubscriptionId, Timestamp};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::timeout;
use tracing::warn;

use crate::{Mailbox, MailboxError};

/// Events of one second from which on a relay may have more of that second than
/// one answer holds. No relay in use answers with fewer.
const FULL_SECOND: usize = 100;

/// Events that one question may bring; each takes about a kilobyte.
const MAX_STORED: usize = 200_000;

/// Pages that one question may take: as many as it takes to bring those, in pages
/// of a hundred, and to see that there is nothing more of each page's last second.
const MAX_PAGES: usize = 4_000;

/// What a relay has told.
#[derive(Debug)]
pub struct Stored {
    /// What it has, oldest first.
    pub events: Vec<Event>,
    /// Whether it may have more: of one second more than one of its answers holds,
    /// or of all more than one question may bring.
    pub is_cut: bool,
}

impl Mailbox {
    /// All that `relay` has stored of what matches, oldest first, also what came
    /// in before.
    ///
    /// It is asked for page after page, since relays cut answers off, and in the
    /// connection that the subscriptions use: what they were made before is
    /// either in this or arrives by them. A page that takes longer than
    /// `patience` is an error, and so is one of events that were not asked for.
    pub async fn stored(
        &self,
        relay: &RelayUrl,
        filter: Filter,
        patience: Duration,
    ) -> Result<Vec<Event>, MailboxError> {
        Ok(self.all_stored(relay, filter, patience).await?.events)
    }

    /// As [`Mailbox::stored`], for who has to know whether it is all.
    pub async fn all_stored(
        &self,
        relay: &RelayUrl,
        filter: Filter,
        patience: Duration,
    ) -> Result<Stored, MailboxError> {
        let mut events: HashMap<EventId, Event> = HashMap::new();
        let (mut until, mut is_cut, mut pages) = (filter.until, false, 0);
        loop {
            if events.len() >= MAX_STORED || pages >= MAX_PAGES {
                warn!(%relay, ?until, "too much is stored; what is older is left out");
                is_cut = true;
                break;
            }
            pages += 1;
            let mut page = filter.clone();
            page.until = until;
            let page = self.page(relay, page, patience).await?;
            let Some(oldest) = page.iter().map(|event| event.created_at).min() else { break };
            let (before, length) = (events.len(), page.len());
            events.extend(page.into_iter().map(|event| (event.id, event)));
            until = Some(oldest);
            if events.len() == before {
                if length >= FULL_SECOND {
                    warn!(%relay, %oldest, "more events in one second than the relay tells");
                    is_cut = true;
                }
                let Some(earlier) = oldest.as_secs().checked_sub(1) else { break };
                until = Some(Timestamp::from(earlier));
            }
        }
        let mut events: Vec<Event> = events.into_values().collect();
        events.sort_by_key(|event| (event.created_at, event.id));
        Ok(Stored { events, is_cut })
    }

    /// What `relay` tells of what matches in one answer.
    ///
    /// One that holds nothing that was asked for is an error: a relay that passes
    /// over `until` would otherwise be asked for ever.
    pub async fn page(
        &self,
        relay: &RelayUrl,
        filter: Filter,
        patience: Duration,
    ) -> Result<Vec<Event>, MailboxError> {
        let mut notifications = self.client.notifications();
        self.client.connect().await;
        let id = SubscriptionId::generate();
        self.client.subscribe_with_id_to([relay], id.clone(), filter.clone(), None).await?;
        let page = timeout(patience, until_told(&mut notifications, relay, &id)).await;
        self.client.unsubscribe(&id).await;
        let mut page = page.ok().flatten().ok_or_else(|| MailboxError::Silent(relay.clone()))?;
        let told_nothing = page.is_empty();
        page.retain(|event| filter.match_event(event, MatchEventOptions::new()));
        if page.is_empty() && !told_nothing {
            return Err(MailboxError::Unasked(relay.clone()));
        }
        Ok(page)
    }
}

/// What comes in until the relay says that this is all; `None` if the
/// connection was lost, or too much came in at once.
async fn until_told(
    notifications: &mut Receiver<RelayPoolNotification>,
    from: &RelayUrl,
    id: &SubscriptionId,
) -> Option<Vec<Event>> {
    let mut events = Vec::new();
    loop {
        match notifications.recv().await {
            Ok(RelayPoolNotification::Message { relay_url, message }) if relay_url == *from => {
                match message {
                    RelayMessage::Event { subscription_id, event } if *subscription_id == *id => {
                        events.push(event.into_owned());
                    }
                    RelayMessage::EndOfStoredEvents(told) if *told == *id => return Some(events),
                    RelayMessage::Closed { subscription_id, message }
                        if *subscription_id == *id =>
                    {
                        warn!(relay = %from, reason = %message, "relay tells nothing");
                        return None;
                    }
                    _ => {}
                }
            }
            Ok(RelayPoolNotification::Shutdown) | Err(RecvError::Closed) => return None,
            Err(RecvError::Lagged(_)) => return None,
            Ok(_) => {}
        }
    }
}
