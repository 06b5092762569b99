//! Kind 8483: what a trader asks of an exchange besides offers.

use nostr::{Event, EventBuilder, EventId, PublicKey, Timestamp};

use super::offer::optional_parsed;
use super::{DecodeError, MarketId};
use crate::tag::{self, all, decimal, expect_kind, required};
use crate::{EpochId, kind};

/// A trader's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The exchange that is to carry it out.
    pub exchange: PublicKey,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Cancel all of the trader's offers, in one market or everywhere.
    CancelAll(Option<EpochId>),
    /// Cancel all of the trader's offers at this time, unless told a later one
    /// before; `None` takes that back (a dead man's switch).
    Alive(Option<Timestamp>),
    /// Give a place in the market's queue to the offer with this id, which the
    /// trader shows within the time that the exchange allows.
    Commit {
        /// The market.
        epoch: EpochId,
        /// Id of the offer's event.
        offer: EventId,
    },
    /// The trader has done a step of the settlement of a match.
    Step {
        /// Id of the match's event.
        of: EventId,
        /// 1 to 6 (EH-06).
        step: u8,
    },
}

impl Command {
    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let market = |epoch| MarketId { exchange: self.exchange, epoch };
        let cmd = |values: Vec<String>| nostr::Tag::custom(nostr::TagKind::custom("cmd"), values);
        let mut tags = vec![tag::tag("x", self.exchange.to_hex())];
        match &self.action {
            Action::CancelAll(epoch) => {
                tags.push(cmd(vec!["cancel_all".to_owned()]));
                tags.extend(epoch.map(|epoch| tag::tag("a", market(epoch))));
            }
            Action::Alive(until) => {
                let until = until.map_or("off".to_owned(), |until| until.to_string());
                tags.push(cmd(vec!["alive".to_owned(), until]));
            }
            Action::Commit { epoch, offer } => {
                tags.push(cmd(vec!["commit".to_owned(), offer.to_hex()]));
                tags.push(tag::tag("a", market(*epoch)));
            }
            Action::Step { of, step } => {
                tags.push(cmd(vec!["step".to_owned(), step.to_string()]));
                tags.push(tag::tag("e", of.to_hex()));
            }
        }
        EventBuilder::new(kind::COMMAND, "").tags(tags)
    }

    /// Reads an event of kind 8483.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::COMMAND)?;
        let exchange = tag::key("x", required(event, "x")?)?;
        required(event, "cmd")?;
        let words = all(event, "cmd").next().unwrap_or_default();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let action = match words.as_slice() {
            ["cancel_all"] => Action::CancelAll(market(event, exchange)?),
            ["alive", "off"] => Action::Alive(None),
            ["alive", until] => Action::Alive(Some(tag::seconds("cmd", until)?)),
            ["commit", offer] => Action::Commit {
                epoch: market(event, exchange)?.ok_or(DecodeError::Missing("a"))?,
                offer: tag::event_id("cmd", offer)?,
            },
            ["step", step] => Action::Step { of: tag::id(event, "e")?, step: a_step(step)? },
            _ => return Err(DecodeError::tag("cmd", "unknown command, or wrong number of values")),
        };
        Ok(Self { exchange, action })
    }
}

fn a_step(text: &str) -> Result<u8, DecodeError> {
    let step = decimal("cmd", text)?;
    if (1..=6).contains(&step) {
        Ok(step)
    } else {
        Err(DecodeError::tag("cmd", "steps are 1 to 6"))
    }
}

fn market(event: &Event, exchange: PublicKey) -> Result<Option<EpochId>, DecodeError> {
    let Some(market) = optional_parsed::<MarketId>(event, "a")? else { return Ok(None) };
    if market.exchange != exchange {
        return Err(DecodeError::Contradiction("x and a name different exchanges"));
    }
    Ok(Some(market.epoch))
}
