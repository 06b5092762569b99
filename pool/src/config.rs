//! A pool's settings: the `[pool]` table of the configuration file.

use std::time::Duration;

use bitcoin::Network;
use hashpit_nips::WorkBits;
use nostr_sdk::RelayUrl;
use serde::Deserialize;

use crate::mint::sats;
use crate::sv2;
use crate::template::EmbeddedConfig;

/// Settings. Each has a default with which `hashpit up` works.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name for people.
    pub name: String,
    /// Anything else for people; part of the announcement.
    pub description: String,
    /// Bitcoin network that is announced.
    pub network: Network,
    /// Relays that the pool reads and writes. Empty means the built-in one.
    pub relays: Vec<RelayUrl>,
    /// Where miners reach the Sv2 port, `host:port`. Empty means the address
    /// that it listens on.
    pub public_sv2: String,
    /// Where wallets reach the mint, without the path. Empty means the address
    /// that it listens on.
    pub public_mint: String,
    /// One unit of ehash is 2^work_bits hashes. Fixed for an epoch when it opens.
    pub work_bits: WorkBits,
    /// Pool fee in parts per million of the reward.
    pub fee_ppm: u32,
    /// Shortest time between two batches of ehash for one miner.
    pub issue_interval_ms: u64,
    /// Most keys that may leave blanks without having mined. Each costs 3.4 kB.
    pub max_idle_miners: usize,
    /// The mint's sats.
    pub sats: sats::Config,
    /// The mining front end.
    pub sv2: sv2::Config,
    /// The embedded chain.
    pub chain: EmbeddedConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "hashpit".to_owned(),
            description: String::new(),
            network: Network::Signet,
            relays: Vec::new(),
            public_sv2: String::new(),
            public_mint: String::new(),
            // About one unit a second for one CPU core.
            work_bits: WorkBits::new(22).expect("22 is below the maximum"),
            fee_ppm: 0,
            issue_interval_ms: 2_000,
            max_idle_miners: 10_000,
            sats: sats::Config::default(),
            sv2: sv2::Config::default(),
            chain: EmbeddedConfig::default(),
        }
    }
}

impl Config {
    pub(crate) fn issue_interval(&self) -> Duration {
        Duration::from_millis(self.issue_interval_ms)
    }
}
