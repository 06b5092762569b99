//! `hashpit market candles`.

use hashpit_client::trade::{Candle, Exchange};
use nostr_sdk::Timestamp;
use serde_json::json;

use super::args::Candles;
use super::sats;
use crate::terminal::{self, grouped};
use crate::wallet::short_unit;

/// `hashpit market candles`.
pub async fn run(exchange: &Exchange, options: &Candles, json: bool) -> anyhow::Result<()> {
    let market = exchange.market(options.market.as_deref())?;
    let every = options.every.seconds();
    let (since, candles) = exchange.candles(market.epoch, every, options.limit).await?;
    if json {
        candles.iter().for_each(|candle| println!("{}", of_candle(candle, every)));
        return Ok(());
    }
    let unit = short_unit(&market.epoch.to_string());
    if candles.is_empty() {
        println!("No trade of {unit} since {} was settled yet.", minute(since));
        return Ok(());
    }
    println!("{unit}, every {}, since {}; prices in msats a lot", options.every, minute(since));
    let head = ["begins (UTC)", "open", "high", "low", "close", "lots", "sats", "trades"];
    let mut table = terminal::table(&head, &[1, 2, 3, 4, 5, 6, 7]);
    for candle in &candles {
        let prices = [candle.open, candle.high, candle.low, candle.close];
        let [open, high, low, close] = prices.map(|price| grouped(price.get()));
        let (lots, trades) = (grouped(candle.lots), grouped(candle.trades));
        let begins = minute(candle.at);
        table.add_row([begins, open, high, low, close, lots, sats(candle.msats), trades]);
    }
    terminal::print(&table);
    println!("Settled trades, by when they were matched; the last 90 minutes may still grow.");
    Ok(())
}

fn of_candle(candle: &Candle, every: u64) -> serde_json::Value {
    json!({
        "at": candle.at.as_secs(),
        "seconds": every,
        "open": candle.open,
        "high": candle.high,
        "low": candle.low,
        "close": candle.close,
        "lots": candle.lots.to_string(),
        "msats": candle.msats,
        "trades": candle.trades,
    })
}

/// `2026-01-31 23:59`, UTC.
fn minute(at: Timestamp) -> String {
    let text = at.to_human_datetime();
    text.get(..16).map_or_else(|| text.clone(), |minute| minute.replace('T', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candle_begins_at_a_minute() {
        assert_eq!(minute(Timestamp::from(1_700_000_040)), "2023-11-14 22:14");
    }
}
