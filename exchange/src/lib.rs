//! An exchange of ehash for sats on Nostr: offers come in through relays, one
//! thread gives each its place in a signed chain, a pure engine matches them, and
//! anybody can replay the chain and see whether it did so fairly.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`engine`] | the matching engine: commands in, events out, nothing else |
//! | [`state`] | the exchange as a pure function of its journal: admission, markets, settlement |
//! | [`replay`] | following a journal entry by entry, and what can be wrong with one |
//! | [`fair_value`] | what ehash should be worth, for display |
//! | [`journal`] | the journal on disk |
//! | [`audit`] | whether an exchange did what its rules say, from public events |
//! | [`desk`] | the thread that owns state and journal |

pub mod audit;
pub mod desk;
pub mod engine;
pub mod fair_value;
pub mod journal;
pub mod replay;
pub mod state;
