//! How a head gets at its closed chunks, which lie in chunk files.

use bytes::Bytes;
use skald_model::{Labels, QueryRange, TimestampMs};

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

/// Chunks that could not be read: what blocks lack after a flush, or a head after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostChunks {
    /// How many.
    pub chunks: u64,
    /// Bytes of their data.
    pub bytes: u64,
    /// Series that had them.
    pub series: u64,
    /// Samples in them.
    pub samples: u64,
    /// From the oldest to the newest of these.
    pub times: Option<QueryRange>,
    /// The first thousand.
    pub named: Vec<LostChunk>,
}

impl LostChunks {
    /// Chunks that are named.
    const MAX_NAMED: usize = 1000;

    /// Adds a series' chunks.
    pub(super) fn add(&mut self, labels: impl FnOnce() -> Labels, lost: Vec<(StoredChunk, ChunkReadError)>) {
        if lost.is_empty() {
            return;
        }
        self.series += 1;
        for (chunk, _) in &lost {
            self.chunks += 1;
            self.bytes += chunk.len() as u64;
            self.samples += u64::from(chunk.samples);
            let known = self.times.unwrap_or(QueryRange { min: chunk.min_time, max: chunk.max_time });
            self.times = Some(QueryRange { min: known.min.min(chunk.min_time), max: known.max.max(chunk.max_time) });
        }
        let space = Self::MAX_NAMED.saturating_sub(self.named.len());
        if space > 0 {
            let labels = labels();
            let name = |(chunk, error)| LostChunk { labels: labels.clone(), chunk, error };
            self.named.extend(lost.into_iter().map(name).take(space));
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
