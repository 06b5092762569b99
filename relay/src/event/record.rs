//! The packed record of an event, version 1.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version |
//! | 1 | 32 | id |
//! | 33 | 32 | author |
//! | 65 | 64 | signature |
//! | 129 | 8 | `created_at`, big-endian |
//! | 137 | 2 | kind, big-endian |
//! | 139 | | tags: their number, then each as the number of its items and the items |
//! | | | content, UTF-8, to the end |
//!
//! Numbers are LEB128. An item is `length << 1` and UTF-8, or `32 << 1 | 1` and
//! the 32 bytes that its 64 lower-case hex digits spell: most tags name an
//! event or a key, and halving them halves the tags.

use super::json::Parts;
use super::{Event, parse_hex, push_hex};

const VERSION: u8 = 1;
pub(super) const ID: usize = 1;
pub(super) const PUBKEY: usize = 33;
pub(super) const SIGNATURE: usize = 65;
pub(super) const CREATED_AT: usize = 129;
pub(super) const KIND: usize = 137;
pub(super) const TAGS: usize = 139;

/// Why bytes from the store are no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// Written by a newer version of this program, or not by it at all.
    #[error("unknown record version {0:?}")]
    Version(Option<u8>),
    /// Cut off or overwritten.
    #[error("the record is damaged")]
    Damaged,
}

/// One string of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagItem<'a> {
    /// 64 lower-case hex digits, as the bytes that they spell.
    Hex(&'a [u8; 32]),
    /// Any other text.
    Text(&'a str),
}

impl TagItem<'_> {
    /// The bytes, if it was spelt as an id or a key.
    pub fn as_bytes32(&self) -> Option<&[u8; 32]> {
        match self {
            Self::Hex(bytes) => Some(bytes),
            Self::Text(_) => None,
        }
    }

    /// Its text as the author wrote it.
    pub fn to_text(&self) -> String {
        match self {
            Self::Text(text) => (*text).to_owned(),
            Self::Hex(bytes) => {
                let mut text = String::with_capacity(64);
                push_hex(&mut text, *bytes);
                text
            }
        }
    }
}

/// One tag: a name and values.
#[derive(Clone, Copy)]
pub struct Tag<'a> {
    items: usize,
    bytes: &'a [u8],
}

impl<'a> Tag<'a> {
    /// Its items, name first.
    pub fn items(&self) -> impl Iterator<Item = TagItem<'a>> + use<'a> {
        let mut reader = Reader(self.bytes);
        (0..self.items).map(move |_| reader.item().expect(CHECKED))
    }

    /// Its name.
    pub fn name(&self) -> Option<&'a str> {
        match self.items().next()? {
            TagItem::Text(name) => Some(name),
            TagItem::Hex(_) => None,
        }
    }

    /// True if its name is `name`.
    pub fn is(&self, name: &str) -> bool {
        self.name() == Some(name)
    }

    /// Its first value.
    pub fn value(&self) -> Option<TagItem<'a>> {
        self.items().nth(1)
    }

    /// Letter and first value, if NIP-01 wants the tag indexed: its name is one
    /// letter of the English alphabet.
    pub fn indexed(&self) -> Option<(u8, TagItem<'a>)> {
        match self.name()?.as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => Some((*letter, self.value()?)),
            _ => None,
        }
    }
}

/// The tags of an event.
#[derive(Clone)]
pub struct Tags<'a> {
    left: usize,
    reader: Reader<'a>,
}

const CHECKED: &str = "checked when the event was made";

impl<'a> Tags<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut reader = Reader(bytes);
        let left = reader.number().expect(CHECKED);
        Self { left, reader }
    }
}

impl<'a> Iterator for Tags<'a> {
    type Item = Tag<'a>;

    fn next(&mut self) -> Option<Tag<'a>> {
        self.left = self.left.checked_sub(1)?;
        Some(self.reader.tag().expect(CHECKED))
    }
}

impl Event {
    /// The event that `record` holds, checked as far as reading it needs; its id
    /// and signature were checked before it was stored.
    pub fn from_record(record: impl Into<Box<[u8]>>) -> Result<Self, RecordError> {
        let record = record.into();
        if record.first() != Some(&VERSION) {
            return Err(RecordError::Version(record.first().copied()));
        }
        let tail = record.get(TAGS..).ok_or(RecordError::Damaged)?;
        let content = skip_tags(tail).ok_or(RecordError::Damaged)?;
        std::str::from_utf8(content).map_err(|_| RecordError::Damaged)?;
        let content_at = record.len() - content.len();
        Ok(Self { record, content_at })
    }

    /// Packs an event whose id and signature the caller has checked.
    pub(super) fn pack(parts: &Parts<'_>) -> Self {
        let mut record = Vec::with_capacity(TAGS + parts.raw_len());
        record.push(VERSION);
        record.extend_from_slice(&parts.id);
        record.extend_from_slice(&parts.pubkey);
        record.extend_from_slice(&parts.signature);
        record.extend_from_slice(&parts.created_at.to_be_bytes());
        record.extend_from_slice(&parts.kind.to_be_bytes());
        push_number(&mut record, parts.tags.len());
        for tag in &parts.tags {
            push_number(&mut record, tag.len());
            tag.iter().for_each(|item| push_item(&mut record, item));
        }
        let content_at = record.len();
        record.extend_from_slice(parts.content.as_bytes());
        Self { record: record.into(), content_at }
    }
}

/// What follows the tags at the start of `bytes`.
fn skip_tags(bytes: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(bytes);
    for _ in 0..reader.number()? {
        reader.tag()?;
    }
    Some(reader.0)
}

fn push_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_item(out: &mut Vec<u8>, item: &str) {
    match parse_hex::<32>(item) {
        Some(bytes) => {
            push_number(out, bytes.len() << 1 | 1);
            out.extend_from_slice(&bytes);
        }
        None => {
            push_number(out, item.len() << 1);
            out.extend_from_slice(item.as_bytes());
        }
    }
}

/// Reads a record front to back; `None` where the bytes do not fit the layout.
#[derive(Clone)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<usize> {
        let mut number = 0;
        // Four groups of 7 bits are 256 MiB, far above any message limit.
        for shift in [0, 7, 14, 21] {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn item(&mut self) -> Option<TagItem<'a>> {
        let head = self.number()?;
        let (bytes, rest) = self.0.split_at_checked(head >> 1)?;
        self.0 = rest;
        if head & 1 == 1 {
            bytes.try_into().ok().map(TagItem::Hex)
        } else {
            std::str::from_utf8(bytes).ok().map(TagItem::Text)
        }
    }

    fn tag(&mut self) -> Option<Tag<'a>> {
        let items = self.number()?;
        let bytes = self.0;
        for _ in 0..items {
            self.item()?;
        }
        Some(Tag { items, bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::json::Parts;

    fn parts(tags: &[Vec<String>], content: &str) -> Event {
        Event::pack(&Parts {
            id: [1; 32],
            pubkey: [2; 32],
            signature: [3; 64],
            created_at: 1_700_000_000,
            kind: 1,
            tags: tags
                .iter()
                .map(|tag| tag.iter().map(|item| item.as_str().into()).collect())
                .collect(),
            content: content.into(),
        })
    }

    fn texts(event: &Event) -> Vec<Vec<String>> {
        event.tags().map(|tag| tag.items().map(|item| item.to_text()).collect()).collect()
    }

    /// The layout of version 1. If this fails, stored databases need a migration.
    #[test]
    fn golden_record() {
        let tags = [vec!["p".to_owned(), "ab".repeat(32)], vec!["t".to_owned(), "ü".to_owned()]];
        let event = parts(&tags, "hi");
        let mut expected = vec![1];
        expected.extend([1; 32]);
        expected.extend([2; 32]);
        expected.extend([3; 64]);
        expected.extend(1_700_000_000u64.to_be_bytes());
        expected.extend([0, 1, 2, 2, 2, b'p', 65]);
        expected.extend([0xab; 32]);
        expected.extend([2, 2, b't', 4, 0xc3, 0xbc, b'h', b'i']);
        assert_eq!(event.as_record(), expected);
    }

    proptest! {
        #[test]
        fn records_round_trip(
            tags in prop::collection::vec(
                prop::collection::vec("[a-z]{1,3}|[0-9a-f]{64}|[0-9A-F]{64}|\\PC{0,200}", 0..4), 0..5),
            content in "\\PC{0,300}",
        ) {
            let event = parts(&tags, &content);
            let read = Event::from_record(event.as_record()).unwrap();
            prop_assert_eq!(&read, &event);
            prop_assert_eq!(read.content(), content);
            prop_assert_eq!(texts(&read), tags);
        }

        #[test]
        fn mangled_records_never_panic(
            at in 0usize..400, byte: u8, cut in 0usize..400,
            tail in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let tags = [vec!["p".to_owned(), "ab".repeat(32)], vec!["e".to_owned(), "x".repeat(130)]];
            let mut record = parts(&tags, "content").as_record().to_vec();
            record.truncate(cut.max(1));
            record.extend(tail);
            let at = at % record.len();
            record[at] = byte;
            if let Ok(event) = Event::from_record(record) {
                texts(&event);
                event.to_json();
            }
        }
    }
}
