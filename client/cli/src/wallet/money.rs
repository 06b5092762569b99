//! `hashpit wallet balance | send | receive | history | reclaim`.

use hashpit_client::Wallet;
use hashpit_client::backup::Backup;
use hashpit_client::wallet::{Balance, Entry, Received, Status, What};
use nostr_sdk::ToBech32;
use serde_json::json;

use super::{noun, short_unit};
use crate::args;
use crate::terminal::{self, grouped};

/// `hashpit wallet balance`.
pub async fn balance(wallet: &Wallet, json: bool) -> anyhow::Result<()> {
    let balances = wallet.balances().await?;
    if json {
        println!("{}", serde_json::to_string(&balances)?);
        return Ok(());
    }
    if balances.is_empty() {
        let Ok(npub) = wallet.public_key().to_bech32();
        println!("Nothing yet. Mine under {npub}, then run `hashpit wallet claim`.");
        return Ok(());
    }
    let mut table = terminal::table(&["amount", "pending", "unit", "epoch", "mint"], &[0, 1]);
    for Balance { unit, mint, amount, pending, state } in balances {
        let state = state.map(|state| state.to_string()).unwrap_or_default();
        let mint = mint.escape_debug().to_string();
        table.add_row([grouped(amount), grouped(pending), short_unit(&unit), state, mint]);
    }
    terminal::print(&table);
    say_if_unsafe(wallet).await
}

/// Says if the backup is not what it should be.
async fn say_if_unsafe(wallet: &Wallet) -> anyhow::Result<()> {
    let settings = wallet.backup_settings().await?;
    if settings.relays.is_empty() {
        println!("\nNot backed up: `hashpit wallet backup --relay <url>` names relays for it.");
        return Ok(());
    }
    if !Backup::connect(wallet, settings)?.status().await?.protected {
        println!("\nNot all of it is backed up yet; see `hashpit wallet backup status`.");
    }
    Ok(())
}

/// `hashpit wallet send`.
pub async fn send(wallet: &Wallet, options: args::Send, json: bool) -> anyhow::Result<()> {
    let token = wallet.send(options.amount, options.unit.as_deref()).await?.to_string();
    // The token first: it is out of the wallet already.
    if json {
        println!("{}", json!({ "token": token, "amount": options.amount }));
        back_up(wallet).await?;
        return Ok(());
    }
    println!("{token}");
    back_up(wallet).await?;
    if options.qr {
        match terminal::qr(&token) {
            Ok(code) => eprintln!("\n{code}"),
            Err(error) => eprintln!("No QR code: {error}. Send a rounder amount, or the string."),
        }
    }
    eprintln!("This string is the money: whoever receives it first has it.");
    eprintln!("Not needed after all? `hashpit wallet history`, then `hashpit wallet reclaim`.");
    Ok(())
}

/// `hashpit wallet receive`.
pub async fn receive(wallet: &Wallet, options: args::Receive, json: bool) -> anyhow::Result<()> {
    let token = match options.token {
        Some(token) if token != "-" => token,
        _ => terminal::read("Paste the token")?,
    };
    let received = wallet.receive(&token).await?;
    let backed_up = back_up(wallet).await?;
    if json {
        let Received { unit, mint, amount } = received;
        let told = json!({ "unit": unit, "mint": mint, "amount": amount, "backed_up": backed_up });
        println!("{told}");
    } else {
        println!("{} {} received.", grouped(received.amount), noun(&received.unit));
    }
    Ok(())
}

/// Brings the backup to where the wallet is, if it has one; true if it is there.
/// That it is not is said, and is no failure: the tokens are in the wallet.
pub async fn back_up(wallet: &Wallet) -> anyhow::Result<bool> {
    let settings = wallet.backup_settings().await?;
    if settings.relays.is_empty() {
        return Ok(false);
    }
    match Backup::connect(wallet, settings)?.sync().await {
        Ok(_) => Ok(true),
        Err(error) => {
            eprintln!("Not backed up yet: {}.", terminal::printable(&error.to_string()));
            Ok(false)
        }
    }
}

/// `hashpit wallet history`.
pub async fn history(wallet: &Wallet, options: args::History, json: bool) -> anyhow::Result<()> {
    let mut entries = wallet.history().await?;
    if !options.batches {
        entries = merge_claims(entries);
    }
    entries.truncate(options.limit);
    if json {
        println!("{}", serde_json::to_string(&entries)?);
        return Ok(());
    }
    if entries.is_empty() {
        println!("Nothing yet.");
        return Ok(());
    }
    let head = ["when", "what", "amount", "unit", "status", "id"];
    let mut table = terminal::table(&head, &[2]);
    for entry in &entries {
        table.add_row(row(entry));
    }
    terminal::print(&table);
    Ok(())
}

fn row(entry: &Entry) -> [String; 6] {
    let (what, sign) = match entry.what {
        What::Claimed => ("claimed", '+'),
        What::Received => ("received", '+'),
        What::Sent => ("sent", '−'),
        What::Deposited => ("deposited", '+'),
        What::Withdrawn => ("withdrawn", '−'),
    };
    let status = match (entry.status, entry.what) {
        (Status::Pending, _) => "pending",
        (Status::Completed, _) => "",
        (Status::Failed, What::Sent) => "taken back",
        (Status::Failed, _) => "failed",
    };
    // Ids of one minute begin alike.
    let end = entry.id.len().saturating_sub(12);
    let id = if entry.what == What::Sent { &entry.id[end..] } else { "" };
    let amount = format!("{sign}{}", grouped(entry.amount));
    let (when, unit) = (terminal::ago(entry.at), short_unit(&entry.unit));
    [when, what.to_owned(), amount, unit, status.to_owned(), id.to_owned()]
}

/// Batches of a pool that follow one another, as one entry.
fn merge_claims(entries: Vec<Entry>) -> Vec<Entry> {
    let mut merged: Vec<Entry> = Vec::new();
    for entry in entries {
        match merged.last_mut() {
            Some(last)
                if last.what == What::Claimed
                    && entry.what == What::Claimed
                    && last.unit == entry.unit =>
            {
                last.amount = last.amount.saturating_add(entry.amount);
            }
            _ => merged.push(entry),
        }
    }
    merged
}

/// `hashpit wallet reclaim`.
pub async fn reclaim(wallet: &Wallet, options: args::Reclaim, json: bool) -> anyhow::Result<()> {
    let entry = wallet.reclaim(&options.id).await?;
    back_up(wallet).await?;
    if json {
        println!("{}", json!({ "amount": entry.amount, "unit": entry.unit }));
    } else {
        println!("{} {} taken back; the token is void.", grouped(entry.amount), noun(&entry.unit));
    }
    Ok(())
}
