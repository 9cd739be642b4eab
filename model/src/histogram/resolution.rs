//! Coarser buckets: every step down halves the resolution and merges neighbours.
//!
//! Bucket `i` of schema `s` lies inside bucket `((i - 1) >> n) + 1` of schema `s - n`: bounds of coarser schemas are
//! bounds of finer ones, so nothing is estimated.

use std::ops::AddAssign;
use std::sync::Arc;

use super::bucket::bucket_indexes;
use super::convert::absolute;
use super::{CUSTOM_BUCKETS_SCHEMA, EXPONENTIAL_SCHEMAS, FloatHistogram, Histogram, Span};
use crate::HistogramValue;

/// A histogram with more buckets than allowed and no coarser schema: custom bounds, or the coarsest one already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("histogram of schema {schema} has {buckets} buckets, which cannot be reduced to {limit}")]
pub struct NotReducible {
    /// Its schema.
    pub schema: i32,
    /// Its buckets in that schema.
    pub buckets: usize,
    /// How many are allowed.
    pub limit: usize,
}

impl Histogram {
    /// Merges buckets until the schema is `schema`; custom bounds and coarser schemas are left alone.
    ///
    /// Spans and buckets that do not match are cut to the shorter.
    pub fn reduce_resolution(&mut self, schema: i32) {
        let Some(shift) = shift(self.schema, schema) else { return };
        for (spans, deltas) in [
            (&mut self.positive_spans, &mut self.positive_deltas),
            (&mut self.negative_spans, &mut self.negative_deltas),
        ] {
            let (coarse_spans, counts) = merge::<_, Wrapping>(spans, absolute(deltas), shift);
            *spans = coarse_spans;
            let mut before = 0i64;
            *deltas = counts
                .into_iter()
                .map(|Wrapping(count)| count.wrapping_sub(std::mem::replace(&mut before, count)))
                .collect();
        }
        self.schema = schema;
    }
}

impl FloatHistogram {
    /// Merges buckets until the schema is `schema`; custom bounds and coarser schemas are left alone.
    ///
    /// Spans and buckets that do not match are cut to the shorter.
    pub fn reduce_resolution(&mut self, schema: i32) {
        let Some(shift) = shift(self.schema, schema) else { return };
        for (spans, buckets) in [
            (&mut self.positive_spans, &mut self.positive_buckets),
            (&mut self.negative_spans, &mut self.negative_buckets),
        ] {
            (*spans, *buckets) = merge(spans, buckets.iter().copied(), shift);
        }
        self.schema = schema;
    }
}

impl HistogramValue {
    /// Resolution.
    pub fn schema(&self) -> i32 {
        match self {
            Self::Integer(histogram) => histogram.schema,
            Self::Float(histogram) => histogram.schema,
        }
    }

    /// Number of buckets, empty ones included, the zero bucket not.
    pub fn num_buckets(&self) -> usize {
        match self {
            Self::Integer(h) => h.positive_deltas.len() + h.negative_deltas.len(),
            Self::Float(h) => h.positive_buckets.len() + h.negative_buckets.len(),
        }
    }

    /// Merges buckets until the schema is `schema`; custom bounds and coarser schemas are left alone.
    pub fn reduce_resolution(&mut self, schema: i32) {
        if shift(self.schema(), schema).is_none() {
            return;
        }
        match self {
            Self::Integer(histogram) => Arc::make_mut(histogram).reduce_resolution(schema),
            Self::Float(histogram) => Arc::make_mut(histogram).reduce_resolution(schema),
        }
    }

    /// Merges buckets, a schema at a time, until there are at most `limit`; says whether it had to.
    ///
    /// On an error the histogram has the coarsest resolution there is.
    pub fn reduce_to_buckets(&mut self, limit: usize) -> Result<bool, NotReducible> {
        let mut reduced = false;
        while self.num_buckets() > limit {
            let schema = self.schema();
            if schema == CUSTOM_BUCKETS_SCHEMA || schema <= *EXPONENTIAL_SCHEMAS.start() {
                return Err(NotReducible { schema, buckets: self.num_buckets(), limit });
            }
            self.reduce_resolution(schema - 1);
            reduced = true;
        }
        Ok(reduced)
    }
}

/// By how many halvings `from` becomes `to`; `None` when there is nothing to do.
fn shift(from: i32, to: i32) -> Option<u32> {
    if from == CUSTOM_BUCKETS_SCHEMA || from <= to {
        return None;
    }
    Some(from.abs_diff(to).min(63))
}

/// An integer count that wraps, as integer histograms' sums of differences do.
#[derive(Debug, Clone, Copy)]
struct Wrapping(i64);

impl From<i64> for Wrapping {
    fn from(count: i64) -> Self {
        Self(count)
    }
}

impl AddAssign for Wrapping {
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

/// Merges the buckets of one sign whose coarser index is the same.
fn merge<T, C: From<T> + AddAssign>(
    spans: &[Span],
    counts: impl Iterator<Item = T>,
    shift: u32,
) -> (Vec<Span>, Vec<C>) {
    let (mut coarse_spans, mut coarse): (Vec<Span>, Vec<C>) = (Vec::new(), Vec::new());
    // The index after the last coarse bucket.
    let mut end = 0i64;
    for (index, count) in bucket_indexes(spans).zip(counts) {
        let target = ((index - 1) >> shift) + 1;
        match (coarse_spans.last_mut(), coarse.last_mut()) {
            (Some(_), Some(last)) if target < end => {
                *last += C::from(count);
                continue;
            }
            (Some(span), _) if target == end => span.length += 1,
            _ => {
                let distance = (target - end).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
                coarse_spans.push(Span { offset: distance as i32, length: 1 });
            }
        }
        coarse.push(C::from(count));
        end = target + 1;
    }
    (coarse_spans, coarse)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Buckets as an upper bound's logarithm (base two) to count, which does not depend on the schema's indexes.
    fn by_index(spans: &[Span], counts: impl Iterator<Item = i64>) -> BTreeMap<i64, i64> {
        bucket_indexes(spans).zip(counts).collect()
    }

    fn spans() -> impl Strategy<Value = Vec<Span>> {
        proptest::collection::vec((0i32..9, 0u32..6), 0..5).prop_map(|spans| {
            let mut spans: Vec<Span> = spans.into_iter().map(|(offset, length)| Span { offset, length }).collect();
            if let Some(first) = spans.first_mut() {
                first.offset = first.offset * 5 - 20;
            }
            spans
        })
    }

    proptest! {
        #[test]
        fn every_count_moves_to_the_bucket_around_it(spans in spans(), counts in proptest::collection::vec(0i64..100, 30), by in 0i32..8) {
            let n = bucket_indexes(&spans).count();
            let mut before = 0;
            let deltas = counts[..n].iter().map(|&count| count - std::mem::replace(&mut before, count)).collect();
            let fine = Histogram { schema: 4, positive_spans: spans, positive_deltas: deltas, ..Histogram::default() };
            let mut expected: BTreeMap<i64, i64> = BTreeMap::new();
            for (index, count) in by_index(&fine.positive_spans, counts[..n].iter().copied()) {
                // The coarse bucket (2^((j-1) 2^by), 2^(j 2^by)] holds the fine index i when (j-1) 2^by < i <= j 2^by.
                *expected.entry((index as f64 / f64::from(1 << by)).ceil() as i64).or_default() += count;
            }
            let mut coarse = fine.clone();
            coarse.reduce_resolution(4 - by);
            prop_assert_eq!(coarse.schema, 4 - by);
            prop_assert_eq!(by_index(&coarse.positive_spans, absolute(&coarse.positive_deltas)), expected);
            prop_assert!(by == 0 || coarse.positive_spans.iter().skip(1).all(|span| span.offset > 0));

            let mut float = fine.to_float();
            float.reduce_resolution(4 - by);
            prop_assert_eq!(float, coarse.to_float());
        }

        #[test]
        fn unchecked_spans_never_panic(spans: Vec<(i32, u8)>, deltas: Vec<i64>, to in -4i32..9) {
            let spans = spans.into_iter().map(|(offset, length)| Span { offset, length: u32::from(length) }).collect();
            let mut h = Histogram { schema: 52, positive_spans: spans, positive_deltas: deltas, ..Histogram::default() };
            h.reduce_resolution(to);
            let _ = h.validate();
        }
    }

    #[test]
    fn buckets_are_reduced_to_a_limit() {
        let fine = Histogram {
            schema: 2,
            positive_spans: vec![Span { offset: 1, length: 8 }],
            positive_deltas: vec![1, 0, 0, 0, 0, 0, 0, 0],
            ..Histogram::default()
        };
        let mut value = HistogramValue::Integer(Arc::new(fine.clone()));
        assert_eq!(value.reduce_to_buckets(8), Ok(false));
        assert_eq!(value.reduce_to_buckets(3), Ok(true));
        assert_eq!((value.schema(), value.num_buckets()), (0, 2));
        assert_eq!(value.reduce_to_buckets(0), Err(NotReducible { schema: -4, buckets: 1, limit: 0 }));
        let custom = Histogram { schema: CUSTOM_BUCKETS_SCHEMA, ..fine };
        let refused = HistogramValue::Integer(Arc::new(custom)).reduce_to_buckets(3);
        assert_eq!(refused, Err(NotReducible { schema: CUSTOM_BUCKETS_SCHEMA, buckets: 8, limit: 3 }));
    }
}
