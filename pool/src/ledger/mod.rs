//! The share ledger: who is credited with how much work, and what of it was
//! issued as ehash. It lives in the mint's database.
//!
//! Promises:
//! - A verdict [`Outcome::Recorded`](crate::share::Outcome) leaves only after
//!   the share is durable, and a header hash is credited once in an epoch, also
//!   across restarts.
//! - For every miner, always: credited = issued × 2^k + remainder.
//! - The same batch number is the same batch for ever; its signatures, its
//!   blanks and the account's new total are one transaction.
//!
//! One actor owns the state; [`Ledger`] is the handle. The mining front end
//! sends it shares, the mailbox sends it blanks and acknowledgements, the
//! issuer asks it what to sign.

mod account;
mod actor;
mod records;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cdk::nuts::{BlindSignature, BlindedMessage, Id, PublicKey as CashuKey};
use cdk_common::database::mint::DynMintDatabase;
use hashpit_nips::eh02::{Batch, SignedBlank, Statement};
use hashpit_nips::units::UnitError;
use hashpit_nips::{HashUnits, Work};
use nostr_sdk::{EventId, PublicKey};
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use account::MAX_AMOUNT_BITS;
pub(crate) use actor::{Actor, Limits};
pub(crate) use records::NAMESPACE;
use records::Tables;

use crate::mint::Epoch;

/// Commands that wait for the actor. When full, the sender waits: the mailbox
/// and the issuer have nothing better to do.
const COMMANDS: usize = 64;

/// Why the ledger could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database failed.
    #[error("mint database: {0}")]
    Database(#[from] cdk_common::database::Error),
    /// A record that does not decode.
    #[error("the mint database holds {0} that is damaged; restore it from a backup")]
    Damaged(&'static str),
    /// A record that a later hashpit wrote.
    #[error("the mint database holds {0} of a newer version; upgrade hashpit")]
    NewerVersion(&'static str),
    /// Totals that contradict each other.
    #[error("the books do not balance: {0}")]
    Unbalanced(#[from] UnitError),
    /// The actor has stopped.
    #[error("the ledger has stopped")]
    Stopped,
}

/// What became of blanks that a miner sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlanksOutcome {
    /// Held, those that were new; `held` is how many there are now.
    Held {
        /// Blanks held for the miner.
        held: usize,
    },
    /// Not held; the text says why, with a Nostr prefix.
    Refused(String),
}

/// A batch to sign.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom it is for.
    pub miner: PublicKey,
    /// The blanks, with the amounts that the ledger gave them.
    pub outputs: Vec<BlindedMessage>,
}

/// Totals of all miners, for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Miners with an account.
    pub miners: usize,
    /// Shares credited.
    pub shares: u64,
    /// Work credited.
    pub work: Work,
    /// Units issued.
    pub issued: HashUnits,
    /// Batches issued.
    pub batches: u64,
}

pub(crate) enum Command {
    AddBlanks {
        miner: PublicKey,
        keyset: Id,
        outputs: Vec<CashuKey>,
        reply: oneshot::Sender<BlanksOutcome>,
    },
    Plan {
        reply: oneshot::Sender<Vec<Plan>>,
    },
    Issue {
        plan: Plan,
        signatures: Vec<BlindSignature>,
        reply: oneshot::Sender<Option<u64>>,
    },
    Abandon {
        miner: PublicKey,
    },
    Ack {
        miner: PublicKey,
        batches: Vec<u64>,
    },
    Statement {
        miner: PublicKey,
        of: EventId,
        reply: oneshot::Sender<Statement>,
    },
}

/// A cheap handle to the ledger.
#[derive(Clone)]
pub struct Ledger {
    commands: mpsc::Sender<Command>,
    store: DynMintDatabase,
    epoch: Arc<Epoch>,
    tables: Arc<Tables>,
    ready: Arc<Notify>,
    totals: watch::Receiver<Totals>,
}

impl Ledger {
    /// The epoch that shares are credited to.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Totals of all miners.
    pub fn totals(&self) -> Totals {
        *self.totals.borrow()
    }

    /// Waits until there may be something to issue.
    pub async fn ready(&self) {
        self.ready.notified().await;
    }

    /// Holds a miner's blanks for coming batches. Known ones are passed over.
    pub async fn add_blanks(
        &self,
        miner: PublicKey,
        keyset: Id,
        outputs: Vec<CashuKey>,
    ) -> Result<BlanksOutcome, LedgerError> {
        self.ask(|reply| Command::AddBlanks { miner, keyset, outputs, reply }).await
    }

    /// Batches that are due. Each must come back by [`Self::issue`] or
    /// [`Self::abandon`]; until then its miner gets no other.
    pub async fn plan(&self) -> Result<Vec<Plan>, LedgerError> {
        self.ask(|reply| Command::Plan { reply }).await
    }

    /// Records a signed batch and returns its number, once it is durable.
    /// `None` if a blank turned out to be used: those are dropped and the
    /// units stay credited.
    pub async fn issue(
        &self,
        plan: Plan,
        signatures: Vec<BlindSignature>,
    ) -> Result<Option<u64>, LedgerError> {
        self.ask(|reply| Command::Issue { plan, signatures, reply }).await
    }

    /// Gives up a plan that could not be signed.
    pub async fn abandon(&self, miner: PublicKey) -> Result<(), LedgerError> {
        self.send(Command::Abandon { miner }).await
    }

    /// The miner has stored these batches.
    pub async fn ack(&self, miner: PublicKey, batches: Vec<u64>) -> Result<(), LedgerError> {
        self.send(Command::Ack { miner, batches }).await
    }

    /// A miner's running totals, in answer to its message `of`; zeros for a
    /// stranger.
    pub async fn statement(&self, miner: PublicKey, of: EventId) -> Result<Statement, LedgerError> {
        self.ask(|reply| Command::Statement { miner, of, reply }).await
    }

    /// A batch as it was issued; `None` if there is none of that number.
    pub async fn batch(
        &self,
        miner: &PublicKey,
        number: u64,
    ) -> Result<Option<Batch>, LedgerError> {
        let key = records::batch_key(miner, number);
        let Some(row) = self.store.kv_read(NAMESPACE, &self.tables.batches, &key).await? else {
            return Ok(None);
        };
        let blanks = Vec::from(records::decode_blanks(&row)?);
        let signatures = self.store.get_blind_signatures(&blanks).await?;
        let signed = blanks.into_iter().zip(signatures).map(|(blank, signature)| {
            let signature = signature.ok_or(LedgerError::Damaged("a batch without signatures"))?;
            Ok(SignedBlank { blank, signature })
        });
        let signatures = signed.collect::<Result<_, LedgerError>>()?;
        Ok(Some(Batch { unit: self.epoch.id, batch: number, signatures }))
    }

    /// Batches that no miner has acknowledged yet.
    pub async fn unacked(&self) -> Result<Vec<(PublicKey, u64)>, LedgerError> {
        let keys = self.store.kv_list(NAMESPACE, &self.tables.unacked).await?;
        keys.iter().map(|key| records::parse_batch_key(key)).collect()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| LedgerError::Stopped)
    }

    async fn send(&self, command: Command) -> Result<(), LedgerError> {
        self.commands.send(command).await.map_err(|_| LedgerError::Stopped)
    }
}
