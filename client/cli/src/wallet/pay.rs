//! `hashpit wallet pay`, `request`, `receive --inbox` and `outbox`.

use anyhow::Context;
use hashpit_client::Wallet;
use hashpit_client::pay::{self, Arrived, Order, Outcome, Payee, RequestTerms};
use nostr_sdk::ToBech32;
use serde_json::json;
use tracing::warn;

use super::money::back_up;
use super::noun;
use crate::args;
use crate::terminal::{grouped, printable};

/// Tokens of mints that are new to the wallet that one run shows: strangers can
/// send any number.
const MAX_STRANGE: usize = 50;

/// `hashpit wallet pay`.
pub async fn pay(wallet: &Wallet, options: args::Pay, json: bool) -> anyhow::Result<()> {
    let payee: Payee = options.payee.parse()?;
    if !json {
        match (payee.to_string(), payee.recipient()?) {
            (who, at) if who == at => eprintln!("Paying {who} …"),
            (who, at) => eprintln!("Paying {who} at {at} …"),
        }
    }
    let args::Pay { amount, unit, relays, again, .. } = options;
    let order = Order { amount, unit, relays, again };
    let paid = pay::pay(wallet, &payee, &order).await;
    back_up(wallet).await?;
    let paid = paid?;
    // Only now: what waits may be this payment, which must be found before it is
    // delivered and forgotten.
    retry(wallet).await;
    if json {
        println!("{}", serde_json::to_string(&paid)?);
    } else {
        println!("{} {} paid.", grouped(paid.amount), noun(&paid.unit));
    }
    Ok(())
}

/// Delivers what waits; what still waits is said and not an error here.
pub async fn retry(wallet: &Wallet) {
    match pay::deliver_waiting(wallet).await {
        Ok(retried) => {
            for payment in retried {
                let pay::Retried { id, unit, amount, waits } = payment;
                match waits {
                    None => eprintln!("payment {id} of {amount} {} delivered", noun(&unit)),
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
    for line in lines(&arrived) {
        println!("{line}");
    }
    Ok(())
}

fn lines(arrived: &[Arrived]) -> Vec<String> {
    let (strange, known): (Vec<_>, Vec<_>) =
        arrived.iter().partition(|token| token.outcome == Outcome::UnknownMint);
    let mut lines: Vec<_> = known.into_iter().map(line).collect();
    lines.extend(strange.iter().take(MAX_STRANGE).map(|token| line(token)));
    if strange.len() > MAX_STRANGE {
        let more = strange.len() - MAX_STRANGE;
        lines.push(format!("{more} more of mints that are new here; --json shows all."));
    }
    lines
}

fn line(token: &Arrived) -> String {
    let Arrived { from, unit, mint, amount, outcome, .. } = token;
    let Ok(from) = from.to_bech32();
    // A stranger wrote what is escaped here: no control characters on the terminal.
    let what = format!("{} {} from {from}", grouped(*amount), noun(unit));
    match outcome {
        Outcome::Received => format!("{what}: received."),
        Outcome::Spent => format!("{what}: spent already."),
        Outcome::UnknownMint => {
            let mint = mint.escape_debug();
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
            println!("{} {} taken back.", grouped(back.amount), noun(&back.unit));
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
        let waits = waits.map(|reason| format!("waits: {}", printable(&reason)));
        let waits = waits.unwrap_or_else(|| "delivered".to_owned());
        println!("{id}  {} {}  {waits}", grouped(amount), noun(&unit));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nostr_sdk::{EventId, Keys};

    use super::*;

    #[test]
    fn strangers_tokens_neither_fill_the_screen_nor_steer_it() {
        let token = |outcome| Arrived {
            event: EventId::all_zeros(),
            from: Keys::generate().public_key(),
            request: None,
            unit: "\u{1b}[2J".to_owned(),
            mint: "https://\u{1b}[1A.example".to_owned(),
            amount: 1,
            outcome,
        };
        let mut arrived = vec![token(Outcome::UnknownMint); 60];
        arrived.push(token(Outcome::Refused { reason: "\u{7}".to_owned() }));
        let lines = lines(&arrived);
        assert!(lines[0].ends_with(": refused: \\u{7}."), "{}", lines[0]);
        assert_eq!((lines.len(), &lines[51][..8]), (52, "10 more "));
        assert!(lines.iter().all(|line| !line.contains(char::is_control)));
    }
}
