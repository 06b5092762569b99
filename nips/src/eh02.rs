//! EH-02: issuance, the encrypted messages between a pool and a miner.
//!
//! A message is JSON, encrypted by NIP-44, in an event of kind 8470 that its
//! sender signs and whose one `p` tag names its recipient. Each side parses
//! only what the other may send: [`MinerMessage`] or [`PoolMessage`]. Every
//! message may arrive twice, late or not at all, and is safe to repeat.

use cashu::{BlindSignature, Id, PublicKey as CashuKey};
use nostr::nips::nip44;
use nostr::secp256k1::rand::{CryptoRng, RngCore};
use nostr::signer::SignerError;
use nostr::{Event, EventBuilder, EventId, Keys, PublicKey, Tag, Timestamp, UnsignedEvent};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{EpochId, HashUnits, Work, kind};

/// Most blank outputs in one message, and most that a pool keeps for a miner.
/// A wallet that restores looks for signatures in windows of 100 (NUT-13).
pub const MAX_BLANKS: usize = 100;
/// Most batch numbers in one acknowledgement.
pub const MAX_ACKS: usize = 100;

/// What a miner sends to a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum MinerMessage {
    /// Asks for the keyset and a statement.
    Hello {},
    /// Blank blinded messages: B_ without an amount, which the pool sets when
    /// it signs (as NUT-08 does for change).
    Blanks {
        /// Keyset that they are meant for.
        keyset: Id,
        /// 1 to [`MAX_BLANKS`] outputs, in the order that they are to be used.
        outputs: Vec<CashuKey>,
    },
    /// These batches are stored; the pool need not send them again.
    Ack {
        /// Epoch of the batches.
        unit: EpochId,
        /// 1 to [`MAX_ACKS`] batch numbers.
        batches: Vec<u64>,
    },
    /// Asks for batches again, acknowledged or not.
    Resend {
        /// Epoch of the batches.
        unit: EpochId,
        /// First batch number wanted.
        from: u64,
    },
}

/// What a pool sends to a miner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum PoolMessage {
    /// The open epoch's keyset: the signed event of kind 38471 itself.
    Keyset {
        /// Event of kind 38471.
        event: Box<Event>,
    },
    /// A batch of blind signatures on the miner's blanks.
    Signatures(Batch),
    /// The miner's running totals, signed by virtue of the event.
    Statement(Statement),
    /// A message of the miner's that was not acted on.
    Refused {
        /// The message's event.
        of: EventId,
        /// A Nostr prefix, and what to do next.
        reason: String,
    },
}

/// Ehash issued at once. Numbers count from 0, without gaps, for each miner
/// and epoch; the same number is always the same batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Epoch.
    pub unit: EpochId,
    /// Batch number.
    pub batch: u64,
    /// Signatures, each with the blank that it is on.
    pub signatures: Vec<SignedBlank>,
}

/// One blind signature with its blank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBlank {
    /// The blank that was signed.
    #[serde(rename = "B_")]
    pub blank: CashuKey,
    /// Amount, keyset, C_ and DLEQ proof (NUT-00, NUT-12).
    #[serde(flatten)]
    pub signature: BlindSignature,
}

/// A miner's running totals in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The `hello` that it answers.
    pub of: EventId,
    /// Epoch.
    pub unit: EpochId,
    /// Shares credited.
    #[serde(with = "decimal_string")]
    pub shares: u64,
    /// Work credited, in expected hashes.
    pub work: Work,
    /// Units issued.
    pub issued: HashUnits,
    /// Batches issued: the next batch's number.
    #[serde(with = "decimal_string")]
    pub batches: u64,
    /// Blanks that the pool still holds.
    pub blanks: u32,
}

mod decimal_string {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        crate::units::decimal(&text).ok_or_else(|| de::Error::custom("expected a decimal string"))
    }
}

/// Why a message could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not an event of kind 8470 with a valid signature.
    #[error("not an issuance event with a valid id and signature")]
    NotIssuance,
    /// Its one `p` tag does not name the reader.
    #[error("not addressed to this key")]
    NotForUs,
    /// It does not decrypt, or is too long to encrypt.
    #[error("NIP-44: {0}")]
    Encryption(#[from] nip44::Error),
    /// The plaintext is not a message that the sender may send.
    #[error("not a message: {0}")]
    Json(#[from] serde_json::Error),
    /// Signing failed.
    #[error("signing: {0}")]
    Signing(#[from] nostr::event::Error),
    /// The signer refused, or did not answer.
    #[error("signer: {0}")]
    Signer(#[from] SignerError),
}

/// Encrypts and signs a message as an event of kind 8470.
///
/// `expiration` is when relays may forget it (NIP-40).
pub fn seal<M: Serialize, R: RngCore + CryptoRng>(
    message: &M,
    from: &Keys,
    to: &PublicKey,
    created_at: Timestamp,
    expiration: Timestamp,
    rng: &mut R,
) -> Result<Event, MessageError> {
    let plain = serde_json::to_string(message)?;
    let version = nip44::Version::V2;
    let cipher = nip44::encrypt_with_rng(rng, from.secret_key(), to, plain, version)?;
    let unsigned = envelope(cipher, from.public_key(), to, created_at, expiration);
    Ok(unsigned.sign_with_keys(from)?)
}

/// The event around an encrypted message, to be signed.
pub fn envelope(
    cipher: String,
    from: PublicKey,
    to: &PublicKey,
    created_at: Timestamp,
    expiration: Timestamp,
) -> UnsignedEvent {
    EventBuilder::new(kind::ISSUANCE, cipher)
        .tags([Tag::public_key(*to), Tag::expiration(expiration)])
        .allow_self_tagging()
        .custom_created_at(created_at)
        .build(from)
}

/// Verifies, decrypts and parses an event of kind 8470 addressed to `to`.
pub fn open<M: DeserializeOwned>(event: &Event, to: &Keys) -> Result<M, MessageError> {
    check(event, &to.public_key())?;
    let plain = nip44::decrypt(to.secret_key(), &event.pubkey, &event.content)?;
    Ok(serde_json::from_str(&plain)?)
}

/// Checks that an event is of kind 8470, validly signed and addressed to `to`.
pub fn check(event: &Event, to: &PublicKey) -> Result<(), MessageError> {
    if event.kind != kind::ISSUANCE || event.verify().is_err() {
        return Err(MessageError::NotIssuance);
    }
    let mut recipients = event.tags.public_keys();
    if recipients.next() != Some(to) || recipients.next().is_some() {
        return Err(MessageError::NotForUs);
    }
    Ok(())
}
