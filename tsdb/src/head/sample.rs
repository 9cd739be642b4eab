//! One sample of either kind, and when two are the same.

use skald_model::{FloatHistogram, Histogram, HistogramValue, ResetHint, STALE_NAN_BITS, Span, TimestampMs};

use crate::chunk::histogram::{Float, HistogramAppender, Integer, ResetHeader};

/// A sample's value.
#[derive(Debug, Clone)]
pub(super) enum SampleValue {
    Float(f64),
    Histogram(HistogramValue),
}

/// A sample with its time.
#[derive(Debug, Clone)]
pub(super) struct TimedSample {
    pub(super) time: TimestampMs,
    pub(super) value: SampleValue,
    /// Its start timestamp; 0 is none. No part of what a sample is: one is the same with another start.
    pub(super) start: TimestampMs,
}

impl SampleValue {
    /// Whether both are the same value, bit by bit; of histograms the reset hint and empty buckets do not count, since
    /// storing a histogram may change those.
    pub(super) fn is_same(&self, other: &SampleValue) -> bool {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.to_bits() == b.to_bits(),
            (Self::Histogram(HistogramValue::Integer(a)), Self::Histogram(HistogramValue::Integer(b))) => {
                same_integer(a, b)
            }
            (Self::Histogram(HistogramValue::Float(a)), Self::Histogram(HistogramValue::Float(b))) => same_float(a, b),
            _ => false,
        }
    }
}

/// Takes words and gives one that hardly any other sequence of them gives: two multiplications of 64 bits each, folded. The
/// same in every process and version, because members of a replica group compare what comes of it.
#[derive(Clone, Copy)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub(super) fn new(kind: u64) -> Self {
        Self(0x9E37_79B9_7F4A_7C15 ^ kind)
    }

    #[inline]
    pub(super) fn add(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0xA076_1D64_78BD_642F) * u128::from(word ^ 0xE703_7ED1_A0B4_28DB);
        self.0 = (product as u64 ^ (product >> 64) as u64).rotate_left(29) ^ self.0.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    }

    #[inline]
    pub(super) fn finish(self) -> u64 {
        let product = u128::from(self.0 ^ 0x8EBC_6AF0_9C88_C6E3) * 0x5895_65C5_9F3A_3B2D_u128;
        product as u64 ^ (product >> 64) as u64 ^ self.0.rotate_left(32)
    }
}

/// Of a float sample.
#[inline]
pub(super) fn float_fingerprint(time: TimestampMs, value: f64) -> u64 {
    let mut fingerprint = Fingerprint::new(1);
    fingerprint.add(time as u64);
    fingerprint.add(value.to_bits());
    fingerprint.finish()
}

/// Of any sample: equal for the same time and values that [`SampleValue::is_same`] calls the same.
pub(super) fn fingerprint(time: TimestampMs, value: &SampleValue) -> u64 {
    let histogram = match value {
        SampleValue::Float(value) => return float_fingerprint(time, *value),
        SampleValue::Histogram(histogram) => histogram,
    };
    let kind = match histogram {
        HistogramValue::Integer(_) => 2,
        HistogramValue::Float(_) => 3,
    };
    let mut fingerprint = Fingerprint::new(kind);
    fingerprint.add(time as u64);
    let (sum, schema, threshold, bounds) = match histogram {
        HistogramValue::Integer(h) => (h.sum, h.schema, h.zero_threshold, &h.custom_values),
        HistogramValue::Float(h) => (h.sum, h.schema, h.zero_threshold, &h.custom_values),
    };
    fingerprint.add(sum.to_bits());
    if is_stale(sum) {
        return fingerprint.finish();
    }
    fingerprint.add(i64::from(schema) as u64);
    fingerprint.add(threshold.to_bits());
    fingerprint.add(bounds.len() as u64);
    bounds.iter().for_each(|bound| fingerprint.add(bound.to_bits()));
    let mut bucket = |(index, count): (i64, u64)| {
        fingerprint.add(index as u64);
        fingerprint.add(count);
    };
    // The sides are told apart by an index no bucket has.
    const BETWEEN: (i64, u64) = (i64::MIN, 0);
    match histogram {
        HistogramValue::Integer(h) => {
            bucket((h.zero_count as i64, h.count));
            counts(&h.positive_spans, &h.positive_deltas).for_each(|(index, count)| bucket((index, count as u64)));
            bucket(BETWEEN);
            counts(&h.negative_spans, &h.negative_deltas).for_each(|(index, count)| bucket((index, count as u64)));
        }
        HistogramValue::Float(h) => {
            bucket((h.zero_count.to_bits() as i64, h.count.to_bits()));
            float_counts(&h.positive_spans, &h.positive_buckets).for_each(&mut bucket);
            bucket(BETWEEN);
            float_counts(&h.negative_spans, &h.negative_buckets).for_each(&mut bucket);
        }
    }
    fingerprint.finish()
}

fn same_integer(a: &Histogram, b: &Histogram) -> bool {
    if is_stale(a.sum) || is_stale(b.sum) {
        return a.sum.to_bits() == b.sum.to_bits();
    }
    (a.schema, a.count, a.zero_count) == (b.schema, b.count, b.zero_count)
        && a.sum.to_bits() == b.sum.to_bits()
        && a.zero_threshold.to_bits() == b.zero_threshold.to_bits()
        && a.custom_values == b.custom_values
        && counts(&a.positive_spans, &a.positive_deltas).eq(counts(&b.positive_spans, &b.positive_deltas))
        && counts(&a.negative_spans, &a.negative_deltas).eq(counts(&b.negative_spans, &b.negative_deltas))
}

fn same_float(a: &FloatHistogram, b: &FloatHistogram) -> bool {
    if is_stale(a.sum) || is_stale(b.sum) {
        return a.sum.to_bits() == b.sum.to_bits();
    }
    a.schema == b.schema
        && a.count.to_bits() == b.count.to_bits()
        && a.zero_count.to_bits() == b.zero_count.to_bits()
        && a.sum.to_bits() == b.sum.to_bits()
        && a.zero_threshold.to_bits() == b.zero_threshold.to_bits()
        && a.custom_values == b.custom_values
        && float_counts(&a.positive_spans, &a.positive_buckets).eq(float_counts(&b.positive_spans, &b.positive_buckets))
        && float_counts(&a.negative_spans, &a.negative_buckets).eq(float_counts(&b.negative_spans, &b.negative_buckets))
}

fn is_stale(sum: f64) -> bool {
    sum.to_bits() == STALE_NAN_BITS
}

/// Populated buckets: index and count.
fn counts<'a>(spans: &'a [Span], deltas: &'a [i64]) -> impl Iterator<Item = (i64, i64)> + 'a {
    let absolute = deltas.iter().scan(0_i64, |sum, delta| {
        *sum = sum.wrapping_add(*delta);
        Some(*sum)
    });
    indexes(spans).zip(absolute).filter(|(_, count)| *count != 0)
}

fn float_counts<'a>(spans: &'a [Span], buckets: &'a [f64]) -> impl Iterator<Item = (i64, u64)> + 'a {
    indexes(spans).zip(buckets).filter(|(_, count)| **count != 0.0).map(|(index, count)| (index, count.to_bits()))
}

fn indexes(spans: &[Span]) -> impl Iterator<Item = i64> {
    spans
        .iter()
        .scan(0_i64, |at, span| {
            let start = *at + i64::from(span.offset);
            *at = start + i64::from(span.length);
            Some(start..*at)
        })
        .flatten()
}

/// An open histogram chunk of either kind.
pub(super) enum OpenHistogram {
    Integer(HistogramAppender<Integer>),
    Float(HistogramAppender<Float>),
}

/// Evaluates an expression for either kind of appender.
macro_rules! either {
    ($open:expr, $appender:ident => $result:expr) => {
        match $open {
            OpenHistogram::Integer($appender) => $result,
            OpenHistogram::Float($appender) => $result,
        }
    };
}
pub(super) use either;

impl OpenHistogram {
    /// Starts a chunk; `None` when the histogram's spans do not fit its buckets.
    pub(super) fn start(time: TimestampMs, value: &HistogramValue, header: ResetHeader) -> Option<Self> {
        match value {
            HistogramValue::Integer(h) => HistogramAppender::<Integer>::start(time, h, header).ok().map(Self::Integer),
            HistogramValue::Float(h) => HistogramAppender::<Float>::start(time, h, header).ok().map(Self::Float),
        }
    }

    /// The header of a chunk that has none before it.
    pub(super) fn first_header(value: &HistogramValue) -> ResetHeader {
        ResetHeader::from_hint(hint(value))
    }

    /// Whether the chunk's last sample is this one.
    pub(super) fn last_is_same(&self, value: &HistogramValue) -> bool {
        match (self, value) {
            (Self::Integer(open), HistogramValue::Integer(h)) => open.last_equals(h),
            (Self::Float(open), HistogramValue::Float(h)) => open.last_equals(h),
            _ => false,
        }
    }
}

fn hint(value: &HistogramValue) -> ResetHint {
    match value {
        HistogramValue::Integer(h) => h.reset_hint,
        HistogramValue::Float(h) => h.reset_hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn empty_buckets_and_hints_do_not_matter() {
        let base = Histogram {
            count: 3,
            sum: 1.0,
            positive_spans: vec![Span { offset: 1, length: 2 }],
            positive_deltas: vec![1, 1],
            ..Histogram::default()
        };
        let wider = Histogram {
            reset_hint: ResetHint::NotReset,
            positive_spans: vec![Span { offset: 0, length: 3 }, Span { offset: 2, length: 1 }],
            positive_deltas: vec![0, 1, 1, -2],
            ..base.clone()
        };
        let value = |h: &Histogram| SampleValue::Histogram(HistogramValue::Integer(Arc::new(h.clone())));
        assert!(value(&base).is_same(&value(&wider)));
        assert_eq!(fingerprint(5, &value(&base)), fingerprint(5, &value(&wider)));
        assert_ne!(fingerprint(5, &value(&base)), fingerprint(6, &value(&base)));
        let more = Histogram { count: 4, ..wider };
        assert!(!value(&base).is_same(&value(&more)));
        assert_ne!(fingerprint(5, &value(&base)), fingerprint(5, &value(&more)));
        let turned = Histogram {
            negative_spans: base.positive_spans.clone(),
            negative_deltas: base.positive_deltas.clone(),
            positive_spans: Vec::new(),
            positive_deltas: Vec::new(),
            ..base.clone()
        };
        assert_ne!(fingerprint(5, &value(&base)), fingerprint(5, &value(&turned)));
        assert!(!SampleValue::Float(0.0).is_same(&SampleValue::Float(-0.0)));
        assert!(SampleValue::Float(f64::NAN).is_same(&SampleValue::Float(f64::NAN)));
    }
}
