//! Kind 38470: where a pool is and on what terms it works.

use std::fmt;
use std::str::FromStr;

use bitcoin::Network;
use cashu::MintUrl;
use nostr::{Event, EventBuilder, RelayUrl, Tag, TagKind};

use super::DecodeError;
use crate::tag::{self, all, expect_kind, integer, parsed, required};
use crate::{Work, kind};

/// A pool's terms. One per pool key and network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolAnnouncement {
    /// Bitcoin network that the pool mines on.
    pub network: Network,
    /// Name for people.
    pub name: String,
    /// Stratum V2 mining endpoints, in order of preference.
    pub sv2: Vec<Sv2Endpoint>,
    /// Cashu mint that honours the pool's ehash.
    pub mint: MintUrl,
    /// Relays that the pool reads issuance messages from.
    pub relays: Vec<RelayUrl>,
    /// Pool fee in parts per million of the block reward.
    pub fee_ppm: u32,
    /// How an epoch's reward is shared out.
    pub scheme: PayoutScheme,
    /// Work of the easiest share that the pool hands out, in expected hashes.
    pub min_work: Work,
    /// Anything else, for people.
    pub description: String,
}

/// A Stratum V2 endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sv2Endpoint {
    /// `host:port`.
    pub address: String,
    /// Authority public key, base58check as the Sv2 URL scheme writes it.
    pub authority: String,
}

/// How an epoch's reward is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayoutScheme {
    /// By work credited in the epoch.
    Proportional,
}

impl fmt::Display for PayoutScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proportional => f.write_str("proportional"),
        }
    }
}

impl FromStr for PayoutScheme {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "proportional" => Ok(Self::Proportional),
            _ => Err("unknown payout scheme"),
        }
    }
}

impl PoolAnnouncement {
    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let mut tags =
            vec![Tag::identifier(self.network.to_core_arg()), tag::tag("name", &self.name)];
        tags.extend(self.sv2.iter().map(|sv2| {
            Tag::custom(TagKind::custom("sv2"), [sv2.address.clone(), sv2.authority.clone()])
        }));
        tags.push(tag::tag("mint", &self.mint));
        tags.extend(self.relays.iter().map(|relay| tag::tag("relay", relay)));
        tags.extend([
            tag::tag("fee", self.fee_ppm),
            tag::tag("scheme", self.scheme),
            tag::tag("min_work", self.min_work),
        ]);
        EventBuilder::new(kind::POOL, &self.description).tags(tags)
    }

    /// Reads an event of kind 38470.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::POOL)?;
        let network = Network::from_core_arg(required(event, "d")?)
            .map_err(|error| DecodeError::tag("d", error))?;
        Ok(Self {
            network,
            name: required(event, "name")?.to_owned(),
            sv2: all(event, "sv2").map(endpoint).collect::<Result<_, _>>()?,
            mint: parsed(event, "mint")?,
            relays: all(event, "relay").map(relay).collect::<Result<_, _>>()?,
            fee_ppm: integer(event, "fee")?,
            scheme: parsed(event, "scheme")?,
            min_work: Work::new(integer(event, "min_work")?),
            description: event.content.clone(),
        })
    }
}

fn endpoint(values: &[String]) -> Result<Sv2Endpoint, DecodeError> {
    match values {
        [address, authority, ..] => {
            Ok(Sv2Endpoint { address: address.clone(), authority: authority.clone() })
        }
        _ => Err(DecodeError::tag("sv2", "needs host:port and an authority key")),
    }
}

fn relay(values: &[String]) -> Result<RelayUrl, DecodeError> {
    let url = values.first().map(String::as_str).unwrap_or_default();
    RelayUrl::parse(url).map_err(|error| DecodeError::tag("relay", error))
}
