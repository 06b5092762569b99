//! The matching engine through its public door.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod house;
mod matching;
