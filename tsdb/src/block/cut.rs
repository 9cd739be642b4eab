//! Taking deleted samples out of encoded chunks.

use std::sync::Arc;

use skald_model::{Columns, HistogramSample, HistogramValue, QueryRange, TimestampMs};

use crate::SeriesChunks;
use crate::chunk::histogram::{Appended, Float, HistogramAppender, Integer, Kind, ResetHeader, for_each_sample};
use crate::chunk::xor::XorAppender;
use crate::chunk::{Chunk, ChunkError, Encoding, started};

impl SeriesChunks {
    /// Takes the deleted samples out of the chunks, so that nothing is left to hide. Only chunks that hold deleted samples
    /// are encoded anew (floats as [`Encoding::Xor`], or [`Encoding::Xor2`] where they have start timestamps); those of nothing else go. On an error the series is unusable.
    pub fn cut_deleted(&mut self) -> Result<(), ChunkError> {
        let deleted = std::mem::take(&mut self.deleted);
        if deleted.is_empty() {
            return Ok(());
        }
        for chunk in std::mem::take(&mut self.chunks) {
            let whole = QueryRange { min: chunk.min_time, max: chunk.max_time };
            if deleted.iter().all(|range| range.intersect(whole).is_empty()) {
                self.chunks.push(chunk);
            } else if !deleted.iter().any(|range| range.contains(whole.min) && range.contains(whole.max)) {
                let keep = |time: TimestampMs| !deleted.iter().any(|range| range.contains(time));
                recode(&chunk, keep, &mut self.chunks)?;
            }
        }
        Ok(())
    }
}

/// Adds chunks with the samples of `chunk` whose times `keep` wants.
fn recode(chunk: &Chunk, keep: impl Fn(TimestampMs) -> bool, out: &mut Vec<Chunk>) -> Result<(), ChunkError> {
    let mut starts = Vec::new();
    let mut plain = Vec::new();
    if chunk.encoding.is_float() {
        recode_floats(chunk, keep, &mut starts, &mut plain)?;
    } else {
        let mut samples = Vec::new();
        for_each_sample(chunk.encoding, &chunk.data, QueryRange::ALL, |sample, start| {
            if keep(sample.timestamp) {
                starts.push((sample.timestamp, start));
                samples.push(sample);
            }
        })?;
        recode_histograms(chunk, &samples, &mut plain)?;
    }
    out.extend(started::give_starts(plain, &starts)?);
    Ok(())
}

fn recode_floats(
    chunk: &Chunk,
    keep: impl Fn(TimestampMs) -> bool,
    starts: &mut Vec<(TimestampMs, TimestampMs)>,
    out: &mut Vec<Chunk>,
) -> Result<(), ChunkError> {
    let mut columns = Columns::default();
    started::decode(chunk.encoding, &chunk.data, QueryRange::ALL, &mut columns)?;
    let given = columns.float_starts.iter().copied().chain(std::iter::repeat(0));
    starts.extend(columns.float_timestamps.iter().copied().zip(given).filter(|(time, _)| keep(*time)));
    let (mut appender, mut data) = (XorAppender::new(), Vec::new());
    let mut times = None;
    for (&time, &value) in columns.float_timestamps.iter().zip(&columns.float_values) {
        if keep(time) {
            // There are no more than before, so that the chunk cannot be full.
            appender.append(&mut data, time, value).map_err(|_| ChunkError::Malformed("sample count"))?;
            times = Some((times.map_or(time, |(min, _)| min), time));
        }
    }
    if let Some((min_time, max_time)) = times {
        out.push(Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() });
    }
    Ok(())
}

/// Adds chunks of what is left of the histograms of `chunk`.
fn recode_histograms(chunk: &Chunk, samples: &[HistogramSample], out: &mut Vec<Chunk>) -> Result<(), ChunkError> {
    let has_starts = chunk.encoding != chunk.encoding.plain();
    let flags = chunk.data.get(if has_starts { 0 } else { 2 }).copied().unwrap_or_default();
    let header = match ResetHeader::from_flags(flags) {
        ResetHeader::Gauge => ResetHeader::Gauge,
        // What the header says of the sample before holds only for the chunk's first sample.
        known if samples.first().is_some_and(|first| first.timestamp == chunk.min_time) => known,
        _ => ResetHeader::Unknown,
    };
    let time = |sample: &HistogramSample| sample.timestamp;
    if chunk.encoding.plain() == Encoding::Histogram {
        let integer = |s: &HistogramSample| match &s.value {
            HistogramValue::Integer(histogram) => Some((time(s), histogram.clone())),
            HistogramValue::Float(_) => None,
        };
        encode::<Integer>(samples.iter().filter_map(integer), header, out)
    } else {
        let float = |s: &HistogramSample| match &s.value {
            HistogramValue::Float(histogram) => Some((time(s), histogram.clone())),
            HistogramValue::Integer(_) => None,
        };
        encode::<Float>(samples.iter().filter_map(float), header, out)
    }
}

/// Adds chunks of histograms that stood in one chunk, and so normally fit one again.
fn encode<K: Kind>(
    samples: impl Iterator<Item = (TimestampMs, Arc<K::Sample>)>,
    header: ResetHeader,
    out: &mut Vec<Chunk>,
) -> Result<(), ChunkError> {
    let invalid = |_| ChunkError::Malformed("histogram");
    let mut open: Option<HistogramAppender<K>> = None;
    for (time, sample) in samples {
        let next_header = match &mut open {
            None => header,
            Some(appender) => match appender.append(time, &sample).map_err(invalid)? {
                Appended::InPlace | Appended::Recoded => continue,
                Appended::CutNewChunk(next_header) => next_header,
            },
        };
        out.extend(open.take().map(finish));
        open = Some(HistogramAppender::<K>::start(time, &sample, next_header).map_err(invalid)?);
    }
    out.extend(open.map(finish));
    Ok(())
}

fn finish<K: Kind>(appender: HistogramAppender<K>) -> Chunk {
    let (min_time, max_time) = (appender.min_time(), appender.max_time());
    Chunk { min_time, max_time, encoding: K::ENCODING, data: appender.into_bytes().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode_series;
    use proptest::prelude::*;
    use skald_model::{Histogram, Labels, Span};

    fn float_chunk(times: &[i64]) -> Chunk {
        let (mut appender, mut data) = (XorAppender::new(), Vec::new());
        times.iter().for_each(|&t| appender.append(&mut data, t, t as f64).unwrap());
        let (min_time, max_time) = (times[0], times[times.len() - 1]);
        Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() }
    }

    fn histogram_chunk(times: &[i64]) -> Chunk {
        let histogram = |t: i64| Histogram {
            count: t as u64 + 1,
            zero_count: 1,
            positive_spans: vec![Span { offset: 2, length: 1 }],
            positive_deltas: vec![t],
            sum: t as f64,
            ..Histogram::default()
        };
        let mut chunks = Vec::new();
        let samples = times.iter().map(|&t| (t, Arc::new(histogram(t))));
        encode::<Integer>(samples, ResetHeader::Reset, &mut chunks).unwrap();
        assert_eq!(chunks.len(), 1);
        chunks.remove(0)
    }

    proptest! {
        #[test]
        fn cutting_chunks_is_cutting_columns(
            parts in proptest::collection::vec((any::<bool>(), proptest::collection::btree_set(0_i64..100, 1..20)), 1..4),
            deleted in proptest::collection::vec((0_i64..400, 0_i64..60), 0..4),
        ) {
            let chunks: Vec<Chunk> = parts.iter().enumerate().map(|(i, (floats, times))| {
                let times: Vec<i64> = times.iter().map(|t| t + i as i64 * 100).collect();
                if *floats { float_chunk(&times) } else { histogram_chunk(&times) }
            }).collect();
            let mut deleted: Vec<_> = deleted.into_iter().map(|(min, len)| QueryRange { min, max: min + len }).collect();
            crate::block::tombstones::normalize(&mut deleted);
            let mut expected = Columns::default();
            decode_series(&chunks, QueryRange::ALL, &mut expected).unwrap();
            crate::block::cut_columns(&mut expected, &deleted);

            let mut cut = SeriesChunks { labels: Labels::empty(), chunks: chunks.clone(), deleted: deleted.clone() };
            cut.cut_deleted().unwrap();
            prop_assert!(cut.deleted.is_empty());
            let mut found = Columns::default();
            decode_series(&cut.chunks, QueryRange::ALL, &mut found).unwrap();
            prop_assert_eq!(&found.float_timestamps, &expected.float_timestamps);
            prop_assert_eq!(&found.float_values, &expected.float_values);
            prop_assert_eq!(&found.histogram_timestamps, &expected.histogram_timestamps);
            for (found, expected) in found.histograms.iter().zip(&expected.histograms) {
                let found = skald_model::FloatHistogram { reset_hint: expected.reset_hint, ..(**found).clone() };
                prop_assert_eq!(&found, &**expected);
            }
            let untouched = |c: &&Chunk| deleted.iter().all(|d| d.max < c.min_time || d.min > c.max_time);
            for chunk in chunks.iter().filter(untouched) {
                prop_assert!(cut.chunks.contains(chunk));
            }
        }
    }
}
