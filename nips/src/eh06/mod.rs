//! EH-06: settlement, by which two traders whose offers matched exchange ehash
//! for sats with nobody in between.
//!
//! | module | what lives in it |
//! |---|---|
//! | [`Timing`] | the steps' deadlines and the locktimes, counted from the match |
//! | [`Message`] | what the two tell each other, in NIP-59 wraps |
//! | [`HtlcLock`], [`LockedProof`] | how a leg is locked, and the check of it |
//! | [`Watch`] | what a seller hands to a watchtower |

mod lock;
mod message;
mod timing;
mod watch;

pub use lock::{HtlcLock, LegError, LockedProof, amounts, fee};
pub use message::{Keys, Leg, LockTerms, Message, MessageError, Pays};
pub use timing::Timing;
pub use watch::Watch;

use cashu::PublicKey as CashuKey;
use nostr::PublicKey;

/// A Nostr key as one that Cashu proofs are locked to (NUT-11): the point with an
/// even y coordinate.
pub fn lock_key(key: &PublicKey) -> CashuKey {
    CashuKey::from_hex(format!("02{}", key.to_hex())).expect("an x-only key is a point's x")
}
