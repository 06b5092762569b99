//! Filters (NIP-01): reading them and matching events against them.
//!
//! [`Filter::matches`] is the plain meaning of a filter. Queries and the live
//! index are faster ways to the same answer, and end with a call to it.

use std::collections::BTreeMap;

use nostr::Timestamp;
use serde_json::Value;

use crate::config::Limits;
use crate::event::{Event, TagItem, parse_hex};

/// Why a filter is refused; the text is for the client.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FilterError {
    /// Not the shape that NIP-01 gives to a filter.
    #[error("invalid: filter field {0} must be {1}")]
    Field(String, &'static str),
    /// Not a JSON object.
    #[error("invalid: a filter must be an object")]
    NotAnObject,
    /// A list longer than this relay takes.
    #[error("invalid: filter field {0} has more than {1} values; split the request")]
    TooLong(String, usize),
    /// A field that this relay does not know (NIP-01, `CLOSED`).
    #[error("unsupported: filter field {0}")]
    Unsupported(String),
}

/// A tag's value in the form that events keep theirs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TagValue {
    /// 64 lower-case hex digits.
    Hex([u8; 32]),
    /// Any other text.
    Text(Box<str>),
}

impl TagValue {
    pub(crate) fn new(text: &str) -> Self {
        parse_hex(text).map_or_else(|| Self::Text(text.into()), Self::Hex)
    }
}

impl From<TagItem<'_>> for TagValue {
    fn from(item: TagItem<'_>) -> Self {
        match item {
            TagItem::Hex(bytes) => Self::Hex(*bytes),
            TagItem::Text(text) => Self::Text(text.into()),
        }
    }
}

/// What a client wants to see. Lists are sorted and hold no value twice;
/// `None` means "any", an empty list means "none at all".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub(crate) ids: Option<Vec<[u8; 32]>>,
    pub(crate) authors: Option<Vec<[u8; 32]>>,
    pub(crate) kinds: Option<Vec<u16>>,
    /// Letter to values.
    pub(crate) tags: BTreeMap<u8, Vec<TagValue>>,
    pub(crate) since: Option<u64>,
    pub(crate) until: Option<u64>,
    pub(crate) limit: Option<usize>,
}

impl Filter {
    /// Reads a filter; `limits` bounds its lists.
    pub fn parse(json: &Value, limits: &Limits) -> Result<Self, FilterError> {
        let fields = json.as_object().ok_or(FilterError::NotAnObject)?;
        let mut filter = Self::default();
        for (name, value) in fields {
            filter.set(name, value, limits.max_filter_values)?;
        }
        Ok(filter)
    }

    fn set(&mut self, name: &str, value: &Value, max: usize) -> Result<(), FilterError> {
        match name {
            "ids" => self.ids = Some(list(name, value, max, HEX, hex32)?),
            "authors" => self.authors = Some(list(name, value, max, HEX, hex32)?),
            "kinds" => self.kinds = Some(list(name, value, max, KINDS, kind)?),
            "since" => self.since = Some(number(name, value)?),
            "until" => self.until = Some(number(name, value)?),
            "limit" => {
                self.limit = Some(usize::try_from(number(name, value)?).unwrap_or(usize::MAX));
            }
            _ => self.set_tag(name, value, max)?,
        }
        Ok(())
    }

    fn set_tag(&mut self, name: &str, value: &Value, max: usize) -> Result<(), FilterError> {
        let &[b'#', letter] = name.as_bytes() else {
            return Err(FilterError::Unsupported(shortened(name)));
        };
        if !letter.is_ascii_alphabetic() {
            return Err(FilterError::Unsupported(shortened(name)));
        }
        let values = match letter {
            // NIP-01: these two name events and keys.
            b'e' | b'p' => list(name, value, max, HEX, |v| hex32(v).map(TagValue::Hex))?,
            _ => list(name, value, max, "a list of strings", |v| v.as_str().map(TagValue::new))?,
        };
        self.tags.insert(letter, values);
        Ok(())
    }

    /// True if `event` is what this filter asks for. `limit` plays no part.
    pub fn matches(&self, event: &Event) -> bool {
        let created_at = event.created_at().as_secs();
        self.since.is_none_or(|since| created_at >= since)
            && self.until.is_none_or(|until| created_at <= until)
            && within(&self.kinds, &event.kind().as_u16())
            && within(&self.authors, event.pubkey().as_bytes())
            && within(&self.ids, event.id().as_bytes())
            && self.tags.iter().all(|(letter, values)| has_tag(event, *letter, values))
    }

    /// True if no event can match: some list is empty.
    pub(crate) fn is_void(&self) -> bool {
        self.ids.as_ref().is_some_and(Vec::is_empty)
            || self.authors.as_ref().is_some_and(Vec::is_empty)
            || self.kinds.as_ref().is_some_and(Vec::is_empty)
            || self.tags.values().any(Vec::is_empty)
            || self.since.zip(self.until).is_some_and(|(since, until)| since > until)
    }

    /// The first and last second that it asks for.
    pub(crate) fn period(&self) -> (Timestamp, Timestamp) {
        let since = self.since.map_or(Timestamp::min(), Timestamp::from_secs);
        (since, self.until.map_or(Timestamp::from_secs(u64::MAX), Timestamp::from_secs))
    }
}

const HEX: &str = "a list of 64 lower-case hex digits each";
const KINDS: &str = "a list of numbers from 0 to 65535";

fn within<T: Ord>(list: &Option<Vec<T>>, value: &T) -> bool {
    list.as_ref().is_none_or(|list| list.binary_search(value).is_ok())
}

fn has_tag(event: &Event, letter: u8, wanted: &[TagValue]) -> bool {
    event
        .tags()
        .filter_map(|tag| tag.indexed())
        .any(|(name, value)| name == letter && wanted.binary_search(&TagValue::from(value)).is_ok())
}

fn list<T: Ord>(
    name: &str,
    value: &Value,
    max: usize,
    shape: &'static str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, FilterError> {
    let bad = || FilterError::Field(shortened(name), shape);
    let values = value.as_array().ok_or_else(bad)?;
    if values.len() > max {
        return Err(FilterError::TooLong(shortened(name), max));
    }
    let mut list = values.iter().map(read).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

fn number(name: &str, value: &Value) -> Result<u64, FilterError> {
    value.as_u64().ok_or_else(|| FilterError::Field(shortened(name), "a whole number"))
}

fn hex32(value: &Value) -> Option<[u8; 32]> {
    parse_hex(value.as_str()?)
}

fn kind(value: &Value) -> Option<u16> {
    value.as_u64()?.try_into().ok()
}

/// A client's own words, short enough to send back.
fn shortened(name: &str) -> String {
    name.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: Value) -> Result<Filter, FilterError> {
        Filter::parse(&json, &Limits { max_filter_values: 3, ..Limits::default() })
    }

    #[test]
    fn unknown_fields_are_unsupported_not_ignored() {
        for field in ["search", "#long", "#", "#1", "idz"] {
            let error = parse(json!({ field: ["x"] })).unwrap_err();
            assert!(error.to_string().starts_with("unsupported:"), "{error}");
        }
    }

    #[test]
    fn wrong_shapes_are_invalid() {
        for filter in [
            json!([]),
            json!({"ids": "x"}),
            json!({"ids": ["AB"]}),
            json!({"kinds": [65536]}),
            json!({"kinds": [-1]}),
            json!({"since": "1"}),
            json!({"limit": 1.5}),
            json!({"#p": ["npub1"]}),
            json!({"kinds": [1, 2, 3, 4]}),
        ] {
            let error = parse(filter.clone()).unwrap_err().to_string();
            assert!(error.starts_with("invalid:"), "{filter}: {error}");
        }
    }

    #[test]
    fn lists_are_sorted_and_deduplicated() {
        let filter = parse(json!({"kinds": [7, 1, 7]})).unwrap();
        assert_eq!(filter.kinds, Some(vec![1, 7]));
    }

    #[test]
    fn an_empty_list_asks_for_nothing() {
        assert!(parse(json!({"kinds": []})).unwrap().is_void());
        assert!(parse(json!({"#t": []})).unwrap().is_void());
        assert!(parse(json!({"since": 2, "until": 1})).unwrap().is_void());
        assert!(!parse(json!({})).unwrap().is_void());
    }
}
