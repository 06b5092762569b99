//! The command lines of `hashpit offer | book | trades | market`.

use clap::Subcommand;
use hashpit_nips::eh04::{OnEpoch, SelfTrade, Side, TimeInForce, Way};
use hashpit_nips::{Lots, Price, Sats};
use nostr_sdk::{PublicKey, RelayUrl};

/// Where the exchange is.
#[derive(Debug, Clone, clap::Args)]
pub struct At {
    /// The exchange's npub; else the configuration's, under `[trade]`.
    #[arg(long, global = true, value_name = "NPUB")]
    pub exchange: Option<PublicKey>,
    /// A relay that the exchange writes to; may be repeated. Else the
    /// configuration's, or those that the wallet knows.
    #[arg(long = "relay", global = true, value_name = "URL")]
    pub relays: Vec<RelayUrl>,
    /// Print JSON on stdout, a line for each result.
    #[arg(long, global = true)]
    pub json: bool,
}

/// `hashpit offer`.
#[derive(Debug, clap::Args)]
pub struct Offer {
    #[command(flatten)]
    pub at: At,
    #[command(subcommand)]
    pub command: OfferCommand,
}

#[derive(Debug, Subcommand)]
pub enum OfferCommand {
    /// Offer ehash for sats (sell), or sats for ehash (buy).
    Make(Make),
    /// Change an offer that stands.
    ///
    /// It keeps its place in the queue while its price stays and its lots are not
    /// raised.
    Amend(Amend),
    /// Show your offers that stand.
    List {
        /// Those that ended or were refused too.
        #[arg(long)]
        all: bool,
    },
    /// Take an offer back.
    Cancel {
        /// Its name, or how that begins: see `hashpit offer list`.
        id: String,
    },
    /// Take all offers back.
    CancelAll {
        /// Only those in this market.
        #[arg(long, value_name = "UNIT")]
        market: Option<String>,
    },
    /// Have all your offers cancelled unless this is said again in time (a dead
    /// man's switch).
    Alive {
        /// Seconds until then, or `off`.
        #[arg(value_parser = alive)]
        seconds: Alive,
    },
}

#[derive(Debug, clap::Args)]
pub struct Make {
    /// `sell` or `buy`.
    pub side: Side,
    /// How many lots; `hashpit market show` says how much ehash one is.
    #[arg(value_parser = lots)]
    pub lots: Lots,
    /// Limit, in msats a lot. Without it any price is taken, at once.
    #[arg(long, value_name = "MSATS")]
    pub price: Option<Price>,
    /// The market: unit, shortened unit or height. May be left out where only one
    /// is open.
    #[arg(long, value_name = "UNIT")]
    pub market: Option<String>,
    /// Least lots of one fill.
    #[arg(long, value_name = "LOTS", value_parser = lots)]
    pub min: Option<Lots>,
    /// Most lots of one fill.
    #[arg(long, value_name = "LOTS", value_parser = lots)]
    pub max: Option<Lots>,
    /// How long it stays: gtc (until cancelled), ioc (what can be had at once), fok
    /// (all of it at once or nothing), post (only if it can stand).
    #[arg(long, value_name = "gtc|ioc|fok|post")]
    pub tif: Option<TimeInForce>,
    /// A way of payment that you take or have, `cashu:<mint key>` or `nwc`; may be
    /// repeated. Else the market's mints.
    #[arg(long, value_name = "WAY")]
    pub pay: Vec<Way>,
    /// What becomes of it when its epoch closes: the price was made before.
    #[arg(long, value_name = "cancel|keep", default_value = "cancel")]
    pub on_epoch: OnEpoch,
    /// Let it end by itself after this time: 90s, 15m, 12h, 7d.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub expires: Option<u64>,
    /// Never match offers of other keys in the same group.
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Where it would match an offer of your own: cancel the rest of the new one, or
    /// the old one.
    #[arg(long, value_name = "new|old", default_value = "new")]
    pub stp: SelfTrade,
    /// Take a place in the queue before anyone, the exchange included, sees the
    /// offer.
    #[arg(long)]
    pub hidden: bool,
    /// Do not settle its matches in the background: `hashpit trade watch`, `proxy` or
    /// `up` does.
    #[arg(long)]
    pub no_watch: bool,
    /// Make it although the wallet could not settle all of it.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, clap::Args)]
pub struct Amend {
    /// Its name, or how that begins: see `hashpit offer list`.
    pub id: String,
    /// New limit, in msats a lot.
    #[arg(long, value_name = "MSATS")]
    pub price: Option<Price>,
    /// New number of lots, with those that were matched already.
    #[arg(long, value_parser = lots)]
    pub lots: Option<Lots>,
    /// New least lots of one fill.
    #[arg(long, value_name = "LOTS", value_parser = lots)]
    pub min: Option<Lots>,
    /// New most lots of one fill.
    #[arg(long, value_name = "LOTS", value_parser = lots)]
    pub max: Option<Lots>,
    /// New end, from now: 90s, 15m, 12h, 7d.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub expires: Option<u64>,
}

/// `hashpit book`.
#[derive(Debug, clap::Args)]
pub struct Book {
    #[command(flatten)]
    pub at: At,
    /// The market: unit, shortened unit or height.
    #[arg(long, value_name = "UNIT")]
    pub market: Option<String>,
    /// Go on, and show each change.
    #[arg(long)]
    pub follow: bool,
    /// Prices shown of each side.
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub depth: usize,
    /// Network difficulty, for the fair value of an epoch that is open.
    #[arg(long, value_name = "N", requires = "reward")]
    pub difficulty: Option<u64>,
    /// What a block pays to the miners in sats, likewise.
    #[arg(long, value_name = "SATS", requires = "difficulty")]
    pub reward: Option<Sats>,
}

/// `hashpit trades`.
#[derive(Debug, clap::Args)]
pub struct Trades {
    #[command(flatten)]
    pub at: At,
    /// The market: unit, shortened unit or height.
    #[arg(long, value_name = "UNIT", conflicts_with = "by")]
    pub market: Option<String>,
    /// Go on, and show each trade when it is matched, and when it is settled or
    /// fails.
    #[arg(long, conflicts_with = "by")]
    pub follow: bool,
    /// Only those that both sides have settled.
    #[arg(long, conflicts_with = "by")]
    pub settled: bool,
    /// How this key has settled instead.
    #[arg(long, value_name = "NPUB")]
    pub by: Option<PublicKey>,
    /// Trades shown.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
}

/// `hashpit market`.
#[derive(Debug, clap::Args)]
pub struct Market {
    #[command(flatten)]
    pub at: At,
    #[command(subcommand)]
    pub command: Option<MarketCommand>,
}

#[derive(Debug, Subcommand)]
pub enum MarketCommand {
    /// Show the exchange's markets.
    List,
    /// Show one market's terms and prices, and the exchange's rules.
    Show {
        /// The market: unit, shortened unit or height. May be left out where only
        /// one is open.
        unit: Option<String>,
    },
    /// Show prices over time, of settled trades.
    ///
    /// A trade counts at the time at which it was matched, so the last 90 minutes may
    /// still grow. Periods without a trade are left out.
    Candles(Candles),
}

#[derive(Debug, clap::Args)]
pub struct Candles {
    /// The market: unit, shortened unit or height. May be left out where only one is
    /// open.
    #[arg(long, value_name = "UNIT")]
    pub market: Option<String>,
    /// Length of a period; it begins at a multiple of that, UTC.
    #[arg(long, value_name = "PERIOD", value_enum, default_value_t)]
    pub every: Every,
    /// Periods, up to now.
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub limit: u64,
}

/// A period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Every {
    #[value(name = "1m")]
    Minute,
    #[value(name = "5m")]
    FiveMinutes,
    #[default]
    #[value(name = "1h")]
    Hour,
    #[value(name = "1d")]
    Day,
}

impl Every {
    pub fn seconds(self) -> u64 {
        match self {
            Self::Minute => 60,
            Self::FiveMinutes => 300,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }
}

impl std::fmt::Display for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Minute => "minute",
            Self::FiveMinutes => "5 minutes",
            Self::Hour => "hour",
            Self::Day => "day",
        })
    }
}

/// A setting of the dead man's switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alive {
    /// Offers end after so many seconds.
    For(u64),
    /// They stay.
    Off,
}

fn alive(text: &str) -> Result<Alive, String> {
    match text.parse() {
        _ if text == "off" => Ok(Alive::Off),
        Ok(seconds @ 1..=MAX_SECONDS) => Ok(Alive::For(seconds)),
        _ => Err("seconds, 1 or more, or off".to_owned()),
    }
}

fn lots(text: &str) -> Result<Lots, String> {
    let lots = text.parse().ok().filter(|lots| *lots > Lots::ZERO);
    lots.ok_or_else(|| "a number of lots, 1 or more".to_owned())
}

/// A year: what is longer is a mistake.
const MAX_SECONDS: u64 = 366 * 86_400;

/// `90s`, `15m`, `12h` or `7d` in seconds.
fn duration(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let second = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(second));
    let sensible = seconds.filter(|seconds| (1..=MAX_SECONDS).contains(seconds));
    sensible.ok_or_else(|| "a time like 90s, 15m, 12h or 7d, at most a year".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        let good = [("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800)];
        for (text, seconds) in good {
            assert_eq!(duration(text), Ok(seconds));
        }
        for bad in ["", "s", "90", "0s", "-1h", "1w", "99999d", "18446744073709551615d", "5é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_switch_takes_seconds_or_off() {
        assert_eq!(alive("off"), Ok(Alive::Off));
        assert_eq!(alive("60"), Ok(Alive::For(60)));
        assert!(alive("0").is_err() && alive("soon").is_err());
    }
}
