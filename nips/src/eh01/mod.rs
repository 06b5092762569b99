//! EH-01: what a pool publishes about itself and its epochs.
//!
//! | type | kind |
//! |---|---|
//! | [`PoolAnnouncement`] | 38470, addressable by network |
//! | [`EpochKeyset`] | 38471, addressable by unit |
//! | [`SupplyAttestation`] | 8471, regular |
//! | [`MintAnnouncement`] | 38172 (NIP-87), addressable by mint key |
//!
//! Each encodes to an [`nostr::EventBuilder`] (the caller adds the time and
//! signs) and decodes from an event whose signature was checked.

mod epoch_keyset;
mod mint;
mod pool;
mod supply;

pub use epoch_keyset::{EpochKeyset, EpochState};
pub use mint::MintAnnouncement;
pub use pool::{PayoutScheme, PoolAnnouncement, Sv2Endpoint};
pub use supply::SupplyAttestation;

pub use crate::tag::DecodeError;
