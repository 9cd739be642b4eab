//! What every [`Queryable`] has to do.

use std::future::poll_fn;
use std::sync::Arc;

use skald_model::{Columns, FloatHistogram, Labels, MatchOp, Matcher, QueryRange, stale_nan};

use super::block_on;
use crate::source::{Hints, Queryable, Select};

/// Runs the suite against sources that `make` fills with the given series. Panics where one breaks the contract.
///
/// Every sample of the given series has to be found again, bit for bit, native histograms as float histograms.
pub fn source_conformance(make: impl Fn(Vec<(Labels, Columns)>) -> Box<dyn Queryable>) {
    let all = series();
    let source = make(all.clone());
    let everything = vec![Matcher::new(MatchOp::Regex, "__name__", ".+").expect("a valid regex")];

    let found = read(&*source, everything.clone(), QueryRange { min: 0, max: 1_000_000 });
    assert!(found.windows(2).all(|w| w[0].0 < w[1].0), "series ascend by labels, and no label set occurs twice");
    same(&found, &all, QueryRange { min: 0, max: 1_000_000 });

    for range in [
        QueryRange { min: 30_000, max: 60_000 },
        QueryRange { min: 30_001, max: 59_999 },
        QueryRange { min: 30_000, max: 30_000 },
        QueryRange { min: 31_000, max: 32_000 },
        QueryRange { min: 900_000, max: 950_000 },
    ] {
        same(&read(&*source, everything.clone(), range), &all, range);
    }

    let check = |matchers: Vec<Matcher>, keep: &dyn Fn(&Labels) -> bool| {
        let range = QueryRange { min: 0, max: 1_000_000 };
        let want: Vec<_> = all.iter().filter(|(labels, _)| keep(labels)).cloned().collect();
        same(&read(&*source, matchers, range), &want, range);
    };
    let name = |value: &str| Matcher::equal("__name__", value);
    let regex = |op, label: &str, value: &str| Matcher::new(op, label, value).expect("a valid regex");
    check(vec![name("up")], &|l| l.metric_name() == Some("up"));
    check(vec![name("absent")], &|_| false);
    check(vec![name("up"), Matcher::equal("zone", "")], &|l| l.metric_name() == Some("up") && l.get("zone").is_none());
    check(vec![name("up"), regex(MatchOp::NotEqual, "zone", "a")], &|l| {
        l.metric_name() == Some("up") && l.get("zone") != Some("a")
    });
    check(vec![name("up"), regex(MatchOp::Regex, "zone", "a|b")], &|l| {
        l.metric_name() == Some("up") && matches!(l.get("zone"), Some("a" | "b"))
    });
    check(vec![name("up"), regex(MatchOp::NotRegex, "zone", "a|")], &|l| {
        l.metric_name() == Some("up") && matches!(l.get("zone"), Some(zone) if zone != "a")
    });

    // A source that is dropped in the middle must not disturb the next one.
    drop(source.select(Select {
        matchers: everything.clone(),
        range: QueryRange::ALL,
        shard: None,
        hints: Hints::default(),
    }));
    same(&read(&*source, everything.clone(), QueryRange { min: 0, max: 10 }), &all, QueryRange { min: 0, max: 10 });

    let empty = make(Vec::new());
    assert!(read(&*empty, everything, QueryRange { min: 0, max: 10 }).is_empty(), "no series, no batch");
}

/// Gauges with NaN and stale markers, counters, histograms, a series with one sample, label sets that are each other's
/// prefixes.
fn series() -> Vec<(Labels, Columns)> {
    let mut all = Vec::new();
    let mut add = |pairs: &[(&str, &str)], columns: Columns| {
        all.push((Labels::from_pairs(pairs.iter().copied()), columns));
    };
    for (i, zone) in ["a", "b", "c", ""].into_iter().enumerate() {
        for instance in 0..50 {
            let mut columns = Columns::default();
            for step in 0..20_i64 {
                columns.push_float(step * 15_000 + instance, (step * (i as i64 + 1)) as f64 + 0.25);
            }
            add(&[("__name__", "up"), ("instance", &format!("{instance}")), ("zone", zone)], columns);
        }
    }
    let mut odd = Columns::default();
    for (step, value) in [f64::NAN, -0.0, f64::INFINITY, stale_nan(), f64::MIN_POSITIVE, 1e300].into_iter().enumerate()
    {
        odd.push_float(30_000 + step as i64, value);
    }
    add(&[("__name__", "odd")], odd);
    let mut one = Columns::default();
    one.push_float(60_000, 1.0);
    add(&[("__name__", "up"), ("instance", "0"), ("zone", "a"), ("zzz", "longer")], one);
    let mut histograms = Columns::default();
    for step in 0..5_i64 {
        let count = (step + 1) as f64;
        let histogram = FloatHistogram {
            count,
            sum: 1.5 * count,
            positive_spans: vec![skald_model::Span { offset: 0, length: 1 }],
            positive_buckets: vec![count],
            ..FloatHistogram::default()
        };
        histograms.push_histogram(30_000 * step, Arc::new(histogram));
    }
    add(&[("__name__", "latency")], histograms);
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn read(source: &dyn Queryable, matchers: Vec<Matcher>, range: QueryRange) -> Vec<(Labels, Columns)> {
    let mut reader = source.select(Select { matchers, range, shard: None, hints: Hints::default() });
    block_on(async {
        let mut found = Vec::new();
        while let Some(batch) = poll_fn(|cx| reader.poll_batch(cx)).await.expect("the source does not fail") {
            assert!(!batch.is_empty(), "a batch holds at least one series");
            for i in 0..batch.len() {
                let mut columns = Columns::default();
                batch.decode(i, range, &mut columns).expect("the batch decodes");
                found.push((batch.labels(i).clone(), columns));
            }
        }
        found
    })
}

/// Series without a sample in the range may be found or not; everything else has to be there, bit for bit.
#[track_caller]
fn same(found: &[(Labels, Columns)], all: &[(Labels, Columns)], range: QueryRange) {
    let want: Vec<_> = all.iter().map(|(labels, columns)| (labels, cut(columns, range))).collect();
    let want: Vec<_> = want.into_iter().filter(|(_, columns)| !columns.is_empty()).collect();
    let found: Vec<_> = found.iter().filter(|(_, columns)| !columns.is_empty()).collect();
    let labels = |l: &Labels| l.to_string();
    assert_eq!(
        found.iter().map(|(l, _)| labels(l)).collect::<Vec<_>>(),
        want.iter().map(|(l, _)| labels(l)).collect::<Vec<_>>(),
        "series in {range:?}"
    );
    for ((labels, found), (_, want)) in found.iter().zip(&want) {
        assert_eq!(found.float_timestamps, want.float_timestamps, "{labels} in {range:?}");
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found.float_values), bits(&want.float_values), "{labels} in {range:?}");
        assert_eq!(found.histogram_timestamps, want.histogram_timestamps, "{labels} in {range:?}");
        for (found, want) in found.histograms.iter().zip(&want.histograms) {
            assert_eq!((found.count, found.sum, found.schema), (want.count, want.sum, want.schema), "{labels}");
            assert_eq!(found.positive_buckets, want.positive_buckets, "{labels}");
        }
    }
}

fn cut(columns: &Columns, range: QueryRange) -> Columns {
    let mut out = Columns::default();
    for (time, value) in columns.float_timestamps.iter().zip(&columns.float_values) {
        if range.contains(*time) {
            out.push_float(*time, *value);
        }
    }
    for (time, histogram) in columns.histogram_timestamps.iter().zip(&columns.histograms) {
        if range.contains(*time) {
            out.push_histogram(*time, Arc::clone(histogram));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemStorage;

    #[test]
    fn memory_conforms() {
        source_conformance(|series| Box::new(MemStorage::new(series)));
        source_conformance(|series| Box::new(MemStorage::new(series).with_batch_size(1).with_pending()));
    }
}
