//! Settings of the front end, and the limits that are no settings.

use std::time::Duration;

use serde::Deserialize;

use super::Error;

/// Longest coinbase tag. Consensus allows a scriptSig of 100 bytes; the height
/// takes up to 8, the extranonce 21, and the delimiters around the tag 7.
pub const MAX_TAG_BYTES: usize = 64;

/// Largest frame that is read. The largest that a miner has reason to send
/// here are a few hundred bytes; the wire format would allow 16 MB.
pub(super) const MAX_FRAME_BYTES: usize = 16 * 1024;

/// How often a channel's share rate is compared with the rate wanted.
pub(super) const VARDIFF_TICK: Duration = Duration::from_secs(20);

/// Shares refused in a row, stale ones not counted, after which a connection
/// is dropped: a miner that gets nothing right only costs.
pub(super) const MAX_REJECTED_IN_A_ROW: u32 = 1_000;

/// Settings of the front end.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Shares per minute that a channel's target aims at. Twelve give a miner
    /// news every five seconds at little cost.
    pub shares_per_minute: f32,
    /// Hash rate (hashes per second) below which no channel's target is set.
    /// It bounds the shares that a peer can make out of nothing.
    pub min_hashrate: f32,
    /// Connections in all. Each holds a few tens of kilobytes.
    pub max_connections: usize,
    /// Connections from one IPv4 address or IPv6 /64: a farm behind one
    /// router, but not all the seats.
    pub max_connections_per_ip: usize,
    /// Channels on one connection: a proxy's devices. Each may hold a megabyte
    /// of jobs and hashes seen.
    pub max_channels_per_connection: usize,
    /// Shares of one connection that the ledger has not judged yet. When they
    /// are that many, the connection is not read until a verdict comes.
    pub max_in_flight: usize,
    /// Seconds that a peer has for the Noise handshake.
    pub handshake_timeout_secs: u64,
    /// Seconds from then until `SetupConnection`.
    pub setup_timeout_secs: u64,
    /// Seconds that a peer may leave what is sent to it unread.
    pub write_timeout_secs: u64,
    /// Frames that cannot be understood before a peer is dropped.
    pub max_strikes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shares_per_minute: 12.0,
            min_hashrate: 100_000.0,
            max_connections: 2_048,
            max_connections_per_ip: 256,
            max_channels_per_connection: 256,
            max_in_flight: 256,
            handshake_timeout_secs: 10,
            setup_timeout_secs: 10,
            write_timeout_secs: 10,
            max_strikes: 10,
        }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |setting, expected| Err(Error::Config { setting, expected });
        if !(self.shares_per_minute > 0.0 && self.shares_per_minute <= 6_000.0) {
            return refuse("shares_per_minute", "above 0 and at most 6000");
        }
        if !(self.min_hashrate.is_finite() && self.min_hashrate >= 1.0) {
            return refuse("min_hashrate", "at least 1");
        }
        if self.max_in_flight == 0 {
            return refuse("max_in_flight", "at least 1");
        }
        Ok(())
    }

    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_secs)
    }

    pub(super) fn setup_timeout(&self) -> Duration {
        Duration::from_secs(self.setup_timeout_secs)
    }

    pub(super) fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.write_timeout_secs)
    }
}
