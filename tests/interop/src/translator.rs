//! The stock Sv2 translator (`translator_sv2`): Stratum V1 below, our pool or
//! our proxy above.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use hashpit_tests::process::{Process, free_port};

use crate::{PAUSE, program};

/// Settings that matter to a pool.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// One channel for all miners, or one for each.
    pub aggregated: bool,
    /// Whether it finds targets for its miners itself, or passes on the pool's.
    pub vardiff: bool,
    /// Hashes per second that every miner starts with.
    pub hashrate: f32,
    /// Shares per minute that a target aims at.
    pub shares_per_minute: f32,
}

/// A running translator.
pub struct Translator {
    /// Where its Stratum V1 miners connect.
    pub address: SocketAddr,
    process: Process,
}

impl Translator {
    /// Starts one that mines for `identity` at a pool, or at a proxy before it,
    /// and keeps its files in `dir`.
    pub fn start(
        dir: &Path,
        (server, authority): (SocketAddr, &str),
        identity: &str,
        settings: Settings,
    ) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let config = dir.join("translator.toml");
        let Settings { aggregated, vardiff, hashrate, shares_per_minute } = settings;
        let text = format!(
            r#"downstream_address = "{}"
downstream_port = {}
max_supported_version = 2
min_supported_version = 2
downstream_extranonce2_size = 4
aggregate_channels = {aggregated}
supported_extensions = [0x0002]
required_extensions = [0x0002]

[downstream_difficulty_config]
min_individual_miner_hashrate = {hashrate:?}
shares_per_minute = {shares_per_minute:?}
enable_vardiff = {vardiff}
job_keepalive_interval_secs = 600

[[upstreams]]
address = "{}"
port = {}
authority_pubkey = "{authority}"
user_identity = "{identity}"
"#,
            address.ip(),
            address.port(),
            server.ip(),
            server.port(),
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(program("translator_sv2")?);
        command.env("NO_COLOR", "1").arg("-c").arg(&config);
        let process = Process::start(&mut command, &dir.join("translator.log"))?;
        Ok(Self { address, process })
    }

    /// Waits until the pool has acknowledged `shares` to the translator, or
    /// more. Only its log tells.
    pub async fn acknowledged(&self, shares: u64) {
        while self.process.output().lines().filter_map(accepted).sum::<u64>() < shares {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// How many shares a line of its log says that the pool has accepted.
fn accepted(line: &str) -> Option<u64> {
    let success = line.split_once("SubmitSharesSuccess(")?.1;
    let count = success.split_once("new_submits_accepted_count=")?.1;
    count.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
