//! `hashpit wallet deposit` and `withdraw`: sats in and out by Lightning.

use anyhow::{bail, ensure};
use hashpit_client::Wallet;
use hashpit_client::wallet::{Deposited, MintUrl};
use hashpit_nips::Sats;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::money::back_up;
use crate::args;
use crate::terminal::{self, grouped};

/// `hashpit wallet deposit`.
pub async fn deposit(
    wallet: &Wallet,
    options: args::Deposit,
    json: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mint = match options.mint {
        Some(mint) => mint,
        None => only_mint(wallet).await?,
    };
    let deposit = wallet.deposit(&mint, Sats::new(options.sats)).await?;
    // The invoice is what somebody else has to pay, so it is said at once.
    if json {
        println!(
            "{}",
            json!({ "invoice": deposit.invoice, "amount": deposit.amount, "mint": deposit.mint })
        );
    } else {
        println!("{}", deposit.invoice);
        if options.qr {
            // Wallets read either case, and capitals make a smaller code.
            eprintln!("\n{}", terminal::qr(&deposit.invoice.to_uppercase())?);
        }
        let mint = terminal::printable(&deposit.mint);
        eprintln!("Waiting until it is paid; the sats will be tokens of {mint} …");
    }
    let deposited = tokio::select! { biased;
        () = shutdown.cancelled() => Deposited::Waits,
        deposited = wallet.await_deposit(&deposit) => deposited?,
    };
    match deposited {
        Deposited::Waits => bail!("not paid yet; the same command goes on waiting"),
        Deposited::Expired => bail!("the invoice has ended and was not paid; ask for another"),
        Deposited::Done => {}
    }
    let backed_up = back_up(wallet).await?;
    if json {
        println!("{}", json!({ "deposited": deposit.amount, "backed_up": backed_up }));
    } else {
        println!("{} sat deposited.", grouped(deposit.amount));
    }
    Ok(())
}

/// The one mint of sats that the wallet knows.
async fn only_mint(wallet: &Wallet) -> anyhow::Result<MintUrl> {
    let mints = wallet.sat_mints().await?;
    let mut known = mints.iter();
    match (known.next(), known.next()) {
        (Some(mint), None) => Ok(mint.clone()),
        (None, _) => bail!("the wallet knows no mint of sats; name one with --mint <url>"),
        (Some(_), Some(_)) => {
            let names: Vec<_> = mints.iter().map(ToString::to_string).collect();
            bail!(
                "the wallet knows several mints of sats; name one with --mint: {}",
                names.join(", ")
            )
        }
    }
}

/// `hashpit wallet withdraw`.
pub async fn withdraw(wallet: &Wallet, options: args::Withdraw, json: bool) -> anyhow::Result<()> {
    let withdrawal = wallet.quote_withdrawal(&options.invoice, options.mint.as_ref()).await?;
    if !json {
        eprintln!(
            "Paying {} sat from {}; the fee is {} sat at most.",
            grouped(withdrawal.amount),
            withdrawal.mint.escape_debug(),
            grouped(withdrawal.fee_reserve),
        );
    }
    if !(json || options.yes) {
        let answer = terminal::line("Pay? Type yes")?;
        ensure!(matches!(answer.trim(), "y" | "yes"), "not paid");
    }
    let withdrawn = wallet.withdraw(&withdrawal).await?;
    back_up(wallet).await?;
    if json {
        println!("{}", serde_json::to_string(&withdrawn)?);
        return Ok(());
    }
    match withdrawn.fee {
        Some(fee) => println!("{} sat paid, for {fee} sat of fees.", grouped(withdrawn.amount)),
        None => println!(
            "The payment of {} sat is under way; `hashpit wallet balance` shows it as pending \
             until a later command finds out how it ended.",
            grouped(withdrawn.amount)
        ),
    }
    Ok(())
}
