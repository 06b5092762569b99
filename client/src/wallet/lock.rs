//! One operation on a wallet at a time, across processes; within one, in the order
//! in which they were begun.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, sleep};

use super::WalletError;

/// Longest wait for another process; its operations take milliseconds, or what
/// a slow mint takes.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// Holds the wallet until dropped; the kernel releases it if the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    _turn: OwnedMutexGuard<()>,
}

impl Lock {
    pub(crate) async fn take(dir: &Path, queue: &Arc<Mutex<()>>) -> Result<Self, WalletError> {
        let failed = |source| WalletError::Directory { path: dir.to_owned(), source };
        let turn = queue.clone().lock_owned().await;
        let file = File::create(dir.join("wallet.lock")).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file, _turn: turn }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(POLL).await,
                Err(TryLockError::WouldBlock) => return Err(WalletError::Busy),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}
