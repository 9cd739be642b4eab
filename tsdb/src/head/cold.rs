//! What is written once per series or chunk and then only read: label records, and where closed chunks lie.

use skald_model::varint::{get_uvarint, get_varint, put_uvarint, put_varint};

use super::chunk_files::{ChunkAddress, StoredChunk};
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

/// A closed chunk's entry. The chunks of a series are linked from the newest to the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClosedChunk {
    /// The chunk closed before this one, or [`NONE`].
    pub(super) previous: ColdRef,
    pub(super) chunk: StoredChunk,
}

impl Cold {
    /// Stores a chunk's entry, some 26 bytes; `None` when the page's four GiB of addresses are used up.
    pub(super) fn put_chunk(&mut self, previous: ColdRef, chunk: &StoredChunk) -> Option<ColdRef> {
        let mut entry = Vec::with_capacity(48);
        entry.extend_from_slice(&previous.to_le_bytes());
        entry.push(chunk.encoding as u8);
        entry.extend_from_slice(&chunk.address.offset.to_le_bytes());
        entry.extend_from_slice(&chunk.crc.to_le_bytes());
        put_uvarint(&mut entry, u64::from(chunk.address.file));
        put_uvarint(&mut entry, u64::from(chunk.address.len));
        put_uvarint(&mut entry, u64::from(chunk.samples));
        put_varint(&mut entry, chunk.min_time);
        put_uvarint(&mut entry, chunk.max_time.wrapping_sub(chunk.min_time) as u64);
        self.put(&entry)
    }

    fn chunk(&self, at: ColdRef) -> Option<ClosedChunk> {
        let bytes = self.record(at)?;
        let previous = u32::from_le_bytes(*bytes.first_chunk::<4>()?);
        let encoding = Encoding::from_byte(*bytes.get(4)?)?;
        let offset = u32::from_le_bytes(*bytes.get(5..)?.first_chunk::<4>()?);
        let crc = u32::from_le_bytes(*bytes.get(9..)?.first_chunk::<4>()?);
        let mut position = 13;
        let mut next = || get_uvarint(bytes, &mut position);
        let (file, len, samples) = (next()? as u32, next()? as u32, next()? as u16);
        let min_time = get_varint(bytes, &mut position)?;
        let max_time = min_time.wrapping_add(get_uvarint(bytes, &mut position)? as i64);
        let address = ChunkAddress { file, offset, len };
        Some(ClosedChunk { previous, chunk: StoredChunk { min_time, max_time, encoding, samples, crc, address } })
    }

    /// The chunks from `newest` on, newest first.
    pub(super) fn chunks(&self, newest: ColdRef) -> impl Iterator<Item = StoredChunk> {
        let mut at = newest;
        std::iter::from_fn(move || {
            let closed = self.chunk(at)?;
            at = closed.previous;
            Some(closed.chunk)
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
        self.put(&record)
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

    fn put(&mut self, record: &[u8]) -> Option<ColdRef> {
        let len = record.len();
        if self.blocks.last().is_none_or(|block| block.len() + len > BLOCK_BYTES) {
            if let Some(full) = self.blocks.last_mut() {
                full.shrink_to_fit();
            }
            self.blocks.push(Vec::new());
        }
        let number = self.blocks.len() - 1;
        let block = self.blocks.last_mut()?;
        let at = u32::try_from(number * BLOCK_BYTES + block.len()).ok().filter(|at| *at != NONE)?;
        block.extend_from_slice(record);
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
            chunks in proptest::collection::vec((any::<i64>(), 0..1_000_000_i64, any::<(u32, u32, u32, u16, u32)>()), 0..30),
            pairs: Vec<(Symbol, Symbol)>,
        ) {
            let mut cold = Cold::default();
            let labels = cold.put_labels(&pairs).unwrap();
            let mut newest = NONE;
            let mut expected = Vec::new();
            for (min_time, span, (file, offset, len, samples, crc)) in chunks {
                let max_time = min_time.saturating_add(span);
                let address = ChunkAddress { file, offset, len };
                let chunk = StoredChunk { min_time, max_time, encoding: Encoding::Xor, samples, crc, address };
                newest = cold.put_chunk(newest, &chunk).unwrap();
                expected.push(chunk);
            }
            expected.reverse();
            prop_assert_eq!(cold.chunks(newest).collect::<Vec<_>>(), expected);
            let mut read = Vec::new();
            cold.labels(labels, &mut read);
            prop_assert_eq!(read, pairs);
        }
    }
}
