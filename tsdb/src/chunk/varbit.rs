//! Bit-packed integers of the histogram encodings: a unary class prefix, then the value in the class' width.
//!
//! | prefix | `0` | `10` | `110` | `1110` | `11110` | `111110` | `1111110` | `11111110` | `11111111` |
//! |---|---|---|---|---|---|---|---|---|---|
//! | width | 0 | 3 | 6 | 9 | 12 | 18 | 25 | 56 | 64 |
//!
//! Signed values of width n lie in `-(2^(n-1)-1) ..= 2^(n-1)`: a raw field above `2^(n-1)` is negative.
//! Unsigned ones are below `2^n`. The smallest class that fits is used.

use super::bits::{BitReader, BitWriter, ByteSink};

/// Field widths by number of leading ones in the prefix.
const WIDTHS: [u32; 9] = [0, 3, 6, 9, 12, 18, 25, 56, 64];

/// Length of the prefix of class `class`, and the prefix itself.
fn prefix(class: usize) -> (u64, u32) {
    if class == 8 { (0xff, 8) } else { ((1 << (class + 1)) - 2, class as u32 + 1) }
}

fn put<S: ByteSink>(out: &mut BitWriter<'_, S>, class: usize, raw: u64) {
    let (bits, len) = prefix(class);
    let width = WIDTHS[class];
    if width == 0 {
        out.put(bits, len);
    } else if width == 64 {
        out.put(bits, len);
        out.put(raw, 64);
    } else {
        out.put(bits << width | (raw & ((1 << width) - 1)), len + width);
    }
}

/// Appends a signed value.
#[inline]
pub fn put_int<S: ByteSink>(out: &mut BitWriter<'_, S>, value: i64) {
    if value == 0 {
        out.put(0, 1);
        return;
    }
    let fits = |width: u32| value > -(1 << (width - 1)) && value <= 1 << (width - 1);
    let class = (1..8).find(|&class| fits(WIDTHS[class])).unwrap_or(8);
    put(out, class, value as u64);
}

/// Appends an unsigned value.
#[inline]
pub fn put_uint<S: ByteSink>(out: &mut BitWriter<'_, S>, value: u64) {
    if value == 0 {
        out.put(0, 1);
        return;
    }
    let class = (1..8).find(|&class| value >> WIDTHS[class] == 0).unwrap_or(8);
    put(out, class, value);
}

/// Takes a field's width and raw bits; zeros past the end (see [`BitReader`]).
#[inline]
fn take(bits: &mut BitReader<'_>) -> (u32, u64) {
    bits.refill();
    let class = ((!bits.peek()).leading_zeros() as usize).min(8);
    bits.skip(prefix(class).1);
    match WIDTHS[class] {
        0 => (0, 0),
        width => (width, bits.take(width)),
    }
}

/// Takes a signed value.
#[inline]
pub fn take_int(bits: &mut BitReader<'_>) -> i64 {
    let (width, raw) = take(bits);
    if width == 0 || width == 64 || raw <= 1 << (width - 1) { raw as i64 } else { raw as i64 - (1 << width) }
}

/// Takes an unsigned value.
#[inline]
pub fn take_uint(bits: &mut BitReader<'_>) -> u64 {
    take(bits).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Signed values around every class limit.
    fn edgy() -> impl Strategy<Value = i64> {
        prop_oneof![
            (0u32..64, -2i64..=2).prop_map(|(shift, off)| (1i64 << shift).wrapping_add(off)),
            (0u32..64, -2i64..=2).prop_map(|(shift, off)| (1i64 << shift).wrapping_neg().wrapping_add(off)),
            any::<i64>(),
        ]
    }

    proptest! {
        #[test]
        fn round_trips(values in proptest::collection::vec(edgy(), 0..50)) {
            let mut out = Vec::new();
            let mut writer = BitWriter::new(&mut out);
            for &value in &values {
                put_int(&mut writer, value);
                put_uint(&mut writer, value as u64);
            }
            writer.finish();
            let mut reader = BitReader::new(&out);
            for &value in &values {
                prop_assert_eq!(take_int(&mut reader), value);
                prop_assert_eq!(take_uint(&mut reader), value as u64);
            }
            prop_assert!(reader.check().is_ok() && reader.remaining() < 8);
        }
    }

    #[track_caller]
    fn check_int(value: i64, bits: usize) {
        let mut out = Vec::new();
        let mut writer = BitWriter::new(&mut out);
        put_int(&mut writer, value);
        writer.finish();
        let mut reader = BitReader::new(&out);
        assert_eq!(take_int(&mut reader), value);
        assert_eq!(reader.position(), bits);
    }

    #[test]
    fn ranges_are_asymmetric() {
        check_int(0, 1);
        check_int(-3, 5);
        check_int(4, 5);
        check_int(-4, 9);
        check_int(5, 9);
        check_int(-31, 9);
        check_int(32, 9);
        check_int(-32, 13);
        check_int(1 << 55, 64);
        check_int(-(1 << 55), 72);
        check_int(i64::MIN, 72);
    }
}
