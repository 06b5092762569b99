//! The command line of `hashpit trade`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::trade::args::At;

/// `hashpit trade`.
#[derive(Debug, clap::Args)]
pub struct Trade {
    #[command(flatten)]
    pub at: At,
    #[command(subcommand)]
    pub command: TradeCommand,
}

#[derive(Debug, Subcommand)]
pub enum TradeCommand {
    /// Show your trades that are under way.
    List {
        /// Those that are over too.
        #[arg(long)]
        all: bool,
    },
    /// Show a trade step by step: what is done, who is next, and until when.
    Show {
        /// How its id begins: see `hashpit trade list`.
        id: String,
        /// Go on until it is over.
        #[arg(long)]
        follow: bool,
    },
    /// Settle trades until stopped.
    ///
    /// It takes up whatever an earlier run has left, at any step.
    Watch {
        /// End once no offer of yours stands, and no trade is under way.
        #[arg(long)]
        until_idle: bool,
    },
    /// Settle until a trade, or every trade, is over.
    Resume {
        /// How its id begins; all, if left out.
        id: Option<String>,
    },
    /// Take your locked sats back as soon as their locktime allows, rather than wait
    /// for the seller.
    Refund {
        /// How its id begins.
        id: String,
    },
    /// Give a trade up in which nothing of yours is locked yet.
    Cancel {
        /// How its id begins.
        id: String,
    },
    /// Check evidence that a mint keeps what it owes; anybody's, without a wallet.
    Evidence {
        /// As `hashpit trade show` names it.
        file: PathBuf,
    },
}
