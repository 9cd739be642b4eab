//! Chunks from samples and back, for what is not appended in order.

use skald_model::{Columns, HistogramSample, QueryRange};

use super::sample::{SampleValue, TimedSample};
use super::sizing::range_end;
use crate::chunk::{Chunk, ChunkError, Encoding, histogram, xor};
use crate::encode::ChunkEncoder;

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

/// Encodes samples of strictly ascending times into chunks that never cross a range.
pub(super) fn encode(samples: &[TimedSample], range_ms: i64) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for of_range in samples.chunk_by(|a, b| range_end(a.time, range_ms) == range_end(b.time, range_ms)) {
        let mut encoder = ChunkEncoder::default();
        for sample in of_range {
            match &sample.value {
                SampleValue::Float(value) => encoder.push_float(sample.time, *value),
                SampleValue::Histogram(value) => {
                    // Histograms are checked before they are accepted. One that makes no sense comes from a log whose
                    // checksums hold nevertheless, and is left out.
                    let _ = encoder.push_histogram(sample.time, value);
                }
            }
        }
        chunks.extend(encoder.finish());
    }
    chunks
}
