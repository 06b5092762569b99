//! Kind 8481: two offers that met, and the terms that both are bound to.

use bitcoin::hashes::{Hash, sha256};
use nostr::{Event, EventBuilder, EventId, PublicKey, Tag, TagKind, Timestamp};
use serde_json::json;

use super::DecodeError;
use crate::eh04::{MarketId, Side, Way};
use crate::tag::{self, all, decimal, expect_kind, integer, parsed, required};
use crate::{HashUnits, Lots, Millis, Msats, Price, Sats, kind};

/// One side of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// Id of the offer's event.
    pub offer: EventId,
    /// Its author.
    pub trader: PublicKey,
    /// What it owes the exchange by its published rules.
    pub fee: Msats,
}

/// Two offers that met. What it says follows from the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// Sequence of the entry that brought it about.
    pub seq: u64,
    /// Its number among the matches of that entry, from 0.
    pub index: u32,
    /// The market; its exchange is the event's author.
    pub market: MarketId,
    /// The offer that stood.
    pub maker: Leg,
    /// The offer that came.
    pub taker: Leg,
    /// What the taker does.
    pub taker_side: Side,
    /// Price of one lot.
    pub price: Price,
    /// Lots that change hands.
    pub lots: Lots,
    /// Units of ehash in those lots.
    pub units: HashUnits,
    /// Ways of payment that both have.
    pub pay: Vec<Way>,
    /// The entry's time, from which the deadlines of the settlement count.
    pub at: Millis,
}

impl Match {
    /// What the buyer pays: price × lots.
    ///
    /// Errors where that exceeds 64 bits; no exchange lets such offers meet.
    pub fn msats(&self) -> Result<Msats, DecodeError> {
        self.price.of(self.lots).map_err(|error| DecodeError::tag("price", error))
    }

    /// The side that gives ehash.
    pub fn seller(&self) -> &Leg {
        if self.taker_side == Side::Sell { &self.taker } else { &self.maker }
    }

    /// The side that pays sats.
    pub fn buyer(&self) -> &Leg {
        if self.taker_side == Side::Sell { &self.maker } else { &self.taker }
    }

    /// SHA-256 of all that both traders are bound to, in the order of EH-05.
    pub fn terms(&self) -> Result<[u8; 32], DecodeError> {
        let (seller, buyer) = (self.seller(), self.buyer());
        let ways: Vec<String> = self.pay.iter().map(Way::to_string).collect();
        let msats = self.msats()?;
        let terms = json!([
            "EH-05 terms",
            self.market.to_string(),
            seller.offer.to_hex(),
            buyer.offer.to_hex(),
            seller.trader.to_hex(),
            buyer.trader.to_hex(),
            self.price.to_string(),
            self.lots.to_string(),
            self.units.to_string(),
            msats.to_string(),
            msats.in_sats().to_string(),
            seller.fee.to_string(),
            buyer.fee.to_string(),
            ways,
            self.at.to_string(),
        ]);
        Ok(sha256::Hash::hash(terms.to_string().as_bytes()).to_byte_array())
    }

    /// The event, without signature.
    ///
    /// Errors as [`Match::msats`] does.
    pub fn encode(&self) -> Result<EventBuilder, DecodeError> {
        let (msats, terms) = (self.msats()?, hex::encode(self.terms()?));
        let several = |name, values: [String; 3]| Tag::custom(TagKind::custom(name), values);
        let offer = |leg: &Leg, role: &str| {
            several("e", [leg.offer.to_hex(), String::new(), role.to_owned()])
        };
        let mut tags = vec![
            tag::tag("n", self.seq),
            tag::tag("i", self.index),
            tag::tag("a", self.market),
            offer(&self.maker, "maker"),
            offer(&self.taker, "taker"),
            tag::tag("p", self.maker.trader.to_hex()),
            tag::tag("p", self.taker.trader.to_hex()),
            tag::tag("side", self.taker_side),
            tag::tag("price", self.price),
            tag::tag("qty", self.lots),
            tag::tag("units", self.units),
            tag::tag("msat", msats),
            tag::tag("sat", msats.in_sats()),
            Tag::custom(
                TagKind::custom("fee"),
                [self.maker.fee.to_string(), self.taker.fee.to_string()],
            ),
            tag::tag("at", self.at),
            tag::tag("terms", terms),
        ];
        tags.extend(self.pay.iter().map(|way| tag::tag("pay", way)));
        let at = Timestamp::from(self.at.get() / 1000);
        Ok(EventBuilder::new(kind::MATCH, "").tags(tags).custom_created_at(at).allow_self_tagging())
    }

    /// Reads an event of kind 8481.
    ///
    /// Errors where its sums or its terms hash do not follow from the rest, or
    /// the market is another exchange's than the author.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::MATCH)?;
        let (maker, taker) = legs(event)?;
        let pay = all(event, "pay").map(|values| {
            let text = values.first().map(String::as_str).unwrap_or_default();
            text.parse().map_err(|error| DecodeError::tag("pay", error))
        });
        let found = Self {
            seq: integer(event, "n")?,
            index: integer(event, "i")?,
            market: parsed(event, "a")?,
            maker,
            taker,
            taker_side: parsed(event, "side")?,
            price: Price::new(integer(event, "price")?),
            lots: Lots::new(integer(event, "qty")?),
            units: HashUnits::new(integer(event, "units")?),
            pay: pay.collect::<Result<_, _>>()?,
            at: Millis::new(integer(event, "at")?),
        };
        let msats = found.msats()?;
        let said = (Msats::new(integer(event, "msat")?), Sats::new(integer(event, "sat")?));
        let contradiction = if found.market.exchange != event.pubkey {
            "the market is another exchange's than the author"
        } else if event.created_at.as_secs() != found.at.get() / 1000 {
            "created_at is not at in seconds"
        } else if found.maker.trader == found.taker.trader {
            "a trader does not meet himself"
        } else if found.lots == Lots::ZERO || found.pay.is_empty() {
            "a match has a lot and a way of payment at least"
        } else if said != (msats, msats.in_sats()) {
            "msat or sat is not price times qty"
        } else if required(event, "terms")? != hex::encode(found.terms()?) {
            "terms is not the hash of the match's terms"
        } else {
            return Ok(found);
        };
        Err(DecodeError::Contradiction(contradiction))
    }
}

/// Maker and taker, from the tags `e`, `p` and `fee` in that order.
fn legs(event: &Event) -> Result<(Leg, Leg), DecodeError> {
    let first = |values: &[String]| values.first().cloned().unwrap_or_default();
    let offers: Vec<String> = all(event, "e").map(first).collect();
    let traders: Vec<String> = all(event, "p").map(first).collect();
    required(event, "fee")?;
    let fees = all(event, "fee").next().unwrap_or_default();
    let ([maker, taker], [maker_key, taker_key], [maker_fee, taker_fee]) =
        (offers.as_slice(), traders.as_slice(), fees)
    else {
        return Err(DecodeError::Contradiction("e, p and fee must name maker and taker"));
    };
    let leg = |offer: &str, trader: &str, fee: &str| {
        Ok(Leg {
            offer: tag::event_id("e", offer)?,
            trader: tag::key("p", trader)?,
            fee: Msats::new(decimal("fee", fee)?),
        })
    };
    Ok((leg(maker, maker_key, maker_fee)?, leg(taker, taker_key, taker_fee)?))
}
