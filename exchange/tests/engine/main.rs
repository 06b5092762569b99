//! The matching engine through its public door.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod amending;
mod dice;
mod house;
mod matching;
mod model;
mod oracle;
mod random;
mod replay;
mod states;
mod waiting;
