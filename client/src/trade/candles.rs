//! Prices over time, from completed matches. A match counts at the time at which its
//! offers met, for then its price was agreed; so what is an hour and a half old, and
//! younger, may still grow. Integers only.

use std::collections::BTreeMap;

use hashpit_nips::eh05::{LastTrade, Match};
use hashpit_nips::{EpochId, Msats, Price};
use nostr_sdk::Timestamp;
use serde::Serialize;

use super::{Tape, Trade};

/// What was traded in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Candle {
    /// When it begins.
    pub at: Timestamp,
    /// The first price, of a lot.
    pub open: Price,
    /// The highest.
    pub high: Price,
    /// The lowest.
    pub low: Price,
    /// The last.
    pub close: Price,
    /// Lots that changed hands.
    pub lots: u64,
    /// What was paid for them.
    pub msats: Msats,
    /// Completed matches.
    pub trades: u64,
}

/// A market's last price, and what was traded there in 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ticker {
    /// The market.
    #[serde(rename = "unit")]
    pub epoch: EpochId,
    /// Its newest match that was completed.
    pub last: Option<LastTrade>,
    /// The day, as one candle; none if nothing was traded.
    pub day: Option<Candle>,
    /// Since when that is whole.
    pub since: Timestamp,
}

impl Candle {
    fn of(at: Timestamp, trade: &Trade) -> Self {
        let price = trade.terms.price;
        let (lots, msats) =
            (trade.terms.lots.get().into(), trade.terms.msats().unwrap_or_default());
        Self { at, open: price, high: price, low: price, close: price, lots, msats, trades: 1 }
    }

    /// Adds a later one.
    fn add(&mut self, later: &Self) {
        self.high = self.high.max(later.high);
        self.low = self.low.min(later.low);
        self.close = later.close;
        self.lots = self.lots.saturating_add(later.lots);
        let most = Msats::new(u64::MAX);
        self.msats = self.msats.checked_add(later.msats).unwrap_or(most);
        self.trades += later.trades;
    }

    /// Candles of trades, which are in their order; oldest first. A period that began
    /// before `since`, from when on all trades are known, is left out.
    pub(super) fn all(trades: &[Trade], since: Timestamp, every: u64) -> Vec<Self> {
        let every = every.max(1);
        let mut candles: BTreeMap<u64, Self> = BTreeMap::new();
        for trade in trades {
            let begun = trade.terms.at.get() / 1000 / every * every;
            let one = Self::of(Timestamp::from(begun), trade);
            let whole = begun >= since.as_secs();
            match candles.get_mut(&begun) {
                Some(candle) => candle.add(&one),
                None if whole => drop(candles.insert(begun, one)),
                None => {}
            }
        }
        candles.into_values().collect()
    }
}

impl Ticker {
    pub(super) fn of(epoch: EpochId, shown: Option<LastTrade>, tape: &Tape) -> Self {
        let trades = tape.trades.iter().filter(|trade| trade.terms.market.epoch == epoch);
        let mut day: Option<Candle> = None;
        let mut last = None;
        for trade in trades {
            let one = Candle::of(tape.since, trade);
            day = Some(day.map_or(one, |mut day| {
                day.add(&one);
                day
            }));
            let &Match { price, lots, at, .. } = &trade.terms;
            last = Some(LastTrade { price, lots, at });
        }
        // The tape may be ahead of the newest checkpoint.
        let newer = last.filter(|last| shown.is_none_or(|shown| shown.at <= last.at));
        Self { epoch, last: newer.or(shown), day, since: tape.since }
    }
}

#[cfg(test)]
mod tests {
    use hashpit_nips::{Lots, Millis};
    use nostr_sdk::Keys;

    use super::super::reputation::tests::trade;
    use super::*;

    /// Trades of so many lots at a price, at these milliseconds.
    fn tape(of: &[(u64, u64, u32)]) -> Vec<Trade> {
        let [one, other] = [1, 2].map(|_| Keys::generate().public_key());
        let trades = of.iter().zip(1..).map(|(&(at, price, lots), number)| {
            let mut trade = trade(number, one, other);
            trade.terms.at = Millis::new(at);
            (trade.terms.price, trade.terms.lots) = (Price::new(price), Lots::new(lots));
            trade
        });
        trades.collect()
    }

    #[test]
    fn a_candle_has_its_periods_first_last_highest_and_lowest_price() {
        let trades = tape(&[
            (59_999, 5, 1),
            (60_000, 10, 2),
            (61_000, 30, 1),
            (90_000, 7, 4),
            (119_999, 12, 1),
            (240_000, 11, 1),
        ]);
        let candles = Candle::all(&trades, Timestamp::from(0), 60);
        let begun: Vec<_> = candles.iter().map(|candle| candle.at.as_secs()).collect();
        assert_eq!(begun, [0, 60, 240], "a period without trades has no candle");
        let [open, high, low, close] = [10, 30, 7, 12].map(Price::new);
        let (at, msats) = (Timestamp::from(60), Msats::new(20 + 30 + 28 + 12));
        assert_eq!(candles[1], Candle { at, open, high, low, close, lots: 8, msats, trades: 4 });
        let whole = Candle::all(&trades, Timestamp::from(61), 60);
        assert_eq!(whole.len(), 1, "a part of a period is none");
    }

    #[test]
    fn a_candle_of_all_bitcoin_twice_is_as_full_as_can_be() {
        let most = u64::from(u32::MAX) << 31;
        let trades = tape(&[(0, most, 2), (0, most, 2)]);
        assert_eq!(Candle::all(&trades, Timestamp::from(0), 1)[0].msats, Msats::new(u64::MAX));
    }

    #[test]
    fn the_last_price_is_of_the_newer_of_checkpoint_and_tape() {
        let trades = tape(&[(5_000, 10, 2), (6_000, 8, 1)]);
        let epoch = trades[0].terms.market.epoch;
        let tape = Tape { since: Timestamp::from(1), trades };
        let last = |at, price| {
            let (price, lots) = (Price::new(price), Lots::new(1));
            Some(LastTrade { price, lots, at: Millis::new(at) })
        };
        assert_eq!(Ticker::of(epoch, None, &tape).last, last(6_000, 8));
        assert_eq!(Ticker::of(epoch, last(4_000, 3), &tape).last, last(6_000, 8));
        let ticker = Ticker::of(epoch, last(7_000, 3), &tape);
        assert_eq!(ticker.last, last(7_000, 3));
        let day = ticker.day.unwrap();
        assert_eq!((day.high, day.low, day.lots), (Price::new(10), Price::new(8), 3));
        let other = EpochId { height: 99, ..epoch };
        let empty = Ticker::of(other, last(1, 2), &tape);
        assert_eq!((empty.last, empty.day), (last(1, 2), None));
    }
}
