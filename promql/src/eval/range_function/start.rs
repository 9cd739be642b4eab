//! Start timestamps: a counter that says since when it counts shows resets that its values do not, and needs no guess
//! of what it counted before its first sample in a window.
//!
//! Few series have them, so what is here is not on the way of the others: [`Starts`] of such a series is empty.

use skald_model::{Columns, Quoted};

use super::rate::seconds;
use super::{Call, RangeFunction, Window};
use crate::eval::histogram::reset::is_reset;

/// The start timestamps of one series, 0 being none; empty where the function does not look at them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Starts<'c> {
    floats: &'c [i64],
    histograms: &'c [i64],
}

/// A sample's time and start timestamp.
#[derive(Debug, Clone, Copy)]
pub(super) struct Started {
    pub(super) time: i64,
    pub(super) start: i64,
}

impl<'c> Starts<'c> {
    pub(super) fn of(columns: &'c Columns, function: RangeFunction) -> Self {
        use RangeFunction as F;
        match function {
            F::Rate | F::Increase | F::Irate | F::Resets => {
                Self { floats: &columns.float_starts, histograms: &columns.histogram_starts }
            }
            _ => Self::default(),
        }
    }

    pub(super) fn is_empty(self) -> bool {
        self.floats.is_empty() && self.histograms.is_empty()
    }

    /// Float `i` of a window.
    pub(super) fn float(self, window: &Window<'_>, i: usize) -> Started {
        let start = self.floats.get(window.first_float + i).copied().unwrap_or(0);
        Started { time: window.float_times[i], start }
    }

    /// Histogram `i` of a window.
    pub(super) fn histogram(self, window: &Window<'_>, i: usize) -> Started {
        let start = self.histograms.get(window.first_histogram + i).copied().unwrap_or(0);
        Started { time: window.histogram_times[i], start }
    }

    /// Whether the start timestamp of histogram `i` says that it follows a reset.
    pub(super) fn restarts_at(self, window: &Window<'_>, i: usize) -> bool {
        !self.histograms.is_empty() && self.histogram(window, i).restarts_after(self.histogram(window, i - 1))
    }

    /// The start timestamp of the first sample, if the whole first value was counted inside the window.
    pub(super) fn inside(self, window: &Window<'_>) -> Option<i64> {
        let first = if window.floats.is_empty() { self.histogram(window, 0) } else { self.float(window, 0) };
        (first.start != 0 && first.start > window.start && first.start < first.time).then_some(first.start)
    }

    /// Warns if a sample of a window counts from before its predecessor, but not from where that one did.
    pub(super) fn warn_overlaps(self, window: &Window<'_>, call: &mut Call<'_, '_, '_>) {
        if self.is_empty() {
            return;
        }
        let overlaps = |before: Started, after: Started| {
            after.start != 0 && after.start < before.time && after.start != before.start
        };
        let floats = (1..window.floats.len()).any(|i| overlaps(self.float(window, i - 1), self.float(window, i)));
        let histogram = |i| self.histogram(window, i);
        if floats || (1..window.histograms.len()).any(|i| overlaps(histogram(i - 1), histogram(i))) {
            let name = call.labels.metric_name().unwrap_or("");
            let text = "sample has start time that overlaps with previous sample timestamp";
            call.env.annotations.warn_counted(call.span, format!("{text} for metric {}", Quoted(name)));
        }
    }
}

impl Started {
    /// Whether the start timestamp says that the counter was reset after the sample `before`.
    pub(super) fn restarts_after(self, before: Self) -> bool {
        // A start that is not before the sample itself is unknown (equal to it) or wrong.
        if self.start == 0 || self.start >= self.time || self.start < before.time {
            return false;
        }
        // One at the sample before is a delta's; but of a sender that does not know its start, which gives its first
        // sample's time as such (or none), it is merely the first sample again.
        self.start > before.time || before.start != 0 && before.start < before.time
    }
}

/// [`super::rate::extrapolation`] of a counter that started at `start`, in the window: there it was zero, so that
/// nothing has to be guessed on the left.
pub(super) fn extrapolation(
    window: &Window<'_>,
    times: &[i64],
    start: i64,
    function: RangeFunction,
    range: i64,
) -> f64 {
    let (first, last) = (times[0], times[times.len() - 1]);
    // A single sample has no distance to others, and is not extended to the right.
    let average = if times.len() > 1 { (last - first) as f64 / 1000.0 / (times.len() - 1) as f64 } else { 0.0 };
    let mut to_end = (window.end - last) as f64 / 1000.0;
    if to_end >= average * 1.1 {
        to_end = average / 2.0;
    }
    let sampled = (last - start) as f64 / 1000.0;
    let factor = (sampled + to_end) / sampled;
    if function == RangeFunction::Rate { factor / seconds(range) } else { factor }
}

/// `resets` of a series with start timestamps.
pub(super) fn resets(window: &Window<'_>, starts: Starts<'_>) -> usize {
    let mut count = 0;
    let mut before: Option<(Started, Result<f64, usize>)> = None;
    super::rate::each_sample(window, |sample| {
        let started = match sample {
            Ok(i) => starts.float(window, i),
            Err(i) => starts.histogram(window, i),
        };
        let sample = sample.map(|i| window.floats[i]);
        if let Some((started_before, sample_before)) = before {
            let by_value = || match (sample_before, sample) {
                (Ok(a), Ok(b)) => b < a,
                (Err(a), Err(b)) => is_reset(&window.histograms[b], &window.histograms[a]),
                _ => true,
            };
            count += usize::from(started.restarts_after(started_before) || by_value());
        }
        before = Some((started, sample));
    });
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_after_the_sample_before_is_a_reset() {
        let restarts = |before: (i64, i64), after: (i64, i64)| {
            let [before, after] = [before, after].map(|(start, time)| Started { time, start });
            after.restarts_after(before)
        };
        assert!(restarts((50, 100), (150, 200)));
        assert!(restarts((0, 100), (101, 200)));
        // Since before the sample before: the same counter.
        assert!(!restarts((50, 100), (50, 200)));
        assert!(!restarts((50, 100), (99, 200)));
        // Exactly from the sample before on: a delta, if that one knew its start.
        assert!(restarts((50, 100), (100, 200)));
        assert!(!restarts((0, 100), (100, 200)));
        assert!(!restarts((100, 100), (100, 200)));
        assert!(!restarts((120, 100), (100, 200)));
        // Unknown or wrong.
        assert!(!restarts((50, 100), (0, 200)));
        assert!(!restarts((50, 100), (200, 200)));
        assert!(!restarts((50, 100), (201, 200)));
    }
}
