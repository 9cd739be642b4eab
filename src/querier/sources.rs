//! Which source answers which part of a time range.

use skald_model::{QueryRange, TimestampMs};

use super::Config;

/// Who is asked about what. Where both are asked, the same samples may come twice; the merge keeps one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sources {
    /// What the ingesters are asked about.
    pub ingesters: Option<QueryRange>,
    /// What the object store is asked about.
    pub store: Option<QueryRange>,
    /// Whether the ingesters alone hold all that the store could answer.
    pub store_is_optional: bool,
}

/// The sources of `range` at wall time `now`.
///
/// Ingesters answer for samples at or after `now - query_ingesters_within`, the store for samples at or before
/// `now - query_store_after`; the first period is the larger one (checked with the settings), so every instant has a source.
/// Ranges are not clipped to these bounds: a source that is asked at all may as well answer all of it, and an answer must
/// not depend on where a bound falls inside it.
pub fn sources(config: &Config, range: QueryRange, now: TimestampMs) -> Sources {
    let ms = |d: std::time::Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
    let ingesters_from = config.query_ingesters_within.map_or(i64::MIN, |within| now.saturating_sub(ms(within)));
    // Without a delay the store is asked about the future, too: samples may be ahead of this process' clock.
    let store_up_to = match ms(config.query_store_after) {
        0 => i64::MAX,
        after => now.saturating_sub(after),
    };
    Sources {
        ingesters: (!range.is_empty() && range.max >= ingesters_from).then_some(range),
        store: (!range.is_empty() && range.min <= store_up_to).then_some(range),
        store_is_optional: range.min >= now.saturating_sub(ms(config.store_optional_within))
            && range.min >= ingesters_from,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: i64 = 3_600_000;
    const NOW: i64 = 1_000 * HOUR;

    #[track_caller]
    fn check(min: i64, max: i64, ingesters: bool, store: bool) {
        let config = Config {
            query_ingesters_within: Some(Duration::from_secs(13 * 3600)),
            query_store_after: Duration::from_secs(12 * 3600),
            ..Config::default()
        };
        let sources = sources(&config, QueryRange { min, max }, NOW);
        assert_eq!((sources.ingesters.is_some(), sources.store.is_some()), (ingesters, store), "{min}..{max}");
    }

    #[test]
    fn the_edges_belong_to_both() {
        check(NOW - HOUR, NOW, true, false);
        check(NOW - 12 * HOUR + 1, NOW, true, false);
        check(NOW - 12 * HOUR, NOW, true, true);
        check(NOW - 20 * HOUR, NOW - 13 * HOUR, true, true);
        check(NOW - 20 * HOUR, NOW - 13 * HOUR - 1, false, true);
        check(NOW + HOUR, NOW + 2 * HOUR, true, false);
        check(NOW, NOW - 1, false, false);
    }

    #[test]
    fn every_instant_has_a_source() {
        for config in [
            Config::default(),
            Config {
                query_ingesters_within: Some(Duration::from_secs(7200)),
                query_store_after: Duration::from_secs(7199),
                ..Config::default()
            },
        ] {
            for t in (NOW - 3 * HOUR..NOW + HOUR).step_by(499) {
                let sources = sources(&config, QueryRange { min: t, max: t }, NOW);
                assert!(sources.ingesters.is_some() || sources.store.is_some(), "{t}");
            }
        }
    }

    #[test]
    fn by_default_both_are_always_asked() {
        for t in [i64::MIN, 0, NOW, i64::MAX] {
            let range = QueryRange { min: t, max: t };
            assert_eq!(
                sources(&Config::default(), range, NOW),
                Sources { ingesters: Some(range), store: Some(range), store_is_optional: t >= NOW - 12 * HOUR }
            );
        }
    }
}
