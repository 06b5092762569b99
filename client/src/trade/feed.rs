//! A market as it goes on.

use hashpit_mailbox::{Arrival, Inbox};
use hashpit_nips::eh05::{Checkpoint, Depth};
use nostr_sdk::{Event, Filter};

use super::exchange::asked_for;
use super::{Book, Trade};

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

/// Trades as they happen.
#[derive(Debug)]
pub struct TradeFeed {
    pub(super) inbox: Inbox,
    pub(super) filter: Filter,
}

impl TradeFeed {
    /// Waits for the next trade; `None` once the connections are closed.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Trade> {
        loop {
            if let Arrival::Event(event) = self.inbox.next().await?
                && asked_for(&self.filter, &event)
                && let Some(trade) = Trade::read(&event)
            {
                return Some(trade);
            }
        }
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
