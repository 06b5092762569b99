//! `hashpit trade …`: trades after the exchange has matched them.
//!
//! | module | what lives in it |
//! |---|---|
//! | `args` | the command line |
//! | `show` | `list`, `show` |
//! | `watch` | `watch`, `resume` |
//! | `wish` | `refund`, `cancel` |
//! | `evidence` | `evidence` |
//! | `background` | settling that goes on after a command has ended |
//! | `words` | trades in words, and as JSON |
//!
//! One settler at a time drives a wallet's trades at one exchange, whichever
//! process it is in. Roles that trade settle by `crate::settling`.

pub mod args;
pub mod background;
mod evidence;
mod show;
mod watch;
mod wish;
mod words;

use std::path::Path;

use anyhow::bail;
use args::{Trade, TradeCommand};
use hashpit_client::Wallet;
use hashpit_client::settle::{Record, SettleError, Wish};
use tokio_util::sync::CancellationToken;
use watch::{Until, Watching};

use crate::config;
use crate::wallet::open;

/// `hashpit trade …`.
pub async fn run(
    options: Trade,
    settings: &config::Trade,
    data_dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Trade { at, command } = options;
    if let TradeCommand::Evidence { file } = &command {
        return evidence::run(file, at.json).await;
    }
    let wallet = open(&data_dir.join("wallet")).await?;
    match command {
        TradeCommand::Evidence { .. } => unreachable!("done above"),
        TradeCommand::List { all } => show::list(&wallet, all, at.json).await,
        TradeCommand::Show { id, follow } => {
            show::show(&wallet, &at, settings, data_dir, (id, follow), shutdown).await
        }
        TradeCommand::Watch { until_idle } => {
            let until = if until_idle { Until::Idle } else { Until::Stopped };
            Watching::open(&wallet, &at, settings).await?.run(until, shutdown).await
        }
        TradeCommand::Resume { id } => {
            let until = match id {
                Some(id) => Until::Over(find(&wallet, &id).await?.id()),
                None => Until::AllOver,
            };
            Watching::open(&wallet, &at, settings).await?.run(until, shutdown).await
        }
        TradeCommand::Refund { id } => {
            wish::grant(&wallet, &at, settings, (&id, Wish::Refund), shutdown).await
        }
        TradeCommand::Cancel { id } => {
            wish::grant(&wallet, &at, settings, (&id, Wish::Cancel), shutdown).await
        }
    }
}

/// The trade whose id begins so.
async fn find(wallet: &Wallet, id: &str) -> anyhow::Result<Record> {
    let mut trades = wallet.trades().await?;
    trades.retain(|trade| !id.is_empty() && trade.id().to_hex().starts_with(id));
    match trades.len() {
        0 => Err(SettleError::NoTrade(id.to_owned()).into()),
        1 => Ok(trades.remove(0)),
        _ => bail!("several trades begin with {id:?}; type more of it"),
    }
}
