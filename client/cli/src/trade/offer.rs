//! `hashpit offer …`.

use std::path::Path;

use anyhow::bail;
use hashpit_client::Wallet;
use hashpit_client::settle::{self, Limits};
use hashpit_client::trade::{Answer, End, Exchange, OwnOffer, Standing, Trade, Trader};
use hashpit_nips::eh04::{Market, Terms, Way};
use hashpit_nips::eh05::Outcome;
use hashpit_nips::{Lots, Msats, Price};
use nostr_sdk::{Timestamp, ToBech32};
use serde_json::{Value, json};

use super::args::{Alive, Amend, Make, Offer, OfferCommand};
use super::settle::background::{Background, Started};
use super::{lots, msats};
use crate::config;
use crate::terminal::{self, grouped, printable};
use crate::wallet::{open_and_tell, short_unit};

/// What is said of an offer that was cancelled before it had an answer.
const EARLY: &str = "The exchange has not answered the offer itself, and may still accept it: look \
                     with `hashpit offer list`, and cancel it then.";

/// Counterparties of one offer that are looked up.
const MAX_MET: usize = 5;

/// `hashpit offer …`. The configuration's file is for a process that settles.
pub async fn run(
    options: Offer,
    settings: &config::Trade,
    data_dir: &Path,
    file: Option<&Path>,
) -> anyhow::Result<()> {
    let (wallet, password) = open_and_tell(&data_dir.join("wallet")).await?;
    let exchange = super::connect(&options.at, settings, Some(&wallet), data_dir).await?;
    let mut trader = Trader::connect(wallet.trade_keys(), exchange).await?;
    let json = options.at.json;
    let done = match options.command {
        OfferCommand::Make(options) => {
            let maker = Maker { wallet: &wallet, limits: settings.limits(), json };
            let background = Background { config: file, data_dir, password };
            maker.make(&mut trader, options, background).await
        }
        command => carry_out(&mut trader, command, json).await,
    };
    trader.close().await;
    done
}

async fn carry_out(trader: &mut Trader, command: OfferCommand, json: bool) -> anyhow::Result<()> {
    match command {
        OfferCommand::Make(_) => unreachable!("made before"),
        OfferCommand::Amend(options) => amend(trader, &options, json).await,
        OfferCommand::List { all } => list(trader, all, json).await,
        OfferCommand::Cancel { id } => {
            let own = trader.offer(&id).await?;
            let answer = trader.cancel(&own).await?;
            let told = told(&answer, json, || format!("Offer {} is canceled.", own.d));
            match (own.standing == Standing::Unanswered, told) {
                (true, Ok(())) if !json => println!("{EARLY}"),
                (true, Err(error)) => bail!("{error}. {EARLY}"),
                (_, told) => return told,
            }
            Ok(())
        }
        OfferCommand::CancelAll { market } => {
            let market = match market.as_deref() {
                None => None,
                some => Some(trader.exchange().market(some)?.epoch),
            };
            let answer = trader.cancel_all(market).await?;
            told(&answer, json, || "All of them are canceled.".to_owned())
        }
        OfferCommand::Alive { seconds } => alive(trader, seconds, json).await,
    }
}

/// Who makes an offer.
struct Maker<'a> {
    wallet: &'a Wallet,
    limits: Limits,
    json: bool,
}

impl Maker<'_> {
    async fn make(
        &self,
        trader: &mut Trader,
        options: Make,
        background: Background<'_>,
    ) -> anyhow::Result<()> {
        let market = trader.exchange().market(options.market.as_deref())?.clone();
        let (d, hidden) = (format!("{:012x}", rand::random::<u64>() >> 16), options.hidden);
        let (force, watch) = (options.force, !options.no_watch);
        let terms = terms(&market, options)?;
        self.can_settle(&market, &terms, force).await?;
        let answer = trader.make(&market, d.clone(), terms.clone(), hidden).await?;
        told(&answer, self.json, || acknowledged(&d, &market, &terms, &answer))?;
        counterparties(trader.exchange(), &answer, self.json).await;
        let is_something_to_settle = answer.ended.is_none() || !answer.matches.is_empty();
        if watch && is_something_to_settle {
            say(background.start(self.wallet, trader.exchange())?);
        }
        Ok(())
    }

    /// Refuses an offer that could not be settled, or with `force` only warns.
    async fn can_settle(&self, market: &Market, terms: &Terms, force: bool) -> anyhow::Result<()> {
        let obstacles = settle::obstacles(self.wallet, &self.limits, market, terms).await?;
        for obstacle in obstacles {
            if !force {
                bail!("this offer could not be settled: {obstacle}; --force makes it anyway");
            }
            eprintln!("This offer could not be settled: {obstacle}.");
        }
        Ok(())
    }
}

fn say(started: Started) {
    match started {
        Started::Now(id, log) => eprintln!(
            "Matches are settled in the background, by process {id}, until nothing is left to \
             do; its log is {}. See `hashpit trade list`.",
            log.display()
        ),
        Started::Before => eprintln!(
            "Matches are settled by a hashpit process that runs already. See `hashpit trade list`."
        ),
    }
}

fn terms(market: &Market, options: Make) -> anyhow::Result<Terms> {
    let pay = ways(market, options.pay)?;
    let plain = Terms::new(options.side, options.price, options.lots, pay);
    Ok(Terms {
        min: options.min.unwrap_or(plain.min),
        max: options.max.unwrap_or(plain.max),
        tif: options.tif.unwrap_or(plain.tif),
        on_epoch: options.on_epoch,
        group: options.group,
        self_trade: options.stp,
        expires: options.expires.map(|seconds| Timestamp::now() + seconds),
        ..plain
    })
}

/// The ways that were named, if the market has them; else its mints, which need
/// nothing set up, or all that it has.
fn ways(market: &Market, named: Vec<Way>) -> anyhow::Result<Vec<Way>> {
    let taken: Vec<Way> = market.pay.iter().map(|payment| payment.way).collect();
    if let Some(unknown) = named.iter().find(|way| !taken.contains(way)) {
        let taken: Vec<_> = taken.iter().map(Way::to_string).collect();
        bail!("this market does not take {unknown}; it takes {}", taken.join(", "));
    }
    let mints = taken.iter().copied().filter(|way| matches!(way, Way::Cashu(_)));
    let mints: Vec<_> = mints.collect();
    Ok(match (named.is_empty(), mints.is_empty()) {
        (false, _) => named,
        (true, false) => mints,
        (true, true) => taken,
    })
}

async fn amend(trader: &mut Trader, options: &Amend, json: bool) -> anyhow::Result<()> {
    let own = trader.offer(&options.id).await?;
    let terms = amended(&own.terms, options)?;
    let market = trader.exchange().market(Some(&own.market.epoch.to_string()))?.clone();
    let answer = trader.amend(&own, terms.clone()).await?;
    told(&answer, json, || acknowledged(&own.d, &market, &terms, &answer))?;
    counterparties(trader.exchange(), &answer, json).await;
    Ok(())
}

/// Says how those have settled so far whom an offer has met at once.
async fn counterparties(exchange: &Exchange, answer: &Answer, json: bool) {
    if json {
        return;
    }
    let other = |trade: &Trade| {
        let legs = [trade.terms.maker, trade.terms.taker];
        legs.into_iter().find(|leg| leg.offer != answer.event).map(|leg| leg.trader)
    };
    let mut met: Vec<_> = answer.matches.iter().filter_map(other).collect();
    met.sort_unstable();
    met.dedup();
    for trader in met.into_iter().take(MAX_MET) {
        let Ok(npub) = trader.to_bech32();
        match exchange.reputation(trader).await {
            Ok(found) => println!("  with {npub}: {found}"),
            Err(error) => tracing::debug!(%error, npub, "how somebody settles is not known"),
        }
    }
}

fn amended(old: &Terms, options: &Amend) -> anyhow::Result<Terms> {
    let Amend { price, lots, min, max, expires, .. } = options;
    if (price, lots, min, max, expires) == (&None, &None, &None, &None, &None) {
        bail!("what is to change? see `hashpit offer amend --help`");
    }
    let lots = lots.unwrap_or(old.lots);
    // Who took fills of any size still does.
    let whole = if old.max == old.lots { lots } else { old.max.min(lots) };
    Ok(Terms {
        price: price.or(old.price),
        lots,
        min: min.unwrap_or(old.min),
        max: max.unwrap_or(whole),
        expires: expires.map(|seconds| Timestamp::now() + seconds).or(old.expires),
        ..old.clone()
    })
}

async fn alive(trader: &mut Trader, seconds: Alive, json: bool) -> anyhow::Result<()> {
    let until = match seconds {
        Alive::For(seconds) => Some(Timestamp::now() + seconds),
        Alive::Off => None,
    };
    let answer = trader.alive(until).await?;
    told(&answer, json, || match until {
        Some(until) => format!(
            "All your offers end at {}, unless this is said again before.",
            until.to_human_datetime()
        ),
        None => "Your offers stay until they end by themselves.".to_owned(),
    })
}

/// Prints what came of a command; a refusal is an error.
fn told(answer: &Answer, json: bool, done: impl FnOnce() -> String) -> anyhow::Result<()> {
    if json {
        println!("{}", of_answer(answer));
    }
    match &answer.outcome {
        Outcome::Refused(why) => bail!("the exchange refused: {why}"),
        Outcome::Accepted if !json => println!("{}", done()),
        Outcome::Deferred if !json => println!(
            "It has its place in the journal ({}), and is carried out when the hidden offers \
             before it are shown.",
            answer.seq
        ),
        Outcome::Accepted | Outcome::Deferred => {}
    }
    Ok(())
}

fn of_answer(answer: &Answer) -> Value {
    let (outcome, reason) = match &answer.outcome {
        Outcome::Accepted => ("accepted", None),
        Outcome::Deferred => ("deferred", None),
        Outcome::Refused(why) => ("refused", Some(why)),
    };
    json!({
        "id": answer.d,
        "event": answer.event,
        "seq": answer.seq,
        "outcome": outcome,
        "reason": reason,
        "ended": answer.ended.as_ref().map(ToString::to_string),
        "matches": answer.matches.iter().map(super::trades::of_trade).collect::<Vec<_>>(),
    })
}

fn acknowledged(d: &str, market: &Market, terms: &Terms, answer: &Answer) -> String {
    let unit = short_unit(&market.epoch.to_string());
    let mut lines = vec![format!(
        "Offer {d} is in the journal ({}): {} {} of {unit}{}.",
        answer.seq,
        terms.side,
        lots(terms.lots.get().into()),
        terms.price.map(at_price).unwrap_or_default(),
    )];
    lines.extend(answer.matches.iter().map(matched));
    lines.extend(answer.ended.as_ref().map(|end| ended(end, !answer.matches.is_empty())));
    lines.join("\n")
}

/// What became of an offer that has ended with its own entry.
fn ended(end: &End, matched: bool) -> String {
    match (end, matched) {
        (End::AtOnce, false) => "It took nothing: nothing could be had at once. It is over.".into(),
        (End::AtOnce, true) => "No more could be had at once. It is over.".into(),
        (End::SelfTrade, _) => {
            "It met an offer of your own, so the rest of it is cancelled (--stp).".into()
        }
        (end, _) => format!("It is over: {}.", printable(&end.to_string())),
    }
}

fn at_price(price: Price) -> String {
    format!(" at {} a lot", msats(Msats::new(price.get())))
}

fn matched(trade: &Trade) -> String {
    let total = trade.terms.msats().map(msats).unwrap_or_default();
    let number = lots(trade.terms.lots.get().into());
    format!("  matched {number}{}: {total}", at_price(trade.terms.price))
}

async fn list(trader: &Trader, all: bool, json: bool) -> anyhow::Result<()> {
    let mut offers = trader.offers().await?;
    if !all {
        offers.retain(|offer| !matches!(offer.standing, Standing::Over(_)));
    }
    if json {
        let offers: Vec<_> = offers.iter().map(of_offer).collect();
        println!("{}", Value::from(offers));
        return Ok(());
    }
    if offers.is_empty() {
        println!("No offer of yours {}.", if all { "is known" } else { "stands" });
        return Ok(());
    }
    let head =
        ["offer", "side", "left", "of", "msats a lot", "sats a lot", "unit", "since", "state"];
    let mut table = terminal::table(&head, &[2, 3, 4, 5]);
    for offer in &offers {
        table.add_row(row(offer, trader.exchange()));
    }
    terminal::print(&table);
    Ok(())
}

fn row(offer: &OwnOffer, exchange: &Exchange) -> [String; 9] {
    let price = offer.terms.price;
    let unknown = exchange.markets().iter().all(|market| market.epoch != offer.market.epoch);
    let gone = if unknown { " (market gone)" } else { "" };
    [
        offer.d.escape_debug().to_string(),
        offer.terms.side.to_string(),
        grouped(offer.left().get().into()),
        grouped(offer.terms.lots.get().into()),
        price.map_or("any".to_owned(), |price| grouped(price.get())),
        price.map_or("any".to_owned(), |price| super::sats(Msats::new(price.get()))),
        format!("{}{gone}", short_unit(&offer.market.epoch.to_string())),
        offer.at.map(|at| terminal::ago(at.get() / 1000)).unwrap_or_default(),
        state(offer),
    ]
}

fn state(offer: &OwnOffer) -> String {
    let state = match &offer.standing {
        Standing::Unanswered => "no answer yet".to_owned(),
        Standing::Deferred => "waits behind a hidden offer".to_owned(),
        Standing::Open if offer.filled > Lots::ZERO => "open, partly filled".to_owned(),
        Standing::Open => "open".to_owned(),
        Standing::Over(end) => printable(&end.to_string()).replace('\n', " "),
    };
    if offer.unanswered { format!("{state}; a change has no answer yet") } else { state }
}

fn of_offer(offer: &OwnOffer) -> Value {
    let terms = &offer.terms;
    let state = match &offer.standing {
        Standing::Unanswered => "unanswered",
        Standing::Deferred => "deferred",
        Standing::Open => "open",
        Standing::Over(End::Filled) => "filled",
        Standing::Over(End::Canceled) => "canceled",
        Standing::Over(End::Refused(_)) => "refused",
        Standing::Over(_) => "ended",
    };
    let why = match &offer.standing {
        Standing::Over(end) => Some(end.to_string()),
        _ => None,
    };
    json!({
        "id": offer.d,
        "event": offer.event,
        "unit": offer.market.epoch,
        "side": terms.side.to_string(),
        "price": terms.price,
        "lots": terms.lots,
        "filled": offer.filled,
        "left": offer.left(),
        "min": terms.min,
        "max": terms.max,
        "tif": terms.tif.to_string(),
        "pay": terms.pay,
        "on_epoch": terms.on_epoch.to_string(),
        "group": terms.group,
        "stp": terms.self_trade.to_string(),
        "expires": terms.expires.map(|at| at.as_secs()),
        "seq": offer.seq,
        "state": state,
        "why": why,
        "unanswered_change": offer.unanswered,
    })
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh04::Side;

    use super::*;

    #[test]
    fn what_has_ended_at_once_is_not_said_to_stand() {
        assert!(ended(&End::AtOnce, false).contains("took nothing"));
        assert!(ended(&End::AtOnce, true).contains("No more"));
        assert!(ended(&End::SelfTrade, false).contains("offer of your own"));
        assert_eq!(ended(&End::Epoch, false), "It is over: ended with its epoch.");
    }

    fn change(lots: Option<u32>, price: Option<u64>) -> Amend {
        let (lots, price) = (lots.map(Lots::new), price.map(Price::new));
        Amend { id: String::new(), price, lots, min: None, max: None, expires: None }
    }

    #[test]
    fn an_amendment_changes_what_was_named_and_keeps_the_rest() {
        let plain = Terms::new(Side::Sell, Some(Price::new(9)), Lots::new(10), vec![Way::Nwc]);
        let raised = amended(&plain, &change(Some(20), None)).unwrap();
        assert_eq!((raised.lots, raised.max), (Lots::new(20), Lots::new(20)));
        assert_eq!(raised.price, plain.price);
        let bounded = Terms { max: Lots::new(5), ..plain };
        let lowered = amended(&bounded, &change(Some(3), Some(8))).unwrap();
        assert_eq!((lowered.lots, lowered.max), (Lots::new(3), Lots::new(3)));
        assert_eq!(lowered.price, Some(Price::new(8)));
        assert!(amended(&bounded, &change(None, None)).is_err());
    }
}
