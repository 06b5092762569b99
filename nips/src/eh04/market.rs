//! Kinds 38481 and 38482: the terms under which an exchange trades.

use cashu::MintUrl;
use nostr::{Event, EventBuilder, PublicKey, RelayUrl, Tag, TagKind};
use serde::{Deserialize, Serialize};

use super::offer::{MAX_WAYS, way};
use super::{DecodeError, MarketState, Way};
use crate::tag::{self, all, decimal, expect_kind, integer, optional, parsed, required};
use crate::{EpochId, HashUnits, Lots, Millis, Price, kind};

/// A way of payment, and where its mint answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payment {
    /// What offers name.
    pub way: Way,
    /// The mint's URL, for `cashu:` ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mint: Option<MintUrl>,
}

/// An exchange's rules. They stand in its journal, since what follows from an
/// offer follows from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Units of ehash in one lot.
    pub lot: HashUnits,
    /// Prices are multiples of this many msats a lot.
    pub tick: Price,
    /// Lots of one offer, at least.
    pub min_lots: Lots,
    /// Lots of one offer, at most.
    pub max_lots: Lots,
    /// Fee of the offer that stood, in parts per million of a fill's msats.
    pub maker_fee_ppm: u32,
    /// Fee of the offer that came, likewise.
    pub taker_fee_ppm: u32,
    /// Ways of payment, best first; 1 to 32.
    pub pay: Vec<Payment>,
    /// NIP-13 bits of a key's first event; none once one was taken.
    pub pow_bits: u8,
    /// Seconds that an event may be dated off the exchange's clock.
    pub max_drift_secs: u32,
    /// Events of one key in any minute by the exchange's clock.
    pub events_per_minute: u32,
    /// Offers of one key that stand at one time.
    pub offers_per_trader: u32,
    /// Offers that stand in one market.
    pub offers_per_market: u32,
    /// Commits of one key that wait for their offer.
    pub commits_per_trader: u32,
    /// Commits that a key may leave without their offer in one day.
    pub burnt_per_day: u32,
    /// Time for a commit's offer.
    pub reveal_ms: u32,
    /// Events that wait behind a commit in one market.
    pub deferred_per_market: u32,
    /// Events of one key that wait behind commits, over all markets.
    pub deferred_per_trader: u32,
    /// Standing offers that an incoming one looks at; it does not take what it
    /// has not found by then.
    pub makers_per_offer: u32,
    /// How long a market stands still when its epoch closes.
    pub halt_ms: u32,
    /// How long offers gather after that before one price clears them.
    pub auction_ms: u32,
}

impl Rules {
    /// Whether an exchange can keep these rules at all; what is wrong, if not.
    ///
    /// Within them lots, units and fees are reckoned without overflow.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let most = u64::from(u32::MAX);
        let mut ways: Vec<&Way> = self.pay.iter().map(|payment| &payment.way).collect();
        ways.sort();
        ways.dedup();
        if self.lot == HashUnits::ZERO || self.lot.get() > most {
            Err(("lot", "must be 1 to 4294967295"))
        } else if self.tick == Price::ZERO {
            Err(("tick", "must be 1 or more"))
        } else if self.min_lots == Lots::ZERO || self.min_lots > self.max_lots {
            Err(("min_lots", "must be 1 or more, and not more than max_lots"))
        } else if self.maker_fee_ppm > 1_000_000 || self.taker_fee_ppm > 1_000_000 {
            Err(("maker_fee_ppm", "fees must be 1000000 or less"))
        } else if ways.is_empty() || ways.len() > MAX_WAYS || ways.len() < self.pay.len() {
            Err(("pay", "name 1 to 32 ways of payment, each once"))
        } else {
            Ok(())
        }
    }

    /// Reads rules from an event's content.
    pub(crate) fn decode(content: &str) -> Result<Self, DecodeError> {
        let rules: Self = serde_json::from_str(content)
            .map_err(|error| DecodeError::Content(error.to_string()))?;
        match rules.check() {
            Ok(()) => Ok(rules),
            Err((rule, why)) => Err(DecodeError::Content(format!("{rule} {why}"))),
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            lot: HashUnits::new(1),
            tick: Price::new(1),
            min_lots: Lots::new(1),
            max_lots: Lots::new(u32::MAX),
            maker_fee_ppm: 0,
            taker_fee_ppm: 0,
            pay: vec![Payment { way: Way::Nwc, mint: None }],
            pow_bits: 16,
            max_drift_secs: 60,
            events_per_minute: 600,
            offers_per_trader: 200,
            offers_per_market: 100_000,
            commits_per_trader: 1,
            burnt_per_day: 5,
            reveal_ms: 2_000,
            deferred_per_market: 10_000,
            deferred_per_trader: 100,
            makers_per_offer: 100_000,
            halt_ms: 5_000,
            auction_ms: 30_000,
        }
    }
}

/// An exchange, and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeInfo {
    /// Name for people.
    pub name: String,
    /// Relays that it reads offers from and writes its journal to.
    pub relays: Vec<RelayUrl>,
    /// Pools whose epochs it trades.
    pub pools: Vec<PublicKey>,
    /// The rules that its journal's newest `rules` entry holds.
    pub rules: Rules,
}

impl ExchangeInfo {
    /// The `d` of every exchange's info.
    pub const D: &str = "exchange";

    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let mut tags = vec![Tag::identifier(Self::D), tag::tag("name", &self.name)];
        tags.extend(self.relays.iter().map(|relay| tag::tag("relay", relay)));
        tags.extend(self.pools.iter().map(|pool| Tag::public_key(*pool)));
        let rules = serde_json::to_string(&self.rules).expect("plain data is JSON");
        EventBuilder::new(kind::EXCHANGE, rules).tags(tags).allow_self_tagging()
    }

    /// Reads an event of kind 38482.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::EXCHANGE)?;
        if required(event, "d")? != Self::D {
            return Err(DecodeError::tag("d", "must be exchange"));
        }
        let relay = |values: &[String]| {
            let url = values.first().map(String::as_str).unwrap_or_default();
            RelayUrl::parse(url).map_err(|error| DecodeError::tag("relay", error))
        };
        Ok(Self {
            name: required(event, "name")?.to_owned(),
            relays: all(event, "relay").map(relay).collect::<Result<_, _>>()?,
            pools: all(event, "p")
                .map(|values| tag::key("p", values.first().map(String::as_str).unwrap_or_default()))
                .collect::<Result<_, _>>()?,
            rules: Rules::decode(&event.content)?,
        })
    }
}

/// One epoch's market.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Market {
    /// The epoch; its unit is the event's `d`.
    pub epoch: EpochId,
    /// The mint that honours its ehash.
    pub mint: MintUrl,
    /// Where it stands.
    pub state: MarketState,
    /// When a halt or an auction ends.
    pub until: Option<Millis>,
    /// Sequence of the journal's entry that brought this about.
    pub seq: u64,
    /// Units of ehash in one lot.
    pub lot: HashUnits,
    /// Prices are multiples of this.
    pub tick: Price,
    /// Fees of maker and taker, in parts per million.
    pub fee_ppm: (u32, u32),
    /// Ways of payment.
    pub pay: Vec<Payment>,
}

impl Market {
    /// The event, without time and signature.
    pub fn encode(&self) -> EventBuilder {
        let several = |name, values: Vec<String>| Tag::custom(TagKind::custom(name), values);
        let fees = vec![self.fee_ppm.0.to_string(), self.fee_ppm.1.to_string()];
        let mut tags = vec![
            Tag::identifier(self.epoch.to_string()),
            tag::tag("mint", &self.mint),
            tag::tag("state", self.state),
            tag::tag("n", self.seq),
            tag::tag("lot", self.lot),
            tag::tag("tick", self.tick),
            several("fee", fees),
        ];
        tags.extend(self.until.map(|until| tag::tag("until", until)));
        tags.extend(self.pay.iter().map(|payment| {
            let way = payment.way.to_string();
            several(
                "pay",
                std::iter::once(way).chain(payment.mint.as_ref().map(MintUrl::to_string)).collect(),
            )
        }));
        EventBuilder::new(kind::MARKET, "").tags(tags)
    }

    /// Reads an event of kind 38481.
    pub fn decode(event: &Event) -> Result<Self, DecodeError> {
        expect_kind(event, kind::MARKET)?;
        required(event, "fee")?;
        let [maker, taker] = all(event, "fee").next().unwrap_or_default() else {
            return Err(DecodeError::tag("fee", "needs the maker's and the taker's"));
        };
        let until = optional(event, "until")?.map(|until| decimal("until", until)).transpose()?;
        let market = Self {
            epoch: parsed(event, "d")?,
            mint: parsed(event, "mint")?,
            state: parsed(event, "state")?,
            until: until.map(Millis::new),
            seq: integer(event, "n")?,
            lot: HashUnits::new(integer(event, "lot")?),
            tick: Price::new(integer(event, "tick")?),
            fee_ppm: (decimal("fee", maker)?, decimal("fee", taker)?),
            pay: all(event, "pay").map(payment).collect::<Result<_, _>>()?,
        };
        market.check()?;
        Ok(market)
    }

    /// Terms that no rules allow are nobody's: who reckons by them would divide by
    /// nothing, or overflow.
    fn check(&self) -> Result<(), DecodeError> {
        let rules = Rules {
            lot: self.lot,
            tick: self.tick,
            maker_fee_ppm: self.fee_ppm.0,
            taker_fee_ppm: self.fee_ppm.1,
            pay: self.pay.clone(),
            ..Rules::default()
        };
        rules.check().map_err(|(rule, why)| {
            let tag = if rule == "maker_fee_ppm" { "fee" } else { rule };
            DecodeError::tag(tag, why)
        })
    }
}

fn payment(values: &[String]) -> Result<Payment, DecodeError> {
    let mint = values.get(1).map(|url| url.parse()).transpose();
    Ok(Payment { way: way(values)?, mint: mint.map_err(|error| DecodeError::tag("pay", error))? })
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    #[test]
    fn a_market_has_terms_that_rules_allow() {
        let keys = Keys::generate();
        let honest = Market {
            epoch: EpochId { pool: keys.public_key(), height: 840_000 },
            mint: "https://pool.example/ehash".parse().unwrap(),
            state: MarketState::Open,
            until: None,
            seq: 1,
            lot: HashUnits::new(1),
            tick: Price::new(1),
            fee_ppm: (0, 1_000_000),
            pay: vec![Payment { way: Way::Nwc, mint: None }],
        };
        let read =
            |market: &Market| Market::decode(&market.encode().sign_with_keys(&keys).unwrap());
        assert_eq!(read(&honest).unwrap(), honest);
        let changes: [fn(&mut Market); 5] = [
            |market| market.lot = HashUnits::ZERO,
            |market| market.lot = HashUnits::new(1 << 32),
            |market| market.tick = Price::ZERO,
            |market| market.fee_ppm.1 += 1,
            |market| market.pay.clear(),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut market = honest.clone();
            change(&mut market);
            assert!(read(&market).is_err(), "change {number}");
        }
    }
}
