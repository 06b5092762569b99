//! The built-in wallet sells part of what it has mined: one offer an epoch.

use std::time::Duration;

use hashpit_client::Wallet;
use hashpit_client::issuance::Progress;
use hashpit_client::trade::{self, End, Exchange, OwnOffer, TradeError, Trader};
use hashpit_nips::eh04::{Market, MarketState, Side, Terms};
use hashpit_nips::eh05::Outcome;
use hashpit_nips::units::UnitError;
use hashpit_nips::{EpochId, HashUnits, Lots, Price, Sats, Work, WorkBits};
use nostr_sdk::{PublicKey, RelayUrl};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// Pause before another try, where the exchange has no market yet or a relay is
/// away.
const AGAIN: Duration = Duration::from_secs(2);

/// What the wallet has offered.
#[derive(Debug, Clone, Default)]
pub struct Offered {
    /// The newest offer.
    pub offer: Option<Offer>,
}

/// An offer in the book, or one that was bought.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its name.
    pub d: String,
    /// Its epoch.
    pub epoch: EpochId,
    /// Lots that were put on sale.
    pub lots: Lots,
    /// Price of a lot.
    pub price: Price,
    /// Its place in the exchange's journal.
    pub seq: u64,
}

/// Where and for what the wallet sells.
pub struct Seller {
    pub wallet: Wallet,
    pub exchange: PublicKey,
    pub relays: Vec<RelayUrl>,
    pub worth: Worth,
}

/// What a block is worth, and takes.
#[derive(Debug, Clone, Copy)]
pub struct Worth {
    /// Sats of its reward.
    pub reward: Sats,
    /// Expected hashes.
    pub work: Work,
    /// One unit of ehash is 2^bits hashes.
    pub bits: WorkBits,
}

impl Worth {
    /// The share of the reward that a lot's work earns when an epoch takes exactly
    /// the work that is expected; a multiple of the market's tick, at least one.
    pub fn price(&self, market: &Market) -> Result<Price, UnitError> {
        let overflow = UnitError::Overflow("msats a lot");
        let lot = self.bits.work_of(market.lot)?.get();
        let msats = u128::from(self.reward.get()).checked_mul(1000).ok_or(overflow)?;
        let worth = msats.checked_mul(lot).ok_or(overflow)? / self.work.get().max(1);
        let tick = u128::from(market.tick.get());
        let rounded = (worth / tick).max(1) * tick;
        u64::try_from(rounded).map(Price::new).map_err(|_| overflow)
    }
}

impl Seller {
    /// Offers half of each epoch's first ehash, until stopped.
    pub async fn run(
        self,
        mut claiming: watch::Receiver<Progress>,
        offered: watch::Sender<Offered>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut done = None;
        loop {
            let claimed = claiming.borrow_and_update().clone();
            let due = claimed
                .epoch
                .filter(|epoch| claimed.received > HashUnits::ZERO && done != Some(*epoch));
            if let Some(epoch) = due {
                match self.offer(epoch).await {
                    Ok(Standing::Open(offer)) => {
                        info!(offer = offer.d, lots = %offer.lots, seq = offer.seq, "offered ehash");
                        offered.send_replace(Offered { offer: Some(offer) });
                        done = Some(epoch);
                    }
                    Ok(Standing::Over(end)) => {
                        info!(%epoch, %end, "this epoch's offer is not made again");
                        done = Some(epoch);
                    }
                    Ok(Standing::NotYet(why)) => debug!(why, "not offered yet"),
                    Err(error) => debug!(%error, "not offered yet"),
                }
            }
            // While something is due it is tried again before long.
            let changed = async {
                if due.is_some() && done != due {
                    tokio::time::sleep(AGAIN).await;
                    true
                } else {
                    claiming.changed().await.is_ok()
                }
            };
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                more = changed => if !more { return Ok(()) },
            }
        }
    }

    /// Sells half of an epoch's ehash, unless that was offered before.
    async fn offer(&self, epoch: EpochId) -> anyhow::Result<Standing> {
        let exchange = Exchange::connect(self.exchange, &self.relays).await?;
        let mut trader = Trader::connect(self.wallet.trade_keys(), exchange).await?;
        let offer = self.offer_as(&mut trader, epoch).await;
        trader.close().await;
        offer
    }

    async fn offer_as(&self, trader: &mut Trader, epoch: EpochId) -> anyhow::Result<Standing> {
        let market = trader.exchange().market(Some(&epoch.to_string()))?.clone();
        if market.state != MarketState::Open {
            return Err(TradeError::NoMarket.into());
        }
        let d = name(epoch);
        if let Some(own) = trader.offers().await?.into_iter().find(|own| own.d == d) {
            return Ok(Standing::of(own));
        }
        let half = self.wallet.ehash(epoch).await?.get() / 2 / market.lot.get();
        let lots = Lots::new(u32::try_from(half).unwrap_or(u32::MAX));
        if lots == Lots::ZERO {
            return Ok(Standing::NotYet("there is too little ehash"));
        }
        let price = self.worth.price(&market)?;
        let pay = market.pay.iter().map(|payment| payment.way).collect();
        let terms = Terms::new(Side::Sell, Some(price), lots, pay);
        let answer = trader.make(&market, d.clone(), terms, false).await?;
        match answer.outcome {
            Outcome::Accepted | Outcome::Deferred => {
                Ok(Standing::Open(Offer { d, epoch, lots, price, seq: answer.seq }))
            }
            Outcome::Refused(why) => Ok(Standing::Over(End::Refused(why))),
        }
    }
}

/// What has become of an epoch's offer.
#[derive(Debug)]
enum Standing {
    /// It is in the book, has its place behind a hidden one, or was bought.
    Open(Offer),
    /// There was one, and it came to nothing. The ehash of an epoch is offered once.
    Over(End),
    /// There is none, or no word about it; why.
    NotYet(&'static str),
}

impl Standing {
    fn of(own: OwnOffer) -> Self {
        let (lots, seq) = (own.terms.lots, own.seq.unwrap_or_default());
        match own.standing {
            trade::Standing::Open
            | trade::Standing::Deferred
            | trade::Standing::Over(End::Filled) => {
                let (epoch, price) = (own.market.epoch, own.terms.price.unwrap_or_default());
                Self::Open(Offer { d: own.d, epoch, lots, price, seq })
            }
            trade::Standing::Unanswered => Self::NotYet("the exchange has not answered"),
            trade::Standing::Over(end) => Self::Over(end),
        }
    }
}

/// The name of an epoch's offer, the same at every start: no exchange lets two
/// stand under one name, and one that stood under it before is found by it.
fn name(epoch: EpochId) -> String {
    format!("up-{}-{}", &epoch.pool.to_hex()[..8], epoch.height)
}

#[cfg(test)]
mod tests {
    use hashpit_nips::eh04::Payment;
    use nostr_sdk::Keys;

    use super::*;

    #[test]
    fn a_lot_is_worth_its_share_of_a_block() {
        let market = Market {
            epoch: EpochId { pool: Keys::generate().public_key(), height: 1 },
            mint: "https://mint.example".parse().expect("a URL"),
            state: MarketState::Open,
            until: None,
            seq: 1,
            lot: HashUnits::new(10),
            tick: Price::new(1_000),
            fee_ppm: (0, 0),
            pay: vec![Payment { way: hashpit_nips::eh04::Way::Nwc, mint: None }],
        };
        let worth = Worth {
            reward: Sats::new(5_000_000_000),
            work: Work::new(1 << 30),
            bits: WorkBits::new(22).expect("in range"),
        };
        // 10 × 2^22 of 2^30 hashes: 10 / 256 of the reward, down to whole sats.
        assert_eq!(worth.price(&market), Ok(Price::new(195_312_500_000)));
        let dust = Worth { reward: Sats::new(1), ..worth };
        assert_eq!(dust.price(&market), Ok(Price::new(1_000)), "a tick is the least");
    }
}
