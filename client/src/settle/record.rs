//! A trade as it is kept: written before anything leaves that depends on it.

use cdk::mint_url::MintUrl;
use cdk::nuts::KeySet;
use hashpit_nips::eh05::Match;
use hashpit_nips::eh06::{Keys, LockedProof};
use hashpit_nips::{HashUnits, Sats};
use nostr_sdk::{Event, EventId, PublicKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::SettleError;
use crate::wallet::{NAMESPACE, Wallet};

const TABLE: &str = "trades";
const VERSION: u8 = 1;

/// Which side of a trade somebody is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Gives ehash.
    Seller,
    /// Pays sats, and makes the preimage.
    Buyer,
}

/// How far a trade has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum Stage {
    /// Step 1: keys are exchanged; nothing is locked.
    Agreeing,
    /// Own leg is being locked, or may be.
    Locking,
    /// It is locked, and the other trader's turn.
    Waiting,
    /// The other leg is being claimed.
    Claiming,
    /// Own leg is taken back as soon as its locktime allows.
    Refunding {
        /// Why.
        why: String,
    },
    /// Over.
    Over {
        /// How it ended.
        #[serde(flatten)]
        end: End,
    },
}

/// How a trade ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "end")]
pub enum End {
    /// Both legs have changed hands.
    Completed,
    /// Nothing of ours was locked.
    Void {
        /// Why.
        why: String,
    },
    /// Own leg was taken back.
    Refunded {
        /// Why.
        why: String,
    },
    /// Own leg is gone, and the other leg was not got.
    Lost {
        /// How that came about.
        why: String,
    },
}

/// What the user wants of a trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Do not lock anything, if nothing is locked.
    Cancel,
    /// Take the own leg back as soon as possible, rather than wait for the other.
    Refund,
}

/// Whether somebody else could claim the sats while the seller is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Watched {
    /// A relay has a claim for each of these watchtowers.
    By {
        /// Their keys.
        watchers: Vec<PublicKey>,
    },
    /// Nobody could.
    Nobody {
        /// Why.
        why: String,
    },
}

/// A trade, and what has become of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u8,
    /// The match, as the exchange signed it (kind 8481).
    pub event: Event,
    /// Which side we are on.
    pub role: Role,
    /// How far it has come.
    pub stage: Stage,
    /// What we bring, as it was told.
    pub(super) mine: Option<Keys>,
    /// What the other trader brings.
    pub(super) theirs: Option<Keys>,
    /// Where the ehash is honoured, as its pool announced it.
    pub(super) ehash: Option<Honoured>,
    /// Where the sats are honoured, once that is agreed.
    #[serde(default)]
    pub(super) sats: Option<Honoured>,
    /// The other leg as it was locked for us, checked.
    pub(super) got: Vec<LockedProof>,
    /// Our leg as we locked it.
    pub(super) locked: Vec<LockedProof>,
    /// Lightning: the seller's invoice.
    pub(super) invoice: Option<String>,
    /// The preimage, once the seller has read it.
    #[serde(with = "preimage")]
    pub(super) preimage: Option<[u8; 32]>,
    /// Steps that the exchange has been told of, as bits.
    pub(super) reported: u8,
    /// What the user wants.
    pub(super) wish: Option<Wish>,
    /// It was found on relays: what was asked of the mints before is not known.
    pub(super) recovered: bool,
    /// The seller's: who watches.
    #[serde(default)]
    pub(super) watched: Option<Watched>,
    /// When it last changed, in seconds of the Unix epoch.
    pub(super) changed: u64,
}

/// A mint and its keyset: with it a trade goes on while every relay is away.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Honoured {
    pub(super) mint: MintUrl,
    pub(super) keyset: KeySet,
}

impl Record {
    pub(super) fn new(event: Event, role: Role) -> Self {
        Self {
            version: VERSION,
            event,
            role,
            stage: Stage::Agreeing,
            mine: None,
            theirs: None,
            ehash: None,
            sats: None,
            got: Vec::new(),
            locked: Vec::new(),
            invoice: None,
            preimage: None,
            reported: 0,
            wish: None,
            recovered: false,
            watched: None,
            changed: 0,
        }
    }

    /// Id of the match's event.
    pub fn id(&self) -> EventId {
        self.event.id
    }

    /// The match.
    ///
    /// # Panics
    /// Never: a match is decoded before its record is made.
    pub fn terms(&self) -> Match {
        Match::decode(&self.event).expect("decoded before it was recorded")
    }

    /// The other trader.
    pub fn counterparty(&self) -> PublicKey {
        let terms = self.terms();
        match self.role {
            Role::Seller => terms.buyer().trader,
            Role::Buyer => terms.seller().trader,
        }
    }

    /// The exchange that matched it.
    pub fn exchange(&self) -> PublicKey {
        self.terms().market.exchange
    }

    /// Sats that change hands.
    pub fn sats(&self) -> Sats {
        self.terms().msats().expect("checked when it was decoded").in_sats()
    }

    /// Ehash that changes hands.
    pub fn units(&self) -> HashUnits {
        self.terms().units
    }

    /// SHA-256 of the buyer's preimage, once it is told.
    pub fn hash(&self) -> Option<[u8; 32]> {
        let keys = match self.role {
            Role::Seller => self.theirs.as_ref(),
            Role::Buyer => self.mine.as_ref(),
        };
        Some(keys?.pays.as_ref()?.hash)
    }

    /// True once nothing is left to do.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over { .. })
    }

    /// When it last changed, in seconds of the Unix epoch.
    pub fn changed_at(&self) -> u64 {
        self.changed
    }

    /// What the wallet's proofs are reserved for.
    pub(super) fn operation(&self) -> Uuid {
        let bytes = self.id().to_bytes();
        Uuid::from_slice(&bytes[..16]).expect("16 bytes")
    }

    /// Name of a swap of this trade.
    pub(super) fn swap(&self, what: &str) -> String {
        format!("{}-{what}", self.id().to_hex())
    }
}

impl Wallet {
    /// Every trade, newest first.
    pub async fn trades(&self) -> Result<Vec<Record>, SettleError> {
        let mut trades = Vec::new();
        for key in self.store.kv_list(NAMESPACE, TABLE).await? {
            trades.extend(self.trade_named(&key).await?);
        }
        trades.sort_by_key(|trade| std::cmp::Reverse(trade.event.created_at));
        Ok(trades)
    }

    /// A trade, by its match's id.
    pub async fn trade(&self, of: EventId) -> Result<Option<Record>, SettleError> {
        self.trade_named(&of.to_hex()).await
    }

    async fn trade_named(&self, key: &str) -> Result<Option<Record>, SettleError> {
        let Some(bytes) = self.store.kv_read(NAMESPACE, TABLE, key).await? else {
            return Ok(None);
        };
        let damaged = || SettleError::Damaged(key.to_owned());
        let record: Record = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let sound = record.version == VERSION && Match::decode(&record.event).is_ok();
        if sound { Ok(Some(record)) } else { Err(damaged()) }
    }

    pub(super) async fn save_trade(&self, record: &Record) -> Result<(), SettleError> {
        let bytes = serde_json::to_vec(record).expect("strings and numbers are JSON");
        let key = record.id().to_hex();
        Ok(self.store.kv_write(NAMESPACE, TABLE, &key, &bytes).await?)
    }
}

mod preimage {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<[u8; 32]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(hex::encode).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let bytes = |text: String| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text, &mut bytes).map(|()| bytes)
        };
        text.map(bytes).transpose().map_err(serde::de::Error::custom)
    }
}
