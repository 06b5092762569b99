//! EH-04: offers of ehash for sats, what traders may ask of an exchange, and the
//! terms under which it trades.
//!
//! | type | kind | by |
//! |---|---|---|
//! | [`Offer`] | 38480 | a trader |
//! | [`Command`] | 8483 | a trader |
//! | [`Market`] | 38481 | an exchange |
//! | [`ExchangeInfo`] | 38482 | an exchange |

mod command;
mod market;
mod offer;
mod terms;

pub use command::{Action, Command};
pub use market::{ExchangeInfo, Market, Payment, Rules};
pub use offer::{MAX_NAME, MAX_WAYS, MarketId, MarketIdError, Offer, Terms, Way};
pub use terms::{MarketState, OnEpoch, SelfTrade, Side, TimeInForce};

pub use crate::tag::DecodeError;
