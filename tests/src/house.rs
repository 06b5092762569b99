//! A relay and a pool in this process, on free loopback ports and a directory
//! that goes with them.

use std::net::SocketAddr;
use std::path::Path;

use hashpit_nips::WorkBits;
use hashpit_pool::{Listeners, Monitor, Pool};
use hashpit_relay::{Clock, Gauges, Relay};
use nostr_sdk::{PublicKey, RelayUrl};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A role that runs until told to stop.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start<F>(run: impl FnOnce(CancellationToken) -> F) -> Self
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
        let listener = TcpListener::bind("127.0.0.1:0").await?;
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

    /// Starts a pool that keeps its books in `dir`.
    pub async fn start(config: hashpit_pool::Config, dir: &Path) -> anyhow::Result<Self> {
        let listeners = Listeners {
            sv2: TcpListener::bind("127.0.0.1:0").await?,
            mint: TcpListener::bind("127.0.0.1:0").await?,
        };
        let sv2 = listeners.sv2.local_addr()?;
        let pool = Pool::open(config, dir, listeners).await?;
        Ok(Self {
            key: pool.public_key(),
            authority: pool.authority().to_string(),
            sv2,
            mint_url: pool.mint_url().to_string(),
            epoch: pool.epoch().clone(),
            monitor: pool.monitor(),
            running: Running::start(|stop| async move { Ok(pool.serve(stop).await?) }),
        })
    }

    /// Stops it and returns how it ended.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.running.stop().await
    }
}
