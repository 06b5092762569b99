//! What a seller hands to a watchtower: a claim that needs only the preimage, and a
//! refund that needs only time.

use cashu::mint_url::MintUrl;
use cashu::{PublicKey as CashuKey, SwapRequest};
use nostr::{EventBuilder, PublicKey, UnsignedEvent};
use serde::{Deserialize, Serialize};

use super::MessageError;
use crate::kind;

/// A claim of the sats and a refund of the ehash, signed by the seller over its own
/// outputs (NUT-11, `SIG_ALL`): whoever learns the preimage can finish the one, after
/// the locktime anybody can finish the other, and nobody can redirect them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// SHA-256 of the preimage.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
    /// Where the ehash is locked.
    pub ehash_mint: MintUrl,
    /// Points Y of the locked ehash (NUT-07): once they are spent, the mint shows
    /// the preimage.
    pub ehash: Vec<CashuKey>,
    /// From then on the seller may take the ehash back. The buyer's claim of it stays
    /// open all the same (NUT-14).
    pub ehash_until: u64,
    /// Where the sats are locked.
    pub sats_mint: MintUrl,
    /// Until then the buyer cannot take the sats back.
    pub sats_until: u64,
    /// The claim, without the preimage.
    pub claim: SwapRequest,
    /// The locked ehash for outputs of the seller's, signed over both by the key that
    /// takes it back. A mint carries it out once `ehash_until` has passed. Only of a
    /// lock that says `SIG_ALL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund: Option<SwapRequest>,
}

impl Watch {
    /// The rumor that is sealed and wrapped (NIP-59). It names no match: a
    /// watchtower has no use for one.
    pub fn rumor(&self, from: PublicKey) -> UnsignedEvent {
        let content = serde_json::to_string(self).expect("strings and numbers are JSON");
        EventBuilder::new(kind::WATCH, content).build(from)
    }

    /// Reads a rumor.
    pub fn read(rumor: &UnsignedEvent) -> Result<Self, MessageError> {
        if rumor.kind != kind::WATCH {
            return Err(MessageError::Kind(rumor.kind.as_u16()));
        }
        Ok(serde_json::from_str(&rumor.content)?)
    }
}
