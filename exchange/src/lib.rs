//! The exchange.

pub mod desk;
pub mod engine;
pub mod journal;
