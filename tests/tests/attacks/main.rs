//! Attacks on a trade: each first robs somebody careless, at real mints, and then
//! is tried against a settler.
//!
//! | module | who attacks |
//! |---|---|
//! | `locks` | a counterparty, by what it locks |
//! | `words` | a counterparty or a stranger, by what is said |
//! | `exchange` | the exchange, or who holds its key; and a wrong clock |
//! | `mints` | a mint, or who holds the way to it |
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod exchange;
mod locks;
mod mints;
mod words;
