//! A series' chunks as a segment holds them.

use std::ops::Range;

use skald_model::{TimestampMs, varint};

use super::segment::{Frame, MAX_CHUNK_LEN};
use super::{BlockError, ChunkMeta};
use crate::chunk::{Chunk, Encoding, sample_count};

/// Chunks one behind the other: `len uvarint | encoding u8 | data | crc32c(encoding, data) u32` each.
#[derive(Default)]
pub(super) struct FramedChunks {
    bytes: Vec<u8>,
    chunks: Vec<FramedChunk>,
}

/// One of them.
pub(super) struct FramedChunk {
    pub(super) min_time: TimestampMs,
    pub(super) max_time: TimestampMs,
    pub(super) encoding: Encoding,
    pub(super) num_samples: u16,
    /// Where it stands among the bytes.
    pub(super) range: Range<usize>,
}

impl FramedChunks {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.chunks.clear();
    }

    /// All bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn chunks(&self) -> &[FramedChunk] {
        &self.chunks
    }

    /// The last one with its bytes.
    pub(super) fn last(&self) -> Option<(&FramedChunk, &[u8])> {
        self.chunks.last().map(|chunk| (chunk, &self.bytes[chunk.range.clone()]))
    }

    /// Frames a chunk.
    pub(super) fn push(&mut self, chunk: &Chunk) -> Result<(), BlockError> {
        let Chunk { min_time, max_time, encoding, ref data } = *chunk;
        debug_assert!(!encoding.has_column(), "blocks hold Prometheus' encodings");
        let start = self.bytes.len();
        varint::put_uvarint(&mut self.bytes, data.len() as u64);
        let checked = self.bytes.len();
        self.bytes.push(encoding as u8);
        self.bytes.extend_from_slice(data);
        let crc = crc32c::crc32c(&self.bytes[checked..]);
        self.bytes.extend_from_slice(&crc.to_be_bytes());
        let range = start..self.bytes.len();
        let len = range.len() as u64;
        if len > MAX_CHUNK_LEN {
            return Err(BlockError::TooLarge { what: "a chunk", len, limit: MAX_CHUNK_LEN });
        }
        self.chunks.push(FramedChunk { min_time, max_time, encoding, num_samples: chunk.num_samples(), range });
        Ok(())
    }

    /// Takes a chunk as it stands in another segment, once its checksum is verified.
    pub(super) fn copy(&mut self, meta: &ChunkMeta, frame: &Frame, bytes: &[u8]) -> Result<(), BlockError> {
        let encoding = frame.check(meta, bytes)?;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..frame.len()]);
        self.chunks.push(FramedChunk {
            min_time: meta.min_time,
            max_time: meta.max_time,
            encoding,
            num_samples: sample_count(encoding, &bytes[frame.data()]),
            range: start..self.bytes.len(),
        });
        Ok(())
    }
}
