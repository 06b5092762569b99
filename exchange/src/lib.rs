//! The exchange.

pub mod desk;
pub mod fair_value;
pub mod journal;
