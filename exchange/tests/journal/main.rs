//! The desk and its journal through the public door, and audits of what it, or
//! a cheat in its place, has published.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod audit;
mod cancelling;
mod collect;
mod desk;
mod world;
