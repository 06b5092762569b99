//! The relay through its public door: a real WebSocket, both stores.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod conformance;
mod crash;
mod damage;
mod harness;
mod lifetimes;
mod privacy;
mod protocol;
