//! A miner's account: what was credited, what was issued. Pure arithmetic.

use std::collections::VecDeque;

use cdk::nuts::PublicKey as CashuKey;
use hashpit_nips::units::UnitError;
use hashpit_nips::{HashUnits, Work, WorkBits};

/// Largest amount that a keyset has a key for: 2^40 units. cdk sums amounts in
/// 64-bit signed integers, so that a few near 2^62 would break its totals.
pub const MAX_AMOUNT_BITS: u8 = 40;

/// One miner's totals in one epoch.
///
/// Invariant: `issued` units never stand for more work than `work`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Account {
    /// Shares credited.
    pub(crate) shares: u64,
    /// Work credited.
    pub(crate) work: Work,
    /// Units issued.
    pub(crate) issued: HashUnits,
    /// Batches issued; the number of the next one.
    pub(crate) batches: u64,
}

impl Account {
    pub(crate) fn credit(&mut self, work: Work) -> Result<(), UnitError> {
        self.work = self.work.checked_add(work)?;
        self.shares += 1;
        Ok(())
    }

    /// Whole units credited and not yet issued.
    ///
    /// Errors where the invariant is broken.
    pub(crate) fn claimable(&self, bits: WorkBits) -> Result<HashUnits, UnitError> {
        bits.units_in(self.work)?.checked_sub(self.issued)
    }

    /// Takes note of a batch of `units`.
    ///
    /// Errors, and changes nothing, where they exceed what is claimable.
    pub(crate) fn issue(&mut self, units: HashUnits, bits: WorkBits) -> Result<(), UnitError> {
        self.claimable(bits)?.checked_sub(units)?;
        self.issued = self.issued.checked_add(units)?;
        self.batches += 1;
        Ok(())
    }
}

/// What the ledger keeps in memory for a miner.
#[derive(Debug, Default)]
pub(crate) struct Miner {
    pub(crate) account: Account,
    /// Unused blanks, in the order of their arrival.
    pub(crate) blanks: VecDeque<CashuKey>,
    /// A batch is being signed; no second one is planned meanwhile.
    pub(crate) in_flight: bool,
}

/// Splits `units` into at most `slots` powers of two, largest first. What does
/// not fit is left for a later batch.
pub(crate) fn split(units: HashUnits, slots: usize) -> Vec<HashUnits> {
    let mut rest = units.get();
    let mut parts = Vec::new();
    while rest > 0 && parts.len() < slots {
        let bit = rest.ilog2().min(u32::from(MAX_AMOUNT_BITS));
        parts.push(HashUnits::new(1 << bit));
        rest -= 1 << bit;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_issued_that_was_not_credited() {
        let bits = WorkBits::new(10).unwrap();
        let mut account = Account::default();
        account.credit(Work::new(3 * 1024 + 5)).unwrap();
        assert_eq!(account.claimable(bits), Ok(HashUnits::new(3)));
        assert!(account.issue(HashUnits::new(4), bits).is_err());
        assert_eq!(account.batches, 0);
        account.issue(HashUnits::new(3), bits).unwrap();
        assert_eq!(account.claimable(bits), Ok(HashUnits::ZERO));
    }

    proptest! {
        #[test]
        fn parts_are_powers_of_two_that_never_exceed_the_whole(
            units in any::<u64>(), slots in 0usize..100
        ) {
            let parts = split(HashUnits::new(units), slots);
            prop_assert!(parts.len() <= slots);
            prop_assert!(parts.iter().all(|p| p.get().is_power_of_two() && p.get() <= 1 << 40));
            let sum: u64 = parts.iter().map(|part| part.get()).sum();
            prop_assert!(sum <= units);
            if units < 1 << 41 && slots >= 41 {
                prop_assert_eq!(sum, units);
            }
        }
    }
}
