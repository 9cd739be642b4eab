//! Points of an answer, `[1435781430.781,"1.5"]`: most of what a query has to write, so each takes a few nanoseconds.
//!
//! A point is put together in a slot that has room for any of them, with copies of fixed length that may leave rubbish
//! behind what counts. What is rare (the first hours of 1970, exponents) is left to [`super::json`].

use skald_model::TimestampMs;

use super::json::{put_float, put_time};

/// Most bytes of a point and some room: three of punctuation, a time of 16, three of punctuation, a float of 24, one more;
/// copies of fixed length reach seven bytes further.
const POINT_BYTES: usize = 64;
/// Points that are put together before they are copied to the answer: what they take stays in the nearest cache.
const POINTS_AT_ONCE: usize = 64;

type Slot = [u8; POINT_BYTES];

/// Floats below are whole numbers when they have no fraction: every digit counts.
const WHOLE_BELOW: f64 = (1_u64 << 53) as f64;

/// The text of times, which of one point and the next mostly begins alike.
struct TimeText {
    /// `,[` and the seconds without the last four digits.
    head: [u8; 16],
    head_len: usize,
    /// The seconds that `head` says, over 10,000.
    of: u64,
}

impl TimeText {
    fn new() -> Self {
        Self { head: [0; 16], head_len: 0, of: u64::MAX }
    }

    /// Writes a comma, a bracket and the time, and says how long they are; `None` for times with fewer than five or more
    /// than twelve digits before the point.
    #[inline(always)]
    fn put(&mut self, slot: &mut Slot, time: TimestampMs) -> Option<usize> {
        let ms = u64::try_from(time).ok()?;
        let (seconds, part) = (ms / 1000, (ms % 1000) as u32);
        let (high, low) = (seconds / 10_000, (seconds % 10_000) as u32);
        if high != self.of {
            self.turn(high)?;
        }
        slot[..16].copy_from_slice(&self.head);
        let mut len = self.head_len;
        slot[len..len + 4].copy_from_slice(&four_digits(low));
        len += 4;
        if part != 0 {
            let mut digits = four_digits(part);
            digits[0] = b'.';
            slot[len..len + 4].copy_from_slice(&digits);
            len += 4;
        }
        Some(len)
    }

    #[cold]
    fn turn(&mut self, high: u64) -> Option<()> {
        if !(1..100_000_000).contains(&high) {
            return None;
        }
        self.head[..2].copy_from_slice(b",[");
        let (digits, len) = eight_digits(high as u32);
        self.head[2..10].copy_from_slice(&digits);
        self.head_len = 2 + len;
        self.of = high;
        Some(())
    }
}

/// A number below 10,000 with leading zeros.
#[inline(always)]
fn four_digits(number: u32) -> [u8; 4] {
    // Both halves at once, then all four digits: a multiplication and a shift divide by 100, then by 10.
    let high = (number * 5243) >> 19;
    let halves = high | ((number - 100 * high) << 16);
    let tens = ((halves * 103) >> 10) & 0x000F_000F;
    (tens | ((halves - 10 * tens) << 8) | 0x3030_3030).to_le_bytes()
}

/// The digits of a number below 100,000,000 with leading zeros, the first one lowest.
#[inline(always)]
fn eight_ascii(number: u32) -> u64 {
    let number = u64::from(number);
    let high = number / 10_000;
    let quarters = high | ((number - 10_000 * high) << 32);
    let hundreds = ((quarters * 10_486) >> 20) & 0x0000_007F_0000_007F;
    let pairs = hundreds | ((quarters - 100 * hundreds) << 16);
    let tens = ((pairs * 103) >> 10) & 0x000F_000F_000F_000F;
    tens | ((pairs - 10 * tens) << 8)
}

/// The digits of a number below 100,000,000 and how many there are.
#[inline(always)]
fn eight_digits(number: u32) -> ([u8; 8], usize) {
    let digits = eight_ascii(number);
    // Zero is one digit.
    let leading = (digits | (1 << 56)).trailing_zeros() / 8;
    (((digits | 0x3030_3030_3030_3030) >> (8 * leading)).to_le_bytes(), 8 - leading as usize)
}

/// Writes a whole number below 10^16 at `at`; where it ends.
#[inline(always)]
fn put_whole(slot: &mut Slot, mut at: usize, number: u64) -> usize {
    let low = if number < 100_000_000 {
        number as u32
    } else {
        let (high, low) = (number / 100_000_000, (number % 100_000_000) as u32);
        let (digits, len) = eight_digits(high as u32);
        slot[at..at + 8].copy_from_slice(&digits);
        at += len;
        slot[at..at + 8].copy_from_slice(&(eight_ascii(low) | 0x3030_3030_3030_3030).to_le_bytes());
        return at + 8;
    };
    let (digits, len) = eight_digits(low);
    slot[at..at + 8].copy_from_slice(&digits);
    at + len
}

/// Writes thousandths without the zeros they end in; there is at least one digit after the point.
#[inline(always)]
fn put_thousandths(slot: &mut Slot, mut at: usize, number: u32) -> usize {
    let (whole, part) = (number / 1000, number % 1000);
    let (digits, len) = eight_digits(whole);
    slot[at..at + 8].copy_from_slice(&digits);
    at += len;
    let mut decimals = four_digits(part);
    decimals[0] = b'.';
    slot[at..at + 4].copy_from_slice(&decimals);
    // The last of the digits that is not zero ends it.
    let zeros = (u32::from_le_bytes(decimals) ^ 0x3030_3030).leading_zeros() / 8;
    at + 4 - zeros as usize
}

/// Copies a text of up to 32 bytes, without a call.
#[inline(always)]
fn put_text(slot: &mut Slot, at: usize, text: &[u8]) -> usize {
    let end = at + text.len();
    if let (Some(first), Some(last)) = (text.first_chunk::<16>(), text.last_chunk::<16>()) {
        slot[at..at + 16].copy_from_slice(first);
        slot[end - 16..end].copy_from_slice(last);
    } else if let (Some(first), Some(last)) = (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        slot[at..at + 8].copy_from_slice(first);
        slot[end - 8..end].copy_from_slice(last);
    } else if let (Some(first), Some(last)) = (text.first_chunk::<3>(), text.last_chunk::<4>()) {
        slot[at..at + 3].copy_from_slice(first);
        slot[end - 4..end].copy_from_slice(last);
    } else {
        slot[at..end].copy_from_slice(text);
    }
    end
}

/// Writes a float at `at`; where it ends. `None` for what needs more thought.
#[inline(always)]
fn put_common_float(slot: &mut Slot, mut at: usize, value: f64) -> Option<usize> {
    let magnitude = value.abs();
    let whole = value as i64;
    if magnitude < WHOLE_BELOW && whole as f64 == value && (whole != 0 || value.is_sign_positive()) {
        slot[at] = b'-';
        at += usize::from(whole < 0);
        Some(put_whole(slot, at, whole.unsigned_abs()))
    } else if (1e-5..WHOLE_BELOW).contains(&magnitude) {
        // A decimal of up to 15 digits is the only one as short that means its float.
        let thousandths = (magnitude * 1e3 + 0.5) as u64;
        if thousandths < 100_000_000 && thousandths as f64 / 1e3 == magnitude {
            slot[at] = b'-';
            at += usize::from(value < 0.0);
            return Some(put_thousandths(slot, at, thousandths as u32));
        }
        let mut buffer = zmij::Buffer::new();
        let text = buffer.format_finite(value).as_bytes();
        Some(put_text(slot, at, text))
    } else {
        None
    }
}

/// Appends a float that most answers have, `None` for others, which are not appended.
pub fn put_if_common(out: &mut Vec<u8>, value: f64) -> Option<()> {
    let mut slot = [0; POINT_BYTES];
    let end = put_common_float(&mut slot, 0, value)?;
    out.extend_from_slice(&slot[..end]);
    Some(())
}

/// Appends the points of these times and values, with a comma before each.
pub fn put_points(out: &mut Vec<u8>, times: &[TimestampMs], values: &[f64]) {
    let mut text = TimeText::new();
    let mut scratch = [0; POINTS_AT_ONCE * POINT_BYTES];
    for (times, values) in times.chunks(POINTS_AT_ONCE).zip(values.chunks(POINTS_AT_ONCE)) {
        let mut used = 0;
        for (&time, &value) in times.iter().zip(values) {
            let slot = scratch[used..].first_chunk_mut().expect("as many slots as points");
            match put_common_point(slot, time, value, &mut text) {
                Some(len) => used += len,
                None => {
                    out.extend_from_slice(&scratch[..used]);
                    used = 0;
                    put_rare_point(out, time, value);
                }
            }
        }
        out.extend_from_slice(&scratch[..used]);
    }
}

/// Writes a point and says how long it is.
#[inline(always)]
fn put_common_point(slot: &mut Slot, time: TimestampMs, value: f64, text: &mut TimeText) -> Option<usize> {
    let at = text.put(slot, time)?;
    slot[at..at + 2].copy_from_slice(b",\"");
    let at = put_common_float(slot, at + 2, value)?;
    slot[at..at + 2].copy_from_slice(b"\"]");
    Some(at + 2)
}

#[cold]
fn put_rare_point(out: &mut Vec<u8>, time: TimestampMs, value: f64) {
    out.extend_from_slice(b",[");
    put_time(out, time);
    out.extend_from_slice(b",\"");
    put_float(out, value);
    out.extend_from_slice(b"\"]");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skald_model::GoFloat;

    use super::*;

    #[track_caller]
    fn check(times: &[TimestampMs], values: &[f64]) {
        let (mut points, mut expected) = (Vec::new(), Vec::new());
        put_points(&mut points, times, values);
        times.iter().zip(values).for_each(|(time, value)| put_rare_point(&mut expected, *time, *value));
        assert_eq!(String::from_utf8(points).unwrap(), String::from_utf8(expected).unwrap());
    }

    #[test]
    fn times_of_all_lengths_are_written_as_one_by_one() {
        let seconds = [0, 1, 9_999, 10_000, 99_999_999, 1_763_600_000, 1_763_609_999, 1_763_610_000];
        let far = [999_999_999_999, 1_000_000_000_000, i64::MAX / 1000 - 1];
        let times: Vec<i64> =
            seconds.iter().chain(&far).flat_map(|s| [0, 1, 20, 999].map(|ms| s * 1000 + ms)).collect();
        check(&times, &vec![1.5; times.len()]);
        let before: Vec<i64> = times.iter().rev().map(|time| -time).collect();
        check(&before, &vec![-1.5; before.len()]);
        check(&[i64::MIN, i64::MAX], &[f64::MIN, f64::MIN_POSITIVE]);
    }

    #[test]
    fn slots_have_room_for_the_longest_points() {
        let time = 999_999_999_999_999;
        let values = [-1.234567890123456e-5, -9_007_199_254_740_991.0, -1_125_899_906_842_624.2, -99_999.999];
        check(&[time; 4], &values);
        check(&[time; 1000], &[-1.234567890123456e-5; 1000]);
    }

    #[test]
    fn whole_numbers_and_thousandths_have_all_their_digits_and_no_more() {
        let mut edges = Vec::new();
        for power in 0..17 {
            let ten = 10_f64.powi(power);
            edges.extend([ten - 1.0, ten, ten + 1.0, 7.0 * ten]);
        }
        let all: Vec<f64> = edges.iter().flat_map(|n| [*n, -n, n / 10.0, -n / 100.0, n / 1e3, n / 1e4]).collect();
        for value in all.into_iter().filter(|value| *value != 0.0 && value.abs() < 1e16 && value.abs() > 1e-5) {
            let mut out = Vec::new();
            if put_if_common(&mut out, value).is_some() {
                assert_eq!(String::from_utf8(out).unwrap(), GoFloat(value).to_string());
            }
        }
    }

    proptest! {
        #[test]
        fn points_are_written_as_one_by_one(
            start in -2_000_000_000_000_i64..2_000_000_000_000,
            step in 1_i64..100_000,
            bits in prop::collection::vec(any::<u64>(), 0..200),
            digits in prop::collection::vec((-10_000_000_i64..10_000_000, 0..9_i32), 0..200),
        ) {
            let decimals = digits.iter().map(|(digits, scale)| *digits as f64 / 10_f64.powi(*scale));
            let values: Vec<f64> = bits.iter().map(|bits| f64::from_bits(*bits)).chain(decimals).collect();
            let times: Vec<i64> = (0..values.len() as i64).map(|i| start + i * step).collect();
            check(&times, &values);
        }

        #[test]
        fn common_floats_are_written_as_formatting_does(bits: u64, digits in -100_000_000_i64..100_000_000, scale in -12_i32..20) {
            let digits = digits as f64;
            for value in [f64::from_bits(bits), digits * 10_f64.powi(scale), digits / 128.0, digits / 1e3, digits / 60.0] {
                let mut out = Vec::new();
                if put_if_common(&mut out, value).is_some() {
                    prop_assert_eq!(String::from_utf8(out).unwrap(), GoFloat(value).to_string());
                } else {
                    prop_assert!(value == 0.0 || !(1e-5..WHOLE_BELOW).contains(&value.abs()));
                }
            }
        }
    }
}
