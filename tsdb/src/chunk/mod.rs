//! Chunks: compressed runs of one series' samples.

use bytes::Bytes;
use skald_model::TimestampMs;

/// How a chunk's bytes are coded; the numbers are Prometheus' (tsdb/chunkenc).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// Gorilla-compressed floats.
    Xor = 1,
    /// Integer native histograms.
    Histogram = 2,
    /// Float native histograms.
    FloatHistogram = 3,
    /// Floats with start timestamps; read, and written only on request.
    Xor2 = 4,
}

impl Encoding {
    /// The encoding behind a stored byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Xor),
            2 => Some(Self::Histogram),
            3 => Some(Self::FloatHistogram),
            4 => Some(Self::Xor2),
            _ => None,
        }
    }
}

/// One encoded chunk with the exact times of its first and last sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Time of the first sample.
    pub min_time: TimestampMs,
    /// Time of the last sample, inclusive.
    pub max_time: TimestampMs,
    /// How `data` is coded.
    pub encoding: Encoding,
    /// The chunk's data, without length, encoding byte and checksum.
    pub data: Bytes,
}
