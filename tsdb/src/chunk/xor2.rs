//! Floats with start timestamps (encoding 4): read only.
//!
//! Layout: `num_samples u16 | header u8 | sample …`. The header's high bit says that sample 0 carries a start timestamp, its
//! low seven bits are the first sample from which on every sample does (0: none). Samples are one bit stream:
//!
//! | sample | coding |
//! |---|---|
//! | 0 | time varint, value 64 bits, then, by the header, `time - start` varint |
//! | 1 | time delta uvarint, value code A |
//! | others | `0` same delta and value; `10` same delta, value code B; `110`/`1110`/`11110` delta of delta of 13/20/64 bits (two's complement), value code A; `11111` same delta, stale marker |
//!
//! Value code A: `0` same, `10` xor in the window, `110` new window, `111` stale marker. Code B: `0` xor in the window, `1`
//! new window. A stale marker is no base for the next xor. Start timestamps are skipped: nothing here uses them yet.

use skald_model::{Columns, QueryRange, STALE_NAN_BITS, TimestampMs};

use super::bits::BitReader;
use super::xor::XorWindow;
use super::{ChunkError, varbit};

/// Appends the samples of a chunk that lie in `range` to the float columns of `out`, as [`super::xor::decode`] does.
pub fn decode(bytes: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    let start = out.float_timestamps.len();
    let result = decode_samples(bytes, range, out);
    if result.is_err() {
        out.float_timestamps.truncate(start);
        out.float_values.truncate(start);
    }
    result
}

struct Reader<'a> {
    bits: BitReader<'a>,
    time: TimestampMs,
    delta: u64,
    /// The last value that is no stale marker.
    base: u64,
    window: XorWindow,
}

fn decode_samples(bytes: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    let num_samples = super::num_samples(bytes)?;
    let header = *bytes.get(2).ok_or(ChunkError::Truncated)?;
    let first_start = u16::from(header & 0x7F);
    let bits = BitReader::new(&bytes[3..]);
    let mut reader = Reader { bits, time: 0, delta: 0, base: 0, window: XorWindow::NONE };
    for index in 0..num_samples {
        let before = reader.time;
        let value = match index {
            0 => reader.first(header >> 7 == 1)?,
            1 => reader.second()?,
            _ => reader.next()?,
        };
        if index > 0 && first_start != 0 && index >= first_start {
            varbit::take_int(&mut reader.bits);
        }
        reader.bits.check()?;
        if index > 0 && reader.time < before {
            return Err(ChunkError::OutOfOrder);
        }
        if reader.time > range.max {
            break;
        }
        if reader.time >= range.min && (index == 0 || reader.time > before) {
            out.push_float(reader.time, f64::from_bits(value));
        }
    }
    Ok(())
}

impl Reader<'_> {
    fn first(&mut self, has_start: bool) -> Result<u64, ChunkError> {
        self.time = self.bits.take_varint()?;
        let value = self.bits.take(64);
        if value != STALE_NAN_BITS {
            self.base = value;
        }
        if has_start {
            self.bits.take_varint()?;
        }
        Ok(value)
    }

    fn second(&mut self) -> Result<u64, ChunkError> {
        self.delta = self.bits.take_uvarint()?;
        self.time = self.time.wrapping_add(self.delta as i64);
        self.value_a()
    }

    fn next(&mut self) -> Result<u64, ChunkError> {
        self.bits.refill();
        let class = (!self.bits.peek()).leading_zeros().min(5);
        self.bits.skip(if class < 5 { class + 1 } else { 5 });
        let dod = match class {
            2 => self.signed(13),
            3 => self.signed(20),
            4 => self.bits.take(64) as i64,
            _ => 0,
        };
        self.delta = self.delta.wrapping_add(dod as u64);
        self.time = self.time.wrapping_add(self.delta as i64);
        match class {
            0 => Ok(self.base),
            1 => {
                let new_window = self.bits.take(1) == 1;
                self.changed(new_window)
            }
            5 => Ok(STALE_NAN_BITS),
            _ => self.value_a(),
        }
    }

    /// A two's complement number of `count` bits.
    fn signed(&mut self, count: u32) -> i64 {
        ((self.bits.take(count) << (64 - count)) as i64) >> (64 - count)
    }

    fn value_a(&mut self) -> Result<u64, ChunkError> {
        self.bits.refill();
        let class = (!self.bits.peek()).leading_zeros().min(3);
        self.bits.skip(if class < 3 { class + 1 } else { 3 });
        match class {
            0 => Ok(self.base),
            1 => self.changed(false),
            2 => self.changed(true),
            _ => Ok(STALE_NAN_BITS),
        }
    }

    fn changed(&mut self, new_window: bool) -> Result<u64, ChunkError> {
        let xor = if new_window {
            self.bits.refill();
            self.window.take_new(&mut self.bits)?
        } else {
            self.window.take_significant(&mut self.bits)?
        };
        self.base ^= xor;
        Ok(self.base)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::bits::BitWriter;

    #[test]
    fn every_code_is_read() {
        let (mut bytes, mut bits) = (vec![0, 7, 0], Vec::new());
        let mut out = BitWriter::new(&mut bits);
        out.put_varint(1000);
        out.put(1.0_f64.to_bits(), 64);
        // Sample 1: 15 s later, same value.
        out.put_uvarint(15_000);
        out.put(0, 1);
        // Sample 2: same delta and value.
        out.put(0, 1);
        // Sample 3: same delta, a new window over all 64 bits: 2.0.
        out.put(0b10, 2);
        out.put(1, 1);
        let xor = 1.0_f64.to_bits() ^ 2.0_f64.to_bits();
        let (leading, significant) = (xor.leading_zeros(), 64 - xor.leading_zeros() - xor.trailing_zeros());
        out.put(u64::from(leading), 5);
        out.put(u64::from(significant), 6);
        out.put(xor >> xor.trailing_zeros(), significant);
        // Sample 4: a second earlier than expected, stale.
        out.put(0b110, 3);
        out.put((-1000_i64 as u64) & 0x1FFF, 13);
        out.put(0b111, 3);
        // Sample 5: same delta, stale; sample 6: same delta, xor in the window: back to 1.0.
        out.put(0b11111, 5);
        out.put(0b10, 2);
        out.put(0, 1);
        out.put(xor >> xor.trailing_zeros(), significant);
        out.finish();
        bytes.extend(bits);
        let mut columns = Columns::default();
        decode(&bytes, QueryRange::ALL, &mut columns).unwrap();
        assert_eq!(columns.float_timestamps, [1000, 16_000, 31_000, 46_000, 60_000, 74_000, 88_000]);
        let stale = STALE_NAN_BITS;
        let expected = [
            1.0_f64.to_bits(),
            1.0_f64.to_bits(),
            1.0_f64.to_bits(),
            2.0_f64.to_bits(),
            stale,
            stale,
            1.0_f64.to_bits(),
        ];
        assert_eq!(columns.float_values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = decode(&bytes, QueryRange::ALL, &mut Columns::default());
        }
    }
}
