//! Sums and means of native histograms, compensated bucket by bucket.

use std::sync::Arc;

use skald_model::histogram::CUSTOM_BUCKETS_SCHEMA;
use skald_model::{FloatHistogram, ResetHint, Span};

use super::Incompatible;
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
    positive: Buckets,
    negative: Buckets,
    hint: ResetHint,
    /// Whether a histogram after a reset and one without a reset before it were among the summands.
    saw_reset: bool,
    saw_no_reset: bool,
    /// Whether different custom bounds had to be reduced to the common ones.
    reconciled: bool,
    /// Plain addition otherwise, as binary operators have it.
    compensated: bool,
}

/// Counts by bucket index, ascending.
#[derive(Debug, Clone, Default)]
struct Buckets(Vec<(i32, KahanSum)>);

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
            positive: Buckets::of(buckets(&first.positive_spans, &first.positive_buckets)),
            negative: Buckets::of(buckets(&first.negative_spans, &first.negative_buckets)),
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
        let positive = buckets(&other.positive_spans, &other.positive_buckets);
        let negative = buckets(&other.negative_spans, &other.negative_buckets);
        let (positive, negative, zero_count) = if self.schema == CUSTOM_BUCKETS_SCHEMA {
            let positive = self.reconcile_bounds(other, positive);
            (positive, Vec::new(), other.zero_count)
        } else {
            let zero_count = self.reconcile_zero_buckets(other);
            // Buckets are dropped into the zero bucket at their own resolution, before they are made coarser.
            let outside = |(index, count): (i32, f64)| {
                (bound(index, other.schema) > self.zero_threshold).then_some((index, count))
            };
            let (mut positive, mut negative): (Vec<_>, Vec<_>) =
                (positive.filter_map(outside).collect(), negative.filter_map(outside).collect());
            if self.schema > other.schema {
                self.reduce(other.schema);
            } else if self.schema < other.schema {
                let shift = other.schema.saturating_sub(self.schema) as u32;
                for list in [&mut positive, &mut negative] {
                    list.iter_mut().for_each(|(index, _)| *index = coarser(*index, shift));
                }
            }
            (positive, negative, zero_count)
        };
        let compensated = self.compensated;
        self.positive.add(&positive, factor, compensated);
        self.negative.add(&negative, factor, compensated);
        for (total, value) in
            [(&mut self.zero_count, zero_count), (&mut self.count, other.count), (&mut self.sum, other.sum)]
        {
            add_one(total, value * factor, compensated);
        }
        Ok(())
    }

    /// Multiplies everything.
    pub(crate) fn scale(&mut self, factor: f64) {
        // Nothing to compensate stays nothing, whatever it is multiplied with or divided by.
        self.each(|total| {
            total.sum *= factor;
            total.compensation = if total.compensation == 0.0 { 0.0 } else { total.compensation * factor };
        });
    }

    /// Divides everything.
    pub(crate) fn divide(&mut self, divisor: f64) {
        self.each(|total| {
            total.sum /= divisor;
            total.compensation = if total.compensation == 0.0 { 0.0 } else { total.compensation / divisor };
        });
    }

    fn each(&mut self, mut f: impl FnMut(&mut KahanSum)) {
        [&mut self.zero_count, &mut self.count, &mut self.sum].into_iter().for_each(&mut f);
        self.positive.0.iter_mut().chain(&mut self.negative.0).for_each(|(_, total)| f(total));
    }

    fn any(&self, f: impl Fn(f64) -> bool) -> bool {
        let buckets = self.positive.0.iter().chain(&self.negative.0).map(|(_, total)| total.sum);
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
        FloatHistogram {
            reset_hint: self.hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: self.zero_count.value(),
            count: self.count.value(),
            sum: self.sum.value(),
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_values: Arc::clone(&self.custom_values),
        }
    }

    /// Bytes the sum holds.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + (self.positive.0.capacity() + self.negative.0.capacity()) * size_of::<(i32, KahanSum)>()
    }

    fn note_hint(&mut self, hint: ResetHint) {
        self.saw_reset |= hint == ResetHint::Reset;
        self.saw_no_reset |= hint == ResetHint::NotReset;
    }

    fn reduce(&mut self, schema: i32) {
        let shift = self.schema.saturating_sub(schema) as u32;
        let compensated = self.compensated;
        self.positive.map_indices(|index| coarser(index, shift), compensated);
        self.negative.map_indices(|index| coarser(index, shift), compensated);
        self.schema = schema;
    }

    /// Reduces the custom bounds to those both have; `other`'s buckets by the new bounds.
    fn reconcile_bounds(
        &mut self,
        other: &FloatHistogram,
        positive: impl Iterator<Item = (i32, f64)>,
    ) -> Vec<(i32, f64)> {
        if self.custom_values == other.custom_values {
            return positive.collect();
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
        self.positive.map_indices(|index| moved(&own, index), self.compensated);
        let others = positive.map(|(index, count)| (moved(&other.custom_values, index), count)).collect();
        self.custom_values = common;
        others
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
                let inside = buckets().filter(|(index, _)| bound(*index, other.schema) <= threshold);
                zero_count = inside.fold(other.zero_count, |sum, (_, count)| sum + count);
            }
            if threshold > self.zero_threshold {
                let own = || {
                    let all = self.positive.0.iter().chain(&self.negative.0);
                    all.map(|(index, total)| (*index, total.sum))
                };
                self.zero_threshold = widened(threshold, self.schema, own);
                let (schema, limit, compensated) = (self.schema, self.zero_threshold, self.compensated);
                for list in [&mut self.positive, &mut self.negative] {
                    let at = list.0.partition_point(|(index, _)| bound(*index, schema) <= limit);
                    for (_, total) in list.0.drain(..at) {
                        add_one(&mut self.zero_count, total.value(), compensated);
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
            *count != 0.0 && bound(index.saturating_sub(1), schema) < threshold && bound(*index, schema) > threshold
        });
        match cut {
            Some((index, _)) => threshold = bound(index, schema),
            None => return threshold,
        }
    }
}

/// Upper bound of an exponential bucket.
pub(crate) fn bound(index: i32, schema: i32) -> f64 {
    if schema < 0 {
        // Two to the power of a whole number; what lies outside the floats becomes infinite or zero.
        let exponent = i64::from(index) << schema.saturating_neg().min(31);
        return match exponent {
            1025.. => f64::INFINITY,
            // The last finite bucket ends at the largest float.
            1024 => f64::MAX,
            _ => 2f64.powi(i32::try_from(exponent.max(-2000)).unwrap_or(-2000)),
        };
    }
    let per_doubling = 1i64 << schema.min(31);
    let (whole, part) = (i64::from(index).div_euclid(per_doubling), i64::from(index).rem_euclid(per_doubling));
    if whole >= 1024 {
        return if whole == 1024 && part == 0 { f64::MAX } else { f64::INFINITY };
    }
    let fraction = (part as f64 / per_doubling as f64).exp2();
    fraction * 2f64.powi(i32::try_from(whole.max(-1100)).unwrap_or(-1100))
}

/// The bucket that holds bucket `index` at a resolution `shift` times halved.
fn coarser(index: i32, shift: u32) -> i32 {
    (index.saturating_sub(1) >> shift.min(31)) + 1
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

/// Index and count of every bucket that the spans lay out.
pub(crate) fn buckets<'a>(spans: &'a [Span], counts: &'a [f64]) -> impl Iterator<Item = (i32, f64)> + 'a {
    let mut next = 0i32;
    let indices = spans.iter().flat_map(move |span| {
        let first = next.saturating_add(span.offset);
        next = first.saturating_add(i32::try_from(span.length).unwrap_or(i32::MAX));
        first..next
    });
    indices.zip(counts.iter().copied())
}

impl Buckets {
    fn of(list: impl Iterator<Item = (i32, f64)>) -> Self {
        Self(list.map(|(index, count)| (index, KahanSum::of(count))).collect())
    }

    /// Adds counts to buckets; `list` ascends, equal indices stand together.
    fn add(&mut self, list: &[(i32, f64)], factor: f64, compensated: bool) {
        let mut at = 0;
        let mut missing = Vec::new();
        for (index, count) in list {
            while self.0.get(at).is_some_and(|(own, _)| own < index) {
                at += 1;
            }
            match self.0.get_mut(at) {
                Some((own, total)) if own == index => add_one(total, count * factor, compensated),
                _ => missing.push((*index, KahanSum::of(count * factor))),
            }
        }
        if !missing.is_empty() {
            self.0.extend(missing);
            self.0.sort_by_key(|(index, _)| *index);
            self.join_equal(compensated);
        }
    }

    fn map_indices(&mut self, map: impl Fn(i32) -> i32, compensated: bool) {
        self.0.iter_mut().for_each(|(index, _)| *index = map(*index));
        self.join_equal(compensated);
    }

    fn join_equal(&mut self, compensated: bool) {
        self.0.dedup_by(|later, first| {
            let same = later.0 == first.0;
            if same {
                add_one(&mut first.1, later.1.sum, compensated);
                first.1.compensation += later.1.compensation;
            }
            same
        });
    }

    fn layout(&self) -> (Vec<Span>, Vec<f64>) {
        let mut spans: Vec<Span> = Vec::new();
        let mut counts = Vec::with_capacity(self.0.len());
        let mut next = 0;
        for (index, total) in &self.0 {
            let count = total.value();
            if count == 0.0 {
                continue;
            }
            match spans.last_mut() {
                Some(span) if *index == next => span.length += 1,
                _ => spans.push(Span { offset: index.saturating_sub(next), length: 1 }),
            }
            next = index.saturating_add(1);
            counts.push(count);
        }
        (spans, counts)
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
            if !self.total.any(is_large) && !HistogramSum::plain(other).any(is_large) {
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

    #[test]
    fn bounds_are_powers_of_two() {
        for (index, schema, want) in
            [(0, 0, 1.0), (1, 0, 2.0), (-1, 0, 0.5), (2, 1, 2.0), (1, -1, 4.0), (1024, 0, f64::MAX)]
        {
            assert_eq!(bound(index, schema), want);
        }
        assert_eq!(bound(i32::MAX, 8), f64::INFINITY);
        assert_eq!(bound(i32::MIN, -4), 0.0);
    }
}
