//! `hashpit wallet backup …`: the wallet on Nostr relays.

use std::collections::BTreeMap;

use anyhow::bail;
use hashpit_client::Wallet;
use hashpit_client::backup::{Backup, Finding, RelayStatus, Repaired, Settings, Synced, Verified};
use nostr_sdk::{RelayUrl, Timestamp};
use serde::Serialize;

use crate::args::{self, BackupCommand};

/// Runs one of the commands, or else sets what was given and backs up.
pub async fn run(wallet: &Wallet, options: args::Backup, json: bool) -> anyhow::Result<()> {
    let settings = settings(wallet, &options).await?;
    let backup = Backup::connect(wallet, settings)?;
    match options.command {
        None => synced(&backup.sync().await?, backup.settings(), json),
        Some(BackupCommand::Status) => {
            let status = backup.status().await?;
            if json {
                return print(&status);
            }
            let whole = match (status.protected, status.unwritten) {
                (true, _) => "Every token is on a quorum of relays.".to_owned(),
                (false, 0) => "Too few relays hold every token.".to_owned(),
                (false, new) => format!("{new} proofs are in no backup yet."),
            };
            let next = if status.protected { "" } else { " Run `hashpit wallet backup`." };
            println!("{whole}{next} Quorum: {} of {}.", status.quorum, status.relays.len());
            println!("{:>9}  {:>9}  {:>9}  relay", "expected", "confirmed", "undeleted");
            status.relays.iter().for_each(relay_status);
            Ok(())
        }
        Some(BackupCommand::Verify) => {
            let verified = backup.verify().await?;
            if json {
                print(&verified)?;
            } else {
                findings(&verified);
            }
            if !verified.is_clean() {
                bail!("the backup is not what it should be; run `hashpit wallet backup repair`");
            }
            Ok(())
        }
        Some(BackupCommand::Repair) => {
            let repaired = backup.repair().await?;
            if json {
                print(&repaired)?;
            } else {
                report_repair(&repaired);
            }
            if !repaired.after.is_clean() {
                bail!("some relays do not do as they should; consider others in their place");
            }
            Ok(())
        }
    }
}

/// What is set, changed by what was given.
async fn settings(wallet: &Wallet, options: &args::Backup) -> anyhow::Result<Settings> {
    let mut settings = wallet.backup_settings().await?;
    if options.relays.is_empty() && options.quorum.is_none() {
        return Ok(settings);
    }
    if !options.relays.is_empty() {
        // The old quorum was of other relays.
        settings = Settings { relays: Vec::new(), quorum: None };
        for relay in &options.relays {
            if !settings.relays.contains(relay) {
                settings.relays.push(relay.clone());
            }
        }
    }
    settings.quorum = options.quorum.or(settings.quorum);
    // Refused before it is kept.
    Backup::connect(wallet, settings.clone())?;
    wallet.set_backup_settings(&settings).await?;
    Ok(settings)
}

fn print(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

fn synced(synced: &Synced, settings: &Settings, json: bool) -> anyhow::Result<()> {
    if json {
        return print(synced);
    }
    let Synced { tokens, written, deleted, lagging } = synced;
    let relays = settings.relays.len();
    println!("{tokens} token events on {} of {relays} relays.", relays - lagging.len());
    println!("{written} written, {deleted} deleted.");
    lag(lagging);
    Ok(())
}

fn lag(lagging: &BTreeMap<RelayUrl, String>) {
    for (relay, why) in lagging {
        eprintln!("{relay} lags: {why}. It gets what it lacks with the next backup.");
    }
}

fn relay_status(status: &RelayStatus) {
    let RelayStatus { relay, expected, confirmed, undeleted, trouble, trouble_at } = status;
    println!("{expected:>9}  {confirmed:>9}  {undeleted:>9}  {relay}");
    if let (Some(trouble), Some(at)) = (trouble, trouble_at) {
        println!("{:>33}{trouble} ({})", "", Timestamp::from(*at).to_human_datetime());
    }
}

fn findings(verified: &Verified) {
    println!(
        "{:>8}  {:>8}  {:>8}  {:>8}  {:>8}  relay",
        "present", "missing", "stale", "damaged", "unknown"
    );
    for finding in &verified.relays {
        let Finding { relay, present, missing, stale, damaged, unknown, error } = finding;
        let (missing, stale, unknown) = (missing.len(), stale.len(), unknown.len());
        println!("{present:>8}  {missing:>8}  {stale:>8}  {damaged:>8}  {unknown:>8}  {relay}");
        if let Some(error) = error {
            println!("{:>50}{error}", "");
        }
    }
}

fn report_repair(repaired: &Repaired) {
    println!("Before:");
    findings(&repaired.before);
    println!("After:");
    findings(&repaired.after);
    lag(&repaired.synced.lagging);
}
