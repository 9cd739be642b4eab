//! How a head gets at its closed chunks, which lie in chunk files.

use bytes::Bytes;
use skald_model::{Labels, TimestampMs};

use super::chunk_files::{ChunkFiles, ChunkReadError, NewChunk, StoredChunk};
use crate::chunk::{Chunk, Encoding};
use crate::wal::HeadId;

/// The chunk files, for one head.
#[derive(Clone, Copy)]
pub(super) struct Shelf<'a> {
    pub(super) files: &'a ChunkFiles,
    pub(super) head: HeadId,
}

/// A chunk as a page hands it out.
#[derive(Debug, Clone)]
pub(super) enum PageChunk {
    /// Copied: it is open, or beside the series' chunks.
    Copied(Chunk),
    /// To be read.
    Stored(StoredChunk),
}

impl PageChunk {
    pub(super) fn min_time(&self) -> TimestampMs {
        match self {
            Self::Copied(chunk) => chunk.min_time,
            Self::Stored(chunk) => chunk.min_time,
        }
    }

    /// Bytes of its data.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Copied(chunk) => chunk.data.len(),
            Self::Stored(chunk) => chunk.len(),
        }
    }
}

/// A chunk that its series has and nobody can read any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "series {labels}: {} samples from {} to {} cannot be read: {error}",
    .chunk.samples, .chunk.min_time, .chunk.max_time
)]
pub struct LostChunk {
    /// Whose it is.
    pub labels: Labels,
    /// Its times and its number of samples.
    pub chunk: StoredChunk,
    /// Why.
    pub error: ChunkReadError,
}

/// What a flush could not read, and blocks therefore lack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostChunks {
    /// How many.
    pub chunks: u64,
    /// Samples in them.
    pub samples: u64,
    /// The first thousand.
    pub named: Vec<LostChunk>,
}

impl LostChunks {
    /// Chunks that are named.
    const MAX_NAMED: usize = 1000;

    pub(super) fn add(&mut self, lost: LostChunk) {
        self.chunks += 1;
        self.samples += u64::from(lost.chunk.samples);
        if self.named.len() < Self::MAX_NAMED {
            self.named.push(lost);
        }
    }
}

impl Shelf<'_> {
    /// Stores a closed chunk.
    pub(super) fn put(
        self,
        min_time: TimestampMs,
        max_time: TimestampMs,
        encoding: Encoding,
        data: &[u8],
    ) -> StoredChunk {
        self.files.put(self.head, NewChunk { min_time, max_time, encoding, data })
    }

    /// Gives a chunk up.
    pub(super) fn release(self, chunk: &StoredChunk) {
        self.files.release(chunk.address);
    }

    /// Reads one chunk; what is wrong with one that is not there has been counted.
    pub(super) fn read(self, chunk: &StoredChunk) -> Option<Bytes> {
        self.files.read(self.head, chunk).ok()
    }

    /// Reads the stored ones among the chunks of several series: per series, its chunks in the same order.
    pub(super) fn load(self, series: Vec<Vec<PageChunk>>) -> Vec<Vec<Result<Chunk, (StoredChunk, ChunkReadError)>>> {
        let of_files = |chunk: &PageChunk| match chunk {
            PageChunk::Stored(chunk) => Some(*chunk),
            PageChunk::Copied(_) => None,
        };
        let wanted: Vec<StoredChunk> = series.iter().flatten().filter_map(of_files).collect();
        let mut read = self.files.read_all(self.head, &wanted).into_iter();
        let mut load = |chunk: PageChunk| match chunk {
            PageChunk::Copied(chunk) => Ok(chunk),
            PageChunk::Stored(chunk) => {
                let StoredChunk { min_time, max_time, encoding, address, .. } = chunk;
                match read.next() {
                    Some(Ok(data)) => Ok(Chunk { min_time, max_time, encoding, data }),
                    Some(Err(error)) => Err((chunk, error)),
                    None => Err((chunk, ChunkReadError::Gone { file: address.file })),
                }
            }
        };
        series.into_iter().map(|chunks| chunks.into_iter().map(&mut load).collect()).collect()
    }
}
