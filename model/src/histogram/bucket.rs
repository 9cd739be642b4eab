//! A histogram's buckets with their bounds, as the HTTP API prints them and quantiles walk them.

use std::sync::LazyLock;

use super::{CUSTOM_BUCKETS_SCHEMA, EXPONENTIAL_SCHEMAS, FloatHistogram, Span};

/// A bucket with its bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
    /// Whether an observation of exactly `lower` is counted here.
    pub lower_inclusive: bool,
    /// Whether an observation of exactly `upper` is counted here.
    pub upper_inclusive: bool,
    /// Observations.
    pub count: f64,
}

impl FloatHistogram {
    /// All buckets in ascending order: negative ones, the zero bucket when it counts anything, positive ones. Empty
    /// buckets inside spans are there, too.
    ///
    /// A bucket that the zero bucket reaches into begins (or ends) where the zero bucket does not reach.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> + '_ {
        let negative = indexes_descending(&self.negative_spans).zip(self.negative_buckets.iter().rev());
        let zero = (self.zero_count > 0.0).then_some(Bucket {
            lower: -self.zero_threshold,
            upper: self.zero_threshold,
            lower_inclusive: true,
            upper_inclusive: true,
            count: self.zero_count,
        });
        let positive = bucket_indexes(&self.positive_spans).zip(&self.positive_buckets);
        let negative = negative.map(|(index, &count)| self.negative_bucket(index, count));
        negative.chain(zero).chain(positive.map(|(index, &count)| self.positive_bucket(index, count)))
    }

    /// Positive bucket `index` (or that of custom bounds), which counts `count`.
    pub fn positive_bucket(&self, index: i64, count: f64) -> Bucket {
        if self.schema == CUSTOM_BUCKETS_SCHEMA {
            return Bucket {
                lower: custom_bound(&self.custom_values, index - 1),
                upper: custom_bound(&self.custom_values, index),
                lower_inclusive: index == 0,
                upper_inclusive: true,
                count,
            };
        }
        let mut lower = exponential_bound(saturated(index - 1), self.schema);
        if lower < self.zero_threshold {
            lower = self.zero_threshold;
        }
        let upper = exponential_bound(saturated(index), self.schema);
        Bucket { lower, upper, lower_inclusive: false, upper_inclusive: true, count }
    }

    /// Negative bucket `index`, which counts `count`.
    pub fn negative_bucket(&self, index: i64, count: f64) -> Bucket {
        let Bucket { lower, upper, .. } = self.positive_bucket(index, count);
        Bucket { lower: -upper, upper: -lower, lower_inclusive: true, upper_inclusive: false, count }
    }
}

fn saturated(index: i64) -> i32 {
    index.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

/// Upper bound of custom bucket `index`; the bucket after the last bound is endless, as is the first one's start.
fn custom_bound(bounds: &[f64], index: i64) -> f64 {
    match usize::try_from(index) {
        Ok(index) => bounds.get(index).copied().unwrap_or(f64::INFINITY),
        Err(_) => f64::NEG_INFINITY,
    }
}

/// Upper bound of bucket `index` of an exponential schema: `2^(index * 2^-schema)`, to the bit as Prometheus has it.
///
/// The last bucket of finite observations ends at the largest float, the one after it at +Inf.
pub fn exponential_bound(index: i32, schema: i32) -> f64 {
    if schema < 0 {
        let exponent = i64::from(index) << schema.unsigned_abs().min(31);
        return if exponent == 1024 { f64::MAX } else { ldexp(1.0, exponent) };
    }
    let schema = schema.min(*EXPONENTIAL_SCHEMAS.end()) as u32;
    let within = (index & ((1 << schema) - 1)) as usize;
    let exponent = i64::from(index >> schema) + 1;
    if within == 0 && exponent == 1025 {
        return f64::MAX;
    }
    ldexp(BOUNDS[(1 << schema) + within - 1], exponent)
}

/// `2^(2^-schema)` of schemas 2 to 8: the ratio of two bounds.
const RATIOS: [f64; 7] = [
    1.189207115002721,
    1.0905077326652577,
    1.0442737824274138,
    1.0218971486541166,
    1.0108892860517005,
    1.0054299011128027,
    1.0027112750502025,
];

/// Bounds between a half and one of schemas 0 to 8, one schema after the other: schema `s` from `2^s - 1` on.
///
/// Prometheus has them as a table in which every other bound is that of the coarser schema and those between are its
/// products with the ratio, so that rounding adds up; the same is done here.
static BOUNDS: LazyLock<Vec<f64>> = LazyLock::new(|| {
    // The middle of the first doubling is not the product, but the float below it.
    let mut bounds = vec![0.5, 0.5, 0.7071067811865475];
    for (schema, ratio) in (2..=8).zip(RATIOS) {
        let coarser = (1 << (schema - 1)) - 1;
        for i in 0..1 << (schema - 1) {
            let bound = bounds[coarser + i];
            bounds.extend([bound, bound * ratio]);
        }
    }
    bounds
});

/// `fraction * 2^exponent`, rounded once; infinite or zero where it leaves the floats.
fn ldexp(fraction: f64, exponent: i64) -> f64 {
    match exponent {
        1025.. => f64::INFINITY,
        // Twice, since 2^1024 is not a float though half of it is.
        1024 => fraction * 2f64.powi(1023) * 2.0,
        -1022..=1023 => fraction * power_of_two(exponent),
        -1100..=-1023 => fraction * power_of_two(-1000) * power_of_two(exponent + 1000),
        _ => 0.0,
    }
}

/// `2^exponent` for exponents of normal floats.
fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The indexes of the buckets that `spans` describe, ascending.
pub fn bucket_indexes(spans: &[Span]) -> impl Iterator<Item = i64> {
    let ranges = spans.iter().scan(0i64, |end, span| {
        let begin = *end + i64::from(span.offset);
        *end = begin + i64::from(span.length);
        Some(begin..*end)
    });
    ranges.flatten()
}

/// The same, descending.
fn indexes_descending(spans: &[Span]) -> impl Iterator<Item = i64> {
    let end = spans.iter().map(|span| i64::from(span.offset) + i64::from(span.length)).sum::<i64>();
    let ranges = spans.iter().rev().scan(end, |begin, span| {
        let end = *begin;
        let first = end - i64::from(span.length);
        *begin = first - i64::from(span.offset);
        Some((first..end).rev())
    });
    ranges.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(histogram: &FloatHistogram, expected: &[(f64, f64, u8, f64)]) {
        // The last but one as the HTTP API numbers it: 0 (lower, upper], 1 [lower, upper), 3 both.
        let rule = |bucket: &Bucket| match (bucket.lower_inclusive, bucket.upper_inclusive) {
            (false, true) => 0,
            (true, false) => 1,
            (false, false) => 2,
            (true, true) => 3,
        };
        let buckets: Vec<_> = histogram.buckets().map(|b| (b.lower, b.upper, rule(&b), b.count)).collect();
        assert_eq!(buckets, expected);
    }

    #[test]
    fn ascending_with_negatives_first() {
        let h = FloatHistogram {
            zero_threshold: 0.001,
            zero_count: 2.0,
            positive_spans: vec![Span { offset: 0, length: 2 }, Span { offset: 1, length: 1 }],
            positive_buckets: vec![1.0, 0.0, 3.0],
            negative_spans: vec![Span { offset: -1, length: 1 }, Span { offset: 2, length: 2 }],
            negative_buckets: vec![4.0, 5.0, 6.0],
            ..FloatHistogram::default()
        };
        check(
            &h,
            &[
                (-8.0, -4.0, 1, 6.0),
                (-4.0, -2.0, 1, 5.0),
                (-0.5, -0.25, 1, 4.0),
                (-0.001, 0.001, 3, 2.0),
                (0.5, 1.0, 0, 1.0),
                (1.0, 2.0, 0, 0.0),
                (4.0, 8.0, 0, 3.0),
            ],
        );
    }

    #[test]
    fn the_zero_bucket_cuts_its_neighbours() {
        let h = FloatHistogram {
            zero_threshold: 0.75,
            positive_spans: vec![Span { offset: 0, length: 1 }],
            positive_buckets: vec![1.0],
            negative_spans: vec![Span { offset: 0, length: 1 }],
            negative_buckets: vec![2.0],
            ..FloatHistogram::default()
        };
        check(&h, &[(-1.0, -0.75, 1, 2.0), (0.75, 1.0, 0, 1.0)]);
    }

    #[test]
    fn custom_bounds() {
        let h = FloatHistogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            positive_spans: vec![Span { offset: 0, length: 3 }],
            positive_buckets: vec![1.0, 2.0, 3.0],
            custom_values: [-5.0, 10.0].into(),
            ..FloatHistogram::default()
        };
        let infinity = f64::INFINITY;
        check(&h, &[(-infinity, -5.0, 3, 1.0), (-5.0, 10.0, 0, 2.0), (10.0, infinity, 0, 3.0)]);
    }

    #[track_caller]
    fn check_bound(index: i32, schema: i32, expected: f64) {
        assert_eq!(exponential_bound(index, schema), expected, "index {index} of schema {schema}");
    }

    #[test]
    fn bounds_are_prometheus_own() {
        check_bound(0, 0, 1.0);
        check_bound(10, 0, 1024.0);
        check_bound(-1074, 0, f64::from_bits(1));
        check_bound(-1023, 0, f64::MIN_POSITIVE / 2.0);
        check_bound(-2000, 0, 0.0);
        check_bound(1023, 0, 2f64.powi(1023));
        check_bound(1024, 0, f64::MAX);
        check_bound(1025, 0, f64::INFINITY);
        check_bound(256, -2, f64::MAX);
        check_bound(257, -2, f64::INFINITY);
        check_bound(1, -4, 65536.0);
        check_bound(i32::MAX, -4, f64::INFINITY);
        check_bound(i32::MIN, -4, 0.0);
        check_bound(i32::MIN, 8, 0.0);
        check_bound(1024 << 8, 8, f64::MAX);
        check_bound((1024 << 8) + 1, 8, f64::INFINITY);
        // From Prometheus' table, times two.
        check_bound(1, 1, 2.0 * 0.7071067811865475);
        check_bound(3, 2, 1.6817928305074288);
        check_bound(3, 3, 1.2968395546510096);
        check_bound(7, 3, 1.8340080864093422);
        check_bound(-1, 3, 0.9170040432046711);
    }

    #[test]
    fn the_table_is_prometheus_own() {
        let sum = BOUNDS.iter().fold(0u64, |sum, bound| sum.wrapping_mul(31).wrapping_add(bound.to_bits()));
        assert_eq!((BOUNDS.len(), sum), (511, 0x25e6_8069_3e1c_1ff2));
    }

    #[test]
    fn bounds_are_close_to_the_formula() {
        for schema in -4..=8 {
            for index in -500..500 {
                let exact = 2f64.powf(f64::from(index) * 2f64.powi(-schema));
                let bound = exponential_bound(index, schema);
                let near = (bound - exact).abs() <= exact * 1e-14 || (exact.is_infinite() && bound >= f64::MAX);
                assert!(near, "{bound} {exact}: index {index} of schema {schema}");
            }
        }
    }
}
