//! Chunks: compressed runs of one series' samples, in Prometheus' own encodings.
//!
//! Each encoding has its file: [`xor`] writes and reads floats, [`histogram`] native histograms, [`xor2`] floats with start
//! timestamps; [`started`] puts those beside any chunk, for heads.
//! All of them are bit streams over [`bits`], most significant bit first, the final byte padded with zero bits; the
//! first two bytes are the number of samples, big-endian.
//!
//! Readers accept any bytes: damage gives a [`ChunkError`], never a panic, and no allocation follows an unproven count.

pub mod bits;
pub mod histogram;
pub mod started;
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
    /// Integer native histograms with start timestamps, likewise.
    HistogramStarts = 5,
    /// Float native histograms with start timestamps, likewise.
    FloatHistogramStarts = 6,
    /// An [`Encoding::Xor`] chunk with a column of start timestamps beside ([`started`]); never in a block.
    StartedXor = 0x41,
    /// An [`Encoding::Histogram`] chunk likewise.
    StartedHistogram = 0x42,
    /// An [`Encoding::FloatHistogram`] chunk likewise.
    StartedFloatHistogram = 0x43,
}

impl Encoding {
    /// The encoding behind a stored byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Xor),
            2 => Some(Self::Histogram),
            3 => Some(Self::FloatHistogram),
            4 => Some(Self::Xor2),
            5 => Some(Self::HistogramStarts),
            6 => Some(Self::FloatHistogramStarts),
            0x41 => Some(Self::StartedXor),
            0x42 => Some(Self::StartedHistogram),
            0x43 => Some(Self::StartedFloatHistogram),
            _ => None,
        }
    }

    /// Whether it holds floats.
    pub fn is_float(self) -> bool {
        self.plain() == Self::Xor
    }

    /// Whether start timestamps stand beside the samples: only heads have such chunks.
    pub fn has_column(self) -> bool {
        matches!(self, Self::StartedXor | Self::StartedHistogram | Self::StartedFloatHistogram)
    }

    /// The encoding of the same kind of samples without start timestamps.
    pub fn plain(self) -> Self {
        match self {
            Self::Xor | Self::Xor2 | Self::StartedXor => Self::Xor,
            Self::Histogram | Self::HistogramStarts | Self::StartedHistogram => Self::Histogram,
            Self::FloatHistogram | Self::FloatHistogramStarts | Self::StartedFloatHistogram => Self::FloatHistogram,
        }
    }

    /// A plain encoding with a column of start timestamps beside.
    pub fn with_column(self) -> Self {
        match self.plain() {
            Self::Xor => Self::StartedXor,
            Self::Histogram => Self::StartedHistogram,
            _ => Self::StartedFloatHistogram,
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
        sample_count(self.encoding, &self.data)
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

/// Number of samples a chunk of this encoding says it holds; 0 when it is too short to say.
pub(crate) fn sample_count(encoding: Encoding, data: &[u8]) -> u16 {
    let count = num_samples(data).unwrap_or(0);
    match encoding {
        Encoding::HistogramStarts | Encoding::FloatHistogramStarts => count & ST_COUNT,
        _ => count,
    }
}

/// The part of the first two bytes that is the count, in [`Encoding::HistogramStarts`] and [`Encoding::FloatHistogramStarts`].
const ST_COUNT: u16 = 0x3FFF;

/// The sample count in a chunk's first two bytes.
pub(crate) fn num_samples(bytes: &[u8]) -> Result<u16, ChunkError> {
    let count = bytes.first_chunk::<2>().ok_or(ChunkError::Truncated)?;
    Ok(u16::from_be_bytes(*count))
}
