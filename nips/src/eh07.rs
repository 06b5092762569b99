//! EH-07: a Cashu mint's HTTP API, carried by encrypted events.
//!
//! A [`Request`] goes from a throwaway key to a pool's key, a [`Response`] back;
//! each is JSON, encrypted by NIP-44, in an ephemeral event of kind 28470. The
//! wallet repeats a request, with the same id, until it is answered; the mint
//! carries out an id once and repeats its answer.

use std::fmt;
use std::str::FromStr;

use cashu::MintUrl;
use nostr::nips::nip44;
use nostr::secp256k1::rand::{CryptoRng, RngCore};
use nostr::{Event, EventBuilder, Keys, PublicKey, Tag, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind;

/// Most bytes of JSON in one message: NIP-44 pads to powers of two and parts of
/// them, and above this some libraries refuse.
pub const MAX_MESSAGE: usize = 65_408;
/// A request older than this, by its `created_at`, is not carried out: whoever
/// sent it has given up.
pub const MAX_AGE_SECS: u64 = 120;

/// Last segment of the URL of a pool's sats, and what the paths of requests to that
/// mint begin with.
pub const SATS_PATH: &str = "/sat";

/// Where a pool answers for sats, if it issues any: beside its ehash. `None` where
/// the ehash is at the root of its host.
pub fn sats_url(ehash: &MintUrl) -> Option<MintUrl> {
    let ehash = ehash.to_string();
    let (base, _) = ehash.trim_end_matches('/').rsplit_once('/')?;
    // What is left of "https://host" ends with a slash of its scheme.
    (!base.ends_with('/')).then(|| format!("{base}{SATS_PATH}").parse().ok())?
}

/// Names a request, and its answer: 16 random bytes, 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// An id of random bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Not 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request id has 32 lower-case hex digits")]
pub struct InvalidRequestId;

impl FromStr for RequestId {
    type Err = InvalidRequestId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 32 || !lower {
            return Err(InvalidRequestId);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| InvalidRequestId)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl Serialize for RequestId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// HTTP's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Reads.
    Get,
    /// Acts.
    Post,
}

impl Method {
    /// As HTTP writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// What a wallet asks of a mint. The same id is the same request for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Random; unique for the key that asks.
    pub id: RequestId,
    /// `GET` or `POST`.
    pub method: Method,
    /// Below the mint's URL: `/v1/swap`.
    pub path: String,
    /// What HTTP would carry in the body, as JSON and not as a string of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
}

/// What the mint says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    /// The request's.
    pub id: RequestId,
    /// HTTP's status.
    pub status: u16,
    /// What HTTP would carry in the body: the answer, or NUT-00's error.
    pub body: Value,
}

/// Why a message could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not an event of kind 28470 with a valid signature.
    #[error("not an EH-07 event with a valid id and signature")]
    NotMintMessage,
    /// Its one `p` tag does not name the reader.
    #[error("not addressed to this key")]
    NotForUs,
    /// More JSON than one event holds.
    #[error("{0} bytes do not fit into one event, which holds {MAX_MESSAGE}; ask for less at once")]
    TooLong(usize),
    /// It does not decrypt.
    #[error("NIP-44: {0}")]
    Encryption(#[from] nip44::Error),
    /// The plaintext is not a message.
    #[error("not a message: {0}")]
    Json(#[from] serde_json::Error),
    /// Signing failed.
    #[error("signing: {0}")]
    Signing(#[from] nostr::event::builder::Error),
}

/// Encrypts and signs a [`Request`] or [`Response`] as an event of kind 28470.
pub fn seal<M: Serialize, R: RngCore + CryptoRng>(
    message: &M,
    from: &Keys,
    to: &PublicKey,
    created_at: Timestamp,
    rng: &mut R,
) -> Result<Event, MessageError> {
    let plain = serde_json::to_string(message)?;
    if plain.len() > MAX_MESSAGE {
        return Err(MessageError::TooLong(plain.len()));
    }
    let version = nip44::Version::V2;
    let cipher = nip44::encrypt_with_rng(rng, from.secret_key(), to, plain, version)?;
    Ok(EventBuilder::new(kind::MINT, cipher)
        .tag(Tag::public_key(*to))
        .allow_self_tagging()
        .custom_created_at(created_at)
        .sign_with_keys(from)?)
}

/// Verifies, decrypts and parses an event of kind 28470 addressed to `to`.
pub fn open<M: DeserializeOwned>(event: &Event, to: &Keys) -> Result<M, MessageError> {
    if event.kind != kind::MINT || event.verify().is_err() {
        return Err(MessageError::NotMintMessage);
    }
    let mut recipients = event.tags.public_keys();
    if recipients.next() != Some(&to.public_key()) || recipients.next().is_some() {
        return Err(MessageError::NotForUs);
    }
    let plain = nip44::decrypt(to.secret_key(), &event.pubkey, &event.content)?;
    Ok(serde_json::from_str(&plain)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sats_are_beside_the_ehash() {
        let sats = |url: &str| sats_url(&url.parse().unwrap()).map(|url| url.to_string());
        for (ehash, beside) in [
            ("https://pool.example/ehash", Some("https://pool.example/sat")),
            ("https://pool.example/mint/hash/", Some("https://pool.example/mint/sat")),
            ("http://127.0.0.1:3338/ehash", Some("http://127.0.0.1:3338/sat")),
            ("https://pool.example", None),
        ] {
            assert_eq!(sats(ehash).as_deref(), beside, "{ehash}");
        }
    }
}
