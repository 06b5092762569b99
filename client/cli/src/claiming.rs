//! Claiming that goes on for ever, for the roles that mine.

use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::issuance::{self, Progress, Until};
use nostr_sdk::{PublicKey, RelayUrl};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Pause before claiming is begun again after a failure.
const CLAIM_AGAIN: Duration = Duration::from_secs(5);

/// Claims until stopped, and begins again after a failure: the relay and the
/// pool keep what is due.
pub async fn claim_for_ever(
    wallet: Wallet,
    pool: PublicKey,
    relays: Vec<RelayUrl>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        let attempt = issuance::claim(
            &wallet,
            pool,
            &relays,
            Until::Shutdown,
            progress.clone(),
            stop.clone(),
        );
        if let Err(error) = attempt.await {
            warn!(%error, "claiming failed; trying again");
            let _ = tokio::time::timeout(CLAIM_AGAIN, stop.cancelled()).await;
        }
    }
    Ok(())
}
