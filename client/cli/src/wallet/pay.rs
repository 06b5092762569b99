//! `hashpit wallet pay`, `request`, `receive --inbox` and `outbox`.

use anyhow::Context;
use hashpit_client::Wallet;
use hashpit_client::pay::{self, Arrived, Order, Outcome, Payee, RequestTerms};
use nostr_sdk::ToBech32;
use serde_json::json;
use tracing::warn;

use super::money::back_up;
use super::short_unit;
use crate::args;

/// `hashpit wallet pay`.
pub async fn pay(wallet: &Wallet, options: args::Pay, json: bool) -> anyhow::Result<()> {
    let payee: Payee = options.payee.parse()?;
    if !json {
        eprintln!("Paying {payee} …");
    }
    retry(wallet).await;
    let order = Order { amount: options.amount, unit: options.unit, relays: options.relays };
    let paid = pay::pay(wallet, &payee, &order).await;
    back_up(wallet).await?;
    let paid = paid?;
    if json {
        println!("{}", serde_json::to_string(&paid)?);
    } else {
        println!("{} ehash of {} paid.", paid.amount, short_unit(&paid.unit));
    }
    Ok(())
}

/// Delivers what waits; what still waits is said and not an error here.
pub async fn retry(wallet: &Wallet) {
    match pay::deliver_waiting(wallet).await {
        Ok(retried) => {
            for payment in retried {
                let pay::Retried { id, amount, waits, .. } = payment;
                match waits {
                    None => eprintln!("payment {id} of {amount} ehash delivered"),
                    Some(reason) => warn!(id, amount, reason, "a payment is not delivered yet"),
                }
            }
        }
        Err(error) => warn!(%error, "payments that wait were not tried"),
    }
}

/// `hashpit wallet request`.
pub async fn request(wallet: &Wallet, options: args::Request, json: bool) -> anyhow::Result<()> {
    let args::Request { amount, unit, mints, relays, description } = options;
    let mints = mints.iter().map(|mint| mint.parse().with_context(|| mint.clone()));
    let mints = mints.collect::<Result<_, _>>()?;
    let terms = RequestTerms { amount, unit, mints, relays, description };
    let request = pay::request(wallet, terms).await?;
    if json {
        println!("{}", json!({ "request": request.to_string(), "id": request.payment_id }));
    } else {
        println!("{request}");
        eprintln!("When it is paid: `hashpit wallet receive --inbox`.");
    }
    Ok(())
}

/// `hashpit wallet receive --inbox`.
pub async fn collect(wallet: &Wallet, options: args::Receive, json: bool) -> anyhow::Result<()> {
    let arrived = pay::collect(wallet, &options.relays, options.any_mint).await?;
    back_up(wallet).await?;
    if json {
        println!("{}", serde_json::to_string(&arrived)?);
        return Ok(());
    }
    if arrived.is_empty() {
        println!("Nothing new.");
    }
    for token in &arrived {
        println!("{}", line(token));
    }
    Ok(())
}

fn line(token: &Arrived) -> String {
    let Arrived { from, unit, mint, amount, outcome, .. } = token;
    let Ok(from) = from.to_bech32();
    // A stranger wrote it: no control characters on the terminal.
    let unit = short_unit(unit).escape_debug().to_string();
    let what = format!("{amount} ehash of {unit} from {from}");
    match outcome {
        Outcome::Received => format!("{what}: received."),
        Outcome::Spent => format!("{what}: spent already."),
        Outcome::UnknownMint => {
            format!("{what}: of the mint {mint}, which is new here; --any-mint receives it.")
        }
        Outcome::Refused { reason } => format!("{what}: refused: {}.", reason.escape_debug()),
        Outcome::Later { reason } => format!("{what}: not now: {}.", reason.escape_debug()),
    }
}

/// `hashpit wallet outbox`.
pub async fn outbox(wallet: &Wallet, options: args::Outbox, json: bool) -> anyhow::Result<()> {
    if let Some(id) = options.take_back {
        let back = wallet.take_back(&id).await?;
        back_up(wallet).await?;
        if json {
            println!("{}", serde_json::to_string(&back)?);
        } else {
            println!("{} ehash of {} taken back.", back.amount, short_unit(&back.unit));
        }
        return Ok(());
    }
    let retried = pay::deliver_waiting(wallet).await?;
    if json {
        println!("{}", serde_json::to_string(&retried)?);
        return Ok(());
    }
    if retried.is_empty() {
        println!("Nothing waits.");
    }
    for pay::Retried { id, unit, amount, waits } in retried {
        let waits = waits.map_or("delivered".to_owned(), |reason| format!("waits: {reason}"));
        println!("{id}  {amount} ehash of {}  {waits}", short_unit(&unit));
    }
    Ok(())
}
