//! `hashpit wallet init | restore | keys`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use hashpit_client::Wallet;
use hashpit_client::backup::{self, Backup, FetchProgress, Found};
use hashpit_client::mint::Route;
use hashpit_client::settle;
use hashpit_client::wallet::{Remains, RestoreStep, RestoredAt};
use hashpit_nips::{Seed, seed_file};
use indicatif::ProgressBar;
use nostr_sdk::{RelayUrl, ToBech32};
use serde_json::json;
use tokio::sync::watch;

use crate::args;
use crate::terminal::{self, grouped};

/// `hashpit wallet init`.
pub async fn init(dir: &Path, options: args::Init, json: bool) -> anyhow::Result<()> {
    if Wallet::exists(dir)? {
        bail!(
            "there is a wallet in {} already; choose another --data-dir, or move it away yourself",
            dir.display()
        );
    }
    let password = options.encrypt.then(terminal::new_password).transpose()?;
    let seed = Seed::from_entropy(&rand::random());
    let mut wallet = Wallet::create(dir, seed, password.as_deref()).await?;
    if let Some(uri) = &options.signer {
        eprintln!("Asking the remote signer; allow hashpit there if it asks …");
        wallet.use_remote_signer(uri).await?;
    }
    let Ok(npub) = wallet.public_key().to_bech32();
    let words = wallet.seed().words();
    if json {
        println!("{}", json!({ "npub": npub, "words": words }));
        return Ok(());
    }
    println!("Your twelve words. Write them down; with a relay they bring everything back:\n");
    println!("    {words}\n");
    println!("Whoever has them has your ehash. Your npub, to mine under:\n");
    println!("    {npub}");
    Ok(())
}

/// `hashpit wallet restore`.
pub async fn restore(
    dir: &Path,
    options: args::Restore,
    via: Route,
    json: bool,
) -> anyhow::Result<()> {
    if options.relays.is_empty() && options.mints.is_empty() {
        bail!("where from? name a relay with --relay <url>, or a mint with --mint <url>");
    }
    let seed: Seed = terminal::line("Type your twelve words")?.parse()?;
    let signer = options.signer.map(terminal::signer).transpose()?;
    let password = options.encrypt.then(terminal::new_password).transpose()?;
    let mut wallet = Wallet::create(dir, seed, password.as_deref()).await?;
    if let Some(uri) = &signer {
        wallet.use_remote_signer(uri).await?;
    }
    let wallet = wallet.with_route(via).with_relays(options.relays.clone());
    let found = from_relays(&wallet, &options.relays, json).await?;
    let mut remains = found.as_ref().map(Remains::of).unwrap_or_default();
    if !options.mints.is_empty() {
        // Whoever names a mint wants it asked for everything.
        remains.distrust_counters();
    }
    remains.mints.extend(options.mints);
    if let Some(found) = &found {
        wallet.remember_pools(&found.ehash.pools).await?;
    }
    let bar = if json { ProgressBar::hidden() } else { terminal::bar("asking the mints") };
    let show = bar.clone();
    let report = wallet.restore(&remains, &move |step| show_step(&show, &step)).await?;
    bar.finish_and_clear();
    let mut relays = options.relays;
    if let Some(found) = found {
        for relay in &found.ehash.relays {
            if !relays.contains(relay) {
                relays.push(relay.clone());
            }
        }
        keep_on(&wallet, relays.clone(), &found).await?;
    }
    let trades = open_trades(&wallet, &relays).await;
    print_restored(&wallet, &report, trades, json).await
}

/// How many open trades the relays know of, found before or now.
async fn open_trades(wallet: &Wallet, relays: &[RelayUrl]) -> anyhow::Result<usize> {
    if !relays.is_empty() {
        settle::recover(wallet, relays).await?;
    }
    Ok(wallet.trades().await?.iter().filter(|trade| !trade.is_over()).count())
}

fn show_step(bar: &ProgressBar, step: &RestoreStep) {
    match step {
        RestoreStep::Checked(done, all) => {
            bar.set_length(*all as u64);
            bar.set_position(*done as u64);
        }
        RestoreStep::Scanned(keyset, counter) => {
            bar.set_message(format!("{} up to {counter}", &keyset.to_string()[..12]));
        }
    }
}

/// What the relays kept of this wallet.
async fn from_relays(
    wallet: &Wallet,
    relays: &[RelayUrl],
    json: bool,
) -> anyhow::Result<Option<Found>> {
    if relays.is_empty() {
        return Ok(None);
    }
    let bar = if json { ProgressBar::hidden() } else { terminal::bar("reading relays") };
    let (progress, mut read) = watch::channel(FetchProgress::default());
    let show = bar.clone();
    let showing = tokio::spawn(async move {
        while read.changed().await.is_ok() {
            show.set_message(format!("{} events", read.borrow_and_update().events));
        }
    });
    let ehash = Arc::new(wallet.backup_keys());
    let found = backup::fetch(ehash, wallet.signer(), relays, progress).await;
    showing.await?;
    bar.finish_and_clear();
    let found = found?;
    for (relay, why) in &found.unread {
        eprintln!("{relay} could not be read to its end: {why}");
    }
    for (event, why) in &found.unreadable {
        eprintln!("event {event} could not be read and was left out: {why}");
    }
    Ok(Some(found))
}

/// The restored wallet goes on backing up where it was found, and where its old
/// self did.
async fn keep_on(wallet: &Wallet, relays: Vec<RelayUrl>, found: &Found) -> anyhow::Result<()> {
    let mut settings = wallet.backup_settings().await?;
    for relay in found.ehash.relays.iter().cloned().chain(relays) {
        if !settings.relays.contains(&relay) {
            settings.relays.push(relay);
        }
    }
    wallet.set_backup_settings(&settings).await?;
    Ok(Backup::connect(wallet, settings)?.adopt(found).await?)
}

async fn print_restored(
    wallet: &Wallet,
    report: &BTreeMap<String, RestoredAt>,
    trades: anyhow::Result<usize>,
    json: bool,
) -> anyhow::Result<()> {
    let Ok(npub) = wallet.public_key().to_bech32();
    let balances = wallet.balances().await?;
    if json {
        let mut shown = json!({ "npub": npub, "mints": report, "balances": balances });
        match trades {
            Ok(trades) => shown["trades"] = trades.into(),
            Err(error) => shown["trades_unknown"] = error.to_string().into(),
        }
        println!("{shown}");
        return Ok(());
    }
    for (mint, RestoredAt { proofs, spent, unverified }) in report {
        let (proofs, spent) = (grouped(*proofs as u64), grouped(*spent as u64));
        println!("{mint}: {proofs} proofs brought back; {spent} had been spent.");
        if let Some(why) = unverified {
            println!("    It could not be asked which of them were spent since: {why}");
            println!("    Run the same command again when it answers.");
        }
    }
    match trades {
        Ok(0) => {}
        Ok(trades) => {
            println!(
                "{trades} trades are open; `hashpit trade watch` finishes them, or takes back"
            );
            println!("what was locked. Do it soon: they have deadlines.");
        }
        Err(error) => eprintln!("Open trades could not be looked for: {error}"),
    }
    if report.is_empty() {
        println!("Nothing was found for {npub}; check the words and the relay.");
        return Ok(());
    }
    super::money::balance(wallet, false).await?;
    println!("\n`hashpit wallet claim` fetches what the pool has credited since.");
    Ok(())
}

/// `hashpit wallet keys`.
pub fn keys(wallet: &Wallet, dir: &Path, options: args::Keys, json: bool) -> anyhow::Result<()> {
    if options.encrypt || options.decrypt {
        return reseal(wallet, dir, options.encrypt);
    }
    let Ok(npub) = wallet.public_key().to_bech32();
    let Ok(backup) = wallet.backup_keys().public_key().to_bech32();
    let mut shown = json!({ "npub": npub, "hex": wallet.public_key().to_hex(), "backup": backup });
    if options.words {
        shown["words"] = wallet.seed().words().into();
    }
    if options.ncryptsec {
        let password = terminal::new_password()?;
        let keys = wallet.seed().nostr_keys(hashpit_client::wallet::account::IDENTITY);
        let mut rng = nostr_sdk::secp256k1::rand::rngs::OsRng;
        shown["ncryptsec"] = seed_file::lock_key(keys.secret_key(), &password, &mut rng)?.into();
    }
    if json {
        println!("{shown}");
        return Ok(());
    }
    println!("npub       {npub}");
    println!("backup     {backup}");
    for name in ["words", "ncryptsec"] {
        if let Some(value) = shown[name].as_str() {
            println!("{name:<10} {value}");
        }
    }
    if options.qr {
        println!("\n{}", terminal::qr(&format!("nostr:{npub}"))?);
    }
    Ok(())
}

/// Stores the words encrypted, or as they are.
fn reseal(wallet: &Wallet, dir: &Path, encrypt: bool) -> anyhow::Result<()> {
    let path = dir.join("wallet.seed");
    if encrypt {
        let password = terminal::new_password()?;
        seed_file::write_locked(
            &path,
            wallet.seed(),
            &password,
            &mut nostr_sdk::secp256k1::rand::rngs::OsRng,
        )?;
        println!("{} is encrypted now.", path.display());
    } else {
        seed_file::write(&path, wallet.seed()).context("the words were not rewritten")?;
        println!("{} is not encrypted any more.", path.display());
    }
    Ok(())
}
