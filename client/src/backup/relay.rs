//! A relay as the backup uses it: what broke is tried again, what was said is
//! checked, and what is read is read to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nostr_sdk::{Event, EventId, Filter, Kind, NostrSigner, PublicKey, RelayUrl, Timestamp};
use tokio::time::sleep;
use tracing::debug;

use super::link::{Link, LinkError, Verdicts};

/// Events under way to a relay at once, and asked for by id at once.
pub(super) const WINDOW: usize = 16;
/// First and longest pause before a relay that broke or asked for patience is
/// tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// Failures in a row after which a relay is given up.
const ATTEMPTS: u32 = 4;
/// A relay may need a moment before it gives back what it took.
const SETTLE: Duration = Duration::from_millis(300);
/// Events asked for at once; relays that give fewer are asked again.
const PAGE: usize = 500;

/// Events of one query, by the id that they claim.
type Page = BTreeMap<EventId, Event>;

/// What a relay has, and why it does not have the rest.
pub(super) type Delivered = (BTreeSet<EventId>, Option<LinkError>);

/// A relay, and the key that speaks to it.
pub(super) struct Relay {
    pub(super) url: RelayUrl,
    signer: Arc<dyn NostrSigner>,
    link: Option<Link>,
    /// It takes its time, or lies; either way it is not waited for again.
    settled: bool,
}

/// Backs off, and gives up after some failures in a row.
struct Patience {
    failures: u32,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { failures: 0, pause: PAUSE.0 }
    }

    async fn after(&mut self, error: LinkError) -> Result<(), LinkError> {
        self.failures += 1;
        let hopeless = matches!(error, LinkError::Refused(_) | LinkError::Signer(_));
        if hopeless || self.failures >= ATTEMPTS {
            return Err(error);
        }
        self.pause().await;
        Ok(())
    }

    async fn pause(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

impl Relay {
    pub(super) fn new(url: RelayUrl, signer: Arc<dyn NostrSigner>) -> Self {
        Self { url, signer, link: None, settled: false }
    }

    /// The key that speaks.
    pub(super) async fn key(&self) -> Result<PublicKey, String> {
        self.signer.get_public_key().await.map_err(|error| error.to_string())
    }

    /// What a query brings, all of it and whole.
    pub(super) async fn read(&mut self, filter: &Filter) -> Result<Vec<Event>, LinkError> {
        let mut events = Page::new();
        self.query(filter, &mut events).await?;
        Ok(events.into_values().filter(|event| event.verify().is_ok()).collect())
    }

    /// Publishes up to [`WINDOW`] events. Those that the relay took *and* gave
    /// back, and the first reason for any other.
    ///
    /// Waits as long as the relay asks for patience: the caller sets a deadline.
    pub(super) async fn deliver(&mut self, events: &[Event]) -> Delivered {
        let verdicts = match self.publish(events).await {
            Ok(verdicts) => verdicts,
            Err(error) => return (BTreeSet::new(), Some(error)),
        };
        let taken = verdicts.iter().filter(|(_, said)| said.is_ok()).map(|(id, _)| *id);
        let taken: Vec<EventId> = taken.collect();
        let refused = verdicts.into_values().find_map(Result::err).map(LinkError::Refused);
        match self.read_back(&taken).await {
            Ok(found) if found.len() < taken.len() => {
                let lie = "it says OK and does not have the event".to_owned();
                (found, refused.or(Some(LinkError::Refused(lie))))
            }
            Ok(found) => (found, refused),
            Err(error) => (BTreeSet::new(), Some(error)),
        }
    }

    /// What the relay said to each, in the end.
    pub(super) async fn publish(&mut self, events: &[Event]) -> Result<Verdicts, LinkError> {
        let mut patience = Patience::new();
        let mut verdicts = Verdicts::new();
        loop {
            let open = events.iter().filter(|event| match verdicts.get(&event.id) {
                None => true,
                Some(said) => said.as_ref().is_err_and(|why| why.starts_with("rate-limited")),
            });
            let open: Vec<&Event> = open.collect();
            if open.is_empty() {
                return Ok(verdicts);
            }
            let before = verdicts.len();
            match self.try_publish(&open, &mut verdicts).await {
                // Only rate limits are left, if anything.
                Ok(()) => patience.failures = 0,
                Err(error) => {
                    if verdicts.len() > before {
                        patience.failures = 0;
                    }
                    debug!(relay = %self.url, %error, "publishing");
                    patience.after(error).await?;
                    continue;
                }
            }
            let limited = |said: &Result<(), String>| {
                said.as_ref().is_err_and(|why| why.starts_with("rate-limited"))
            };
            if verdicts.values().any(limited) {
                patience.pause().await;
            }
        }
    }

    async fn try_publish(
        &mut self,
        events: &[&Event],
        verdicts: &mut Verdicts,
    ) -> Result<(), LinkError> {
        let mut link = self.take_link().await?;
        link.publish(events, verdicts).await?;
        self.link = Some(link);
        Ok(())
    }

    async fn read_back(&mut self, ids: &[EventId]) -> Result<BTreeSet<EventId>, LinkError> {
        let mut found = self.held(ids).await?;
        if found.len() < ids.len() && !self.settled {
            sleep(SETTLE).await;
            found.extend(self.held(ids).await?);
            self.settled = found.len() < ids.len();
        }
        Ok(found)
    }

    /// Which of these events the relay gives, whole.
    pub(super) async fn held(&mut self, ids: &[EventId]) -> Result<BTreeSet<EventId>, LinkError> {
        let mut found = BTreeSet::new();
        for window in ids.chunks(WINDOW) {
            // A relay that gives fewer than asked for is asked for the rest.
            loop {
                let rest: Vec<_> = window.iter().filter(|id| !found.contains(*id)).collect();
                if rest.is_empty() {
                    break;
                }
                let (before, mut events) = (found.len(), Page::new());
                let filter = Filter::new().ids(rest.into_iter().copied());
                let asked = self.query(&filter, &mut events).await;
                let whole = events.into_values().filter(|event| event.verify().is_ok());
                found.extend(whole.map(|event| event.id).filter(|id| window.contains(id)));
                if found.len() == before {
                    asked?;
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Every event of `author` and `kinds`, in pages, each once. How many events
    /// it sent that do not verify.
    ///
    /// Relays give 500 at once, or fewer, and `until` has the grain of a second:
    /// more events of one second than a relay gives at once cannot all be had.
    pub(super) async fn all(
        &mut self,
        author: PublicKey,
        kinds: &[Kind],
        mut take: impl FnMut(Event),
    ) -> Result<usize, LinkError> {
        let (mut seen, mut damaged) = (BTreeSet::new(), BTreeSet::new());
        let (mut limit, mut until) = (PAGE, None);
        loop {
            let filter = Filter::new().author(author).kinds(kinds.iter().copied()).limit(limit);
            let filter = until.map_or_else(|| filter.clone(), |until| filter.clone().until(until));
            let (mut page, is_fresh) = (Page::new(), self.link.is_none());
            let asked = self.query(&filter, &mut page).await;
            let (mut oldest, mut news, size) = (Timestamp::max(), false, page.len());
            for event in page.into_values() {
                let known = seen.contains(&event.id);
                let wanted = event.pubkey == author && kinds.contains(&event.kind);
                let sound = known || wanted && event.verify().is_ok();
                if !sound {
                    damaged.insert(event.id);
                    continue;
                }
                oldest = oldest.min(event.created_at);
                if !known {
                    news = true;
                    seen.insert(event.id);
                    take(event);
                }
            }
            if let Err(error) = asked {
                // It hung up in the middle. If it did so on a new connection, it
                // may manage half of that.
                if is_fresh || size == 0 {
                    limit = size / 2;
                }
                if limit == 0 {
                    return Err(error);
                }
                continue;
            }
            until = match until {
                _ if oldest == Timestamp::max() => return Ok(damaged.len()),
                // Nothing new of this second: on to the one before.
                Some(last) if oldest >= last && !news => match last.as_secs().checked_sub(1) {
                    Some(earlier) => Some(Timestamp::from(earlier)),
                    None => return Ok(damaged.len()),
                },
                _ => Some(oldest),
            };
        }
    }

    /// What a query brings. An error after some events is told at once, any other
    /// only when it stays.
    async fn query(&mut self, filter: &Filter, events: &mut Page) -> Result<(), LinkError> {
        let mut patience = Patience::new();
        loop {
            match self.try_query(filter, events).await {
                Ok(()) => return Ok(()),
                Err(LinkError::Refused(why)) if why.starts_with("rate-limited") => {
                    patience.pause().await;
                }
                Err(error) if !events.is_empty() => return Err(error),
                Err(error) => {
                    debug!(relay = %self.url, %error, "reading");
                    patience.after(error).await?;
                }
            }
        }
    }

    async fn try_query(&mut self, filter: &Filter, events: &mut Page) -> Result<(), LinkError> {
        let mut link = self.take_link().await?;
        let take = |event: Event| drop(events.insert(event.id, event));
        let asked = link.query(filter, take).await;
        // After a refusal the connection is as good as before.
        if matches!(asked, Ok(()) | Err(LinkError::Refused(_))) {
            self.link = Some(link);
        }
        asked
    }

    async fn take_link(&mut self) -> Result<Link, LinkError> {
        match self.link.take() {
            Some(link) => Ok(link),
            None => Link::connect(&self.url, self.signer.clone()).await,
        }
    }
}
