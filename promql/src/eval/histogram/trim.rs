//! The trim operators: `h </ x` keeps what lies below `x`, `h >/ x` what lies above.

use std::sync::Arc;

use skald_model::{FloatHistogram, Span};

use super::bucket::{Bucket, Part, is_custom, share_below, uncut_buckets};
use super::counts::Layout;

/// The part of a histogram on one side of `cut`. The sum is estimated from the buckets' middles, unless all stays.
pub(crate) fn trim(histogram: &FloatHistogram, cut: f64, keep_below: bool) -> FloatHistogram {
    let h = histogram;
    if cut == if keep_below { f64::INFINITY } else { f64::NEG_INFINITY } {
        return h.clone();
    }
    let mut kept = FloatHistogram {
        reset_hint: h.reset_hint,
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        custom_values: Arc::clone(&h.custom_values),
        ..FloatHistogram::default()
    };
    let (mut positive, mut negative) = (Vec::new(), Vec::new());
    let mut changed = false;
    for bucket in uncut_buckets(h) {
        let (count, middle) = keep(bucket, cut, keep_below, h);
        changed |= count != bucket.count;
        if count == 0.0 {
            continue;
        }
        kept.count += count;
        kept.sum += count * middle;
        match bucket.part {
            Part::Zero => kept.zero_count = count,
            Part::Positive(index) | Part::Custom(index) => positive.push((index, count)),
            Part::Negative(index) => negative.push((index, count)),
        }
    }
    if !changed {
        return h.clone();
    }
    negative.reverse();
    (kept.positive_spans, kept.positive_buckets) = layout(&positive);
    (kept.negative_spans, kept.negative_buckets) = layout(&negative);
    kept
}

fn layout(buckets: &[(i32, f64)]) -> (Vec<Span>, Vec<f64>) {
    let mut layout = Layout::with_capacity(buckets.len());
    buckets.iter().for_each(|(index, count)| layout.push(i64::from(*index), *count));
    layout.finish()
}

/// How much of a bucket stays, and the middle of what does.
fn keep(mut bucket: Bucket, cut: f64, keep_below: bool, h: &FloatHistogram) -> (f64, f64) {
    if is_custom(h) {
        return keep_custom(bucket, cut, keep_below);
    }
    if bucket.part == Part::Zero {
        match (h.negative_buckets.is_empty(), h.positive_buckets.is_empty()) {
            (true, false) => bucket.lower = 0.0,
            (false, true) => bucket.upper = 0.0,
            _ => {}
        }
    }
    keep_finite(bucket, cut, keep_below)
}

/// Of a bucket with finite bounds.
fn keep_finite(bucket: Bucket, cut: f64, keep_below: bool) -> (f64, f64) {
    let Bucket { lower, upper, count, .. } = bucket;
    let (from, to) = if keep_below { (lower, upper.min(cut)) } else { (lower.max(cut), upper) };
    if from >= to || cut.is_nan() {
        return (0.0, 0.0);
    }
    let inside = lower < cut && cut < upper;
    let share = match (inside, keep_below) {
        (false, _) => 1.0,
        (true, true) => share_below(cut, &bucket),
        (true, false) => 1.0 - share_below(cut, &bucket),
    };
    let middle = match bucket.part {
        Part::Custom(_) | Part::Zero => (from + to) / 2.0,
        Part::Positive(_) => (from * to).sqrt(),
        Part::Negative(_) => -(from * to).sqrt(),
    };
    (count * share, middle)
}

/// Of a bucket with custom bounds: an endless one stays or goes as a whole.
fn keep_custom(bucket: Bucket, cut: f64, keep_below: bool) -> (f64, f64) {
    let Bucket { lower, upper, count, .. } = bucket;
    match (lower == f64::NEG_INFINITY, upper == f64::INFINITY) {
        (true, true) => (0.0, 0.0),
        (false, true) if keep_below || cut == f64::INFINITY => (0.0, 0.0),
        (false, true) => (count, lower.max(cut)),
        // Positive observations start at zero.
        (true, false) if upper > 0.0 && (cut >= 0.0 || keep_below) => {
            keep_finite(Bucket { lower: 0.0, ..bucket }, cut, keep_below)
        }
        (true, false) if keep_below => {
            if cut == f64::NEG_INFINITY {
                (0.0, 0.0)
            } else {
                (count, upper.min(cut))
            }
        }
        (true, false) => (0.0, 0.0),
        (false, false) => keep_finite(bucket, cut, keep_below),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_make_the_whole() {
        let h = FloatHistogram {
            zero_threshold: 0.001,
            zero_count: 1.0,
            count: 34.0,
            sum: 123.75,
            positive_spans: vec![Span { offset: 0, length: 4 }],
            positive_buckets: vec![2.0, 4.0, 8.0, 16.0],
            negative_spans: vec![Span { offset: 0, length: 2 }],
            negative_buckets: vec![1.0, 2.0],
            ..FloatHistogram::default()
        };
        for cut in [-3.0, -1.4, -1.0, -0.0005, 0.0, 0.7, 1.0, 1.5, 5.0, 9.0] {
            let (below, above) = (trim(&h, cut, true), trim(&h, cut, false));
            assert!((below.count + above.count - h.count).abs() < 1e-9, "{cut}: {below:?} {above:?}");
        }
        assert_eq!(trim(&h, f64::INFINITY, true), h);
        assert_eq!(trim(&h, 8.0, true), h);
        assert_eq!(trim(&h, f64::NEG_INFINITY, true).count, 0.0);
        let below = trim(&h, 2f64.sqrt(), true);
        assert!((below.count - 8.0).abs() < 1e-9 && (below.sum - 0.257_093_886).abs() < 1e-6, "{below:?}");
    }
}
