//! Whether a sender's histogram makes sense.

use super::convert::absolute;
use super::{CUSTOM_BUCKETS_SCHEMA, EXPONENTIAL_SCHEMAS, FloatHistogram, Histogram, MAX_BUCKET_INDEX, Span};
use crate::HistogramValue;

/// Why a histogram is refused; a retry cannot succeed.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum HistogramError {
    /// Neither exponential nor custom bounds.
    #[error("schema {0} is unknown")]
    InvalidSchema(i32),
    /// The zero bucket's width is negative or not finite.
    #[error("zero threshold {0} is negative or not finite")]
    InvalidZeroThreshold(f64),
    /// The buckets hold more or fewer observations than the count says.
    #[error("buckets hold {buckets} observations, but the count is {count}")]
    CountMismatch {
        /// In buckets, the zero bucket included.
        buckets: u64,
        /// As sent.
        count: u64,
    },
    /// The buckets hold more observations than the count says; fewer are right, since the sum says there were NaNs.
    #[error("buckets hold {buckets} observations, but the count is {count}")]
    CountNotBigEnough {
        /// In buckets, the zero bucket included.
        buckets: u64,
        /// As sent.
        count: u64,
    },
    /// A bucket, or the whole, counts fewer than no observations.
    #[error("a bucket has the negative count {0}")]
    NegativeBucketCount(f64),
    /// Spans overlap.
    #[error("a span has the negative offset {0}")]
    SpanNegativeOffset(i32),
    /// Spans describe more or fewer buckets than there are.
    #[error("spans describe {spans} buckets, there are {buckets}")]
    SpansBucketsMismatch {
        /// By the spans.
        spans: u64,
        /// As sent.
        buckets: usize,
    },
    /// A bucket's index is beyond what any schema reaches.
    #[error("bucket index {0} is out of range")]
    BucketIndex(i64),
    /// Fewer custom bounds than the spans need.
    #[error("spans reach {buckets} buckets, {bounds} custom bounds make one more than that")]
    CustomBucketsMismatch {
        /// Needed by the spans.
        buckets: i64,
        /// As sent.
        bounds: usize,
    },
    /// Custom bounds that do not ascend, are not a number, or stand beside negative, zero or exponential buckets.
    #[error("custom buckets {0}")]
    CustomBucketsInvalid(&'static str),
    /// A custom bound is +Inf, which is never written.
    #[error("the last custom bound is +Inf")]
    CustomBucketsInfinite,
}

impl HistogramError {
    /// Mimir's id of this reason, as answers and metrics show it.
    pub fn id(&self) -> &'static str {
        match self {
            Self::InvalidSchema(_) => "invalid-native-histogram-schema",
            Self::InvalidZeroThreshold(_) => "native-histogram-zero-threshold-invalid",
            Self::CountMismatch { .. } => "native-histogram-count-mismatch",
            Self::CountNotBigEnough { .. } => "native-histogram-count-not-big-enough",
            Self::NegativeBucketCount(_) => "native-histogram-negative-bucket-count",
            Self::SpanNegativeOffset(_) => "native-histogram-span-negative-offset",
            Self::SpansBucketsMismatch { .. } => "native-histogram-spans-buckets-mismatch",
            Self::BucketIndex(_) => "native-histogram-bucket-index-invalid",
            Self::CustomBucketsMismatch { .. } => "native-histogram-custom-buckets-mismatch",
            Self::CustomBucketsInvalid(_) => "native-histogram-custom-buckets-invalid",
            Self::CustomBucketsInfinite => "native-histogram-custom-buckets-infinite",
        }
    }
}

impl HistogramValue {
    /// Whether it makes sense; a stale marker always does. Finer schemas than [`EXPONENTIAL_SCHEMAS`] are to be reduced
    /// first.
    pub fn validate(&self) -> Result<(), HistogramError> {
        match self {
            Self::Integer(histogram) => histogram.validate(),
            Self::Float(histogram) => histogram.validate(),
        }
    }
}

impl Histogram {
    /// See [`HistogramValue::validate`].
    pub fn validate(&self) -> Result<(), HistogramError> {
        if self.is_stale() {
            return Ok(());
        }
        self.frame().check()?;
        let mut buckets = Some(self.zero_count);
        for deltas in [&self.positive_deltas, &self.negative_deltas] {
            for count in absolute(deltas) {
                let count = u64::try_from(count).map_err(|_| HistogramError::NegativeBucketCount(count as f64))?;
                buckets = buckets.and_then(|sum| sum.checked_add(count));
            }
        }
        let (count, buckets) = (self.count, buckets.unwrap_or(u64::MAX));
        if self.sum.is_nan() {
            if buckets > count {
                return Err(HistogramError::CountNotBigEnough { buckets, count });
            }
        } else if buckets != count {
            return Err(HistogramError::CountMismatch { buckets, count });
        }
        Ok(())
    }

    fn frame(&self) -> Frame<'_> {
        Frame {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_bucket_used: self.zero_count != 0,
            positive: (&self.positive_spans, self.positive_deltas.len()),
            negative: (&self.negative_spans, self.negative_deltas.len()),
            custom_values: &self.custom_values,
        }
    }
}

impl FloatHistogram {
    /// See [`HistogramValue::validate`]. Float counts are not compared with their sum: they come from computations.
    pub fn validate(&self) -> Result<(), HistogramError> {
        if self.is_stale() {
            return Ok(());
        }
        self.frame().check()?;
        let counts = self.positive_buckets.iter().chain(&self.negative_buckets).chain([&self.zero_count, &self.count]);
        match counts.copied().find(|count| *count < 0.0) {
            Some(negative) => Err(HistogramError::NegativeBucketCount(negative)),
            None => Ok(()),
        }
    }

    /// Whether spans, buckets and bounds fit together, whatever the counts: differences and compensations may be negative.
    pub fn check_layout(&self) -> Result<(), HistogramError> {
        self.frame().check()
    }

    fn frame(&self) -> Frame<'_> {
        Frame {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_bucket_used: self.zero_count != 0.0,
            positive: (&self.positive_spans, self.positive_buckets.len()),
            negative: (&self.negative_spans, self.negative_buckets.len()),
            custom_values: &self.custom_values,
        }
    }
}

/// What integer and float histograms are alike in.
struct Frame<'a> {
    schema: i32,
    zero_threshold: f64,
    zero_bucket_used: bool,
    /// Spans and number of buckets.
    positive: (&'a [Span], usize),
    negative: (&'a [Span], usize),
    custom_values: &'a [f64],
}

impl Frame<'_> {
    fn check(&self) -> Result<(), HistogramError> {
        if self.schema == CUSTOM_BUCKETS_SCHEMA {
            return self.check_custom();
        }
        if !EXPONENTIAL_SCHEMAS.contains(&self.schema) {
            return Err(HistogramError::InvalidSchema(self.schema));
        }
        if !self.custom_values.is_empty() {
            return Err(HistogramError::CustomBucketsInvalid("have an exponential schema"));
        }
        if !(self.zero_threshold >= 0.0 && self.zero_threshold.is_finite()) {
            return Err(HistogramError::InvalidZeroThreshold(self.zero_threshold));
        }
        check_spans(self.positive)?;
        check_spans(self.negative)?;
        Ok(())
    }

    fn check_custom(&self) -> Result<(), HistogramError> {
        let bounds = self.custom_values;
        if bounds.iter().any(|bound| bound.is_nan()) {
            return Err(HistogramError::CustomBucketsInvalid("have a bound that is not a number"));
        }
        if !bounds.is_sorted_by(|a, b| a < b) {
            return Err(HistogramError::CustomBucketsInvalid("have bounds that do not ascend"));
        }
        if bounds.last() == Some(&f64::INFINITY) {
            return Err(HistogramError::CustomBucketsInfinite);
        }
        if self.zero_bucket_used || self.zero_threshold != 0.0 {
            return Err(HistogramError::CustomBucketsInvalid("have a zero bucket"));
        }
        if !self.negative.0.is_empty() || self.negative.1 != 0 {
            return Err(HistogramError::CustomBucketsInvalid("have negative buckets"));
        }
        if let Some(first) = self.positive.0.first().filter(|first| first.offset < 0) {
            return Err(HistogramError::SpanNegativeOffset(first.offset));
        }
        let buckets = check_spans(self.positive)?;
        if buckets > bounds.len() as i64 + 1 {
            return Err(HistogramError::CustomBucketsMismatch { buckets, bounds: bounds.len() });
        }
        Ok(())
    }
}

/// Checks the spans of one sign; the index after their last bucket.
fn check_spans((spans, buckets): (&[Span], usize)) -> Result<i64, HistogramError> {
    let (mut end, mut described) = (0i64, 0u64);
    for (i, span) in spans.iter().enumerate() {
        if i > 0 && span.offset < 0 {
            return Err(HistogramError::SpanNegativeOffset(span.offset));
        }
        let begin = end + i64::from(span.offset);
        end = begin + i64::from(span.length);
        described += u64::from(span.length);
        if begin < -MAX_BUCKET_INDEX || end > MAX_BUCKET_INDEX {
            let index = if begin < -MAX_BUCKET_INDEX { begin } else { end };
            return Err(HistogramError::BucketIndex(index));
        }
    }
    if described != buckets as u64 {
        return Err(HistogramError::SpansBucketsMismatch { spans: described, buckets });
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::stale_nan;

    fn good() -> Histogram {
        Histogram {
            schema: 3,
            zero_threshold: 0.001,
            zero_count: 2,
            count: 12,
            sum: 20.0,
            positive_spans: vec![Span { offset: -2, length: 2 }, Span { offset: 1, length: 1 }],
            positive_deltas: vec![1, 2, -2],
            negative_spans: vec![Span { offset: 0, length: 1 }],
            negative_deltas: vec![5],
            ..Histogram::default()
        }
    }

    fn good_custom() -> Histogram {
        Histogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            count: 3,
            sum: 5.0,
            positive_spans: vec![Span { offset: 1, length: 2 }],
            positive_deltas: vec![1, 1],
            custom_values: Arc::from([1.0, 2.0]),
            ..Histogram::default()
        }
    }

    #[track_caller]
    fn check(histogram: Histogram, expected: Option<&'static str>) {
        assert_eq!(histogram.validate().err().map(|error| error.id()), expected);
    }

    #[track_caller]
    fn check_float(histogram: Histogram, expected: Option<&'static str>) {
        assert_eq!(histogram.to_float().validate().err().map(|error| error.id()), expected);
    }

    #[track_caller]
    fn check_both(histogram: Histogram, expected: &'static str) {
        check_float(histogram.clone(), Some(expected));
        check(histogram, Some(expected));
    }

    #[test]
    fn good_ones_pass() {
        check(good(), None);
        check_float(good(), None);
        check(good_custom(), None);
        check_float(good_custom(), None);
        check(Histogram::default(), None);
    }

    #[test]
    fn a_stale_marker_passes_whatever_else_it_says() {
        check(Histogram { sum: stale_nan(), schema: 99, ..good() }, None);
        check_float(Histogram { sum: stale_nan(), schema: 99, ..good() }, None);
    }

    #[test]
    fn counts_must_agree() {
        check(Histogram { count: 11, ..good() }, Some("native-histogram-count-mismatch"));
        check(Histogram { count: 13, ..good() }, Some("native-histogram-count-mismatch"));
        check(Histogram { zero_count: u64::MAX, ..good() }, Some("native-histogram-count-mismatch"));
        check(Histogram { count: 13, sum: f64::NAN, ..good() }, None);
        check(Histogram { count: 11, sum: f64::NAN, ..good() }, Some("native-histogram-count-not-big-enough"));
        check_float(Histogram { count: 11, ..good() }, None);
        check_both(Histogram { positive_deltas: vec![1, -2, 1], ..good() }, "native-histogram-negative-bucket-count");
        let negative_zero_bucket = FloatHistogram { zero_count: -1.0, ..good().to_float() };
        assert_eq!(negative_zero_bucket.validate(), Err(HistogramError::NegativeBucketCount(-1.0)));
    }

    #[test]
    fn spans_must_fit() {
        let spans = |spans: &[(i32, u32)]| Histogram {
            positive_spans: spans.iter().map(|&(offset, length)| Span { offset, length }).collect(),
            ..good()
        };
        check_both(spans(&[(0, 2)]), "native-histogram-spans-buckets-mismatch");
        check_both(spans(&[(0, 4)]), "native-histogram-spans-buckets-mismatch");
        check_both(spans(&[(0, 2), (-1, 1)]), "native-histogram-span-negative-offset");
        check_both(spans(&[(i32::MAX, 3)]), "native-histogram-bucket-index-invalid");
        check_both(spans(&[(0, u32::MAX)]), "native-histogram-bucket-index-invalid");
        check_both(spans(&[(i32::MIN, 3)]), "native-histogram-bucket-index-invalid");
    }

    #[test]
    fn scale_must_be_known() {
        check_both(Histogram { schema: 9, ..good() }, "invalid-native-histogram-schema");
        check_both(Histogram { schema: -5, ..good() }, "invalid-native-histogram-schema");
        check_both(Histogram { zero_threshold: -1.0, ..good() }, "native-histogram-zero-threshold-invalid");
        check_both(Histogram { zero_threshold: f64::NAN, ..good() }, "native-histogram-zero-threshold-invalid");
        check_both(Histogram { custom_values: Arc::from([1.0]), ..good() }, "native-histogram-custom-buckets-invalid");
    }

    #[test]
    fn custom_bounds_must_fit() {
        let bounds = |bounds: &[f64]| Histogram { custom_values: Arc::from(bounds), ..good_custom() };
        check_both(bounds(&[1.0]), "native-histogram-custom-buckets-mismatch");
        check_both(bounds(&[2.0, 2.0]), "native-histogram-custom-buckets-invalid");
        check_both(bounds(&[f64::NAN, 2.0]), "native-histogram-custom-buckets-invalid");
        check_both(bounds(&[1.0, f64::INFINITY]), "native-histogram-custom-buckets-infinite");
        check_both(Histogram { zero_threshold: 1.0, ..good_custom() }, "native-histogram-custom-buckets-invalid");
        check_both(Histogram { zero_count: 1, count: 4, ..good_custom() }, "native-histogram-custom-buckets-invalid");
        let negative = (vec![Span { offset: 0, length: 1 }], vec![1]);
        check_both(
            Histogram { negative_spans: negative.0, negative_deltas: negative.1, count: 4, ..good_custom() },
            "native-histogram-custom-buckets-invalid",
        );
        let below = vec![Span { offset: -1, length: 2 }];
        check_both(Histogram { positive_spans: below, ..good_custom() }, "native-histogram-span-negative-offset");
    }
}
