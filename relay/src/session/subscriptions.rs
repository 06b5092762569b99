//! A connection's open subscriptions, and what to do with live events.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::Limits;
use crate::live::{Delivery, Published};
use crate::message;

/// More live events were held back than `live_queue` allows.
#[derive(Debug)]
pub(super) struct Lagging;

pub(super) struct Subscriptions {
    /// Name to number. A number is never used again, so that a live event for a
    /// closed subscription is not taken for its successor's.
    numbers: HashMap<String, u64>,
    open: HashMap<u64, Open>,
    last: u64,
    max: usize,
    /// Live events held back; bounded by `max_held`.
    held: usize,
    max_held: usize,
}

struct Open {
    name: String,
    /// Stored events are told up to here, live ones after it.
    watermark: u64,
    /// Live events that wait for EOSE; `None` after it.
    held: Option<Vec<Arc<Published>>>,
}

impl Subscriptions {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            numbers: HashMap::new(),
            open: HashMap::new(),
            last: 0,
            max: limits.max_subscriptions,
            held: 0,
            max_held: limits.live_queue,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.open.len() >= self.max
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn open(&mut self, name: String, number: u64, watermark: u64) {
        self.numbers.insert(name.clone(), number);
        self.open.insert(number, Open { name, watermark, held: Some(Vec::new()) });
    }

    /// Closes a subscription and says which it was.
    pub(super) fn close(&mut self, name: &str) -> Option<u64> {
        let number = self.numbers.remove(name)?;
        if let Some(open) = self.open.remove(&number) {
            self.held -= open.held.map_or(0, |held| held.len());
        }
        Some(number)
    }

    pub(super) fn name(&self, number: u64) -> Option<&str> {
        self.open.get(&number).map(|open| open.name.as_str())
    }

    /// The text for a live event, unless it waits for EOSE, was told already, or
    /// its subscription is closed.
    pub(super) fn deliver(&mut self, delivery: Delivery) -> Result<Option<String>, Lagging> {
        let Some(open) = self.open.get_mut(&delivery.subscription) else { return Ok(None) };
        let published = delivery.published;
        if published.sequence <= open.watermark {
            return Ok(None);
        }
        match &mut open.held {
            None => Ok(Some(message::event_json(&open.name, published.json()))),
            Some(_) if self.held >= self.max_held => Err(Lagging),
            Some(held) => {
                self.held += 1;
                held.push(published);
                Ok(None)
            }
        }
    }

    /// The texts that end the stored part: EOSE, and what waited for it.
    pub(super) fn end_of_stored(&mut self, number: u64) -> Vec<String> {
        let Some(open) = self.open.get_mut(&number) else { return Vec::new() };
        let held = open.held.take().unwrap_or_default();
        self.held -= held.len();
        let events = held.iter().map(|held| message::event_json(&open.name, held.json()));
        std::iter::once(message::eose(&open.name)).chain(events).collect()
    }
}
