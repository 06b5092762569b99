//! Times of addressable events. A relay keeps the newest of an address and,
//! within one second, the one with the lowest id: so each has to be a second
//! later than the one before.

use std::collections::HashMap;
use std::time::Duration;

use hashpit_nips::EpochId;
use nostr_sdk::Timestamp;
use tokio::time::Instant;

/// Least time between two events of one address.
const LEAST: Duration = Duration::from_secs(1);

/// The newest time of each market's addresses, which go together.
#[derive(Debug)]
pub(super) struct Stamps {
    floor: Timestamp,
    last: HashMap<EpochId, (Timestamp, Instant)>,
}

impl Stamps {
    /// All times will be later than `floor`.
    pub(super) fn new(floor: Timestamp) -> Self {
        Self { floor, last: HashMap::new() }
    }

    /// The first time that may be used.
    pub(super) fn first(&self) -> Timestamp {
        self.floor + 1
    }

    /// Whether a market may have an event now.
    pub(super) fn free(&self, market: &EpochId, now: Instant) -> bool {
        self.last.get(market).is_none_or(|(_, at)| now.duration_since(*at) >= LEAST)
    }

    /// The time of a market's next event, which is then used.
    pub(super) fn next(&mut self, market: EpochId) -> Timestamp {
        let last = self.last.get(&market).map_or(self.floor, |(stamp, _)| *stamp);
        let stamp = Timestamp::now().max(last + 1);
        self.last.insert(market, (stamp, Instant::now()));
        stamp
    }
}
