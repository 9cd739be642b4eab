//! What readers copy out of a page.

use skald_model::{QueryRange, TimestampMs};

use super::super::stored::PageChunk;
use super::{Page, Rules};
use crate::wal::Cut;

impl Page {
    /// Appends the chunks of a series that may hold samples of `range`, ascending by first sample. What `hidden` covers
    /// is in a block that readers see instead, and may be missing.
    pub(in super::super) fn chunks(
        &self,
        index: usize,
        range: QueryRange,
        hidden: Cut,
        rules: Rules<'_>,
        out: &mut Vec<PageChunk>,
    ) {
        let Some(series) = self.series(index) else { return };
        let start = out.len();
        let closed = self.cold.chunks(series.closed).take_while(|chunk| chunk.max_time >= hidden.up_to);
        out.extend(closed.filter(|chunk| overlaps(range, chunk.min_time, chunk.max_time)).map(PageChunk::Stored));
        out[start..].reverse();
        if let Some(max_time) = self.open_max_time(series)
            && max_time >= hidden.up_to
            && overlaps(range, series.chunk_start, max_time)
        {
            out.extend(self.open_chunk(series).map(PageChunk::Copied));
        }
        if let Some(side) = self.sides.get(series.side) {
            let mut beside = Vec::new();
            side.chunks(hidden, rules.range_ms, &mut beside);
            let beside = beside.into_iter().filter(|chunk| overlaps(range, chunk.min_time, chunk.max_time));
            out.extend(beside.map(PageChunk::Copied));
            out[start..].sort_by_key(PageChunk::min_time);
        }
    }

    /// Heap bytes of the page.
    pub(in super::super) fn heap_bytes(&self) -> usize {
        self.series.capacity() * size_of::<super::Series>()
            + self.slab.heap_bytes()
            + self.cold.heap_bytes()
            + self.sides.iter().map(|side| size_of_val(side) + side.heap_bytes()).sum::<usize>()
            + self.histograms.iter().map(super::OpenHistogramChunk::heap_bytes).sum::<usize>()
            + self.starts.iter().map(|starts| size_of_val(starts) + starts.heap_bytes()).sum::<usize>()
    }
}

fn overlaps(range: QueryRange, min_time: TimestampMs, max_time: TimestampMs) -> bool {
    min_time <= range.max && range.min <= max_time
}
