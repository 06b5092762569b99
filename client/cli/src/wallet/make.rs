//! `hashpit wallet init | restore | keys`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use hashpit_client::Wallet;
use hashpit_client::wallet::{Remains, RestoreStep, RestoredAt};
use hashpit_nips::{Seed, seed_file};
use nostr_sdk::ToBech32;
use serde_json::json;

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
pub async fn restore(dir: &Path, options: args::Restore, json: bool) -> anyhow::Result<()> {
    if options.relays.is_empty() && options.mints.is_empty() {
        bail!("where from? name a relay with --relay <url>, or a mint with --mint <url>");
    }
    let seed: Seed = terminal::read("Type your twelve words")?.parse()?;
    let password = options.encrypt.then(terminal::new_password).transpose()?;
    let mut wallet = Wallet::create(dir, seed, password.as_deref()).await?;
    if let Some(uri) = &options.signer {
        wallet.use_remote_signer(uri).await?;
    }
    let bar = if json { indicatif::ProgressBar::hidden() } else { terminal::bar("restoring") };
    let remains = Remains { mints: options.mints.into_iter().collect(), ..Remains::default() };
    let show = bar.clone();
    let report = wallet
        .restore(&remains, &move |step| match step {
            RestoreStep::Checked(done, all) => {
                show.set_length(all as u64);
                show.set_position(done as u64);
            }
            RestoreStep::Scanned(keyset, counter) => {
                show.set_message(format!("{keyset} up to {counter}"));
            }
        })
        .await?;
    bar.finish_and_clear();
    print_restored(&wallet, &report, json).await
}

async fn print_restored(
    wallet: &Wallet,
    report: &BTreeMap<String, RestoredAt>,
    json: bool,
) -> anyhow::Result<()> {
    let Ok(npub) = wallet.public_key().to_bech32();
    let balances = wallet.balances().await?;
    if json {
        println!("{}", json!({ "npub": npub, "mints": report, "balances": balances }));
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
