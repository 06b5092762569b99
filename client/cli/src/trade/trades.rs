//! `hashpit trades`.

use std::path::Path;

use hashpit_client::trade::{Exchange, Line, Reputation, Stage, TapeFeed, Trade};
use hashpit_nips::eh04::Market;
use hashpit_nips::eh05::{Fate, Match};
use nostr_sdk::{PublicKey, Timestamp, ToBech32};
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
    if let Some(trader) = options.by {
        let found = exchange.reputation(trader).await?;
        reputation(&found, options.at.json)?;
    } else {
        let market = exchange.market(options.market.as_deref())?;
        // Before the list is asked for, so that nothing is missed in between.
        let feed = match options.follow {
            true => Some(exchange.follow_tape(market.epoch).await?),
            false => None,
        };
        trades(&exchange, market, &options).await?;
        if let Some(feed) = feed {
            follow(feed, &options, shutdown).await?;
        }
    }
    exchange.close().await;
    Ok(())
}

async fn trades(exchange: &Exchange, market: &Market, options: &Trades) -> anyhow::Result<()> {
    let mut lines = match options.settled {
        true => exchange.settled(market.epoch, options.limit).await?,
        false => exchange.lines(market.epoch, options.limit).await?,
    };
    // The newest stands last, where the eye is, and where --follow goes on.
    lines.reverse();
    if options.at.json {
        lines.iter().for_each(|line| println!("{}", of_line(line)));
        return Ok(());
    }
    if lines.is_empty() {
        let what = if options.settled { "No settled trade" } else { "No trade" };
        println!("{what} of {} yet.", short_unit(&market.epoch.to_string()));
        return Ok(());
    }
    let head = ["when", "taker", "lots", "msats a lot", "sats", "seq", "match", "fate"];
    let mut table = terminal::table(&head, &[2, 3, 4, 5]);
    for line in &lines {
        table.add_row(row(line));
    }
    terminal::print(&table);
    Ok(())
}

/// Shows matches as they happen, and again when they end.
async fn follow(
    mut feed: TapeFeed<'_>,
    options: &Trades,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let line = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            line = feed.next() => line,
        };
        match line {
            None => return Ok(()),
            Some(line) if options.settled && !line.is_completed() => {}
            Some(line) if options.at.json => println!("{}", of_line(&line)),
            Some(line) => {
                let [_, side, lots, price, in_sats, seq, id, fate] = row(&line);
                println!(
                    "{side:<4} {lots:>8} at {price:>10} msats a lot: {in_sats:>12} sats  \
                     {seq:>8}  {id}  {fate}"
                );
            }
        }
    }
}

fn row(line: &Line) -> [String; 8] {
    let terms = &line.trade.terms;
    [
        terminal::ago(terms.at.get() / 1000),
        terms.taker_side.to_string(),
        grouped(terms.lots.get().into()),
        grouped(terms.price.get()),
        sats(terms.msats().unwrap_or_default()),
        terms.seq.to_string(),
        line.trade.id.to_hex()[..12].to_owned(),
        fate(line, Timestamp::now().as_secs()),
    ]
}

/// `settled`, `step 3, the seller's, 80 s left`, `failed at step 1: both`.
fn fate(line: &Line, now: u64) -> String {
    let who = |due: &[PublicKey]| whose(&line.trade.terms, due);
    match &line.stage {
        Stage::Ended { fate: Fate::Completed, .. } => "settled".to_owned(),
        Stage::Ended { fate: Fate::Failed { step, due }, .. } => {
            format!("failed at step {step}: {}", who(due))
        }
        Stage::InFlight { due, .. } if due.is_empty() => "settled, soon confirmed".to_owned(),
        Stage::InFlight { step, due, by } => {
            let left = (by.get() / 1000).checked_sub(now).filter(|left| *left > 0);
            let left = left.map_or("overdue".to_owned(), |left| format!("{} left", brief(left)));
            format!("in flight: step {step}, {}, {left}", who(due))
        }
    }
}

/// `seller`, `buyer` or `both`.
fn whose(terms: &Match, due: &[PublicKey]) -> &'static str {
    match due {
        [_, _, ..] => "both",
        [one] if *one == terms.seller().trader => "seller",
        _ => "buyer",
    }
}

/// `80 s`, `15 min`: a time that passes.
fn brief(seconds: u64) -> String {
    if seconds <= 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) }
}

/// A match as JSON, with what has become of it.
fn of_line(line: &Line) -> Value {
    let mut value = of_trade(&line.trade);
    let keys = |due: &[PublicKey]| -> Vec<_> {
        due.iter().filter_map(|key| key.to_bech32().ok()).collect()
    };
    let (fate, step, due, by, ended) = match &line.stage {
        Stage::InFlight { step, due, by } => ("in_flight", Some(step), keys(due), Some(by), None),
        Stage::Ended { fate: Fate::Completed, at } => ("completed", None, vec![], None, Some(at)),
        Stage::Ended { fate: Fate::Failed { step, due }, at } => {
            ("failed", Some(step), keys(due), None, Some(at))
        }
    };
    value["fate"] = json!(fate);
    value["step"] = json!(step);
    value["due"] = json!(due);
    value["due_by_ms"] = json!(by);
    value["ended_ms"] = json!(ended);
    value
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
    let line = |what: &str, count: u64| println!("{what:<17} {:>9}", grouped(count));
    line("matches", found.matches);
    line("settled", found.completed);
    line("failed by it", found.failed);
    let by_step = |steps: &std::collections::BTreeMap<u8, u64>| {
        steps.iter().for_each(|(step, count)| line(&format!("  at step {step}"), *count));
    };
    by_step(&found.failed_at);
    line("failed by others", found.failed_by_others);
    by_step(&found.failed_by_others_at);
    line("in flight", found.pending);
    println!("{:<17} {}", "changed hands", msats(found.settled));
    Ok(())
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh04::{MarketId, Side, Way};
    use hashpit_nips::eh05::Leg;
    use hashpit_nips::{EpochId, HashUnits, Lots, Millis, Msats, Price};
    use nostr_sdk::{EventId, Keys};

    use super::*;

    #[test]
    fn a_fate_names_the_step_who_is_due_and_how_long() {
        let [seller, buyer] = [1, 2].map(|_| Keys::generate().public_key());
        let offer = EventId::all_zeros();
        let leg = |trader| Leg { offer, trader, fee: Msats::ZERO };
        let terms = Match {
            seq: 1,
            index: 0,
            market: MarketId { exchange: seller, epoch: EpochId { pool: seller, height: 1 } },
            maker: leg(seller),
            taker: leg(buyer),
            taker_side: Side::Buy,
            price: Price::new(1),
            lots: Lots::new(1),
            units: HashUnits::new(1),
            pay: vec![Way::Nwc],
            at: Millis::new(0),
        };
        let trade = Trade { id: offer, terms };
        let shown = |stage| {
            let line = Line { trade: trade.clone(), stage };
            (fate(&line, 100), of_line(&line)["fate"].clone())
        };
        let flying = |step, due, seconds: u64| Stage::InFlight {
            step,
            due,
            by: Millis::new(seconds * 1000),
        };
        let ended = |fate| Stage::Ended { fate, at: Millis::new(9) };
        let cases = [
            (flying(3, vec![seller], 180), "in flight: step 3, seller, 80 s left", "in_flight"),
            (
                flying(1, vec![seller, buyer], 400),
                "in flight: step 1, both, 5 min left",
                "in_flight",
            ),
            (flying(4, vec![buyer], 100), "in flight: step 4, buyer, overdue", "in_flight"),
            (flying(6, vec![], 100), "settled, soon confirmed", "in_flight"),
            (ended(Fate::Completed), "settled", "completed"),
            (
                ended(Fate::Failed { step: 2, due: vec![buyer] }),
                "failed at step 2: buyer",
                "failed",
            ),
        ];
        for (stage, words, name) in cases {
            assert_eq!(shown(stage), (words.to_owned(), json!(name)));
        }
    }
}
