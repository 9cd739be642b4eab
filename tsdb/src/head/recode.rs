//! Chunks from samples and back, for what is not appended in order.

use bytes::Bytes;
use skald_model::{Columns, HistogramSample, HistogramValue, QueryRange, TimestampMs};

use super::sample::{OpenHistogram, SampleValue, TimedSample, either};
use super::sizing::range_end;
use crate::chunk::histogram::{Appended, ResetHeader};
use crate::chunk::xor::{self, XorAppender};
use crate::chunk::{Chunk, ChunkError, Encoding, histogram};

/// Most samples of a chunk made here.
const MAX_SAMPLES: u16 = 120;

/// Appends the samples of a chunk that lie in `range`.
pub(super) fn decode(
    encoding: Encoding,
    data: &[u8],
    range: QueryRange,
    out: &mut Vec<TimedSample>,
) -> Result<(), ChunkError> {
    match encoding {
        Encoding::Histogram | Encoding::FloatHistogram => {
            let mut samples: Vec<HistogramSample> = Vec::new();
            histogram::decode_samples(encoding, data, range, &mut samples)?;
            out.extend(
                samples.into_iter().map(|s| TimedSample { time: s.timestamp, value: SampleValue::Histogram(s.value) }),
            );
        }
        // A head never writes these.
        Encoding::Xor2 => return Err(ChunkError::Malformed("encoding for a head")),
        Encoding::Xor => {
            let mut columns = Columns::default();
            xor::decode(data, range, &mut columns)?;
            let samples = columns.float_timestamps.iter().zip(&columns.float_values);
            out.extend(samples.map(|(time, value)| TimedSample { time: *time, value: SampleValue::Float(*value) }));
        }
    }
    Ok(())
}

/// Encodes samples of strictly ascending times into chunks that hold at most 120 samples and never cross a range.
pub(super) fn encode(samples: &[TimedSample], range_ms: i64) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut open: Option<OpenChunk> = None;
    for sample in samples {
        let appended = open.as_mut().is_some_and(|chunk| chunk.append(sample));
        if !appended {
            let header = open.as_ref().and_then(|chunk| chunk.header_of_next(sample));
            chunks.extend(open.take().map(OpenChunk::finish));
            open = OpenChunk::start(sample, header, range_ms);
        }
    }
    chunks.extend(open.map(OpenChunk::finish));
    chunks
}

struct OpenChunk {
    min_time: TimestampMs,
    max_time: TimestampMs,
    end: TimestampMs,
    kind: OpenKind,
}

enum OpenKind {
    Float(XorAppender, Vec<u8>),
    Histogram(OpenHistogram),
}

impl OpenChunk {
    fn start(sample: &TimedSample, header: Option<ResetHeader>, range_ms: i64) -> Option<Self> {
        let kind = match &sample.value {
            SampleValue::Float(value) => {
                let (mut appender, mut bytes) = (XorAppender::new(), Vec::new());
                appender.append(&mut bytes, sample.time, *value).ok()?;
                OpenKind::Float(appender, bytes)
            }
            SampleValue::Histogram(value) => {
                let header = header.unwrap_or_else(|| OpenHistogram::first_header(value));
                OpenKind::Histogram(OpenHistogram::start(sample.time, value, header)?)
            }
        };
        Some(Self { min_time: sample.time, max_time: sample.time, end: range_end(sample.time, range_ms), kind })
    }

    /// `false` when the sample belongs to another chunk.
    fn append(&mut self, sample: &TimedSample) -> bool {
        if sample.time >= self.end {
            return false;
        }
        let appended = match (&mut self.kind, &sample.value) {
            (OpenKind::Float(appender, bytes), SampleValue::Float(value)) => {
                appender.num_samples() < MAX_SAMPLES && appender.append(bytes, sample.time, *value).is_ok()
            }
            (OpenKind::Histogram(open), SampleValue::Histogram(value)) => {
                if either!(&*open, appender => appender.num_samples()) >= MAX_SAMPLES {
                    return false;
                }
                let outcome = match (open, value) {
                    (OpenHistogram::Integer(a), HistogramValue::Integer(h)) => a.append(sample.time, h),
                    (OpenHistogram::Float(a), HistogramValue::Float(h)) => a.append(sample.time, h),
                    _ => return false,
                };
                matches!(outcome, Ok(Appended::InPlace | Appended::Recoded))
            }
            _ => false,
        };
        if appended {
            self.max_time = sample.time;
        }
        appended
    }

    /// The header of a histogram chunk that follows this one because `sample` did not fit.
    fn header_of_next(&self, sample: &TimedSample) -> Option<ResetHeader> {
        match (&self.kind, &sample.value) {
            (OpenKind::Histogram(OpenHistogram::Integer(a)), SampleValue::Histogram(HistogramValue::Integer(h))) => {
                Some(a.header_of_next(h))
            }
            (OpenKind::Histogram(OpenHistogram::Float(a)), SampleValue::Histogram(HistogramValue::Float(h))) => {
                Some(a.header_of_next(h))
            }
            _ => None,
        }
    }

    fn finish(self) -> Chunk {
        let (encoding, data) = match self.kind {
            OpenKind::Float(_, bytes) => (Encoding::Xor, bytes),
            OpenKind::Histogram(OpenHistogram::Integer(appender)) => (Encoding::Histogram, appender.into_bytes()),
            OpenKind::Histogram(OpenHistogram::Float(appender)) => (Encoding::FloatHistogram, appender.into_bytes()),
        };
        Chunk { min_time: self.min_time, max_time: self.max_time, encoding, data: Bytes::from(data) }
    }
}
