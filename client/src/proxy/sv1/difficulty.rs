//! Difficulty, as Stratum V1 sets it, and targets: exact, in integers.
//!
//! A device's target is that of difficulty 1, 0xffff × 2^208, divided by its
//! difficulty, a floating-point number. So that no device is ever set a harder
//! target than the pool's, a target becomes the largest difficulty of
//! [`DIGITS`] binary digits whose target is not below it: a few digits less
//! than a device computes with, which makes room for its rounding.

use bitcoin::Target;
use serde_json::{Number, Value};

/// Significant binary digits of a difficulty. A double has 53.
const DIGITS: u32 = 40;
/// Powers of two that are taken from a device: beyond, nobody can mine.
const EXPONENTS: std::ops::RangeInclusive<i32> = -90..=90;

/// `mantissa` × 2^`exponent`, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difficulty {
    mantissa: u64,
    exponent: i32,
}

impl Difficulty {
    /// The largest difficulty of so many digits whose target is at least
    /// `target`.
    pub(crate) fn of_target(target: Target) -> Self {
        let target = Wide::of_target(target);
        let quotient_bits = Wide::one_difficulty().bits() as i32 - target.bits().max(1) as i32 + 1;
        let exponent = quotient_bits - DIGITS as i32;
        let fits = |mantissa: u64| {
            let (mut product, mut one) = (target.times(mantissa), Wide::one_difficulty());
            match u32::try_from(exponent) {
                Ok(exponent) => product = product.shifted(exponent),
                Err(_) => one = one.shifted(exponent.unsigned_abs()),
            }
            product <= one
        };
        // Of a mantissa, binary digits are decided from the highest down.
        let mantissa = (0..=DIGITS).rev().fold(0, |mantissa, bit| {
            let tried = mantissa | 1 << bit;
            if fits(tried) { tried } else { mantissa }
        });
        Self { mantissa: mantissa.max(1), exponent }
    }

    /// A difficulty that a device named; `None` if nobody can mean it.
    pub(crate) fn of_number(number: f64) -> Option<Self> {
        if !(number.is_finite() && number > 0.0) {
            return None;
        }
        let bits = number.to_bits();
        let exponent = i32::try_from((bits >> 52) & 0x7ff).ok()? - 1_075;
        let mantissa = (bits & ((1 << 52) - 1)) | 1 << 52;
        // The mantissa's highest bit is the 53rd.
        EXPONENTS.contains(&(exponent + 52)).then_some(Self { mantissa, exponent })
    }

    /// The largest power of two that is no harder.
    pub(crate) fn power_of_two(self) -> Self {
        Self { mantissa: 1 << self.mantissa.ilog2(), exponent: self.exponent }
    }

    /// The easiest target that is as hard.
    pub(crate) fn target(self) -> Target {
        let one = Wide::one_difficulty();
        let quotient = match u32::try_from(self.exponent) {
            Ok(exponent) => one.shifted_down(exponent).divided(self.mantissa),
            Err(_) => one.shifted(self.exponent.unsigned_abs()).divided(self.mantissa),
        };
        quotient.to_target()
    }

    /// The number, exactly.
    pub(crate) fn number(self) -> f64 {
        self.mantissa as f64 * 2f64.powi(self.exponent)
    }

    /// As it goes to a device: without a point if it is whole, for parsers that
    /// stop there.
    pub(crate) fn json(self) -> Value {
        let number = self.number();
        if number.fract() == 0.0 && number < 2f64.powi(53) {
            return Value::from(number as u64);
        }
        Number::from_f64(number).map(Value::Number).unwrap_or_default()
    }
}

/// An integer of 512 bits, its lowest 64 first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wide([u64; 8]);

impl Wide {
    fn one_difficulty() -> Self {
        Self([0xffff, 0, 0, 0, 0, 0, 0, 0]).shifted(208)
    }

    fn of_target(target: Target) -> Self {
        let bytes = target.to_le_bytes();
        let mut limbs = [0; 8];
        for (limb, bytes) in limbs.iter_mut().zip(bytes.chunks_exact(8)) {
            *limb = bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        }
        Self(limbs)
    }

    /// The target, at most the easiest that there is.
    fn to_target(self) -> Target {
        if self.bits() > 256 {
            return Target::from_le_bytes([0xff; 32]);
        }
        let mut bytes = [0; 32];
        for (bytes, limb) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&limb.to_le_bytes());
        }
        Target::from_le_bytes(bytes)
    }

    fn bits(self) -> u32 {
        let highest = self.0.iter().rposition(|limb| *limb != 0);
        highest.map_or(0, |at| at as u32 * 64 + 64 - self.0[at].leading_zeros())
    }

    /// The product; its lowest 512 bits, which hold all of those made here.
    fn times(self, factor: u64) -> Self {
        let mut carry = 0;
        Self(self.0.map(|limb| {
            let product = u128::from(limb) * u128::from(factor) + carry;
            carry = product >> 64;
            product as u64
        }))
    }

    fn divided(self, divisor: u64) -> Self {
        let mut remainder = 0;
        let mut limbs = self.0;
        for limb in limbs.iter_mut().rev() {
            let dividend = remainder << 64 | u128::from(*limb);
            *limb = (dividend / u128::from(divisor)) as u64;
            remainder = dividend % u128::from(divisor);
        }
        Self(limbs)
    }

    fn shifted(self, by: u32) -> Self {
        let (limbs, bits) = ((by / 64) as usize, by % 64);
        Self(std::array::from_fn(|at| {
            let take = |at: Option<usize>| at.map_or(0, |at| self.0[at]);
            let low = take(at.checked_sub(limbs)) << bits;
            let high = take(at.checked_sub(limbs + 1)).checked_shr(64 - bits).unwrap_or(0);
            low | high
        }))
    }

    fn shifted_down(self, by: u32) -> Self {
        let (limbs, bits) = ((by / 64) as usize, by % 64);
        Self(std::array::from_fn(|at| {
            let take = |at: usize| self.0.get(at).copied().unwrap_or(0);
            take(at + limbs) >> bits | take(at + limbs + 1).checked_shl(64 - bits).unwrap_or(0)
        }))
    }
}

impl PartialOrd for Wide {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::CompactTarget;
    use proptest::prelude::*;

    use super::*;

    fn difficulty(number: f64) -> Difficulty {
        Difficulty::of_number(number).unwrap()
    }

    #[test]
    fn whole_difficulties_are_what_they_seem() {
        let one = Target::from_compact(CompactTarget::from_consensus(0x1d00_ffff));
        assert_eq!(Difficulty::of_target(one).json(), Value::from(1));
        assert_eq!(difficulty(1.0).target(), one);
        assert_eq!(Difficulty::of_target(difficulty(8192.0).target()).json(), Value::from(8192));
        assert_eq!(difficulty(1_000.0).power_of_two().json(), Value::from(512));
        assert_eq!(difficulty(0.3).power_of_two().json(), Value::from(0.25));
        assert_eq!(difficulty(2f64.powi(-80)).target(), Target::from_le_bytes([0xff; 32]));
    }

    #[test]
    fn numbers_without_sense_are_refused() {
        for number in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-300, f64::MIN_POSITIVE / 2.0] {
            assert_eq!(Difficulty::of_number(number), None, "{number}");
        }
    }

    proptest! {
        /// A device is never set a harder target than the pool's, nor one that
        /// is noticeably easier; and the number that goes over the wire is the
        /// one that was meant.
        #[test]
        fn a_device_finds_what_the_pool_takes(bytes in any::<[u8; 32]>(), zeros in 0usize..16) {
            let mut bytes = bytes;
            bytes[32 - zeros..].fill(0);
            prop_assume!(bytes[16..].iter().any(|byte| *byte != 0));
            let target = Target::from_le_bytes(bytes);
            let difficulty = Difficulty::of_target(target);
            prop_assert!(difficulty.target() >= target);
            let ratio = target.difficulty_float() / difficulty.number();
            prop_assert!((1.0 - 1e-9..1.0 + 1e-9).contains(&ratio), "{ratio}");
            let sent: f64 = difficulty.json().to_string().parse().unwrap();
            prop_assert_eq!(sent, difficulty.number());
            // What a device computes, in doubles.
            let device = f64::from(0xffff_u32) * 2f64.powi(208) / sent;
            let exact = bytes.iter().rev().fold(0.0, |sum, byte| sum * 256.0 + f64::from(*byte));
            prop_assert!(device >= exact || exact > 1e77);
            let rounded = difficulty.power_of_two();
            prop_assert!(rounded.target() >= difficulty.target());
            prop_assert!(rounded.number() > difficulty.number() / 2.0);
        }

        #[test]
        fn a_number_is_its_own_difficulty(number in 1e-20f64..1e20) {
            prop_assert_eq!(difficulty(number).number(), number);
        }
    }
}
