//! What the engine is told: ids, rules, limits, orders and commands.

use std::fmt;

use hashpit_nips::eh04::{MarketState, OnEpoch, SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};

/// Place of a command in the journal; an offer's priority among equal prices.
pub type Seq = u64;

macro_rules! bytes {
    ($(#[$doc:meta])* $name:ident($len:literal)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

bytes!(
    /// Id of the Nostr event that makes or amends an offer.
    OfferId(32)
);
bytes!(
    /// Where an offer stands through its amendments: SHA-256 of its author and
    /// `d` tag, truncated. The caller makes it.
    Address(16)
);
bytes!(
    /// A trader's x-only public key.
    Trader(32)
);

/// Number of a market, in order of opening, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MarketId(pub u32);

impl MarketId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Ways of payment that a trader takes, a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayMask(pub u32);

impl PayMask {
    /// The ways that both take.
    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether no way is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What a market asks of its offers, and of those who trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarketRules {
    /// Prices are multiples of it; at least 1.
    pub tick: Price,
    /// Fewest lots of an offer; at least 1.
    pub min_lots: Lots,
    /// Most lots of an offer.
    pub max_lots: Lots,
    /// Fee of the older side, in millionths of what is paid; at most 1,000,000.
    pub maker_fee_ppm: u32,
    /// Fee of the newer side, in millionths of what is paid; at most 1,000,000.
    pub taker_fee_ppm: u32,
}

impl MarketRules {
    /// Whether the rules can be kept at all.
    pub fn are_sound(&self) -> bool {
        let ppm = 1_000_000;
        self.tick > Price::ZERO
            && self.min_lots > Lots::ZERO
            && self.min_lots <= self.max_lots
            && self.maker_fee_ppm <= ppm
            && self.taker_fee_ppm <= ppm
    }
}

/// What bounds the engine's memory and the work of one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Offers that one trader may have standing, over all markets.
    pub open_offers_per_trader: u32,
    /// Offers that may stand in one market.
    pub open_offers_per_market: u32,
    /// Standing offers that an incoming one looks at, so that offers which it
    /// may not match (other ways of payment, sizes or owners) cost it only so
    /// much. What it has not found by then it does not take.
    pub makers_per_order: u32,
    /// Commits that one trader may have waiting, over all markets.
    pub commits_per_trader: u32,
    /// How long a commit may wait for its offer, in milliseconds.
    pub reveal_ms: u64,
    /// Commits and deferred commands that may wait in one market.
    pub deferred_per_market: u32,
    /// Deferred commands that one trader may have waiting, over all markets.
    pub deferred_per_trader: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_offers_per_trader: 1_000,
            open_offers_per_market: 100_000,
            makers_per_order: 10_000,
            commits_per_trader: 1,
            reveal_ms: 2_000,
            deferred_per_market: 10_000,
            deferred_per_trader: 100,
        }
    }
}

/// An offer as its trader signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Its event.
    pub id: OfferId,
    /// Where it stands.
    pub address: Address,
    /// Whose it is.
    pub trader: Trader,
    /// Where it trades.
    pub market: MarketId,
    /// What it does.
    pub side: Side,
    /// Worst price that it takes; any price if there is none, which only `ioc`
    /// and `fok` may ask for.
    pub price: Option<Price>,
    /// All of its lots, those included that were filled before an amendment.
    pub lots: Lots,
    /// Smallest fill, or the rest if that is smaller; at least 1.
    pub min: Lots,
    /// Largest single fill; at least `min`.
    pub max: Lots,
    /// How long it stays.
    pub tif: TimeInForce,
    /// Ways of payment.
    pub pay: PayMask,
    /// Traders of one group do not trade with each other.
    pub group: Option<u64>,
    /// What happens where it would match an offer of its own trader.
    pub self_trade: SelfTrade,
    /// What happens to it when the epoch turns.
    pub on_epoch: OnEpoch,
    /// When it ends by itself.
    pub expires: Option<Millis>,
}

/// What can be asked of the engine. Each command has one [`Seq`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Opens the next market, in state open.
    OpenMarket(MarketRules),
    /// Gives a market other rules, for what comes after.
    SetRules(MarketId, MarketRules),
    /// Sets other limits, for what comes after.
    SetLimits(Limits),
    /// Moves a market to a state. Waiting commits are dropped and what they
    /// deferred is carried out before.
    SetState(MarketId, MarketState),
    /// Cancels a market's offers with [`OnEpoch::Cancel`]. Waiting commits are
    /// dropped and what they deferred is carried out before.
    TurnEpoch(MarketId),
    /// A new offer, or the one that its trader has committed to.
    Place(Order),
    /// Puts an offer in the place of the one that stands at its address.
    Amend {
        /// The event that stands there.
        prev: OfferId,
        /// The offer that shall.
        order: Order,
    },
    /// Ends the offer at an address.
    Cancel {
        /// Whose it is.
        trader: Trader,
        /// Where it stands.
        address: Address,
        /// The event that must stand there, if it matters.
        prev: Option<OfferId>,
    },
    /// Ends the offer that an event made.
    CancelById {
        /// Whose it is.
        trader: Trader,
        /// The event.
        id: OfferId,
    },
    /// Ends all offers of a trader.
    CancelAll {
        /// Whose they are.
        trader: Trader,
        /// In this market only.
        market: Option<MarketId>,
    },
    /// Sets, renews or lifts a dead man's switch: a time at which all offers of
    /// a trader end.
    Alive {
        /// Whose it is.
        trader: Trader,
        /// When they end; not at all if there is none.
        until: Option<Millis>,
    },
    /// Takes a place in a market's queue for an offer that is shown later.
    Commit {
        /// Whose offer it will be.
        trader: Trader,
        /// Where.
        market: MarketId,
        /// Its event.
        id: OfferId,
    },
    /// Nothing but time.
    Time,
}

impl Command {
    /// The offer that it names.
    pub fn offer(&self) -> Option<OfferId> {
        match self {
            Self::Place(order) | Self::Amend { order, .. } => Some(order.id),
            Self::CancelById { id, .. } | Self::Commit { id, .. } => Some(*id),
            Self::Cancel { prev, .. } => *prev,
            _ => None,
        }
    }

    /// Whose word it is; none if it is the exchange's own.
    pub fn trader(&self) -> Option<Trader> {
        match self {
            Self::Place(order) | Self::Amend { order, .. } => Some(order.trader),
            Self::Cancel { trader, .. }
            | Self::CancelById { trader, .. }
            | Self::CancelAll { trader, .. }
            | Self::Alive { trader, .. }
            | Self::Commit { trader, .. } => Some(*trader),
            _ => None,
        }
    }

    /// Whether it ends offers, and does nothing else.
    pub fn is_cancelling(&self) -> bool {
        matches!(self, Self::Cancel { .. } | Self::CancelById { .. } | Self::CancelAll { .. })
    }
}
