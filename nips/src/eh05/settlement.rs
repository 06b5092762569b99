//! Kind 8482: what became of a match.

use nostr::{Event, EventBuilder, EventId, PublicKey, Tag, TagKind, Timestamp};

use super::DecodeError;
use crate::tag::{self, all, decimal, expect_kind, integer, required};
use crate::{Millis, kind};

/// The exchange's word on how a match ended. It follows from what the two
/// traders reported (EH-04, command `step`) and from the journal's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Sequence of the entry that brought it about.
    pub seq: u64,
    /// Id of the match's event.
    pub of: EventId,
    /// Seller and buyer.
    pub traders: [PublicKey; 2],
    /// How it ended.
    pub fate: Fate,
    /// The entry's time.
    pub at: Millis,
}

/// How a match ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Both traders said that it is done.
    Completed,
    /// A step was not reported in time.
    Failed {
        /// The step, 1 to 6 (EH-06).
        step: u8,
        /// Who was due: one of the traders, or seller and buyer.
        due: Vec<PublicKey>,
    },
}

impl Settlement {
    /// The event, without signature.
    pub fn encode(&self) -> EventBuilder {
        let fate = match &self.fate {
            Fate::Completed => vec!["completed".to_owned()],
            Fate::Failed { step, due } => ["failed".to_owned(), step.to_string()]
                .into_iter()
                .chain(due.iter().map(PublicKey::to_hex))
                .collect(),
        };
        let mut tags = vec![tag::tag("n", self.seq), tag::tag("e", self.of.to_hex())];
        tags.extend(self.traders.iter().map(|trader| tag::tag("p", trader.to_hex())));
        tags.push(Tag::custom(TagKind::custom("fate"), fate));
        tags.push(tag::tag("at", self.at));
        let at = Timestamp::from(self.at.get() / 1000);
        EventBuilder::new(kind::SETTLEMENT, "")
            .tags(tags)
            .custom_created_at(at)
            .allow_self_tagging()
    }

    /// Reads an event of kind 8482.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::SETTLEMENT)?;
        let traders = all(event, "p")
            .map(|values| tag::key("p", values.first().map(String::as_str).unwrap_or_default()))
            .collect::<Result<Vec<_>, _>>()?;
        required(event, "fate")?;
        let words = all(event, "fate").next().unwrap_or_default();
        let fate = match words {
            [word] if word == "completed" => Fate::Completed,
            [word, step, due @ ..] if word == "failed" && !due.is_empty() => Fate::Failed {
                step: decimal("fate", step)?,
                due: due.iter().map(|who| tag::key("fate", who)).collect::<Result<_, _>>()?,
            },
            _ => {
                return Err(DecodeError::tag("fate", "must be completed, or failed, step and who"));
            }
        };
        let found = Self {
            seq: integer(event, "n")?,
            of: tag::id(event, "e")?,
            traders: traders
                .try_into()
                .map_err(|_| DecodeError::Contradiction("p must name seller and buyer"))?,
            fate,
            at: Millis::new(integer(event, "at")?),
        };
        found.check(event)?;
        Ok(found)
    }

    fn check(&self, event: &Event) -> Result<(), DecodeError> {
        if event.created_at.as_secs() != self.at.get() / 1000 {
            return Err(DecodeError::Contradiction("created_at is not at in seconds"));
        }
        let Fate::Failed { step, due } = &self.fate else { return Ok(()) };
        if !(1..=6).contains(step) {
            return Err(DecodeError::tag("fate", "steps are 1 to 6"));
        }
        let [seller, buyer] = self.traders;
        if [vec![seller], vec![buyer], vec![seller, buyer]].contains(due) {
            return Ok(());
        }
        Err(DecodeError::tag("fate", "who was due must be the seller, the buyer, or both so"))
    }
}
