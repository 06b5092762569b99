//! `hashpit trade list | show`.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::settle::{Evidence, Record, Settler};
use hashpit_client::trade::Reputation;
use nostr_sdk::ToBech32;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::find;
use super::words::{self, TIMING};
use crate::config;
use crate::terminal::{self, grouped};
use crate::trade::args::At;

/// Pause between two looks at a trade that is followed, on this disk.
const LOOK: Duration = Duration::from_secs(1);

/// `trade list`.
pub async fn list(wallet: &Wallet, all: bool, json: bool) -> anyhow::Result<()> {
    let mut trades = wallet.trades().await?;
    trades.retain(|trade| all || !trade.is_over());
    if json {
        println!("{}", Value::from(trades.iter().map(words::json).collect::<Vec<_>>()));
        return Ok(());
    }
    if trades.is_empty() {
        let none = if all { "There was no trade yet." } else { "No trade is under way." };
        println!("{none}");
        return Ok(());
    }
    let head = ["trade", "side", "lots", "sats", "with", "stage", "until", "age"];
    let mut table = terminal::table(&head, &[2, 3]);
    for trade in &trades {
        table.add_row(row(trade));
    }
    terminal::print(&table);
    Ok(())
}

fn row(trade: &Record) -> [String; 8] {
    let now = words::now();
    [
        words::short(trade),
        words::side(trade).to_owned(),
        grouped(trade.terms().lots.get().into()),
        grouped(trade.sats().get()),
        words::short_npub(&trade.counterparty()),
        words::stage(trade).to_owned(),
        trade.due(&TIMING).map(|at| words::countdown(at, now)).unwrap_or_default(),
        terminal::ago(trade.matched_at()),
    ]
}

/// `trade show`.
pub async fn show(
    wallet: &Wallet,
    at: &At,
    settings: &config::Trade,
    data_dir: &Path,
    command: (String, bool),
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (id, follow) = command;
    let mut trade = find(wallet, &id).await?;
    let reputation = reputation(&trade, at, settings, wallet, data_dir).await;
    let mut told = None;
    loop {
        let is_running = Settler::is_running(wallet, trade.exchange())?;
        if at.json {
            let now = (trade.stage.clone(), trade.changed_at());
            if told.as_ref() != Some(&now) {
                println!("{}", of_trade(wallet, &trade, reputation.as_ref().ok(), is_running));
                told = Some(now);
            }
        } else {
            if follow && io::stdout().is_terminal() {
                print!("\u{1b}[H\u{1b}[2J");
            }
            tell(wallet, &trade, &reputation, is_running);
        }
        if !follow || trade.is_over() {
            return Ok(());
        }
        tokio::select! { biased;
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        trade = find(wallet, &trade.id().to_hex()).await?;
    }
}

/// How the other trader has settled before; why that is not known.
async fn reputation(
    trade: &Record,
    at: &At,
    settings: &config::Trade,
    wallet: &Wallet,
    data_dir: &Path,
) -> Result<Reputation, String> {
    let at = At { exchange: Some(trade.exchange()), ..at.clone() };
    let exchange = crate::trade::connect(&at, settings, Some(wallet), data_dir).await;
    let exchange = exchange.map_err(|error| error.to_string())?;
    let found = exchange.reputation(trade.counterparty()).await;
    exchange.close().await;
    found.map_err(|error| error.to_string())
}

fn of_trade(
    wallet: &Wallet,
    trade: &Record,
    reputation: Option<&Reputation>,
    is_running: bool,
) -> Value {
    let mut value = words::json(trade);
    let advice = words::advice(trade, is_running, words::now());
    value["reputation"] = json!(reputation);
    value["settling"] = json!(is_running);
    value["evidence"] = json!(evidence(wallet, trade));
    value["advice"] = json!(advice);
    value
}

/// Evidence against a mint of this trade.
fn evidence(wallet: &Wallet, trade: &Record) -> Vec<PathBuf> {
    let Ok(files) = Evidence::directory(wallet.dir()).read_dir() else { return Vec::new() };
    let files = files.filter_map(|file| Some(file.ok()?.path()));
    let name = format!("{}-", trade.id());
    let of_it = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str());
        file.is_some_and(|file| file.starts_with(&name) && file.ends_with(".json"))
    };
    files.filter(of_it).collect()
}

fn tell(
    wallet: &Wallet,
    trade: &Record,
    reputation: &Result<Reputation, String>,
    is_running: bool,
) {
    let now = words::now();
    let Ok(with) = trade.counterparty().to_bech32();
    let why = words::why(trade).map(|why| format!(": {why}")).unwrap_or_default();
    println!("trade     {}", trade.id());
    println!(
        "          {} {} for {} sats, matched {}",
        words::side(trade),
        crate::trade::lots(trade.terms().lots.get().into()),
        grouped(trade.sats().get()),
        terminal::ago(trade.matched_at()),
    );
    println!("with      {with}");
    match reputation {
        Ok(it) => println!(
            "          {} of {} matches settled, {} failed by it",
            grouped(it.completed),
            grouped(it.matches),
            grouped(it.failed)
        ),
        Err(why) => println!("          how it has settled is not known: {why}"),
    }
    println!("stage     {}{why}", words::stage(trade));
    for leg in trade.legs(&TIMING) {
        println!("leg       {}", words::leg(&leg, trade.is_over(), now));
    }
    if let Some(watched) = words::watched(trade) {
        println!("watched   {watched}");
    }
    for step in trade.steps(&TIMING) {
        let (what, standing) = (words::step(trade, &step), words::standing(trade, &step, now));
        println!("step {}    {what:<56} {standing}", step.number);
    }
    for file in evidence(wallet, trade) {
        println!("evidence  {}: see `hashpit trade evidence`", file.display());
    }
    println!("now       {}", words::advice(trade, is_running, now));
}
