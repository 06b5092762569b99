//! Typed codecs for the Nostr events that hashpit's parts exchange, with the
//! units and ids they carry. Pure: no network, no clock, no randomness of its
//! own; [`seed_file`] alone touches the disk.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`kind`] | the event kind numbers, and which of them are private |
//! | [`units`] | [`Work`], [`HashUnits`], [`Sats`], [`Msats`], [`WorkBits`]: integers with checked arithmetic |
//! | [`epoch`] | [`EpochId`] and the Cashu unit name that it maps to |
//! | [`identity`] | `npub1….worker`, the name that a miner mines under |
//! | [`seed`] | [`Seed`]: twelve words, and the keys that they derive |
//! | [`seed_file`] | where those words are kept |
//! | [`eh01`] | pool announcement, epoch keyset, supply attestation, mint announcement |
//! | [`eh02`] | issuance: the encrypted messages between pool and miner |
//! | [`eh03`] | backup: wallet, tokens and history of NIP-60 |
//! | [`eh04`] | offers, a trader's commands, markets and exchange info |
//! | [`eh05`] | the exchange's journal: entries, matches, settlements, checkpoints, depth |
//! | [`eh06`] | settlement: messages of two traders, locks and their check |
//! | [`eh07`] | a mint's HTTP API in encrypted events |
//!
//! The drafts that these modules implement are `EH-01.md` to `EH-07.md` beside
//! this crate; `vectors/` holds their golden vectors.

pub mod eh01;
pub mod eh02;
pub mod eh03;
pub mod eh04;
pub mod eh05;
pub mod eh06;
pub mod eh07;
pub mod epoch;
pub mod identity;
pub mod kind;
pub mod seed;
pub mod seed_file;
mod tag;
pub mod units;

pub use epoch::EpochId;
pub use identity::MinerIdentity;
pub use seed::Seed;
pub use units::{HashUnits, Lots, Millis, Msats, Price, Sats, Work, WorkBits};
