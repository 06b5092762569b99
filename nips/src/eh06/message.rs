//! What two traders tell each other, in NIP-59 wraps to the keys that they trade
//! under.
//!
//! The first message is sealed by that key, and names another that was made for
//! this trade; everything else is sealed by that. So a message belongs to one
//! trade by who signed it, and cannot be shown in another.

use cashu::mint_url::MintUrl;
use cashu::nuts::nut02::Id;
use nostr::{EventBuilder, EventId, PublicKey, Tag, UnsignedEvent};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::LockedProof;
use crate::eh01::EpochState;
use crate::eh04::Way;
use crate::kind;

/// One message of a trade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Step 1: what the sender brings to the trade.
    Keys(Box<Keys>),
    /// Lightning, before step 2: the seller's hold invoice on the buyer's hash.
    Invoice {
        /// BOLT11.
        bolt11: String,
    },
    /// Steps 2 and 3: the sender's leg is locked.
    Locked {
        /// Which one.
        leg: Leg,
        /// Its proofs, by ascending amount.
        proofs: Vec<LockedProof>,
    },
    /// Step 4, a courtesy: the buyer has claimed the ehash with this. The mint
    /// shows it too (NUT-07).
    Claimed {
        /// The preimage.
        #[serde(with = "hex::serde")]
        preimage: [u8; 32],
    },
    /// The sender will not go on, and has locked nothing that it has not told of.
    Abort {
        /// Why, for people.
        reason: String,
    },
}

/// One of the two things that change hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leg {
    /// From the buyer to the seller.
    Sats,
    /// From the seller to the buyer.
    Ehash,
}

/// What a trader brings to a trade.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Hash of the match's terms (EH-05).
    #[serde(with = "hex::serde")]
    pub terms: [u8; 32],
    /// The key made for this trade: it seals the other messages, claims, and takes
    /// back. A point's x: whoever reads another would lock to nobody.
    #[serde(deserialize_with = "on_curve")]
    pub key: PublicKey,
    /// The sender's clock, in seconds of the Unix epoch.
    pub clock: u64,
    /// The epoch as its pool last said.
    pub epoch: EpochState,
    /// Where and how the sender will lock its leg; none for Lightning.
    pub lock: Option<LockTerms>,
    /// The buyer's part; none of the seller's.
    pub pays: Option<Pays>,
    /// Whether the other's leg may be locked under `SIG_ALL`: only where the sender
    /// knows that its mint carries out such claims.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_sig_all: bool,
}

/// Where and how a leg is locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockTerms {
    /// The mint, as the sender reaches it.
    pub mint: MintUrl,
    /// The keyset that signs the locked proofs.
    pub keyset: Id,
    /// Whether signatures may cover the whole swap: only where the mint knows
    /// `SIG_ALL`. They do if the receiver takes that, too.
    pub sig_all: bool,
}

/// What only the buyer brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pays {
    /// SHA-256 of the buyer's preimage.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
    /// One of the match's ways of payment.
    pub way: Way,
}

/// Half of all strings of 32 bytes are no point's x coordinate.
fn on_curve<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
    let key = PublicKey::deserialize(deserializer)?;
    key.xonly().map(|_| key).map_err(de::Error::custom)
}

/// Why a rumor is no message of a trade.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Another kind.
    #[error("kind {0} is no message of a trade")]
    Kind(u16),
    /// It names no match, or several.
    #[error("it does not name one match")]
    Match,
    /// Not a message that this draft knows.
    #[error("{0}")]
    Content(#[from] serde_json::Error),
}

impl Message {
    /// The rumor that is sealed and wrapped (NIP-59).
    pub fn rumor(&self, of: EventId, from: PublicKey) -> UnsignedEvent {
        let content = serde_json::to_string(self).expect("strings and numbers are JSON");
        EventBuilder::new(kind::SWAP, content).tag(Tag::event(of)).build(from)
    }

    /// Reads a rumor: which match it is about, and what it says. Who says it is
    /// the seal's affair.
    pub fn read(rumor: &UnsignedEvent) -> Result<(EventId, Self), MessageError> {
        if rumor.kind != kind::SWAP {
            return Err(MessageError::Kind(rumor.kind.as_u16()));
        }
        let mut named = rumor.tags.event_ids();
        let of = *named.next().ok_or(MessageError::Match)?;
        if named.next().is_some() {
            return Err(MessageError::Match);
        }
        Ok((of, serde_json::from_str(&rumor.content)?))
    }

    /// The step of the settlement that its sender reports with it.
    pub fn step(&self) -> Option<u8> {
        match self {
            Self::Keys(_) => Some(1),
            Self::Locked { leg: Leg::Sats, .. } => Some(2),
            Self::Locked { leg: Leg::Ehash, .. } => Some(3),
            Self::Claimed { .. } => Some(4),
            Self::Invoice { .. } | Self::Abort { .. } => None,
        }
    }
}
