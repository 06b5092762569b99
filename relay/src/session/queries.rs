//! A connection's queries: one at a time, a page at a time.
//!
//! A page is made off the async workers and sent before the next is asked for,
//! so a slow client slows its own query and nothing else. Every query ends with
//! EOSE, or with CLOSED where the store fails.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use axum::extract::ws::Utf8Bytes;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{End, Session};
use crate::filter::Filter;
use crate::message;
use crate::store::{Page, Query, Reader, StoreError};
use crate::visibility::Viewer;

/// Bounds of a page: what is held in memory, and how long others wait for a
/// query that finds little.
const PAGE_BYTES: usize = 64 * 1024;
const PAGE_LOOKS: usize = 4_096;

/// A query that waits for its turn. Bounded: one for each open subscription.
pub(super) struct Pending {
    number: u64,
    name: String,
    filters: Vec<Filter>,
    viewer: Viewer,
    watermark: u64,
    now: nostr::Timestamp,
    reader: Reader,
}

/// A part of a query's answer, ready to be sent.
pub(super) struct Step {
    number: u64,
    texts: Vec<Utf8Bytes>,
    /// What is left of the query, if it is not at its end.
    rest: Result<Option<Query>, StoreError>,
}

pub(super) struct Queries {
    permits: Arc<Semaphore>,
    waiting: VecDeque<Pending>,
    running: Option<(u64, AbortOnDropHandle<Step>)>,
}

impl Queries {
    pub(super) fn new(permits: Arc<Semaphore>) -> Self {
        Self { permits, waiting: VecDeque::new(), running: None }
    }

    pub(super) fn push(&mut self, query: Pending) {
        self.waiting.push_back(query);
        self.start_next();
    }

    /// Forgets a query whose subscription was closed.
    pub(super) fn cancel(&mut self, number: u64) {
        self.waiting.retain(|query| query.number != number);
        if self.running.as_ref().is_some_and(|(running, _)| *running == number) {
            self.running = None;
            self.start_next();
        }
    }

    /// The next part of the running query; never, if there is none.
    pub(super) async fn step(&mut self) -> Step {
        let Some((number, task)) = &mut self.running else { return pending().await };
        let step = task.await.unwrap_or_else(|error| Step {
            number: *number,
            texts: Vec::new(),
            rest: Err(StoreError::Task(error.to_string())),
        });
        self.running = None;
        step
    }

    fn start_next(&mut self) {
        if self.running.is_none()
            && let Some(query) = self.waiting.pop_front()
        {
            let (number, name) = (query.number, query.name.clone());
            self.start(number, name, move || query.begin());
        }
    }

    fn start(
        &mut self,
        number: u64,
        name: String,
        query: impl FnOnce() -> Result<Query, StoreError> + Send + 'static,
    ) {
        let permits = Arc::clone(&self.permits);
        let task = tokio::spawn(async move {
            // The semaphore is never closed; without a permit we would only be
            // less fair.
            let _permit = permits.acquire_owned().await;
            let step = tokio::task::spawn_blocking(move || step(number, &name, query()));
            step.await.unwrap_or_else(|error| Step {
                number,
                texts: Vec::new(),
                rest: Err(StoreError::Task(error.to_string())),
            })
        });
        self.running = Some((number, AbortOnDropHandle::new(task)));
    }
}

impl Pending {
    fn begin(self) -> Result<Query, StoreError> {
        Query::new(&self.reader, &self.filters, self.viewer, self.watermark, self.now)
    }
}

fn step(number: u64, name: &str, query: Result<Query, StoreError>) -> Step {
    let page = query.and_then(|mut query| {
        let page = query.next_page(PAGE_BYTES, PAGE_LOOKS)?;
        Ok((page, query))
    });
    match page {
        Ok((Page { events, done }, query)) => {
            let texts = events.iter().map(|event| message::event(name, event).into()).collect();
            Step { number, texts, rest: Ok((!done).then_some(query)) }
        }
        Err(error) => Step { number, texts: Vec::new(), rest: Err(error) },
    }
}

impl Session {
    /// A query for subscription `number`, as this client may see it now.
    pub(super) fn query(&self, number: u64, filters: Vec<Filter>, watermark: u64) -> Pending {
        Pending {
            number,
            name: self.subscriptions.name(number).unwrap_or_default().to_owned(),
            filters,
            viewer: self.viewer.clone(),
            watermark,
            now: self.shared.clock.now(),
            reader: self.shared.reader.clone(),
        }
    }

    /// Sends a part of an answer, and goes on with the query or ends it.
    pub(super) async fn on_step(&mut self, step: Step) -> Result<(), End> {
        let Step { number, texts, rest } = step;
        let Some(name) = self.subscriptions.name(number).map(str::to_owned) else {
            self.queries.start_next();
            return Ok(());
        };
        self.outbox.extend(texts);
        match rest {
            Ok(Some(query)) => {
                self.queries.start(number, name, move || Ok(query));
                return Ok(());
            }
            Ok(None) => {
                let texts = self.subscriptions.end_of_stored(number);
                self.outbox.extend(texts.into_iter().map(Utf8Bytes::from));
            }
            Err(error) => {
                tracing::error!(session = self.id, %error, "a query failed");
                self.end_subscription(&name).await;
                self.push(message::closed(&name, "error: the store cannot be read right now"));
            }
        }
        self.queries.start_next();
        Ok(())
    }
}
