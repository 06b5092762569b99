//! Kind 8480: a link of the journal's chain.

use nostr::{Event, EventBuilder, EventId, JsonUtil, Kind, Tag, TagKind, Timestamp};

use super::DecodeError;
use crate::eh04::{MarketState, Rules};
use crate::tag::{self, all, decimal, expect_kind, integer, optional, required};
use crate::{EpochId, Millis, kind};

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
    /// What became of it. It follows from the entries up to this one.
    pub outcome: Outcome,
    /// What else it brought about, beside matches and settlements; it follows,
    /// too. At most [`MAX_EFFECTS`].
    pub effects: Vec<Effect>,
    /// Effects that are not listed, for want of room.
    pub more: u32,
}

/// Effects that one entry lists.
pub const MAX_EFFECTS: usize = 200;
/// Why an offer ended by itself.
const WHYS: [&str; 6] = ["expired", "dead_man", "epoch", "closed", "self", "ioc"];

/// What an entry brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// An offer ended, and neither a fill nor its trader did that; why:
    /// `expired`, `dead_man`, `epoch`, `closed`, `self` (own trade) or `ioc`.
    Ended(EventId, String),
    /// A deferred event was carried out, or refused and why.
    Late(EventId, Outcome),
    /// A commit to this offer was burnt.
    Burnt(EventId),
    /// A market is in this state now, until this time.
    Market(EpochId, MarketState, Option<Millis>),
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

impl Subject {
    fn has_its_kind(&self) -> bool {
        match self {
            Self::Rules(_) | Self::Time => true,
            Self::Epoch(event) => event.kind == kind::EPOCH_KEYSET,
            Self::Trader(event) => {
                [kind::OFFER, kind::COMMAND, Kind::EventDeletion].contains(&event.kind)
            }
        }
    }
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
        let outcome = self.outcome.words();
        tags.push(several("outcome", outcome));
        tags.extend(self.effects.iter().map(Effect::tag));
        tags.extend((self.more > 0).then(|| tag::tag("more", self.more)));
        let at = Timestamp::from(self.at.get() / 1000);
        // The exchange may itself be the pool or a trader, and `p` says so.
        EventBuilder::new(kind::ENTRY, content)
            .tags(tags)
            .custom_created_at(at)
            .allow_self_tagging()
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
            "rules" => Subject::Rules(Rules::decode(&event.content)?),
            "epoch" => Subject::Epoch(inner()?),
            "trader" => Subject::Trader(inner()?),
            "time" if event.content.is_empty() => Subject::Time,
            _ => return Err(DecodeError::tag("act", "must be rules, epoch, trader or time")),
        };
        let entry = Self {
            seq: integer(event, "n")?,
            prev: tag::id(event, "prev")?,
            at,
            subject,
            outcome: outcome(event)?,
            effects: effects(event)?,
            more: optional(event, "more")?.map_or(Ok(0), |more| decimal("more", more))?,
        };
        entry.check(event)?;
        Ok(entry)
    }

    /// Whether its parts fit together, as far as one entry shows it.
    fn check(&self, event: &Event) -> Result<(), DecodeError> {
        let first = self.seq == 0;
        let contradiction = if first != (self.prev.to_hex() == GENESIS) {
            "the first entry, and no other, has a prev of zeros"
        } else if first && !matches!(self.subject, Subject::Rules(_)) {
            "the first entry must be rules"
        } else if !self.subject.has_its_kind() {
            "the content is an event of another kind than act says"
        } else if self.event().is_none() && self.outcome != Outcome::Accepted {
            "rules and time are always accepted"
        } else if let Some(inner) = self.event()
            && (tag::id(event, "e")?, required(event, "p")?)
                != (inner.id, inner.pubkey.to_hex().as_str())
        {
            "e and p are not those of the content"
        } else {
            return Ok(());
        };
        Err(DecodeError::Contradiction(contradiction))
    }

    /// The event that came in, if it was one.
    pub fn event(&self) -> Option<&Event> {
        match &self.subject {
            Subject::Epoch(event) | Subject::Trader(event) => Some(event),
            Subject::Rules(_) | Subject::Time => None,
        }
    }
}

impl Outcome {
    fn words(&self) -> Vec<String> {
        match self {
            Self::Accepted => vec!["accepted".to_owned()],
            Self::Deferred => vec!["deferred".to_owned()],
            Self::Refused(reason) => vec!["refused".to_owned(), reason.clone()],
        }
    }

    fn parse(words: &[String], name: &'static str) -> Result<Self, DecodeError> {
        match words {
            [word] if word == "accepted" => Ok(Self::Accepted),
            [word] if word == "deferred" => Ok(Self::Deferred),
            [word, reason] if word == "refused" => Ok(Self::Refused(reason.clone())),
            _ => Err(DecodeError::tag(name, "must be accepted, deferred, or refused and why")),
        }
    }
}

impl Effect {
    fn tag(&self) -> Tag {
        match self {
            Self::Ended(offer, why) => several("ended", vec![offer.to_hex(), why.clone()]),
            Self::Late(event, outcome) => {
                several("late", [vec![event.to_hex()], outcome.words()].concat())
            }
            Self::Burnt(offer) => several("burnt", vec![offer.to_hex()]),
            Self::Market(epoch, state, until) => {
                let until = until.map(|until| until.to_string());
                let words = [epoch.to_string(), state.to_string()];
                several("market", words.into_iter().chain(until).collect())
            }
        }
    }

    /// The effect that a tag tells; `None` for other tags.
    fn parse(tag: &[String]) -> Option<Result<Self, DecodeError>> {
        let id = tag::event_id;
        Some(match tag {
            [name, offer, why] if name == "ended" && WHYS.contains(&why.as_str()) => {
                id("ended", offer).map(|offer| Self::Ended(offer, why.clone()))
            }
            [name, event, outcome @ ..] if name == "late" => {
                id("late", event).and_then(|e| Ok(Self::Late(e, Outcome::parse(outcome, "late")?)))
            }
            [name, offer] if name == "burnt" => id("burnt", offer).map(Self::Burnt),
            [name, epoch, state] if name == "market" => market(epoch, state, None),
            [name, epoch, state, until] if name == "market" => market(epoch, state, Some(until)),
            [name, ..] => {
                let malformed =
                    ["ended", "late", "burnt", "market"].into_iter().find(|n| n == name)?;
                Err(DecodeError::tag(malformed, "wrong number of values, or an unknown word"))
            }
            [] => return None,
        })
    }
}

fn market(epoch: &str, state: &str, until: Option<&String>) -> Result<Effect, DecodeError> {
    let until = until.map(|until| decimal("market", until)).transpose()?;
    Ok(Effect::Market(
        epoch.parse().map_err(|error| DecodeError::tag("market", error))?,
        state.parse().map_err(|error| DecodeError::tag("market", error))?,
        until.map(Millis::new),
    ))
}

fn several(name: &str, values: Vec<String>) -> Tag {
    Tag::custom(TagKind::custom(name), values)
}

fn effects(event: &Event) -> Result<Vec<Effect>, DecodeError> {
    let effects: Vec<Effect> = event
        .tags
        .iter()
        .filter_map(|tag| Effect::parse(tag.as_slice()))
        .collect::<Result<_, _>>()?;
    if effects.len() > MAX_EFFECTS {
        return Err(DecodeError::Contradiction("an entry lists 200 effects at most"));
    }
    Ok(effects)
}

fn outcome(event: &Event) -> Result<Outcome, DecodeError> {
    required(event, "outcome")?;
    Outcome::parse(all(event, "outcome").next().unwrap_or_default(), "outcome")
}
