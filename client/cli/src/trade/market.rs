//! `hashpit market [list | show | candles]`.

use std::path::Path;

use hashpit_client::trade::{Candle, Exchange, Ticker};
use hashpit_nips::eh04::{Market as Terms, Payment};
use hashpit_nips::{Msats, Price};
use nostr_sdk::ToBech32;
use serde_json::{Value, json};

use super::args::{Market, MarketCommand};
use super::{lots, msats, sats};
use crate::config;
use crate::terminal::{self, grouped, printable};
use crate::wallet::short_unit;

/// `hashpit market …`.
pub async fn run(options: Market, settings: &config::Trade, data_dir: &Path) -> anyhow::Result<()> {
    let exchange = super::connect(&options.at, settings, None, data_dir).await?;
    let json = options.at.json;
    match options.command {
        None | Some(MarketCommand::List) => {
            let tickers = exchange.tickers(None).await?;
            list(&exchange, &tickers, json);
        }
        Some(MarketCommand::Candles(options)) => {
            super::candles::run(&exchange, &options, json).await?;
        }
        Some(MarketCommand::Show { unit }) => {
            let market = exchange.market(unit.as_deref())?;
            let ticker = exchange.tickers(Some(market.epoch)).await?.pop();
            if json {
                let market = of_market(market, ticker.as_ref());
                let rules = serde_json::to_value(&exchange.info().rules)?;
                println!("{}", json!({ "market": market, "rules": rules }));
            } else {
                show(&exchange, market, ticker.as_ref());
            }
        }
    }
    exchange.close().await;
    Ok(())
}

fn list(exchange: &Exchange, tickers: &[Ticker], json: bool) {
    let ticker = |market: &Terms| tickers.iter().find(|ticker| ticker.epoch == market.epoch);
    if json {
        let markets = exchange.markets().iter().map(|market| of_market(market, ticker(market)));
        println!("{}", markets.collect::<Value>());
        return;
    }
    let Ok(npub) = exchange.key().to_bech32();
    println!("{} ({npub})", printable(&exchange.info().name).replace('\n', " "));
    if exchange.markets().is_empty() {
        println!("No market yet: it opens one for each epoch of its pools.");
        return;
    }
    let head = [
        "unit",
        "state",
        "lot",
        "last, msats",
        "lots, 24 h",
        "sats, 24 h",
        "high",
        "low",
        "maker",
        "taker",
    ];
    let mut table = terminal::table(&head, &[2, 3, 4, 5, 6, 7, 8, 9]);
    for market in exchange.markets() {
        let ticker = ticker(market);
        let last = ticker.and_then(|ticker| ticker.last);
        let day = ticker.and_then(|ticker| ticker.day);
        let of_day = |value: fn(Candle) -> String| day.map(value).unwrap_or_default();
        table.add_row([
            short_unit(&market.epoch.to_string()),
            state(market),
            format!("{} ehash", grouped(market.lot.get())),
            last.map(|last| grouped(last.price.get())).unwrap_or_default(),
            of_day(|day| grouped(day.lots)),
            of_day(|day| sats(day.msats)),
            of_day(|day| grouped(day.high.get())),
            of_day(|day| grouped(day.low.get())),
            percent(market.fee_ppm.0),
            percent(market.fee_ppm.1),
        ]);
    }
    terminal::print(&table);
}

fn show(exchange: &Exchange, market: &Terms, ticker: Option<&Ticker>) {
    let rules = &exchange.info().rules;
    let of = |what: &str, value: String| println!("{what:<13} {value}");
    of("unit", market.epoch.to_string());
    of("state", state(market));
    for (what, value) in ticker.map(prices).unwrap_or_default() {
        of(what, value);
    }
    of("mint", market.mint.to_string().escape_debug().to_string());
    of("lot", format!("{} ehash", grouped(market.lot.get())));
    of("tick", format!("{} a lot", msats(Msats::new(market.tick.get()))));
    let (maker, taker) = market.fee_ppm;
    of("fees", format!("maker {}, taker {} of the sats", percent(maker), percent(taker)));
    let (least, most) = (rules.min_lots.get().into(), rules.max_lots.get().into());
    of("one offer", format!("{} to {}", lots(least), lots(most)));
    of("your offers", format!("{} at one time", grouped(rules.offers_per_trader.into())));
    of("new keys", format!("{} bits of work (NIP-13) for the first event", rules.pow_bits));
    of("hidden offers", format!("are shown within {} ms", grouped(rules.reveal_ms.into())));
    for payment in &market.pay {
        of("pay", pay(payment));
    }
}

/// Last price, volume and range, of settled trades.
fn prices(ticker: &Ticker) -> Vec<(&'static str, String)> {
    let a_lot = |price: Price| format!("{} a lot", msats(Msats::new(price.get())));
    let last = ticker.last.map_or("nothing was settled yet".to_owned(), |last| {
        let (number, when) = (lots(last.lots.get().into()), terminal::ago(last.at.get() / 1000));
        format!("{}, {number}, {when}", a_lot(last.price))
    });
    let mut prices = vec![("last settled", last)];
    if let Some(day) = ticker.day {
        let trades = if day.trades == 1 { "trade" } else { "trades" };
        let volume = format!("{} for {}", lots(day.lots), msats(day.msats));
        prices.push(("24 h", format!("{volume}, {} {trades}", grouped(day.trades))));
        prices.push(("24 h high", a_lot(day.high)));
        prices.push(("24 h low", a_lot(day.low)));
    }
    prices
}

fn pay(payment: &Payment) -> String {
    match &payment.mint {
        None => payment.way.to_string(),
        Some(mint) => format!("{}  {}", payment.way, mint.to_string().escape_debug()),
    }
}

/// `auction, 12 s left`.
fn state(market: &Terms) -> String {
    let now = nostr_sdk::Timestamp::now().as_secs();
    let left = market.until.map(|until| (until.get() / 1000).saturating_sub(now));
    match left.filter(|left| *left > 0) {
        None => market.state.to_string(),
        Some(left) => format!("{}, {left} s left", market.state),
    }
}

/// Parts per million as a percentage, exactly.
fn percent(ppm: u32) -> String {
    let decimals = format!("{:04}", ppm % 10_000);
    match decimals.trim_end_matches('0') {
        "" => format!("{} %", ppm / 10_000),
        decimals => format!("{}.{decimals} %", ppm / 10_000),
    }
}

fn of_market(market: &Terms, ticker: Option<&Ticker>) -> Value {
    let day = ticker.and_then(|ticker| ticker.day);
    json!({
        "unit": market.epoch,
        "mint": market.mint,
        "state": market.state.to_string(),
        "until_ms": market.until,
        "seq": market.seq,
        "lot": market.lot,
        "tick": market.tick,
        "maker_fee_ppm": market.fee_ppm.0,
        "taker_fee_ppm": market.fee_ppm.1,
        "pay": market.pay,
        "last": ticker.and_then(|ticker| ticker.last),
        "day": {
            "since": ticker.map(|ticker| ticker.since.as_secs()),
            "trades": day.map_or(0, |day| day.trades),
            "lots": day.map_or(0, |day| day.lots).to_string(),
            "msats": day.map(|day| day.msats).unwrap_or_default(),
            "high": day.map(|day| day.high),
            "low": day.map(|day| day.low),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fee_is_an_exact_percentage() {
        let cases = [(0, "0 %"), (2_500, "0.25 %"), (10_000, "1 %"), (1, "0.0001 %")];
        for (ppm, text) in cases {
            assert_eq!(percent(ppm), text);
        }
    }
}
