//! An exchange of ehash for sats on Nostr: offers come in through relays, one
//! thread gives each its place in a signed chain, a pure engine matches them, and
//! anybody can replay the chain and see whether it did so fairly.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`engine`] | the matching engine: commands in, events out, nothing else |
//! | [`state`] | the exchange as a pure function of its journal: admission, markets, settlement |
//! | [`replay`] | following a journal entry by entry, and what can be wrong with one |
//! | [`fair_value`] | what ehash should be worth, for display |
//! | [`journal`] | the journal on disk |
//! | [`audit`] | whether an exchange did what its rules say, from public events |
//! | [`desk`] | the thread that owns state and journal |
//! | [`config`] | settings |
//! | [`recovery`] | the journal on disk against the relays', at start |
//! | `intake` | what traders and pools publish, to the desk |
//! | `reader` | reads the journal, with a durable note of how far |
//! | `outlet` | the journal to one relay |
//! | `notice` | matches to both traders, encrypted |
//! | `feed` | depth, checkpoints, markets |
//!
//! An offer's way: `intake` reads it from a relay, `desk` gives it its place,
//! its outcome and a durable entry, and an `outlet` for each relay publishes
//! that; `notice` tells who matched, `feed` tells everybody how the book stands.

pub mod audit;
pub mod config;
pub mod desk;
pub mod engine;
pub mod fair_value;
mod feed;
mod intake;
pub mod journal;
mod notice;
mod outlet;
mod reader;
pub mod recovery;
pub mod replay;
pub mod state;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashpit_mailbox::{Mailbox, MailboxError};
use hashpit_nips::Millis;
use hashpit_nips::seed_file::{self, SeedFileError};
use nostr_sdk::{Keys, PublicKey, Timestamp};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use config::Config;
use desk::{Clock, Desk, DeskError, DeskThread};
use feed::Feed;
use intake::Intake;
use journal::{Journal, JournalError};
use outlet::Outlet;
use reader::Reader;
use recovery::RecoveryError;

/// How long relays may take to store what is left when the exchange stops. What
/// remains is published at the next start.
const DRAIN: Duration = Duration::from_secs(10);

/// Why an exchange did not open, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("{path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has the data directory.
    #[error("the exchange in {0} is in use by another process; stop that one first")]
    InUse(PathBuf),
    /// A setting that cannot work.
    #[error("[exchange] {setting}: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What to do.
        reason: &'static str,
    },
    /// The seed file.
    #[error(transparent)]
    Seed(#[from] SeedFileError),
    /// The journal on disk.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal on disk and the relays' do not go together.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The desk.
    #[error(transparent)]
    Desk(#[from] DeskError),
    /// The relays.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// A notice could not be encrypted.
    #[error("cannot encrypt a notice: {0}")]
    Notice(String),
}

/// An exchange whose journal is loaded and that can be served.
pub struct Exchange {
    config: Config,
    keys: Keys,
    desk: Desk,
    thread: DeskThread,
    /// The time of the newest entry when it was opened.
    newest: Option<Timestamp>,
    /// Held while the exchange lives; the kernel releases it if the process dies.
    _lock: File,
}

impl Exchange {
    /// Opens the exchange in `dir`, making what is not there yet, and compares
    /// its journal with the relays'.
    ///
    /// `new` is the operator's word that its key never traded, or only from `dir`,
    /// for the case that not every relay can be asked for a journal, or none that
    /// had all of it. A key that is made here needs none.
    pub async fn open(config: Config, dir: &Path, new: bool) -> Result<Self, Error> {
        config.check()?;
        let lock = lock(dir)?;
        let seed_path = dir.join("exchange.seed");
        let new = new || !seed_path.exists();
        let keys = seed_file::read_or_create(&seed_path, rand::random)?.nostr_keys(0);
        let journal = Arc::new(Journal::open(&dir.join("journal"))?);
        recovery::recover(&journal, &keys, &config.relays, new).await?;
        let newest = newest(&journal)?;
        // Following a long journal takes its time.
        let (rules, opening_keys) = (config.rules.clone(), keys.clone());
        let open = move || Desk::open(journal, opening_keys, rules, clock());
        let opened = tokio::task::spawn_blocking(open).await;
        let (desk, thread) =
            opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        Ok(Self { config, keys, desk, thread, newest, _lock: lock })
    }

    /// The exchange's Nostr key.
    pub fn public_key(&self) -> PublicKey {
        self.keys.public_key()
    }

    /// A way to its desk.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Serves until `shutdown`, then stops in order: intake, desk, outlets and
    /// notices once the relays have everything or [`DRAIN`] is over, relays.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { config, keys, desk, thread, newest, _lock } = self;
        let mailbox = Mailbox::connect(keys.clone(), &config.relays).await?;
        let (stop, finish) = (shutdown.child_token(), CancellationToken::new());
        let mut outs: JoinSet<Result<(), Error>> = JoinSet::new();
        for relay in config.relays.clone() {
            let outlet = Outlet::open(&desk, keys.clone(), relay).await?;
            outs.spawn(part(stop.clone(), outlet.run(finish.clone())));
        }
        let reader = Reader::open(&desk, notice::READER.to_owned()).await?;
        let notices = notice::run(reader, keys.clone(), mailbox.clone(), finish.clone());
        outs.spawn(part(stop.clone(), notices));
        let mut ins: JoinSet<Result<(), Error>> = JoinSet::new();
        let feed = Feed::new(desk.clone(), keys, mailbox.clone(), &config, newest);
        ins.spawn(part(stop.clone(), feed.run(config.clone(), stop.clone())));
        let intake =
            Intake::open(desk, mailbox.clone(), &config.relays, config.pools, newest).await?;
        ins.spawn(part(stop.clone(), intake.run(stop.clone())));

        info!("exchange is up");
        let mut outcome = ended(&mut ins).await;
        // Nobody can ask the desk any more. If it ended before, that is the reason.
        outcome = thread.ended().await.map_err(Error::from).and(outcome);
        finish.cancel();
        match timeout(DRAIN, ended(&mut outs)).await {
            Ok(drained) => outcome = outcome.and(drained),
            Err(_) => {
                warn!("some relays lack the end of the journal; it follows at the next start")
            }
        }
        outs.shutdown().await;
        mailbox.close().await;
        info!("exchange has stopped");
        outcome
    }
}

/// Runs a part; when it ends, for whatever reason, everything stops.
async fn part(
    stop: CancellationToken,
    run: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let _stop_when_done = stop.drop_guard();
    run.await
}

/// Waits for all parts; the first error.
async fn ended(parts: &mut JoinSet<Result<(), Error>>) -> Result<(), Error> {
    let mut outcome = Ok(());
    while let Some(part) = parts.join_next().await {
        let part = part.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        outcome = outcome.and(part);
    }
    outcome
}

fn lock(dir: &Path) -> Result<File, Error> {
    let directory = |source| Error::Directory { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(directory)?;
    let lock = File::create(dir.join("exchange.lock")).map_err(directory)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Error::InUse(dir.to_owned()),
        TryLockError::Error(source) => directory(source),
    })?;
    Ok(lock)
}

/// The time of the newest entry.
fn newest(journal: &Journal) -> Result<Option<Timestamp>, Error> {
    let Some(seq) = journal.newest()? else { return Ok(None) };
    let record = journal.record(seq)?.unwrap_or_default();
    Ok(record.first().map(|entry| entry.created_at))
}

/// Milliseconds of the Unix epoch.
fn now() -> Millis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::new(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

fn clock() -> Clock {
    Arc::new(now)
}
