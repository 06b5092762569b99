//! The engine's state, to read.

use hashpit_nips::eh04::{MarketState, OnEpoch, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};

use super::Engine;
use super::command::{
    Address, Command, Limits, MarketId, MarketRules, OfferId, PayMask, Seq, Trader,
};
use super::offers::Slot;

/// An offer that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its event.
    pub id: OfferId,
    /// Where it stands.
    pub address: Address,
    /// Whose it is.
    pub trader: Trader,
    /// Where it trades.
    pub market: MarketId,
    /// Its priority.
    pub seq: Seq,
    /// Its side.
    pub side: Side,
    /// Its price.
    pub price: Price,
    /// What it still wants.
    pub left: Lots,
    /// What it got, before amendments too.
    pub filled: Lots,
    /// Smallest fill, or the rest if that is smaller.
    pub min: Lots,
    /// Largest single fill.
    pub max: Lots,
    /// `gtc` or `post`.
    pub tif: TimeInForce,
    /// Ways of payment.
    pub pay: PayMask,
    /// Traders of one group do not trade with each other.
    pub group: Option<u64>,
    /// What happens to it when the epoch turns.
    pub on_epoch: OnEpoch,
    /// When it ends by itself.
    pub expires: Option<Millis>,
}

impl Engine {
    /// Whether an offer of a trader waits behind a commit to stand at an address.
    pub fn waits_at(&self, trader: Trader, address: Address) -> bool {
        self.waits_in(trader, |offer| offer.0 == address).is_some()
    }

    /// Whether an offer that this event makes waits behind a commit.
    pub fn waits_for(&self, trader: Trader, id: OfferId) -> bool {
        self.waits_in(trader, |offer| offer.1 == id).is_some()
    }

    /// Whether a command to cancel would end an offer that stands now.
    pub fn would_end(&self, command: &Command) -> bool {
        match command {
            Command::Cancel { trader, address, prev } => {
                let standing = self.own_at(*trader, *address).map(|slot| self.offers[slot].id);
                standing.is_ok_and(|id| prev.is_none_or(|prev| prev == id))
            }
            Command::CancelById { .. } => self.ends_what_stands(command),
            Command::CancelAll { trader, market } => {
                let here = |slot| market.is_none_or(|market| self.offers[slot].market == market);
                self.slots_of(*trader).any(here)
            }
            _ => false,
        }
    }

    /// How many markets were opened.
    pub fn markets(&self) -> u32 {
        u32::try_from(self.markets.len()).expect("fewer than 2^32 markets")
    }

    /// A market's state, if it was opened.
    pub fn state(&self, market: MarketId) -> Option<MarketState> {
        self.markets.get(market.index()).map(|market| market.state)
    }

    /// A market's rules, if it was opened.
    pub fn rules(&self, market: MarketId) -> Option<&MarketRules> {
        self.markets.get(market.index()).map(|market| &market.rules)
    }

    /// Price of a market's last match.
    pub fn last_price(&self, market: MarketId) -> Option<Price> {
        self.markets.get(market.index()).and_then(|market| market.last)
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Levels of a side, best first: price, lots, offers.
    pub fn levels(&self, market: MarketId, side: Side) -> impl Iterator<Item = (Price, u64, u32)> {
        let levels = self.markets.get(market.index()).map(|market| market.book.levels(side));
        let levels = levels.into_iter().flatten();
        levels.map(|(price, level)| (price, level.lots, level.queue.len()))
    }

    /// Offers of a side, in order of priority.
    pub fn queue(&self, market: MarketId, side: Side) -> impl Iterator<Item = Standing> {
        let market = self.markets.get(market.index());
        let slots =
            market.into_iter().flat_map(move |market| market.book.queue(side, &self.offers));
        slots.map(|slot| self.standing(slot))
    }

    /// The offer at an address.
    pub fn offer(&self, address: Address) -> Option<Standing> {
        self.offers.at(address).map(|slot| self.standing(slot))
    }

    /// A trader's offers of all markets, in the order in which they came to stand.
    pub fn offers_of(&self, trader: Trader) -> impl Iterator<Item = Standing> {
        self.slots_of(trader).map(|slot| self.standing(slot))
    }

    /// How many offers of a trader stand, over all markets.
    pub fn open_offers(&self, trader: Trader) -> u32 {
        self.traders.get(trader).map_or(0, |entry| entry.offers.len())
    }

    /// How many offers stand in a market.
    pub fn open_offers_in(&self, market: MarketId) -> u32 {
        self.markets.get(market.index()).map_or(0, |market| market.book.len())
    }

    /// When all of a trader's offers end, unless it shows that it is alive.
    pub fn alive_until(&self, trader: Trader) -> Option<Millis> {
        self.traders.get(trader).and_then(|entry| entry.alive).map(|(until, _)| until)
    }

    /// How many commits of a trader ran out of time.
    pub fn burnt(&self, trader: Trader) -> u32 {
        self.traders.get(trader).map_or(0, |entry| entry.burnt)
    }

    /// How many commits and commands wait in a market.
    pub fn deferred_in(&self, market: MarketId) -> usize {
        self.markets.get(market.index()).map_or(0, |market| market.queue.len())
    }

    fn standing(&self, slot: Slot) -> Standing {
        let offer = &self.offers[slot];
        Standing {
            id: offer.id,
            address: offer.address,
            trader: self.traders.entry(offer.trader).key,
            market: offer.market,
            seq: offer.seq,
            side: offer.side,
            price: offer.price,
            left: offer.left,
            filled: offer.filled,
            min: offer.min,
            max: offer.max,
            tif: offer.tif,
            pay: offer.pay,
            group: offer.group(),
            on_epoch: offer.on_epoch,
            expires: offer.expires(),
        }
    }
}
