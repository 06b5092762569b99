//! When each step has to be done, counted from the match.

use crate::Millis;

/// The settlement's clock, in seconds after the match's `at`.
///
/// [`Timing::EH06`] is what the draft says; two traders that use others do not
/// come to agree on a lock. Others serve tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Step 1: both have told their keys.
    pub agree: u64,
    /// Step 2: the sats are locked.
    pub sats: u64,
    /// Step 3: the ehash is locked.
    pub ehash: u64,
    /// The ehash can be taken back from here on.
    pub ehash_locktime: u64,
    /// The sats can be taken back from here on.
    pub sats_locktime: u64,
    /// No preimage is shown later than this long before a locktime.
    pub margin: u64,
    /// How far two clocks may be apart.
    pub skew: u64,
}

impl Timing {
    /// The draft's.
    pub const EH06: Self = Self {
        agree: 60,
        sats: 120,
        ehash: 240,
        ehash_locktime: 15 * 60,
        sats_locktime: 90 * 60,
        margin: 120,
        skew: 60,
    };

    /// When something due `after` seconds after a match at `at` is due, in seconds
    /// of the Unix epoch.
    pub fn of(at: Millis, after: u64) -> u64 {
        (at.get() / 1000).saturating_add(after)
    }

    /// Locktime of the ehash.
    pub fn ehash_until(&self, at: Millis) -> u64 {
        Self::of(at, self.ehash_locktime)
    }

    /// Locktime of the sats.
    pub fn sats_until(&self, at: Millis) -> u64 {
        Self::of(at, self.sats_locktime)
    }

    /// From here on the buyer must not show the preimage any more.
    pub fn claim_until(&self, at: Millis) -> u64 {
        self.ehash_until(at).saturating_sub(self.margin)
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::EH06
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sats_are_locked_first_and_longest() {
        let timing = Timing::EH06;
        assert!(timing.agree < timing.sats && timing.sats < timing.ehash);
        assert!(timing.ehash + timing.margin < timing.ehash_locktime);
        assert!(timing.ehash_locktime + 10 * timing.margin < timing.sats_locktime);
        assert_eq!(timing.claim_until(Millis::new(10_999)), 10 + 780);
    }
}
