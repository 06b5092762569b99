//! The exchange.

pub mod desk;
pub mod journal;
