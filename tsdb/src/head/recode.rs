//! Chunks from samples and back, for what is not appended in order.

use skald_model::{Columns, QueryRange, TimestampMs};

use super::sample::{SampleValue, TimedSample};
use super::sizing::range_end;
use crate::chunk::histogram::for_each_sample;
use crate::chunk::started::{self, StartReader};
use crate::chunk::{Chunk, ChunkError, Encoding};
use crate::encode::ChunkEncoder;

/// Appends the samples of a chunk that lie in `range`.
pub(super) fn decode(
    encoding: Encoding,
    data: &[u8],
    range: QueryRange,
    out: &mut Vec<TimedSample>,
) -> Result<(), ChunkError> {
    let before = out.len();
    let decoded = decode_into(encoding, data, range, out);
    if decoded.is_err() {
        out.truncate(before);
    }
    decoded
}

fn decode_into(
    encoding: Encoding,
    data: &[u8],
    range: QueryRange,
    out: &mut Vec<TimedSample>,
) -> Result<(), ChunkError> {
    if encoding.has_column() {
        let (plain, column) = started::split(data)?;
        let from = out.len();
        // Starts are found by walking from the first sample on.
        decode_into(encoding.plain(), plain, QueryRange { min: TimestampMs::MIN, max: range.max }, out)?;
        let mut starts = StartReader::new(column);
        for sample in &mut out[from..] {
            sample.start = starts.next(sample.time)?;
        }
        let early = out[from..].partition_point(|sample| sample.time < range.min);
        out.drain(from..from + early);
        return Ok(());
    }
    if !encoding.is_float() {
        return for_each_sample(encoding, data, range, |sample, start| {
            out.push(TimedSample { time: sample.timestamp, value: SampleValue::Histogram(sample.value), start });
        });
    }
    let mut columns = Columns::default();
    started::decode(encoding, data, range, &mut columns)?;
    let starts = columns.float_starts.iter().copied().chain(std::iter::repeat(0));
    let samples = columns.float_timestamps.iter().zip(&columns.float_values).zip(starts);
    out.extend(samples.map(|((&time, &value), start)| TimedSample { time, value: SampleValue::Float(value), start }));
    Ok(())
}

/// Encodes samples of strictly ascending times into chunks that never cross a range.
pub(super) fn encode(samples: &[TimedSample], range_ms: i64) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for of_range in samples.chunk_by(|a, b| range_end(a.time, range_ms) == range_end(b.time, range_ms)) {
        let mut encoder = ChunkEncoder::default();
        for sample in of_range {
            match &sample.value {
                SampleValue::Float(value) => encoder.push_started_float(sample.time, *value, sample.start),
                SampleValue::Histogram(value) => {
                    // Histograms are checked before they are accepted. One that makes no sense comes from a log whose
                    // checksums hold nevertheless, and is left out.
                    let _ = encoder.push_started_histogram(sample.time, value, sample.start);
                }
            }
        }
        chunks.extend(encoder.finish());
    }
    chunks
}
