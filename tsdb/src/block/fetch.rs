//! From many small ranges to few larger ones.

use std::ops::Range;

use super::ChunkMeta;

/// How ranges are joined into fetches.
#[derive(Debug, Clone, Copy)]
pub struct Coalesce {
    /// Unwanted bytes worth reading to save a request.
    pub max_gap: u64,
    /// Bytes a fetch may reach by joining; a single longer range stays whole.
    pub max_len: u64,
}

/// One fetch that serves several ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The bytes to read.
    pub range: Range<u64>,
    /// Which of the ranges, by index, it serves.
    pub items: Range<usize>,
}

impl Coalesce {
    /// Joins ranges, which ascend by start. Every index is served by exactly one fetch.
    pub fn join(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Fetch> {
        let mut fetches: Vec<Fetch> = Vec::new();
        for (i, range) in ranges.into_iter().enumerate() {
            if let Some(last) = fetches.last_mut()
                && range.start >= last.range.start
                && range.start <= last.range.end.saturating_add(self.max_gap)
                && range.end.saturating_sub(last.range.start) <= self.max_len
            {
                last.range.end = last.range.end.max(range.end);
                last.items.end = i + 1;
            } else {
                fetches.push(Fetch { range, items: i..i + 1 });
            }
        }
        fetches
    }
}

/// The bytes to fetch for chunk `index` of a series: up to its neighbour, or `estimate` when that cannot be told.
pub fn chunk_range(chunks: &[ChunkMeta], index: usize, estimate: u64) -> Range<u64> {
    let Some(chunk) = chunks.get(index) else { return 0..0 };
    let start = u64::from(chunk.reference.offset());
    let end = match chunks.get(index + 1).map(|next| next.reference) {
        Some(next) if next.segment() == chunk.reference.segment() && next > chunk.reference => u64::from(next.offset()),
        _ => start + estimate,
    };
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::ChunkRef;

    #[test]
    fn near_ranges_are_joined() {
        let coalesce = Coalesce { max_gap: 10, max_len: 100 };
        let fetches = coalesce.join([0..20, 25..40, 51..60, 60..99, 99..101, 500..900, 905..910]);
        let expected = [(0..40, 0..2), (51..101, 2..5), (500..900, 5..6), (905..910, 6..7)];
        assert_eq!(fetches, expected.map(|(range, items)| Fetch { range, items }));
        assert_eq!(coalesce.join([5..6, 0..9]).len(), 2);
    }

    #[test]
    fn a_chunk_ends_where_the_next_begins() {
        let chunk = |segment, offset| ChunkMeta { min_time: 0, max_time: 0, reference: ChunkRef::new(segment, offset) };
        let chunks = [chunk(0, 8), chunk(0, 50), chunk(1, 8)];
        assert_eq!(chunk_range(&chunks, 0, 1000), 8..50);
        assert_eq!(chunk_range(&chunks, 1, 1000), 50..1050);
        assert_eq!(chunk_range(&chunks, 2, 1000), 8..1008);
    }
}
