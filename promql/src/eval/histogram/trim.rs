//! The trim operators: `h </ x` keeps what lies below `x`, `h >/ x` what lies above.

use std::sync::Arc;

use skald_model::{FloatHistogram, Span};

use super::bucket::{Bucket, Part, share_below, uncut_buckets};
use super::counts::Layout;

/// The part of a histogram on one side of `cut`. The sum is estimated from the buckets' middles, unless all stays.
pub(crate) fn trim(histogram: &FloatHistogram, cut: f64, keep_below: bool) -> FloatHistogram {
    let h = histogram;
    let mut kept = FloatHistogram {
        reset_hint: h.reset_hint,
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        zero_count: h.zero_count,
        custom_values: Arc::clone(&h.custom_values),
        ..FloatHistogram::default()
    };
    let all = uncut_buckets(h);
    let populated = |wanted: fn(Part) -> bool| all.iter().filter(move |b| b.count != 0.0 && wanted(b.part));
    let above = populated(|part| matches!(part, Part::Positive(_) | Part::Custom(_)));
    let below = populated(|part| matches!(part, Part::Negative(_))).rev();
    // A zero bucket that counts less than nothing stays, as in Prometheus.
    let zero = populated(|part| part == Part::Zero).filter(|b| b.count > 0.0);
    let sides = (below.clone().next().is_some(), above.clone().next().is_some());
    let (mut positive, mut negative) = (Vec::new(), Vec::new());
    let mut changed = false;
    // Prometheus adds up in this order: away from zero on either side, then zero itself.
    for bucket in above.chain(below).chain(zero) {
        let (count, middle) = match bucket.part {
            Part::Zero => keep_zero(bucket, cut, keep_below, sides),
            _ => keep(bucket, cut, keep_below),
        };
        changed |= count != bucket.count;
        kept.count += count;
        kept.sum += middle * count;
        match bucket.part {
            Part::Zero => kept.zero_count = count,
            _ if count == 0.0 => {}
            Part::Positive(index) | Part::Custom(index) => positive.push((index, count)),
            Part::Negative(index) => negative.push((index, count)),
        }
    }
    if !changed {
        return h.clone();
    }
    (kept.positive_spans, kept.positive_buckets) = layout(&positive);
    (kept.negative_spans, kept.negative_buckets) = layout(&negative);
    kept
}

fn layout(buckets: &[(i32, f64)]) -> (Vec<Span>, Vec<f64>) {
    let mut layout = Layout::with_capacity(buckets.len());
    buckets.iter().for_each(|(index, count)| layout.push(i64::from(*index), *count));
    layout.finish()
}

/// How much of the zero bucket stays, and the middle of that. It ends at zero if all other observations are on one
/// side.
fn keep_zero(bucket: &Bucket, cut: f64, keep_below: bool, sides: (bool, bool)) -> (f64, f64) {
    let Bucket { mut lower, mut upper, count, .. } = *bucket;
    match sides {
        (true, false) => upper = 0.0,
        (false, true) => lower = 0.0,
        _ => {}
    }
    let whole = (count, (lower + upper) / 2.0);
    match (cut <= lower, cut >= upper, keep_below) {
        (true, _, true) => (0.0, 0.0),
        (true, _, false) => whole,
        (false, true, true) => whole,
        (false, true, false) => (0.0, 0.0),
        (false, false, true) => (count * ((cut - lower) / (upper - lower)), (lower + cut) / 2.0),
        (false, false, false) => (count * ((upper - cut) / (upper - lower)), (cut + upper) / 2.0),
    }
}

/// How much of another bucket stays, and the middle of that.
fn keep(bucket: &Bucket, cut: f64, keep_below: bool) -> (f64, f64) {
    let Bucket { lower, upper, count, .. } = *bucket;
    let (whole, partly) = if keep_below { (upper <= cut, lower < cut) } else { (lower >= cut, upper > cut) };
    if whole {
        return (count, middle(bucket, lower, upper));
    }
    if !partly {
        return (0.0, 0.0);
    }
    if lower == f64::NEG_INFINITY {
        return keep_endless(bucket, cut, keep_below);
    }
    if upper == f64::INFINITY {
        return if keep_below { (0.0, 0.0) } else { (count, cut) };
    }
    let under = count * share_below(cut, bucket);
    if keep_below { (under, middle(bucket, lower, cut)) } else { (count - under, middle(bucket, cut, upper)) }
}

/// Of the lowest custom bucket: positive observations start at zero, of others nothing is known.
fn keep_endless(bucket: &Bucket, cut: f64, keep_below: bool) -> (f64, f64) {
    let Bucket { upper, count, .. } = *bucket;
    let reaches_zero = upper > 0.0 && upper.is_finite();
    match keep_below {
        true if cut > 0.0 && reaches_zero => (count * cut / upper, cut / 2.0),
        true if upper <= 0.0 => (count, cut),
        false if cut >= 0.0 && reaches_zero => (count * (1.0 - cut / upper), (cut + upper) / 2.0),
        _ => (0.0, 0.0),
    }
}

/// The middle of a part of a bucket.
fn middle(bucket: &Bucket, from: f64, to: f64) -> f64 {
    match (from.is_infinite(), to.is_infinite(), bucket.part) {
        (true, true, _) => 0.0,
        (true, false, _) if to > 0.0 => to / 2.0,
        (true, false, _) => to,
        (false, true, _) => from,
        (_, _, Part::Custom(_) | Part::Zero) => (from + to) / 2.0,
        (_, _, Part::Positive(_)) => (from * to).abs().sqrt(),
        (_, _, Part::Negative(_)) => -(from * to).abs().sqrt(),
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
        let nothing = trim(&h, f64::NAN, true);
        assert_eq!((nothing.positive_buckets.len(), nothing.negative_buckets.len()), (0, 0));
        let below = trim(&h, 2f64.sqrt(), true);
        assert!((below.count - 8.0).abs() < 1e-9 && (below.sum - 0.257_093_886).abs() < 1e-6, "{below:?}");
    }

    #[test]
    fn a_zero_bucket_without_width_stays_or_goes_as_a_whole() {
        let h = FloatHistogram {
            zero_count: 5.0,
            count: 7.0,
            sum: 2.0,
            positive_spans: vec![Span { offset: 1, length: 1 }],
            positive_buckets: vec![2.0],
            ..FloatHistogram::default()
        };
        let check = |cut: f64, keep_below: bool, zero_count: f64, count: f64| {
            let kept = trim(&h, cut, keep_below);
            assert_eq!((kept.zero_count, kept.count), (zero_count, count), "{cut} {keep_below}");
        };
        check(1.0, true, 5.0, 5.0);
        check(9.0, true, 5.0, 7.0);
        check(1.0, false, 0.0, 2.0);
        check(0.0, false, 5.0, 7.0);
    }
}
