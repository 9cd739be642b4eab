//! Rates of a tenant: a bucket of tokens that fills with time.

use std::time::Duration;

use parking_lot::Mutex;

/// Lets `rate` units a second through, and `burst` at once.
#[derive(Debug)]
pub(super) struct TokenBucket {
    rate: f64,
    burst: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    /// Monotonic time `tokens` is of.
    at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub(super) fn new(rate: f64, burst: u64, now: Duration) -> Self {
        let burst = burst as f64;
        Self { rate, burst, state: Mutex::new(State { tokens: burst, at: now }) }
    }

    /// Takes `units` out; when there are too few, takes none and says when there may be enough.
    pub(super) fn take(&self, units: u64, now: Duration) -> Result<(), Duration> {
        let units = units as f64;
        let mut state = self.state.lock();
        let passed = now.saturating_sub(state.at).as_secs_f64();
        state.tokens = (state.tokens + passed * self.rate).min(self.burst);
        state.at = state.at.max(now);
        if units <= state.tokens {
            state.tokens -= units;
            return Ok(());
        }
        let missing = (units - state.tokens) / self.rate;
        Err(Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX).min(Duration::from_secs(60)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_with_time_up_to_the_burst() {
        let seconds = Duration::from_secs;
        let bucket = TokenBucket::new(10.0, 20, seconds(5));
        assert_eq!(bucket.take(20, seconds(5)), Ok(()));
        assert_eq!(bucket.take(5, seconds(5)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(10, seconds(6)), Ok(()));
        assert_eq!(bucket.take(21, seconds(1000)), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(20, seconds(1000)), Ok(()));
    }

    #[test]
    fn time_that_stands_still_fills_nothing() {
        let bucket = TokenBucket::new(1.0, 1, Duration::from_secs(9));
        assert_eq!(bucket.take(1, Duration::from_secs(8)), Ok(()));
        assert!(bucket.take(1, Duration::from_secs(9)).is_err());
    }
}
