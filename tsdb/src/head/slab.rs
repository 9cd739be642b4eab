//! Bytes of open chunks: chains of small pieces out of larger blocks, no allocation per chunk and nothing moved as it grows.
//!
//! The series of one sender begin and end their chunks at about the same time. So pieces are taken from the lowest block
//! that has one, and a block that nobody uses is given back at once: memory follows what the open chunks hold, not the
//! most they ever held. (Pieces that double instead leave behind, when all series grow together, as much as they hold.)

/// Bytes of a piece: a cache line, of which an append touches one.
const PIECE_BYTES: usize = 64;
/// Of these, bytes of the chunk. The others are the address of the piece before.
const PAYLOAD: usize = PIECE_BYTES - 4;
/// Pieces of a block: 16 KiB less one piece, so that a number below fits a byte.
const BLOCK_PIECES: usize = 255;
/// No piece of a block.
const NO_PIECE: u8 = u8::MAX;

/// The last piece of a chain: block number and number of the piece in the block.
pub(super) type Tail = u32;

/// The tail of a chain without pieces.
pub(super) const NONE: Tail = u32::MAX;

/// The pieces of one page of series.
#[derive(Default)]
pub(super) struct Slab {
    blocks: Vec<Block>,
    /// No block before this one has a free piece.
    first_free: usize,
}

struct Block {
    /// Grows piece by piece, up to [`BLOCK_PIECES`].
    bytes: Vec<u8>,
    /// The first free piece among those that were in use; its first byte is the number of the next.
    free: u8,
    used: u8,
}

impl Default for Block {
    fn default() -> Self {
        Self { bytes: Vec::new(), free: NO_PIECE, used: 0 }
    }
}

impl Block {
    /// Takes a piece, which holds anything.
    fn take(&mut self) -> Option<u8> {
        let number = if self.free != NO_PIECE {
            let number = self.free;
            self.free = self.bytes[usize::from(number) * PIECE_BYTES];
            number
        } else {
            let number = self.bytes.len() / PIECE_BYTES;
            if number == BLOCK_PIECES {
                return None;
            }
            self.bytes.resize(self.bytes.len() + PIECE_BYTES, 0);
            number as u8
        };
        self.used += 1;
        Some(number)
    }

    fn give_back(&mut self, number: u8) {
        self.used -= 1;
        if self.used == 0 {
            *self = Self::default();
            return;
        }
        self.bytes[usize::from(number) * PIECE_BYTES] = self.free;
        self.free = number;
    }
}

fn locate(tail: Tail) -> (usize, usize) {
    ((tail >> 8) as usize, (tail & 0xff) as usize * PIECE_BYTES)
}

impl Slab {
    /// Writes `bytes` at `offset` of a chain that holds `len` bytes and ends at `tail`; returns where it ends now. What is
    /// written begins at the chain's end, or on its last byte.
    #[inline]
    pub(super) fn write(&mut self, tail: Tail, len: usize, offset: usize, bytes: &[u8]) -> Tail {
        debug_assert!(offset <= len && len <= offset + 1, "a chain is written at its end");
        let (mut tail, mut offset, mut bytes) = (tail, offset, bytes);
        let mut capacity = len.next_multiple_of(PAYLOAD);
        while !bytes.is_empty() {
            if offset >= capacity {
                tail = self.allocate(tail);
                capacity += PAYLOAD;
            }
            let (block, start) = locate(tail);
            let at = offset % PAYLOAD;
            let (now, later) = bytes.split_at(bytes.len().min(PAYLOAD - at));
            self.blocks[block].bytes[start + at..start + at + now.len()].copy_from_slice(now);
            offset += now.len();
            bytes = later;
        }
        tail
    }

    /// The `len` bytes of the chain that ends at `tail`.
    pub(super) fn copy(&self, tail: Tail, len: usize) -> Vec<u8> {
        let mut copy = vec![0; len];
        let mut tail = tail;
        for part in copy.chunks_mut(PAYLOAD).rev() {
            let (block, start) = locate(tail);
            part.copy_from_slice(&self.blocks[block].bytes[start..start + part.len()]);
            tail = self.previous(tail);
        }
        copy
    }

    /// Gives the pieces of a chain back.
    pub(super) fn free(&mut self, tail: Tail) {
        let mut tail = tail;
        while tail != NONE {
            let previous = self.previous(tail);
            let (block, _) = locate(tail);
            self.blocks[block].give_back((tail & 0xff) as u8);
            self.first_free = self.first_free.min(block);
            tail = previous;
        }
    }

    fn previous(&self, tail: Tail) -> Tail {
        let (block, start) = locate(tail);
        let link = self.blocks[block].bytes[start + PAYLOAD..].first_chunk::<4>();
        link.map_or(NONE, |link| Tail::from_le_bytes(*link))
    }

    fn allocate(&mut self, previous: Tail) -> Tail {
        loop {
            if self.first_free == self.blocks.len() {
                self.blocks.push(Block::default());
            }
            let block = &mut self.blocks[self.first_free];
            if let Some(number) = block.take() {
                let link = usize::from(number) * PIECE_BYTES + PAYLOAD;
                block.bytes[link..link + 4].copy_from_slice(&previous.to_le_bytes());
                return (self.first_free as u32) << 8 | u32::from(number);
            }
            self.first_free += 1;
        }
    }

    /// Heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let of_blocks: usize = self.blocks.iter().map(|block| block.bytes.capacity()).sum();
        of_blocks + self.blocks.capacity() * size_of::<Block>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chains_keep_their_bytes(
            steps in proptest::collection::vec((0..8_u8, any::<u16>(), 1..25_usize, any::<u8>(), any::<bool>()), 0..600),
        ) {
            let mut slab = Slab::default();
            let mut model: Vec<(Tail, Vec<u8>)> = Vec::new();
            for (step, which, len, byte, on_last) in steps {
                if step == 0 || model.is_empty() {
                    model.push((NONE, Vec::new()));
                }
                let at = usize::from(which) % model.len();
                if step == 1 {
                    let (tail, _) = model.swap_remove(at);
                    slab.free(tail);
                    continue;
                }
                let (tail, bytes) = &mut model[at];
                let offset = bytes.len().saturating_sub(usize::from(on_last));
                *tail = slab.write(*tail, bytes.len(), offset, &vec![byte; len]);
                bytes.truncate(offset);
                bytes.extend(std::iter::repeat_n(byte, len));
                for (tail, bytes) in &model {
                    prop_assert_eq!(&slab.copy(*tail, bytes.len()), bytes);
                }
            }
            model.iter().for_each(|(tail, _)| slab.free(*tail));
            prop_assert!(slab.blocks.iter().all(|block| block.bytes.capacity() == 0));
        }
    }

    #[test]
    fn memory_follows_what_is_held() {
        let mut slab = Slab::default();
        const SERIES: usize = 1024;
        for _ in 0..5 {
            // All grow together, sample by sample, and all end together.
            let mut chains = vec![(NONE, 0); SERIES];
            for _ in 0..100 {
                for (tail, len) in &mut chains {
                    *tail = slab.write(*tail, *len, *len, &[7; 4]);
                    *len += 4;
                }
            }
            let held = SERIES * 400;
            assert!(slab.heap_bytes() < held * 5 / 4, "{} for {held}", slab.heap_bytes());
            for (tail, len) in &mut chains {
                slab.free(*tail);
                (*tail, *len) = (slab.write(NONE, 0, 0, &[7; 20]), 20);
            }
            assert!(slab.heap_bytes() < SERIES * 64 * 4 / 3, "{} after the end", slab.heap_bytes());
            chains.iter().for_each(|(tail, _)| slab.free(*tail));
        }
    }
}
