//! Chunks: compressed runs of one series' samples, in Prometheus' own encodings.
//!
//! Each encoding has its file: [`xor`] writes and reads floats, [`histogram`] native histograms; [`xor2`] is read only.
//! All of them are bit streams over [`bits`], most significant bit first, the final byte padded with zero bits; the
//! first two bytes are the number of samples, big-endian.
//!
//! Readers accept any bytes: damage gives a [`ChunkError`], never a panic, and no allocation follows an unproven count.

pub mod bits;
pub mod histogram;
pub mod varbit;
pub mod xor;
pub mod xor2;

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

impl Chunk {
    /// Number of samples the chunk says it holds; 0 when it is too short to say.
    pub fn num_samples(&self) -> u16 {
        num_samples(&self.data).unwrap_or(0)
    }
}

/// What is wrong with a chunk's bytes. The chunk, not the reader, is at fault: quarantine it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The bytes end before the samples do.
    #[error("chunk ends before its last sample")]
    Truncated,
    /// A field holds what no writer produces; the text names it.
    #[error("chunk holds an impossible {0}")]
    Malformed(&'static str),
    /// Timestamps go backwards.
    #[error("chunk samples are not in time order")]
    OutOfOrder,
}

/// The sample count in a chunk's first two bytes.
pub(crate) fn num_samples(bytes: &[u8]) -> Result<u16, ChunkError> {
    let count = bytes.first_chunk::<2>().ok_or(ChunkError::Truncated)?;
    Ok(u16::from_be_bytes(*count))
}
