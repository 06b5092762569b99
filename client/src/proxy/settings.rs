//! Settings of the proxy, and the limits that are no settings.

use std::time::Duration;

use serde::Deserialize;

use super::Error;

/// First and longest pause between two rounds through the pools.
pub(super) const RECONNECT: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_secs(30));
/// Time to connect to a pool, and for the pool to read what it is sent.
pub(super) const POOL_PATIENCE: Duration = Duration::from_secs(10);
/// Largest Sv2 frame that is read. A job with a large coinbase and a long Merkle
/// path takes a few kilobytes; the wire format would allow 16 MB.
pub(super) const MAX_FRAME_BYTES: usize = 64 * 1024 - 1;
/// A pool that has sent nothing for so long is gone: it sends a job at least
/// every half minute.
pub(super) const MAX_SILENCE: Duration = Duration::from_secs(300);
/// Commands that wait for one connection to the pool. When they are that many,
/// devices wait.
pub(super) const LINK_QUEUE: usize = 256;
/// Shares of one device that the pool has refused in a row, stale ones not
/// counted, after which the device is dropped. Pools drop a connection for such,
/// ours after 1,000, and the connection is other devices' too.
pub(super) const MAX_REFUSED_IN_A_ROW: u32 = 100;
/// Shares of one Sv2 connection that the pool has not judged yet, on all
/// channels together. When they are that many, the device waits: it must not be
/// able to send a thousand wrong ones before the first is refused.
pub(super) const MAX_SV2_IN_FLIGHT: usize = 256;
/// Shares a minute that a suggested difficulty is taken to aim at, as most
/// pools do: it tells a hash rate, and the pool sets the difficulty.
pub(super) const SUGGESTED_SHARES_PER_MINUTE: f64 = 12.0;
/// How long connections may take to end when the proxy stops.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Settings of the proxy.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// One channel at the pool for all Stratum V1 devices, and difficulties of
    /// the proxy's own, in place of a channel for each device.
    pub aggregate: bool,
    /// Answer `true` as soon as a share is on its way, in place of waiting for
    /// the pool. A device then hears of no refusal by the pool.
    pub optimistic: bool,
    /// Difficulties in powers of two, for devices that take no others: rounded
    /// down, so a share may meet the device's difficulty and not the pool's. It
    /// is answered `true`, counted apart, and earns nothing.
    pub power_of_two_difficulty: bool,
    /// Hashes per second that a Stratum V1 device is taken to have until its
    /// shares tell, or its `mining.suggest_difficulty`.
    pub hashrate: f32,
    /// Bytes of extranonce that a Stratum V1 device rolls: 4 to 8. Some fail
    /// above 8.
    pub extranonce2_bytes: usize,
    /// Where devices are aggregated: shares a minute that each is to find.
    pub shares_per_minute: f32,
    /// Stratum V1 connections at one time.
    pub max_miners: usize,
    /// Stratum V2 connections at one time, and channels on each.
    pub max_sv2_connections: usize,
    /// Channels that one Stratum V2 connection may open.
    pub max_sv2_channels: usize,
    /// Connections from one address at one time, on each of the two ports. A
    /// whole farm may come from one address.
    pub max_connections_per_ip: usize,
    /// Channels on one connection to the pool. A pool has a limit too; for more
    /// channels the proxy makes further connections.
    pub channels_per_connection: usize,
    /// While a pool that is not the first is used: seconds between two tries of
    /// those before it.
    pub retry_better_pool_secs: u64,
    /// Shares of one device that the pool has not judged yet. When they are
    /// that many, the device is not read until an answer comes.
    pub max_in_flight: usize,
    /// Lines a second that a Stratum V1 device may send for long.
    pub max_lines_per_second: u32,
    /// Seconds that a device has to subscribe and authorize, or to shake hands.
    pub handshake_timeout_secs: u64,
    /// Seconds without a word after which a device is dropped.
    pub idle_timeout_secs: u64,
    /// Seconds that a device may leave what is sent to it unread.
    pub write_timeout_secs: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            aggregate: false,
            optimistic: false,
            power_of_two_difficulty: false,
            hashrate: 1e12,
            extranonce2_bytes: 8,
            shares_per_minute: 12.0,
            max_miners: 4_096,
            max_sv2_connections: 256,
            max_sv2_channels: 256,
            max_connections_per_ip: 1_024,
            channels_per_connection: 256,
            retry_better_pool_secs: 300,
            max_in_flight: 64,
            max_lines_per_second: 100,
            handshake_timeout_secs: 60,
            idle_timeout_secs: 3_600,
            write_timeout_secs: 10,
        }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |setting, expected| Err(Error::Setting { setting, expected });
        if !(self.hashrate.is_finite() && self.hashrate >= 1.0) {
            return refuse("hashrate", "at least 1");
        }
        if !(4..=8).contains(&self.extranonce2_bytes) {
            return refuse("extranonce2_bytes", "4 to 8");
        }
        if !(self.shares_per_minute > 0.0 && self.shares_per_minute <= 6_000.0) {
            return refuse("shares_per_minute", "above 0 and at most 6000");
        }
        if !(1..=128).contains(&self.max_in_flight) {
            return refuse("max_in_flight", "1 to 128");
        }
        if self.channels_per_connection == 0 {
            return refuse("channels_per_connection", "at least 1");
        }
        if self.retry_better_pool_secs == 0 {
            return refuse("retry_better_pool_secs", "at least 1");
        }
        if self.max_lines_per_second == 0 {
            return refuse("max_lines_per_second", "at least 1");
        }
        Ok(())
    }

    pub(super) fn retry_better_pool(&self) -> Duration {
        Duration::from_secs(self.retry_better_pool_secs)
    }

    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_secs)
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_secs)
    }

    pub(super) fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.write_timeout_secs)
    }
}
