//! Kind 38471: the keys that sign an epoch's ehash, and the epoch's state.

use std::fmt;
use std::str::FromStr;

use bitcoin::BlockHash;
use cashu::{CurrencyUnit, KeySet, Keys, MintUrl};
use nostr::{Event, EventBuilder, Tag};
use serde::{Deserialize, Serialize};

use super::DecodeError;
use crate::tag::{self, expect_kind, integer, optional, parsed, required};
use crate::{EpochId, HashUnits, Sats, WorkBits, kind};

/// An epoch's keyset, signed by the pool's key by virtue of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochKeyset {
    /// The epoch; its unit is the event's `d`.
    pub epoch: EpochId,
    /// Hash of the block that opened it.
    pub opened_by: BlockHash,
    /// Where the epoch stands.
    pub state: EpochState,
    /// One unit of ehash is 2^`work` expected hashes.
    pub work: WorkBits,
    /// Keys by amount (NUT-01), with a version 2 id (NUT-02) that the keys,
    /// the unit and the fee determine.
    pub keyset: KeySet,
    /// Mint that honours the keyset.
    pub mint: MintUrl,
    /// Block reward to share out, once a block closed the epoch.
    pub reward: Option<Sats>,
    /// Units issued so far.
    pub issued: HashUnits,
}

/// Where an epoch stands (EH-01, "Life of an epoch").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpochState {
    /// Shares are credited to it.
    Open,
    /// A block closed it; the boundary is not final yet.
    Closing,
    /// The boundary is final; the reward has not matured.
    Final,
    /// Its ehash redeems for sats.
    Redeeming,
    /// Redemption ended.
    Expired,
}

impl EpochState {
    const NAMES: [(Self, &'static str); 5] = [
        (Self::Open, "open"),
        (Self::Closing, "closing"),
        (Self::Final, "final"),
        (Self::Redeeming, "redeeming"),
        (Self::Expired, "expired"),
    ];
}

impl fmt::Display for EpochState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(state, _)| state == self).map(|(_, name)| name);
        f.write_str(name.expect("NAMES lists every state"))
    }
}

impl FromStr for EpochState {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let state = Self::NAMES.iter().find(|(_, name)| *name == text).map(|(state, _)| *state);
        state.ok_or("unknown epoch state")
    }
}

impl EpochKeyset {
    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let mut tags = vec![
            Tag::identifier(self.epoch.to_string()),
            tag::tag("block", self.opened_by),
            tag::tag("state", self.state),
            tag::tag("work", self.work.get()),
            tag::tag("keyset", self.keyset.id),
            tag::tag("fee_ppk", self.keyset.input_fee_ppk),
            tag::tag("mint", &self.mint),
            tag::tag("issued", self.issued),
        ];
        tags.extend(self.reward.map(|reward| tag::tag("reward", reward)));
        let keys = serde_json::to_string(&self.keyset.keys).expect("a map of strings is JSON");
        EventBuilder::new(kind::EPOCH_KEYSET, keys).tags(tags)
    }

    /// Reads an event of kind 38471.
    ///
    /// Errors where the event's author is not the pool that the unit names, or
    /// the keyset's id does not follow from its keys.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::EPOCH_KEYSET)?;
        let epoch: EpochId = parsed(event, "d")?;
        if epoch.pool != event.pubkey {
            return Err(DecodeError::Contradiction("the unit names another pool than the author"));
        }
        let keys: Keys = serde_json::from_str(&event.content)
            .map_err(|error| DecodeError::Content(error.to_string()))?;
        let work = WorkBits::new(integer(event, "work")?)
            .map_err(|error| DecodeError::tag("work", error))?;
        let reward = optional(event, "reward")?.map(|reward| tag::decimal("reward", reward));
        Ok(Self {
            epoch,
            opened_by: parsed(event, "block")?,
            state: required(event, "state")?
                .parse()
                .map_err(|error| DecodeError::tag("state", error))?,
            work,
            keyset: keyset(event, epoch, keys)?,
            mint: parsed(event, "mint")?,
            reward: reward.transpose()?.map(Sats::new),
            issued: HashUnits::new(integer(event, "issued")?),
        })
    }
}

fn keyset(event: &Event, epoch: EpochId, keys: Keys) -> Result<KeySet, DecodeError> {
    let keyset = KeySet {
        id: parsed(event, "keyset")?,
        unit: CurrencyUnit::Custom(epoch.to_string().into()),
        active: None,
        keys,
        input_fee_ppk: integer(event, "fee_ppk")?,
        final_expiry: None,
    };
    keyset.verify_id().map_err(|error| DecodeError::tag("keyset", error))?;
    Ok(keyset)
}
