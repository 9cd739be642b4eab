//! Gorilla-compressed floats (encoding 1).
//!
//! Layout: `num_samples u16 | t0 varint | v0 f64 | t1-t0 uvarint | v1^v0 | dod2 | v2^v1 | …` (Prometheus
//! tsdb/docs/format/chunks.md). Everything after the count is one bit stream; varints are groups of eight bits.
//!
//! | delta of delta of time | bits | | value xor previous | bits |
//! |---|---|---|---|---|
//! | 0 | `0` | | 0 | `0` |
//! | -(2^13-1) ..= 2^13 | `10` + 14 | | fits the previous window of significant bits | `10` + window |
//! | -(2^16-1) ..= 2^16 | `110` + 17 | | else | `11` + 5 leading zeros + 6 length (64 as 0) + bits |
//! | -(2^19-1) ..= 2^19 | `1110` + 20 | | | |
//! | else | `1111` + 64 | | | |
//!
//! How to write. [`XorAppender`] is 32 bytes of state beside bytes that the caller owns:
//!
//! - [`XorAppender::encode`] gives the at most 24 bytes that one sample adds and where in the chunk they go: a head
//!   copies them into its arena. The first of them may overwrite the chunk's last byte, which was only partly used.
//! - [`XorAppender::append`] does the same to a `Vec<u8>` that holds the chunk from its first byte.
//! - The chunk's first two bytes stay zero until [`put_num_samples`] patches the count in. The bytes up to
//!   [`XorAppender::byte_len`], so patched, are a complete chunk after every sample: a snapshot is a copy of them.
//! - [`XorAppender::resume`] goes on with a chunk whose appender is gone (a restart).
//! - [`encode`] makes a chunk of samples that are all there already, in a third of the time (`whole.rs`).
//!
//! When to cut is the caller's decision; `encode` refuses only what the format cannot hold.
//! How to read: [`decode`], which reads chunks with nothing odd in them by `plain.rs` and others carefully.
//! Chunks that are made of others' samples are made of their bits, where they can (`marked.rs`, `splice.rs`).

mod marked;
mod plain;
mod splice;
mod whole;

use skald_model::{Columns, QueryRange, TimestampMs};

use super::ChunkError;
use super::bits::{BitReader, BitWriter, ByteSink, Tail};

pub(crate) use self::marked::Marked;
pub(crate) use self::splice::{Piece, splice};
pub use self::whole::encode;
pub(crate) use self::whole::encode_into;

/// Most bytes one sample can add: count, varint and value of the first one take 20.
const MAX_SAMPLE_BYTES: usize = 24;

/// Compresses one chunk's samples one by one. Small and plain: a head keeps one per active series.
#[derive(Debug, Clone, Copy)]
pub struct XorAppender {
    time: TimestampMs,
    /// Wrapping difference of the last two times; 0 after the first sample.
    delta: u64,
    value_bits: u64,
    num_samples: u16,
    byte_len: u16,
    window: XorWindow,
    tail: Tail,
}

/// The bytes one sample adds to its chunk.
#[derive(Debug, Clone, Copy)]
pub struct EncodedSample {
    bytes: [u8; MAX_SAMPLE_BYTES],
    len: u8,
    offset: u16,
}

impl EncodedSample {
    /// Where in the chunk [`EncodedSample::bytes`] begin: at its end, or on its last byte when that was partly used.
    #[inline]
    pub fn offset(&self) -> usize {
        usize::from(self.offset)
    }

    /// What to store there.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl ByteSink for EncodedSample {
    #[inline]
    fn put_slice(&mut self, bytes: &[u8]) {
        let at = usize::from(self.len);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }
}

/// The chunk holds as many samples or bytes as its format allows; begin another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk is full")]
pub struct ChunkFull;

impl Default for XorAppender {
    fn default() -> Self {
        Self::new()
    }
}

impl XorAppender {
    /// The appender of a chunk without bytes.
    pub const fn new() -> Self {
        Self {
            time: 0,
            delta: 0,
            value_bits: 0,
            num_samples: 0,
            byte_len: 0,
            window: XorWindow::NONE,
            tail: Tail { byte: 0, bits: 0 },
        }
    }

    /// Goes on with a chunk whose bytes were written by an earlier appender: reads all of it once.
    ///
    /// The chunk must end where its samples do. Its first two bytes may keep their count.
    pub fn resume(bytes: &[u8]) -> Result<Self, ChunkError> {
        let byte_len = u16::try_from(bytes.len()).map_err(|_| ChunkError::Malformed("length"))?;
        let mut reader = XorReader::new(bytes)?;
        for index in 0..reader.num_samples {
            reader.next(index)?;
        }
        let position = 16 + reader.bits.position();
        if position.div_ceil(8) != bytes.len() {
            return Err(ChunkError::Malformed("length"));
        }
        let bits = (position % 8) as u8;
        let byte = if bits == 0 { 0 } else { bytes[bytes.len() - 1] & (0xff << (8 - bits)) };
        Ok(Self {
            time: reader.time,
            delta: reader.delta,
            value_bits: reader.value_bits,
            num_samples: reader.num_samples,
            byte_len,
            window: reader.window,
            tail: Tail { byte, bits },
        })
    }

    /// Samples so far.
    #[inline]
    pub fn num_samples(&self) -> u16 {
        self.num_samples
    }

    /// Length of the chunk so far, in bytes.
    #[inline]
    pub fn byte_len(&self) -> usize {
        usize::from(self.byte_len)
    }

    /// Time of the last sample; 0 when there is none.
    #[inline]
    pub fn last_time(&self) -> TimestampMs {
        self.time
    }

    /// The last value, bit by bit; 0 when there is none.
    #[inline]
    pub fn last_value(&self) -> f64 {
        f64::from_bits(self.value_bits)
    }

    /// Encodes one sample, newer than the last one. The caller stores the bytes it gives, each time.
    #[inline]
    pub fn encode(&mut self, time: TimestampMs, value: f64) -> Result<EncodedSample, ChunkFull> {
        let room = u16::MAX - self.byte_len;
        if self.num_samples == u16::MAX || usize::from(room) < MAX_SAMPLE_BYTES {
            return Err(ChunkFull);
        }
        let offset = self.byte_len - u16::from(self.tail.bits > 0);
        let mut sample = EncodedSample { bytes: [0; MAX_SAMPLE_BYTES], len: 0, offset };
        let mut out = BitWriter::resume(&mut sample, self.tail);
        let value_bits = value.to_bits();
        match self.num_samples {
            0 => {
                out.put(0, 16);
                out.put_varint(time);
                out.put(value_bits, 64);
            }
            1 => {
                self.delta = time.wrapping_sub(self.time) as u64;
                out.put_uvarint(self.delta);
                self.window.put(&mut out, value_bits ^ self.value_bits);
            }
            _ => {
                let delta = time.wrapping_sub(self.time) as u64;
                put_time_dod(&mut out, delta.wrapping_sub(self.delta) as i64);
                self.delta = delta;
                self.window.put(&mut out, value_bits ^ self.value_bits);
            }
        }
        self.tail = out.finish();
        self.time = time;
        self.value_bits = value_bits;
        self.num_samples += 1;
        self.byte_len = offset + u16::from(sample.len);
        Ok(sample)
    }

    /// Encodes one sample onto `chunk`, which holds this chunk from its first byte, and patches its count.
    #[inline]
    pub fn append(&mut self, chunk: &mut Vec<u8>, time: TimestampMs, value: f64) -> Result<(), ChunkFull> {
        let sample = self.encode(time, value)?;
        chunk.truncate(sample.offset());
        chunk.extend_from_slice(sample.bytes());
        put_num_samples(chunk, self.num_samples);
        Ok(())
    }
}

/// Patches the sample count into a chunk's first two bytes; shorter slices are left alone.
#[inline]
pub fn put_num_samples(chunk: &mut [u8], num_samples: u16) {
    if let Some(count) = chunk.first_chunk_mut::<2>() {
        *count = num_samples.to_be_bytes();
    }
}

#[inline]
fn put_time_dod<S: ByteSink>(out: &mut BitWriter<'_, S>, dod: i64) {
    // One put per class: the prefix stands above the field's bits.
    match dod {
        0 => out.put(0, 1),
        -0x1fff..=0x2000 => out.put(0b10 << 14 | (dod as u64 & 0x3fff), 16),
        -0xffff..=0x1_0000 => out.put(0b110 << 17 | (dod as u64 & 0x1_ffff), 20),
        -0x7_ffff..=0x8_0000 => out.put(0b1110 << 20 | (dod as u64 & 0xf_ffff), 24),
        _ => {
            out.put(0b1111, 4);
            out.put(dod as u64, 64);
        }
    }
}

/// The window of significant bits that successive xors of one float share: zeros before and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct XorWindow {
    leading: u8,
    trailing: u8,
}

impl XorWindow {
    /// No window yet. No xor has that many leading zeros; readers take it for the whole 64 bits.
    pub(super) const NONE: Self = Self { leading: 0xff, trailing: 0 };
    const WHOLE: Self = Self { leading: 0, trailing: 0 };

    /// Writes `xor`, a value's difference to the one before, inside the window or with a new one.
    #[inline]
    pub(super) fn put<S: ByteSink>(&mut self, out: &mut BitWriter<'_, S>, xor: u64) {
        if xor == 0 {
            out.put(0, 1);
            return;
        }
        self.put_changed(out, xor, (0b10, 2), (0b11, 2));
    }

    /// Writes an `xor` that is not 0: behind the code `reuse` inside the window, behind `new` with a new one. Codes are bits
    /// and their number.
    #[inline(always)]
    pub(super) fn put_changed<S: ByteSink>(
        &mut self,
        out: &mut BitWriter<'_, S>,
        xor: u64,
        reuse: (u64, u32),
        new: (u64, u32),
    ) {
        let leading = (xor.leading_zeros() as u8).min(31);
        let trailing = xor.trailing_zeros() as u8;
        if leading >= self.leading && trailing >= self.trailing {
            out.put(reuse.0, reuse.1);
            out.put(xor >> self.trailing, u32::from(64 - self.leading - self.trailing));
            return;
        }
        *self = Self { leading, trailing };
        let significant = 64 - leading - trailing;
        // A length of 64 does not fit six bits and is written as 0; a length of 0 does not occur.
        out.put(new.0 << 11 | u64::from(leading) << 6 | u64::from(significant & 63), new.1 + 11);
        out.put(xor >> trailing, u32::from(significant));
    }

    /// Reads an xor; zeros past the end.
    #[inline]
    pub(super) fn take(&mut self, bits: &mut BitReader<'_>) -> Result<u64, ChunkError> {
        bits.refill();
        self.take_refilled(bits)
    }

    /// The same with 13 bits surely loaded.
    #[inline(always)]
    fn take_refilled(&mut self, bits: &mut BitReader<'_>) -> Result<u64, ChunkError> {
        let word = bits.peek();
        if word >> 63 == 0 {
            bits.skip(1);
            return Ok(0);
        }
        if word >> 62 == 0b10 {
            bits.skip(2);
            return self.take_significant(bits);
        }
        bits.skip(2);
        self.take_new(bits)
    }

    /// Reads a new window, 11 bits of which are surely loaded, and an xor inside it.
    #[inline(always)]
    pub(super) fn take_new(&mut self, bits: &mut BitReader<'_>) -> Result<u64, ChunkError> {
        let header = bits.take_loaded(11);
        let leading = (header >> 6) as u8;
        let significant = match (header & 63) as u8 {
            0 => 64,
            length => length,
        };
        if leading + significant > 64 {
            return Err(ChunkError::Malformed("value window"));
        }
        *self = Self { leading, trailing: 64 - leading - significant };
        self.take_significant(bits)
    }

    /// Reads an xor inside the window.
    #[inline(always)]
    pub(super) fn take_significant(&mut self, bits: &mut BitReader<'_>) -> Result<u64, ChunkError> {
        let leading = if *self == Self::NONE { 0 } else { self.leading };
        Ok(bits.take(u32::from(64 - leading - self.trailing)) << self.trailing)
    }
}

/// Appends the samples of a chunk that lie in `range` to the float columns of `out`.
///
/// Samples must be newer than those already there (a sample that repeats the time before it inside the chunk is
/// dropped). On an error `out` is as it was.
pub fn decode(bytes: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    let reader = XorReader::new(bytes)?;
    let start = out.float_timestamps.len();
    // The count is proven: a sample takes two bits at least.
    let end = start + usize::from(reader.num_samples);
    out.float_timestamps.resize(end, 0);
    out.float_values.resize(end, 0.0);
    let times = &mut out.float_timestamps[start..];
    let values = &mut out.float_values[start..];
    let (kept, result) = match reader.clone().decode_plain(range, times, values) {
        Some(kept) => (kept, Ok(())),
        None => match reader.decode_into(range, times, values) {
            Ok(kept) => (kept, Ok(())),
            Err(error) => (0, Err(error)),
        },
    };
    out.float_timestamps.truncate(start + kept);
    out.float_values.truncate(start + kept);
    result
}

/// The reader's state between two samples.
#[derive(Clone)]
struct XorReader<'a> {
    bits: BitReader<'a>,
    num_samples: u16,
    time: TimestampMs,
    delta: u64,
    value_bits: u64,
    window: XorWindow,
}

impl<'a> XorReader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, ChunkError> {
        let num_samples = super::num_samples(bytes)?;
        if usize::from(num_samples) > bytes.len() * 4 {
            return Err(ChunkError::Truncated);
        }
        let bits = BitReader::new(&bytes[2..]);
        Ok(Self { bits, num_samples, time: 0, delta: 0, value_bits: 0, window: XorWindow::NONE })
    }

    /// [`XorReader::decode_into`] of a chunk where nothing is odd; `None` of others.
    fn decode_plain(mut self, range: QueryRange, times: &mut [TimestampMs], values: &mut [f64]) -> Option<usize> {
        for index in 0..usize::from(self.num_samples.min(2)) {
            if !self.next(index as u16).ok()? {
                return None;
            }
            times[index] = self.time;
            values[index] = f64::from_bits(self.value_bits);
        }
        let mut decoded = times.len().min(2);
        if decoded == 2 && self.time <= range.max {
            decoded += plain::decode(&self, range.max, &mut times[2..], &mut values[2..])?;
        }
        let end = times[..decoded].partition_point(|&time| time <= range.max);
        let start = times[..end].partition_point(|&time| time < range.min);
        if start > 0 {
            times.copy_within(start..end, 0);
            values.copy_within(start..end, 0);
        }
        Some(end - start)
    }

    /// Decodes every sample up to the range's end into the two slices, which have room for all; says how many it kept.
    ///
    /// Takes the reader by value, and nothing it calls takes its address, so that it lives in registers.
    #[inline(always)]
    fn decode_into(
        mut self,
        range: QueryRange,
        times: &mut [TimestampMs],
        values: &mut [f64],
    ) -> Result<usize, ChunkError> {
        let mut kept = 0;
        for index in 0..self.num_samples.min(2) {
            if self.next(index)? && range.contains(self.time) {
                times[kept] = self.time;
                values[kept] = f64::from_bits(self.value_bits);
                kept += 1;
            }
        }
        let mut left = u32::from(self.num_samples.saturating_sub(2));
        while left > 0 {
            self.bits.refill();
            let mut before = self.time;
            if self.bits.peek() >> 62 != 0 {
                self.next_dod()?;
                left -= 1;
            } else {
                // Samples with the delta and the value of the one before are two zero bits each.
                let run = (self.bits.zeros() / 2).min(left);
                self.bits.skip(2 * run);
                self.bits.check()?;
                left -= run;
                for _ in 1..run {
                    self.time = before.wrapping_add(self.delta as i64);
                    if !is_newer(self.time, before)? || self.time > range.max {
                        break;
                    }
                    // Written in any case, kept by moving on: no branch on the range's start.
                    times[kept] = self.time;
                    values[kept] = f64::from_bits(self.value_bits);
                    kept += usize::from(self.time >= range.min);
                    before = self.time;
                }
                self.time = before.wrapping_add(self.delta as i64);
            }
            if !is_newer(self.time, before)? {
                continue;
            }
            if self.time > range.max {
                break;
            }
            times[kept] = self.time;
            values[kept] = f64::from_bits(self.value_bits);
            kept += usize::from(self.time >= range.min);
        }
        Ok(kept)
    }

    /// Reads sample `index`; whether it is newer than the one before.
    fn next(&mut self, index: u16) -> Result<bool, ChunkError> {
        let before = self.time;
        match index {
            0 => {
                self.time = self.bits.take_varint()?;
                self.value_bits = self.bits.take(64);
                self.bits.check()?;
                return Ok(true);
            }
            1 => {
                self.delta = self.bits.take_uvarint()?;
                self.time = before.wrapping_add(self.delta as i64);
                self.bits.refill();
                self.next_value()?;
                self.bits.check()?;
            }
            _ => {
                self.bits.refill();
                self.next_dod()?;
            }
        }
        is_newer(self.time, before)
    }

    /// Reads a sample after the second; the register is refilled.
    #[inline(always)]
    fn next_dod(&mut self) -> Result<(), ChunkError> {
        let word = self.bits.peek();
        if word >> 63 == 0 {
            self.bits.skip(1);
        } else {
            let dod = match (!word).leading_zeros() {
                1 => self.take_class(2, 14),
                2 => self.take_class(3, 17),
                3 => self.take_class(4, 20),
                _ => {
                    self.bits.skip(4);
                    let dod = self.bits.take(64) as i64;
                    self.bits.refill();
                    dod
                }
            };
            self.delta = self.delta.wrapping_add(dod as u64);
        }
        self.time = self.time.wrapping_add(self.delta as i64);
        self.next_value()?;
        self.bits.check()
    }

    /// Takes a field of `bits` bits after a prefix; raw values above `2^(bits-1)` are negative.
    #[inline(always)]
    fn take_class(&mut self, prefix: u32, bits: u32) -> i64 {
        self.bits.skip(prefix);
        let raw = self.bits.take_loaded(bits) as i64;
        if raw > 1 << (bits - 1) { raw - (1 << bits) } else { raw }
    }

    /// Reads a value; at least 32 bits are loaded.
    #[inline(always)]
    fn next_value(&mut self) -> Result<(), ChunkError> {
        self.value_bits ^= self.window.take_refilled(&mut self.bits)?;
        Ok(())
    }
}

/// Whether a sample counts: one that repeats the time before it does not.
#[inline(always)]
fn is_newer(time: TimestampMs, before: TimestampMs) -> Result<bool, ChunkError> {
    if time < before { Err(ChunkError::OutOfOrder) } else { Ok(time > before) }
}

#[cfg(test)]
mod tests;
