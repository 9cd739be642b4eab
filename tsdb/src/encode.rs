//! Samples as chunks, where they are not appended to a head: compaction and late samples.

use std::borrow::Cow;

use skald_model::{Columns, FloatHistogram, Histogram, HistogramValue, QueryRange, ResetHint, TimestampMs};

use crate::chunk::histogram::{
    Appended, Float, HistogramAppender, Integer, InvalidHistogram, Kind, ResetHeader, for_each_sample,
};
use crate::chunk::started::{self, StartWriter};
use crate::chunk::xor::{self, XorAppender};
use crate::chunk::{Chunk, ChunkError, Encoding, xor2};
use crate::decode::{Merge, for_each_run, is_shallow};
use crate::overlap::Overlap;

/// Most samples of a chunk, as Prometheus' compaction has it.
const MAX_SAMPLES: u16 = 120;

/// Encodes one series' samples, given in time order, into chunks of at most 120 samples. Start timestamps stand beside, as
/// heads have them; [`started::for_block`] makes chunks for blocks of them.
#[derive(Debug, Default)]
pub struct ChunkEncoder {
    done: Vec<Chunk>,
    open: Open,
    /// Of the open chunk.
    starts: StartWriter,
    /// Samples of the open chunk, and the last one's time.
    samples: usize,
    last_time: TimestampMs,
}

/// The chunk that takes the next sample, if that is of its kind.
#[derive(Debug, Default)]
enum Open {
    #[default]
    None,
    Float {
        appender: XorAppender,
        min_time: TimestampMs,
        data: Vec<u8>,
    },
    Integer(HistogramAppender<Integer>),
    FloatHistogram(HistogramAppender<Float>),
}

impl ChunkEncoder {
    /// Adds a float.
    pub fn push_float(&mut self, time: TimestampMs, value: f64) {
        self.push_started_float(time, value, 0);
    }

    /// Adds a float with its start timestamp; 0 is none.
    pub fn push_started_float(&mut self, time: TimestampMs, value: f64, start: TimestampMs) {
        self.encode_float(time, value);
        self.note(time, start);
    }

    /// Adds a native histogram with its start timestamp; 0 is none.
    pub fn push_started_histogram(
        &mut self,
        time: TimestampMs,
        histogram: &HistogramValue,
        start: TimestampMs,
    ) -> Result<(), InvalidHistogram> {
        match histogram {
            HistogramValue::Integer(histogram) => self.push_integer(time, histogram)?,
            HistogramValue::Float(histogram) => self.push_float_histogram(time, histogram)?,
        }
        self.note(time, start);
        Ok(())
    }

    /// The open chunk has got a sample.
    fn note(&mut self, time: TimestampMs, start: TimestampMs) {
        self.starts.push(self.samples, self.last_time, time, start);
        (self.samples, self.last_time) = (self.samples + 1, time);
    }

    fn encode_float(&mut self, time: TimestampMs, value: f64) {
        if let Open::Float { appender, data, .. } = &mut self.open
            && appender.num_samples() < MAX_SAMPLES
            && appender.append(data, time, value).is_ok()
        {
            return;
        }
        self.close();
        let (mut appender, mut data) = (XorAppender::new(), Vec::with_capacity(256));
        // An empty chunk has room.
        if appender.append(&mut data, time, value).is_ok() {
            self.open = Open::Float { appender, min_time: time, data };
        }
    }

    /// Adds a native histogram; integer ones stay such.
    pub fn push_histogram(&mut self, time: TimestampMs, histogram: &HistogramValue) -> Result<(), InvalidHistogram> {
        self.push_started_histogram(time, histogram, 0)
    }

    fn push_integer(&mut self, time: TimestampMs, histogram: &Histogram) -> Result<(), InvalidHistogram> {
        let open = match &mut self.open {
            Open::Integer(open) => Some(open),
            _ => None,
        };
        let Some(header) = append(open, time, histogram, histogram.reset_hint)? else { return Ok(()) };
        self.close();
        self.open = Open::Integer(HistogramAppender::start(time, histogram, header)?);
        Ok(())
    }

    fn push_float_histogram(&mut self, time: TimestampMs, histogram: &FloatHistogram) -> Result<(), InvalidHistogram> {
        let open = match &mut self.open {
            Open::FloatHistogram(open) => Some(open),
            _ => None,
        };
        let Some(header) = append(open, time, histogram, histogram.reset_hint)? else { return Ok(()) };
        self.close();
        self.open = Open::FloatHistogram(HistogramAppender::start(time, histogram, header)?);
        Ok(())
    }

    /// The chunks of all samples, in time order.
    pub fn finish(mut self) -> Vec<Chunk> {
        self.close();
        self.done
    }

    fn close(&mut self) {
        let closed = match std::mem::take(&mut self.open) {
            Open::None => None,
            Open::Float { appender, min_time, data } => {
                let max_time = appender.last_time();
                Some(Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() })
            }
            Open::Integer(appender) => Some(finished(appender)),
            Open::FloatHistogram(appender) => Some(finished(appender)),
        };
        self.done.extend(closed.map(|chunk| started::with_column(chunk, &self.starts)));
        self.starts.clear();
        self.samples = 0;
    }
}

/// Appends to an open chunk of the right kind; otherwise gives the header of the chunk to start.
fn append<K: Kind>(
    open: Option<&mut HistogramAppender<K>>,
    time: TimestampMs,
    histogram: &K::Sample,
    hint: ResetHint,
) -> Result<Option<ResetHeader>, InvalidHistogram> {
    let Some(open) = open else {
        // What the sample's own chunk knew of resets need not hold after another kind of sample.
        return Ok(Some(match ResetHeader::from_hint(hint) {
            ResetHeader::NotReset => ResetHeader::Unknown,
            header => header,
        }));
    };
    if open.num_samples() >= MAX_SAMPLES {
        return Ok(Some(open.header_of_next(histogram)));
    }
    Ok(match open.append(time, histogram)? {
        Appended::InPlace | Appended::Recoded => None,
        Appended::CutNewChunk(header) => Some(header),
    })
}

fn finished<K: Kind>(appender: HistogramAppender<K>) -> Chunk {
    let (min_time, max_time) = (appender.min_time(), appender.max_time());
    Chunk { min_time, max_time, encoding: K::ENCODING, data: appender.into_bytes().into() }
}

/// Encodes a series' samples. Histograms become float histogram chunks, whatever they were decoded from; to keep integer
/// counts, use [`without_overlaps`] or a [`ChunkEncoder`].
pub fn encode_columns(columns: &Columns) -> Result<Vec<Chunk>, InvalidHistogram> {
    if columns.histogram_timestamps.is_empty() {
        let mut chunks = Vec::new();
        encode_floats(columns, &mut chunks);
        return Ok(chunks);
    }
    let mut encoder = ChunkEncoder::default();
    let start_of = |starts: &[TimestampMs], at: usize| starts.get(at).copied().unwrap_or(0);
    let float = |at: usize, encoder: &mut ChunkEncoder| {
        let (time, value) = (columns.float_timestamps[at], columns.float_values[at]);
        encoder.push_started_float(time, value, start_of(&columns.float_starts, at));
    };
    let mut floats = 0..columns.float_timestamps.len();
    for (at, (&time, histogram)) in columns.histogram_timestamps.iter().zip(&columns.histograms).enumerate() {
        while floats.start < floats.end && columns.float_timestamps[floats.start] < time {
            float(floats.start, &mut encoder);
            floats.start += 1;
        }
        let start = start_of(&columns.histogram_starts, at);
        encoder.push_float_histogram(time, histogram)?;
        encoder.note(time, start);
    }
    floats.for_each(|at| float(at, &mut encoder));
    // What was just encoded decodes.
    started::for_block(&encoder.finish(), true).map(Cow::into_owned).map_err(|_| InvalidHistogram)
}

/// Adds chunks of the floats, which ascend.
fn encode_floats(columns: &Columns, out: &mut Vec<Chunk>) {
    let per_chunk = usize::from(MAX_SAMPLES);
    let Columns { float_timestamps: times, float_values: values, float_starts, .. } = columns;
    let mut starts = float_starts.chunks(per_chunk);
    for (times, values) in times.chunks(per_chunk).zip(values.chunks(per_chunk)) {
        let starts = starts.next().filter(|starts| starts.iter().any(|start| *start != 0));
        if let (Some(&min_time), Some(&max_time)) = (times.first(), times.last()) {
            let (encoding, data) = match starts {
                None => (Encoding::Xor, xor::encode(times, values)),
                Some(starts) => (Encoding::Xor2, xor2::encode(times, values, starts)),
            };
            out.push(Chunk { min_time, max_time, encoding, data: data.into() });
        }
    }
}

/// One series' chunks, given in any order, as chunks that ascend and do not overlap: what a block holds.
///
/// Chunks that overlap no other stay as they are, identical ones become one. Others are decoded and merged, with one sample
/// surviving per timestamp, that of the chunk given first, and new chunks made.
pub fn without_overlaps(chunks: &[Chunk]) -> Result<Vec<Chunk>, ChunkError> {
    Untangle::default().chunks(chunks)
}

/// [`without_overlaps`] of many series; keeps its allocations.
#[derive(Default)]
pub(crate) struct Untangle {
    overlap: Overlap,
    merge: Merge,
    columns: Columns,
    samples: Vec<Sample>,
}

impl Untangle {
    /// The chunks of a series without overlaps.
    pub(crate) fn chunks(&mut self, chunks: &[Chunk]) -> Result<Vec<Chunk>, ChunkError> {
        if chunks.is_sorted_by(|a, b| a.max_time < b.min_time) {
            return Ok(chunks.to_vec());
        }
        let mut out = Vec::with_capacity(chunks.len());
        for_each_run(chunks, (0..chunks.len()).collect(), |run| match run {
            [alone] => {
                out.push(chunks[*alone].clone());
                Ok(())
            }
            _ => self.run(chunks, run, &mut out),
        })?;
        Ok(out)
    }

    /// Adds the chunks of a run of [`for_each_run`].
    fn run(&mut self, chunks: &[Chunk], run: &mut [usize], out: &mut Vec<Chunk>) -> Result<(), ChunkError> {
        let Self { overlap, merge, columns, samples } = self;
        if run.iter().all(|&chunk| chunks[chunk].encoding.is_float()) {
            if is_shallow(chunks, run) && overlap.merge(chunks, run, usize::from(MAX_SAMPLES), out) {
                return Ok(());
            }
            columns.clear();
            merge.decode(chunks, run, QueryRange::ALL, columns)?;
            encode_floats(columns, out);
            return Ok(());
        }
        samples.clear();
        for &mut chunk in run {
            decode(&chunks[chunk], chunk, samples)?;
        }
        samples.sort_by_key(|sample| (sample.time, sample.chunk));
        samples.dedup_by_key(|sample| sample.time);
        let mut encoder = ChunkEncoder::default();
        for sample in samples {
            match &sample.value {
                Value::Float(value) => encoder.push_started_float(sample.time, *value, sample.start),
                Value::Histogram(histogram) => encoder
                    .push_started_histogram(sample.time, histogram, sample.start)
                    .map_err(|InvalidHistogram| ChunkError::Malformed("histogram"))?,
            }
        }
        out.extend_from_slice(&started::for_block(&encoder.finish(), true)?);
        Ok(())
    }
}

/// A decoded sample and the chunk it is from.
struct Sample {
    time: TimestampMs,
    chunk: usize,
    value: Value,
    start: TimestampMs,
}

enum Value {
    Float(f64),
    Histogram(HistogramValue),
}

/// Adds all samples of a chunk, as they were written.
fn decode(chunk: &Chunk, index: usize, out: &mut Vec<Sample>) -> Result<(), ChunkError> {
    if !chunk.encoding.is_float() {
        return for_each_sample(chunk.encoding, &chunk.data, QueryRange::ALL, |sample, start| {
            out.push(Sample { time: sample.timestamp, chunk: index, value: Value::Histogram(sample.value), start });
        });
    }
    let mut columns = Columns::default();
    started::decode(chunk.encoding, &chunk.data, QueryRange::ALL, &mut columns)?;
    let starts = columns.float_starts.iter().copied().chain(std::iter::repeat(0));
    let floats = columns.float_timestamps.iter().zip(&columns.float_values).zip(starts);
    out.extend(floats.map(|((&time, &value), start)| Sample { time, chunk: index, value: Value::Float(value), start }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use skald_model::Span;

    use super::*;
    use crate::decode::decode_series;

    /// A counter histogram whose one bucket counts `count`.
    fn histogram(count: u32) -> Histogram {
        Histogram {
            count: u64::from(count),
            sum: f64::from(count),
            positive_spans: vec![Span { offset: 0, length: 1 }],
            positive_deltas: vec![i64::from(count)],
            ..Histogram::default()
        }
    }

    /// Samples by time: a small value tells the kind and what it holds.
    fn push(encoder: &mut ChunkEncoder, time: i64, value: u32) {
        match value % 4 {
            0 => {
                let float = HistogramValue::Float(Arc::new(histogram(value).to_float()));
                encoder.push_histogram(time, &float).unwrap();
            }
            1 => encoder.push_histogram(time, &HistogramValue::Integer(Arc::new(histogram(value)))).unwrap(),
            _ => encoder.push_float(time, f64::from(value)),
        }
    }

    /// Floats, then histograms: time and the bits of the value or count.
    fn samples(chunks: &[Chunk]) -> [Vec<(i64, u64)>; 2] {
        let mut columns = Columns::default();
        decode_series(chunks, QueryRange::ALL, &mut columns).unwrap();
        let floats = columns.float_timestamps.iter().zip(&columns.float_values).map(|(&t, v)| (t, v.to_bits()));
        let histograms = columns.histogram_timestamps.iter().zip(&columns.histograms);
        [floats.collect(), histograms.map(|(&t, h)| (t, h.count.to_bits())).collect()]
    }

    fn encodings(chunks: &[Chunk]) -> Vec<(i64, i64, Encoding)> {
        chunks.iter().map(|chunk| (chunk.min_time, chunk.max_time, chunk.encoding)).collect()
    }

    proptest! {
        #[test]
        fn overlaps_go_and_samples_stay(
            parts in proptest::collection::vec(proptest::collection::btree_map(0i64..80, 0u32..12, 1..20), 0..6),
            doubled in any::<bool>(),
        ) {
            let mut chunks = Vec::new();
            for part in &parts {
                let mut encoder = ChunkEncoder::default();
                part.iter().for_each(|(&time, &value)| push(&mut encoder, time, value));
                chunks.extend(encoder.finish());
            }
            let expected = samples(&chunks);
            if doubled {
                chunks.extend_from_within(..);
            }
            let apart = without_overlaps(&chunks).unwrap();
            prop_assert!(apart.is_sorted_by(|a, b| a.max_time < b.min_time));
            prop_assert_eq!(samples(&apart), expected);
            prop_assert!(apart.iter().all(|chunk| chunk.min_time <= chunk.max_time && chunk.num_samples() > 0));

            let mut columns = Columns::default();
            decode_series(&apart, QueryRange::ALL, &mut columns).unwrap();
            let again = encode_columns(&columns).unwrap();
            prop_assert!(again.is_sorted_by(|a, b| a.max_time < b.min_time));
            prop_assert_eq!(samples(&again), samples(&apart));
        }
    }

    #[test]
    fn chunks_hold_120_samples() {
        let mut encoder = ChunkEncoder::default();
        (0..250).for_each(|time| encoder.push_float(time, 1.0));
        let chunks = encoder.finish();
        let xor = Encoding::Xor;
        assert_eq!(encodings(&chunks), [(0, 119, xor), (120, 239, xor), (240, 249, xor)]);
        let mut encoder = ChunkEncoder::default();
        (0..121).for_each(|time| push(&mut encoder, time, 4 * time as u32 + 1));
        let chunks = encoder.finish();
        assert_eq!(encodings(&chunks), [(0, 119, Encoding::Histogram), (120, 120, Encoding::Histogram)]);
        assert_eq!(chunks[1].data[2], ResetHeader::NotReset as u8);
    }

    #[test]
    fn only_what_overlaps_is_encoded_anew() {
        let chunk = |times: std::ops::Range<i64>, kind: u32| {
            let mut encoder = ChunkEncoder::default();
            times.for_each(|time| push(&mut encoder, time, 4 * time as u32 + kind));
            encoder.finish().remove(0)
        };
        let (early, late) = (chunk(0..10, 2), chunk(40..50, 0));
        let (left, right) = (chunk(10..20, 1), chunk(15..30, 1));
        let apart = without_overlaps(&[late.clone(), right, early.clone(), left, late.clone()]).unwrap();
        assert_eq!((&apart[0], &apart[apart.len() - 1]), (&early, &late));
        // Integer histograms stay integers.
        assert_eq!(encodings(&apart[1..2]), [(10, 29, Encoding::Histogram)]);
        assert_eq!(apart.len(), 3);
    }

    #[test]
    fn damage_is_an_error() {
        let mut encoder = ChunkEncoder::default();
        (0..10).for_each(|time| encoder.push_float(time, 1.0));
        let good = encoder.finish().remove(0);
        let broken = Chunk { data: good.data.slice(..5), ..good.clone() };
        assert!(without_overlaps(&[good, broken]).is_err());
    }
}
