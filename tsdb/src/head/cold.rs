//! What is written once per series or chunk and then only read: label records and closed chunks, back to back.
//!
//! Closed chunks lie here until chunk files take them: this file and [`super::page`] are the only ones that know.

use skald_model::TimestampMs;
use skald_model::varint::{get_slice, get_uvarint, get_varint, put_uvarint, put_varint};

use super::symbols::Symbol;
use crate::chunk::Encoding;

/// Bytes a block's addresses cover. A longer record has a block of its own.
const BLOCK_BYTES: usize = 32 << 10;

/// Address of a record: block number × block size + offset.
pub(super) type ColdRef = u32;

/// The address of nothing.
pub(super) const NONE: ColdRef = u32::MAX;

/// Records of one page of series. Nothing is freed singly: a flush copies what lives into a new one.
#[derive(Default)]
pub(super) struct Cold {
    blocks: Vec<Vec<u8>>,
}

/// A closed chunk. The chunks of a series are linked from the newest to the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClosedChunk<'a> {
    /// The chunk closed before this one, or [`NONE`].
    pub(super) previous: ColdRef,
    pub(super) min_time: TimestampMs,
    pub(super) max_time: TimestampMs,
    pub(super) encoding: Encoding,
    pub(super) data: &'a [u8],
}

impl Cold {
    /// Stores a chunk; `None` when the page's four GiB of addresses are used up.
    pub(super) fn put_chunk(&mut self, chunk: ClosedChunk<'_>) -> Option<ColdRef> {
        let mut header = Vec::with_capacity(32);
        header.extend_from_slice(&chunk.previous.to_le_bytes());
        header.push(chunk.encoding as u8);
        put_varint(&mut header, chunk.min_time);
        put_uvarint(&mut header, chunk.max_time.wrapping_sub(chunk.min_time) as u64);
        put_uvarint(&mut header, chunk.data.len() as u64);
        self.put(&header, chunk.data)
    }

    /// The chunk at `at`.
    pub(super) fn chunk(&self, at: ColdRef) -> Option<ClosedChunk<'_>> {
        let bytes = self.record(at)?;
        let previous = u32::from_le_bytes(*bytes.first_chunk::<4>()?);
        let encoding = Encoding::from_byte(*bytes.get(4)?)?;
        let mut position = 5;
        let min_time = get_varint(bytes, &mut position)?;
        let max_time = min_time.wrapping_add(get_uvarint(bytes, &mut position)? as i64);
        let data = get_slice(bytes, &mut position)?;
        Some(ClosedChunk { previous, min_time, max_time, encoding, data })
    }

    /// The chunks from `newest` on, newest first.
    pub(super) fn chunks(&self, newest: ColdRef) -> impl Iterator<Item = ClosedChunk<'_>> {
        let mut at = newest;
        std::iter::from_fn(move || {
            let chunk = self.chunk(at)?;
            at = chunk.previous;
            Some(chunk)
        })
    }

    /// Stores a series' labels as pairs of symbols, in name order.
    pub(super) fn put_labels(&mut self, pairs: &[(Symbol, Symbol)]) -> Option<ColdRef> {
        let mut record = Vec::with_capacity(4 + pairs.len() * 6);
        put_uvarint(&mut record, pairs.len() as u64);
        for (name, value) in pairs {
            put_uvarint(&mut record, u64::from(*name));
            put_uvarint(&mut record, u64::from(*value));
        }
        self.put(&record, &[])
    }

    /// Appends the label symbols at `at` to `out`.
    pub(super) fn labels(&self, at: ColdRef, out: &mut Vec<(Symbol, Symbol)>) {
        let Some(bytes) = self.record(at) else { return };
        let mut position = 0;
        let mut next = || get_uvarint(bytes, &mut position).and_then(|value| u32::try_from(value).ok());
        for _ in 0..next().unwrap_or(0) {
            let (Some(name), Some(value)) = (next(), next()) else { return };
            out.push((name, value));
        }
    }

    fn record(&self, at: ColdRef) -> Option<&[u8]> {
        self.blocks.get(at as usize / BLOCK_BYTES)?.get(at as usize % BLOCK_BYTES..)
    }

    fn put(&mut self, header: &[u8], data: &[u8]) -> Option<ColdRef> {
        let len = header.len() + data.len();
        if self.blocks.last().is_none_or(|block| block.len() + len > BLOCK_BYTES) {
            if let Some(full) = self.blocks.last_mut() {
                full.shrink_to_fit();
            }
            self.blocks.push(Vec::new());
        }
        let number = self.blocks.len() - 1;
        let block = self.blocks.last_mut()?;
        let at = u32::try_from(number * BLOCK_BYTES + block.len()).ok().filter(|at| *at != NONE)?;
        block.extend_from_slice(header);
        block.extend_from_slice(data);
        Some(at)
    }

    /// Heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.blocks.iter().map(Vec::capacity).sum::<usize>() + self.blocks.capacity() * size_of::<Vec<u8>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_round_trip(
            chunks in proptest::collection::vec((any::<i64>(), 0..1_000_000_i64, 0..50_000_usize), 0..30),
            pairs: Vec<(Symbol, Symbol)>,
        ) {
            let mut cold = Cold::default();
            let labels = cold.put_labels(&pairs).unwrap();
            let mut newest = NONE;
            let mut expected = Vec::new();
            for (min_time, span, len) in chunks {
                let (max_time, data) = (min_time.saturating_add(span), vec![len as u8; len]);
                let chunk = ClosedChunk { previous: newest, min_time, max_time, encoding: Encoding::Xor, data: &data };
                newest = cold.put_chunk(chunk).unwrap();
                expected.push((min_time, max_time, data));
            }
            let found: Vec<_> = cold.chunks(newest).map(|c| (c.min_time, c.max_time, c.data.to_vec())).collect();
            expected.reverse();
            prop_assert_eq!(found, expected);
            let mut read = Vec::new();
            cold.labels(labels, &mut read);
            prop_assert_eq!(read, pairs);
        }
    }
}
