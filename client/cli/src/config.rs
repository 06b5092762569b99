//! The configuration file: one table for each role.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use hashpit_client::nwc::NwcUri;
use hashpit_client::settle::Limits;
use hashpit_client::wallet::MintUrl;
use nostr_sdk::{PublicKey, RelayUrl};
use serde::Deserialize;

use crate::listen::Listen;

/// All settings. Each has a default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses and ports.
    pub listen: Listen,
    /// The relay.
    pub relay: hashpit_relay::Config,
    /// The pool and its mint.
    pub pool: hashpit_pool::Config,
    /// The exchange.
    pub exchange: hashpit_exchange::Config,
    /// The proxy for miners.
    pub proxy: Proxy,
    /// Where to trade, and what is risked.
    pub trade: Trade,
    /// The watchtower.
    pub watch: Watch,
    /// The built-in CPU miner.
    pub miner: Miner,
}

/// The proxy for miners.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// The pools to mine at, the best first.
    pub pools: Vec<PoolAddress>,
    /// The pool to claim from, if the wallet does not remember it.
    pub npub: Option<PublicKey>,
    /// Relays that it reads.
    pub relays: Vec<RelayUrl>,
    /// What concerns the devices below.
    pub devices: hashpit_client::proxy::Settings,
}

/// Where to trade, and what is risked.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trade {
    /// The exchange, unless a command names another.
    pub exchange: Option<PublicKey>,
    /// Relays that it writes to; without, those that the wallet knows.
    pub relays: Vec<RelayUrl>,
    /// Most sats of one trade.
    pub max_trade_sats: u64,
    /// Most sats in open trades with one counterparty.
    pub max_counterparty_sats: u64,
    /// Fewest sats of one trade.
    pub min_trade_sats: u64,
    /// Mints whose sats are taken, besides those that the wallet has used.
    pub mints: Vec<MintUrl>,
    /// Watchtowers that may finish a claim of ours while we are away.
    pub watchers: Vec<PublicKey>,
    /// A file with the connection to your Lightning wallet.
    pub nwc_file: Option<PathBuf>,
    /// What stands in it.
    #[serde(skip)]
    lightning: Option<NwcUri>,
}

impl Default for Trade {
    fn default() -> Self {
        let Limits {
            max_trade_sats,
            max_counterparty_sats,
            min_trade_sats,
            mints,
            watchers,
            lightning,
        } = Limits::default();
        Self {
            exchange: None,
            relays: Vec::new(),
            max_trade_sats,
            max_counterparty_sats,
            min_trade_sats,
            mints,
            watchers,
            nwc_file: None,
            lightning,
        }
    }
}

impl Trade {
    /// What a settler is held to.
    pub fn limits(&self) -> Limits {
        Limits {
            max_trade_sats: self.max_trade_sats,
            max_counterparty_sats: self.max_counterparty_sats,
            min_trade_sats: self.min_trade_sats,
            mints: self.mints.clone(),
            watchers: self.watchers.clone(),
            lightning: self.lightning.clone(),
        }
    }
}

/// The watchtower.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// Relays that sellers write to.
    pub relays: Vec<RelayUrl>,
}

/// A pool's mining port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolAddress {
    /// `host:port`.
    pub address: String,
    /// Its Sv2 authority key, base58.
    pub authority: String,
}

/// The built-in CPU miner.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Miner {
    /// Threads that hash.
    pub threads: usize,
}

impl Default for Miner {
    fn default() -> Self {
        Self { threads: 1 }
    }
}

impl Config {
    /// Reads `file`; without one, the defaults.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the configuration {}", file.display()))?;
        let mut config: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a valid configuration", file.display()))?;
        if let Some(file) = &config.trade.nwc_file {
            config.trade.lightning = Some(connection(file)?);
        }
        Ok(config)
    }
}

/// The connection to a Lightning wallet; whoever can read the file can spend from it.
fn connection(file: &Path) -> anyhow::Result<NwcUri> {
    let name = file.display();
    let open = || anyhow::Ok((std::fs::metadata(file)?, std::fs::read_to_string(file)?));
    let (about, text) =
        open().with_context(|| format!("cannot read [trade] nwc_file = \"{name}\""))?;
    anyhow::ensure!(
        about.permissions().mode() & 0o077 == 0,
        "others can read {name}, and with it spend from your Lightning wallet; chmod 600 it"
    );
    text.trim().parse().with_context(|| format!("{name} holds no connection to a wallet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../hashpit.example.toml");

    #[test]
    fn the_example_is_the_defaults() {
        let example: Config = toml::from_str(EXAMPLE).unwrap();
        assert_eq!(format!("{example:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn the_example_with_every_setting_uncommented_loads() {
        let setting = |line: &str| {
            let line = line.strip_prefix("# ").unwrap_or(line);
            let name = line.split('=').next().unwrap_or_default().trim();
            let named =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            (line.contains('=') && named).then(|| line.to_owned())
        };
        let lines = EXAMPLE.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()));
        let text: Vec<String> = lines.collect();
        toml::from_str::<Config>(&text.join("\n")).unwrap();
    }

    #[test]
    fn a_connection_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (nwc, file) = (dir.path().join("nwc"), dir.path().join("hashpit.toml"));
        let key = "0101010101010101010101010101010101010101010101010101010101010101";
        let wallet = "1b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f";
        let uri = format!("nostr+walletconnect://{wallet}?relay=wss://r.example&secret={key}");
        std::fs::write(&nwc, format!("{uri}\n")).unwrap();
        std::fs::write(&file, format!("[trade]\nnwc_file = {nwc:?}\n")).unwrap();
        let mode = |mode| std::fs::set_permissions(&nwc, std::fs::Permissions::from_mode(mode));
        mode(0o644).unwrap();
        let error = Config::load(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("chmod 600") && !error.contains(key), "{error}");
        mode(0o600).unwrap();
        let loaded = Config::load(Some(&file)).unwrap();
        assert!(loaded.trade.limits().lightning.is_some());
        assert!(!format!("{loaded:?}").contains(key));
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let error = toml::from_str::<Config>("[pool]\nwork_bit = 1").unwrap_err().to_string();
        assert!(error.contains("work_bit"), "{error}");
    }
}
