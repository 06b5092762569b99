//! EH-03: backup, the three NIP-60 kinds as hashpit writes and reads them.
//!
//! What stands here is the plaintext of each kind: all three are encrypted by
//! NIP-44 to their own author, who may sit behind a remote signer, so sealing is
//! left to whoever holds the signer. [`sealed_len`] says how long an event will
//! be.
//!
//! | type | kind | plaintext |
//! |---|---|---|
//! | [`WalletContent`] | 17375 | array of tags: mints, keys, and for ehash how to go on mining |
//! | [`TokenContent`] | 7375 | unspent proofs of one unit at one mint |
//! | [`HistoryContent`] | 7376 | array of tags: one change of a balance |

mod history;
mod token;
mod wallet;

pub use history::{Direction, HistoryContent, Marker};
pub use token::{MAX_PLAINTEXT, TokenContent, split};
pub use wallet::{CounterTag, EpochTag, HeldTag, PoolTag, WalletContent};

use nostr::{Event, EventBuilder, EventId, Kind, Tag, TagKind};

use crate::kind;

/// Bytes of an event around its content: id, key, time, kind, signature, and
/// the names and braces of the JSON. Events here have no tags.
const ENVELOPE: usize = 346;
/// What NIP-44 adds to a padded plaintext: version, nonce, length, MAC.
const CIPHER_OVERHEAD: usize = 1 + 32 + 2 + 32;

/// Why a plaintext is not what its kind promises.
#[derive(Debug, thiserror::Error)]
pub enum PlaintextError {
    /// Not the JSON that the kind promises.
    #[error("not the JSON of its kind: {0}")]
    Json(#[from] serde_json::Error),
    /// A tag that NIP-60 requires is absent or does not parse.
    #[error("tag {0:?} is missing or malformed")]
    Tag(&'static str),
}

/// Bytes of the signed event, as JSON, whose NIP-44 content seals `plaintext`
/// bytes and which has no tags. An upper bound, by a few bytes.
pub fn sealed_len(plaintext: usize) -> usize {
    ENVELOPE + (CIPHER_OVERHEAD + padded(plaintext)).div_ceil(3) * 4
}

/// NIP-44's padding: to an eighth of the next power of two.
fn padded(len: usize) -> usize {
    if len <= 32 {
        return 32;
    }
    let next_power = len.next_power_of_two();
    let chunk = if next_power <= 256 { 32 } else { next_power / 8 };
    len.next_multiple_of(chunk)
}

/// The NIP-09 event that deletes token events. NIP-60 wants the `k` tag.
pub fn deletion(events: impl IntoIterator<Item = EventId>) -> EventBuilder {
    let kind = Tag::custom(TagKind::custom("k"), [kind::TOKEN.as_u16().to_string()]);
    EventBuilder::new(Kind::EventDeletion, "").tags(events.into_iter().map(Tag::event)).tag(kind)
}

/// The events that a NIP-09 event deletes, if their author is its own.
pub fn deleted_by(deletion: &Event) -> impl Iterator<Item = EventId> {
    let is_deletion = deletion.kind == Kind::EventDeletion;
    deletion.tags.event_ids().filter(move |_| is_deletion).copied()
}

#[cfg(test)]
mod tests {
    use nostr::nips::nip44;
    use nostr::{JsonUtil, Keys};

    use super::*;

    #[test]
    fn the_length_of_a_sealed_event_is_known_beforehand() {
        let keys = Keys::generate();
        for len in [1, 32, 33, 256, 257, 1_000, 8_192, 8_193, 40_960, MAX_PLAINTEXT] {
            let plain = "x".repeat(len);
            let version = nip44::Version::V2;
            let sealed =
                nip44::encrypt(keys.secret_key(), &keys.public_key(), plain, version).unwrap();
            let event = EventBuilder::new(kind::TOKEN, sealed).sign_with_keys(&keys).unwrap();
            let (real, bound) = (event.as_json().len(), sealed_len(len));
            assert!(real <= bound && real + 16 > bound, "{len}: {real}, expected {bound}");
        }
        assert!(sealed_len(MAX_PLAINTEXT) <= 60_000);
        assert!(sealed_len(MAX_PLAINTEXT + 1) > 60_000);
    }

    #[test]
    fn a_deletion_names_what_it_deletes() {
        let ids = [EventId::from_byte_array([1; 32]), EventId::from_byte_array([2; 32])];
        let event = deletion(ids).sign_with_keys(&Keys::generate()).unwrap();
        assert_eq!(deleted_by(&event).collect::<Vec<_>>(), ids);
        assert!(event.as_json().contains(r#"["k","7375"]"#));
        let note = EventBuilder::text_note("").tag(Tag::event(ids[0]));
        let note = note.sign_with_keys(&Keys::generate()).unwrap();
        assert_eq!(deleted_by(&note).count(), 0);
    }
}
