//! One series' samples as columns, the form decoders fill and the query engine reads.

use std::ops::Range;
use std::sync::Arc;

use crate::{FloatHistogram, QueryRange, TimestampMs};

/// Samples of one series in time order: floats and native histograms in columns of their own.
///
/// Invariants: `float_timestamps` and `float_values` have one length, `histogram_timestamps` and `histograms` too;
/// timestamps strictly increase within each pair, and no timestamp stands in both pairs. Stale markers are kept.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// When, of each float.
    pub float_timestamps: Vec<TimestampMs>,
    /// The floats.
    pub float_values: Vec<f64>,
    /// When, of each histogram.
    pub histogram_timestamps: Vec<TimestampMs>,
    /// The histograms, integer ones converted to float counts.
    pub histograms: Vec<Arc<FloatHistogram>>,
}

impl Columns {
    /// Forgets the samples, keeps the allocations.
    pub fn clear(&mut self) {
        self.float_timestamps.clear();
        self.float_values.clear();
        self.histogram_timestamps.clear();
        self.histograms.clear();
    }

    /// Removes the samples inside `range`.
    pub fn delete(&mut self, range: QueryRange) {
        let floats = inside(&self.float_timestamps, range);
        self.float_timestamps.drain(floats.clone());
        self.float_values.drain(floats);
        let histograms = inside(&self.histogram_timestamps, range);
        self.histogram_timestamps.drain(histograms.clone());
        self.histograms.drain(histograms);
    }

    /// Number of samples, floats and histograms together.
    pub fn len(&self) -> usize {
        self.float_timestamps.len() + self.histogram_timestamps.len()
    }

    /// Whether there is no sample at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a float newer than every sample before it.
    #[inline]
    pub fn push_float(&mut self, timestamp: TimestampMs, value: f64) {
        self.float_timestamps.push(timestamp);
        self.float_values.push(value);
    }

    /// Appends a histogram newer than every sample before it.
    pub fn push_histogram(&mut self, timestamp: TimestampMs, histogram: Arc<FloatHistogram>) {
        self.histogram_timestamps.push(timestamp);
        self.histograms.push(histogram);
    }
}

/// Positions of the timestamps inside `range`.
fn inside(timestamps: &[TimestampMs], range: QueryRange) -> Range<usize> {
    let start = timestamps.partition_point(|&t| t < range.min);
    let end = timestamps.partition_point(|&t| t <= range.max);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletes_closed_ranges() {
        let mut columns = Columns::default();
        for t in 0..6 {
            columns.push_float(t, t as f64);
        }
        columns.push_histogram(10, Arc::default());
        columns.delete(QueryRange { min: 2, max: 4 });
        assert_eq!(columns.float_timestamps, [0, 1, 5]);
        assert_eq!(columns.float_values, [0.0, 1.0, 5.0]);
        columns.delete(QueryRange { min: 10, max: 5 });
        assert_eq!(columns.len(), 4);
        columns.delete(QueryRange::ALL);
        assert!(columns.is_empty());
    }
}
