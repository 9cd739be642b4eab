//! One series with its chunks: what every reader of the engine yields.

use skald_model::{Labels, QueryRange};

use crate::chunk::Chunk;

/// A series and its encoded samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesChunks {
    /// Which series.
    pub labels: Labels,
    /// Its chunks, ascending by first sample; they overlap where replicas or out-of-order samples meet.
    pub chunks: Vec<Chunk>,
    /// Time ranges whose samples are deleted and must not be shown.
    pub deleted: Vec<QueryRange>,
}

/// Says by its labels whether a series is wanted, before its chunks are touched.
pub type SeriesFilter = Box<dyn Fn(&Labels) -> bool + Send + Sync>;

impl SeriesChunks {
    /// Bytes the series holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        Self::bytes_of(&self.labels, self.chunks.iter().map(|chunk| chunk.data.len()))
    }

    /// The same for a series with chunks of these lengths.
    pub(crate) fn bytes_of(labels: &Labels, chunk_lens: impl Iterator<Item = usize>) -> usize {
        // Each buffer costs some bytes of its own: counters, the allocator's.
        let chunks: usize = chunk_lens.map(|len| len + size_of::<Chunk>() + 32).sum();
        size_of::<Self>() + labels.as_bytes().len() + chunks + 48
    }
}
