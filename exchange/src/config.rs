//! An exchange's settings: the `[exchange]` table of the configuration file.

use std::time::Duration;

use hashpit_nips::eh04::Rules;
use nostr_sdk::{PublicKey, RelayUrl};
use serde::Deserialize;

use crate::Error;

/// Relays that a journal is spread over, at most; each has a connection of its own.
const MAX_RELAYS: usize = 32;

/// Settings. Each has a default, but an exchange needs relays and pools.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name for people.
    pub name: String,
    /// Pools whose epochs are traded.
    pub pools: Vec<PublicKey>,
    /// Relays that offers are read from and the journal is written to.
    pub relays: Vec<RelayUrl>,
    /// Milliseconds between two messages about a market's depth.
    pub depth_ms: u32,
    /// Seconds between two checkpoints of a market that changes.
    pub checkpoint_secs: u32,
    /// The rules that offers are held to.
    pub rules: Rules,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "hashpit exchange".to_owned(),
            pools: Vec::new(),
            relays: Vec::new(),
            depth_ms: 100,
            checkpoint_secs: 10,
            rules: Rules::default(),
        }
    }
}

impl Config {
    /// Whether an exchange can work with these settings.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = if self.relays.is_empty() || self.relays.len() > MAX_RELAYS {
            ("relays", "name 1 to 32 relays that traders use, too")
        } else if self.pools.is_empty() {
            ("pools", "name the npub of a pool whose ehash is to be traded")
        } else if self.depth_ms < 10 {
            ("depth_ms", "must be 10 or more")
        } else if self.checkpoint_secs == 0 {
            ("checkpoint_secs", "must be 1 or more")
        } else if let Err(wrong) = self.rules.check() {
            wrong
        } else {
            return Ok(());
        };
        Err(Error::Setting { setting: wrong.0, reason: wrong.1 })
    }

    pub(crate) fn depth_every(&self) -> Duration {
        Duration::from_millis(self.depth_ms.into())
    }

    pub(crate) fn checkpoint_every(&self) -> Duration {
        Duration::from_secs(self.checkpoint_secs.into())
    }
}
