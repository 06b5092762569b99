//! Reads the journal in its order, and keeps a durable note of how far that has
//! come. Each relay's outlet and the notices have one.

use std::sync::Arc;

use nostr_sdk::Event;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::desk::Desk;
use crate::journal::{Journal, JournalError};

/// A sequence of the journal, and its events.
pub(crate) type Record = (u64, Vec<Event>);

/// One reader of the journal.
#[derive(Debug)]
pub(crate) struct Reader {
    journal: Arc<Journal>,
    newest: watch::Receiver<Option<u64>>,
    name: String,
    noted: u64,
}

impl Reader {
    /// A reader that goes on where the one with this name stopped.
    pub(crate) async fn open(desk: &Desk, name: String) -> Result<Self, Error> {
        let journal = desk.journal().clone();
        let noted = blocking(&journal, {
            let name = name.clone();
            move |journal| journal.cursor(&name)
        })
        .await?;
        Ok(Self { journal, newest: desk.newest(), name, noted })
    }

    /// The first sequence that it has not dealt with.
    pub(crate) fn noted(&self) -> u64 {
        self.noted
    }

    /// Waits until there is something from `next` on; false once that cannot
    /// be: the journal has an end and `finish` is cancelled.
    pub(crate) async fn wait(&mut self, next: u64, finish: &CancellationToken) -> bool {
        let there = |newest: &Option<u64>| newest.is_some_and(|newest| newest >= next);
        let desk_is_gone = tokio::select! { biased;
            newest = self.newest.wait_for(there) => newest.is_err(),
            () = finish.cancelled() => false,
        };
        if desk_is_gone {
            finish.cancelled().await;
        }
        there(&self.newest.borrow())
    }

    /// At most `most` records from `next` on.
    pub(crate) async fn read(&self, next: u64, most: usize) -> Result<Vec<Record>, Error> {
        blocking(&self.journal, move |journal| {
            let mut records = Vec::new();
            for seq in (next..).take(most) {
                let Some(events) = journal.record(seq)? else { break };
                records.push((seq, events));
            }
            Ok(records)
        })
        .await
        .map_err(|error: JournalError| error.into())
    }

    /// Notes that everything before `next` was dealt with.
    pub(crate) async fn note(&mut self, next: u64) -> Result<(), Error> {
        if next == self.noted {
            return Ok(());
        }
        let name = self.name.clone();
        blocking(&self.journal, move |journal| journal.set_cursor(&name, next)).await?;
        self.noted = next;
        Ok(())
    }
}

/// Reads or writes the journal off the async workers.
pub(crate) async fn blocking<T: Send + 'static>(
    journal: &Arc<Journal>,
    work: impl FnOnce(&Journal) -> T + Send + 'static,
) -> T {
    let journal = journal.clone();
    let done = tokio::task::spawn_blocking(move || work(&journal)).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
