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
        // Each buffer costs some bytes of its own: counters, the allocator's.
        let chunks: usize = self.chunks.iter().map(|c| c.data.len() + size_of::<Chunk>() + 32).sum();
        size_of::<Self>() + self.labels.as_bytes().len() + chunks + 48
    }
}
