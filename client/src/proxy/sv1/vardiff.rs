//! A device's own target where the pool sets only one for all: a hash rate,
//! estimated by the library, and the target at which it finds as many shares as
//! are wanted. Floats, as the library's hash rates are; no work is counted here.

use bitcoin::Target;
use stratum_apps::stratum_core::channels_sv2::target::hash_rate_to_target;
use stratum_apps::stratum_core::channels_sv2::{Vardiff, VardiffState};

use crate::proxy::settings::Settings;

/// Below, no difficulty is set: it bounds the shares that a device can make.
const MIN_HASHRATE: f32 = 1_000.0;

/// See the module.
pub(super) struct LocalTarget {
    hashrate: f32,
    shares_per_minute: f32,
    state: Option<VardiffState>,
}

impl LocalTarget {
    pub(super) fn new(settings: &Settings) -> Self {
        let state = VardiffState::new_with_min(MIN_HASHRATE).ok();
        Self { hashrate: settings.hashrate, shares_per_minute: settings.shares_per_minute, state }
    }

    pub(super) fn target(&self) -> Target {
        let target = hash_rate_to_target(self.hashrate.into(), self.shares_per_minute.into());
        target.unwrap_or(Target::from_le_bytes([0xff; 32]))
    }

    pub(super) fn set_hashrate(&mut self, hashrate: f32) {
        self.hashrate = hashrate.max(MIN_HASHRATE);
    }

    pub(super) fn found_share(&mut self) {
        if let Some(state) = &mut self.state {
            state.increment_shares_since_last_update();
        }
    }

    /// Compares the rate of shares with the rate wanted; whether the target
    /// changed.
    pub(super) fn adjust(&mut self) -> bool {
        let (hashrate, target) = (self.hashrate, self.target());
        let Some(state) = &mut self.state else { return false };
        match state.try_vardiff(hashrate, &target, self.shares_per_minute) {
            Ok(Some(estimate)) => {
                self.hashrate = estimate;
                true
            }
            Ok(None) | Err(_) => false,
        }
    }
}
