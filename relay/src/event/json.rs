//! Events as JSON (NIP-01): reading, checking and writing.
//!
//! [`Checker`] turns a client's text into an [`Event`] and checks its id and
//! signature; it is the only door for events from outside. Reading borrows from
//! the text wherever the JSON has no escape.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use secp256k1::schnorr::Signature;
use secp256k1::{Message, SECP256K1, XOnlyPublicKey};
use serde::{Deserialize, Deserializer, de};
use sha2::{Digest, Sha256};

use super::{Event, parse_hex, push_hex, record};

/// Parsed keys that a [`Checker`] remembers, about 100 bytes each. A lookup
/// saves the square root that makes a key from its 32 bytes.
const MAX_CACHED_KEYS: usize = 16_384;

/// Why a text is not a valid event.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// Not the JSON of an event.
    #[error("this is not an event: {0}")]
    Json(#[from] serde_json::Error),
    /// A field that must be lower-case hex of a fixed length is not.
    #[error("{0} must be lower-case hex of the right length")]
    Hex(&'static str),
    /// The id is not the hash of the event.
    #[error("the id is not the hash of the event")]
    Id,
    /// The signature is not the author's.
    #[error("the signature does not verify")]
    Signature,
}

/// An event whose id and signature nobody has checked yet.
pub(super) struct Parts<'a> {
    pub(super) id: [u8; 32],
    pub(super) pubkey: [u8; 32],
    pub(super) signature: [u8; 64],
    pub(super) created_at: u64,
    pub(super) kind: u16,
    pub(super) tags: Vec<Vec<Text<'a>>>,
    pub(super) content: Text<'a>,
}

impl Parts<'_> {
    /// About as long as tags and content are when packed.
    pub(super) fn raw_len(&self) -> usize {
        let tags: usize = self.tags.iter().flatten().map(|item| item.len() + 2).sum();
        tags + self.tags.len() + self.content.len() + 4
    }
}

/// A string that is borrowed where it can be. (serde never borrows a `Cow`
/// inside a vector.)
pub(super) struct Text<'a>(Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    pubkey: Text<'a>,
    created_at: u64,
    kind: u16,
    #[serde(borrow)]
    tags: Vec<Vec<Text<'a>>>,
    #[serde(borrow)]
    content: Text<'a>,
    #[serde(borrow)]
    sig: Text<'a>,
}

impl<'a> TryFrom<RawEvent<'a>> for Parts<'a> {
    type Error = EventError;

    fn try_from(raw: RawEvent<'a>) -> Result<Self, EventError> {
        Ok(Self {
            id: parse_hex(&raw.id).ok_or(EventError::Hex("id"))?,
            pubkey: parse_hex(&raw.pubkey).ok_or(EventError::Hex("pubkey"))?,
            signature: parse_hex(&raw.sig).ok_or(EventError::Hex("sig"))?,
            created_at: raw.created_at,
            kind: raw.kind,
            tags: raw.tags,
            content: raw.content,
        })
    }
}

/// Checks events one after another; holds what can be reused between them.
#[derive(Default)]
pub struct Checker {
    canonical: String,
    keys: HashMap<[u8; 32], XOnlyPublicKey>,
}

impl Checker {
    /// The event that `json` holds, with its id and signature checked.
    pub fn check(&mut self, json: &str) -> Result<Event, EventError> {
        let parts = Parts::try_from(serde_json::from_str::<RawEvent<'_>>(json)?)?;
        self.check_id(&parts)?;
        self.check_signature(&parts)?;
        Ok(Event::pack(&parts))
    }

    fn check_id(&mut self, parts: &Parts<'_>) -> Result<(), EventError> {
        self.canonical.clear();
        push_canonical(&mut self.canonical, parts);
        let hash: [u8; 32] = Sha256::digest(&self.canonical).into();
        if hash == parts.id { Ok(()) } else { Err(EventError::Id) }
    }

    fn check_signature(&mut self, parts: &Parts<'_>) -> Result<(), EventError> {
        let key = self.key(&parts.pubkey).ok_or(EventError::Signature)?;
        let signature =
            Signature::from_slice(&parts.signature).map_err(|_| EventError::Signature)?;
        SECP256K1
            .verify_schnorr(&signature, &Message::from_digest(parts.id), &key)
            .map_err(|_| EventError::Signature)
    }

    fn key(&mut self, bytes: &[u8; 32]) -> Option<XOnlyPublicKey> {
        if let Some(key) = self.keys.get(bytes) {
            return Some(*key);
        }
        let key = XOnlyPublicKey::from_slice(bytes).ok()?;
        if self.keys.len() >= MAX_CACHED_KEYS {
            self.keys.clear();
        }
        self.keys.insert(*bytes, key);
        Some(key)
    }
}

/// The id that a text claims, even if the rest of it is no event: an answer to
/// it must name it (NIP-01, `OK`).
pub fn claimed_id(json: &str) -> Option<[u8; 32]> {
    #[derive(Deserialize)]
    struct Claim<'a> {
        #[serde(borrow)]
        id: Text<'a>,
    }
    parse_hex(&serde_json::from_str::<Claim<'_>>(json).ok()?.id)
}

/// The text whose SHA-256 is the id (NIP-01).
fn push_canonical(out: &mut String, parts: &Parts<'_>) {
    use fmt::Write;
    out.push_str("[0,\"");
    push_hex(out, &parts.pubkey);
    write!(out, "\",{},{},[", parts.created_at, parts.kind)
        .expect("writing to a string cannot fail");
    for (i, tag) in parts.tags.iter().enumerate() {
        out.push_str(if i == 0 { "[" } else { ",[" });
        for (j, item) in tag.iter().enumerate() {
            out.push_str(if j == 0 { "" } else { "," });
            push_string(out, item);
        }
        out.push(']');
    }
    out.push_str("],");
    push_string(out, &parts.content);
    out.push(']');
}

impl Event {
    /// Its JSON (NIP-01).
    pub fn to_json(&self) -> String {
        let mut out = String::with_capacity(self.record.len() * 2);
        self.push_json(&mut out);
        out
    }

    /// Appends its JSON (NIP-01).
    pub fn push_json(&self, out: &mut String) {
        use fmt::Write;
        out.push_str("{\"id\":\"");
        push_hex(out, &self.array::<32>(record::ID));
        out.push_str("\",\"pubkey\":\"");
        push_hex(out, &self.array::<32>(record::PUBKEY));
        write!(
            out,
            "\",\"created_at\":{},\"kind\":{},\"tags\":[",
            self.created_at().as_secs(),
            self.kind().as_u16()
        )
        .expect("writing to a string cannot fail");
        for (i, tag) in self.tags().enumerate() {
            out.push_str(if i == 0 { "[" } else { ",[" });
            for (j, item) in tag.items().enumerate() {
                out.push_str(if j == 0 { "" } else { "," });
                push_item(out, item);
            }
            out.push(']');
        }
        out.push_str("],\"content\":");
        push_string(out, self.content());
        out.push_str(",\"sig\":\"");
        push_hex(out, &self.array::<64>(record::SIGNATURE));
        out.push_str("\"}");
    }
}

fn push_item(out: &mut String, item: record::TagItem<'_>) {
    match item {
        record::TagItem::Text(text) => push_string(out, text),
        record::TagItem::Hex(bytes) => {
            out.push('"');
            push_hex(out, bytes);
            out.push('"');
        }
    }
}

/// Appends `text` as a JSON string with the escapes of NIP-01; other control
/// characters as `\u00xx`, as every client's JSON library does.
pub(crate) fn push_string(out: &mut String, text: &str) {
    use fmt::Write;
    out.push('"');
    let mut copied = 0;
    // Bytes below 0x80 are never part of a longer character, so slicing is safe.
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[copied..at]);
        copied = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            _ => write!(out, "\\u{byte:04x}").expect("writing to a string cannot fail"),
        }
    }
    out.push_str(&text[copied..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, JsonUtil, Keys, Kind, Tag};
    use proptest::prelude::*;

    use super::*;

    fn signed(content: &str, tags: Vec<Vec<String>>) -> nostr::Event {
        let tags = tags.into_iter().filter_map(|tag| Tag::parse(tag).ok());
        EventBuilder::new(Kind::from(1), content)
            .tags(tags)
            .sign_with_keys(&Keys::generate())
            .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn events_of_another_library_verify_and_come_back_unchanged(
            content in any::<String>(),
            tags in prop::collection::vec(prop::collection::vec(any::<String>(), 1..4), 0..4),
        ) {
            let theirs = signed(&content, tags);
            let ours = Checker::default().check(&theirs.as_json()).unwrap();
            prop_assert_eq!(nostr::Event::from_json(ours.to_json()).unwrap(), theirs);
        }

        #[test]
        fn mangled_events_never_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut json = signed("x\n\"", vec![vec!["p".into(), "ab".repeat(32)]]).as_json().into_bytes();
            let at = at.index(json.len());
            json[at] = byte;
            json.truncate(cut.index(json.len() + 1));
            if let Ok(text) = std::str::from_utf8(&json) {
                let _ = Checker::default().check(text);
                let _ = claimed_id(text);
            }
        }
    }

    #[test]
    fn a_changed_event_is_refused() {
        let event = signed("honest", vec![]);
        let json = event.as_json();
        let mut checker = Checker::default();
        let forged = json.replace("honest", "forged");
        assert!(matches!(checker.check(&forged), Err(EventError::Id)));
        let other = signed("other", vec![]);
        let resigned = json.replace(&event.sig.to_string(), &other.sig.to_string());
        assert!(matches!(checker.check(&resigned), Err(EventError::Signature)));
        let upper = json.replace(&event.id.to_hex(), &event.id.to_hex().to_uppercase());
        assert!(matches!(checker.check(&upper), Err(EventError::Hex("id"))));
        assert_eq!(claimed_id(&forged), Some(event.id.to_bytes()));
    }
}
