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

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, JsonUtil, Keys};

    use super::*;
    use crate::event::json::Checker;

    fn delivery(sequence: u64) -> Delivery {
        let event = EventBuilder::text_note("x").sign_with_keys(&Keys::generate()).unwrap();
        let event = Checker::default().check(&event.as_json()).unwrap();
        Delivery { subscription: 1, published: Published::new(event, sequence) }
    }

    fn subscriptions() -> Subscriptions {
        let mut open = Subscriptions::new(&Limits { live_queue: 2, ..Limits::default() });
        open.open("name".to_owned(), 1, 10);
        open
    }

    #[test]
    fn what_the_query_tells_is_not_told_live() {
        let mut open = subscriptions();
        assert_eq!(open.end_of_stored(1), [message::eose("name")]);
        assert_eq!(open.deliver(delivery(10)).unwrap(), None);
        assert!(open.deliver(delivery(11)).unwrap().is_some());
    }

    #[test]
    fn live_events_wait_for_eose_up_to_a_limit() {
        let mut open = subscriptions();
        assert_eq!(open.deliver(delivery(11)).unwrap(), None);
        assert_eq!(open.deliver(delivery(12)).unwrap(), None);
        assert!(open.deliver(delivery(13)).is_err());
        let texts = open.end_of_stored(1);
        assert_eq!((texts.len(), texts[0].as_str()), (3, r#"["EOSE","name"]"#));
        assert!(open.deliver(delivery(14)).unwrap().is_some());
    }

    #[test]
    fn a_closed_subscription_gets_nothing() {
        let mut open = subscriptions();
        open.deliver(delivery(11)).unwrap();
        assert_eq!((open.close("name"), open.close("name")), (Some(1), None));
        assert_eq!(open.deliver(delivery(12)).unwrap(), None);
        assert_eq!(open.held, 0);
    }
}
