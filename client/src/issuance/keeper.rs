//! Tokens count as received once a quorum of relays holds them too: until then
//! the pool is not told, and keeps the signatures.

use std::time::Duration;

use hashpit_nips::EpochId;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::backup::{Backup, BackupError, Synced};

/// Least time between the beginnings of two backups; batches that arrive in
/// between go together.
const INTERVAL: Duration = Duration::from_secs(1);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// How long a backup under way may take to end at shutdown.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A batch by epoch and number.
pub(super) type BatchId = (EpochId, u64);

/// Backs up what arrives, without holding up the reading.
pub(super) struct Keeper {
    backup: Option<Backup>,
    /// Stored here, and not known to be on the relays.
    waiting: Vec<BatchId>,
    /// True if something changed since the last backup began.
    dirty: bool,
    running: Option<Running>,
    next_at: Instant,
    pause: Duration,
    /// What went wrong last, if nothing has gone well since.
    trouble: Option<String>,
}

struct Running {
    task: JoinHandle<Result<Synced, BackupError>>,
    covers: Vec<BatchId>,
}

impl Keeper {
    /// Without relays to back up to, tokens count as they arrive. With them, the
    /// first backup covers what an earlier process left.
    pub(super) fn new(backup: Option<Backup>) -> Self {
        Self {
            dirty: backup.is_some(),
            backup,
            waiting: Vec::new(),
            running: None,
            next_at: Instant::now(),
            pause: RETRY.0,
            trouble: None,
        }
    }

    /// Takes a batch whose tokens are stored; those that count at once.
    pub(super) fn take(&mut self, batch: BatchId) -> Option<BatchId> {
        if self.backup.is_none() {
            return Some(batch);
        }
        self.dirty = true;
        self.waiting.push(batch);
        None
    }

    /// Something changed that no batch stands for.
    pub(super) fn stir(&mut self) {
        self.dirty = self.backup.is_some();
    }

    /// True if all that has arrived counts.
    pub(super) fn is_idle(&self) -> bool {
        !self.dirty && self.running.is_none()
    }

    /// Why what has arrived does not count yet.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Begins a backup if one is due.
    pub(super) fn begin(&mut self) {
        let Some(backup) = &self.backup else { return };
        if !self.dirty || self.running.is_some() || Instant::now() < self.next_at {
            return;
        }
        self.dirty = false;
        self.next_at = Instant::now() + INTERVAL;
        let (backup, covers) = (backup.clone(), std::mem::take(&mut self.waiting));
        let task = tokio::spawn(async move { backup.sync().await });
        self.running = Some(Running { task, covers });
    }

    /// Waits for the backup under way, for ever if there is none; the batches
    /// that count from now on. Cancel-safe.
    pub(super) async fn done(&mut self) -> Vec<BatchId> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let outcome = (&mut running.task).await;
        let covered = self.running.take().map(|running| running.covers).unwrap_or_default();
        match outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
            Ok(synced) => {
                for (relay, why) in &synced.lagging {
                    debug!(%relay, why, "a relay lags behind the backup");
                }
                self.pause = RETRY.0;
                self.trouble = None;
                covered
            }
            Err(error) => {
                warn!(%error, retry_s = self.pause.as_secs(), "not backed up yet");
                self.trouble = Some(error.to_string());
                self.dirty = true;
                self.waiting.extend(covered);
                self.next_at = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(RETRY.1);
                Vec::new()
            }
        }
    }

    /// Lets the backup under way, or the one that is due, end; the batches that
    /// it covered.
    pub(super) async fn finish(&mut self) -> Vec<BatchId> {
        let mut covered = Vec::new();
        let _ = timeout(LAST_WORDS, async {
            if self.running.is_some() {
                covered.extend(self.done().await);
            }
            self.next_at = Instant::now();
            self.begin();
            if self.running.is_some() {
                covered.extend(self.done().await);
            }
        })
        .await;
        covered
    }
}
