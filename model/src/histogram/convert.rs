//! Integer counts as floats.

use super::{FloatHistogram, Histogram};

impl Histogram {
    /// The same histogram with float counts, buckets absolute.
    pub fn to_float(&self) -> FloatHistogram {
        FloatHistogram {
            reset_hint: self.reset_hint,
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: self.zero_count as f64,
            count: self.count as f64,
            sum: self.sum,
            positive_spans: self.positive_spans.clone(),
            negative_spans: self.negative_spans.clone(),
            positive_buckets: absolute(&self.positive_deltas).map(|count| count as f64).collect(),
            negative_buckets: absolute(&self.negative_deltas).map(|count| count as f64).collect(),
            custom_values: self.custom_values.clone(),
        }
    }
}

/// Bucket counts from their differences; wraps where they overflow.
pub(super) fn absolute(deltas: &[i64]) -> impl Iterator<Item = i64> {
    deltas.iter().scan(0i64, |count, delta| {
        *count = count.wrapping_add(*delta);
        Some(*count)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Span;

    #[test]
    fn buckets_become_absolute() {
        let integer = Histogram {
            count: 9,
            zero_count: 2,
            positive_spans: vec![Span { offset: -1, length: 2 }, Span { offset: 3, length: 1 }],
            positive_deltas: vec![1, 2, -2],
            negative_spans: vec![Span { offset: 0, length: 1 }],
            negative_deltas: vec![2],
            ..Histogram::default()
        };
        let float = integer.to_float();
        assert_eq!((float.count, float.zero_count), (9.0, 2.0));
        assert_eq!(float.positive_buckets, [1.0, 3.0, 1.0]);
        assert_eq!(float.negative_buckets, [2.0]);
        assert_eq!(float.positive_spans, integer.positive_spans);
    }
}
