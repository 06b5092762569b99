//! An event (NIP-01) in the one form that it has everywhere in this crate.
//!
//! [`Event`] owns a packed record: what the store keeps, what a filter is
//! matched against and what is spliced into a client's JSON are the same bytes.
//! It is made in two places only, and both check everything: [`json`] from a
//! client's message, [`Event::from_record`] from the store. Inside the relay
//! nobody looks at raw JSON.

pub mod json;
mod lower_hex;
mod record;

use nostr::{EventId, Kind, PublicKey, Timestamp};

pub use lower_hex::{parse_hex, push_hex};
pub use record::{RecordError, Tag, TagItem, Tags};

/// How long an event lives and what replaces it (NIP-01, "Kinds").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Kept, every one of them.
    Regular,
    /// Only the newest per author and kind is kept.
    Replaceable,
    /// Passed on, never kept.
    Ephemeral,
    /// Only the newest per author, kind and `d` tag is kept.
    Addressable,
}

impl Class {
    /// The class that NIP-01 gives to `kind`.
    pub fn of(kind: Kind) -> Self {
        match kind.as_u16() {
            0 | 3 | 10_000..20_000 => Self::Replaceable,
            20_000..30_000 => Self::Ephemeral,
            30_000..40_000 => Self::Addressable,
            _ => Self::Regular,
        }
    }
}

/// A well-formed event; its id and signature were checked before it was made.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    record: Box<[u8]>,
    /// Where the tags end and the content begins.
    content_at: usize,
}

impl Event {
    /// Its id (NIP-01).
    pub fn id(&self) -> EventId {
        EventId::from_byte_array(self.array(record::ID))
    }

    /// Its author.
    pub fn pubkey(&self) -> PublicKey {
        PublicKey::from_byte_array(self.array(record::PUBKEY))
    }

    /// When its author says that it was made.
    pub fn created_at(&self) -> Timestamp {
        Timestamp::from_secs(u64::from_be_bytes(self.array(record::CREATED_AT)))
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        Kind::from(u16::from_be_bytes(self.array(record::KIND)))
    }

    /// Its class, from its kind.
    pub fn class(&self) -> Class {
        Class::of(self.kind())
    }

    /// Its content.
    pub fn content(&self) -> &str {
        std::str::from_utf8(&self.record[self.content_at..])
            .expect("checked when the event was made")
    }

    /// Its tags, in order.
    pub fn tags(&self) -> Tags<'_> {
        Tags::new(&self.record[record::TAGS..self.content_at])
    }

    /// The first value of the first tag named `name`.
    pub fn tag(&self, name: &str) -> Option<TagItem<'_>> {
        self.tags().find(|tag| tag.is(name)).and_then(|tag| tag.value())
    }

    /// When it expires (NIP-40). A value that is not a number is no expiration.
    pub fn expiration(&self) -> Option<Timestamp> {
        match self.tag("expiration")? {
            TagItem::Text(text) => text.parse().ok().map(Timestamp::from_secs),
            TagItem::Hex(_) => None,
        }
    }

    /// True if it has expired at `now` (NIP-40).
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expiration().is_some_and(|expires| expires <= now)
    }

    /// True if only its author may publish it (NIP-70).
    pub fn is_protected(&self) -> bool {
        self.tags().any(|tag| tag.is("-"))
    }

    /// True if a `p` tag names `key`.
    pub fn is_addressed_to(&self, key: &PublicKey) -> bool {
        self.tags().any(|tag| tag.is("p") && tag.value() == Some(TagItem::Hex(key.as_bytes())))
    }

    /// The packed record, as the store keeps it.
    pub fn as_record(&self) -> &[u8] {
        &self.record
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.record[at..at + N].try_into().expect("the slice is N bytes long")
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_nip_01() {
        let classes = [
            (0, Class::Replaceable),
            (1, Class::Regular),
            (3, Class::Replaceable),
            (41, Class::Regular),
            (1059, Class::Regular),
            (8470, Class::Regular),
            (10_002, Class::Replaceable),
            (19_999, Class::Replaceable),
            (20_000, Class::Ephemeral),
            (29_999, Class::Ephemeral),
            (30_000, Class::Addressable),
            (38_470, Class::Addressable),
            (40_000, Class::Regular),
        ];
        for (kind, class) in classes {
            assert_eq!(Class::of(Kind::from(kind)), class, "kind {kind}");
        }
    }
}
