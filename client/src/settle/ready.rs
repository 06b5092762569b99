//! What would keep the fills of an offer from being settled, looked for before it
//! is made: a trader whose fills fail has a bad name.

use cdk::nuts::PublicKey as MintKey;
use hashpit_nips::eh04::{Market, Side, Terms, Way};
use hashpit_nips::{HashUnits, Lots, Sats};

use super::mints::{Mints, PlaceError};
use super::{Limits, SettleError};
use crate::wallet::{MintUrl, Wallet};

/// Something that would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// One fill may be of more than is risked.
    #[error(
        "one fill of it may be {0} sats, more than max_trade_sats ({1}) under [trade]: lower its \
         --max or its price, or raise the limit"
    )]
    TooLarge(Sats, u64),
    /// One fill may be of less than is worth the work.
    #[error(
        "one fill of it may be {0} sats, fewer than min_trade_sats ({1}) under [trade]: raise its \
         --min"
    )]
    TooSmall(Sats, u64),
    /// Not enough ehash.
    #[error("it offers {offered} ehash, and the wallet holds {held}: offer fewer lots")]
    Ehash {
        /// What it comes to.
        offered: HashUnits,
        /// What there is.
        held: HashUnits,
    },
    /// Not enough sats.
    #[error(
        "it costs up to {wanted} sats, and the wallet holds {held} at the mints of this market \
         that it trusts: receive a token of one of them, or offer fewer lots"
    )]
    Sats {
        /// What it comes to.
        wanted: Sats,
        /// What there is.
        held: Sats,
    },
    /// No mint that both could use.
    #[error(
        "the wallet trusts none of the mints that this market pays by ({0}), or they do not \
         answer: add one that you trust to `mints` under [trade]"
    )]
    NoMint(String),
    /// The market pays by Lightning alone, and there is no Lightning wallet.
    #[error(
        "this market pays by Lightning, and no Lightning wallet is set up: name the file with \
         its connection as `nwc_file` under [trade]"
    )]
    NoLightning,
}

/// Everything that stands in the way of settling an offer.
///
/// A limit and the wallet's holdings are certain; whether a mint is trusted is
/// found out by asking it for its key.
pub async fn obstacles(
    wallet: &Wallet,
    limits: &Limits,
    market: &Market,
    terms: &Terms,
) -> Result<Vec<Obstacle>, SettleError> {
    let mut found = Vec::new();
    let cost = |lots: Lots| Some(terms.price?.of(lots).ok()?.in_sats());
    if let Some(worst) = cost(terms.max).filter(|sats| sats.get() > limits.max_trade_sats) {
        found.push(Obstacle::TooLarge(worst, limits.max_trade_sats));
    }
    if let Some(least) = cost(terms.min).filter(|sats| sats.get() < limits.min_trade_sats) {
        found.push(Obstacle::TooSmall(least, limits.min_trade_sats));
    }
    if terms.side == Side::Sell {
        let units = u64::from(terms.lots.get()).saturating_mul(market.lot.get());
        let (offered, held) = (HashUnits::new(units), wallet.ehash(market.epoch).await?);
        if offered > held {
            found.push(Obstacle::Ehash { offered, held });
        }
    }
    let ways: Vec<MintKey> = terms.pay.iter().filter_map(mint_key).collect();
    let trusted = trusted(wallet, limits, &ways).await?;
    let by_lightning = terms.pay.contains(&Way::Nwc) && limits.lightning.is_some();
    if trusted.is_empty() && !by_lightning {
        found.push(match ways.is_empty() {
            true => Obstacle::NoLightning,
            false => Obstacle::NoMint(named(market, &ways)),
        });
    } else if let (Side::Buy, Some(wanted), false) = (terms.side, cost(terms.lots), by_lightning) {
        let held = held(wallet, &trusted).await?;
        if wanted > held {
            found.push(Obstacle::Sats { wanted, held });
        }
    }
    Ok(found)
}

fn mint_key(way: &Way) -> Option<MintKey> {
    match way {
        Way::Cashu(key) => Some(*key),
        Way::Nwc => None,
    }
}

async fn trusted(
    wallet: &Wallet,
    limits: &Limits,
    ways: &[MintKey],
) -> Result<Vec<MintUrl>, SettleError> {
    let mints = Mints::new(wallet.clone(), limits.mints.clone());
    let mut trusted = Vec::new();
    for key in ways {
        match mints.sats(*key).await {
            Ok(url) => trusted.push(url),
            Err(PlaceError::Settle(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(trusted)
}

/// Where the exchange says that these mints are, for people to judge.
fn named(market: &Market, ways: &[MintKey]) -> String {
    let named = market
        .pay
        .iter()
        .filter(|payment| mint_key(&payment.way).is_some_and(|key| ways.contains(&key)));
    let named = named.map(|payment| match &payment.mint {
        Some(url) => url.to_string(),
        None => payment.way.to_string(),
    });
    named.collect::<Vec<_>>().join(", ")
}

async fn held(wallet: &Wallet, at: &[MintUrl]) -> Result<Sats, SettleError> {
    let balances = wallet.balances().await?;
    let there = balances.iter().filter(|balance| {
        balance.unit == "sat" && at.iter().any(|url| url.to_string() == balance.mint)
    });
    Ok(Sats::new(there.map(|balance| balance.amount).fold(0, u64::saturating_add)))
}
