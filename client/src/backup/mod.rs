//! Backup of the wallet to Nostr relays (EH-03, NIP-60).
//!
//! Order of writing, so that a crash or a relay anywhere loses nothing: sign and
//! store the new events; publish them to every relay and read them back; only
//! when a quorum has all of them, delete what they replace. Every step can be
//! repeated, and [`Backup::sync`] repeats all that is not known to be done.
//!
//! | module | what lives in it |
//! |---|---|
//! | `plan` | which events to write and which to delete: pure |
//! | `book` | what the relays hold, as far as we know: pure |
//! | `records` | the book on disk |
//! | `state` | what the wallet knows besides its proofs (kind 17375) |
//! | `link`, `relay` | connections to relays, and what can be believed of them |
//! | `sync` | makes the relays hold what the wallet holds |
//! | `audit` | status, verify, repair |
//! | [`fetch`](fn@fetch) | reads a backup from relays |
//!
//! The wallet's lock is held while records are read or written, never while a
//! relay or a signer is waited for.

mod audit;
mod book;
mod fetch;
mod link;
mod plan;
mod records;
mod relay;
mod state;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cdk::nuts::CurrencyUnit;
use nostr_sdk::{NostrSigner, RelayUrl};
use serde::{Deserialize, Serialize};

pub use audit::{Finding, RelayStatus, Repaired, Status, Verified};
pub use fetch::{FetchProgress, Found, FoundToken, fetch};
pub use sync::Synced;

use crate::wallet::{Wallet, WalletError};

/// Which relays hold the backup, and how many of them must.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The relays.
    pub relays: Vec<RelayUrl>,
    /// How many must hold every token before one counts as backed up; more than
    /// half, if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<usize>,
}

impl Settings {
    /// How many relays must hold every token.
    pub fn needed(&self) -> usize {
        self.quorum.unwrap_or(self.relays.len() / 2 + 1).max(1)
    }

    fn confirmations(&self, relays: &BTreeSet<RelayUrl>) -> usize {
        self.relays.iter().filter(|relay| relays.contains(relay)).count()
    }
}

/// Why a backup was not made, or not read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// No relays are set.
    #[error("no relays are set; name some with `hashpit wallet backup --relay <url>`")]
    NoRelays,
    /// More relays must agree than there are.
    #[error("a quorum of {quorum} needs as many relays, and {relays} are set; set more, or less")]
    Quorum {
        /// What was asked for.
        quorum: usize,
        /// How many relays there are.
        relays: usize,
    },
    /// Too few relays hold the tokens.
    #[error(
        "{have} of the {need} relays needed hold the backup ({}); the tokens are safe in this \
         wallet, and the next backup sends them again",
        in_words(relays)
    )]
    NoQuorum {
        /// Relays that hold every token.
        have: usize,
        /// How many must.
        need: usize,
        /// What is wrong with the others.
        relays: BTreeMap<RelayUrl, String>,
    },
    /// No relay could be read to its end.
    #[error("no relay could be read ({}); check their addresses, or name others", in_words(.0))]
    Unread(BTreeMap<RelayUrl, String>),
    /// The signer refused, or does not answer.
    #[error("signing or encrypting for {author}: {reason}")]
    Signer {
        /// Whose key.
        author: Author,
        /// Why.
        reason: String,
    },
    /// Another process writes backups faster than this one can plan.
    #[error("the wallet keeps changing; try again when no other command is running")]
    Unsteady,
}

fn in_words(relays: &BTreeMap<RelayUrl, String>) -> String {
    let words: Vec<_> = relays.iter().map(|(relay, why)| format!("{relay}: {why}")).collect();
    words.join("; ")
}

/// Who authors an event: existing NIP-60 wallets read every token as sat, so
/// only sats are authored by the key that they look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// The key of all but sats: account 1 of the words.
    Ehash,
    /// The wallet's Nostr identity.
    Identity,
}

impl Author {
    pub(crate) const ALL: [Self; 2] = [Self::Ehash, Self::Identity];

    fn of(unit: &CurrencyUnit) -> Self {
        if *unit == CurrencyUnit::Sat { Self::Identity } else { Self::Ehash }
    }
}

impl std::fmt::Display for Author {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ehash => "ehash",
            Self::Identity => "the Nostr identity",
        })
    }
}

/// Keeps a wallet's backup on some relays.
#[derive(Clone)]
pub struct Backup {
    wallet: Wallet,
    settings: Settings,
    signers: Signers,
}

/// The two authors' signers.
#[derive(Clone)]
struct Signers {
    ehash: Arc<dyn NostrSigner>,
    identity: Arc<dyn NostrSigner>,
}

impl Signers {
    fn of(&self, author: Author) -> Arc<dyn NostrSigner> {
        match author {
            Author::Ehash => self.ehash.clone(),
            Author::Identity => self.identity.clone(),
        }
    }
}

impl Backup {
    /// A backup of `wallet` on the relays of `settings`. Connects when it has
    /// something to say.
    pub fn connect(wallet: &Wallet, settings: Settings) -> Result<Self, BackupError> {
        let (quorum, relays) = (settings.needed(), settings.relays.len());
        if relays == 0 {
            return Err(BackupError::NoRelays);
        }
        if quorum > relays {
            return Err(BackupError::Quorum { quorum, relays });
        }
        let signers = Signers { ehash: Arc::new(wallet.backup_keys()), identity: wallet.signer() };
        Ok(Self { wallet: wallet.clone(), settings, signers })
    }

    /// The relays and the quorum.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
