//! The words that offers and markets are made of.

use crate::tag::names;

/// Which side of the book an offer stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Pays sats for ehash.
    Buy,
    /// Gives ehash for sats.
    Sell,
}
names!(Side: "side", Buy = "buy", Sell = "sell");

impl Side {
    /// The side that it trades with.
    pub fn opposite(self) -> Self {
        match self {
            Self::Buy => Self::Sell,
            Self::Sell => Self::Buy,
        }
    }
}

/// How long an offer stays, and what it may do on arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeInForce {
    /// Rests until it is filled, cancelled or expired.
    Gtc,
    /// Takes what it can at once; the rest is cancelled.
    Ioc,
    /// Takes all of its lots at once, or is refused.
    Fok,
    /// Rests, or is refused if it would match at once.
    Post,
}
names!(TimeInForce: "tif", Gtc = "gtc", Ioc = "ioc", Fok = "fok", Post = "post");

/// What becomes of an offer when its epoch closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnEpoch {
    /// It is cancelled: its price was made for an open epoch.
    Cancel,
    /// It stays, and takes part in the call auction.
    Keep,
}
names!(OnEpoch: "on_epoch", Cancel = "cancel", Keep = "keep");

/// What happens where an offer would match another of the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SelfTrade {
    /// What is left of the newer offer is cancelled.
    CancelNew,
    /// The older offer is cancelled, and the newer one goes on.
    CancelOld,
}
names!(SelfTrade: "stp", CancelNew = "new", CancelOld = "old");

/// Where a market stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MarketState {
    /// Offers match as they come.
    Open,
    /// Offers may be cancelled, and nothing else.
    Halted,
    /// Offers gather without matching, until one price clears them.
    Auction,
    /// For good, unless its epoch comes back.
    Closed,
}
names!(MarketState: "state", Open = "open", Halted = "halted", Auction = "auction", Closed = "closed");
