//! Settling that goes on for ever, for the roles that trade.

use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::settle::{Limits, SettleError, Settler};
use hashpit_client::trade::Exchange;
use nostr_sdk::{PublicKey, RelayUrl};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// First and longest pause before settling is begun again: the exchange may not be
/// there yet, or a relay away.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Whose trades are settled, and where.
#[derive(Clone)]
pub struct Settling {
    pub wallet: Wallet,
    pub exchange: PublicKey,
    pub relays: Vec<RelayUrl>,
    pub limits: Limits,
}

impl Settling {
    /// Settles until stopped, and begins again after a failure: trades wait on this
    /// disk, on the relays and at the mints.
    pub async fn for_ever(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut pause = AGAIN.0;
        while !stop.is_cancelled() {
            match self.once(&stop).await {
                Ok(()) => pause = AGAIN.0,
                Err(SettleError::Trade(error)) => debug!(%error, "no exchange to settle at yet"),
                Err(error @ SettleError::Busy) => debug!(%error, "waiting for it to end"),
                Err(error) => warn!(%error, "settling failed; trying again"),
            }
            let _ = tokio::time::timeout(pause, stop.cancelled()).await;
            pause = (pause * 2).min(AGAIN.1);
        }
        Ok(())
    }

    async fn once(&self, stop: &CancellationToken) -> Result<(), SettleError> {
        let exchange = Exchange::connect(self.exchange, &self.relays).await?;
        let settler = Settler::open(self.wallet.clone(), exchange, self.limits.clone()).await?;
        settler.run(stop.clone()).await
    }
}
