//! Kinds 38483 and 28480: a market's book, and what has changed since.

use nostr::{Event, EventBuilder, EventId, Tag};
use serde::{Deserialize, Serialize};

use super::DecodeError;
use crate::eh04::{MarketId, MarketState, Side};
use crate::tag::{self, expect_kind, integer, parsed, required};
use crate::{EpochId, Lots, Millis, Price, kind};

/// All offers at one price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level(
    /// Price.
    pub Price,
    /// Lots on offer.
    #[serde(with = "decimal_u64")]
    pub u64,
    /// Number of offers.
    pub u32,
);

/// The newest match of a market that was completed: of those whose settlement both
/// traders have confirmed, the one with the highest sequence, then number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTrade {
    /// Price of one lot.
    pub price: Price,
    /// Lots of the match.
    pub lots: Lots,
    /// When they met.
    pub at: Millis,
}

/// A market's book at one sequence of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The epoch; its unit is the event's `d`.
    pub epoch: EpochId,
    /// The newest entry that it contains.
    pub seq: u64,
    /// That entry's id: the hash of the chain so far.
    pub entry: EventId,
    /// SHA-256 of the market's whole state, as EH-05 lays it down.
    pub digest: [u8; 32],
    /// Number of the newest depth event that it contains.
    pub depth: u64,
    /// The clock of that entry.
    pub at: Millis,
    /// The book.
    pub book: Book,
}

/// What a checkpoint's content says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    /// Where the market stands.
    #[serde(with = "word")]
    pub state: MarketState,
    /// Levels, best first.
    pub bids: Vec<Level>,
    /// Levels, best first.
    pub asks: Vec<Level>,
    /// Whether further levels were left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// The newest match that was completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastTrade>,
}

impl Checkpoint {
    /// The event, without signature.
    pub fn encode(&self) -> EventBuilder {
        let content = serde_json::to_string(&self.book).expect("plain data is JSON");
        EventBuilder::new(kind::CHECKPOINT, content).tags([
            Tag::identifier(self.epoch.to_string()),
            tag::tag("n", self.seq),
            tag::tag("e", self.entry.to_hex()),
            tag::tag("digest", hex::encode(self.digest)),
            tag::tag("depth", self.depth),
            tag::tag("at", self.at),
        ])
    }

    /// Reads an event of kind 38483.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::CHECKPOINT)?;
        let mut digest = [0; 32];
        hex::decode_to_slice(required(event, "digest")?, &mut digest)
            .map_err(|error| DecodeError::tag("digest", error))?;
        Ok(Self {
            epoch: parsed(event, "d")?,
            seq: integer(event, "n")?,
            entry: tag::id(event, "e")?,
            digest,
            depth: integer(event, "depth")?,
            at: Millis::new(integer(event, "at")?),
            book: content(event)?,
        })
    }
}

/// What has changed in a market's book: the levels that are not as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depth {
    /// The market.
    pub market: MarketId,
    /// Its number among the market's depth events; each is one more than the one
    /// before, so that a reader notices a gap and waits for the next checkpoint.
    pub number: u64,
    /// The newest entry that it contains.
    pub seq: u64,
    /// What has changed.
    pub change: Change,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Where the market stands.
    #[serde(with = "word")]
    pub state: MarketState,
    /// Bids that changed, as they are now; 0 lots: the level is gone.
    pub bids: Vec<Level>,
    /// Asks, likewise.
    pub asks: Vec<Level>,
    /// The newest match that was completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastTrade>,
}

impl Change {
    /// The levels of one side.
    pub fn side(&mut self, side: Side) -> &mut Vec<Level> {
        match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        }
    }
}

impl Depth {
    /// The event, without signature.
    pub fn encode(&self) -> EventBuilder {
        let content = serde_json::to_string(&self.change).expect("plain data is JSON");
        EventBuilder::new(kind::DEPTH, content).tags([
            tag::tag("a", self.market),
            tag::tag("depth", self.number),
            tag::tag("n", self.seq),
        ])
    }

    /// Reads an event of kind 28480.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::DEPTH)?;
        let market: MarketId = parsed(event, "a")?;
        if market.exchange != event.pubkey {
            return Err(DecodeError::Contradiction("the market is another exchange's"));
        }
        Ok(Self {
            market,
            number: integer(event, "depth")?,
            seq: integer(event, "n")?,
            change: content(event)?,
        })
    }
}

fn content<T: for<'de> Deserialize<'de>>(event: &Event) -> Result<T, DecodeError> {
    serde_json::from_str(&event.content).map_err(|error| DecodeError::Content(error.to_string()))
}

/// A value by its name in tags.
mod word {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &impl Display, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A whole number as a decimal string.
mod decimal_u64 {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        let text = String::deserialize(d)?;
        crate::units::decimal(&text).ok_or_else(|| de::Error::custom("expected a decimal string"))
    }
}
