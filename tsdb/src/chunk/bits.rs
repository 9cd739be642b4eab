//! Bit streams, most significant bit first: the writer and the reader under every chunk encoding.

use std::ops::Range;

use super::ChunkError;

/// Where a [`BitWriter`] puts finished bytes.
pub trait ByteSink {
    /// Appends `bytes`.
    fn put_slice(&mut self, bytes: &[u8]);
}

impl ByteSink for Vec<u8> {
    #[inline]
    fn put_slice(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The last byte of a bit stream that may not be full yet: all a writer needs to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tail {
    /// The byte; its unused low bits are zero.
    pub byte: u8,
    /// How many of its bits are used, 0 to 7. At 0 there is no partial byte: the stream ends on a byte boundary.
    pub bits: u8,
}

/// Collects bits in a register and hands them on eight bytes at a time.
///
/// Nothing reaches the sink's last bytes before [`BitWriter::finish`].
pub struct BitWriter<'a, S: ByteSink> {
    out: &'a mut S,
    /// Pending bits, left-aligned, zero below.
    pending: u64,
    /// How many bits are pending, 0 to 63.
    len: u32,
}

impl<'a, S: ByteSink> BitWriter<'a, S> {
    /// Starts on a byte boundary.
    #[inline]
    pub fn new(out: &'a mut S) -> Self {
        Self { out, pending: 0, len: 0 }
    }

    /// Goes on after `tail`, whose byte the caller has taken from the sink's end (when it has bits).
    #[inline]
    pub fn resume(out: &'a mut S, tail: Tail) -> Self {
        Self { out, pending: u64::from(tail.byte) << 56, len: u32::from(tail.bits) }
    }

    /// Appends the low `count` bits of `value`, which is below `2^count`; `count` is 1 to 64.
    #[inline]
    pub fn put(&mut self, value: u64, count: u32) {
        debug_assert!((1..=64).contains(&count) && (count == 64 || value >> count == 0));
        let aligned = value << (64 - count);
        self.pending |= aligned >> self.len;
        let total = self.len + count;
        if total < 64 {
            self.len = total;
            return;
        }
        self.out.put_slice(&self.pending.to_be_bytes());
        let spill = total - 64;
        self.pending = if spill == 0 { 0 } else { aligned << (count - spill) };
        self.len = spill;
    }

    /// Appends the bits `range` of `bytes`, which has them.
    #[inline]
    pub fn put_bits_of(&mut self, bytes: &[u8], range: Range<usize>) {
        let Range { start: mut at, end } = range;
        // Up to a full register, then from there on word by word.
        let room = (64 - self.len as usize).min(end - at);
        if room > 0 {
            self.put(bits_at(bytes, at) >> (64 - room), room as u32);
            at += room;
        }
        while end - at >= 64 {
            self.out.put_slice(&bits_at(bytes, at).to_be_bytes());
            at += 64;
        }
        if end > at {
            self.put(bits_at(bytes, at) >> (64 - (end - at)), (end - at) as u32);
        }
    }

    /// Appends an unsigned LEB128 varint as groups of eight bits.
    #[inline]
    pub fn put_uvarint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put((value & 0x7f) | 0x80, 8);
            value >>= 7;
        }
        self.put(value, 8);
    }

    /// Appends a zig-zag varint as groups of eight bits.
    #[inline]
    pub fn put_varint(&mut self, value: i64) {
        self.put_uvarint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// Writes the pending bits, the last byte padded with zeros, and says where a later writer goes on.
    #[inline]
    pub fn finish(self) -> Tail {
        let bytes = self.pending.to_be_bytes();
        let used = self.len.div_ceil(8) as usize;
        self.out.put_slice(&bytes[..used]);
        match self.len % 8 {
            0 => Tail::default(),
            bits => Tail { byte: bytes[used - 1], bits: bits as u8 },
        }
    }
}

/// Reads bits out of a register that is refilled eight bytes at a time.
///
/// Past the end it reads zeros: a reader takes what one sample needs and then asks [`BitReader::check`] once whether
/// the bits were really there. Loops over samples are bounded by the chunk's count, so that is always safe.
#[derive(Clone)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    /// Next byte to load; runs past the end when zeros are read.
    at: usize,
    /// Loaded bits, left-aligned. Bits below `len` are either zero or already what follows.
    loaded: u64,
    /// How many loaded bits count, 0 to 63.
    len: u32,
}

/// Bits that are surely in the register after [`BitReader::refill`].
pub const REFILLED: u32 = 56;

impl<'a> BitReader<'a> {
    /// Reads from the first bit of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, loaded: 0, len: 0 }
    }

    /// Loads until at least [`REFILLED`] bits are in the register.
    #[inline(always)]
    pub fn refill(&mut self) {
        let word = match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            Some(word) => u64::from_be_bytes(*word),
            None => word_at_end(self.bytes, self.at),
        };
        self.loaded |= word >> self.len;
        let bytes = (63 - self.len) >> 3;
        self.at += bytes as usize;
        self.len += bytes * 8;
    }

    /// The register: the next bits, left-aligned.
    #[inline(always)]
    pub fn peek(&self) -> u64 {
        self.loaded
    }

    /// How many zeros the register begins with.
    #[inline(always)]
    pub fn zeros(&self) -> u32 {
        self.loaded.leading_zeros().min(self.len)
    }

    /// Drops `count` bits of the register; they must be loaded.
    #[inline(always)]
    pub fn skip(&mut self, count: u32) {
        debug_assert!(count <= self.len);
        self.loaded <<= count;
        self.len -= count;
    }

    /// Takes `count` bits, 1 to 56, that are surely loaded.
    #[inline(always)]
    pub fn take_loaded(&mut self, count: u32) -> u64 {
        let value = self.loaded >> (64 - count);
        self.skip(count);
        value
    }

    /// Takes `count` bits, 1 to 64.
    #[inline(always)]
    pub fn take(&mut self, count: u32) -> u64 {
        if self.len < count.min(REFILLED) {
            self.refill();
        }
        if count <= REFILLED {
            return self.take_loaded(count);
        }
        let low = count - 32;
        let high = self.take_loaded(32);
        self.refill();
        high << low | self.take_loaded(low)
    }

    /// Takes one bit.
    #[inline(always)]
    pub fn take_bit(&mut self) -> bool {
        self.take(1) == 1
    }

    /// Takes an unsigned varint of 8-bit groups.
    #[inline]
    pub fn take_uvarint(&mut self) -> Result<u64, ChunkError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let group = self.take(8);
            if shift == 63 && group > 1 {
                break;
            }
            value |= (group & 0x7f) << shift;
            if group < 0x80 {
                return Ok(value);
            }
        }
        Err(ChunkError::Malformed("varint"))
    }

    /// Takes a zig-zag varint of 8-bit groups.
    #[inline]
    pub fn take_varint(&mut self) -> Result<i64, ChunkError> {
        let raw = self.take_uvarint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// Whether every bit taken so far lay inside the bytes.
    #[inline(always)]
    pub fn check(&self) -> Result<(), ChunkError> {
        // `at` runs ahead of the bits taken by what is still loaded.
        if self.at * 8 - self.len as usize <= self.bytes.len() * 8 { Ok(()) } else { Err(ChunkError::Truncated) }
    }

    /// What it reads from, from the first bit on.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of bits taken so far.
    pub fn position(&self) -> usize {
        self.at * 8 - self.len as usize
    }

    /// Number of bits that are still there.
    pub fn remaining(&self) -> usize {
        (self.bytes.len() * 8).saturating_sub(self.position())
    }
}

/// The 64 bits from `at` on, left-aligned; zeros past the end.
#[inline(always)]
fn bits_at(bytes: &[u8], at: usize) -> u64 {
    let (byte, bit) = (at / 8, at % 8);
    match bytes.get(byte..byte + 9).and_then(|bytes| Some((bytes.first_chunk::<8>()?, bytes[8]))) {
        // The ninth byte has what the first eight lack.
        Some((word, last)) => u64::from_be_bytes(*word) << bit | u64::from(last) >> (8 - bit),
        None => word_at_end(bytes, byte) << bit | word_at_end(bytes, byte + 8) >> 1 >> (63 - bit),
    }
}

/// The last bytes as a whole word. Not a method: a reader whose address is taken does not live in registers.
#[cold]
fn word_at_end(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(rest) = bytes.get(at..) {
        let len = rest.len().min(8);
        word[..len].copy_from_slice(&rest[..len]);
    }
    u64::from_be_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields() -> impl Strategy<Value = Vec<(u64, u32)>> {
        proptest::collection::vec((any::<u64>(), 1u32..=64), 0..40)
            .prop_map(|fields| fields.into_iter().map(|(value, count)| (value >> (64 - count), count)).collect())
    }

    proptest! {
        #[test]
        fn fields_round_trip(fields in fields(), split in 0usize..40) {
            let mut out = Vec::new();
            let split = split.min(fields.len());
            let mut writer = BitWriter::new(&mut out);
            fields[..split].iter().for_each(|&(value, count)| writer.put(value, count));
            let tail = writer.finish();
            if tail.bits > 0 {
                prop_assert_eq!(out.pop(), Some(tail.byte));
            }
            let mut writer = BitWriter::resume(&mut out, tail);
            fields[split..].iter().for_each(|&(value, count)| writer.put(value, count));
            writer.finish();

            let total: u32 = fields.iter().map(|f| f.1).sum();
            prop_assert_eq!(out.len(), total.div_ceil(8) as usize);
            let mut reader = BitReader::new(&out);
            for (value, count) in fields {
                prop_assert_eq!(reader.take(count), value);
                prop_assert!(reader.check().is_ok());
            }
            prop_assert_eq!(reader.position(), total as usize);
            prop_assert!(reader.remaining() < 8);
            reader.take(8);
            prop_assert_eq!(reader.check(), Err(ChunkError::Truncated));
        }

        #[test]
        fn bits_are_copied(bytes in proptest::collection::vec(any::<u8>(), 1..60), lead in 0u32..64, cut in any::<[prop::sample::Index; 2]>()) {
            let bits = bytes.len() * 8;
            let (a, b) = (cut[0].index(bits + 1), cut[1].index(bits + 1));
            let range = a.min(b)..a.max(b);
            let write = |bit_by_bit: bool| {
                let mut out = Vec::new();
                let mut writer = BitWriter::new(&mut out);
                (0..lead).for_each(|bit| writer.put(u64::from(bit % 3 == 0), 1));
                match bit_by_bit {
                    true => range.clone().for_each(|at| writer.put(u64::from(bytes[at / 8] >> (7 - at % 8) & 1), 1)),
                    false => writer.put_bits_of(&bytes, range.clone()),
                }
                writer.put(0b101, 3);
                writer.finish();
                out
            };
            prop_assert_eq!(write(false), write(true));
        }

        #[test]
        fn varints_round_trip(lead in 1u32..16, unsigned: u64, signed: i64) {
            let mut out = Vec::new();
            let mut writer = BitWriter::new(&mut out);
            writer.put(1, lead);
            writer.put_uvarint(unsigned);
            writer.put_varint(signed);
            writer.finish();
            let mut reader = BitReader::new(&out);
            reader.take(lead);
            prop_assert_eq!(reader.take_uvarint(), Ok(unsigned));
            prop_assert_eq!(reader.take_varint(), Ok(signed));
            prop_assert!(reader.check().is_ok());
        }
    }

    #[test]
    fn overlong_varint_is_refused() {
        assert_eq!(BitReader::new(&[0xff; 12]).take_uvarint(), Err(ChunkError::Malformed("varint")));
    }
}
