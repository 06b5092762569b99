//! The second built-in wallet buys what the first one sells: one bid an epoch, for
//! simulated sats.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use hashpit_client::Wallet;
use hashpit_client::trade::{End, Exchange, Standing, Trade, TradeError, Trader};
use hashpit_client::wallet::{Deposited, MintUrl};
use hashpit_nips::eh04::{Market, MarketState, Side, Terms, Way};
use hashpit_nips::eh05::{Level, Outcome};
use hashpit_nips::{EpochId, Lots, Price, Sats};
use nostr_sdk::{EventId, PublicKey, RelayUrl};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::offering::{Offered, Worth};

/// Pause before another try, while the book does not show the offer yet, the bid has
/// met none, or a relay is away; twice as long each time, up to a minute.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// How long the mint may take to act as if its invoice were paid.
const DEPOSIT: Duration = Duration::from_secs(10);

/// Sats beyond the price, for what the mint takes when they are spent.
const FEES: u64 = 128;

/// Matches of the market that are looked through for this wallet's.
const NEWEST: usize = 100;

/// What the wallet has bought.
#[derive(Debug, Clone, Default)]
pub struct Bought {
    /// The newest match of its bids.
    pub matched: Option<Matched>,
}

/// A bid that met an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// The match's event (kind 8481).
    pub id: EventId,
    /// Its epoch.
    pub epoch: EpochId,
    /// Its place in the exchange's journal.
    pub seq: u64,
    /// Lots that were bought.
    pub lots: Lots,
    /// Price of a lot.
    pub price: Price,
}

/// Where and with what the wallet buys.
pub struct Buyer {
    pub wallet: Wallet,
    pub exchange: PublicKey,
    pub relays: Vec<RelayUrl>,
    pub worth: Worth,
    /// The mint of its sats, and the way of payment that it stands for.
    pub mint: MintUrl,
    pub way: Way,
}

impl Buyer {
    /// Bids once for what is on sale in each epoch, until stopped.
    pub async fn run(
        self,
        mut offered: watch::Receiver<Offered>,
        bought: watch::Sender<Bought>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let (mut done, mut pause) = (None, AGAIN);
        loop {
            let on_sale = offered.borrow_and_update().offer.as_ref().map(|offer| offer.epoch);
            let due = on_sale.filter(|epoch| done != Some(*epoch));
            if let Some(epoch) = due {
                match self.buy(epoch).await {
                    Ok(Some(matched)) => {
                        info!(id = %matched.id, lots = %matched.lots, "bought ehash");
                        bought.send_replace(Bought { matched: Some(matched) });
                        done = Some(epoch);
                    }
                    Ok(None) => {
                        info!(%epoch, "this epoch's bid has ended, and is not made again");
                        done = Some(epoch);
                    }
                    Err(error) => debug!(%error, "not bought yet"),
                }
                pause = if done == due { AGAIN } else { (pause * 2).min(AGAIN_AT_MOST) };
            }
            let changed = async {
                if due.is_some() && done != due {
                    tokio::time::sleep(pause).await;
                    true
                } else {
                    offered.changed().await.is_ok()
                }
            };
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                more = changed => if !more { return Ok(()) },
            }
        }
    }

    async fn buy(&self, epoch: EpochId) -> anyhow::Result<Option<Matched>> {
        let exchange = Exchange::connect(self.exchange, &self.relays).await?;
        let mut trader = Trader::connect(self.wallet.trade_keys(), exchange).await?;
        let bought = self.buy_as(&mut trader, epoch).await;
        trader.close().await;
        bought
    }

    /// The match of this epoch's bid, which is made unless it was made before; `None`
    /// if it has ended without one. That it has met none yet is an error.
    async fn buy_as(&self, trader: &mut Trader, epoch: EpochId) -> anyhow::Result<Option<Matched>> {
        let (unit, d) = (epoch.to_string(), name(epoch));
        let market = trader.exchange().market(Some(&unit))?.clone();
        let before = trader.offers().await?.into_iter().find(|own| own.d == d);
        let matches = match before {
            Some(_) => trader.exchange().trades(epoch, NEWEST).await?,
            None => self.bid(trader, &market, d).await?,
        };
        let me = self.wallet.trade_keys().public_key();
        let mine = matches.iter().find(|trade| trade.terms.buyer().trader == me);
        match (mine, before.map(|own| own.standing)) {
            (Some(trade), _) => Ok(Some(Matched::of(trade))),
            (None, Some(Standing::Over(end))) if end != End::Filled => Ok(None),
            (None, _) => Err(anyhow!("the bid has met no offer")),
        }
    }

    /// Bids for all that is on sale at a fair price, with the sats for it at hand.
    async fn bid(
        &self,
        trader: &mut Trader,
        market: &Market,
        d: String,
    ) -> anyhow::Result<Vec<Trade>> {
        if market.state != MarketState::Open {
            return Err(TradeError::NoMarket.into());
        }
        let way = market.pay.iter().find(|payment| payment.way == self.way);
        ensure!(way.is_some(), "the market was opened for other ways of payment");
        let price = self.worth.price(market)?;
        let book = trader.exchange().book(market.epoch).await?;
        let lots = on_sale(book.asks(), price, self.worth.reward);
        ensure!(lots > Lots::ZERO, "nothing is on sale at a fair price");
        self.provide(price.of(lots)?.in_sats()).await?;
        let terms = Terms::new(Side::Buy, Some(price), lots, vec![self.way]);
        let answer = trader.make(market, d, terms, false).await?;
        if let Outcome::Refused(why) = answer.outcome {
            return Err(anyhow!("the exchange refused the bid: {why}"));
        }
        Ok(answer.matches)
    }

    /// Sees that the wallet holds so many sats, and what it costs to spend them.
    async fn provide(&self, price: Sats) -> anyhow::Result<()> {
        let mint = self.mint.to_string();
        let balances = self.wallet.balances().await?.into_iter();
        let held: u64 = balances.filter(|one| one.mint == mint).map(|one| one.amount).sum();
        let lacking = price.get().saturating_add(FEES).saturating_sub(held);
        if lacking == 0 {
            return Ok(());
        }
        let deposit = self.wallet.deposit(&self.mint, Sats::new(lacking)).await?;
        let deposited = timeout(DEPOSIT, self.wallet.await_deposit(&deposit)).await??;
        ensure!(deposited == Deposited::Done, "the mint did not simulate the payment");
        Ok(())
    }
}

impl Matched {
    fn of(trade: &Trade) -> Self {
        let terms = &trade.terms;
        Self {
            id: trade.id,
            epoch: terms.market.epoch,
            seq: terms.seq,
            lots: terms.lots,
            price: terms.price,
        }
    }
}

/// Lots that are offered for `price` or less, as many as a block's reward buys.
fn on_sale(asks: impl Iterator<Item = Level>, price: Price, reward: Sats) -> Lots {
    let offered: u64 = asks.filter(|ask| ask.0 <= price).map(|ask| ask.1).sum();
    let affordable = reward.get().saturating_mul(1000) / price.get().max(1);
    Lots::new(u32::try_from(offered.min(affordable)).unwrap_or(u32::MAX))
}

/// The name of an epoch's bid, the same at every start.
fn name(epoch: EpochId) -> String {
    format!("up-buys-{}-{}", &epoch.pool.to_hex()[..8], epoch.height)
}

/// Takes up sats that the wallets of this house hold under an earlier URL of its
/// mint: its port may have changed. The buyer never had others than this mint's, so
/// it remembers where that was; it is moved last.
pub async fn follow_mint(wallet: &Wallet, buyer: &Wallet, mint: &MintUrl) -> anyhow::Result<()> {
    for former in buyer.sat_mints().await?.iter().filter(|former| *former != mint) {
        wallet.move_mint(former, mint).await?;
        buyer.move_mint(former, mint).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dear_or_more_than_a_block_is_left() {
        let asks = || {
            let level = |price, lots| Level(Price::new(price), lots, 1);
            [level(900, 3), level(1000, 4), level(1001, 5)].into_iter()
        };
        let (price, reward) = (Price::new(1000), Sats::new(50));
        assert_eq!(on_sale(asks(), price, reward), Lots::new(7));
        assert_eq!(on_sale(asks(), price, Sats::new(5)), Lots::new(5));
        assert_eq!(on_sale(asks(), Price::new(899), reward), Lots::ZERO);
        assert_eq!(on_sale([].into_iter(), price, reward), Lots::ZERO);
    }
}
