//! Rates of a tenant: a bucket of tokens that fills with time.

use std::time::Duration;

use parking_lot::Mutex;

/// A rate, as a tenant's limits have it at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    /// Units a second.
    pub(super) per_second: f64,
    /// Units at once.
    pub(super) burst: u64,
}

/// Lets units through as a [`Rate`] says.
#[derive(Debug)]
pub(super) struct TokenBucket {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    /// Monotonic time `tokens` is of.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket, however large.
    pub(super) fn new(now: Duration) -> Self {
        Self { state: Mutex::new(State { tokens: f64::INFINITY, at: now }) }
    }

    /// Takes `units` out; when there are too few, takes none and says when there may be enough.
    pub(super) fn take(&self, units: u64, rate: Rate, now: Duration) -> Result<(), Duration> {
        let units = units as f64;
        let mut state = self.state.lock();
        let passed = now.saturating_sub(state.at).as_secs_f64();
        state.tokens = (state.tokens + passed * rate.per_second).min(rate.burst as f64);
        state.at = state.at.max(now);
        if units <= state.tokens {
            state.tokens -= units;
            return Ok(());
        }
        let missing = (units - state.tokens) / rate.per_second;
        Err(Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX).min(Duration::from_secs(60)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_with_time_up_to_the_burst() {
        let seconds = Duration::from_secs;
        let bucket = TokenBucket::new(seconds(5));
        let rate = Rate { per_second: 10.0, burst: 20 };
        assert_eq!(bucket.take(20, rate, seconds(5)), Ok(()));
        assert_eq!(bucket.take(5, rate, seconds(5)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(10, rate, seconds(6)), Ok(()));
        assert_eq!(bucket.take(21, rate, seconds(1000)), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(20, rate, seconds(1000)), Ok(()));
    }

    #[test]
    fn time_that_stands_still_fills_nothing() {
        let bucket = TokenBucket::new(Duration::from_secs(9));
        let rate = Rate { per_second: 1.0, burst: 1 };
        assert_eq!(bucket.take(1, rate, Duration::from_secs(8)), Ok(()));
        assert!(bucket.take(1, rate, Duration::from_secs(9)).is_err());
    }

    #[test]
    fn a_changed_rate_counts_at_once() {
        let seconds = Duration::from_secs;
        let bucket = TokenBucket::new(seconds(0));
        let (slow, fast) = (Rate { per_second: 1.0, burst: 10 }, Rate { per_second: 100.0, burst: 1000 });
        assert_eq!(bucket.take(10, slow, seconds(0)), Ok(()));
        assert_eq!(bucket.take(500, fast, seconds(5)), Ok(()));
        assert_eq!(bucket.take(1, fast, seconds(5)), Err(Duration::from_millis(10)));
        assert_eq!(bucket.take(11, slow, seconds(1000)), Err(seconds(1)));
    }
}
