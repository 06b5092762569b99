//! The keys of the event store, format 1.
//!
//! | table | key after the table's byte | value |
//! |---|---|---|
//! | `e` event | sequence | packed record |
//! | `i` id | id | sequence |
//! | `a` author | author, kind, position | |
//! | `k` kind | kind, position | |
//! | `t` tag | letter, value, position | |
//! | `c` created | position | |
//! | `x` expiry (NIP-40) | second, sequence | |
//! | `r` newest version | address | sequence |
//! | `d` deleted id (NIP-09) | id, author | version |
//! | `z` deleted address (NIP-09) | address | version, second |
//! | `m` meta | name | |
//!
//! Numbers are big-endian. A *position* sorts newest first, then by id, as
//! NIP-01 wants results: inverted second, 8 bytes of the id, sequence. An
//! *address* is author, kind, SHA-256 of the `d` tag.

use nostr::{EventId, Kind, PublicKey, Timestamp};
use sha2::{Digest, Sha256};

use crate::event::{Class, Event, TagItem};
use crate::filter::TagValue;

pub(crate) const EVENT: u8 = b'e';
const ID: u8 = b'i';
const AUTHOR: u8 = b'a';
const KIND: u8 = b'k';
const TAG: u8 = b't';
const CREATED: u8 = b'c';
const EXPIRY: u8 = b'x';
const NEWEST: u8 = b'r';
const DELETED_ID: u8 = b'd';
const DELETED_ADDRESS: u8 = b'z';

/// Meta: the version of this layout, 1 byte.
pub(crate) const FORMAT: &[u8] = b"mformat";
/// Meta: the number of stored events, 8 bytes.
pub(crate) const COUNT: &[u8] = b"mcount";

/// A tag value longer than this is indexed by its hash.
const MAX_PLAIN_VALUE: usize = 128;
/// Marks in place of a length: see [`push_tag_value`].
const HEX_VALUE: u8 = 254;
const HASHED_VALUE: u8 = 255;

/// Where an event stands among others: newest first, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position([u8; 24]);

impl Position {
    pub(crate) const LEN: usize = 24;

    pub(crate) fn new(event: &Event, sequence: u64) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&inverted(event.created_at()));
        bytes[8..16].copy_from_slice(&event.id().as_bytes()[..8]);
        bytes[16..].copy_from_slice(&sequence.to_be_bytes());
        Self(bytes)
    }

    /// The position that an index key ends in.
    pub(crate) fn of_key(key: &[u8]) -> Option<Self> {
        key.last_chunk().copied().map(Self)
    }

    pub(crate) fn sequence(&self) -> u64 {
        u64::from_be_bytes(self.0[16..].try_into().expect("the slice is 8 bytes long"))
    }
}

fn inverted(time: Timestamp) -> [u8; 8] {
    (!time.as_secs()).to_be_bytes()
}

/// The part of an index that one value selects: a prefix, followed by positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(Vec<u8>);

impl Prefix {
    pub(crate) fn author(author: &[u8; 32], kind: u16) -> Self {
        Self([&[AUTHOR], &author[..], &kind.to_be_bytes()].concat())
    }

    pub(crate) fn kind(kind: u16) -> Self {
        Self([&[KIND][..], &kind.to_be_bytes()].concat())
    }

    pub(crate) fn tag(letter: u8, value: &TagValue) -> Self {
        let mut prefix = vec![TAG, letter];
        match value {
            TagValue::Hex(bytes) => push_tag_value(&mut prefix, TagItem::Hex(bytes)),
            TagValue::Text(text) => push_tag_value(&mut prefix, TagItem::Text(text)),
        }
        Self(prefix)
    }

    pub(crate) fn created() -> Self {
        Self(vec![CREATED])
    }

    /// The keys of events made from `since` to `until`, both included.
    pub(crate) fn period(&self, since: Timestamp, until: Timestamp) -> (Vec<u8>, Vec<u8>) {
        let start = [&self.0[..], &inverted(until)].concat();
        let end = [&self.0[..], &inverted(since), &[u8::MAX; 17]].concat();
        (start, end)
    }

    fn at(&self, position: Position) -> Vec<u8> {
        [&self.0[..], &position.0].concat()
    }
}

/// The range of author keys that starts at `kind`; the kind of the first key in
/// it is the author's next kind.
pub(crate) fn author_from(author: &[u8; 32], kind: u16) -> (Vec<u8>, Vec<u8>) {
    let start = Prefix::author(author, kind).0;
    let end = [&Prefix::author(author, u16::MAX).0[..], &[u8::MAX; 25]].concat();
    (start, end)
}

/// The kind in an author key.
pub(crate) fn author_key_kind(key: &[u8]) -> Option<u16> {
    key.get(33..35)?.try_into().ok().map(u16::from_be_bytes)
}

/// Appends a tag's value so that no value is the beginning of another: its
/// length and text; or a mark and 32 bytes, either an id or key, or the hash of
/// a long text.
fn push_tag_value(out: &mut Vec<u8>, value: TagItem<'_>) {
    match value {
        TagItem::Hex(bytes) => {
            out.push(HEX_VALUE);
            out.extend_from_slice(bytes);
        }
        TagItem::Text(text) if text.len() <= MAX_PLAIN_VALUE => {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
        TagItem::Text(text) => {
            out.push(HASHED_VALUE);
            out.extend_from_slice(&Sha256::digest(text));
        }
    }
}

pub(crate) fn event(sequence: u64) -> Vec<u8> {
    numbered(EVENT, sequence)
}

/// Every event key.
pub(crate) fn events() -> (Vec<u8>, Vec<u8>) {
    (vec![EVENT], vec![EVENT + 1])
}

pub(crate) fn id(id: &EventId) -> Vec<u8> {
    [&[ID], &id.as_bytes()[..]].concat()
}

/// Every key of every index, expiry and newest-version included: what must
/// agree with the events.
pub(crate) fn indexes() -> Vec<(Vec<u8>, Vec<u8>)> {
    [ID, AUTHOR, KIND, TAG, CREATED, EXPIRY, NEWEST]
        .map(|table| (vec![table], vec![table + 1]))
        .into()
}

pub(crate) fn expiry(expires: Timestamp, sequence: u64) -> Vec<u8> {
    [&[EXPIRY][..], &expires.as_secs().to_be_bytes(), &sequence.to_be_bytes()].concat()
}

/// The expiry keys of all that has expired at `now`.
pub(crate) fn expired(now: Timestamp) -> (Vec<u8>, Vec<u8>) {
    (vec![EXPIRY], expiry(Timestamp::from_secs(now.as_secs().saturating_add(1)), 0))
}

/// The sequence at the end of an event or expiry key, or of a value.
pub(crate) fn sequence(bytes: &[u8]) -> Option<u64> {
    bytes.last_chunk().copied().map(u64::from_be_bytes)
}

fn numbered(table: u8, number: u64) -> Vec<u8> {
    [&[table][..], &number.to_be_bytes()].concat()
}

/// What versions of a replaceable or addressable event share (NIP-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address([u8; 66]);

impl Address {
    pub(crate) fn new(author: &PublicKey, kind: Kind, identifier: &str) -> Self {
        let mut bytes = [0; 66];
        bytes[..32].copy_from_slice(author.as_bytes());
        bytes[32..34].copy_from_slice(&kind.as_u16().to_be_bytes());
        bytes[34..].copy_from_slice(&Sha256::digest(identifier));
        Self(bytes)
    }

    /// The address of an event, if its kind has one.
    pub(crate) fn of(event: &Event) -> Option<Self> {
        let identifier = match event.class() {
            Class::Regular | Class::Ephemeral => return None,
            Class::Replaceable => String::new(),
            Class::Addressable => event.tag("d").map(|item| item.to_text()).unwrap_or_default(),
        };
        Some(Self::new(&event.pubkey(), event.kind(), &identifier))
    }

    pub(crate) fn newest(&self) -> Vec<u8> {
        [&[NEWEST], &self.0[..]].concat()
    }

    pub(crate) fn deleted(&self) -> Vec<u8> {
        [&[DELETED_ADDRESS], &self.0[..]].concat()
    }
}

pub(crate) fn deleted_id(id: &[u8; 32], author: &PublicKey) -> Vec<u8> {
    [&[DELETED_ID], &id[..], author.as_bytes()].concat()
}

/// Every index key of `event`, and what is stored under it.
pub(crate) fn of_event(event: &Event, sequence: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let position = Position::new(event, sequence);
    let kind = event.kind().as_u16();
    let number = sequence.to_be_bytes().to_vec();
    let mut keys = vec![
        (id(&event.id()), number.clone()),
        (Prefix::author(event.pubkey().as_bytes(), kind).at(position), Vec::new()),
        (Prefix::kind(kind).at(position), Vec::new()),
        (Prefix::created().at(position), Vec::new()),
    ];
    for (letter, value) in event.tags().filter_map(|tag| tag.indexed()) {
        let mut prefix = vec![TAG, letter];
        push_tag_value(&mut prefix, value);
        keys.push((Prefix(prefix).at(position), Vec::new()));
    }
    keys.extend(event.expiration().map(|expires| (expiry(expires, sequence), Vec::new())));
    keys.extend(Address::of(event).map(|address| (address.newest(), number)));
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tag_value_is_the_beginning_of_another() {
        let long = "x".repeat(500);
        let values = ["", "a", "ab", &"ab".repeat(32), &"AB".repeat(32), &long, &long[1..]];
        for one in values {
            for other in values.iter().filter(|other| **other != one) {
                let [one, other] = [one, other].map(|text| Prefix::tag(b't', &TagValue::new(text)));
                assert!(!other.0.starts_with(&one.0), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_period_includes_both_ends() {
        let (since, until) = (Timestamp::from_secs(10), Timestamp::from_secs(20));
        let (start, end) = Prefix::kind(1).period(since, until);
        let key = |second: u64, fill: u8| {
            let mut position = [fill; 24];
            position[..8].copy_from_slice(&inverted(Timestamp::from_secs(second)));
            Prefix::kind(1).at(Position(position))
        };
        for (second, inside) in [(9, false), (10, true), (20, true), (21, false)] {
            for fill in [0, 255] {
                let key = key(second, fill);
                assert_eq!(start <= key && key < end, inside, "{second} {fill}");
            }
        }
    }
}
