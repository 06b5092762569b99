//! EH-04: offers of ehash for sats, what traders may ask of an exchange, and the
//! terms under which it trades.
//!
//! | type | kind | by |
//! |---|---|---|

mod terms;

pub use terms::{MarketState, OnEpoch, SelfTrade, Side, TimeInForce};
