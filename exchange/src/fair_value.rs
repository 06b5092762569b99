//! What ehash is worth, to be shown next to its price.
//!
//! Pure. Floats are fine here, and only here: nothing that this module says is
//! ever paid, matched or recorded.
//!
//! A pool that shares a block's reward among all work of an epoch is Rosenfeld's
//! *proportional pool* ("Analysis of Bitcoin Pooled Mining Reward Systems", 2011,
//! section 3). While the epoch is open, N hashes went into it, and the work until the
//! next block is exponential with mean D. A hash of it gets R / (N + T) for a T that
//! nobody knows yet, on average (R / D) · eˣ · E₁(x) with x = N / D. The intuitive
//! R / (N + D) is too low: 0.500 R / D instead of 0.596 R / D at x = 1.

use hashpit_nips::{HashUnits, Price, Sats, Work, WorkBits};

/// Hashes that one terahash a second makes in a day.
const HASHES_OF_TERAHASH_DAY: f64 = 86_400.0 * 1e12;
/// Blocks of 365 days at ten minutes each.
const BLOCKS_A_YEAR: f64 = 52_560.0;
/// Euler's γ.
const EULER_GAMMA: f64 = 0.577_215_664_901_532_9;

/// Why a value cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FairValueError {
    /// No block is expected ever, or at once.
    #[error("a block takes no work; give the expected hashes, network difficulty × 2^32")]
    NoDifficulty,
    /// The first hash of an epoch has no finite expected share.
    #[error("the epoch holds no work yet; count the work that is to be valued")]
    NoWork,
    /// There is no lot of nothing.
    #[error("a lot of no ehash has no value; give the market's lot")]
    EmptyLot,
    /// A risk or a rate that is no fraction.
    #[error("{0} must be at least 0 and less than 1, as a fraction")]
    NotAFraction(&'static str),
}

/// What takes from the value of an epoch whose block has been found. Fractions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Discounts {
    /// Chance that the block leaves the best chain: 0 once it is deep enough.
    pub orphan_risk: f64,
    /// What a year's waiting costs: 0.05 is five percent.
    pub yearly_rate: f64,
    /// Blocks until the reward can be spent: 100 just after it was found.
    pub blocks_to_maturity: u32,
}

impl Discounts {
    /// For an epoch that can be redeemed.
    pub const NONE: Self = Self { orphan_risk: 0.0, yearly_rate: 0.0, blocks_to_maturity: 0 };

    /// What is left of each sat.
    fn factor(self) -> Result<f64, FairValueError> {
        fraction("the orphan risk", self.orphan_risk)?;
        fraction("the yearly rate", self.yearly_rate)?;
        let years = f64::from(self.blocks_to_maturity) / BLOCKS_A_YEAR;
        Ok((1.0 - self.orphan_risk) * (1.0 + self.yearly_rate).powf(-years))
    }
}

/// Sats for each expected hash of work.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct FairValue(f64);

impl FairValue {
    /// Of an open epoch with `so_far` hashes in it, where a block pays `reward` to
    /// the miners and takes `block` hashes on average (network difficulty × 2^32).
    ///
    /// `so_far` counts the work that is to be valued, so it is never zero.
    pub fn of_open_epoch(reward: Sats, block: Work, so_far: Work) -> Result<Self, FairValueError> {
        let per_hash = of_a_fresh_hash(reward, block)?;
        if so_far == Work::ZERO {
            return Err(FairValueError::NoWork);
        }
        Ok(Self(per_hash * scaled_e1(hashes(so_far) / hashes(block))))
    }

    /// Of an epoch whose block has been found: `reward` among `total` hashes, less
    /// the `discounts`.
    pub fn of_closed_epoch(
        reward: Sats,
        total: Work,
        discounts: Discounts,
    ) -> Result<Self, FairValueError> {
        if total == Work::ZERO {
            return Err(FairValueError::NoWork);
        }
        Ok(Self(reward.get() as f64 / hashes(total) * discounts.factor()?))
    }

    /// What a price of a lot says that work is worth.
    pub fn implied_by(
        price: Price,
        lot: HashUnits,
        bits: WorkBits,
    ) -> Result<Self, FairValueError> {
        if lot == HashUnits::ZERO {
            return Err(FairValueError::EmptyLot);
        }
        Ok(Self(price.get() as f64 / 1000.0 / (lot.get() as f64 * unit(bits))))
    }

    /// Sats for one hash.
    pub fn sats_a_hash(self) -> f64 {
        self.0
    }

    /// Msats for one unit of ehash of 2^`bits` hashes.
    pub fn msats_a_unit(self, bits: WorkBits) -> f64 {
        self.0 * 1000.0 * unit(bits)
    }

    /// Msats for a lot, to be compared with a [`Price`].
    pub fn msats_a_lot(self, lot: HashUnits, bits: WorkBits) -> f64 {
        self.msats_a_unit(bits) * lot.get() as f64
    }

    /// As a hashprice: sats for what one terahash a second does in a day. A value
    /// for a difficulty-1 share (2^32 hashes) times 20,116,567.6.
    pub fn hashprice(self) -> f64 {
        self.0 * HASHES_OF_TERAHASH_DAY
    }
}

/// What mining earns on average without fees: sats for one terahash a second in a
/// day.
pub fn hashprice(reward: Sats, block: Work) -> Result<f64, FairValueError> {
    Ok(of_a_fresh_hash(reward, block)? * HASHES_OF_TERAHASH_DAY)
}

fn of_a_fresh_hash(reward: Sats, block: Work) -> Result<f64, FairValueError> {
    if block == Work::ZERO {
        return Err(FairValueError::NoDifficulty);
    }
    Ok(reward.get() as f64 / hashes(block))
}

fn fraction(what: &'static str, value: f64) -> Result<(), FairValueError> {
    // So that NaN is refused too.
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(FairValueError::NotAFraction(what)) }
}

fn hashes(work: Work) -> f64 {
    work.get() as f64
}

fn unit(bits: WorkBits) -> f64 {
    f64::from(bits.get()).exp2()
}

/// eˣ · E₁(x) for x > 0, to some 14 digits, as one: eˣ alone overflows above 709,
/// and E₁ alone is zero there.
fn scaled_e1(x: f64) -> f64 {
    if x <= 1.0 { x.exp() * e1_series(x) } else { scaled_e1_fraction(x) }
}

/// E₁(x) = −γ − ln x − Σ (−x)ᵏ / (k · k!) (Abramowitz and Stegun 5.1.11). For
/// x ≤ 1 no terms cancel, and twenty of them are enough.
fn e1_series(x: f64) -> f64 {
    let mut power = 1.0;
    let mut sum = -EULER_GAMMA - x.ln();
    for k in (1..=20).map(f64::from) {
        power *= -x / k;
        sum -= power / k;
    }
    sum
}

/// eˣ · E₁(x) = 1/(x+1 − 1²/(x+3 − 2²/(x+5 − …))) (Abramowitz and Stegun 5.1.22, its
/// even part), from the front by Lentz's method until it stands.
fn scaled_e1_fraction(x: f64) -> f64 {
    let mut b = x + 1.0;
    let (mut c, mut d) = (f64::MAX, 1.0 / b);
    let mut value = d;
    for i in (1..=200).map(f64::from) {
        b += 2.0;
        let a = -i * i;
        d = 1.0 / (a * d + b);
        c = b + a / c;
        value *= c * d;
        if (c * d - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const REWARD: Sats = Sats::new(312_500_000);
    /// Draws for one x, in as many chunks; 0.5 % is five standard deviations where
    /// they are widest, at x = 0.01.
    const DRAWS: u64 = 4_800_000;
    const CHUNKS: u64 = 4;

    fn close(value: f64, expected: f64, relative: f64) -> bool {
        (value / expected - 1.0).abs() <= relative
    }

    /// Table 5.1 of Abramowitz and Stegun: E₁(x) up to x = 2, x · eˣ · E₁(x) above.
    #[test]
    fn e1_is_the_tables() {
        let small = [
            (0.01, 4.037_929_577),
            (0.1, 1.822_923_958),
            (0.2, 1.222_650_544),
            (0.5, 0.559_773_595),
            (1.0, 0.219_383_934),
            (1.5, 0.100_019_582),
            (2.0, 0.048_900_511),
        ];
        for (x, e1) in small {
            let value = scaled_e1(x) * f64::exp(-x);
            assert!((value - e1).abs() < 1e-9, "E1({x}) is {value}");
        }
        for (x, scaled) in [(5.0, 0.852_110_881), (10.0, 0.915_633_339), (20.0, 0.954_370_910)] {
            let value = scaled_e1(x) * x;
            assert!((value - scaled).abs() < 1e-9, "{x} gives {value}");
        }
    }

    #[test]
    fn series_and_fraction_meet_and_neither_end_overflows() {
        assert!(close(1f64.exp() * e1_series(1.0), scaled_e1_fraction(1.0), 1e-13));
        for x in [700.0, 1e4, 1e12] {
            let asymptotic = (1.0 - 1.0 / x + 2.0 / (x * x)) / x;
            assert!(close(scaled_e1(x), asymptotic, 1e-7), "{x}");
        }
        let tiny: f64 = 1e-30;
        assert!(close(scaled_e1(tiny), -EULER_GAMMA - tiny.ln(), 1e-12));
    }

    /// SplitMix64, seeded: uniform in (0, 1].
    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON / 2.0
    }

    /// A pool of shares, a block in every 2^20 of them on average: what the share
    /// after `before` others gets of a reward of 1, times 2^20, summed over `draws`
    /// rounds.
    fn rounds(seed: u64, before: f64, draws: u64) -> f64 {
        const SHARES: f64 = (1 << 20) as f64;
        let miss = (-1.0 / SHARES).ln_1p();
        let mut state = seed;
        let round = |_| {
            let after = (uniform(&mut state).ln() / miss).floor();
            SHARES / (before + 1.0 + after)
        };
        (0..draws).map(round).sum()
    }

    #[test]
    fn a_simulated_pool_pays_what_is_computed() {
        for (n, x) in [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0].into_iter().enumerate() {
            let before = x * f64::from(1 << 20);
            let chunks: Vec<_> = (0..CHUNKS)
                .map(|chunk| {
                    let seed = 0xeca5_0000 + (n as u64) * CHUNKS + chunk;
                    thread::spawn(move || rounds(seed << 20, before, DRAWS / CHUNKS))
                })
                .collect();
            let sum: f64 = chunks.into_iter().map(|chunk| chunk.join().unwrap()).sum();
            let (mean, computed) = (sum / DRAWS as f64, scaled_e1(x));
            assert!(close(mean, computed, 0.005), "x = {x}: {mean} drawn, {computed} computed");
        }
    }

    #[test]
    fn an_open_epoch_is_worth_more_than_intuition_says() {
        let block = Work::new(1 << 70);
        let value = FairValue::of_open_epoch(REWARD, block, block).unwrap();
        let fresh = REWARD.get() as f64 / (1u128 << 70) as f64;
        assert!(close(value.sats_a_hash() / fresh, 0.596_347_362, 1e-9));
        let bits = WorkBits::new(40).unwrap();
        let unit = value.msats_a_unit(bits);
        assert!(close(unit, fresh * 0.596_347_362 * 1000.0 * 1_099_511_627_776.0, 1e-9));
        assert!(close(value.msats_a_lot(HashUnits::new(256), bits), unit * 256.0, 1e-15));
    }

    #[test]
    fn a_closed_epoch_shares_its_reward_less_what_waiting_and_risk_take() {
        let total = Work::new(1 << 60);
        let whole = FairValue::of_closed_epoch(REWARD, total, Discounts::NONE).unwrap();
        assert!(close(whole.sats_a_hash() * (1u64 << 60) as f64, 312_500_000.0, 1e-15));
        let year = Discounts { orphan_risk: 0.01, yearly_rate: 0.05, blocks_to_maturity: 52_560 };
        let less = FairValue::of_closed_epoch(REWARD, total, year).unwrap();
        assert!(close(less.sats_a_hash() / whole.sats_a_hash(), 0.99 / 1.05, 1e-12));
    }

    #[test]
    fn a_price_implies_a_hashprice() {
        // One sat for a difficulty-1 share.
        let bits = WorkBits::new(32).unwrap();
        let value = FairValue::implied_by(Price::new(1000), HashUnits::new(1), bits).unwrap();
        assert!(close(value.hashprice(), 20_116_567.6, 1e-8));
        assert_eq!(value.msats_a_lot(HashUnits::new(1), bits), 1000.0);
        // The network at difficulty 100 T with 3.125 BTC: 62.9 sat per TH/day.
        let block = Work::new(100_000_000_000_000 << 32);
        assert!(close(hashprice(REWARD, block).unwrap(), 62.864, 1e-4));
    }

    #[test]
    fn nonsense_is_refused() {
        let (work, one) = (Work::new(1), HashUnits::new(1));
        let open = FairValue::of_open_epoch;
        assert_eq!(open(REWARD, Work::ZERO, work), Err(FairValueError::NoDifficulty));
        assert_eq!(open(REWARD, work, Work::ZERO), Err(FairValueError::NoWork));
        assert_eq!(hashprice(REWARD, Work::ZERO), Err(FairValueError::NoDifficulty));
        let closed = FairValue::of_closed_epoch;
        assert_eq!(closed(REWARD, Work::ZERO, Discounts::NONE), Err(FairValueError::NoWork));
        for bad in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
            for discounts in [
                Discounts { orphan_risk: bad, ..Discounts::NONE },
                Discounts { yearly_rate: bad, ..Discounts::NONE },
            ] {
                let refused = closed(REWARD, work, discounts);
                assert!(matches!(refused, Err(FairValueError::NotAFraction(_))), "{bad}");
            }
        }
        let bits = WorkBits::new(0).unwrap();
        let implied = |lot| FairValue::implied_by(Price::new(1), lot, bits);
        assert_eq!(implied(HashUnits::ZERO), Err(FairValueError::EmptyLot));
        assert!(implied(one).is_ok());
    }
}
