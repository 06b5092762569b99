//! A relay and a pool in this process, on free loopback ports and a directory
//! that goes with them.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use hashpit_client::issuance::{self, Progress, Until};
use hashpit_client::wallet::MintUrl;
use hashpit_client::{Wallet, miner};
use hashpit_nips::{HashUnits, MinerIdentity, WorkBits};
use hashpit_pool::mint::sats::Backend;
use hashpit_pool::{Listeners, Monitor, Pool};
use hashpit_relay::{Clock, Gauges, Relay};
use nostr_sdk::{PublicKey, RelayUrl};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long mining a share, or claiming it, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A role that runs until told to stop.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(crate) fn start<F>(run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(run(stop.clone())), stop }
    }

    /// Stops it and returns how it ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await?
    }

    /// Ends it where it stands.
    pub async fn kill(self) {
        self.task.abort();
        // It has ended either way.
        let _ = self.task.await;
    }
}

/// Our relay.
pub struct RelayHouse {
    /// Where it listens.
    pub url: RelayUrl,
    /// Its counters.
    pub gauges: Gauges,
    running: Running,
}

impl RelayHouse {
    /// Starts a relay that keeps its events in `dir`.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await?, dir).await
    }

    /// Starts a relay on a port of the caller's: one that comes back.
    pub async fn start_on(listener: TcpListener, dir: &Path) -> anyhow::Result<Self> {
        let url = format!("ws://{}", listener.local_addr()?).parse()?;
        let relay = Relay::open(hashpit_relay::Config::default(), dir, Clock::system())?;
        let gauges = relay.gauges();
        let running = Running::start(|stop| async move { Ok(relay.serve(listener, stop).await?) });
        Ok(Self { url, gauges, running })
    }

    /// Stops it and returns how it ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.running.stop().await
    }
}

/// Our pool.
pub struct PoolHouse {
    /// Its Nostr key.
    pub key: PublicKey,
    /// Its Sv2 authority key, base58.
    pub authority: String,
    /// Where its Sv2 port listens.
    pub sv2: SocketAddr,
    /// Where its mint answers.
    pub mint_url: String,
    /// Where its mint listens, whatever it announces.
    pub mint_at: SocketAddr,
    /// Where it answers for sats, if it issues any.
    pub sats_url: Option<MintUrl>,
    /// The open epoch and its keyset.
    pub epoch: hashpit_pool::mint::Epoch,
    /// Its books and counters.
    pub monitor: Monitor,
    running: Running,
}

impl PoolHouse {
    /// Settings for quick shares: small units, batches without a pause.
    pub fn config(relays: &[RelayUrl]) -> hashpit_pool::Config {
        hashpit_pool::Config {
            relays: relays.to_vec(),
            work_bits: WorkBits::new(12).expect("12 is below the maximum"),
            issue_interval_ms: 0,
            ..hashpit_pool::Config::default()
        }
    }

    /// The same, with simulated sats.
    pub fn config_with_sats(relays: &[RelayUrl]) -> hashpit_pool::Config {
        let mut config = Self::config(relays);
        config.sats.backend = Some(Backend::Simulation);
        config
    }

    /// Settings for shares of some 20,000 hashes, and for no blocks: a new tip
    /// would make an honest share stale, and no count would be certain.
    pub fn config_without_blocks(relays: &[RelayUrl]) -> anyhow::Result<hashpit_pool::Config> {
        let mut config = Self::config(relays);
        config.sv2.min_hashrate = 20_000.0;
        config.sv2.shares_per_minute = 60.0;
        config.chain.bits = hashpit_pool::template::Bits::new(0x1a00_ffff)?;
        Ok(config)
    }

    /// Starts a pool that keeps its books in `dir`.
    pub async fn start(config: hashpit_pool::Config, dir: &Path) -> anyhow::Result<Self> {
        Self::start_at(config, dir, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts a pool whose mining port is at an address, perhaps that of one
    /// that was stopped.
    pub async fn start_at(
        config: hashpit_pool::Config,
        dir: &Path,
        sv2: SocketAddr,
    ) -> anyhow::Result<Self> {
        Self::start_with(config, dir, sv2, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// As [`PoolHouse::start_at`], with its mint at an address, too.
    pub async fn start_with(
        config: hashpit_pool::Config,
        dir: &Path,
        sv2: SocketAddr,
        mint: SocketAddr,
    ) -> anyhow::Result<Self> {
        let listeners =
            Listeners { sv2: TcpListener::bind(sv2).await?, mint: TcpListener::bind(mint).await? };
        let (sv2, mint_at) = (listeners.sv2.local_addr()?, listeners.mint.local_addr()?);
        let pool = Pool::open(config, dir, listeners).await?;
        Ok(Self {
            key: pool.public_key(),
            authority: pool.authority().to_string(),
            sv2,
            mint_url: pool.mint_url().to_string(),
            mint_at,
            sats_url: pool.sats_url(),
            epoch: pool.epoch().clone(),
            monitor: pool.monitor(),
            running: Running::start(|stop| async move { Ok(pool.serve(stop).await?) }),
        })
    }

    /// Mines until a share for the wallet's npub is accepted, and claims what it
    /// is worth. The wallet's ehash.
    pub async fn pay_for_work(
        &self,
        wallet: &Wallet,
        relay: &RelayHouse,
    ) -> anyhow::Result<HashUnits> {
        self.work_for(wallet.public_key()).await?;
        let (progress, _) = watch::channel(Progress::default());
        let (relays, until) = ([relay.url.clone()], Until::Settled(PATIENCE));
        issuance::claim(wallet, self.key, &relays, until, progress, CancellationToken::new())
            .await?;
        Ok(wallet.ehash(self.epoch.id).await?)
    }

    /// Mines until a share for `miner` is accepted.
    pub async fn work_for(&self, miner: PublicKey) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let config = miner::Config {
            pool: self.sv2.to_string(),
            authority: self.authority.parse().map_err(|e| anyhow::anyhow!("{e:?}"))?,
            identity: MinerIdentity { miner, worker: None },
            threads: NonZeroUsize::MIN,
            max_hashrate: Some(200_000.0),
        };
        let (mined, mut mining) = watch::channel(miner::Progress::default());
        let mined = tokio::spawn(miner::mine(config, mined, stop.clone()));
        timeout(PATIENCE, mining.wait_for(|now| now.accepted > 0)).await??;
        stop.cancel();
        mined.await?;
        Ok(())
    }

    /// Stops it and returns how it ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.running.stop().await
    }
}

/// A relay, and a pool of quick shares that reads it, both in `dir`.
pub async fn relay_and_pool(dir: &Path) -> anyhow::Result<(RelayHouse, PoolHouse)> {
    let relay = RelayHouse::start(&dir.join("relay")).await?;
    let config = PoolHouse::config(std::slice::from_ref(&relay.url));
    let pool = PoolHouse::start(config, &dir.join("pool")).await?;
    Ok((relay, pool))
}
