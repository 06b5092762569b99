//! All that two wallets need to trade with each other, in this process: a relay, a
//! pool, an exchange, a mint of sats; a seller that has mined, and a buyer with sats.

use std::path::Path;
use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::settle::{Limits, Settler, Timing};
use hashpit_client::trade::{Exchange, Trader};
use hashpit_nips::eh04::{Payment, Side, Terms, Way};
use hashpit_nips::{HashUnits, Lots, Price, Seed, WorkBits};
use nostr_sdk::{EventId, Keys};

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
}

impl TradeHouse {
    /// Starts everything in `dir`; sats are those of the mint.
    pub async fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(dir, None, None).await
    }

    /// As [`TradeHouse::start`], with a proxy before the pool's mint.
    pub async fn start_behind(dir: &Path, proxy: &MintProxy) -> anyhow::Result<Self> {
        Self::start_with(dir, None, Some(proxy)).await
    }

    /// As [`TradeHouse::start`], with other ways of payment.
    pub async fn start_paying(dir: &Path, pay: Option<Vec<Payment>>) -> anyhow::Result<Self> {
        Self::start_with(dir, pay, None).await
    }

    async fn start_with(
        dir: &Path,
        pay: Option<Vec<Payment>>,
        proxy: Option<&MintProxy>,
    ) -> anyhow::Result<Self> {
        let relay = RelayHouse::start(&dir.join("relay")).await?;
        let relays = [relay.url.clone()];
        let mut config = PoolHouse::config_without_blocks(&relays)?;
        config.work_bits = WorkBits::new(2)?;
        config.public_mint = proxy.map(|proxy| proxy.url.clone()).unwrap_or_default();
        let pool = PoolHouse::start(config, &dir.join("pool")).await?;
        if let Some(proxy) = proxy {
            proxy.leads_to(&format!("http://{}", pool.mint_at))?;
        }
        let sats = SatMint::start(&dir.join("sats")).await?;
        let mut config = ExchangeHouse::config(&relays, &[]);
        config.pools = vec![pool.key];
        let way = Way::Cashu(sats.key);
        let by_mint = || vec![Payment { way, mint: Some(sats.url.clone()) }];
        config.rules.pay = pay.unwrap_or_else(by_mint);
        let exchange = ExchangeHouse::start(config, &dir.join("exchange")).await?;
        let seller = wallet(&dir.join("seller")).await?;
        let buyer = wallet(&dir.join("buyer")).await?;
        let mined = pool.pay_for_work(&seller, &relay).await?;
        buyer.receive(&sats.token(SATS).await?.to_string()).await?;
        Ok(Self { relay, pool, exchange, sats, seller, buyer, mined })
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
        let limits = Limits { mints: vec![self.sats.url.clone()], ..Limits::default() };
        Ok(Settler::open(wallet.clone(), self.connect().await?, limits).await?)
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

async fn wallet(dir: &Path) -> anyhow::Result<Wallet> {
    let entropy = Keys::generate().secret_key().to_secret_bytes();
    let mut half = [0; 16];
    half.copy_from_slice(&entropy[..16]);
    Ok(Wallet::create(dir, Seed::from_entropy(&half), None).await?)
}
