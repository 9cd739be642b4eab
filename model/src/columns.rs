//! One series' samples as columns, the form decoders fill and the query engine reads.

use std::ops::Range;
use std::sync::Arc;

use crate::{FloatHistogram, QueryRange, TimestampMs};

/// Samples of one series in time order: floats and native histograms in columns of their own.
///
/// Invariants: `float_timestamps` and `float_values` have one length, `histogram_timestamps` and `histograms` too;
/// timestamps strictly increase within each pair, and no timestamp stands in both pairs. Stale markers are kept.
///
/// Start timestamps say when a counter began to count what a sample has. Few series have them: their columns are never
/// longer than the samples' own, and samples beyond their end have none.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// When, of each float.
    pub float_timestamps: Vec<TimestampMs>,
    /// The floats.
    pub float_values: Vec<f64>,
    /// The start timestamps of the floats from the first on; 0 is none.
    pub float_starts: Vec<TimestampMs>,
    /// When, of each histogram.
    pub histogram_timestamps: Vec<TimestampMs>,
    /// The histograms, integer ones converted to float counts.
    pub histograms: Vec<Arc<FloatHistogram>>,
    /// The start timestamps of the histograms from the first on; 0 is none.
    pub histogram_starts: Vec<TimestampMs>,
}

impl Columns {
    /// Forgets the samples, keeps the allocations.
    pub fn clear(&mut self) {
        self.float_timestamps.clear();
        self.float_values.clear();
        self.float_starts.clear();
        self.histogram_timestamps.clear();
        self.histograms.clear();
        self.histogram_starts.clear();
    }

    /// Removes the samples inside `range`.
    pub fn delete(&mut self, range: QueryRange) {
        let floats = inside(&self.float_timestamps, range);
        self.float_timestamps.drain(floats.clone());
        self.float_starts.drain(clip(&self.float_starts, &floats));
        self.float_values.drain(floats);
        let histograms = inside(&self.histogram_timestamps, range);
        self.histogram_timestamps.drain(histograms.clone());
        self.histogram_starts.drain(clip(&self.histogram_starts, &histograms));
        self.histograms.drain(histograms);
    }

    /// Appends the samples of `other` inside `range`, all of them newer than those here.
    pub fn extend_from(&mut self, other: &Columns, range: QueryRange) {
        let floats = inside(&other.float_timestamps, range);
        extend_starts(&mut self.float_starts, self.float_values.len(), &other.float_starts, &floats);
        self.float_timestamps.extend_from_slice(&other.float_timestamps[floats.clone()]);
        self.float_values.extend_from_slice(&other.float_values[floats]);
        let histograms = inside(&other.histogram_timestamps, range);
        extend_starts(&mut self.histogram_starts, self.histograms.len(), &other.histogram_starts, &histograms);
        self.histogram_timestamps.extend_from_slice(&other.histogram_timestamps[histograms.clone()]);
        self.histograms.extend_from_slice(&other.histograms[histograms]);
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

    /// Gives the newest float a start timestamp.
    pub fn start_last_float(&mut self, start: TimestampMs) {
        set_last(&mut self.float_starts, self.float_values.len(), start);
    }

    /// Gives the newest histogram a start timestamp.
    pub fn start_last_histogram(&mut self, start: TimestampMs) {
        set_last(&mut self.histogram_starts, self.histograms.len(), start);
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

/// The part of a range of samples that has start timestamps.
fn clip(starts: &[TimestampMs], samples: &Range<usize>) -> Range<usize> {
    samples.start.min(starts.len())..samples.end.min(starts.len())
}

/// Appends start timestamps of `samples` of `other` to those of `before` samples.
fn extend_starts(starts: &mut Vec<TimestampMs>, before: usize, other: &[TimestampMs], samples: &Range<usize>) {
    let other = &other[clip(other, samples)];
    if !other.is_empty() {
        starts.resize(before, 0);
        starts.extend_from_slice(other);
    }
}

fn set_last(starts: &mut Vec<TimestampMs>, samples: usize, start: TimestampMs) {
    if start != 0 && samples > 0 {
        starts.resize(samples, 0);
        starts[samples - 1] = start;
    }
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

    #[test]
    fn start_timestamps_stay_with_their_samples() {
        let mut columns = Columns::default();
        for (t, start) in [(10, 0), (20, 15), (30, 0), (40, 35), (50, 0)] {
            columns.push_float(t, 0.0);
            columns.start_last_float(start);
            columns.push_histogram(t + 1, Arc::default());
            columns.start_last_histogram(start + 1);
        }
        assert_eq!(columns.float_starts, [0, 15, 0, 35]);
        columns.delete(QueryRange { min: 25, max: 30 });
        assert_eq!(columns.float_starts, [0, 15, 35]);
        assert_eq!(columns.histogram_starts, [1, 16, 1, 36, 1]);

        let mut cut = Columns::default();
        cut.push_float(1, 0.0);
        cut.extend_from(&columns, QueryRange { min: 40, max: 50 });
        assert_eq!((&cut.float_timestamps[..], &cut.float_starts[..]), (&[1, 40, 50][..], &[0, 35][..]));
        assert_eq!(cut.histogram_starts, [36]);
        cut.extend_from(&Columns::default(), QueryRange::ALL);
        assert_eq!(cut.float_starts, [0, 35]);
        cut.clear();
        assert!(cut.float_starts.is_empty() && cut.histogram_starts.is_empty());
    }
}
