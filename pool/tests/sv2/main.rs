//! The Sv2 front end through its public door: over TCP and Noise, with a ledger
//! that judges only when a test says so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod abuse;
mod pool;
mod setup;
mod shares;

#[path = "../../../tests/src/sv2_peer.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the whole-system tests, which use the rest"
)]
mod sv2_peer;

/// A miner.
const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
