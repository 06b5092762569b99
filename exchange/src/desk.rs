//! The desk: one thread that owns the book and the journal. What comes in gets
//! its place, its outcome and a durable, signed entry, and only then an answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashpit_nips::eh04::Market;
use hashpit_nips::eh05::{Book, Change};
use hashpit_nips::{EpochId, Millis};
use nostr::{Event, EventId};
use tokio::sync::watch;

use crate::journal::{Journal, JournalError};

/// What the desk did with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The journal's entry with this sequence acknowledges or refuses it.
    Entry(u64),
    /// It has no place in the journal; why. Nobody is owed an answer.
    Ignored(&'static str),
}

/// A market at one sequence.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its terms and state.
    pub market: Market,
    /// Newest entry of the journal, and its id.
    pub head: (u64, EventId),
    /// SHA-256 of the market's whole state.
    pub digest: [u8; 32],
    /// The time of that entry.
    pub at: Millis,
    /// All levels.
    pub book: Book,
}

/// Why the desk gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// It has stopped.
    #[error("the exchange is stopping")]
    Stopped,
    /// The journal could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A way to the desk.
#[derive(Debug, Clone)]
pub struct Desk {
    journal: Arc<Journal>,
    newest: watch::Receiver<Option<u64>>,
}

impl Desk {
    /// Hands in an event whose signature was checked, of a trader (38480, 8483,
    /// 5) or of a pool (38471); returns once its entry is durable.
    pub async fn submit(&self, event: Event) -> Result<Answer, DeskError> {
        let _ = event;
        Err(DeskError::Stopped)
    }

    /// Markets as they are now: these, or all.
    pub async fn snapshots(&self, of: Option<Vec<EpochId>>) -> Result<Vec<Snapshot>, DeskError> {
        let _ = of;
        Err(DeskError::Stopped)
    }

    /// What has changed in each market's book since this was last called, with
    /// the newest sequence.
    pub fn take_changes(&self) -> (Option<u64>, BTreeMap<EpochId, Change>) {
        (None, BTreeMap::new())
    }

    /// The newest durable sequence; `None` before the first.
    pub fn newest(&self) -> watch::Receiver<Option<u64>> {
        self.newest.clone()
    }

    /// The journal, to read.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }
}
