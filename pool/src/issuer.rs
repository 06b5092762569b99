//! Turns credit into signatures: asks the ledger what is due, has the mint
//! sign it, and hands it back to be recorded.

use std::sync::Arc;
use std::time::Duration;

use cdk::Mint;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::issuance::Parcel;
use crate::ledger::{Ledger, LedgerError, Plan};

/// How often to look for batches whose interval has passed.
const TICK: Duration = Duration::from_millis(250);

/// Issues until `shutdown`. Each batch, once durable, goes to `outbox`; when
/// that is full, issuing waits for the mailbox.
pub(crate) async fn run(
    ledger: Ledger,
    mint: Arc<Mint>,
    outbox: mpsc::Sender<Parcel>,
    shutdown: CancellationToken,
) -> Result<(), LedgerError> {
    loop {
        tokio::select! { biased;
            () = shutdown.cancelled() => return Ok(()),
            () = ledger.ready() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        for plan in ledger.plan().await? {
            let miner = plan.miner;
            if let Some(batch) = issue(&ledger, &mint, plan).await? {
                // The mailbox is gone only when everything stops; the batch is
                // recorded as unacknowledged and leaves after the next start.
                let _ = outbox.send(Parcel::Batch { miner, batch }).await;
            }
        }
    }
}

async fn issue(ledger: &Ledger, mint: &Mint, plan: Plan) -> Result<Option<u64>, LedgerError> {
    let signed = match mint.verify_outputs(&plan.outputs) {
        Ok(_) => mint.blind_sign(plan.outputs.clone()).await,
        Err(error) => Err(error),
    };
    match signed {
        Ok(signatures) => ledger.issue(plan, signatures).await,
        Err(error) => {
            warn!(miner = %plan.miner, %error, "could not sign a batch; its work stays credited");
            ledger.abandon(plan.miner).await?;
            Ok(None)
        }
    }
}
