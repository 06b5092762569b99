//! Kind 8480: a link of the journal's chain.

use nostr::{Event, EventBuilder, EventId, JsonUtil, Tag, TagKind, Timestamp};

use super::DecodeError;
use crate::eh04::Rules;
use crate::tag::{self, all, expect_kind, integer, parsed, required};
use crate::{Millis, kind};

/// What stands for the entry before the first one.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// An entry of the journal. Its event's id is the next one's `prev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the journal, from 0, without gaps: the priority of the offer
    /// that it acknowledges.
    pub seq: u64,
    /// Id of the entry before it; [`GENESIS`] in the first.
    pub prev: EventId,
    /// The exchange's clock; never earlier than in the entry before. The event's
    /// `created_at` is the same, in seconds.
    pub at: Millis,
    /// What came in.
    pub subject: Subject,
    /// What it led to. It follows from the entries up to this one.
    pub outcome: Outcome,
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The exchange's rules from here on. The first entry's always.
    Rules(Rules),
    /// A pool's epoch keyset (EH-01, kind 38471), which opens, halts or closes a
    /// market.
    Epoch(Box<Event>),
    /// A trader's event: an offer (38480), a command (8483) or a deletion
    /// (NIP-09).
    Trader(Box<Event>),
    /// Nothing: something's time had come.
    Time,
}

/// What it led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out. What it matched is told by matches (kind 8481).
    Accepted,
    /// It has its place, and is carried out once the commits before it in its
    /// market are shown or burnt.
    Deferred,
    /// Nothing was done; the reason begins with a prefix as in NIP-01.
    Refused(String),
}

impl Entry {
    /// The event, without signature.
    pub fn encode(&self) -> EventBuilder {
        let (act, content) = match &self.subject {
            Subject::Rules(rules) => {
                ("rules", serde_json::to_string(rules).expect("plain data is JSON"))
            }
            Subject::Epoch(event) => ("epoch", event.as_json()),
            Subject::Trader(event) => ("trader", event.as_json()),
            Subject::Time => ("time", String::new()),
        };
        let mut tags = vec![
            tag::tag("n", self.seq),
            tag::tag("prev", self.prev.to_hex()),
            tag::tag("at", self.at),
            tag::tag("act", act),
        ];
        if let Some(event) = self.event() {
            tags.extend([tag::tag("e", event.id.to_hex()), tag::tag("p", event.pubkey.to_hex())]);
        }
        let outcome = match &self.outcome {
            Outcome::Accepted => vec!["accepted".to_owned()],
            Outcome::Deferred => vec!["deferred".to_owned()],
            Outcome::Refused(reason) => vec!["refused".to_owned(), reason.clone()],
        };
        tags.push(Tag::custom(TagKind::custom("outcome"), outcome));
        let at = Timestamp::from(self.at.get() / 1000);
        EventBuilder::new(kind::ENTRY, content).tags(tags).custom_created_at(at)
    }

    /// Reads an event of kind 8480. The signature of the event inside is *not*
    /// checked.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::ENTRY)?;
        let at = Millis::new(integer(event, "at")?);
        if event.created_at.as_secs() != at.get() / 1000 {
            return Err(DecodeError::Contradiction("created_at is not at in seconds"));
        }
        let content = |error: &dyn std::fmt::Display| DecodeError::Content(error.to_string());
        let inner = || Event::from_json(&event.content).map(Box::new).map_err(|e| content(&e));
        let subject = match required(event, "act")? {
            "rules" => {
                Subject::Rules(serde_json::from_str(&event.content).map_err(|e| content(&e))?)
            }
            "epoch" => Subject::Epoch(inner()?),
            "trader" => Subject::Trader(inner()?),
            "time" if event.content.is_empty() => Subject::Time,
            _ => return Err(DecodeError::tag("act", "must be rules, epoch, trader or time")),
        };
        let entry = Self {
            seq: integer(event, "n")?,
            prev: parsed(event, "prev")?,
            at,
            subject,
            outcome: outcome(event)?,
        };
        if let Some(inner) = entry.event() {
            let named = (parsed::<EventId>(event, "e")?, required(event, "p")?);
            if named != (inner.id, &inner.pubkey.to_hex()) {
                return Err(DecodeError::Contradiction("e and p are not those of the content"));
            }
        }
        Ok(entry)
    }

    /// The event that came in, if it was one.
    pub fn event(&self) -> Option<&Event> {
        match &self.subject {
            Subject::Epoch(event) | Subject::Trader(event) => Some(event),
            Subject::Rules(_) | Subject::Time => None,
        }
    }
}

fn outcome(event: &Event) -> Result<Outcome, DecodeError> {
    required(event, "outcome")?;
    let words = all(event, "outcome").next().unwrap_or_default();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["accepted"] => Ok(Outcome::Accepted),
        ["deferred"] => Ok(Outcome::Deferred),
        ["refused", reason] => Ok(Outcome::Refused((*reason).to_owned())),
        _ => Err(DecodeError::tag("outcome", "must be accepted, deferred, or refused and why")),
    }
}
