//! A market as it goes on.

use std::collections::HashMap;

use hashpit_mailbox::{Arrival, Inbox};
use hashpit_nips::eh04::MarketId;
use hashpit_nips::eh05::{Checkpoint, Depth, Settlement};
use nostr_sdk::{Event, EventId, Filter};

use super::exchange::asked_for;
use super::tape::{Line, Stage};
use super::{Book, Exchange, Trade};

/// A subscription, and what it was made with.
type Subscription = (Inbox, Filter);

/// A live book.
#[derive(Debug)]
pub struct BookFeed {
    pub(super) book: Book,
    pub(super) checkpoints: Subscription,
    pub(super) changes: Subscription,
}

impl BookFeed {
    /// The book as far as it is known.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Waits until the book is another; `None` once the connections are closed.
    ///
    /// Cancel-safe. A change that is lost is noticed by the next one
    /// ([`Book::has_gap`]) and mended by the next checkpoint.
    pub async fn next(&mut self) -> Option<&Book> {
        loop {
            let arrived = tokio::select! {
                arrived = arrival(&mut self.checkpoints) => arrived?,
                arrived = arrival(&mut self.changes) => arrived?,
            };
            let gap = self.book.has_gap();
            // Of the two kinds, it decodes as one.
            let changed = match (Checkpoint::decode(&arrived), Depth::decode(&arrived)) {
                (Ok(checkpoint), _) => self.book.checkpoint(checkpoint),
                (_, Ok(depth)) => self.book.depth(depth),
                _ => false,
            };
            if changed || self.book.has_gap() != gap {
                return Some(&self.book);
            }
        }
    }
}

/// Matches of a market as they happen, and what becomes of them.
#[derive(Debug)]
pub struct TapeFeed<'a> {
    pub(super) exchange: &'a Exchange,
    pub(super) market: MarketId,
    /// Matches that were told and have not ended.
    pub(super) known: HashMap<EventId, Trade>,
    pub(super) matches: Subscription,
    pub(super) ends: Subscription,
}

impl TapeFeed<'_> {
    /// Waits for the next match, or for one to end; `None` once the connections are
    /// closed. A match that was made before comes with its end alone.
    ///
    /// Cancel-safe, but for an end that is being looked up: [`Exchange::lines`] has it.
    pub async fn next(&mut self) -> Option<Line> {
        loop {
            let arrived = tokio::select! {
                arrived = arrival(&mut self.matches) => arrived?,
                arrived = arrival(&mut self.ends) => arrived?,
            };
            if let Some(trade) = Trade::read(&arrived) {
                self.known.insert(trade.id, trade.clone());
                return Some(Line::new(trade));
            }
            // All markets' ends arrive.
            if let Ok(settled) = Settlement::decode(&arrived)
                && let Some(trade) = self.ended(settled.of).await
            {
                return Some(Line { trade, stage: Stage::ended(&settled) });
            }
        }
    }

    /// The match that has ended, if it is this market's.
    async fn ended(&mut self, id: EventId) -> Option<Trade> {
        if let Some(trade) = self.known.remove(&id) {
            return Some(trade);
        }
        let found = match self.exchange.trade(id).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "a match that has ended was not found");
                None
            }
        };
        found.filter(|trade| trade.terms.market == self.market)
    }
}

/// The next event that matches.
async fn arrival((inbox, filter): &mut Subscription) -> Option<Event> {
    loop {
        if let Arrival::Event(event) = inbox.next().await?
            && asked_for(filter, &event)
        {
            return Some(*event);
        }
    }
}
