//! Kind 8471: how much ehash there is, and against how much work.

use nostr::{Event, EventBuilder, EventId, Tag};

use super::DecodeError;
use crate::tag::{self, expect_kind, integer, optional, parsed, required};
use crate::{EpochId, HashUnits, Work, kind};

/// A pool's statement of an epoch's supply; each names the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupplyAttestation {
    /// The epoch; its unit is the event's `d`.
    pub epoch: EpochId,
    /// Shares credited so far.
    pub shares: u64,
    /// Work credited so far, in expected hashes.
    pub work: Work,
    /// Units issued so far; never worth more than `work`.
    pub issued: HashUnits,
    /// Units redeemed so far.
    pub redeemed: HashUnits,
    /// Root of the sum tree over the epoch's shares.
    pub root: [u8; 32],
    /// The epoch's attestation before this one.
    pub previous: Option<EventId>,
}

impl SupplyAttestation {
    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let mut tags = vec![
            Tag::identifier(self.epoch.to_string()),
            tag::tag("shares", self.shares),
            tag::tag("work", self.work),
            tag::tag("issued", self.issued),
            tag::tag("redeemed", self.redeemed),
            tag::tag("root", hex::encode(self.root)),
        ];
        tags.extend(self.previous.map(Tag::event));
        EventBuilder::new(kind::SUPPLY_ATTESTATION, "").tags(tags)
    }

    /// Reads an event of kind 8471.
    ///
    /// Errors where the event's author is not the pool that the unit names.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::SUPPLY_ATTESTATION)?;
        let epoch: EpochId = parsed(event, "d")?;
        if epoch.pool != event.pubkey {
            return Err(DecodeError::Contradiction("the unit names another pool than the author"));
        }
        let mut root = [0; 32];
        hex::decode_to_slice(required(event, "root")?, &mut root)
            .map_err(|error| DecodeError::tag("root", error))?;
        let previous = optional(event, "e")?.map(EventId::from_hex).transpose();
        Ok(Self {
            epoch,
            shares: integer(event, "shares")?,
            work: Work::new(integer(event, "work")?),
            issued: HashUnits::new(integer(event, "issued")?),
            redeemed: HashUnits::new(integer(event, "redeemed")?),
            root,
            previous: previous.map_err(|error| DecodeError::tag("e", error))?,
        })
    }
}
