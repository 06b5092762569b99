//! What a crash left half done between the wallet and a mint: cdk's own recovery,
//! and what that leaves in doubt. The mint knows (NUT-07, NUT-09).

use std::collections::BTreeSet;
use std::time::Duration;

use cdk::Wallet as CdkWallet;
use cdk::nuts::{CurrencyUnit, RestoreRequest, State};
use cdk_common::wallet::{
    OperationData, ProofInfo, ReceiveSagaState, SendSagaState, SwapSagaState, TransactionId,
    TransactionStatus, WalletSaga, WalletSagaState,
};
use nostr_sdk::Timestamp;

use super::{Balance, CHECKED_AT_ONCE, Wallet, WalletError};

/// How long a mint may take to say what became of pending proofs.
const RESUME: Duration = Duration::from_secs(10);

/// How long after its last step the request of an interrupted send may still be
/// under way. The steps are dated to the second.
const REQUEST_ENDS: Duration = Duration::from_secs(3);

impl Wallet {
    /// Finishes or undoes what a crash cut short, notes which tokens have been
    /// received, and takes deposits that were paid. What needs a mint that does not answer
    /// waits for another time.
    pub(super) async fn resume_swaps(&self) -> Result<(), WalletError> {
        self.adopt_tokens().await?;
        self.let_requests_end().await?;
        for (mint, unit) in self.unsettled().await? {
            let cdk = match self.cdk(&mint, &unit).await {
                Ok(cdk) => cdk,
                Err(error) => {
                    tracing::warn!(%error, mint, "pending proofs stay as they are");
                    continue;
                }
            };
            match tokio::time::timeout(RESUME, self.resume_swaps_at(&cdk)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, mint, "pending proofs stay as they are"),
                Err(_) => tracing::warn!(mint, "pending proofs stay as they are: no answer"),
            }
        }
        // Those that were undone leave no token.
        self.adopt_tokens().await
    }

    /// Mints and units with pending proofs, unfinished swaps or open deposits.
    async fn unsettled(&self) -> Result<BTreeSet<(String, String)>, WalletError> {
        let pending = self.balances().await?.into_iter().filter(|balance| balance.pending > 0);
        let pending = pending.map(|Balance { mint, unit, .. }| (mint, unit));
        let sagas = self.store.get_incomplete_sagas().await?.into_iter();
        let swaps = sagas.map(|saga| (saga.mint_url.to_string(), saga.unit.to_string()));
        let deposits = self.deposits().await?.into_iter();
        let deposits = deposits.map(|deposit| (deposit.mint, CurrencyUnit::Sat.to_string()));
        Ok(pending.chain(swaps).chain(deposits).collect())
    }

    /// A request of a process that died may be under way at the mint still, and
    /// would be taken for one that was never made.
    async fn let_requests_end(&self) -> Result<(), WalletError> {
        let handed_out = WalletSagaState::Send(SendSagaState::TokenCreated);
        let sagas = self.store.get_incomplete_sagas().await?;
        let begun = sagas.iter().filter(|saga| saga.state != handed_out);
        let Some(last) = begun.map(|saga| saga.updated_at).max() else { return Ok(()) };
        let age = Duration::from_secs(Timestamp::now().as_secs().saturating_sub(last));
        tokio::time::sleep(REQUEST_ENDS.saturating_sub(age)).await;
        Ok(())
    }

    /// cdk's recovery, and what it leaves in doubt where a swap was part of a send:
    /// the mint knows.
    async fn resume_swaps_at(&self, cdk: &CdkWallet) -> Result<(), cdk::Error> {
        forget_spent(cdk, self.reserved_by_sends(cdk).await?).await?;
        cdk.recover_incomplete_sagas().await?;
        let doubtful = self.settle_unsigned(cdk).await?;
        let pending = [State::Pending, State::Reserved, State::PendingSpent];
        let mut pending = self.proofs_at(cdk, &pending).await?;
        // Without its inputs cdk would take a receive for done.
        let waits = |id| doubtful.iter().any(|saga| saga.id == id);
        // Nor are the inputs of swaps that a trade sees to.
        let trades = self.swap_operations().await?;
        let waits = |id| waits(id) || trades.contains(&id);
        pending.retain(|info| !info.used_by_operation.is_some_and(waits));
        forget_spent(cdk, pending).await?;
        self.release_orphans(cdk).await?;
        if cdk.unit == CurrencyUnit::Sat { self.resume_deposits(cdk).await } else { Ok(()) }
    }

    /// Ends requests of which the mint has signed nothing: it never will, since
    /// none is under way. cdk asks for their outputs for ever. Returns the
    /// receives that are in doubt still.
    async fn settle_unsigned(&self, cdk: &CdkWallet) -> Result<Vec<WalletSaga>, cdk::Error> {
        let mut doubtful: Vec<WalletSaga> = Vec::new();
        for saga in self.store.get_incomplete_sagas().await? {
            if saga.mint_url != cdk.mint_url || saga.unit != cdk.unit {
                continue;
            }
            let (is_receive, outputs) = match (&saga.state, &saga.data) {
                (
                    WalletSagaState::Receive(ReceiveSagaState::SwapRequested),
                    OperationData::Receive(data),
                ) => (true, data.blinded_messages.clone()),
                (
                    WalletSagaState::Swap(SwapSagaState::SwapRequested),
                    OperationData::Swap(data),
                ) => (false, data.blinded_messages.clone()),
                _ => continue,
            };
            if is_receive {
                doubtful.push(saga.clone());
            }
            let Some(outputs) = outputs else { continue };
            let asked = cdk.mint_connector().post_restore(RestoreRequest { outputs }).await;
            if !asked.is_ok_and(|answer| answer.signatures.is_empty()) {
                continue;
            }
            if is_receive {
                // Spent by somebody else.
                forget_spent(cdk, self.store.get_reserved_proofs(&saga.id).await?).await?;
            }
            if self.store.get_reserved_proofs(&saga.id).await?.is_empty() {
                self.note_failed(&saga).await?;
                self.store.delete_saga(&saga.id).await?;
                doubtful.retain(|other| other.id != saga.id);
            }
        }
        Ok(doubtful)
    }

    async fn note_failed(&self, saga: &WalletSaga) -> Result<(), cdk::Error> {
        let id = TransactionId::from_saga_id(saga.id);
        if let Some(mut transaction) = self.store.get_transaction(id).await? {
            transaction.status = TransactionStatus::Failed;
            self.store.add_transaction(transaction).await?;
        }
        Ok(())
    }

    /// What unfinished sends reserve. cdk's recovery releases it, although the
    /// swap within the send may have spent it; the swap's own recovery brings the
    /// swap's outputs back and would leave those inputs as well.
    async fn reserved_by_sends(&self, cdk: &CdkWallet) -> Result<Vec<ProofInfo>, cdk::Error> {
        let unfinished = WalletSagaState::Send(SendSagaState::ProofsReserved);
        let mut reserved = Vec::new();
        for saga in self.store.get_incomplete_sagas().await? {
            let here = saga.mint_url == cdk.mint_url && saga.unit == cdk.unit;
            if here && saga.state == unfinished {
                reserved.extend(self.store.get_reserved_proofs(&saga.id).await?);
            }
        }
        Ok(reserved)
    }

    /// Releases what is reserved for no operation any more: outputs of a swap
    /// within a send that was undone.
    async fn release_orphans(&self, cdk: &CdkWallet) -> Result<(), cdk::Error> {
        let operations = self.store.get_incomplete_sagas().await?;
        let trades = self.swap_operations().await?;
        let mut orphans = self.proofs_at(cdk, &[State::Reserved]).await?;
        orphans.retain(|info| {
            let owner = info.used_by_operation;
            owner.is_none_or(|owner| {
                !trades.contains(&owner) && operations.iter().all(|operation| operation.id != owner)
            })
        });
        if !orphans.is_empty() {
            cdk.unreserve_proofs(orphans.into_iter().map(|info| info.y).collect()).await?;
        }
        Ok(())
    }

    async fn proofs_at(
        &self,
        cdk: &CdkWallet,
        states: &[State],
    ) -> Result<Vec<ProofInfo>, cdk::Error> {
        let (mint, unit) = (Some(cdk.mint_url.clone()), Some(cdk.unit.clone()));
        Ok(self.store.get_proofs(mint, unit, Some(states.to_vec()), None).await?)
    }
}

/// Forgets those proofs that the mint knows as spent.
async fn forget_spent(cdk: &CdkWallet, proofs: Vec<ProofInfo>) -> Result<(), cdk::Error> {
    let proofs: Vec<_> = proofs.into_iter().map(|info| info.proof).collect();
    for some in proofs.chunks(CHECKED_AT_ONCE) {
        cdk.check_proofs_spent(some.to_vec()).await?;
    }
    Ok(())
}
