//! All that two wallets need to trade with each other, in this process: a relay, a
//! pool, an exchange, a mint of sats; a seller that has mined, and a buyer with sats.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::nwc::NwcUri;
use hashpit_client::settle::{Limits, Settler, Timing};
use hashpit_client::trade::{Exchange, Trader};
use hashpit_nips::eh04::{Payment, Side, Terms, Way};
use hashpit_nips::{HashUnits, Lots, Millis, Price, Seed, WorkBits};
use nostr_sdk::{EventId, Keys, Timestamp};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::exchange_house::ExchangeHouse;
use crate::house::{PoolHouse, RelayHouse};
use crate::mint_proxy::MintProxy;
use crate::sat_mint::SatMint;

/// Sats that the buyer begins with.
pub const SATS: u64 = 100_000;

/// Deadlines and locktimes by which a test can see a trade fail.
pub const QUICK: Timing = Timing {
    agree: 4,
    sats: 5,
    ehash: 6,
    ehash_locktime: 9,
    sats_locktime: 14,
    margin: 2,
    skew: 60,
};

/// The house.
pub struct TradeHouse {
    /// Through which all goes.
    pub relay: RelayHouse,
    /// Its mint signs the ehash.
    pub pool: PoolHouse,
    /// It matches.
    pub exchange: ExchangeHouse,
    /// It signs the sats.
    pub sats: SatMint,
    /// Has mined.
    pub seller: Wallet,
    /// Has [`SATS`].
    pub buyer: Wallet,
    /// What the seller has mined.
    pub mined: HashUnits,
    pay: Vec<Payment>,
    dir: PathBuf,
    /// One deal at a time, so that each pair of offers meets.
    floor: Mutex<()>,
}

/// What can be away for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Through which all goes.
    Relay,
    /// With the mint of the ehash.
    Pool,
    /// The mint of the sats.
    Sats,
    /// It matches and attests.
    Exchange,
}

async fn start_pool(
    dir: &Path,
    relay: &RelayHouse,
    [sv2, mint]: [SocketAddr; 2],
    public_mint: String,
) -> anyhow::Result<PoolHouse> {
    let mut config = PoolHouse::config_without_blocks(std::slice::from_ref(&relay.url))?;
    config.work_bits = WorkBits::new(2)?;
    config.public_mint = public_mint;
    PoolHouse::start_with(config, &dir.join("pool"), sv2, mint).await
}

async fn start_exchange(
    dir: &Path,
    relay: &RelayHouse,
    pool: &PoolHouse,
    pay: &[Payment],
) -> anyhow::Result<ExchangeHouse> {
    let mut config = ExchangeHouse::config(std::slice::from_ref(&relay.url), &[]);
    config.pools = vec![pool.key];
    config.rules.pay = pay.to_vec();
    ExchangeHouse::start(config, &dir.join("exchange")).await
}

/// Two wallets of many, that trade with each other alone.
pub struct Pair {
    /// Has ehash.
    pub seller: Wallet,
    /// Has sats.
    pub buyer: Wallet,
}

impl TradeHouse {
    /// Starts everything in `dir`; sats are those of the mint.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(dir, None, None, 0).await
    }

    /// As [`TradeHouse::start`], with a proxy before the pool's mint.
    pub async fn start_behind(dir: &Path, proxy: &MintProxy) -> anyhow::Result<Self> {
        Self::start_with(dir, None, Some(proxy), 0).await
    }

    /// As [`TradeHouse::start`], with a mint of sats that takes a fee for each token
    /// that is spent, in thousandths of a sat.
    pub async fn start_dear(dir: &Path, fee_ppk: u64) -> anyhow::Result<Self> {
        Self::start_with(dir, None, None, fee_ppk).await
    }

    /// As [`TradeHouse::start`], with other ways of payment.
    pub async fn start_paying(dir: &Path, pay: Option<Vec<Payment>>) -> anyhow::Result<Self> {
        Self::start_with(dir, pay, None, 0).await
    }

    async fn start_with(
        dir: &Path,
        pay: Option<Vec<Payment>>,
        proxy: Option<&MintProxy>,
        fee_ppk: u64,
    ) -> anyhow::Result<Self> {
        let relay = RelayHouse::start(&dir.join("relay")).await?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let public = proxy.map(|proxy| proxy.url.clone()).unwrap_or_default();
        let pool = start_pool(dir, &relay, [any, any], public).await?;
        if let Some(proxy) = proxy {
            proxy.leads_to(&format!("http://{}", pool.mint_at))?;
        }
        let sats = SatMint::start_with_fee(&dir.join("sats"), fee_ppk).await?;
        let way = Way::Cashu(sats.key);
        let by_sats = || vec![Payment { way, mint: Some(sats.url.clone()) }];
        let pay = pay.unwrap_or_else(by_sats);
        let exchange = start_exchange(dir, &relay, &pool, &pay).await?;
        let seller = wallet(&dir.join("seller")).await?;
        let buyer = wallet(&dir.join("buyer")).await?;
        let mined = pool.pay_for_work(&seller, &relay).await?;
        buyer.receive(&sats.token(SATS).await?.to_string()).await?;
        let (dir, floor) = (dir.to_owned(), Mutex::default());
        Ok(Self { relay, pool, exchange, sats, seller, buyer, mined, pay, dir, floor })
    }

    /// The exchange, as a trader sees it, once it has its market.
    pub async fn connect(&self) -> anyhow::Result<Exchange> {
        for _ in 0..100 {
            let exchange =
                Exchange::connect(self.exchange.key, std::slice::from_ref(&self.relay.url)).await;
            match exchange {
                Ok(exchange) if exchange.market(None).is_ok() => return Ok(exchange),
                Ok(exchange) => exchange.close().await,
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("the exchange has no market")
    }

    /// A settler for a wallet, by the draft's timing.
    pub async fn settler(&self, wallet: &Wallet) -> anyhow::Result<Settler> {
        self.settler_by(wallet, None).await
    }

    /// As [`TradeHouse::settler`], with a Lightning wallet.
    pub async fn settler_by(
        &self,
        wallet: &Wallet,
        lightning: Option<NwcUri>,
    ) -> anyhow::Result<Settler> {
        let mints = vec![self.sats.url.clone()];
        let limits = Limits { mints, lightning, ..Limits::default() };
        Ok(Settler::open(wallet.clone(), self.connect().await?, limits).await?)
    }

    /// This house after an outage: `part` is stopped, and comes back where it was when
    /// `away` is over.
    pub async fn without(
        mut self,
        part: Part,
        away: impl Future<Output = ()>,
    ) -> anyhow::Result<Self> {
        match part {
            Part::Relay => {
                let at = self.relay.url.as_str_without_trailing_slash();
                let at = at.trim_start_matches("ws://").to_owned();
                self.relay.stop().await?;
                away.await;
                let listener = TcpListener::bind(at).await?;
                self.relay = RelayHouse::start_on(listener, &self.dir.join("relay")).await?;
            }
            Part::Pool => {
                let at = [self.pool.sv2, self.pool.mint_at];
                self.pool.stop().await?;
                away.await;
                self.pool = start_pool(&self.dir, &self.relay, at, String::new()).await?;
            }
            Part::Sats => {
                let url = self.sats.url.to_string();
                self.sats.stop().await?;
                away.await;
                let listener = TcpListener::bind(url.trim_start_matches("http://")).await?;
                self.sats = SatMint::start_on(listener, &self.dir.join("sats")).await?;
            }
            Part::Exchange => {
                self.exchange.stop().await?;
                away.await;
                self.exchange =
                    start_exchange(&self.dir, &self.relay, &self.pool, &self.pay).await?;
            }
        }
        Ok(self)
    }

    /// Two more wallets, in `dir`, with `units` of the seller's and new sats.
    pub async fn pair(&self, dir: &Path, units: u64, sats: u64) -> anyhow::Result<Pair> {
        let (seller, buyer) = (wallet(&dir.join("s")).await?, wallet(&dir.join("b")).await?);
        let unit = self.pool.epoch.id.to_string();
        seller.receive(&self.seller.send(units, Some(&unit)).await?.to_string()).await?;
        buyer.receive(&self.sats.token(sats).await?.to_string()).await?;
        Ok(Pair { seller, buyer })
    }

    /// Has the pair's seller offer lots, and its buyer take them; the match.
    pub async fn deal_of(&self, pair: &Pair, lots: u32, price: u64) -> anyhow::Result<EventId> {
        let _floor = self.floor.lock().await;
        self.offer(&pair.seller, Side::Sell, lots, price).await?;
        let met = self.offer(&pair.buyer, Side::Buy, lots, price).await?;
        match met.first() {
            Some(of) => Ok(*of),
            None => self.newest_match(pair).await,
        }
    }

    /// The match that an answer came without.
    async fn newest_match(&self, pair: &Pair) -> anyhow::Result<EventId> {
        let begun = Millis::new(1000 * Timestamp::now().as_secs().saturating_sub(15));
        let of_pair = [&pair.seller, &pair.buyer].map(|wallet| wallet.trade_keys().public_key());
        let exchange = self.connect().await?;
        for _ in 0..50 {
            let trades = exchange.trades(self.pool.epoch.id, 50).await?;
            let found = trades.iter().find(|trade| {
                let traders = [trade.terms.seller().trader, trade.terms.buyer().trader];
                trade.terms.at > begun && traders == of_pair
            });
            if let Some(found) = found {
                exchange.close().await;
                return Ok(found.id);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::bail!("the offers have not met")
    }

    /// Has the seller offer lots, and the buyer take them; the match.
    pub async fn deal(&self, lots: u32, msats_a_lot: u64) -> anyhow::Result<EventId> {
        self.offer(&self.seller, Side::Sell, lots, msats_a_lot).await?;
        let met = self.offer(&self.buyer, Side::Buy, lots, msats_a_lot).await?;
        met.first().copied().ok_or_else(|| anyhow::anyhow!("the offers have not met"))
    }

    /// Makes an offer; what it matched.
    pub async fn offer(
        &self,
        wallet: &Wallet,
        side: Side,
        lots: u32,
        msats_a_lot: u64,
    ) -> anyhow::Result<Vec<EventId>> {
        let mut trader = Trader::connect(wallet.trade_keys(), self.connect().await?).await?;
        let market = trader.exchange().market(None)?.clone();
        let pay = market.pay.iter().map(|payment| payment.way).collect();
        let terms = Terms::new(side, Some(Price::new(msats_a_lot)), Lots::new(lots), pay);
        let d = Keys::generate().public_key().to_hex();
        let answer = trader.make(&market, d, terms, false).await?;
        trader.close().await;
        Ok(answer.matches.iter().map(|matched| matched.id).collect())
    }

    /// Sats in a wallet.
    pub async fn sats_of(&self, wallet: &Wallet) -> anyhow::Result<u64> {
        let balances = wallet.balances().await?;
        let sats = balances.iter().filter(|balance| balance.unit == "sat");
        Ok(sats.map(|balance| balance.amount).sum())
    }

    /// Ehash in a wallet.
    pub async fn ehash_of(&self, wallet: &Wallet) -> anyhow::Result<u64> {
        Ok(wallet.ehash(self.pool.epoch.id).await?.get())
    }

    /// Stops everything.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.exchange.stop().await?;
        self.pool.stop().await?;
        self.relay.stop().await
    }
}

/// A new wallet.
pub async fn wallet(dir: &Path) -> anyhow::Result<Wallet> {
    let entropy = Keys::generate().secret_key().to_secret_bytes();
    let mut half = [0; 16];
    half.copy_from_slice(&entropy[..16]);
    Ok(Wallet::create(dir, Seed::from_entropy(&half), None).await?)
}
