//! A proxy in this process, on free loopback ports.

use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use hashpit_client::proxy::{Config, Listeners, Monitor, PoolAddress, Proxy, Settings};
use nostr_sdk::PublicKey;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::house::PoolHouse;

/// Our proxy.
pub struct ProxyHouse {
    /// Where Stratum V1 devices connect.
    pub sv1: SocketAddr,
    /// Where Stratum V2 devices connect.
    pub sv2: SocketAddr,
    /// The key that Sv2 devices must know, base58.
    pub authority: String,
    /// Its counters.
    pub monitor: Monitor,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// A pool's mining port.
pub fn address(pool: &PoolHouse) -> Result<PoolAddress> {
    let authority = pool.authority.parse().map_err(|error| anyhow!("{error:?}"))?;
    Ok(PoolAddress { address: pool.sv2.to_string(), authority })
}

impl ProxyHouse {
    /// Settings for devices of as little power as a test's.
    pub fn settings() -> Settings {
        Settings { hashrate: 1.0, ..Settings::default() }
    }

    /// Starts a proxy that mines for `miner`.
    pub async fn start(
        pools: Vec<PoolAddress>,
        miner: PublicKey,
        settings: Settings,
    ) -> Result<Self> {
        let listeners = Listeners {
            sv1: TcpListener::bind("127.0.0.1:0").await?,
            sv2: TcpListener::bind("127.0.0.1:0").await?,
        };
        let (sv1, sv2) = (listeners.sv1.local_addr()?, listeners.sv2.local_addr()?);
        let config = Config { pools, miner, authority: [3; 32], settings };
        let proxy = Proxy::open(config, listeners)?;
        let (authority, monitor) = (proxy.authority(), proxy.monitor());
        let stop = CancellationToken::new();
        let task = tokio::spawn(proxy.serve(stop.clone()));
        Ok(Self { sv1, sv2, authority, monitor, stop, task })
    }

    /// Stops it.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}
