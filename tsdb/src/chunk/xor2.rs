//! Floats with start timestamps (encoding 4), and how they stand in ST histogram chunks (5 and 6), too ([`StartCoder`]).
//!
//! Layout: `num_samples u16 | header u8 | sample …`. The header's high bit says that sample 0 carries a start timestamp, its
//! low seven bits are the first sample from which on every sample does (0: none; 127 at the latest, as soon as a chunk is that
//! long). Samples before that one have the start of sample 0, or none. Samples are one bit stream:
//!
//! | sample | coding |
//! |---|---|
//! | 0 | time varint, value 64 bits, then, by the header, `time - start` varint |
//! | 1 | time delta uvarint, value code A |
//! | others | `0` same delta and value; `10` same delta, value code B; `110`/`1110`/`11110` delta of delta of 13/20/64 bits (two's complement), value code A; `11111` same delta, stale marker |
//!
//! Value code A: `0` same, `10` xor in the window, `110` new window, `111` stale marker. Code B: `0` xor in the window, `1`
//! new window. A stale marker is no base for the next xor. A start timestamp comes behind its sample: as a signed varbit
//! number, `time of the sample before - start`, of all but the first as the difference to the one before. 0 is none.

use skald_model::{Columns, QueryRange, STALE_NAN_BITS, TimestampMs};

use super::bits::{BitReader, BitWriter, ByteSink};
use super::xor::XorWindow;
use super::{ChunkError, varbit};

/// Appends the samples of a chunk that lie in `range` to the float columns of `out`, as [`super::xor::decode`] does.
pub fn decode(bytes: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    let start = out.float_timestamps.len();
    let result = decode_samples(bytes, range, out);
    if result.is_err() {
        out.float_timestamps.truncate(start);
        out.float_values.truncate(start);
        out.float_starts.truncate(start);
    }
    result
}

/// The last sample that can be the first with a start of its own.
const LAST_FIRST: u16 = 0x7F;

/// Start timestamps among the samples of a chunk.
#[derive(Debug, Clone, Default)]
pub(super) struct StartCoder {
    header: u8,
    start: TimestampMs,
    /// What was last written or read: the time of the sample before, less the start.
    difference: i64,
}

impl StartCoder {
    /// Reads on by the header of a chunk.
    pub(super) fn of_header(header: u8) -> Self {
        Self { header, ..Self::default() }
    }

    /// The header of what was written.
    pub(super) fn header(&self) -> u8 {
        self.header
    }

    fn first(&self) -> u16 {
        u16::from(self.header & 0x7F)
    }

    /// Takes the start of sample `index`, which stands behind the rest of it.
    #[inline]
    pub(super) fn take(
        &mut self,
        bits: &mut BitReader<'_>,
        index: u16,
        previous: TimestampMs,
        time: TimestampMs,
    ) -> Result<TimestampMs, ChunkError> {
        if index == 0 {
            if self.header & 0x80 != 0 {
                self.start = time.wrapping_sub(bits.take_varint()?);
            }
        } else if self.first() != 0 && index >= self.first() {
            let difference = varbit::take_int(bits);
            let before = if index == self.first() { 0 } else { self.difference };
            self.difference = before.wrapping_add(difference);
            self.start = previous.wrapping_sub(self.difference);
        }
        Ok(self.start)
    }

    /// Writes the start of sample `index` behind the rest of it.
    pub(super) fn put<S: ByteSink>(
        &mut self,
        out: &mut BitWriter<'_, S>,
        index: u16,
        previous: TimestampMs,
        time: TimestampMs,
        start: TimestampMs,
    ) {
        let changed = start != std::mem::replace(&mut self.start, start);
        if index == 0 {
            if start != 0 {
                self.header = 0x80;
                out.put_varint(time.wrapping_sub(start));
            }
            return;
        }
        let difference = previous.wrapping_sub(start);
        if self.first() != 0 {
            varbit::put_int(out, difference.wrapping_sub(self.difference));
        } else if changed || index == LAST_FIRST {
            // `changed` comes at that sample at the latest, or is of no use any more.
            self.header |= index as u8 & 0x7F;
            varbit::put_int(out, difference);
        } else {
            return;
        }
        self.difference = difference;
    }
}

/// A whole chunk of samples that ascend, at most 65,535 of them. `starts` may end before the samples do; 0 is none.
pub fn encode(times: &[TimestampMs], values: &[f64], starts: &[TimestampMs]) -> Vec<u8> {
    let num_samples = u16::try_from(times.len()).unwrap_or(u16::MAX);
    let mut chunk = Vec::with_capacity(32 + 6 * times.len());
    chunk.extend_from_slice(&num_samples.to_be_bytes());
    chunk.push(0);
    let mut coder = StartCoder::default();
    let mut out = BitWriter::new(&mut chunk);
    let (mut previous, mut delta, mut base) = (0, 0_u64, 0_u64);
    let mut window = XorWindow::NONE;
    for index in 0..num_samples {
        let at = usize::from(index);
        let (time, bits) = (times[at], values[at].to_bits());
        match index {
            0 => {
                out.put_varint(time);
                out.put(bits, 64);
            }
            1 => {
                delta = time.wrapping_sub(previous) as u64;
                out.put_uvarint(delta);
                put_value(&mut out, bits, base, &mut window);
            }
            _ => {
                let next = time.wrapping_sub(previous) as u64;
                let dod = next.wrapping_sub(delta) as i64;
                delta = next;
                put_joint(&mut out, dod, bits, base, &mut window);
            }
        }
        if bits != STALE_NAN_BITS {
            base = bits;
        }
        coder.put(&mut out, index, previous, time, starts.get(at).copied().unwrap_or(0));
        previous = time;
    }
    out.finish();
    chunk[2] = coder.header();
    chunk
}

fn put_joint<S: ByteSink>(out: &mut BitWriter<'_, S>, dod: i64, bits: u64, base: u64, window: &mut XorWindow) {
    match dod {
        0 if bits == STALE_NAN_BITS => return out.put(0b11111, 5),
        0 if bits == base => return out.put(0, 1),
        0 => {
            out.put(0b10, 2);
            return window.put_changed(out, bits ^ base, (0, 1), (1, 1));
        }
        -4096..=4095 => out.put(0b110 << 13 | (dod as u64 & 0x1FFF), 16),
        -524_288..=524_287 => out.put(0b1110 << 20 | (dod as u64 & 0xF_FFFF), 24),
        _ => {
            out.put(0b11110, 5);
            out.put(dod as u64, 64);
        }
    }
    put_value(out, bits, base, window);
}

/// Value code A.
fn put_value<S: ByteSink>(out: &mut BitWriter<'_, S>, bits: u64, base: u64, window: &mut XorWindow) {
    if bits == STALE_NAN_BITS {
        out.put(0b111, 3);
    } else if bits == base {
        out.put(0, 1);
    } else {
        window.put_changed(out, bits ^ base, (0b10, 2), (0b110, 3));
    }
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
    let mut starts = StartCoder::of_header(header);
    let bits = BitReader::new(&bytes[3..]);
    let mut reader = Reader { bits, time: 0, delta: 0, base: 0, window: XorWindow::NONE };
    for index in 0..num_samples {
        let before = reader.time;
        let value = match index {
            0 => reader.first()?,
            1 => reader.second()?,
            _ => reader.next()?,
        };
        let start = match header {
            0 => 0,
            _ => starts.take(&mut reader.bits, index, before, reader.time)?,
        };
        reader.bits.check()?;
        if index > 0 && reader.time < before {
            return Err(ChunkError::OutOfOrder);
        }
        if reader.time > range.max {
            break;
        }
        if reader.time >= range.min && (index == 0 || reader.time > before) {
            out.push_float(reader.time, f64::from_bits(value));
            out.start_last_float(start);
        }
    }
    Ok(())
}

impl Reader<'_> {
    fn first(&mut self) -> Result<u64, ChunkError> {
        self.time = self.bits.take_varint()?;
        let value = self.bits.take(64);
        if value != STALE_NAN_BITS {
            self.base = value;
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
        fn what_is_written_is_read(
            samples in proptest::collection::vec((0_u8..6, any::<i32>(), 0_u8..5, 0_u8..4), 1..300),
            steady in any::<bool>(),
        ) {
            let (mut times, mut values, mut starts) = (Vec::new(), Vec::new(), Vec::new());
            let mut time = -1_000_i64;
            for (step, jitter, value, start) in samples {
                let previous = time;
                time += match step {
                    0 => 15_000 + i64::from(jitter.rem_euclid(4000)),
                    1 => 1 + i64::from(jitter.rem_euclid(2_000_000)),
                    2 => 1 + (i64::from(jitter).abs() << 8),
                    _ => 15_000,
                };
                times.push(time);
                values.push(match value {
                    0 => f64::from_bits(STALE_NAN_BITS),
                    1 => f64::from(jitter),
                    2 => 0.0,
                    _ => values.last().copied().unwrap_or(1.5),
                });
                starts.push(match start {
                    _ if steady => 7,
                    0 => 0,
                    1 => previous,
                    2 => i64::from(jitter),
                    _ => starts.last().copied().unwrap_or(0),
                });
            }
            let bytes = encode(&times, &values, &starts);
            let mut columns = Columns::default();
            decode(&bytes, QueryRange::ALL, &mut columns).unwrap();
            columns.float_starts.resize(times.len(), 0);
            prop_assert_eq!(&columns.float_timestamps, &times);
            let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&columns.float_values), bits(&values));
            prop_assert_eq!(&columns.float_starts, &starts);
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = decode(&bytes, QueryRange::ALL, &mut Columns::default());
        }
    }
}
