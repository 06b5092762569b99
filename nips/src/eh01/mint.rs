//! Kind 38172: NIP-87's announcement of a Cashu mint, so that wallets that
//! know nothing of ehash find the mint.

use bitcoin::Network;
use cashu::{MintUrl, PublicKey};
use nostr::{Event, EventBuilder, Tag};

use super::DecodeError;
use crate::kind;
use crate::tag::{self, expect_kind, parsed, required};

/// A Cashu mint (NIP-87).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MintAnnouncement {
    /// The mint's public key, as NUT-06 `/v1/info` gives it.
    pub pubkey: PublicKey,
    /// Where the mint answers.
    pub url: MintUrl,
    /// NUTs that it supports.
    pub nuts: Vec<u16>,
    /// Bitcoin network that its tokens are worth something on.
    pub network: Network,
}

impl MintAnnouncement {
    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let nuts: Vec<String> = self.nuts.iter().map(u16::to_string).collect();
        EventBuilder::new(kind::CASHU_MINT, "").tags([
            Tag::identifier(self.pubkey.to_hex()),
            tag::tag("u", &self.url),
            tag::tag("nuts", nuts.join(",")),
            tag::tag("n", network_name(self.network)),
        ])
    }

    /// Reads an event of kind 38172.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::CASHU_MINT)?;
        let pubkey = PublicKey::from_hex(required(event, "d")?)
            .map_err(|error| DecodeError::tag("d", error))?;
        let nuts = required(event, "nuts")?.split(',').map(|nut| tag::decimal("nuts", nut));
        Ok(Self {
            pubkey,
            url: parsed(event, "u")?,
            nuts: nuts.collect::<Result<_, _>>()?,
            network: network(required(event, "n")?)?,
        })
    }
}

/// NIP-87 says `mainnet` where Bitcoin Core says `main`.
fn network_name(network: Network) -> &'static str {
    match network {
        Network::Bitcoin => "mainnet",
        other => other.to_core_arg(),
    }
}

fn network(name: &str) -> Result<Network, DecodeError> {
    let core = if name == "mainnet" { "main" } else { name };
    Network::from_core_arg(core).map_err(|error| DecodeError::tag("n", error))
}
