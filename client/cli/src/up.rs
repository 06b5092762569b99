//! `hashpit up`: every role in one process, on a chain of its own.
//!
//! The roles meet on the wire, as they would on different machines: the miner
//! speaks Stratum V2 to the proxy and the proxy to the pool; pool and wallet
//! speak through the relay. A second wallet, the buyer, trades with the first for
//! simulated sats, which the pool's mint issues here unless told not to.

mod buying;
mod display;
mod offering;

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use hashpit_client::issuance::Progress;
use hashpit_client::{Wallet, miner, proxy, settle};
use hashpit_exchange::Exchange;
use hashpit_nips::eh04::{Payment, Rules, Way};
use hashpit_nips::{MinerIdentity, Sats, Work};
use hashpit_pool::mint::sats::Backend;
use hashpit_pool::{Listeners, Pool, template};
use hashpit_relay::{Clock, Gauges, Relay};
use nostr_sdk::{PublicKey, RelayUrl, ToBech32};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::{self, Milestone};
use crate::claiming::claim_for_ever;
use crate::config::Config;
use crate::listen::{Listen, Port};
use crate::proxy::authority_secret;
use crate::settling::Settling;
use crate::wallet;
use buying::{Bought, Buyer};
use display::{Addresses, Display};
use offering::{Offered, Seller, Worth};

/// Most bits of work that a trader's first event needs here: a second at most.
const POW_BITS: u8 = 8;

/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(200);

/// `hashpit up`.
pub async fn run(
    options: args::Up,
    mut config: Config,
    dir: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    if let Some(base) = options.port_base {
        let address = config.listen.address;
        config.listen = Listen { address, port_base: base, ..Listen::default() };
    }
    let begun = Instant::now();
    let house = House::open(&options, config, dir).await?;
    let display = Display::start(dir, &house.addresses);
    let outcome = house.watch(options.exit_after, &display, begun, &shutdown).await;
    let summary = house.summary(begun).await;
    house.stop().await?;
    outcome?;
    if options.json {
        println!("{}", summary?);
    }
    Ok(())
}

/// A role that runs in this process.
struct Role {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Role {
    /// Starts a role; when it ends, whyever, `ended` is cancelled.
    fn start<F>(
        name: &'static str,
        ended: &CancellationToken,
        run: impl FnOnce(CancellationToken) -> F,
    ) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let (role, ended) = (run(stop.clone()), ended.clone());
        let task = tokio::spawn(async move {
            let _guard = ended.drop_guard();
            role.await
        });
        Self { name, stop, task }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await?.with_context(|| format!("{} failed", self.name))
    }
}

/// All that runs, and what there is to see of it.
struct House {
    /// In the order in which they stop.
    roles: Vec<Role>,
    /// Cancelled when some role ends by itself.
    ended: CancellationToken,
    addresses: Addresses,
    wallet: Wallet,
    /// Holds simulated sats; none where the mint issues none.
    buyer: Option<Wallet>,
    pool: hashpit_pool::Monitor,
    relay: Gauges,
    mining: watch::Receiver<miner::Progress>,
    claiming: watch::Receiver<Progress>,
    offered: watch::Receiver<Offered>,
    bought: watch::Receiver<Bought>,
}

impl House {
    async fn open(options: &args::Up, mut config: Config, dir: &Path) -> anyhow::Result<Self> {
        let ended = CancellationToken::new();
        let relay_listener = config.listen.bind(Port::Relay).await?;
        let relay_url: RelayUrl = format!("ws://{}", relay_listener.local_addr()?).parse()?;
        let listeners = Listeners {
            mint: config.listen.bind(Port::Mint).await?,
            sv2: config.listen.bind(Port::Sv2).await?,
        };
        let sv2 = listeners.sv2.local_addr()?;
        let devices = proxy::Listeners {
            sv1: config.listen.bind(Port::ProxySv1).await?,
            sv2: config.listen.bind(Port::ProxySv2).await?,
        };
        let proxy_ports = [devices.sv1.local_addr()?, devices.sv2.local_addr()?];

        let (block, bits) = (config.pool.chain.bits, config.pool.work_bits);
        let wallet = wallet::open_or_create(&dir.join("wallet")).await?;
        let relay = Relay::open(config.relay, &dir.join("relay"), Clock::system())?;
        let gauges = relay.gauges();
        config.pool.relays.insert(0, relay_url.clone());
        let relays = config.pool.relays.clone();
        config.pool.sats.backend.get_or_insert(Backend::Simulation);
        let pool = Pool::open(config.pool, &dir.join("pool"), listeners).await?;
        let (sats, way) = (pool.sats_url(), Way::Cashu(pool.mint_key()));
        let authority = pool.authority().to_string();
        let proxy = proxy::Config {
            pools: vec![proxy::PoolAddress {
                address: sv2.to_string(),
                authority: authority.parse().map_err(|error| anyhow!("{error:?}"))?,
            }],
            miner: wallet.public_key(),
            authority: authority_secret(&wallet),
            settings: config.proxy.devices,
        };
        let proxy = proxy::Proxy::open(proxy, devices)?;
        let (monitor, pool_key) = (pool.monitor(), pool.public_key());
        // The exchange asks the relay for its journal before it opens.
        let relay_role = Role::start("the relay", &ended, |stop| async move {
            Ok(relay.serve(relay_listener, stop).await?)
        });
        let mut exchange = exchange_config(config.exchange, pool_key, &relays);
        if sats.is_some() {
            pay_by(&mut exchange.rules, Payment { way, mint: sats.clone() });
        }
        let exchange = Exchange::open(exchange, &dir.join("exchange"), false).await?;
        let addresses = Addresses {
            proxy: proxy_ports,
            proxy_authority: proxy.authority(),
            relay: relay_url,
            mint: pool.mint_url().to_string(),
            sats: sats.clone(),
            sv2,
            authority,
            pool: pool.public_key(),
            exchange: exchange.public_key(),
            miner: wallet.public_key(),
        };

        let devices = proxy.monitor();
        let (mine_progress, mining) = watch::channel(miner::Progress::default());
        let (claim_progress, claiming) = watch::channel(Progress::default());
        let mut roles = Vec::new();
        if !options.no_miner {
            let miner = miner_config(&addresses, config.miner.threads)?;
            roles.push(Role::start("the miner", &ended, |stop| async move {
                miner::mine(miner, mine_progress, stop).await;
                Ok(())
            }));
        }
        back_up_here(&wallet, pool_key, &relays).await?;
        roles.push(Role::start("the proxy", &ended, |stop| async move {
            proxy.serve(stop).await;
            Ok(())
        }));
        let worth = Worth {
            reward: Sats::new(template::subsidy(monitor.status().height + 1).to_sat()),
            work: Work::of_target(block.target())?,
            bits,
        };
        let seller = Seller {
            wallet: wallet.clone(),
            exchange: addresses.exchange,
            relays: relays.clone(),
            worth,
        };
        let ((offer, offered), claims) = (watch::channel(Offered::default()), claiming.clone());
        roles.push(Role::start("the seller", &ended, |stop| seller.run(claims, offer, stop)));
        let (buy, bought) = watch::channel(Bought::default());
        let settling = Settling {
            wallet: wallet.clone(),
            exchange: addresses.exchange,
            relays: relays.clone(),
            // Its own mint's sats, which are a simulation.
            limits: settle::Limits {
                max_trade_sats: u64::MAX,
                max_counterparty_sats: u64::MAX,
                mints: sats.iter().cloned().collect(),
                ..settle::Limits::default()
            },
        };
        let mut buyer = None;
        if let Some(mint) = sats {
            let own = wallet::open_or_create(&dir.join("buyer")).await?;
            buying::follow_mint(&wallet, &own, &mint).await?;
            buyer = Some(own.clone());
            let buyers = own.clone();
            let (exchange, relays) = (addresses.exchange, relays.clone());
            let buyer = Buyer { wallet: own, exchange, relays, worth, mint, way };
            let offers = offered.clone();
            roles.push(Role::start("the buyer", &ended, |stop| buyer.run(offers, buy, stop)));
            let wallet = buyers.clone();
            let theirs = Settling { wallet, ..settling.clone() };
            roles.push(Role::start("the buyer's settling", &ended, |stop| theirs.for_ever(stop)));
        }
        roles.push(Role::start("settling", &ended, |stop| settling.for_ever(stop)));
        let claimer = wallet.clone();
        roles.push(Role::start("the wallet", &ended, |stop| {
            claim_for_ever(claimer, pool_key, relays, claim_progress, stop)
        }));
        let (shortfall, claims) = (watch::Sender::new(None), claiming.clone());
        roles.push(Role::start("the comparison", &ended, |stop| async move {
            proxy::reconcile::watch(devices, claims, shortfall, stop).await;
            Ok(())
        }));
        roles.push(Role::start("the exchange", &ended, |stop| async move {
            Ok(exchange.serve(stop).await?)
        }));
        roles.push(Role::start(
            "the pool",
            &ended,
            |stop| async move { Ok(pool.serve(stop).await?) },
        ));
        roles.push(relay_role);
        Ok(Self {
            roles,
            ended,
            addresses,
            wallet,
            buyer,
            pool: monitor,
            relay: gauges,
            mining,
            claiming,
            offered,
            bought,
        })
    }

    /// Shows progress until the milestone, a signal, or a role's end.
    async fn watch(
        &self,
        milestone: Option<Milestone>,
        display: &Display,
        begun: Instant,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! { biased;
                () = shutdown.cancelled() => return Ok(()),
                () = self.ended.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            let claiming = self.claiming.borrow().clone();
            let mining = self.mining.borrow().clone();
            let (offered, bought) = (self.offered.borrow().clone(), self.bought.borrow().clone());
            let pool = self.pool.status();
            display.show(begun.elapsed(), &pool, &mining, &claiming, &offered, &bought);
            match milestone {
                Some(Milestone::Ehash) if claiming.received.get() > 0 => return Ok(()),
                Some(Milestone::Backup) if claiming.received.get() > 0 && claiming.safe => {
                    return Ok(());
                }
                Some(Milestone::Offer) if offered.offer.is_some() => return Ok(()),
                Some(Milestone::Match) if bought.matched.is_some() => return Ok(()),
                Some(Milestone::Trade)
                    if claiming.epoch.is_some()
                        && bought.matched.is_some()
                        && self.has_traded().await? =>
                {
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    /// What has been reached, as one line of JSON.
    async fn summary(&self, begun: Instant) -> anyhow::Result<serde_json::Value> {
        let claimed = self.claiming.borrow().clone();
        let epoch = claimed.epoch.context("the pool has not announced its epoch yet")?;
        let status = self.pool.status();
        let Ok(exchange) = self.addresses.exchange.to_bech32();
        Ok(json!({
            "ehash": self.wallet.ehash(epoch).await?.get(),
            "unit": epoch.to_string(),
            "shares": status.totals.shares,
            "blocks": status.height,
            "relay_events": self.relay.stats().events_stored,
            "backed_up": claimed.safe,
            "exchange": exchange,
            "offer": self.offered.borrow().offer.as_ref().map(of_offer),
            "match": self.bought.borrow().matched.as_ref().map(of_match),
            "trade": self.last_trade().await?,
            "buyer_sats": self.buyers_sats().await?,
            "seconds": begun.elapsed().as_secs(),
        }))
    }

    /// Whether the miner's wallet has completed a trade, now or at an earlier start.
    async fn has_traded(&self) -> anyhow::Result<bool> {
        let completed = settle::Stage::Over { end: settle::End::Completed };
        Ok(self.wallet.trades().await?.iter().any(|trade| trade.stage == completed))
    }

    /// The newest trade of the miner's wallet.
    async fn last_trade(&self) -> anyhow::Result<Option<serde_json::Value>> {
        let trades = self.wallet.trades().await?;
        Ok(trades.first().map(|trade| {
            json!({
                "id": trade.id(),
                "units": trade.units(),
                "sats": trade.sats(),
                "stage": trade.stage,
            })
        }))
    }

    /// What the buyer has to pay with; `None` if there is no buyer.
    async fn buyers_sats(&self) -> anyhow::Result<Option<u64>> {
        let (Some(buyer), Some(mint)) = (&self.buyer, &self.addresses.sats) else {
            return Ok(None);
        };
        let balances = buyer.balances().await?.into_iter();
        let here = balances.filter(|balance| balance.mint == mint.to_string());
        Ok(Some(here.map(|balance| balance.amount).sum()))
    }

    async fn stop(self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for role in self.roles {
            outcome = outcome.and(role.stop().await);
        }
        outcome
    }
}

fn of_offer(offer: &offering::Offer) -> serde_json::Value {
    json!({
        "id": offer.d,
        "unit": offer.epoch.to_string(),
        "lots": offer.lots,
        "price_msat": offer.price,
        "seq": offer.seq,
    })
}

fn of_match(matched: &buying::Matched) -> serde_json::Value {
    json!({
        "id": matched.id.to_hex(),
        "unit": matched.epoch.to_string(),
        "lots": matched.lots,
        "price_msat": matched.price,
        "seq": matched.seq,
    })
}

/// Has markets take a way of payment, in the place of the default one, which nobody
/// here could use, and before those that the user has named.
fn pay_by(rules: &mut Rules, payment: Payment) {
    if rules.pay == Rules::default().pay {
        rules.pay.clear();
    }
    rules.pay.retain(|other| other.way != payment.way);
    rules.pay.insert(0, payment);
}

/// The configured exchange, for this house's pool on this house's relays.
fn exchange_config(
    config: hashpit_exchange::Config,
    pool: PublicKey,
    relays: &[RelayUrl],
) -> hashpit_exchange::Config {
    let mut exchange = config;
    exchange.rules.pow_bits = exchange.rules.pow_bits.min(POW_BITS);
    if !exchange.pools.contains(&pool) {
        exchange.pools.insert(0, pool);
    }
    let named = std::mem::take(&mut exchange.relays);
    exchange.relays = relays.to_vec();
    exchange.relays.extend(named.into_iter().filter(|relay| !relays.contains(relay)));
    exchange
}

fn miner_config(addresses: &Addresses, threads: usize) -> anyhow::Result<miner::Config> {
    let authority = addresses.proxy_authority.parse();
    let [_, proxy] = addresses.proxy;
    Ok(miner::Config {
        pool: proxy.to_string(),
        authority: authority.map_err(|error| anyhow!("authority key: {error:?}"))?,
        identity: MinerIdentity { miner: addresses.miner, worker: Some("cpu".to_owned()) },
        threads: NonZeroUsize::new(threads).context("[miner] threads must be at least 1")?,
        max_hashrate: None,
    })
}

/// Backs up to the relays of this house, in the place of those that it had last
/// time (its ports may have changed), and to those that the user has named.
async fn back_up_here(wallet: &Wallet, pool: PublicKey, relays: &[RelayUrl]) -> anyhow::Result<()> {
    let known = wallet.pools().await?.into_iter().find(|known| known.pool == pool);
    let before = known.map(|known| known.relays).unwrap_or_default();
    let mut settings = wallet.backup_settings().await?;
    settings.relays.retain(|relay| !before.contains(relay) && !relays.contains(relay));
    settings.relays.splice(0..0, relays.iter().cloned());
    settings.quorum = settings.quorum.filter(|quorum| *quorum <= settings.relays.len());
    Ok(wallet.set_backup_settings(&settings).await?)
}
