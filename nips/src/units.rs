//! Integer units. Fields are private, arithmetic is checked, and a conversion
//! is named and exact, or an error.

use std::fmt;

use bitcoin::Target;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Arithmetic that would leave a unit's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// A sum above the largest value of the unit.
    #[error("{0} overflow")]
    Overflow(&'static str),
    /// A difference below zero.
    #[error("{0} below zero")]
    Underflow(&'static str),
    /// Work bits outside 0 to 100.
    #[error("work bits must be 0 to {max}, not {0}", max = WorkBits::MAX)]
    WorkBits(u8),
    /// A target so hard that its work does not fit; no hash can meet it.
    #[error("target is too hard to be a share's")]
    TargetTooHard,
}

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($int:ty), $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($int);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);

            #[doc = concat!("That many ", $what, ".")]
            pub const fn new(value: $int) -> Self {
                Self(value)
            }

            #[doc = concat!("The number of ", $what, ".")]
            pub const fn get(self) -> $int {
                self.0
            }

            /// Sum, or [`UnitError::Overflow`].
            pub fn checked_add(self, other: Self) -> Result<Self, UnitError> {
                self.0.checked_add(other.0).map(Self).ok_or(UnitError::Overflow($what))
            }

            /// Difference, or [`UnitError::Underflow`].
            pub fn checked_sub(self, other: Self) -> Result<Self, UnitError> {
                self.0.checked_sub(other.0).map(Self).ok_or(UnitError::Underflow($what))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{} ", $what), self.0)
            }
        }

        /// A decimal string: JavaScript truncates numbers above 2^53.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                decimal(&text).map(Self).ok_or_else(|| {
                    de::Error::custom(concat!("expected a decimal string of ", $what))
                })
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

/// A canonical decimal integer: digits only, no sign, no leading zero.
pub(crate) fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    let canonical =
        text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    canonical.then(|| text.parse().ok()).flatten()
}

unit!(
    /// Expected number of hashes that it takes to meet a target.
    ///
    /// A share is worth the work of the target that it was set, never that of
    /// the hash that it happened to find.
    Work(u128), "hashes"
);
unit!(
    /// Units of ehash. One unit of an epoch is 2^k hashes of work, with k the
    /// epoch's [`WorkBits`].
    HashUnits(u64), "ehash"
);
unit!(
    /// Satoshis.
    Sats(u64), "sats"
);
unit!(
    /// Thousandths of a satoshi.
    Msats(u64), "msats"
);

unit!(
    /// Lots: the steps in which a market trades, each of so many units of ehash.
    Lots(u32), "lots"
);
unit!(
    /// Price of one lot, in thousandths of a satoshi.
    Price(u64), "msats a lot"
);
unit!(
    /// Milliseconds of the Unix epoch, as the exchange's clock showed them.
    Millis(u64), "ms"
);

impl Price {
    /// What `lots` cost at this price, exactly.
    ///
    /// Errors where that exceeds 64 bits of msats, which is more than 8,000
    /// times all bitcoin.
    pub fn of(self, lots: Lots) -> Result<Msats, UnitError> {
        let msats = u128::from(self.0) * u128::from(lots.0);
        u64::try_from(msats).map(Msats).map_err(|_| UnitError::Overflow("msats"))
    }
}

impl Msats {
    /// Whole sats that pay for this, rounded up.
    pub fn in_sats(self) -> Sats {
        Sats(self.0.div_ceil(1000))
    }
}

impl Work {
    /// Expected hashes to meet `target`: 2^256 / (target + 1), as Bitcoin's
    /// chain work counts a block.
    ///
    /// Errors where that is 2^128 or more, which no miner can meet.
    pub fn of_target(target: Target) -> Result<Self, UnitError> {
        let bytes = target.to_work().to_be_bytes();
        let (high, low) = bytes.split_at(16);
        if high.iter().any(|&b| b != 0) {
            return Err(UnitError::TargetTooHard);
        }
        Ok(Self(low.iter().fold(0, |sum, &b| (sum << 8) | u128::from(b))))
    }
}

/// How much work one unit of an epoch's ehash stands for: 2^bits hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct WorkBits(u8);

impl WorkBits {
    /// 2^100 hashes a unit is beyond any epoch; more would only overflow.
    pub const MAX: u8 = 100;

    /// `bits` from 0 to [`Self::MAX`].
    pub fn new(bits: u8) -> Result<Self, UnitError> {
        if bits > Self::MAX {
            return Err(UnitError::WorkBits(bits));
        }
        Ok(Self(bits))
    }

    /// The exponent.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whole units that `work` covers, rounded down; the rest stays credit.
    ///
    /// Errors where they exceed 64 bits.
    pub fn units_in(self, work: Work) -> Result<HashUnits, UnitError> {
        u64::try_from(work.0 >> self.0).map(HashUnits).map_err(|_| UnitError::Overflow("ehash"))
    }

    /// The work that `units` stand for, exactly.
    pub fn work_of(self, units: HashUnits) -> Result<Work, UnitError> {
        u128::from(units.0).checked_mul(1 << self.0).map(Work).ok_or(UnitError::Overflow("hashes"))
    }
}

impl<'de> Deserialize<'de> for WorkBits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u8::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::CompactTarget;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn difficulty_one_is_worth_two_to_the_32_and_a_little() {
        let target = Target::from_compact(CompactTarget::from_consensus(0x1d00_ffff));
        assert_eq!(Work::of_target(target), Ok(Work::new(4_295_032_833)));
    }

    #[test]
    fn the_easiest_target_is_worth_one_hash_and_an_impossible_one_nothing() {
        assert_eq!(Work::of_target(Target::from_le_bytes([0xff; 32])), Ok(Work::new(1)));
        assert_eq!(Work::of_target(Target::from_le_bytes([0; 32])), Err(UnitError::TargetTooHard));
    }

    #[test]
    fn a_fill_costs_price_times_lots_and_its_sats_are_rounded_up() {
        assert_eq!(Price::new(1_001).of(Lots::new(3)), Ok(Msats::new(3_003)));
        assert!(Price::new(u64::MAX).of(Lots::new(2)).is_err());
        assert_eq!(Msats::new(3_003).in_sats(), Sats::new(4));
        assert_eq!(Msats::new(3_000).in_sats(), Sats::new(3));
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert!(HashUnits::new(u64::MAX).checked_add(HashUnits::new(1)).is_err());
        assert!(Sats::ZERO.checked_sub(Sats::new(1)).is_err());
        assert!(WorkBits::new(101).is_err());
    }

    #[test]
    fn json_is_a_canonical_decimal_string() {
        assert_eq!(
            serde_json::to_string(&Work::new(u128::MAX)).unwrap(),
            format!("\"{}\"", u128::MAX)
        );
        for bad in ["1", "\"01\"", "\"-1\"", "\"+1\"", "\"\"", "\"1.0\"", "\"0x1\""] {
            assert!(serde_json::from_str::<HashUnits>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn units_and_remainder_make_the_whole(work in any::<u64>(), bits in 0u8..=64) {
            let (work, bits) = (Work::new(u128::from(work)), WorkBits::new(bits).unwrap());
            let covered = bits.work_of(bits.units_in(work).unwrap()).unwrap();
            let rest = work.checked_sub(covered).unwrap();
            prop_assert!(rest.get() < 1u128 << bits.get());
        }
    }
}
