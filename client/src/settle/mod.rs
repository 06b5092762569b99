//! Settlement (EH-06): what two traders do after the exchange has matched them,
//! with nobody in between.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`Settler`] | takes up every match of a wallet, and drives each trade to its end |
//! | [`Record`] | a trade as it is kept, and told to the user |
//! | `trade` | one trade: its context, its messages, and what happens in which order |
//! | `agree` | step 1: what both bring, and whether it fits |
//! | `offer` | what our own offers bind us to |
//! | `buyer`, `seller` | the two scripts |
//! | `legs` | a leg at its mint: lock, check, claim, take back |
//! | `lightning` | the sats by Lightning instead |
//! | `mints` | keysets, and which sat mints are trusted |
//! | `sig_all` | whether a mint knows `SIG_ALL`, tried out |
//! | [`Evidence`] | proof that a mint has taken tokens and keeps what it owes |
//! | `post` | messages in NIP-59 wraps, and reports to the exchange |
//! | [`Watchtower`], `watched` | claims that somebody else may finish |
//! | [`Step`], [`LegView`] | a trade as its user is told of it |
//! | [`obstacles`] | what would keep an offer's fills from being settled |
//! | `keys` | everything secret, derived |
//! | [`recover`] | open trades of a machine that is gone, from the words and a relay |
//!
//! A script may be left at any await, by a kill or a lost machine, and is begun
//! anew: each step first looks at what its record says was done.

mod account;
mod agree;
mod buyer;
mod evidence;
mod keys;
mod legs;
mod lightning;
mod locking;
mod mints;
mod offer;
mod post;
mod ready;
mod record;
mod recover;
mod seller;
mod settler;
mod sig_all;
mod tower;
mod trade;
mod turns;
mod vet;
mod watched;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use cdk::mint_url::MintUrl;
use hashpit_mailbox::MailboxError;
pub use hashpit_nips::eh06::Timing;
use nostr_sdk::{EventId, PublicKey, Timestamp};
use serde::Deserialize;

use crate::nwc::NwcUri;
use crate::trade::TradeError;
use crate::wallet::WalletError;

pub use account::{LegView, Step, Whose};
pub use evidence::{Evidence, Verdict, verify};
pub use ready::{Obstacle, obstacles};
pub use record::{End, Record, Role, Stage, Watched, Wish};
pub use recover::recover;
pub use settler::{Change, Progress, Settler, wish};
pub use tower::{TowerProgress, Watchtower};

/// Why trades cannot be settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The wallet.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The relays.
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    /// The exchange.
    #[error(transparent)]
    Trade(#[from] TradeError),
    /// A record that does not decode.
    #[error("the wallet database holds a damaged record of trade {0}")]
    Damaged(String),
    /// Another process settles this wallet's trades.
    #[error("another hashpit process settles this wallet's trades; it goes on by itself")]
    Busy,
    /// A defect of ours; the trade is taken up again.
    #[error("trade {0} has met a defect of this program; please report it")]
    Panicked(EventId),
    /// No such trade.
    #[error("no trade is called {0:?}; see `hashpit trade list`")]
    NoTrade(String),
}

impl SettleError {
    /// True where the same may succeed at another time.
    fn is_passing(&self) -> bool {
        match self {
            Self::Wallet(error) => error.is_passing(),
            Self::Mailbox(_) | Self::Trade(_) | Self::Panicked(_) => true,
            Self::Damaged(_) | Self::Busy | Self::NoTrade(_) => false,
        }
    }
}

impl From<cdk_common::database::Error> for SettleError {
    fn from(error: cdk_common::database::Error) -> Self {
        Self::Wallet(error.into())
    }
}

/// What a trader risks, and whom it trusts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most sats of one trade.
    pub max_trade_sats: u64,
    /// Most sats in open trades with one counterparty.
    pub max_counterparty_sats: u64,
    /// Fewest sats of one trade.
    pub min_trade_sats: u64,
    /// Mints whose sats are taken, besides those that the wallet has used.
    pub mints: Vec<MintUrl>,
    /// Watchtowers that may finish a claim of ours while we are away.
    pub watchers: Vec<PublicKey>,
    /// The Lightning wallet that pays and is paid; a secret, and so not among the
    /// settings that are read with the others.
    #[serde(skip)]
    pub lightning: Option<NwcUri>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_trade_sats: 100_000,
            max_counterparty_sats: 200_000,
            min_trade_sats: 1,
            mints: Vec::new(),
            watchers: Vec::new(),
            lightning: None,
        }
    }
}

/// The time, which a test may set off.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    /// Seconds that it is ahead of this machine's.
    pub ahead: i64,
}

impl Clock {
    fn now(self) -> u64 {
        Timestamp::now().as_secs().saturating_add_signed(self.ahead)
    }
}

/// Told before and after every effect of a trade, so that a test can end the
/// trader at each of them.
#[derive(Clone, Default)]
pub struct Probe(Option<Arc<At>>);

type At = dyn Fn(&str, bool) -> Pause + Send + Sync;

/// What a probe does at an effect.
pub type Pause = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Probe {
    /// Calls `at` with an effect's name, before it (`true`) and after.
    pub fn new(at: impl Fn(&str, bool) -> Pause + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(at)))
    }

    pub(crate) async fn around<T>(&self, what: &str, effect: impl Future<Output = T>) -> T {
        let Some(at) = &self.0 else { return effect.await };
        at(what, true).await;
        let done = effect.await;
        at(what, false).await;
        done
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Probe({})", self.0.is_some())
    }
}
