//! Bytes of open chunks: pieces of a few fixed sizes out of larger blocks, no allocation per chunk.

/// Sizes of the pieces. A chunk moves to the next size when it outgrows its piece; the largest holds a chunk at its byte
/// limit (1005) and one more sample.
const SIZES: [u16; 11] = [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1088];
/// Bytes a block covers; pieces never cross blocks.
const BLOCK_BYTES: usize = 16 << 10;
/// End of a free list.
const NONE: u32 = u32::MAX;

/// Where a piece lies: address (block number × block size + offset) and size class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    address: u32,
    class: u8,
}

impl Piece {
    /// The place of no piece.
    pub(super) const NONE: Piece = Piece { address: NONE, class: 0 };

    /// Bytes it has.
    pub(super) fn capacity(self) -> usize {
        usize::from(SIZES[usize::from(self.class)])
    }
}

/// The pieces of one page of series.
pub(super) struct Slab {
    /// All but the last are `BLOCK_BYTES` long.
    blocks: Vec<Vec<u8>>,
    /// First free piece of each size; a free piece's first four bytes are the address of the next.
    free: [u32; SIZES.len()],
}

impl Default for Slab {
    fn default() -> Self {
        Self { blocks: Vec::new(), free: [NONE; SIZES.len()] }
    }
}

/// The smallest size class that holds `len` bytes; `None` when none does.
fn class_of(len: usize) -> Option<u8> {
    SIZES.iter().position(|size| usize::from(*size) >= len).map(|class| class as u8)
}

impl Slab {
    /// A piece of at least `len` bytes with unspecified contents; `None` when `len` is beyond the largest.
    pub(super) fn allocate(&mut self, len: usize) -> Option<Piece> {
        let class = class_of(len)?;
        let head = self.free[usize::from(class)];
        if head != NONE {
            let piece = Piece { address: head, class };
            let next = self.bytes(piece).first_chunk::<4>().map_or(NONE, |bytes| u32::from_le_bytes(*bytes));
            self.free[usize::from(class)] = next;
            return Some(piece);
        }
        let size = usize::from(SIZES[usize::from(class)]);
        if self.blocks.last().is_none_or(|block| block.len() + size > BLOCK_BYTES) {
            if let Some(full) = self.blocks.last_mut() {
                full.resize(BLOCK_BYTES, 0);
            }
            self.blocks.push(Vec::new());
        }
        let number = self.blocks.len() - 1;
        let block = &mut self.blocks[number];
        let address = u32::try_from(number * BLOCK_BYTES + block.len()).ok()?;
        block.resize(block.len() + size, 0);
        Some(Piece { address, class })
    }

    /// Gives a piece back.
    pub(super) fn free(&mut self, piece: Piece) {
        if piece == Piece::NONE {
            return;
        }
        let next = std::mem::replace(&mut self.free[usize::from(piece.class)], piece.address);
        if let Some(first) = self.bytes_mut(piece).first_chunk_mut::<4>() {
            *first = next.to_le_bytes();
        }
    }

    /// A larger piece with the first `len` bytes of `piece`, which is given back.
    pub(super) fn grow(&mut self, piece: Piece, len: usize, wanted: usize) -> Option<Piece> {
        let larger = self.allocate(wanted)?;
        let (from, to) = (piece.address as usize, larger.address as usize);
        let (from_block, to_block) = (from / BLOCK_BYTES, to / BLOCK_BYTES);
        let (from, to) = (from % BLOCK_BYTES, to % BLOCK_BYTES);
        if from_block == to_block {
            self.blocks[from_block].copy_within(from..from + len, to);
        } else if let Ok([source, target]) = self.blocks.get_disjoint_mut([from_block, to_block]) {
            target[to..to + len].copy_from_slice(&source[from..from + len]);
        }
        self.free(piece);
        Some(larger)
    }

    /// The bytes of a piece.
    #[inline]
    pub(super) fn bytes(&self, piece: Piece) -> &[u8] {
        let at = piece.address as usize;
        let block = self.blocks.get(at / BLOCK_BYTES).map_or(&[][..], |block| block);
        block.get(at % BLOCK_BYTES..at % BLOCK_BYTES + piece.capacity()).unwrap_or_default()
    }

    /// The bytes of a piece, to be written.
    #[inline]
    pub(super) fn bytes_mut(&mut self, piece: Piece) -> &mut [u8] {
        let at = piece.address as usize;
        let block = self.blocks.get_mut(at / BLOCK_BYTES).map_or(&mut [][..], |block| block);
        block.get_mut(at % BLOCK_BYTES..at % BLOCK_BYTES + piece.capacity()).unwrap_or_default()
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
        fn pieces_keep_their_bytes(steps in proptest::collection::vec((0..3_u8, 1..1088_usize, any::<u8>()), 0..300)) {
            let mut slab = Slab::default();
            let mut model: Vec<(Piece, Vec<u8>)> = Vec::new();
            for (step, len, byte) in steps {
                match step {
                    0 => {
                        let piece = slab.allocate(len).unwrap();
                        slab.bytes_mut(piece)[..len].fill(byte);
                        model.push((piece, vec![byte; len]));
                    }
                    1 if !model.is_empty() => {
                        let (piece, _) = model.swap_remove(len % model.len());
                        slab.free(piece);
                    }
                    2 if !model.is_empty() => {
                        let at = len % model.len();
                        let (piece, bytes) = &mut model[at];
                        let wanted = len.max(bytes.len());
                        *piece = slab.grow(*piece, bytes.len(), wanted).unwrap();
                        prop_assert!(piece.capacity() >= wanted);
                    }
                    _ => {}
                }
                for (piece, bytes) in &model {
                    prop_assert_eq!(&slab.bytes(*piece)[..bytes.len()], &bytes[..]);
                }
            }
        }
    }

    #[test]
    fn freed_pieces_are_used_again() {
        let mut slab = Slab::default();
        for _ in 0..100 {
            let pieces: Vec<_> = (0..50).map(|i| slab.allocate(20 + i * 20).unwrap()).collect();
            pieces.into_iter().for_each(|piece| slab.free(piece));
        }
        assert!(slab.heap_bytes() < 64 << 10, "{}", slab.heap_bytes());
        assert!(slab.allocate(1089).is_none());
    }
}
