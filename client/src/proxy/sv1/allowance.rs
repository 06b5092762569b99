//! How many lines a device may send.

use tokio::time::Instant;

/// Lines that a device may send: so many a second, and ten seconds' worth at
/// once.
pub(super) struct Allowance {
    per_second: f64,
    left: f64,
    since: Instant,
}

impl Allowance {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second * 10.0, since: now }
    }

    /// Whether one more may come.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.since).as_secs_f64() * self.per_second;
        self.left = (self.left + earned).min(self.per_second * 10.0) - 1.0;
        self.since = now;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ten_seconds_worth_at_once_and_then_as_many_as_time_brings() {
        let now = Instant::now();
        let mut allowance = Allowance::new(5, now);
        assert_eq!((0..100).filter(|_| allowance.take(now)).count(), 50);
        let later = now + Duration::from_secs(60);
        assert_eq!((0..1_000).filter(|_| allowance.take(later)).count(), 50);
    }
}
