//! `hashpit book`.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::Path;
use std::time::Duration;

use hashpit_client::trade::{Book, BookFeed, Exchange};
use hashpit_exchange::fair_value::{Discounts, FairValue};
use hashpit_nips::eh01::{EpochKeyset, EpochState};
use hashpit_nips::eh04::Market;
use hashpit_nips::eh05::Level;
use hashpit_nips::{Msats, Price, Work};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::args;
use super::{lots, msats};
use crate::config;
use crate::terminal::{self, grouped};
use crate::wallet::short_unit;

/// Letters of the longest bar.
const BAR: usize = 14;
/// A busy book changes more often than anyone can read.
const REDRAW: Duration = Duration::from_millis(100);

/// `hashpit book`.
pub async fn run(
    options: args::Book,
    settings: &config::Trade,
    data_dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let exchange = super::connect(&options.at, settings, None, data_dir).await?;
    let market = exchange.market(options.market.as_deref())?;
    let view = View::new(&exchange, market, &options).await?;
    if options.follow {
        let feed = exchange.follow_book(market.epoch).await?;
        follow(feed, &view, options.at.json, shutdown).await?;
    } else {
        let book = exchange.book(market.epoch).await?;
        match options.at.json {
            true => println!("{}", view.json(&book)),
            false => print!("{}", view.draw(&book)),
        }
    }
    exchange.close().await;
    Ok(())
}

/// Shows each change until told to stop.
async fn follow(
    mut feed: BookFeed,
    view: &View<'_>,
    json: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let live = !json && io::stdout().is_terminal();
    loop {
        if json {
            println!("{}", view.json(feed.book()));
        } else {
            show(&view.draw(feed.book()), live)?;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            more = feed.next() => if more.is_none() { return Ok(()) },
        }
        let soon = Instant::now() + REDRAW;
        while live && timeout_at(soon, feed.next()).await.is_ok_and(|book| book.is_some()) {}
    }
}

/// Prints a picture; `live`, over the last one and without a flicker.
fn show(picture: &str, live: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if live {
        // Home; clear behind each line, and below the last.
        write!(out, "\x1b[H{}\x1b[J", picture.replace('\n', "\x1b[K\n"))?;
    } else {
        writeln!(out, "{picture}")?;
    }
    out.flush()
}

/// What is shown of a book, besides the book.
struct View<'a> {
    market: &'a Market,
    keyset: Option<EpochKeyset>,
    fair: Option<FairValue>,
    depth: usize,
}

impl<'a> View<'a> {
    async fn new(
        exchange: &Exchange,
        market: &'a Market,
        options: &args::Book,
    ) -> anyhow::Result<Self> {
        let keyset = exchange.keyset(market.epoch).await?;
        let fair = keyset.as_ref().and_then(|keyset| fair(keyset, options));
        Ok(Self { market, keyset, fair, depth: options.depth })
    }

    /// What a price of a lot says that the work in it is worth.
    fn implied(&self, price: Price) -> Option<FairValue> {
        let bits = self.keyset.as_ref()?.work;
        FairValue::implied_by(price, self.market.lot, bits).ok()
    }

    /// Fair value of a lot in msats.
    fn fair_lot(&self) -> Option<f64> {
        let bits = self.keyset.as_ref()?.work;
        Some(self.fair?.msats_a_lot(self.market.lot, bits))
    }

    /// The price that stands for the market: of the newest settled trade, or else
    /// between the best offers.
    fn price(book: &Book) -> Option<Price> {
        let between = || {
            let (bid, ask) = (book.bids().next()?.0, book.asks().next()?.0);
            Some(Price::new(bid.get().midpoint(ask.get())))
        };
        book.last().map(|last| last.price).or_else(between)
    }

    fn json(&self, book: &Book) -> Value {
        let side = |levels: &mut dyn Iterator<Item = Level>| {
            levels.take(self.depth).map(|level| json!(level)).collect::<Value>()
        };
        json!({
            "unit": self.market.epoch,
            "seq": book.seq(),
            "state": book.state().to_string(),
            "bids": side(&mut book.bids()),
            "asks": side(&mut book.asks()),
            "last": book.last(),
            "missed_a_change": book.has_gap(),
            "cut": book.is_cut(),
            "fair_msats_a_lot": self.fair_lot(),
            "implied_hashprice": Self::price(book).and_then(|price| self.implied(price))
                .map(FairValue::hashprice),
        })
    }

    fn draw(&self, book: &Book) -> String {
        let mut text = self.head(book);
        if book.seq().is_none() {
            text.push_str("\nThe exchange has published no checkpoint of this book yet.\n");
            return text;
        }
        let bids = rows(book.bids().take(self.depth));
        let asks = rows(book.asks().take(self.depth));
        text.push_str(&ladder(&bids, &asks));
        if bids.is_empty() && asks.is_empty() {
            text.push_str("  no offers\n");
        }
        text.push('\n');
        for (what, value) in self.foot(book) {
            writeln!(text, "{what:<10} {value}").expect("a string takes everything");
        }
        text
    }

    fn head(&self, book: &Book) -> String {
        let unit = short_unit(&self.market.epoch.to_string());
        let lot = grouped(self.market.lot.get());
        let known = book.seq().map(|seq| format!(", as of entry {seq}")).unwrap_or_default();
        format!("{unit}  {}{known}; one lot is {lot} ehash\n", book.state())
    }

    fn foot(&self, book: &Book) -> Vec<(&'static str, String)> {
        let of_price = |price: Price| msats(Msats::new(price.get()));
        let mut foot = Vec::new();
        if let (Some(spread), Some(Level(ask, ..))) = (book.spread(), book.asks().next()) {
            let share = spread.get() as f64 / ask.get() as f64 * 100.0;
            foot.push(("spread", format!("{}, {share:.2} %", of_price(spread))));
        }
        if let Some(last) = book.last() {
            let (number, when) =
                (lots(last.lots.get().into()), terminal::ago(last.at.get() / 1000));
            foot.push(("settled", format!("{} a lot, {number}, {when}", of_price(last.price))));
        }
        if let Some(fair) = self.fair_lot() {
            foot.push(("fair", format!("{} msats a lot", decimal(fair, 1))));
        }
        if let Some(value) = Self::price(book).and_then(|price| self.implied(price)) {
            let hashprice = decimal(value.hashprice(), 2);
            foot.push(("hashprice", format!("{hashprice} sats for 1 TH/s a day, at this price")));
        }
        if book.has_gap() {
            foot.push(("behind", "a change was missed; the next checkpoint mends it".to_owned()));
        }
        if book.is_cut() {
            foot.push(("cut", "offers far from the best are left out".to_owned()));
        }
        foot
    }
}

/// What the epoch's ehash is worth, where that can be told: of a closed epoch from
/// its keyset, whose block is taken to stay; of an open one if the chain's figures
/// were given. Work that was credited and not issued yet is not in the keyset.
fn fair(keyset: &EpochKeyset, options: &args::Book) -> Option<FairValue> {
    let work = keyset.work.work_of(keyset.issued).ok()?;
    let value = match (keyset.state, keyset.reward, options.difficulty, options.reward) {
        (EpochState::Open, _, Some(difficulty), Some(reward)) => {
            FairValue::of_open_epoch(reward, Work::new(u128::from(difficulty) << 32), work)
        }
        (EpochState::Open, ..) | (_, None, ..) => return None,
        (_, Some(reward), ..) => FairValue::of_closed_epoch(reward, work, Discounts::NONE),
    };
    value.ok()
}

/// A number to be looked at, which nobody pays: `12 345.6`.
fn decimal(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), grouped);
    format!("{whole}.{rest}")
}

/// A price with its lots, and with all lots at it and better ones.
struct Row {
    price: u64,
    lots: u64,
    total: u64,
}

fn rows(levels: impl Iterator<Item = Level>) -> Vec<Row> {
    let mut total = 0u64;
    let row = |Level(price, lots, _): Level| {
        total = total.saturating_add(lots);
        Row { price: price.get(), lots, total }
    };
    levels.map(row).collect()
}

/// Bids and asks side by side, with bars as long as what stands up to each price.
fn ladder(bids: &[Row], asks: &[Row]) -> String {
    let most = bids.iter().chain(asks).map(|row| row.total).max().unwrap_or_default();
    let cell = |row: &Row| [grouped(row.price), grouped(row.lots), grouped(row.total)];
    let width = |column: usize, name: &str| {
        let widths = bids.iter().chain(asks).map(|row| cell(row)[column].len());
        widths.chain([name.len()]).max().unwrap_or_default()
    };
    let (price, lots, total) = (width(0, "msats"), width(1, "lots"), width(2, "total"));
    let mut text = format!(
        "\n{:BAR$} {:>total$}  {:>lots$}  {:>price$} │ {:<price$}  {:<lots$}  total\n",
        "bids", "total", "lots", "msats", "msats", "lots",
    );
    for n in 0..bids.len().max(asks.len()) {
        let bid = bids.get(n).map_or_else(
            || " ".repeat(BAR + total + lots + price + 5),
            |row| {
                let ([p, l, t], bar) = (cell(row), bar(row.total, most, true));
                format!("{bar} {t:>total$}  {l:>lots$}  {p:>price$}")
            },
        );
        let ask = asks.get(n).map_or_else(String::new, |row| {
            let ([p, l, t], bar) = (cell(row), bar(row.total, most, false));
            format!("{p:<price$}  {l:<lots$}  {t:<total$} {bar}")
        });
        let line = format!("{bid} │ {ask}");
        writeln!(text, "{}", line.trim_end()).expect("a string takes everything");
    }
    text
}

/// A bar of [`BAR`] letters' width, from the right or the left, to half a letter.
fn bar(part: u64, whole: u64, from_right: bool) -> String {
    let halves = u128::from(part) * (2 * BAR as u128) / u128::from(whole.max(1));
    // What stands shows.
    let halves = usize::try_from(halves).unwrap_or(0).clamp(1, 2 * BAR);
    let (full, half) = ("█".repeat(halves / 2), halves % 2 == 1);
    match (from_right, half) {
        (true, true) => format!("{:>BAR$}", format!("▐{full}")),
        (true, false) => format!("{full:>BAR$}"),
        (false, true) => format!("{full}▌"),
        (false, false) => full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(levels: &[(u64, u64)]) -> Vec<Row> {
        rows(levels.iter().map(|&(price, lots)| Level(Price::new(price), lots, 1)))
    }

    #[test]
    fn a_bar_is_as_long_as_its_part() {
        assert_eq!(bar(10, 10, false), "█".repeat(BAR));
        assert_eq!(bar(5, 10, false), "█".repeat(BAR / 2));
        assert_eq!(bar(0, u64::MAX, false), "▌");
        assert_eq!(bar(u64::MAX, u64::MAX, true), "█".repeat(BAR));
        assert_eq!(bar(1, 28, true), format!("{}▐", " ".repeat(BAR - 1)));
    }

    #[test]
    fn numbers_that_nobody_pays_are_grouped_too() {
        assert_eq!(decimal(12_500.04, 1), "12 500.0");
        assert_eq!(decimal(0.005, 2), "0.01");
    }

    #[test]
    fn bids_and_asks_stand_side_by_side() {
        let text = ladder(&side(&[(12_300, 10), (12_200, 30)]), &side(&[(12_400, 1_000)]));
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("bids") && lines[0].contains("msats │ msats"));
        assert!(lines[1].contains("10     10  12 300 │ 12 400"), "{text}");
        assert!(lines[2].ends_with("40     30  12 200 │"), "{text}");
        let bars = |line: &str| line.chars().filter(|letter| *letter == '█').count();
        assert_eq!(bars(lines[1]), BAR, "the deepest side has the longest bar");
        let middle = |line: &str| line.chars().position(|letter| letter == '│');
        assert!(lines.iter().all(|line| middle(line) == middle(lines[0])), "{text}");
    }
}
