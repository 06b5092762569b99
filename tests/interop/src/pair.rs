//! A pool and the wallet that it pays. They meet at a relay.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hashpit_client::issuance::{self, Until};
use hashpit_client::miner::{self, Progress};
use hashpit_client::wallet::Wallet;
use hashpit_nips::HashUnits;
use hashpit_pool::template::Bits;
use hashpit_pool::{Config, Status};
use hashpit_tests::house::PoolHouse;
use hashpit_tests::proxy_house::{ProxyHouse, address};
use nostr_sdk::{RelayUrl, ToBech32};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long one claim may take.
const CLAIM: Duration = Duration::from_secs(60);

/// A running pool, and a miner's wallet.
pub struct Pair {
    /// The pool.
    pub pool: PoolHouse,
    /// The wallet.
    pub wallet: Wallet,
    relay: RelayUrl,
}

impl Pair {
    /// A pool's settings for quick shares and no blocks: a new tip would make
    /// an honest share stale, and no count here would be certain. A new job
    /// every second, so that shares of older jobs are among those counted.
    pub fn config(relay: &RelayUrl, hashrate: f32, shares_per_minute: f32) -> Result<Config> {
        let mut config = PoolHouse::config(std::slice::from_ref(relay));
        config.sv2.min_hashrate = hashrate;
        config.sv2.shares_per_minute = shares_per_minute;
        config.chain.bits = Bits::new(0x1a00_ffff)?;
        config.chain.refresh_secs = 1;
        Ok(config)
    }

    /// Starts a pool and makes a wallet, both in `dir`.
    pub async fn start(dir: &Path, config: Config) -> Result<Self> {
        let relay = config.relays.first().context("no relay")?.clone();
        let pool = PoolHouse::start(config, &dir.join("pool")).await?;
        let wallet = Wallet::open_or_create(&dir.join("wallet"), || [7; 16]).await?;
        Ok(Self { pool, wallet, relay })
    }

    /// What the wallet's miners call themselves.
    pub fn npub(&self) -> Result<String> {
        Ok(self.wallet.public_key().to_bech32()?)
    }

    /// Starts a proxy that mines for the wallet.
    pub async fn proxy(&self) -> Result<ProxyHouse> {
        let pools = vec![address(&self.pool)?];
        ProxyHouse::start(pools, self.wallet.public_key(), ProxyHouse::settings()).await
    }

    /// Mines with hashpit's own CPU miner until the pool has acknowledged
    /// `shares` of them, or more.
    pub async fn mine(&self, shares: u64) -> Result<()> {
        let config = miner::Config {
            pool: self.pool.sv2.to_string(),
            authority: self
                .pool
                .authority
                .parse()
                .map_err(|error| anyhow::anyhow!("the pool's authority key: {error:?}"))?,
            identity: format!("{}.cpu", self.npub()?).parse()?,
            threads: NonZeroUsize::MIN,
            max_hashrate: None,
        };
        let (sender, mut progress) = watch::channel(Progress::default());
        let stop = CancellationToken::new();
        let mining = tokio::spawn(miner::mine(config, sender, stop.clone()));
        progress.wait_for(|progress| progress.accepted >= shares).await?;
        stop.cancel();
        Ok(mining.await?)
    }

    /// Claims through the relay until the wallet holds all that the pool has
    /// credited, and returns the pool's books as they then are. No one may be
    /// mining.
    pub async fn claim(&self) -> Result<Status> {
        loop {
            // A last share may have been on its way to the ledger.
            let status = self.settle().await?;
            if self.ehash().await? == self.pool.epoch.work.units_in(status.totals.work)? {
                return Ok(status);
            }
        }
    }

    /// Claims through the relay until the pool owes nothing more, and returns
    /// the pool's books. What arrived is backed up, if the wallet has a backup.
    pub async fn settle(&self) -> Result<Status> {
        let (progress, _) = watch::channel(issuance::Progress::default());
        let (pool, relays) = (self.pool.key, std::slice::from_ref(&self.relay));
        let (until, stop) = (Until::Settled(CLAIM), CancellationToken::new());
        let claimed = issuance::claim(&self.wallet, pool, relays, until, progress, stop).await?;
        ensure!(claimed.safe, "settled before it was backed up");
        Ok(self.pool.monitor.status())
    }

    /// Ehash in the wallet.
    pub async fn ehash(&self) -> Result<HashUnits> {
        Ok(self.wallet.ehash(self.pool.epoch.id).await?)
    }
}
