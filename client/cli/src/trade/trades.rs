//! `hashpit trades`.

use std::path::Path;

use hashpit_client::trade::{Exchange, Reputation, Trade};
use hashpit_nips::eh04::Market;
use nostr_sdk::ToBech32;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::args::Trades;
use super::{msats, sats};
use crate::config;
use crate::terminal::{self, grouped};
use crate::wallet::short_unit;

/// `hashpit trades`.
pub async fn run(
    options: Trades,
    settings: &config::Trade,
    data_dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let exchange = super::connect(&options.at, settings, None, data_dir).await?;
    let json = options.at.json;
    if let Some(trader) = options.by {
        let found = exchange.reputation(trader).await?;
        reputation(&found, json)?;
    } else {
        let market = exchange.market(options.market.as_deref())?;
        trades(&exchange, market, options.limit, json).await?;
        if options.follow {
            follow(&exchange, market, json, shutdown).await?;
        }
    }
    exchange.close().await;
    Ok(())
}

async fn trades(
    exchange: &Exchange,
    market: &Market,
    limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    let mut trades = exchange.trades(market.epoch, limit).await?;
    // The newest stands last, where the eye is, and where --follow goes on.
    trades.reverse();
    if json {
        trades.iter().for_each(|trade| println!("{}", of_trade(trade)));
        return Ok(());
    }
    if trades.is_empty() {
        println!("No trade of {} yet.", short_unit(&market.epoch.to_string()));
        return Ok(());
    }
    let head = ["when", "taker", "lots", "msats a lot", "msats", "sats", "seq", "match"];
    let mut table = terminal::table(&head, &[2, 3, 4, 5, 6]);
    for trade in &trades {
        table.add_row(row(trade));
    }
    terminal::print(&table);
    Ok(())
}

async fn follow(
    exchange: &Exchange,
    market: &Market,
    json: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut feed = exchange.follow_trades(market.epoch).await?;
    loop {
        let trade = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            trade = feed.next() => trade,
        };
        match trade {
            None => return Ok(()),
            Some(trade) if json => println!("{}", of_trade(&trade)),
            Some(trade) => {
                let [_, side, lots, price, total, in_sats, seq, id] = row(&trade);
                println!(
                    "{side:<4} {lots:>8} at {price:>10} msats a lot: {total:>12} msats, \
                     {in_sats:>10} sats  {seq:>8}  {id}"
                );
            }
        }
    }
}

fn row(trade: &Trade) -> [String; 8] {
    let terms = &trade.terms;
    let total = terms.msats().unwrap_or_default();
    [
        terminal::ago(terms.at.get() / 1000),
        terms.taker_side.to_string(),
        grouped(terms.lots.get().into()),
        grouped(terms.price.get()),
        grouped(total.get()),
        sats(total),
        terms.seq.to_string(),
        trade.id.to_hex()[..12].to_owned(),
    ]
}

/// A match as JSON.
pub fn of_trade(trade: &Trade) -> Value {
    let terms = &trade.terms;
    json!({
        "match": trade.id,
        "seq": terms.seq,
        "index": terms.index,
        "unit": terms.market.epoch,
        "taker_side": terms.taker_side.to_string(),
        "price": terms.price,
        "lots": terms.lots,
        "units": terms.units,
        "msats": terms.msats().unwrap_or_default(),
        "maker": { "offer": terms.maker.offer, "npub": terms.maker.trader.to_bech32().ok() },
        "taker": { "offer": terms.taker.offer, "npub": terms.taker.trader.to_bech32().ok() },
        "pay": terms.pay,
        "at_ms": terms.at,
    })
}

fn reputation(found: &Reputation, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(found)?);
        return Ok(());
    }
    let Ok(npub) = found.trader.to_bech32();
    println!("{npub}");
    let counts = [
        ("matches", found.matches),
        ("settled", found.completed),
        ("failed by it", found.failed),
        ("failed by others", found.failed_by_others),
        ("pending", found.pending),
    ];
    for (what, count) in counts {
        println!("{what:<17} {:>9}", grouped(count));
    }
    println!("{:<17} {}", "changed hands", msats(found.settled));
    Ok(())
}
