//! The wallet's commands.

use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use hashpit_client::Wallet;
use hashpit_client::issuance::{self, Progress, Until};
use hashpit_client::wallet::Balance;
use hashpit_nips::EpochId;
use nostr_sdk::{PublicKey, RelayUrl, ToBech32};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::{self, WalletCommand};
use crate::pay;

/// `hashpit wallet …`.
pub async fn run(
    options: args::Wallet,
    data_dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let dir = data_dir.join("wallet");
    let (json, via) = (options.json, options.via);
    let open = async || anyhow::Ok(Wallet::open(&dir).await?.with_route(via));
    match options.command {
        WalletCommand::Init => init(&dir, json).await,
        WalletCommand::Balance => balance(&open().await?, json).await,
        WalletCommand::Claim(options) => claim(&open().await?, options, json, shutdown).await,
        WalletCommand::Send(options) => send(&open().await?, options, json).await,
        WalletCommand::Receive(options) => {
            let wallet = open().await?.with_relays(options.relays.clone());
            match options.inbox {
                true => pay::collect(&wallet, options, json).await,
                false => receive(&wallet, options, json).await,
            }
        }
        WalletCommand::Pay(options) => pay::pay(&open().await?, options, json).await,
        WalletCommand::Request(options) => pay::request(&open().await?, options, json).await,
        WalletCommand::Outbox(options) => pay::outbox(&open().await?, options, json).await,
    }
}

async fn init(dir: &Path, json: bool) -> anyhow::Result<()> {
    let wallet = Wallet::create(dir, rand::random()).await?;
    let Ok(npub) = wallet.keys().public_key().to_bech32();
    let words = wallet.seed().words();
    if json {
        println!("{}", json!({ "npub": npub, "words": words }));
        return Ok(());
    }
    println!("Your twelve words. Write them down; they are not shown again:\n");
    println!("    {words}\n");
    println!("Whoever has them has your ehash. Your npub, to mine under:\n");
    println!("    {npub}");
    Ok(())
}

async fn balance(wallet: &Wallet, json: bool) -> anyhow::Result<()> {
    let balances = wallet.balances().await?;
    if json {
        println!("{}", serde_json::to_string(&balances)?);
        return Ok(());
    }
    if balances.is_empty() {
        let Ok(npub) = wallet.keys().public_key().to_bech32();
        println!("Nothing yet. Mine under {npub}, then run `hashpit wallet claim`.");
        return Ok(());
    }
    println!("{:>14}  {:>14}  {:<24}  mint", "amount", "sent, pending", "unit");
    for Balance { unit, mint, amount, pending } in &balances {
        println!("{amount:>14}  {pending:>14}  {:<24}  {mint}", short_unit(unit));
    }
    Ok(())
}

async fn claim(
    wallet: &Wallet,
    options: args::Claim,
    json: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    pay::retry(wallet).await;
    let (pool, relays) = pool_to_claim_from(wallet, &options).await?;
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
            json!({ "unit": unit, "received": claimed.received.get(), "ehash": amount.get() })
        );
    } else {
        println!("{amount} ehash of {} in the wallet.", short_unit(&epoch.to_string()));
    }
    Ok(())
}

/// The pool and relays named, or else the only ones remembered.
async fn pool_to_claim_from(
    wallet: &Wallet,
    options: &args::Claim,
) -> anyhow::Result<(PublicKey, Vec<RelayUrl>)> {
    let mut known = wallet.pools().await?;
    known.retain(|known| options.pool.is_none_or(|pool| known.pool == pool));
    let remembered = match (known.len(), options.pool) {
        (0, None) => bail!("which pool? name it with --pool <npub> --relay <url>"),
        (2.., None) => bail!("this wallet knows several pools; name one with --pool <npub>"),
        _ => known.pop(),
    };
    let pool = options.pool.or(remembered.as_ref().map(|known| known.pool));
    let relays = match &options.relays[..] {
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

async fn send(wallet: &Wallet, options: args::Send, json: bool) -> anyhow::Result<()> {
    let token = wallet.send(options.amount, options.unit.as_deref()).await?;
    if json {
        println!("{}", json!({ "token": token.to_string(), "amount": options.amount }));
    } else {
        println!("{token}");
        eprintln!("This string is the money: whoever receives it first has it.");
    }
    Ok(())
}

async fn receive(wallet: &Wallet, options: args::Receive, json: bool) -> anyhow::Result<()> {
    let token = match options.token {
        Some(token) if token != "-" => token,
        _ => read_token()?,
    };
    let received = wallet.receive(&token).await?;
    if json {
        println!("{}", serde_json::to_string(&received)?);
    } else {
        println!("{} ehash of {} received.", received.amount, short_unit(&received.unit));
    }
    Ok(())
}

fn read_token() -> anyhow::Result<String> {
    if io::stdin().is_terminal() {
        eprintln!("Paste the token, then press Enter and Ctrl-D:");
    }
    let mut token = String::new();
    io::stdin().read_to_string(&mut token).context("cannot read the token from stdin")?;
    Ok(token)
}

/// `hash_02ab…cdef_840000`: enough of the pool's key to tell pools apart.
pub fn short_unit(unit: &str) -> String {
    match unit.parse::<EpochId>() {
        Ok(EpochId { pool, height }) => {
            let key = pool.to_hex();
            format!("hash_02{}…{}_{height}", &key[..2], &key[60..])
        }
        Err(_) => unit.to_owned(),
    }
}
