//! What of a series' chunks may be seen: neither deleted samples nor those outside the block's time range.

use skald_model::{BlockRange, QueryRange};

use super::ChunkMeta;
use super::tombstones::normalize;

/// The time ranges whose samples must not be shown, as far as they concern `chunks`: `stones`, and what lies outside the
/// block's own range, where chunks reach beyond it. Ascending and disjoint.
pub fn hidden_ranges(chunks: &[ChunkMeta], block: BlockRange, stones: &[QueryRange]) -> Vec<QueryRange> {
    // The usual case: chunks stand in time order, so that the first and the last tell.
    let inside = |first: &ChunkMeta, last: &ChunkMeta| first.min_time >= block.min && last.max_time < block.max;
    if stones.is_empty() && chunks.first().zip(chunks.last()).is_none_or(|(first, last)| inside(first, last)) {
        return Vec::new();
    }
    let mut hidden: Vec<QueryRange> =
        stones.iter().filter(|stone| chunks.iter().any(|chunk| chunk.overlaps(**stone))).copied().collect();
    let outside = [
        block.min.checked_sub(1).map(|max| QueryRange { min: i64::MIN, max }),
        Some(QueryRange { min: block.max, max: i64::MAX }),
    ];
    let outside = outside.into_iter().flatten().filter(|range| chunks.iter().any(|chunk| chunk.overlaps(*range)));
    hidden.extend(outside);
    normalize(&mut hidden);
    hidden
}

/// Whether no sample of `chunk` may be shown.
pub fn is_hidden(chunk: &ChunkMeta, hidden: &[QueryRange]) -> bool {
    hidden.iter().any(|range| range.contains(chunk.min_time) && range.contains(chunk.max_time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::ChunkRef;

    #[test]
    fn stones_and_the_blocks_own_ends_hide_samples() {
        let chunk = |min_time, max_time| ChunkMeta { min_time, max_time, reference: ChunkRef(8) };
        let block = BlockRange { min: 0, max: 100 };
        let stone = |min, max| QueryRange { min, max };
        assert_eq!(hidden_ranges(&[chunk(0, 99)], block, &[stone(200, 300)]), []);
        let hidden = hidden_ranges(&[chunk(0, 50), chunk(60, 120)], block, &[stone(10, 12), stone(90, 110)]);
        assert_eq!(hidden, [stone(10, 12), stone(90, i64::MAX)]);
        assert_eq!(hidden_ranges(&[chunk(-5, 5)], block, &[]), [stone(i64::MIN, -1)]);
        assert!(is_hidden(&chunk(90, 95), &hidden) && !is_hidden(&chunk(5, 12), &hidden));
    }
}
