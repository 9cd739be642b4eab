//! The buckets of a native histogram with their bounds, and what is computed from them.

use std::fmt::Write;

use skald_model::histogram::{CUSTOM_BUCKETS_SCHEMA, bucket_indexes, exponential_bound};
use skald_model::{FloatHistogram, Span};

use crate::eval::kahan::KahanSum;
use crate::eval::quantile::format_g;

/// A bucket with its bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bucket {
    /// Lower bound.
    pub(crate) lower: f64,
    /// Upper bound.
    pub(crate) upper: f64,
    /// What it counts.
    pub(crate) count: f64,
    /// Where it stands.
    pub(crate) part: Part,
}

/// Which part of a histogram a bucket belongs to; the index within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Below zero: the lower bound belongs to it.
    Negative(i32),
    /// Around zero: both bounds belong to it.
    Zero,
    /// Above zero: the upper bound belongs to it.
    Positive(i32),
    /// Between custom bounds: the upper bound belongs to it, of the first one the lower too.
    Custom(i32),
}

/// Whether the histogram has custom bounds.
pub(crate) fn is_custom(histogram: &FloatHistogram) -> bool {
    histogram.schema == CUSTOM_BUCKETS_SCHEMA
}

/// Index and count of every bucket that the spans lay out.
pub(crate) fn buckets<'a>(spans: &'a [Span], counts: &'a [f64]) -> impl Iterator<Item = (i32, f64)> + 'a {
    let indexes = bucket_indexes(spans).map(|i| i.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32);
    indexes.zip(counts.iter().copied())
}

/// The counts for which there is a bucket.
pub(crate) fn laid_out<'a>(spans: &[Span], counts: &'a [f64]) -> &'a [f64] {
    let buckets = spans.iter().fold(0usize, |sum, span| sum.saturating_add(span.length as usize));
    &counts[..counts.len().min(buckets)]
}

/// All buckets, ascending; the zero bucket only if it counts more than nothing. Where the zero bucket reaches into
/// another one, that one begins at its end.
pub(crate) fn all_buckets(histogram: &FloatHistogram) -> Vec<Bucket> {
    let mut all = buckets_with(histogram, |part, count| at(histogram, part, count));
    all.retain(|bucket| bucket.part != Part::Zero || bucket.count > 0.0);
    all
}

/// The same, except that every bucket reaches as far as its index says, and that the zero bucket may count less than
/// nothing.
pub(super) fn uncut_buckets(histogram: &FloatHistogram) -> Vec<Bucket> {
    let schema = histogram.schema;
    buckets_with(histogram, |part, count| {
        let (lower, upper) = match part {
            Part::Positive(i) => (exponential_bound(i.saturating_sub(1), schema), exponential_bound(i, schema)),
            Part::Negative(i) => (-exponential_bound(i, schema), -exponential_bound(i.saturating_sub(1), schema)),
            Part::Zero | Part::Custom(_) => return at(histogram, part, count),
        };
        Bucket { lower, upper, count, part }
    })
}

fn buckets_with(h: &FloatHistogram, bucket: impl Fn(Part, f64) -> Bucket) -> Vec<Bucket> {
    let mut all = Vec::with_capacity(h.positive_buckets.len() + h.negative_buckets.len() + 1);
    if is_custom(h) {
        all.extend(buckets(&h.positive_spans, &h.positive_buckets).map(|(i, count)| bucket(Part::Custom(i), count)));
        return all;
    }
    all.extend(buckets(&h.negative_spans, &h.negative_buckets).map(|(i, count)| bucket(Part::Negative(i), count)));
    all.reverse();
    if h.zero_count != 0.0 {
        all.push(bucket(Part::Zero, h.zero_count));
    }
    all.extend(buckets(&h.positive_spans, &h.positive_buckets).map(|(i, count)| bucket(Part::Positive(i), count)));
    all
}

/// The bucket that stands at `part` and counts `count`.
fn at(histogram: &FloatHistogram, part: Part, count: f64) -> Bucket {
    let (lower, upper) = match part {
        Part::Zero => (-histogram.zero_threshold, histogram.zero_threshold),
        Part::Positive(i) | Part::Custom(i) => {
            let bucket = histogram.positive_bucket(i64::from(i), count);
            (bucket.lower, bucket.upper)
        }
        Part::Negative(i) => {
            let bucket = histogram.negative_bucket(i64::from(i), count);
            (bucket.lower, bucket.upper)
        }
    };
    Bucket { lower, upper, count, part }
}

/// A quantile, and what NaN observations did to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quantile {
    pub(crate) value: f64,
    pub(crate) nan: NanEffect,
}

/// What NaN observations, which are in the count but in no bucket, did to a quantile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NanEffect {
    None,
    /// It is higher than it would be without them.
    Skewed,
    /// It lies among them.
    Result,
}

/// The `q`-quantile: linear interpolation in custom and zero buckets, logarithmic in exponential ones.
pub(crate) fn quantile(q: f64, histogram: &FloatHistogram) -> Quantile {
    let h = histogram;
    let plain = |value| Quantile { value, nan: NanEffect::None };
    if q < 0.0 {
        return plain(f64::NEG_INFINITY);
    }
    if q > 1.0 {
        return plain(f64::INFINITY);
    }
    if h.count == 0.0 || q.is_nan() {
        return plain(f64::NAN);
    }
    // From the nearer end, but with NaN observations always from below: they count as the largest.
    let has_nan = h.sum.is_nan();
    let from_below = has_nan || q < 0.5;
    let mut rank = if from_below { q * h.count } else { (1.0 - q) * h.count };
    let (mut bucket, mut count) = bucket_of_rank(h, rank, from_below);
    if is_custom(h) {
        if bucket.lower == f64::NEG_INFINITY {
            if bucket.upper <= 0.0 {
                return plain(bucket.upper);
            }
            bucket.lower = 0.0;
        } else if bucket.upper == f64::INFINITY {
            return plain(bucket.lower);
        }
    } else if bucket.lower < 0.0 && bucket.upper > 0.0 {
        one_sided(&mut bucket, h);
    }
    // Rounding may have counted more than there is.
    count = if count > h.count { h.count } else { count };
    if count < rank {
        if has_nan {
            return Quantile { value: f64::NAN, nan: NanEffect::Result };
        }
        return plain(bucket.upper);
    }
    rank = if from_below { rank - (count - bucket.count) } else { count - rank };
    let fraction = rank / bucket.count;
    let value = if is_custom(h) || (bucket.lower <= 0.0 && bucket.upper >= 0.0) {
        bucket.lower + (bucket.upper - bucket.lower) * fraction
    } else {
        let (low, high) = (bucket.lower.abs().log2(), bucket.upper.abs().log2());
        if bucket.lower > 0.0 {
            (low + (high - low) * fraction).exp2()
        } else {
            -(high + (low - high) * (1.0 - fraction)).exp2()
        }
    };
    Quantile { value, nan: if has_nan_observations(h) { NanEffect::Skewed } else { NanEffect::None } }
}

/// Whether there are NaN observations, which are in the count but in no bucket.
pub(crate) fn has_nan_observations(histogram: &FloatHistogram) -> bool {
    histogram.sum.is_nan() && in_buckets(&all_buckets(histogram)) < histogram.count
}

fn in_buckets(all: &[Bucket]) -> f64 {
    all.iter().map(|b| b.count).sum()
}

/// The populated bucket, from one end, up to which at least `rank` is counted (the last of all if there is none), and
/// how much that is.
fn bucket_of_rank(h: &FloatHistogram, rank: f64, from_below: bool) -> (Bucket, f64) {
    // The bounds of all but the bucket that is found do not matter, so only counts are walked.
    let (below, zero) =
        if is_custom(h) { (&[][..], 0.0) } else { (laid_out(&h.negative_spans, &h.negative_buckets), h.zero_count) };
    let above = laid_out(&h.positive_spans, &h.positive_buckets);
    let (negative, all) = (below.len(), below.len() + 1 + above.len());
    let count_of = |i: usize| match i {
        _ if i < negative => below[negative - 1 - i],
        _ if i == negative => zero,
        _ => above[i - negative - 1],
    };
    let (mut found, mut count) = (None, 0.0);
    for i in 0..all {
        let i = if from_below { i } else { all - 1 - i };
        let own = count_of(i);
        if i == negative && own <= 0.0 {
            continue;
        }
        found = Some(i);
        count += own;
        if own != 0.0 && count >= rank {
            break;
        }
    }
    let index = |spans: &[Span], nth: usize| {
        let index = bucket_indexes(spans).nth(nth).unwrap_or_default();
        index.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
    };
    let part = match found {
        None => return (Bucket { lower: 0.0, upper: 0.0, count: 0.0, part: Part::Zero }, count),
        Some(i) if i < negative => Part::Negative(index(&h.negative_spans, negative - 1 - i)),
        Some(i) if i == negative => Part::Zero,
        Some(i) if is_custom(h) => Part::Custom(index(&h.positive_spans, i - negative - 1)),
        Some(i) => Part::Positive(index(&h.positive_spans, i - negative - 1)),
    };
    (at(h, part, found.map_or(0.0, count_of)), count)
}

/// The zero bucket of a histogram with observations on one side only reaches no further than zero on the other.
fn one_sided(bucket: &mut Bucket, h: &FloatHistogram) {
    match (h.negative_buckets.is_empty(), h.positive_buckets.is_empty()) {
        (true, false) => bucket.lower = 0.0,
        (false, true) => bucket.upper = 0.0,
        _ => {}
    }
}

/// The share of all observations (NaN among them) between two values.
pub(crate) fn fraction(lower: f64, upper: f64, histogram: &FloatHistogram) -> f64 {
    if histogram.count == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let all = all_buckets(histogram);
    // What is counted beyond the buckets is above them all, unless it may be NaN.
    let whole = if histogram.sum.is_nan() { in_buckets(&all) } else { histogram.count };
    let rank = |value: f64| {
        let rank = rank_of(value, &all, whole, histogram);
        if rank > whole { whole } else { rank }
    };
    (rank(upper) - rank(lower)) / histogram.count
}

/// How many observations are below `value`, of `whole` that may be.
fn rank_of(value: f64, all: &[Bucket], whole: f64, histogram: &FloatHistogram) -> f64 {
    let mut rank = 0.0;
    for bucket in all {
        let mut bucket = *bucket;
        if bucket.lower <= 0.0 && bucket.upper >= 0.0 {
            one_sided(&mut bucket, histogram);
        }
        if bucket.lower >= value {
            return rank;
        }
        if bucket.upper > value {
            return rank + bucket.count * share_below(value, &bucket);
        }
        rank += bucket.count;
    }
    whole
}

/// The share of a bucket's observations below a value inside it.
pub(super) fn share_below(value: f64, bucket: &Bucket) -> f64 {
    let linear = matches!(bucket.part, Part::Custom(_) | Part::Zero);
    if linear {
        // Nothing is known of where the observations of an endless bucket are: all at its finite bound.
        return if bucket.lower == f64::NEG_INFINITY {
            1.0
        } else {
            (value - bucket.lower) / (bucket.upper - bucket.lower)
        };
    }
    let (low, high, at) = (bucket.lower.abs().log2(), bucket.upper.abs().log2(), value.abs().log2());
    if value > 0.0 { (at - low) / (high - low) } else { 1.0 - (at - high) / (low - high) }
}

/// The population variance, each observation taken for its bucket's middle.
pub(crate) fn variance(histogram: &FloatHistogram) -> f64 {
    let mean = histogram.sum / histogram.count;
    let mut sum = KahanSum::of(0.0);
    for bucket in all_buckets(histogram).into_iter().filter(|b| b.count != 0.0) {
        let delta = middle(&bucket) - mean;
        sum.add(bucket.count * delta * delta);
    }
    sum.value() / histogram.count
}

fn middle(bucket: &Bucket) -> f64 {
    match bucket.part {
        Part::Custom(_) => (bucket.upper + bucket.lower) / 2.0,
        Part::Zero => 0.0,
        Part::Positive(_) => (bucket.upper * bucket.lower).sqrt(),
        Part::Negative(_) => -(bucket.upper * bucket.lower).sqrt(),
    }
}

/// As `count_values` writes a histogram: `{count:20, sum:10, [-2,-1):2, [-0.001,0.001]:2, (0.5,1]:1}`.
pub(crate) fn text(histogram: &FloatHistogram) -> String {
    let mut text = format!("{{count:{}, sum:{}", format_g(histogram.count), format_g(histogram.sum));
    for bucket in uncut_buckets(histogram).into_iter().filter(|b| b.count != 0.0) {
        let (open, close) = match bucket.part {
            Part::Negative(_) => ('[', ')'),
            Part::Zero | Part::Custom(0) => ('[', ']'),
            Part::Positive(_) | Part::Custom(_) => ('(', ']'),
        };
        let (lower, upper, count) = (format_g(bucket.lower), format_g(bucket.upper), format_g(bucket.count));
        // Writing to a string cannot fail.
        let _ = write!(text, ", {open}{lower},{upper}{close}:{count}");
    }
    text + "}"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixed() -> FloatHistogram {
        FloatHistogram {
            zero_threshold: 0.001,
            zero_count: 2.0,
            count: 20.0,
            sum: 10.0,
            positive_spans: vec![Span { offset: 0, length: 2 }],
            positive_buckets: vec![1.0, 2.0],
            negative_spans: vec![Span { offset: 0, length: 2 }],
            negative_buckets: vec![1.0, 2.0],
            ..FloatHistogram::default()
        }
    }

    #[test]
    fn texts() {
        let cut = FloatHistogram { zero_threshold: 0.75, negative_spans: Vec::new(), ..mixed() };
        assert_eq!(text(&cut), "{count:20, sum:10, [-0.75,0.75]:2, (0.5,1]:1, (1,2]:2}");
        assert_eq!(text(&mixed()), "{count:20, sum:10, [-2,-1):2, [-1,-0.5):1, [-0.001,0.001]:2, (0.5,1]:1, (1,2]:2}");
    }

    #[test]
    fn quantiles_and_fractions() {
        let h = FloatHistogram { count: 8.0, ..mixed() };
        assert_eq!(quantile(0.5, &h).value, 0.0);
        assert_eq!(quantile(1.0, &h).value, 2.0);
        assert_eq!(quantile(0.0, &h).value, -2.0);
        assert!((quantile(0.875, &h).value - 2f64.sqrt()).abs() < 1e-12);
        assert!((quantile(0.125, &h).value + 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(fraction(f64::NEG_INFINITY, f64::INFINITY, &h), 1.0);
        assert!((fraction(0.0, 2f64.sqrt(), &h) - 3.0 / 8.0).abs() < 1e-12);
        assert!((fraction(-2f64.sqrt(), 0.0, &h) - 3.0 / 8.0).abs() < 1e-12);
        let nan = FloatHistogram { count: 10.0, sum: f64::NAN, ..mixed() };
        assert_eq!(quantile(0.9, &nan).nan, NanEffect::Result);
        assert_eq!(quantile(0.5, &nan).nan, NanEffect::Skewed);
    }

    #[test]
    fn counts_beyond_the_buckets_are_above_them() {
        let h = FloatHistogram { count: 20.0, ..mixed() };
        // From above there is less than the rank in all buckets: the last of them ends at -1.
        assert_eq!((quantile(0.55, &h).value, quantile(0.45, &h).value), (-1.0, 2.0));
        assert!((fraction(0.0, 9.0, &h) - 16.0 / 20.0).abs() < 1e-12);
        let both_infinities = FloatHistogram { count: 8.0, sum: f64::NAN, ..mixed() };
        assert_eq!(quantile(0.5, &both_infinities).nan, NanEffect::None);
    }

    #[test]
    fn custom_quantiles_are_linear() {
        let h = FloatHistogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            count: 4.0,
            sum: 5.0,
            positive_spans: vec![Span { offset: 0, length: 3 }],
            positive_buckets: vec![1.0, 2.0, 1.0],
            custom_values: vec![5.0, 10.0].into(),
            ..FloatHistogram::default()
        };
        assert_eq!((quantile(0.5, &h).value, quantile(0.99, &h).value), (7.5, 10.0));
        assert_eq!(fraction(5.0, 10.0, &h), 0.5);
    }
}
