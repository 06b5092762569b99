//! `hashpit proxy`: one's own devices, mining for the wallet.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hashpit_client::Wallet;
use hashpit_client::issuance::Progress;
use hashpit_client::proxy::reconcile::{self, Shortfall};
use hashpit_client::proxy::{Config, Listeners, Monitor, PoolAddress, Proxy, WorkerStats};
use hashpit_client::wallet::account;
use nostr_sdk::{PublicKey, RelayUrl, ToBech32};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::args;
use crate::claiming::claim_for_ever;
use crate::config;
use crate::listen::{Listen, Port};
use crate::settling::Settling;
use crate::trade::relays_of;
use crate::wallet;

/// `hashpit proxy`.
pub async fn run(
    options: args::Proxy,
    config: config::Config,
    dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pools = pools(&options, &config.proxy.pools)?;
    let listeners = Listeners {
        sv1: bind(options.sv1, &config.listen, Port::ProxySv1).await?,
        sv2: bind(options.sv2, &config.listen, Port::ProxySv2).await?,
    };
    let ports = [listeners.sv1.local_addr()?, listeners.sv2.local_addr()?];
    let wallet = wallet::open_or_create(&dir.join("wallet")).await?;
    let settling = settling(&wallet, config.trade).await?;
    let source = source(&options, &config.proxy, &wallet).await?;
    let mut settings = config.proxy.devices;
    settings.aggregate |= options.aggregate;
    let miner = wallet.public_key();
    let authority = authority_secret(&wallet);
    let proxy = Proxy::open(Config { pools, miner, authority, settings }, listeners)?;
    head(ports, &proxy.authority(), &wallet, source.as_ref());

    let (tasks, monitor) = (TaskTracker::new(), proxy.monitor());
    let (progress, claiming) = watch::channel(Progress::default());
    let (found, shortfall) = watch::channel(None);
    tasks.spawn(proxy.serve(shutdown.clone()));
    if let Some(settling) = settling {
        tasks.spawn(settling.for_ever(shutdown.clone()));
    }
    tasks.spawn(reconcile::watch(monitor.clone(), claiming.clone(), found, shutdown.clone()));
    if let Some((pool, relays)) = source {
        wallet::back_up_by_default(&wallet, &relays, options.json).await?;
        tasks.spawn(claim_for_ever(wallet, pool, relays, progress, shutdown.clone()));
    }
    let report = Report { monitor, claiming, shortfall, json: options.json };
    report.until(shutdown, Duration::from_secs(options.interval)).await;
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// The matches of the configured exchange, if there is one.
async fn settling(wallet: &Wallet, trade: config::Trade) -> anyhow::Result<Option<Settling>> {
    let (Some(exchange), limits) = (trade.exchange, trade.limits()) else { return Ok(None) };
    let relays = if trade.relays.is_empty() { relays_of(wallet).await? } else { trade.relays };
    if relays.is_empty() {
        warn!("matches are not settled: set `relays` under [trade] in the configuration");
        return Ok(None);
    }
    Ok(Some(Settling { wallet: wallet.clone(), exchange, relays, limits }))
}

/// Secret of the key by which a proxy proves itself to Sv2 devices.
pub fn authority_secret(wallet: &Wallet) -> [u8; 32] {
    wallet.seed().nostr_keys(account::PROXY_AUTHORITY).secret_key().to_secret_bytes()
}

async fn bind(
    address: Option<SocketAddr>,
    listen: &Listen,
    port: Port,
) -> anyhow::Result<TcpListener> {
    let Some(address) = address else { return listen.bind(port).await };
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another with --sv1, --sv2"))
}

/// The pools of the command line, or else those of the configuration.
fn pools(
    options: &args::Proxy,
    configured: &[config::PoolAddress],
) -> anyhow::Result<Vec<PoolAddress>> {
    let named = match (options.pools.len(), &options.authorities[..]) {
        (0, []) => configured.to_vec(),
        (0, _) => bail!("--authority without --pool; name the pool with --pool <host:port>"),
        (_, [authority]) => {
            let named = options.pools.iter().cloned();
            let authority = authority.clone();
            named.map(|address| (address, authority.clone()).into()).collect()
        }
        (pools, authorities) if pools == authorities.len() => {
            options.pools.iter().cloned().zip(authorities.iter().cloned()).map(Into::into).collect()
        }
        _ => bail!("give each --pool its --authority, in the same order, or one for all"),
    };
    if named.is_empty() {
        bail!(
            "which pool? name it with --pool <host:port> --authority <key>, or under [proxy] in \
             the file given by --config"
        );
    }
    named.into_iter().map(pool).collect()
}

impl From<(String, String)> for config::PoolAddress {
    fn from((address, authority): (String, String)) -> Self {
        Self { address, authority }
    }
}

fn pool(pool: config::PoolAddress) -> anyhow::Result<PoolAddress> {
    let config::PoolAddress { address, authority } = pool;
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none() {
        bail!("{address:?} is no pool's address; it has to be <host>:<port>");
    }
    let authority = authority.parse().map_err(|error| {
        anyhow!("{authority:?} is no authority key ({error:?}); the pool prints it at its start")
    })?;
    Ok(PoolAddress { address, authority })
}

/// The pool to claim from and its relays, if they are known.
async fn source(
    options: &args::Proxy,
    configured: &config::Proxy,
    wallet: &Wallet,
) -> anyhow::Result<Option<(PublicKey, Vec<RelayUrl>)>> {
    let mut known = wallet.pools().await?;
    let named = options.npub.or(configured.npub);
    known.retain(|known| named.is_none_or(|pool| known.pool == pool));
    let remembered = if known.len() == 1 { known.pop() } else { None };
    let Some(pool) = named.or(remembered.as_ref().map(|known| known.pool)) else {
        return Ok(None);
    };
    let relays = match (&options.relays[..], &configured.relays[..]) {
        ([], []) => remembered.map(|known| known.relays).unwrap_or_default(),
        ([], relays) | (relays, _) => relays.to_vec(),
    };
    if relays.is_empty() {
        bail!("which relay? name one that the pool reads with --relay <url>");
    }
    Ok(Some((pool, relays)))
}

fn head(
    [sv1, sv2]: [SocketAddr; 2],
    authority: &str,
    wallet: &Wallet,
    source: Option<&(PublicKey, Vec<RelayUrl>)>,
) {
    let Ok(miner) = wallet.public_key().to_bech32();
    eprintln!("  Stratum V1  stratum+tcp://{sv1}");
    eprintln!("  Stratum V2  {sv2}  authority {authority}");
    eprintln!("  mining for  {miner}");
    match source {
        Some((pool, _)) => {
            let Ok(pool) = pool.to_bech32();
            eprintln!("  claiming    from {pool}");
        }
        None => eprintln!("  claiming    no: name the pool with --npub <npub> --relay <url>"),
    }
}

/// What is told from time to time.
struct Report {
    monitor: Monitor,
    claiming: watch::Receiver<Progress>,
    shortfall: watch::Receiver<Option<Shortfall>>,
    json: bool,
}

impl Report {
    async fn until(self, shutdown: CancellationToken, interval: Duration) {
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        loop {
            tokio::select! { biased;
                () = shutdown.cancelled() => return,
                _ = tick.tick() => self.tell(),
            }
        }
    }

    fn tell(&self) {
        let (status, books) = (self.monitor.status(), self.monitor.books());
        let received = self.claiming.borrow().received;
        let shortfall = self.shortfall.borrow().as_ref().map(ToString::to_string);
        if self.json {
            let line = json!({
                "pools": status.pools,
                "workers": status.workers,
                "shares": books.shares,
                "work": books.acknowledged,
                "ehash": received,
                "shortfall": shortfall,
            });
            println!("{line}");
        }
        let pools: Vec<_> = status.pools.iter().map(|(pool, _)| pool.as_str()).collect();
        let pools = if pools.is_empty() { "no pool".to_owned() } else { pools.join(", ") };
        eprintln!("{pools}: {} shares accepted, {received} ehash received", books.shares);
        eprintln!(
            "  {:<24} {:>7} {:>12} {:>9} {:>9} {:>8} {:>6}",
            "worker", "devices", "hashrate", "accepted", "rejected", "unknown", "local"
        );
        for worker in &status.workers {
            eprintln!("{}", row(worker));
        }
    }
}

fn row(worker: &WorkerStats) -> String {
    let name = if worker.worker.is_empty() { "(no name)" } else { &worker.worker };
    format!(
        "  {:<24} {:>7} {:>12} {:>9} {:>9} {:>8} {:>6}",
        name,
        worker.connected,
        hashrate(worker.hashrate),
        worker.accepted,
        worker.rejected.values().sum::<u64>(),
        worker.unknown,
        worker.local,
    )
}

/// Hashes per second with the prefix that suits them.
fn hashrate(hashes: f64) -> String {
    let units = [(1e15, "PH/s"), (1e12, "TH/s"), (1e9, "GH/s"), (1e6, "MH/s"), (1e3, "kH/s")];
    let (size, unit) = units.into_iter().find(|(size, _)| hashes >= *size).unwrap_or((1.0, "H/s"));
    format!("{:.1} {unit}", hashes / size)
}
