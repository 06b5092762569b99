//! `hashpit trade refund | cancel`.

use std::time::Duration;

use anyhow::bail;
use hashpit_client::Wallet;
use hashpit_client::settle::{self, Record, Role, SettleError, Stage, Wish};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::find;
use super::watch::{Until, Watching};
use super::words::{self, TIMING};
use crate::config;
use crate::trade::args::At;

/// How long the process that settles may take to grant a wish.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two looks whether it has, on this disk.
const LOOK: Duration = Duration::from_millis(200);

/// Has a wish granted, or says why it cannot be.
pub async fn grant(
    wallet: &Wallet,
    at: &At,
    settings: &config::Trade,
    (id, wish): (&str, Wish),
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let trade = find(wallet, id).await?;
    if let Err(why) = trade.grants(wish) {
        if let Stage::Refunding { .. } = trade.stage {
            return told(&trade, at.json);
        }
        bail!("{why}. {}", instead(&trade, wish));
    }
    settle::wish(wallet, trade.id(), wish).await?;
    let at = At { exchange: Some(trade.exchange()), ..at.clone() };
    match Watching::open(wallet, &at, settings).await {
        Ok(watching) => watching.quietly().run(Until::Granted(trade.id()), shutdown).await?,
        Err(error) => match error.downcast_ref() {
            Some(SettleError::Busy) => wait(wallet, &trade).await?,
            _ => return Err(error),
        },
    }
    let trade = find(wallet, &trade.id().to_hex()).await?;
    if !trade.is_over() && !matches!(trade.stage, Stage::Refunding { .. }) {
        bail!("it is not granted yet, and stays wished for; see `hashpit trade show {id}`");
    }
    told(&trade, at.json)
}

/// Waits for the process that settles.
async fn wait(wallet: &Wallet, trade: &Record) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let now = find(wallet, &trade.id().to_hex()).await?;
        if now.is_over() || matches!(now.stage, Stage::Refunding { .. }) {
            break;
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// What can be done in its place.
fn instead(trade: &Record, wish: Wish) -> String {
    let (now, own) = (words::now(), trade.own_locktime(&TIMING));
    let show = format!("see `hashpit trade show {}`", words::short(trade));
    match (&trade.stage, trade.role, wish) {
        (Stage::Over { .. }, _, _) => show,
        (Stage::Waiting, Role::Seller, _) => format!(
            "That is at {} UTC, {}; `hashpit trade watch` takes it back by itself then",
            words::clock(own),
            words::countdown(own, now)
        ),
        (Stage::Agreeing, _, Wish::Refund) => {
            format!("Give it up with `hashpit trade cancel {}`", words::short(trade))
        }
        (Stage::Waiting, Role::Buyer, Wish::Cancel) => {
            format!("Take it back with `hashpit trade refund {}`", words::short(trade))
        }
        _ => format!("Try again in a moment; {show}"),
    }
}

fn told(trade: &Record, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", words::json(trade));
        return Ok(());
    }
    let (now, own) = (words::now(), trade.own_locktime(&TIMING));
    match &trade.stage {
        Stage::Refunding { .. } if own > now => println!(
            "What you have locked can be taken back at {} UTC, {}; `hashpit trade watch` does it \
             by itself.",
            words::clock(own),
            words::countdown(own, now)
        ),
        Stage::Refunding { .. } => {
            println!("It is being taken back; `hashpit trade watch` goes on until it is.");
        }
        _ => println!("{}", words::line(trade, now)),
    }
    Ok(())
}
