//! When a chunk ends (Prometheus' rules, tsdb-format reference section 5).

use skald_model::TimestampMs;

/// Samples after which a float chunk's end is predicted: a quarter of the 120 aimed at.
const PREDICT_AT_SAMPLES: u16 = 30;
/// Most samples of a float chunk.
const MAX_SAMPLES: u16 = 240;
/// Bytes beyond which a float chunk takes no further sample: 1024 less the largest sample.
const MAX_BYTES: usize = 1005;
/// Bytes a histogram chunk aims at; its end is predicted at a quarter of them.
const HISTOGRAM_BYTES: usize = 1024;
/// Bytes at which a histogram chunk is cut whatever the prediction said.
const HISTOGRAM_MAX_BYTES: usize = 2048;
/// Samples a histogram chunk has at least, unless its range ends.
const HISTOGRAM_MIN_SAMPLES: u16 = 10;

/// First instant after the aligned range in which `time` lies.
pub(super) fn range_end(time: TimestampMs, range_ms: i64) -> TimestampMs {
    time.div_euclid(range_ms).saturating_add(1).saturating_mul(range_ms)
}

/// The predicted end of a chunk that is `1/ratio` full: what is left of the range, in equal parts.
fn predict(start: TimestampMs, last: TimestampMs, end: TimestampMs, ratio: f64) -> TimestampMs {
    let parts = end.saturating_sub(start) as f64 / ((last.saturating_sub(start).saturating_add(1)) as f64 * ratio);
    if parts <= 1.0 {
        return end;
    }
    start.saturating_add(((end.saturating_sub(start)) as f64 / parts.floor()) as i64)
}

/// Where a float chunk of `samples` from `start` to `last` shall end, if that is to be decided now.
pub(super) fn predict_floats(
    samples: u16,
    start: TimestampMs,
    last: TimestampMs,
    end: TimestampMs,
) -> Option<TimestampMs> {
    (samples == PREDICT_AT_SAMPLES).then(|| predict(start, last, end, 4.0))
}

/// Whether a float chunk is closed before a sample at `time`.
#[inline]
pub(super) fn float_chunk_is_full(samples: u16, bytes: usize, time: TimestampMs, cut_at: TimestampMs) -> bool {
    time >= cut_at || samples >= MAX_SAMPLES || bytes > MAX_BYTES
}

/// Where a histogram chunk of `bytes` from `start` to `last` shall end.
pub(super) fn predict_histograms(
    bytes: usize,
    start: TimestampMs,
    last: TimestampMs,
    end: TimestampMs,
) -> Option<TimestampMs> {
    (bytes >= HISTOGRAM_BYTES / 4).then(|| predict(start, last, end, HISTOGRAM_BYTES as f64 / bytes as f64))
}

/// Whether a histogram chunk is closed before a sample at `time`.
pub(super) fn histogram_chunk_is_full(
    samples: u16,
    bytes: usize,
    time: TimestampMs,
    cut_at: TimestampMs,
    range_end: TimestampMs,
) -> bool {
    time >= range_end || (samples >= HISTOGRAM_MIN_SAMPLES && (time >= cut_at || bytes >= HISTOGRAM_MAX_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_every_15_seconds_gives_120_samples() {
        let range = 7_200_000;
        assert_eq!(predict_floats(30, 0, 29 * 15_000, range), Some(1_800_000));
        assert_eq!(predict_floats(29, 0, 28 * 15_000, range), None);
        assert_eq!(predict_floats(30, 7_000_000, 7_199_000, range), Some(range));
    }

    #[test]
    fn ranges_are_aligned_on_both_sides_of_zero() {
        assert_eq!((range_end(0, 10), range_end(9, 10), range_end(10, 10), range_end(-1, 10)), (10, 10, 20, 0));
        assert_eq!(range_end(i64::MAX, 10), i64::MAX);
    }
}
