//! Reading an event's tags: each value is taken once, typed, or refused by name.

use std::fmt::Display;
use std::str::FromStr;

use nostr::{Event, EventId, Kind, PublicKey, Tag, Timestamp};

/// Why an event is not what its kind promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// An event of another kind.
    #[error("kind is {found}, expected {expected}")]
    Kind {
        /// What it should have been.
        expected: u16,
        /// What it is.
        found: u16,
    },
    /// A tag that the draft requires is absent.
    #[error("tag {0:?} is missing")]
    Missing(&'static str),
    /// A tag that may stand once stands twice.
    #[error("tag {0:?} stands more than once")]
    Repeated(&'static str),
    /// A tag whose value does not parse.
    #[error("tag {name:?}: {reason}")]
    Tag {
        /// The tag.
        name: &'static str,
        /// Why its value was refused.
        reason: String,
    },
    /// Content that does not parse.
    #[error("content: {0}")]
    Content(String),
    /// Parts that are well formed and contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

impl DecodeError {
    pub(crate) fn tag(name: &'static str, reason: impl Display) -> Self {
        Self::Tag { name, reason: reason.to_string() }
    }
}

pub(crate) fn expect_kind(event: &Event, expected: Kind) -> Result<(), DecodeError> {
    if event.kind == expected {
        return Ok(());
    }
    Err(DecodeError::Kind { expected: expected.as_u16(), found: event.kind.as_u16() })
}

/// A tag of one value.
pub(crate) fn tag(name: &str, value: impl Display) -> Tag {
    Tag::custom(nostr::TagKind::custom(name), [value.to_string()])
}

/// The values of each tag called `name`, in order.
pub(crate) fn all<'a>(event: &'a Event, name: &str) -> impl Iterator<Item = &'a [String]> {
    let name = name.to_owned();
    event.tags.iter().filter_map(move |tag| match tag.as_slice() {
        [first, values @ ..] if *first == name => Some(values),
        _ => None,
    })
}

/// The only value of the only tag called `name`, if there is one.
pub(crate) fn optional<'a>(
    event: &'a Event,
    name: &'static str,
) -> Result<Option<&'a str>, DecodeError> {
    let mut found = all(event, name);
    let Some(values) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(DecodeError::Repeated(name));
    }
    values
        .first()
        .map(|value| Some(value.as_str()))
        .ok_or_else(|| DecodeError::tag(name, "no value"))
}

/// The only value of the only tag called `name`.
pub(crate) fn required<'a>(event: &'a Event, name: &'static str) -> Result<&'a str, DecodeError> {
    optional(event, name)?.ok_or(DecodeError::Missing(name))
}

/// [`required`], parsed.
pub(crate) fn parsed<T>(event: &Event, name: &'static str) -> Result<T, DecodeError>
where
    T: FromStr<Err: Display>,
{
    required(event, name)?.parse().map_err(|error| DecodeError::tag(name, error))
}

/// [`required`], as a canonical decimal integer.
pub(crate) fn integer<T: FromStr>(event: &Event, name: &'static str) -> Result<T, DecodeError> {
    decimal(name, required(event, name)?)
}

/// `value` as a canonical decimal integer.
pub(crate) fn decimal<T: FromStr>(name: &'static str, value: &str) -> Result<T, DecodeError> {
    crate::units::decimal(value)
        .ok_or_else(|| DecodeError::tag(name, "not a decimal integer, or too large"))
}

/// [`required`], as an event's id.
pub(crate) fn id(event: &Event, name: &'static str) -> Result<EventId, DecodeError> {
    event_id(name, required(event, name)?)
}

/// `text` as an event's id: 64 lower-case hex digits. Relays compare tags as
/// text, so that an id has one spelling.
pub(crate) fn event_id(name: &'static str, text: &str) -> Result<EventId, DecodeError> {
    lower_hex(name, text)?;
    EventId::from_hex(text).map_err(|error| DecodeError::tag(name, error))
}

/// `text` as a public key: 64 lower-case hex digits, as with [`event_id`].
pub(crate) fn key(name: &'static str, text: &str) -> Result<PublicKey, DecodeError> {
    lower_hex(name, text)?;
    PublicKey::from_hex(text).map_err(|error| DecodeError::tag(name, error))
}

fn lower_hex(name: &'static str, text: &str) -> Result<(), DecodeError> {
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(());
    }
    Err(DecodeError::tag(name, "must be 64 lower-case hex digits"))
}

/// `text` as a time in seconds, which fits into 64 bits as milliseconds, too.
pub(crate) fn seconds(name: &'static str, text: &str) -> Result<Timestamp, DecodeError> {
    let seconds: u64 = decimal(name, text)?;
    if seconds > u64::MAX / 1000 {
        return Err(DecodeError::tag(name, "is beyond all clocks"));
    }
    Ok(Timestamp::from(seconds))
}

/// Names of an enum's values, as tags spell them: `Display` and `FromStr`.
macro_rules! names {
    ($type:ident: $what:literal, $($variant:ident = $name:literal),+ $(,)?) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),+ })
            }
        }

        impl std::str::FromStr for $type {
            type Err = &'static str;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(concat!($what, " must be one of:" $(, " ", $name)+)),
                }
            }
        }
    };
}
pub(crate) use names;
