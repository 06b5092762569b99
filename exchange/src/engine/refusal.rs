//! Why a command changed nothing, in words that begin with Nostr's prefixes.

use hashpit_nips::{Lots, Price};

use super::command::OfferId;

/// Why a command changed nothing, and what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No market has this number.
    #[error("invalid: no such market; see the exchange's list of markets")]
    UnknownMarket,
    /// A market cannot have these rules.
    #[error(
        "invalid: a market needs a tick and lots of at least 1, and fees of at most 1000000 ppm"
    )]
    UnsoundRules,
    /// A price that is no multiple of the tick.
    #[error("invalid: the price must be a multiple of {tick} msats a lot")]
    Price {
        /// The market's tick.
        tick: Price,
    },
    /// Only what takes at once can do without a price.
    #[error("invalid: an offer without a price must be ioc or fok")]
    NoPrice,
    /// Too few lots, or too many.
    #[error("invalid: this market takes offers of {min} to {max} lots")]
    Lots {
        /// Fewest.
        min: Lots,
        /// Most.
        max: Lots,
    },
    /// Fills that cannot be.
    #[error("invalid: the smallest fill must be at least 1 lot, and at most the largest")]
    FillSizes,
    /// The whole offer costs more than 64 bits of msats.
    #[error("invalid: price times lots is beyond all bitcoin; ask for less")]
    Value,
    /// Nobody could pay.
    #[error("invalid: name at least one way of payment that this exchange lists")]
    NoPayment,
    /// It came too late.
    #[error("invalid: the offer has expired; sign it again with a later expiration")]
    Expired,
    /// A dead man's switch in the past.
    #[error("invalid: that time has passed; name a later one")]
    Past,
    /// Nothing but cancelling works.
    #[error("blocked: the market is halted; cancel, or wait until it opens")]
    Halted,
    /// Nothing is taken at once.
    #[error("blocked: the market gathers offers for an auction; use gtc, or wait until it opens")]
    Auction,
    /// Nothing works.
    #[error("blocked: the market is closed; trade another epoch's")]
    Closed,
    /// Post-only, and something could be taken.
    #[error("blocked: a post-only offer would match at once; choose another price, or use gtc")]
    WouldMatch,
    /// Fill or kill, and not all could be taken.
    #[error("blocked: not all lots can be had at once; ask for fewer, or use ioc")]
    NotFillable,
    /// An offer stands there already.
    #[error("duplicate: an offer stands at this address; name its event in prev to amend it")]
    AddressTaken,
    /// Nothing stands there.
    #[error("invalid: no such offer of yours stands; it may have been filled or have ended")]
    UnknownOffer,
    /// Compare-and-swap failed.
    #[error("invalid: prev is not what stands; look at {standing} and decide again")]
    Superseded {
        /// The event that stands there.
        standing: OfferId,
    },
    /// An amendment that is another offer.
    #[error("invalid: an amendment keeps its market and side; cancel, and place a new offer")]
    OtherOffer,
    /// The trader has enough offers.
    #[error("rate-limited: a trader may have {limit} offers; cancel one first")]
    OffersOfTrader {
        /// [`super::Limits::open_offers_per_trader`].
        limit: u32,
    },
    /// The market has enough offers.
    #[error("rate-limited: the market has {limit} offers; take one, or try again later")]
    OffersOfMarket {
        /// [`super::Limits::open_offers_per_market`].
        limit: u32,
    },
    /// The trader has enough commits.
    #[error("rate-limited: {limit} of your commits may wait; show the offer of one first")]
    CommitsOfTrader {
        /// [`super::Limits::commits_per_trader`].
        limit: u32,
    },
    /// The offer has a place already.
    #[error("duplicate: this offer is committed to; show it")]
    Committed,
    /// The trader has enough commands waiting.
    #[error("rate-limited: {limit} of your commands wait behind a commit; try again in seconds")]
    DeferredOfTrader {
        /// [`super::Limits::deferred_per_trader`].
        limit: u32,
    },
    /// The market has enough commands waiting.
    #[error("rate-limited: too much waits behind a commit in this market; try again in seconds")]
    DeferredOfMarket,
}
