//! `hashpit wallet claim`.

use std::time::Duration;

use anyhow::{Context, bail};
use hashpit_client::Wallet;
use hashpit_client::backup::Settings;
use hashpit_client::issuance::{self, Progress, Until};
use nostr_sdk::{PublicKey, RelayUrl};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{pay, short_unit};
use crate::args;

/// `hashpit wallet claim`.
pub async fn claim(
    wallet: &Wallet,
    options: args::Claim,
    json: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    pay::retry(wallet).await;
    let (pool, relays) = pool_to_claim_from(wallet, options.pool, &options.relays).await?;
    back_up_by_default(wallet, &relays, json).await?;
    let until = match options.follow {
        true => Until::Shutdown,
        false => Until::Settled(Duration::from_secs(options.wait)),
    };
    let (progress, watched) = watch::channel(Progress::default());
    let reporter = (!json).then(|| tokio::spawn(report(watched)));
    let claimed = issuance::claim(wallet, pool, &relays, until, progress, shutdown).await;
    if let Some(reporter) = reporter {
        reporter.await?;
    }
    let claimed = claimed?;
    let Some(epoch) = claimed.epoch else { bail!("stopped before the pool answered") };
    let amount = wallet.ehash(epoch).await?;
    if json {
        let unit = epoch.to_string();
        println!(
            "{}",
            json!({
                "unit": unit,
                "received": claimed.received.get(),
                "ehash": amount.get(),
                "backed_up": claimed.safe,
            })
        );
    } else {
        println!("{amount} ehash of {} in the wallet.", short_unit(&epoch.to_string()));
    }
    Ok(())
}

/// A wallet without relays to back up to takes the pool's.
pub async fn back_up_by_default(
    wallet: &Wallet,
    relays: &[RelayUrl],
    quiet: bool,
) -> anyhow::Result<()> {
    if !wallet.backup_settings().await?.relays.is_empty() {
        return Ok(());
    }
    let settings = Settings { relays: relays.to_vec(), quorum: None };
    wallet.set_backup_settings(&settings).await?;
    if !quiet {
        eprintln!("Backing up to the pool's relays; `hashpit wallet backup --relay` names others.");
    }
    Ok(())
}

/// The pool and relays named, or else the only ones remembered.
pub async fn pool_to_claim_from(
    wallet: &Wallet,
    pool: Option<PublicKey>,
    relays: &[RelayUrl],
) -> anyhow::Result<(PublicKey, Vec<RelayUrl>)> {
    let mut known = wallet.pools().await?;
    known.retain(|known| pool.is_none_or(|pool| known.pool == pool));
    let remembered = match (known.len(), pool) {
        (0, None) => bail!("which pool? name it with --pool <npub> --relay <url>"),
        (2.., None) => bail!("this wallet knows several pools; name one with --pool <npub>"),
        _ => known.pop(),
    };
    let pool = pool.or(remembered.as_ref().map(|known| known.pool));
    let relays = match relays {
        [] => remembered.map(|known| known.relays).unwrap_or_default(),
        relays => relays.to_vec(),
    };
    if relays.is_empty() {
        bail!("which relay? name one that the pool reads with --relay <url>");
    }
    Ok((pool.context("which pool? name it with --pool <npub>")?, relays))
}

async fn report(mut progress: watch::Receiver<Progress>) {
    let mut shown = 0;
    while progress.changed().await.is_ok() {
        let received = progress.borrow_and_update().received;
        if received.get() != shown {
            shown = received.get();
            eprintln!("{received} ehash received");
        }
    }
}
