//! One role in a process, for operators.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, bail};
use hashpit_client::settle::Watchtower;
use hashpit_exchange::Exchange;
use hashpit_nips::seed_file;
use hashpit_pool::{Listeners, Pool};
use hashpit_relay::{Clock, Relay};
use nostr_sdk::ToBech32;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::args;
use crate::config::{self, Config};
use crate::listen::Port;

/// `hashpit relay`.
pub async fn relay(
    options: args::Relay,
    mut config: Config,
    dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    config.listen.relay = options.port.or(config.listen.relay);
    let listener = config.listen.bind(Port::Relay).await?;
    let relay = Relay::open(config.relay, &dir.join("relay"), Clock::system())?;
    info!(url = format!("ws://{}", listener.local_addr()?), "relay listens");
    relay.serve(listener, shutdown).await.context("the relay stopped")
}

/// `hashpit pool`.
pub async fn pool(
    options: args::Pool,
    mut config: Config,
    dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    if config.pool.relays.is_empty() {
        bail!("a pool needs a relay: set `relays` under [pool] in the file given by --config");
    }
    if let Some(base) = options.port_base {
        config.listen.mint = Some(base);
        config.listen.sv2 = Some(if base == 0 { 0 } else { base.saturating_add(1) });
    }
    let listeners = Listeners {
        sv2: config.listen.bind(Port::Sv2).await?,
        mint: config.listen.bind(Port::Mint).await?,
    };
    let sv2 = listeners.sv2.local_addr()?;
    let pool = Pool::open(config.pool, &dir.join("pool"), listeners).await?;
    let Ok(npub) = pool.public_key().to_bech32();
    info!(%npub, %sv2, authority = %pool.authority(), mint = %pool.mint_url(), "pool listens");
    pool.serve(shutdown).await.context("the pool stopped")
}

/// `hashpit exchange`.
pub async fn exchange(
    options: args::Exchange,
    config: Config,
    dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let dir = dir.join("exchange");
    let opened = tokio::select! { biased;
        () = shutdown.cancelled() => return Ok(()),
        opened = Exchange::open(config.exchange, &dir, options.new) => opened?,
    };
    let Ok(npub) = opened.public_key().to_bech32();
    info!(%npub, "exchange reads its relays");
    opened.serve(shutdown).await.context("the exchange stopped")
}

/// `hashpit watch`.
pub async fn watch(
    config: config::Watch,
    dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    if config.relays.is_empty() {
        bail!(
            "a watchtower needs a relay: set `relays` under [watch] in the file given by --config"
        );
    }
    let dir = dir.join("watch");
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let seed = seed_file::read_or_create(&dir.join("watch.seed"), rand::random)?;
    let tower = Watchtower::open(seed.nostr_keys(0), &config.relays).await?;
    let Ok(npub) = tower.public_key().to_bech32();
    println!("{npub}");
    info!(%npub, "watches; sellers name this key under [trade] watchers");
    tower.run(shutdown).await.context("the watchtower stopped")
}
