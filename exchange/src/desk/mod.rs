//! The desk: one thread that owns the book and the journal. What comes in gets
//! its place, its outcome and a durable, signed entry, and only then an answer.

mod board;
mod clerk;
pub(crate) mod opening;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use hashpit_nips::eh04::{Market, Rules};
use hashpit_nips::eh05::{Book, Change};
use hashpit_nips::{EpochId, Millis};
use nostr::{Event, EventId, Keys};
use tokio::sync::{mpsc, oneshot, watch};

use crate::journal::{Journal, JournalError};
use crate::replay::Fault;
use board::Board;
use clerk::{Clerk, Request};

/// Events that wait for the desk; who brings more waits.
const QUEUE: usize = 4096;

/// The exchange's clock: milliseconds of the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Millis + Send + Sync>;

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

/// Why the desk gave no answer, or did not open.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// It has stopped.
    #[error("the exchange is stopping")]
    Stopped,
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal could not be written.
    #[error(
        "the exchange stops, since its journal cannot be written: {0}. Whatever is not in it was \
         not answered; make room on the disk, and start again"
    )]
    NotWritten(JournalError),
    /// The journal is not what this exchange has done by its rules.
    #[error(
        "entry {seq} of the journal is not what the entries before it lead to: {fault}; this is \
         another exchange's journal, or was written by another version of hashpit"
    )]
    Contradiction {
        /// The first such entry.
        seq: u64,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// A way to the desk.
#[derive(Debug, Clone)]
pub struct Desk {
    requests: mpsc::Sender<Request>,
    journal: Arc<Journal>,
    newest: watch::Receiver<Option<u64>>,
    board: Arc<Mutex<Board>>,
}

/// The desk's thread. It ends when every [`Desk`] is gone.
#[derive(Debug)]
pub struct DeskThread(JoinHandle<Result<(), JournalError>>);

impl DeskThread {
    /// Waits for its end: all that was taken in is durable then.
    ///
    /// Errors if it ended before, because the journal could not be written; what
    /// had no answer may be durable or not, and is at the next start.
    pub async fn ended(self) -> Result<(), DeskError> {
        let joined = tokio::task::spawn_blocking(|| self.0.join()).await;
        let joined = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let served = joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        served.map_err(DeskError::NotWritten)
    }
}

impl Desk {
    /// Follows the journal from its beginning and opens the desk, under these
    /// rules. Must be called within a tokio runtime.
    pub fn open(
        journal: Arc<Journal>,
        keys: Keys,
        rules: Rules,
        clock: Clock,
    ) -> Result<(Self, DeskThread), DeskError> {
        let replay = opening::replay(&journal, keys.public_key())?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let (newest_out, newest) = watch::channel(replay.head().map(|(seq, _)| seq));
        let board = Arc::new(Mutex::new(Board::default()));
        let mut clerk =
            Clerk::new(replay, keys, clock, Arc::clone(&journal), newest_out, Arc::clone(&board));
        clerk.set_rules(rules).map_err(DeskError::NotWritten)?;
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new()
            .name("desk".to_owned())
            .spawn(move || clerk.run(&runtime, queue))
            .map_err(JournalError::Io)?;
        Ok((Self { requests, journal, newest, board }, DeskThread(thread)))
    }

    /// Hands in an event whose signature was checked, of a trader (38480, 8483,
    /// 5) or of a pool (38471); returns once its entry is durable.
    pub async fn submit(&self, event: Event) -> Result<Answer, DeskError> {
        self.enqueue(event).await?.await.map_err(|_| DeskError::Stopped)
    }

    /// Hands in an event: its place in the order of arrival is certain when this
    /// returns, and what it returns resolves once its entry is durable.
    pub async fn enqueue(&self, event: Event) -> Result<oneshot::Receiver<Answer>, DeskError> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Submit { event: Box::new(event), answer };
        self.requests.send(request).await.map_err(|_| DeskError::Stopped)?;
        Ok(answered)
    }

    /// Markets as they are now: these, or all.
    pub async fn snapshots(&self, of: Option<Vec<EpochId>>) -> Result<Vec<Snapshot>, DeskError> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Snapshots { of, answer };
        self.requests.send(request).await.map_err(|_| DeskError::Stopped)?;
        answered.await.map_err(|_| DeskError::Stopped)
    }

    /// SHA-256 of the whole state, and the sequence that it is the state after.
    pub async fn digest(&self) -> Result<(Option<u64>, [u8; 32]), DeskError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Digest { answer }).await.map_err(|_| DeskError::Stopped)?;
        answered.await.map_err(|_| DeskError::Stopped)
    }

    /// What has changed in each market's book since this was last called, with
    /// the newest sequence.
    pub fn take_changes(&self) -> (Option<u64>, BTreeMap<EpochId, Change>) {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).take()
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
