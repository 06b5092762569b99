//! Kind 7376: one change of a balance, for the user to look back at.

use std::str::FromStr;

use cashu::CurrencyUnit;
use nostr::EventId;

use super::PlaintextError;
use crate::units::decimal;

/// The plaintext of kind 7376: an array of tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryContent {
    /// Whether the balance grew or shrank.
    pub direction: Direction,
    /// By how much, in `unit`.
    pub amount: u64,
    /// What is counted; `sat` if absent.
    pub unit: CurrencyUnit,
    /// Token events made and unmade by it.
    pub events: Vec<(EventId, Marker)>,
    /// Tags of other makes.
    pub other: Vec<Vec<String>>,
}

/// Whether a balance grew or shrank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received.
    In,
    /// Sent.
    Out,
}

/// What became of a token event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// It was made.
    Created,
    /// It was deleted.
    Destroyed,
    /// A nutzap that was redeemed (NIP-61).
    Redeemed,
}

impl HistoryContent {
    /// The JSON to be sealed.
    pub fn encode(&self) -> String {
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        let pair = |name: &str, value: String| vec![name.to_owned(), value];
        let mut tags = vec![
            pair("direction", direction.to_owned()),
            pair("amount", self.amount.to_string()),
            pair("unit", self.unit.to_string()),
        ];
        tags.extend(self.events.iter().map(|(id, marker)| {
            vec!["e".to_owned(), id.to_hex(), String::new(), marker.as_str().to_owned()]
        }));
        tags.extend(self.other.iter().cloned());
        serde_json::to_string(&tags).expect("strings are JSON")
    }

    /// Parses what was opened: an array of arrays of strings.
    pub fn decode(plaintext: &str) -> Result<Self, PlaintextError> {
        let tags: Vec<Vec<String>> = serde_json::from_str(plaintext)?;
        let (mut direction, mut amount, mut unit) = (None, None, CurrencyUnit::Sat);
        let (mut events, mut other) = (Vec::new(), Vec::new());
        for tag in tags {
            let parts: Vec<&str> = tag.iter().map(String::as_str).collect();
            match parts[..] {
                ["direction", "in"] => direction = Some(Direction::In),
                ["direction", "out"] => direction = Some(Direction::Out),
                ["amount", value, ..] => amount = decimal(value),
                ["unit", value] => unit = CurrencyUnit::from_str(value).unwrap_or(unit),
                ["e", id, _, marker] => match (EventId::from_hex(id), Marker::parse(marker)) {
                    (Ok(id), Some(marker)) => events.push((id, marker)),
                    _ => other.push(tag),
                },
                _ => other.push(tag),
            }
        }
        Ok(Self {
            direction: direction.ok_or(PlaintextError::Tag("direction"))?,
            amount: amount.ok_or(PlaintextError::Tag("amount"))?,
            unit,
            events,
            other,
        })
    }
}

impl Marker {
    const ALL: [Self; 3] = [Self::Created, Self::Destroyed, Self::Redeemed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Destroyed => "destroyed",
            Self::Redeemed => "redeemed",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|marker| marker.as_str() == text)
    }
}
