//! One series' chunks, from wherever they come, as columns of samples.

use std::sync::Arc;

use skald_model::{Columns, QueryRange, ResetHint, TimestampMs};

use crate::chunk::{Chunk, ChunkError, started};

/// Appends the samples of one series' chunks that lie in `range` to `out`, which is cleared first.
///
/// The chunks may come in any order, repeat and overlap: replicas of a head, its out-of-order samples, blocks that cover
/// the same time. Identical ones are decoded once; where different ones overlap, one sample survives per timestamp, that
/// of the chunk given first. On an error `out` holds an unspecified part.
pub fn decode_series(chunks: &[Chunk], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    out.clear();
    let is_wanted = |c: &Chunk| c.min_time <= range.max && range.min <= c.max_time;
    if chunks.windows(2).all(|pair| pair[0].max_time < pair[1].min_time) {
        return chunks.iter().filter(|c| is_wanted(c)).try_for_each(|chunk| decode_chunk(chunk, range, out));
    }
    let order = (0..chunks.len()).filter(|&i| is_wanted(&chunks[i])).collect();
    let mut merge = Merge::default();
    for_each_run(chunks, order, |run| match run {
        [alone] => decode_chunk(&chunks[*alone], range, out),
        overlapping => merge.decode(chunks, overlapping, range, out),
    })
}

/// Calls `each` with every run of chunks that overlap one another, directly or through others, in time order. Of
/// identical chunks only the first is among them.
///
/// `order` holds the indexes of the chunks to look at; a run holds such indexes.
pub(crate) fn for_each_run(
    chunks: &[Chunk],
    mut order: Vec<usize>,
    mut each: impl FnMut(&mut [usize]) -> Result<(), ChunkError>,
) -> Result<(), ChunkError> {
    order.sort_by_key(|&i| (chunks[i].min_time, chunks[i].max_time, i));
    order.dedup_by(|b, a| chunks[*a] == chunks[*b]);
    let mut run = 0;
    while run < order.len() {
        let mut end = run + 1;
        let mut max_time = chunks[order[run]].max_time;
        while end < order.len() && chunks[order[end]].min_time <= max_time {
            max_time = max_time.max(chunks[order[end]].max_time);
            end += 1;
        }
        each(&mut order[run..end])?;
        run = end;
    }
    Ok(())
}

/// Appends one chunk's samples that lie in `range`. A chunk with samples outside its own times is damaged: whoever relied
/// on them would put samples in the wrong order.
pub(crate) fn decode_chunk(chunk: &Chunk, range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    let before = (out.float_timestamps.len(), out.histogram_timestamps.len());
    started::decode(chunk.encoding, &chunk.data, range, out)?;
    let times = match chunk.encoding.is_float() {
        true => &out.float_timestamps[before.0..],
        false => &out.histogram_timestamps[before.1..],
    };
    let inside = |time: Option<&TimestampMs>| time.is_none_or(|t| (chunk.min_time..=chunk.max_time).contains(t));
    if inside(times.first()) && inside(times.last()) { Ok(()) } else { Err(ChunkError::Malformed("time")) }
}

/// Up to so many float chunks that overlap at one time are merged one after the other; more are sorted. Replicas are two or
/// three; many are a head's small out-of-order chunks.
const MAX_PAIRWISE: usize = 8;

/// Merges chunks that overlap; keeps its allocations between runs.
#[derive(Default)]
pub(crate) struct Merge {
    columns: Vec<Columns>,
    samples: Vec<Position>,
}

/// Where a sample stands; ordered by time, then by the chunk's place in the caller's list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    time: TimestampMs,
    chunk: usize,
    lane: usize,
    is_histogram: bool,
    index: usize,
}

impl Merge {
    /// Appends the samples of a run of [`for_each_run`] that lie in `range`.
    pub(crate) fn decode(
        &mut self,
        chunks: &[Chunk],
        overlapping: &mut [usize],
        range: QueryRange,
        out: &mut Columns,
    ) -> Result<(), ChunkError> {
        let is_float = |&chunk: &usize| chunks[chunk].encoding.is_float();
        if overlapping.iter().all(is_float) && (overlapping.len() <= MAX_PAIRWISE || is_shallow(chunks, overlapping)) {
            return self.decode_floats(chunks, overlapping, range, out);
        }
        self.columns.resize_with(self.columns.len().max(overlapping.len()), Columns::default);
        self.samples.clear();
        for (lane, &chunk) in overlapping.iter().enumerate() {
            let columns = &mut self.columns[lane];
            columns.clear();
            decode_chunk(&chunks[chunk], range, columns)?;
            let position = |is_histogram| {
                move |(index, &time): (usize, &TimestampMs)| Position { time, chunk, lane, is_histogram, index }
            };
            self.samples.extend(columns.float_timestamps.iter().enumerate().map(position(false)));
            self.samples.extend(columns.histogram_timestamps.iter().enumerate().map(position(true)));
        }
        self.samples.sort_unstable();
        self.samples.dedup_by_key(|sample| sample.time);
        let mut histogram_source = None;
        for sample in &self.samples {
            let columns = &self.columns[sample.lane];
            if !sample.is_histogram {
                out.push_float(sample.time, columns.float_values[sample.index]);
                out.start_last_float(columns.float_starts.get(sample.index).copied().unwrap_or(0));
                continue;
            }
            let mut histogram = columns.histograms[sample.index].clone();
            // What a chunk knows of resets holds between its own samples only.
            if histogram_source.replace(sample.lane) != Some(sample.lane) && histogram.reset_hint != ResetHint::Gauge {
                Arc::make_mut(&mut histogram).reset_hint = ResetHint::Unknown;
            }
            out.push_histogram(sample.time, histogram);
            out.start_last_histogram(columns.histogram_starts.get(sample.index).copied().unwrap_or(0));
        }
        Ok(())
    }

    /// Merges float chunks of which few overlap at one time, mostly those of replicas.
    fn decode_floats(
        &mut self,
        chunks: &[Chunk],
        overlapping: &mut [usize],
        range: QueryRange,
        out: &mut Columns,
    ) -> Result<(), ChunkError> {
        // The chunk given first wins.
        overlapping.sort_unstable();
        self.columns.resize_with(self.columns.len().max(2), Columns::default);
        let [next, tail, ..] = &mut self.columns[..] else { return Ok(()) };
        let start = out.float_timestamps.len();
        for &chunk in overlapping.iter() {
            next.clear();
            decode_chunk(&chunks[chunk], range, next)?;
            let Some(&first) = next.float_timestamps.first() else { continue };
            // What is there and comes before this chunk stays as it is.
            let keep = start + out.float_timestamps[start..].partition_point(|&time| time < first);
            tail.clear();
            tail.float_timestamps.extend_from_slice(&out.float_timestamps[keep..]);
            tail.float_values.extend_from_slice(&out.float_values[keep..]);
            tail.float_starts.extend_from_slice(out.float_starts.get(keep..).unwrap_or_default());
            out.float_timestamps.truncate(keep);
            out.float_values.truncate(keep);
            out.float_starts.truncate(keep);
            if tail.float_starts.is_empty() && next.float_starts.is_empty() {
                merge_floats(tail, next, out);
            } else {
                merge_started_floats(tail, next, out);
            }
        }
        Ok(())
    }
}

/// Whether the chunks are given in time order, and at no time more than a few overlap.
pub(crate) fn is_shallow(chunks: &[Chunk], overlapping: &[usize]) -> bool {
    let mut newest = TimestampMs::MIN;
    let ends = overlapping.iter().map(|&chunk| {
        newest = newest.max(chunks[chunk].max_time);
        newest
    });
    let later = overlapping.iter().skip(MAX_PAIRWISE);
    overlapping.is_sorted() && ends.zip(later).all(|(end, &later)| end < chunks[later].min_time)
}

/// Appends the floats of both to `out`; where both have a sample, `first`'s.
pub(crate) fn merge_floats(first: &Columns, second: &Columns, out: &mut Columns) {
    let (a, b) = (&first.float_timestamps[..], &second.float_timestamps[..]);
    let (a_values, b_values) = (&first.float_values[..a.len()], &second.float_values[..b.len()]);
    let start = out.float_timestamps.len();
    out.float_timestamps.resize(start + a.len() + b.len(), 0);
    out.float_values.resize(start + a.len() + b.len(), 0.0);
    let (times, values) = (&mut out.float_timestamps[start..], &mut out.float_values[start..]);
    let (mut i, mut j, mut merged) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        // Without a branch on which comes first: where senders interleave, that is anybody's guess.
        let is_first = a[i] <= b[j];
        let is_second = b[j] <= a[i];
        times[merged] = if is_first { a[i] } else { b[j] };
        values[merged] = if is_first { a_values[i] } else { b_values[j] };
        (i, j, merged) = (i + usize::from(is_first), j + usize::from(is_second), merged + 1);
    }
    for (rest, rest_values) in [(&a[i..], &a_values[i..]), (&b[j..], &b_values[j..])] {
        let all = merged..merged + rest.len();
        times[all.clone()].copy_from_slice(rest);
        values[all.clone()].copy_from_slice(rest_values);
        merged = all.end;
    }
    out.float_timestamps.truncate(start + merged);
    out.float_values.truncate(start + merged);
}

/// The same where samples have start timestamps, sample by sample.
fn merge_started_floats(first: &Columns, second: &Columns, out: &mut Columns) {
    let (mut i, mut j) = (0, 0);
    loop {
        let (a, b) = (first.float_timestamps.get(i), second.float_timestamps.get(j));
        let (columns, at) = match (a, b) {
            (None, None) => return,
            (Some(a), Some(b)) if b < a => (second, &mut j),
            (None, Some(_)) => (second, &mut j),
            (Some(a), b) => {
                j += usize::from(b == Some(a));
                (first, &mut i)
            }
        };
        out.push_float(columns.float_timestamps[*at], columns.float_values[*at]);
        out.start_last_float(columns.float_starts.get(*at).copied().unwrap_or(0));
        *at += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use skald_model::Histogram;

    use super::*;
    use crate::chunk::Encoding;
    use crate::chunk::histogram::{Appended, HistogramAppender, Integer, ResetHeader};
    use crate::chunk::xor::XorAppender;

    fn chunk(samples: &[(i64, f64)]) -> Chunk {
        let (mut appender, mut data) = (XorAppender::new(), Vec::new());
        for (time, value) in samples {
            appender.append(&mut data, *time, *value).unwrap();
        }
        Chunk {
            min_time: samples[0].0,
            max_time: samples[samples.len() - 1].0,
            encoding: Encoding::Xor,
            data: data.into(),
        }
    }

    proptest! {
        #[test]
        fn one_sample_survives_per_timestamp(
            parts in proptest::collection::vec(proptest::collection::btree_map(0_i64..60, -5_i8..5, 1..12), 0..12),
            min in 0_i64..30,
            len in 0_i64..60,
        ) {
            let chunks: Vec<Chunk> = parts
                .iter()
                .map(|part| chunk(&part.iter().map(|(t, v)| (*t, f64::from(*v))).collect::<Vec<_>>()))
                .collect();
            let range = QueryRange { min, max: min + len };
            let mut expected: BTreeMap<i64, f64> = BTreeMap::new();
            for part in &parts {
                for (t, v) in part.iter().filter(|(t, _)| range.contains(**t)) {
                    expected.entry(*t).or_insert(f64::from(*v));
                }
            }
            let mut out = Columns::default();
            out.push_float(-1, 1.0);
            decode_series(&chunks, range, &mut out).unwrap();
            prop_assert_eq!(&out.float_timestamps, &expected.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(&out.float_values, &expected.values().copied().collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn long_runs_of_replicas_are_merged(
            replicas in proptest::collection::vec((1_usize..9, proptest::collection::btree_map(0_i64..300, -5_i8..5, 30..120)), 1..4),
            by_time: bool,
        ) {
            let mut chunks: Vec<Chunk> = Vec::new();
            for (len, samples) in &replicas {
                let samples: Vec<_> = samples.iter().map(|(t, v)| (*t, f64::from(*v))).collect();
                chunks.extend(samples.chunks(*len).map(chunk));
            }
            if by_time {
                chunks.sort_by_key(|chunk| (chunk.min_time, chunk.max_time));
            }
            let mut expected: BTreeMap<i64, u64> = BTreeMap::new();
            let mut out = Columns::default();
            for chunk in &chunks {
                out.clear();
                decode_chunk(chunk, QueryRange::ALL, &mut out).unwrap();
                for (t, v) in out.float_timestamps.iter().zip(&out.float_values) {
                    expected.entry(*t).or_insert(v.to_bits());
                }
            }
            decode_series(&chunks, QueryRange::ALL, &mut out).unwrap();
            prop_assert_eq!(&out.float_timestamps, &expected.keys().copied().collect::<Vec<_>>());
            let bits: Vec<u64> = out.float_values.iter().map(|v| v.to_bits()).collect();
            prop_assert_eq!(bits, expected.into_values().collect::<Vec<_>>());
        }
    }

    fn histogram_chunk(times: &[i64]) -> Chunk {
        let sample = |time: i64| Histogram { count: time as u64, zero_count: time as u64, ..Histogram::default() };
        let mut appender =
            HistogramAppender::<Integer>::start(times[0], &sample(times[0]), ResetHeader::Unknown).unwrap();
        for &time in &times[1..] {
            assert_eq!(appender.append(time, &sample(time)).unwrap(), Appended::InPlace);
        }
        Chunk {
            min_time: times[0],
            max_time: times[times.len() - 1],
            encoding: Encoding::Histogram,
            data: appender.into_bytes().into(),
        }
    }

    #[test]
    fn a_switch_of_chunks_forgets_what_was_known_of_resets() {
        let chunks = [histogram_chunk(&[10, 20, 30, 40]), histogram_chunk(&[15, 20, 50])];
        let mut out = Columns::default();
        decode_series(&chunks, QueryRange::ALL, &mut out).unwrap();
        assert_eq!(out.histogram_timestamps, [10, 15, 20, 30, 40, 50]);
        use ResetHint::{NotReset, Unknown};
        let hints: Vec<ResetHint> = out.histograms.iter().map(|h| h.reset_hint).collect();
        assert_eq!(hints, [Unknown, Unknown, Unknown, NotReset, NotReset, Unknown]);
    }

    #[test]
    fn floats_and_histograms_share_the_timeline() {
        let chunks = [chunk(&[(10, 1.0), (30, 2.0)]), histogram_chunk(&[10, 20])];
        let mut out = Columns::default();
        decode_series(&chunks, QueryRange::ALL, &mut out).unwrap();
        assert_eq!((out.float_timestamps, out.histogram_timestamps), (vec![10, 30], vec![20]));
    }

    #[test]
    fn damage_is_an_error() {
        let mut broken = chunk(&[(10, 1.0), (30, 2.0)]);
        broken.data = broken.data.slice(..5);
        assert!(decode_series(&[broken], QueryRange::ALL, &mut Columns::default()).is_err());

        let lies = [Chunk { max_time: 20, ..chunk(&[(10, 1.0), (30, 2.0)]) }, chunk(&[(25, 1.0)])];
        assert_eq!(decode_series(&lies, QueryRange::ALL, &mut Columns::default()), Err(ChunkError::Malformed("time")));
        let lies = [Chunk { min_time: 20, ..chunk(&[(10, 1.0), (30, 2.0)]) }];
        assert_eq!(decode_series(&lies, QueryRange::ALL, &mut Columns::default()), Err(ChunkError::Malformed("time")));
    }
}
