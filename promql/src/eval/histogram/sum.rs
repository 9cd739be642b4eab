//! Sums and means of native histograms, compensated bucket by bucket.

use std::sync::Arc;

use skald_model::histogram::{CUSTOM_BUCKETS_SCHEMA, exponential_bound};
use skald_model::{FloatHistogram, ResetHint, Span};

use super::Incompatible;
use super::bucket::buckets;
use super::counts::Counts;
use crate::eval::kahan::KahanSum;

/// Beyond this a sum of two may become infinite.
const NEAR_OVERFLOW: f64 = f64::MAX / 4.0;

/// A running sum of histograms of any layouts: it takes the coarsest resolution, the widest zero bucket and the
/// custom bounds that all have.
#[derive(Debug, Clone)]
pub(crate) struct HistogramSum {
    schema: i32,
    zero_threshold: f64,
    custom_values: Arc<[f64]>,
    zero_count: KahanSum,
    count: KahanSum,
    sum: KahanSum,
    positive: Counts,
    negative: Counts,
    hint: ResetHint,
    /// Whether a histogram after a reset and one without a reset before it were among the summands.
    saw_reset: bool,
    saw_no_reset: bool,
    /// Whether different custom bounds had to be reduced to the common ones.
    reconciled: bool,
    /// Plain addition otherwise, as binary operators have it.
    compensated: bool,
}

impl HistogramSum {
    /// The sum of one histogram; further ones are added with compensation.
    pub(crate) fn compensated(first: &FloatHistogram) -> Self {
        Self::of(first, true)
    }

    /// The sum of one histogram; further ones are added plainly.
    pub(crate) fn plain(first: &FloatHistogram) -> Self {
        Self::of(first, false)
    }

    fn of(first: &FloatHistogram, compensated: bool) -> Self {
        let mut sum = Self {
            schema: first.schema,
            zero_threshold: first.zero_threshold,
            custom_values: Arc::clone(&first.custom_values),
            zero_count: KahanSum::of(first.zero_count),
            count: KahanSum::of(first.count),
            sum: KahanSum::of(first.sum),
            positive: Counts::of(&first.positive_spans, &first.positive_buckets, compensated),
            negative: Counts::of(&first.negative_spans, &first.negative_buckets, compensated),
            hint: first.reset_hint,
            saw_reset: false,
            saw_no_reset: false,
            reconciled: false,
            compensated,
        };
        sum.note_hint(first.reset_hint);
        sum
    }

    /// Adds `other` times `factor`.
    pub(crate) fn add(&mut self, other: &FloatHistogram, factor: f64) -> Result<(), Incompatible> {
        if (self.schema == CUSTOM_BUCKETS_SCHEMA) != (other.schema == CUSTOM_BUCKETS_SCHEMA) {
            return Err(Incompatible);
        }
        self.note_hint(other.reset_hint);
        self.hint = combined_hint(self.hint, other.reset_hint);
        let zero_count = if self.schema == CUSTOM_BUCKETS_SCHEMA {
            self.add_custom(other, factor);
            other.zero_count
        } else if self.fits(other) {
            self.positive.add_spans(&other.positive_spans, &other.positive_buckets, factor);
            self.negative.add_spans(&other.negative_spans, &other.negative_buckets, factor);
            other.zero_count
        } else {
            self.add_exponential(other, factor)
        };
        let compensated = self.compensated;
        for (total, value) in
            [(&mut self.zero_count, zero_count), (&mut self.count, other.count), (&mut self.sum, other.sum)]
        {
            add_one(total, value * factor, compensated);
        }
        Ok(())
    }

    /// Whether nothing of the exponential buckets of either side has to be changed.
    fn fits(&self, other: &FloatHistogram) -> bool {
        self.schema == other.schema
            && self.zero_threshold == other.zero_threshold
            && [&other.positive_spans, &other.negative_spans]
                .into_iter()
                .all(|spans| is_outside(spans, other.schema, self.zero_threshold))
    }

    /// Adds the exponential buckets of a histogram of any layout; what its zero bucket counts by then.
    fn add_exponential(&mut self, other: &FloatHistogram, factor: f64) -> f64 {
        let zero_count = self.reconcile_zero_buckets(other);
        if self.schema > other.schema {
            self.reduce(other.schema);
        }
        let shift = other.schema.saturating_sub(self.schema) as u32;
        let (schema, limit) = (self.schema, self.zero_threshold);
        for (own, spans, counts) in [
            (&mut self.positive, &other.positive_spans, &other.positive_buckets),
            (&mut self.negative, &other.negative_spans, &other.negative_buckets),
        ] {
            // As in Prometheus, buckets are made coarser before it is looked which are in the zero bucket.
            let coarse = buckets(spans, counts).map(|(index, count)| (coarser(index, shift), count));
            own.add(coarse.filter(|(index, _)| exponential_bound(*index, schema) > limit).collect(), factor);
        }
        zero_count
    }

    /// Multiplies everything.
    pub(crate) fn scale(&mut self, factor: f64) {
        self.scale_by(factor, false);
    }

    /// Divides everything.
    pub(crate) fn divide(&mut self, divisor: f64) {
        self.scale_by(divisor, true);
    }

    fn scale_by(&mut self, by: f64, divide: bool) {
        let scaled = |value: f64| if divide { value / by } else { value * by };
        for total in [&mut self.zero_count, &mut self.count, &mut self.sum] {
            total.sum = scaled(total.sum);
            // Nothing to compensate stays nothing, whatever it is multiplied with or divided by.
            if total.compensation != 0.0 {
                total.compensation = scaled(total.compensation);
            }
        }
        self.positive.scale(by, divide);
        self.negative.scale(by, divide);
    }

    fn any(&self, f: impl Fn(f64) -> bool) -> bool {
        let buckets = self.positive.iter().chain(self.negative.iter()).map(|(_, sum)| sum);
        [self.zero_count.sum, self.count.sum, self.sum.sum].into_iter().chain(buckets).any(f)
    }

    /// All observations.
    pub(crate) fn count(&self) -> f64 {
        self.count.value()
    }

    /// Makes the resolution as coarse as `schema`, if it is finer.
    pub(crate) fn coarsen(&mut self, schema: i32) {
        if self.schema != CUSTOM_BUCKETS_SCHEMA && schema != CUSTOM_BUCKETS_SCHEMA && schema < self.schema {
            self.reduce(schema);
        }
    }

    /// Whether some summands follow a reset and others do not.
    pub(crate) fn has_collision(&self) -> bool {
        self.saw_reset && self.saw_no_reset
    }

    /// Whether different custom bounds had to be reduced to the common ones.
    pub(crate) fn is_reconciled(&self) -> bool {
        self.reconciled
    }

    /// The sum, without empty buckets.
    pub(crate) fn finish(&self) -> FloatHistogram {
        let (positive_spans, positive_buckets) = self.positive.layout();
        let (negative_spans, negative_buckets) = self.negative.layout();
        // Without compensation a negative zero stays one.
        let value = |total: KahanSum| if self.compensated { total.value() } else { total.sum };
        FloatHistogram {
            reset_hint: self.hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: value(self.zero_count),
            count: value(self.count),
            sum: value(self.sum),
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_values: Arc::clone(&self.custom_values),
        }
    }

    /// The running numbers and what rounding took from them.
    pub(super) fn parts(&self) -> [FloatHistogram; 2] {
        [self.raw(|total| total.sum), self.raw(|total| total.compensation)]
    }

    /// One part of every running number, empty buckets included: two parts have one layout.
    fn raw(&self, part: impl Fn(&KahanSum) -> f64) -> FloatHistogram {
        let (positive_spans, positive_buckets) = self.positive.raw(&part);
        let (negative_spans, negative_buckets) = self.negative.raw(&part);
        FloatHistogram {
            reset_hint: self.hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: part(&self.zero_count),
            count: part(&self.count),
            sum: part(&self.sum),
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_values: Arc::clone(&self.custom_values),
        }
    }

    /// Adds what rounding took from the numbers of a histogram that this sum was begun with.
    pub(super) fn add_compensation(&mut self, compensation: &FloatHistogram) -> Result<(), Incompatible> {
        self.add(compensation, 1.0)
    }

    /// After a reset, without a reset before, reduced bounds: whether a summand was.
    pub(super) fn flags(&self) -> (bool, bool, bool) {
        (self.saw_reset, self.saw_no_reset, self.reconciled)
    }

    pub(super) fn add_flags(&mut self, saw_reset: bool, saw_no_reset: bool, reconciled: bool) {
        self.saw_reset |= saw_reset;
        self.saw_no_reset |= saw_no_reset;
        self.reconciled |= reconciled;
    }

    /// Bytes the sum holds.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.positive.heap_bytes() + self.negative.heap_bytes()
    }

    fn note_hint(&mut self, hint: ResetHint) {
        self.saw_reset |= hint == ResetHint::Reset;
        self.saw_no_reset |= hint == ResetHint::NotReset;
    }

    fn reduce(&mut self, schema: i32) {
        let shift = self.schema.saturating_sub(schema) as u32;
        self.positive.map_indexes(|index| coarser(index, shift));
        self.negative.map_indexes(|index| coarser(index, shift));
        self.schema = schema;
    }

    /// Adds buckets of custom bounds; where these differ, both sides are reduced to those they share.
    fn add_custom(&mut self, other: &FloatHistogram, factor: f64) {
        let (spans, counts) = (&other.positive_spans, &other.positive_buckets);
        if Arc::ptr_eq(&self.custom_values, &other.custom_values) || self.custom_values == other.custom_values {
            self.positive.add_spans(spans, counts, factor);
            return;
        }
        self.reconciled = true;
        let common: Arc<[f64]> =
            self.custom_values.iter().copied().filter(|bound| other.custom_values.contains(bound)).collect();
        let moved = |bounds: &[f64], index: i32| {
            let bound = usize::try_from(index).ok().and_then(|i| bounds.get(i).copied());
            let at = bound.map_or(common.len(), |bound| common.partition_point(|c| *c < bound));
            i32::try_from(at).unwrap_or(i32::MAX)
        };
        let own = Arc::clone(&self.custom_values);
        self.positive.map_indexes(|index| moved(&own, index));
        let others = buckets(spans, counts).map(|(index, count)| (moved(&other.custom_values, index), count));
        self.positive.add(others.collect(), factor);
        self.custom_values = common;
    }

    /// Widens the narrower zero bucket; what `other`'s zero bucket counts then.
    fn reconcile_zero_buckets(&mut self, other: &FloatHistogram) -> f64 {
        let (mut zero_count, mut threshold) = (other.zero_count, other.zero_threshold);
        while threshold != self.zero_threshold {
            if self.zero_threshold > threshold {
                let buckets = || {
                    let positive = buckets(&other.positive_spans, &other.positive_buckets);
                    positive.chain(buckets(&other.negative_spans, &other.negative_buckets))
                };
                threshold = widened(self.zero_threshold, other.schema, buckets);
                let inside = buckets().filter(|(index, _)| exponential_bound(*index, other.schema) <= threshold);
                zero_count = inside.fold(other.zero_count, |sum, (_, count)| sum + count);
            }
            if threshold > self.zero_threshold {
                let own = || self.positive.iter().chain(self.negative.iter());
                self.zero_threshold = widened(threshold, self.schema, own);
                let (schema, limit, compensated) = (self.schema, self.zero_threshold, self.compensated);
                for list in [&mut self.positive, &mut self.negative] {
                    for count in list.take_while(|index| exponential_bound(index, schema) <= limit) {
                        add_one(&mut self.zero_count, count, compensated);
                    }
                }
            }
            if threshold.is_nan() || self.zero_threshold.is_nan() {
                break;
            }
        }
        zero_count
    }
}

/// The width a zero bucket of at least `threshold` gets, so that it cuts no populated bucket.
fn widened<I: Iterator<Item = (i32, f64)>>(mut threshold: f64, schema: i32, buckets: impl Fn() -> I) -> f64 {
    loop {
        let cut = buckets().find(|(index, count)| {
            *count != 0.0
                && exponential_bound(index.saturating_sub(1), schema) < threshold
                && exponential_bound(*index, schema) > threshold
        });
        match cut {
            Some((index, _)) => threshold = exponential_bound(index, schema),
            None => return threshold,
        }
    }
}

/// The bucket that holds bucket `index` at a resolution `shift` times halved.
fn coarser(index: i32, shift: u32) -> i32 {
    (index.saturating_sub(1) >> shift.min(31)) + 1
}

/// Whether all buckets of valid spans lie beyond the zero bucket.
pub(super) fn is_outside(spans: &[Span], schema: i32, zero_threshold: f64) -> bool {
    spans.split_first().is_none_or(|(first, others)| {
        exponential_bound(first.offset, schema) > zero_threshold && others.iter().all(|span| span.offset >= 0)
    })
}

fn add_one(total: &mut KahanSum, value: f64, compensated: bool) {
    if compensated {
        total.add(value);
    } else {
        total.sum += value;
    }
}

fn combined_hint(a: ResetHint, b: ResetHint) -> ResetHint {
    match (a, b) {
        _ if a == b => a,
        (ResetHint::Gauge, _) | (_, ResetHint::Gauge) => ResetHint::Gauge,
        _ => ResetHint::Unknown,
    }
}

/// A running mean of histograms: a sum that is divided in the end, or, once the sum would become infinite, a mean that
/// moves with every histogram.
#[derive(Debug, Clone)]
pub(crate) struct HistogramMean {
    total: HistogramSum,
    count: f64,
    incremental: bool,
}

impl HistogramMean {
    pub(crate) fn of(first: &FloatHistogram) -> Self {
        Self { total: HistogramSum::compensated(first), count: 1.0, incremental: false }
    }

    pub(crate) fn add(&mut self, other: &FloatHistogram) -> Result<(), Incompatible> {
        self.count += 1.0;
        if !self.incremental {
            let is_large = |value: f64| value.abs() > NEAR_OVERFLOW;
            let values = [other.zero_count, other.count, other.sum];
            let mut others = values.iter().chain(&other.positive_buckets).chain(&other.negative_buckets);
            if !self.total.any(is_large) && !others.any(|value| is_large(*value)) {
                return self.total.add(other, 1.0);
            }
            let mut total = self.total.clone();
            total.add(other, 1.0)?;
            if !total.any(f64::is_infinite) {
                self.total = total;
                return Ok(());
            }
            self.incremental = true;
            self.total.divide(self.count - 1.0);
        }
        self.total.scale((self.count - 1.0) / self.count);
        let mut part = HistogramSum::plain(other);
        part.divide(self.count);
        self.total.add(&FloatHistogram { reset_hint: other.reset_hint, ..part.finish() }, 1.0)
    }

    /// The total, the number of histograms, and whether the total is a mean already.
    pub(super) fn into_parts(self) -> (HistogramSum, f64, bool) {
        (self.total, self.count, self.incremental)
    }

    pub(super) fn from_parts(total: HistogramSum, count: f64, incremental: bool) -> Self {
        Self { total, count, incremental }
    }

    /// Takes in the mean of other histograms.
    pub(super) fn absorb(
        &mut self,
        mut other: HistogramSum,
        count: f64,
        incremental: bool,
    ) -> Result<(), Incompatible> {
        let all = self.count + count;
        let mut total = self.total.clone();
        let (saw_reset, saw_no_reset, reconciled) = other.flags();
        if !self.incremental && !incremental {
            other.parts().iter().try_for_each(|part| total.add(part, 1.0))?;
        }
        if self.incremental || incremental || total.any(f64::is_infinite) {
            total = self.total.clone();
            total.scale(if self.incremental { self.count / all } else { 1.0 / all });
            other.scale(if incremental { count / all } else { 1.0 / all });
            other.parts().iter().try_for_each(|part| total.add(part, 1.0))?;
            self.incremental = true;
        }
        total.add_flags(saw_reset, saw_no_reset, reconciled);
        (self.total, self.count) = (total, all);
        Ok(())
    }

    /// The sum or mean so far, for what there is to say about it.
    pub(crate) fn total(&self) -> &HistogramSum {
        &self.total
    }

    pub(crate) fn finish(&self) -> FloatHistogram {
        if self.incremental {
            return self.total.finish();
        }
        let mut mean = self.total.clone();
        mean.divide(self.count);
        mean.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential(schema: i32, offset: i32, counts: &[f64]) -> FloatHistogram {
        let count = counts.iter().sum();
        let spans = vec![Span { offset, length: counts.len() as u32 }];
        FloatHistogram {
            schema,
            count,
            sum: count,
            positive_spans: spans,
            positive_buckets: counts.to_vec(),
            ..FloatHistogram::default()
        }
    }

    fn custom(bounds: &[f64], counts: &[f64]) -> FloatHistogram {
        FloatHistogram { custom_values: bounds.into(), ..exponential(CUSTOM_BUCKETS_SCHEMA, 0, counts) }
    }

    #[track_caller]
    fn check_sum(a: &FloatHistogram, b: &FloatHistogram, want: &FloatHistogram) {
        for (first, second) in [(a, b), (b, a)] {
            let mut sum = HistogramSum::compensated(first);
            sum.add(second, 1.0).unwrap();
            assert_eq!(&sum.finish(), want);
        }
    }

    #[test]
    fn layouts_are_united() {
        check_sum(
            &exponential(0, 0, &[1.0, 2.0]),
            &exponential(0, 1, &[3.0, 0.0, 4.0]),
            &FloatHistogram {
                positive_spans: vec![Span { offset: 0, length: 2 }, Span { offset: 1, length: 1 }],
                ..exponential(0, 0, &[1.0, 5.0, 4.0])
            },
        );
        // Buckets 1 and 2 of schema 1 make bucket 1 of schema 0.
        check_sum(&exponential(1, 1, &[1.0, 2.0]), &exponential(0, 1, &[4.0]), &exponential(0, 1, &[7.0]));
        check_sum(&custom(&[5.0, 10.0], &[1.0, 2.0, 3.0]), &custom(&[10.0], &[4.0]), &custom(&[10.0], &[7.0, 3.0]));
        let mut sum = HistogramSum::plain(&custom(&[1.0], &[1.0]));
        assert_eq!(sum.add(&exponential(0, 0, &[1.0]), 1.0), Err(Incompatible));
    }

    #[test]
    fn the_zero_bucket_grows_over_cut_buckets() {
        // A zero bucket up to 3 cuts the populated bucket (2, 4], so it grows to 4.
        let wide = FloatHistogram { zero_threshold: 3.0, zero_count: 1.0, count: 1.0, ..FloatHistogram::default() };
        let narrow = exponential(0, 1, &[1.0, 2.0, 3.0]);
        let want =
            FloatHistogram { zero_threshold: 4.0, zero_count: 4.0, count: 7.0, sum: 6.0, ..exponential(0, 3, &[3.0]) };
        check_sum(&wide, &narrow, &want);
    }

    #[test]
    fn means_survive_overflow() {
        let huge = FloatHistogram { count: 1.5e308, sum: 1.0, ..FloatHistogram::default() };
        let mut mean = HistogramMean::of(&huge);
        mean.add(&huge).unwrap();
        assert_eq!(mean.finish(), huge);
        let mut plain = HistogramMean::of(&exponential(0, 0, &[1.0, 3.0]));
        plain.add(&exponential(0, 0, &[3.0, 5.0])).unwrap();
        assert_eq!(plain.finish(), exponential(0, 0, &[2.0, 4.0]));
    }

    #[test]
    fn hints_combine() {
        let with = |reset_hint| FloatHistogram { reset_hint, ..FloatHistogram::default() };
        let mut sum = HistogramSum::compensated(&with(ResetHint::Gauge));
        sum.add(&with(ResetHint::NotReset), 1.0).unwrap();
        assert!(!sum.has_collision());
        sum.add(&with(ResetHint::Reset), 1.0).unwrap();
        assert!(sum.has_collision());
        assert_eq!(sum.finish().reset_hint, ResetHint::Gauge);
    }
}
