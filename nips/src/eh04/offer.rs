//! Kind 38480: an offer of ehash for sats, or of sats for ehash.

use std::fmt;
use std::str::FromStr;

use cashu::PublicKey as MintKey;
use nostr::{Event, EventBuilder, EventId, PublicKey, Tag, Timestamp};

use super::{DecodeError, OnEpoch, SelfTrade, Side, TimeInForce};
use crate::tag::{self, all, decimal, expect_kind, integer, optional, parsed, required};
use crate::{EpochId, Lots, Price, kind};

/// Bytes of an offer's `d` and `group`.
pub const MAX_NAME: usize = 64;
/// Ways of payment that one offer or market names.
pub const MAX_WAYS: usize = 32;

/// Where offers of one epoch's ehash are matched: the `a` tag
/// `38481:<exchange>:<unit>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MarketId {
    /// The exchange's key.
    pub exchange: PublicKey,
    /// The epoch whose ehash is traded.
    pub epoch: EpochId,
}

/// Not the address of a market.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 38481:<exchange's key in hex>:<ehash unit>")]
pub struct MarketIdError;

impl fmt::Display for MarketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", kind::MARKET.as_u16(), self.exchange.to_hex(), self.epoch)
    }
}

impl FromStr for MarketId {
    type Err = MarketIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.strip_prefix("38481:").and_then(|rest| rest.split_once(':'));
        let (exchange, epoch) = parts.ok_or(MarketIdError)?;
        Ok(Self {
            exchange: tag::key("a", exchange).map_err(|_| MarketIdError)?,
            epoch: epoch.parse().map_err(|_| MarketIdError)?,
        })
    }
}

/// A way to pay the sats of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// Sat tokens of the mint with this key (NUT-06 `pubkey`).
    Cashu(MintKey),
    /// Lightning, by Nostr Wallet Connect (NIP-47).
    Nwc,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cashu(mint) => write!(f, "cashu:{}", mint.to_hex()),
            Self::Nwc => f.write_str("nwc"),
        }
    }
}

impl FromStr for Way {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mint = match text.strip_prefix("cashu:") {
            None if text == "nwc" => return Ok(Self::Nwc),
            None => return Err("a way of payment is cashu:<mint key in hex> or nwc"),
            Some(mint) => mint,
        };
        // One mint has one spelling, since relays and people compare the text.
        let key = MintKey::from_hex(mint).ok().filter(|key| key.to_hex() == mint);
        key.map(Self::Cashu).ok_or("cashu: needs a mint's key in lower-case hex")
    }
}

impl serde::Serialize for Way {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Way {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a trader's event of kind 38480 says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Names the offer among the trader's: 1 to 64 bytes, best random.
    pub d: String,
    /// Where it is to be matched.
    pub market: MarketId,
    /// The event that this one replaces; it must be the one that stands.
    pub prev: Option<EventId>,
    /// What is offered; `None` cancels the offer.
    pub terms: Option<Terms>,
}

/// What is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Whether the trader buys or sells ehash.
    pub side: Side,
    /// Limit; `None` takes any price, and only at once (`ioc`, `fok`).
    pub price: Option<Price>,
    /// Lots in all, with what was filled before an amendment.
    pub lots: Lots,
    /// Least lots of one fill.
    pub min: Lots,
    /// Most lots of one fill.
    pub max: Lots,
    /// How long it stays.
    pub tif: TimeInForce,
    /// Ways of payment that the trader takes or has; at least one.
    pub pay: Vec<Way>,
    /// What becomes of it when the epoch closes.
    pub on_epoch: OnEpoch,
    /// Offers of other keys with the same name never match this one.
    pub group: Option<String>,
    /// What happens where it would match an offer of its own key.
    pub self_trade: SelfTrade,
    /// When it ends by itself (NIP-40).
    pub expires: Option<Timestamp>,
}

impl Terms {
    /// Terms with every choice as an absent tag reads.
    pub fn new(side: Side, price: Option<Price>, lots: Lots, pay: Vec<Way>) -> Self {
        Self {
            side,
            price,
            lots,
            min: Lots::new(1),
            max: lots,
            tif: if price.is_some() { TimeInForce::Gtc } else { TimeInForce::Ioc },
            pay,
            on_epoch: OnEpoch::Cancel,
            group: None,
            self_trade: SelfTrade::CancelNew,
            expires: None,
        }
    }

    /// Whether these terms can be offered at all.
    fn check(self) -> Result<Self, DecodeError> {
        let at_once = matches!(self.tif, TimeInForce::Ioc | TimeInForce::Fok);
        let wrong = if self.lots == Lots::ZERO {
            "qty must be 1 or more"
        } else if self.min == Lots::ZERO || self.min > self.max || self.max > self.lots {
            "min, max and qty must be 1 <= min <= max <= qty"
        } else if self.price == Some(Price::ZERO) {
            "price must be 1 or more"
        } else if self.price.is_none() && !at_once {
            "an offer without a price needs tif ioc or fok"
        } else if self.pay.is_empty() || self.pay.len() > MAX_WAYS {
            "an offer needs 1 to 32 pay tags"
        } else {
            return Ok(self);
        };
        Err(DecodeError::Contradiction(wrong))
    }
}

impl Offer {
    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let mut tags = vec![
            Tag::identifier(&self.d),
            tag::tag("a", self.market),
            tag::tag("x", self.market.exchange.to_hex()),
        ];
        tags.extend(self.prev.map(|prev| tag::tag("prev", prev.to_hex())));
        match &self.terms {
            None => tags.push(tag::tag("s", "canceled")),
            Some(terms) => terms.tags(&mut tags),
        }
        EventBuilder::new(kind::OFFER, "").tags(tags)
    }

    /// Reads an event of kind 38480.
    ///
    /// Errors where a tag is missing, repeated or malformed, or the terms
    /// contradict each other.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::OFFER)?;
        let market: MarketId = parsed(event, "a")?;
        if required(event, "x")? != market.exchange.to_hex() {
            return Err(DecodeError::Contradiction("x and a name different exchanges"));
        }
        let canceled = match optional(event, "s")? {
            None | Some("open") => false,
            Some("canceled") => true,
            Some(_) => return Err(DecodeError::tag("s", "must be open or canceled")),
        };
        Ok(Self {
            d: name(required(event, "d")?, "d")?,
            market,
            prev: optional(event, "prev")?.map(|prev| tag::event_id("prev", prev)).transpose()?,
            terms: if canceled { None } else { Some(Terms::decode(event)?) },
        })
    }
}

impl Terms {
    fn tags(&self, tags: &mut Vec<Tag>) {
        let plain = Self::new(self.side, self.price, self.lots, Vec::new());
        tags.push(tag::tag("s", "open"));
        tags.push(tag::tag("side", self.side));
        tags.extend(self.price.map(|price| tag::tag("price", price)));
        tags.push(tag::tag("qty", self.lots));
        tags.extend((self.min != plain.min).then(|| tag::tag("min", self.min)));
        tags.extend((self.max != plain.max).then(|| tag::tag("max", self.max)));
        tags.push(tag::tag("tif", self.tif));
        tags.extend(self.pay.iter().map(|way| tag::tag("pay", way)));
        tags.push(tag::tag("on_epoch", self.on_epoch));
        tags.extend(self.group.iter().map(|group| tag::tag("group", group)));
        let own = (self.self_trade != plain.self_trade).then(|| tag::tag("stp", self.self_trade));
        tags.extend(own);
        tags.extend(self.expires.map(Tag::expiration));
    }

    fn decode(event: &Event) -> Result<Self, DecodeError> {
        let lots = Lots::new(integer(event, "qty")?);
        let price = optional(event, "price")?.map(|price| decimal("price", price)).transpose()?;
        let pay = all(event, "pay").map(way).collect::<Result<_, _>>()?;
        let plain = Self::new(parsed(event, "side")?, price.map(Price::new), lots, pay);
        let number = |name| optional(event, name)?.map(|text| decimal(name, text)).transpose();
        let group = optional(event, "group")?.map(|group| name(group, "group")).transpose()?;
        let expires = optional(event, "expiration")?.map(|time| tag::seconds("expiration", time));
        Self {
            min: number("min")?.map_or(plain.min, Lots::new),
            max: number("max")?.map_or(plain.max, Lots::new),
            tif: optional_parsed(event, "tif")?.unwrap_or(plain.tif),
            on_epoch: optional_parsed(event, "on_epoch")?.unwrap_or(plain.on_epoch),
            group,
            self_trade: optional_parsed(event, "stp")?.unwrap_or(plain.self_trade),
            expires: expires.transpose()?,
            ..plain
        }
        .check()
    }
}

pub(super) fn way(values: &[String]) -> Result<Way, DecodeError> {
    let text = values.first().map(String::as_str).unwrap_or_default();
    text.parse().map_err(|error| DecodeError::tag("pay", error))
}

fn name(text: &str, tag: &'static str) -> Result<String, DecodeError> {
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(DecodeError::tag(tag, "must have 1 to 64 bytes"));
    }
    Ok(text.to_owned())
}

pub(super) fn optional_parsed<T>(
    event: &Event,
    name: &'static str,
) -> Result<Option<T>, DecodeError>
where
    T: FromStr<Err: fmt::Display>,
{
    let text = optional(event, name)?;
    text.map(|text| text.parse().map_err(|error| DecodeError::tag(name, error))).transpose()
}
