//! What the engine says happened.

use hashpit_nips::eh04::{MarketState, Side};
use hashpit_nips::{Lots, Millis, Msats, Price};

use super::command::{MarketId, OfferId, PayMask, Seq, Trader};
use super::refusal::Refusal;

/// One thing that happened. An offer that was accepted ends once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A market was opened.
    MarketOpened(MarketId),
    /// A market is in this state from now on.
    State(MarketId, MarketState),
    /// An offer takes part. Its matches follow, then its end, or it stands.
    Accepted {
        /// Where.
        market: MarketId,
        /// The offer.
        id: OfferId,
        /// Its priority.
        seq: Seq,
        /// What it still wants, before its matches.
        left: Lots,
    },
    /// A command changed nothing.
    Refused {
        /// The command.
        seq: Seq,
        /// The offer that it was about, where it named one.
        id: Option<OfferId>,
        /// Why.
        refusal: Refusal,
    },
    /// A command waits behind a commit.
    Deferred {
        /// The command; for an offer shown early, its commit.
        seq: Seq,
        /// Where it waits.
        market: MarketId,
        /// The offer that it is about, where it names one.
        id: Option<OfferId>,
    },
    /// Two offers trade.
    Matched(Match),
    /// An offer no longer takes part.
    Ended {
        /// Where.
        market: MarketId,
        /// The offer.
        id: OfferId,
        /// Whose it was.
        trader: Trader,
        /// Its side.
        side: Side,
        /// Its price, if it had one.
        price: Option<Price>,
        /// What it did not get.
        left: Lots,
        /// Why.
        reason: EndReason,
    },
    /// What stands at a price, at the end of a command that touched it.
    Depth {
        /// Where.
        market: MarketId,
        /// The side.
        side: Side,
        /// The price.
        price: Price,
        /// Lots of all offers.
        lots: u64,
        /// How many offers; none when the level is gone.
        offers: u32,
    },
    /// A commit took its place.
    Committed {
        /// Where.
        market: MarketId,
        /// Whose.
        trader: Trader,
        /// The offer that it is for.
        id: OfferId,
        /// When it is burnt.
        until: Millis,
    },
    /// A commit lost its place without its offer.
    Burnt {
        /// Where.
        market: MarketId,
        /// Whose.
        trader: Trader,
        /// The offer that it was for.
        id: OfferId,
        /// Whether it counts against the trader: its time had run out.
        counted: bool,
    },
    /// A dead man's switch was set, or lifted, or has done its work.
    Alive {
        /// Whose.
        trader: Trader,
        /// When all offers end.
        until: Option<Millis>,
    },
}

/// Two offers that trade with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Where.
    pub market: MarketId,
    /// The older offer.
    pub maker: Leg,
    /// The newer one.
    pub taker: Leg,
    /// What the newer one does.
    pub taker_side: Side,
    /// Price of a lot: the maker's, or the auction's.
    pub price: Price,
    /// How many lots.
    pub lots: Lots,
    /// What they cost.
    pub msats: Msats,
    /// The maker's fee, rounded up.
    pub maker_fee: Msats,
    /// The taker's fee, rounded up.
    pub taker_fee: Msats,
    /// Ways of payment that both take.
    pub pay: PayMask,
}

/// One side of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The offer.
    pub id: OfferId,
    /// Whose it is.
    pub trader: Trader,
    /// Its priority.
    pub seq: Seq,
    /// What it still wants after this match.
    pub left: Lots,
}

/// Why an offer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// It got all that it wanted.
    Filled,
    /// Its trader said so.
    Cancelled,
    /// Another event took its place.
    Amended,
    /// `ioc`: nothing more could be taken at once.
    Immediate,
    /// It would have matched an offer of its own trader.
    SelfTrade,
    /// Its time was over.
    Expired,
    /// Its trader was silent for too long.
    DeadMan,
    /// The epoch turned.
    Epoch,
    /// The market closed.
    Closed,
}
