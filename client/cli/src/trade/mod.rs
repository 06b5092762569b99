//! Trading: `hashpit offer | book | trades | market`.
//!
//! | module | what lives in it |
//! |---|---|
//! | `args` | the command lines |
//! | `offer` | `offer …`: what this wallet trades |
//! | `book` | `book`: a market's offers, and what ehash is worth |
//! | `trades` | `trades`: what was matched, what became of it, and who settles |
//! | `market` | `market …`: terms, rules and prices |
//! | `candles` | `market candles`: prices over time |
//! | `settle` | `trade …`: what becomes of matches |
//!
//! To look takes no wallet. To offer takes one, whose words derive the key that
//! offers are signed with.

pub mod args;
mod book;
mod candles;
mod market;
mod offer;
pub mod settle;
mod trades;

use std::path::Path;

use anyhow::{Context, bail};
use args::At;
pub use book::run as book;
use hashpit_client::Wallet;
use hashpit_client::trade::Exchange;
use hashpit_nips::Msats;
pub use market::run as market;
use nostr_sdk::RelayUrl;
pub use offer::run as offer;
pub use settle::run as trade;
pub use trades::run as trades;

use crate::config;
use crate::terminal::grouped;
use crate::wallet::open;

/// Finds the exchange that was named, on the command line or in the configuration.
/// Without relays, those of `wallet` will do, or of the one in `data_dir`.
async fn connect(
    at: &At,
    settings: &config::Trade,
    wallet: Option<&Wallet>,
    data_dir: &Path,
) -> anyhow::Result<Exchange> {
    let key = at.exchange.or(settings.exchange).context(
        "which exchange? name it with --exchange <npub>, and one of its relays with --relay \
         <url>; or set both under [trade] in the configuration",
    )?;
    let named = if at.relays.is_empty() { &settings.relays } else { &at.relays };
    let relays = match (named.as_slice(), wallet) {
        ([], Some(wallet)) => relays_of(wallet).await?,
        ([], None) if Wallet::exists(&data_dir.join("wallet"))? => {
            relays_of(&open(&data_dir.join("wallet")).await?).await?
        }
        (named, _) => named.to_vec(),
    };
    if relays.is_empty() {
        bail!(
            "which relay? name one that the exchange writes to with --relay <url>, or set relays \
             under [trade] in the configuration"
        );
    }
    Ok(Exchange::connect(key, &relays).await?)
}

/// Those that the wallet claims through, and backs up to.
pub async fn relays_of(wallet: &Wallet) -> anyhow::Result<Vec<RelayUrl>> {
    let mut relays: Vec<_> = wallet.pools().await?.into_iter().flat_map(|p| p.relays).collect();
    relays.extend(wallet.backup_settings().await?.relays);
    relays.sort();
    relays.dedup();
    Ok(relays)
}

/// `12 345 msats (12.345 sats)`: exact.
fn msats(amount: Msats) -> String {
    format!("{} msats ({} sats)", grouped(amount.get()), sats(amount))
}

/// Msats in sats, exactly: `1 234.5`.
fn sats(amount: Msats) -> String {
    let (whole, rest) = (grouped(amount.get() / 1000), amount.get() % 1000);
    let decimals = format!("{rest:03}");
    match decimals.trim_end_matches('0') {
        "" => whole,
        decimals => format!("{whole}.{decimals}"),
    }
}

/// `1 lot`, `1 234 lots`.
fn lots(number: u64) -> String {
    format!("{} {}", grouped(number), if number == 1 { "lot" } else { "lots" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_in_both_units() {
        let cases = [
            (0, "0 msats (0 sats)"),
            (7, "7 msats (0.007 sats)"),
            (12_340, "12 340 msats (12.34 sats)"),
            (1_000_000, "1 000 000 msats (1 000 sats)"),
        ];
        for (amount, text) in cases {
            assert_eq!(msats(Msats::new(amount)), text);
        }
        assert_eq!((lots(1).as_str(), lots(2_000).as_str()), ("1 lot", "2 000 lots"));
    }
}
