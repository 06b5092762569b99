//! What came in and went out: cdk's records of swaps, and our own of claims, in
//! one table.

use std::collections::HashMap;

use cdk::Amount;
use cdk::nuts::{CurrencyUnit, PublicKey as CashuKey};
use cdk_common::wallet::{Transaction, TransactionDirection, TransactionId, TransactionStatus};
use nostr_sdk::Timestamp;
use serde::Serialize;

use super::{EpochState, Wallet, WalletError};

/// Says in a transaction's metadata that it was a claim.
const CLAIM: &str = "hashpit-claim";

/// Something that came in or went out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Names it for `reclaim`.
    pub id: String,
    /// Unix time in seconds.
    pub at: u64,
    /// What it was.
    pub what: What,
    /// Units, without fees.
    pub amount: u64,
    /// Units that the mint took.
    pub fee: u64,
    /// Cashu unit.
    pub unit: String,
    /// The mint.
    pub mint: String,
    /// How it stands.
    pub status: Status,
}

/// What an entry was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Ehash from a pool.
    Claimed,
    /// A token put in.
    Received,
    /// A token taken out.
    Sent,
    /// Sats from Lightning.
    Deposited,
    /// Sats to Lightning.
    Withdrawn,
}

/// How an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Not received by the other side, as far as is known.
    Pending,
    /// Done.
    Completed,
    /// It did not happen, or was taken back.
    Failed,
}

/// The record of a batch; the same batch has the same id.
pub(super) fn claimed(
    epoch: &EpochState,
    units: u64,
    ys: Vec<CashuKey>,
    unit: CurrencyUnit,
) -> Transaction {
    Transaction {
        mint_url: epoch.mint.clone(),
        direction: TransactionDirection::Incoming,
        amount: Amount::from(units),
        fee: Amount::ZERO,
        unit,
        ys,
        timestamp: Timestamp::now().as_secs(),
        memo: None,
        metadata: HashMap::from([(CLAIM.to_owned(), epoch.unit.to_string())]),
        quote_id: None,
        payment_request: None,
        payment_proof: None,
        payment_method: None,
        saga_id: None,
        status: TransactionStatus::Completed,
    }
}

impl Wallet {
    /// Everything that came in and went out, newest first.
    pub async fn history(&self) -> Result<Vec<Entry>, WalletError> {
        let transactions = self.store.list_transactions(None, None, None).await?;
        let mut entries: Vec<Entry> = transactions.into_iter().map(Entry::from).collect();
        entries.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.id.cmp(&b.id)));
        Ok(entries)
    }

    /// Takes back a token that nobody has received: swaps its proofs for new
    /// ones, so that the token is worthless, and a payment that it was made for is
    /// not delivered any more. The end of `id` will do as long as it names one entry.
    /// The amount.
    pub async fn reclaim(&self, id: &str) -> Result<Entry, WalletError> {
        let _lock = self.lock().await?;
        let mut found = self.history().await?;
        found.retain(|entry| entry.what == What::Sent && !id.is_empty() && entry.id.ends_with(id));
        let entry = match found.pop() {
            Some(entry) if found.is_empty() => entry,
            _ => return Err(WalletError::NoSuchToken(id.to_owned())),
        };
        if entry.status != Status::Pending {
            return Err(WalletError::NotPending(entry.id));
        }
        let cdk = self.cdk(&entry.mint, &entry.unit).await?;
        let id: TransactionId =
            entry.id.parse().map_err(|_| WalletError::NoSuchToken(entry.id.clone()))?;
        let send = self.store.get_transaction(id).await?.and_then(|sent| sent.saga_id);
        cdk.revert_transaction(id).await.map_err(|error| super::explain(error, &cdk.mint_url))?;
        if let Some(send) = send {
            self.forget_send(&send.to_string()).await?;
        }
        Ok(entry)
    }
}

impl From<Transaction> for Entry {
    fn from(transaction: Transaction) -> Self {
        let what = match transaction.direction {
            // Only what was paid by or to a mint has a quote.
            TransactionDirection::Outgoing if transaction.quote_id.is_some() => What::Withdrawn,
            TransactionDirection::Incoming if transaction.quote_id.is_some() => What::Deposited,
            TransactionDirection::Outgoing => What::Sent,
            TransactionDirection::Incoming if transaction.metadata.contains_key(CLAIM) => {
                What::Claimed
            }
            TransactionDirection::Incoming => What::Received,
        };
        Self {
            id: transaction.id().to_string(),
            at: transaction.timestamp,
            what,
            amount: transaction.amount.into(),
            fee: transaction.fee.into(),
            unit: transaction.unit.to_string(),
            mint: transaction.mint_url.to_string(),
            status: match transaction.status {
                TransactionStatus::Pending => Status::Pending,
                TransactionStatus::Completed => Status::Completed,
                TransactionStatus::Failed => Status::Failed,
            },
        }
    }
}
