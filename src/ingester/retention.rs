//! When an ingester may drop a block it has uploaded.

use std::time::Duration;

use skald_model::TimestampMs;

/// What is known of a block on the ingester's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shipped {
    /// When it was in the bucket, whole; `None` while it is not.
    pub uploaded_at: Option<TimestampMs>,
    /// When the first bucket index that was read here and lists it was made.
    pub listed_at: Option<TimestampMs>,
}

/// Whether nobody needs the ingester's copy of a block any more at wall time `now`.
///
/// The block is in the bucket for at least `local_retention`, a bucket index lists it, and that index is older than twice
/// the time after which every querier has read a newer one (`refresh_interval`), so that no querier is left that would
/// look for its samples here only.
pub fn may_drop(shipped: Shipped, now: TimestampMs, local_retention: Duration, refresh_interval: Duration) -> bool {
    let ms = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    let Some(uploaded_at) = shipped.uploaded_at else { return false };
    now.saturating_sub(uploaded_at) >= ms(local_retention) && is_served(shipped, now, refresh_interval)
}

/// Whether every querier knows that the bucket has a block: it is there, a bucket index lists it, and that is older than twice
/// the time after which every querier has read a newer one.
pub fn is_served(shipped: Shipped, now: TimestampMs, refresh_interval: Duration) -> bool {
    let refresh = i64::try_from(refresh_interval.as_millis()).unwrap_or(i64::MAX);
    let (Some(_), Some(listed_at)) = (shipped.uploaded_at, shipped.listed_at) else { return false };
    now.saturating_sub(listed_at) > refresh.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uploaded_at: Option<i64>, listed_at: Option<i64>, now: i64, expected: bool) {
        let shipped = Shipped { uploaded_at, listed_at };
        let (retention, refresh) = (Duration::from_millis(1000), Duration::from_millis(100));
        assert_eq!(may_drop(shipped, now, retention, refresh), expected, "{shipped:?} at {now}");
    }

    #[test]
    fn all_three_conditions_must_hold() {
        check(Some(0), Some(10), 1000, true);
        check(Some(0), Some(10), 999, false);
        check(Some(0), None, 9999, false);
        check(None, Some(10), 9999, false);
        check(Some(0), Some(800), 1000, false);
        check(Some(0), Some(799), 1000, true);
        // A clock set back drops nothing.
        check(Some(5000), Some(5000), 1000, false);
    }
}
