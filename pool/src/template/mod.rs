//! Where block templates come from and where solved blocks go.
//!
//! One trait, [`TemplateSource`], in the words of Sv2's Template Distribution
//! Protocol (Sv2 7): a source announces `NewTemplate` and `SetNewPrevHash` and
//! takes `SubmitSolution`. Coinbase outputs beyond the template's own are the
//! pool's, so a source never learns who is paid.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`embedded`] | a chain of the pool's own, for trying everything on one machine |
//! | `rules` | what makes a block of that chain valid |
//! | `blocks` | the file that its blocks are kept in |

mod blocks;
pub mod embedded;
mod rules;

use std::sync::Arc;

use async_trait::async_trait;
use stratum_apps::stratum_core::template_distribution_sv2::{
    NewTemplateOwned, SetNewPrevHashOwned, SubmitSolutionOwned,
};
use tokio::sync::watch;

pub use embedded::{EmbeddedChain, EmbeddedConfig};
pub use rules::{Bits, RuleError, subsidy};

/// What miners work on now.
#[derive(Debug, Clone)]
pub struct CurrentTemplate {
    /// The newest template of the current tip (Sv2 7.2).
    pub template: NewTemplateOwned,
    /// The tip that it builds on, naming this template's id (Sv2 7.3).
    pub prev_hash: SetNewPrevHashOwned,
    /// Height of the block that the template would become.
    pub height: u32,
    /// Grows with every tip, and whenever the same tip is announced afresh.
    ///
    /// A `watch` may skip values, so a reader learns from this number, not
    /// from a flag, whether its miners have to leave their jobs.
    pub announcement: u64,
}

/// A source of templates: the embedded chain, or a real node.
#[async_trait]
pub trait TemplateSource: std::fmt::Debug + Send + Sync + 'static {
    /// What miners work on, now and from now on.
    fn subscribe(&self) -> watch::Receiver<Arc<CurrentTemplate>>;

    /// Hands over a solved block.
    ///
    /// `Ok` says that the source took it, not that the chain did: Bitcoin Core
    /// gives no verdict here (Sv2 7.7 has no answer). The block counts when a
    /// later [`CurrentTemplate::prev_hash`] names it.
    async fn submit(&self, solution: SubmitSolutionOwned) -> Result<(), SubmitError>;
}

/// Why a solution was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// Its template belongs to a tip that has been built upon.
    #[error("the block is stale: template {0} is of an earlier tip")]
    Stale(u64),
    /// No such template was ever given out.
    #[error("template {0} is unknown")]
    UnknownTemplate(u64),
    /// The coinbase cannot be decoded.
    #[error("the coinbase is no transaction")]
    Coinbase(#[from] bitcoin::consensus::encode::Error),
    /// The block breaks a rule of the chain.
    #[error("the block is invalid: {0}")]
    Invalid(#[from] RuleError),
    /// The block is valid, but could not be made durable.
    #[error("the block could not be stored")]
    Store(#[from] std::io::Error),
    /// The source has stopped.
    #[error("the template source has stopped")]
    Stopped,
}
