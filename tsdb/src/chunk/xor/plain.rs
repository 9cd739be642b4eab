//! Reading chunks that are as writers make them, which is nearly all: twice as fast as reading carefully.
//!
//! What is read goes nowhere but into the samples: a position in bits says where the next ones are loaded, so that loads of
//! many samples are under way at a time while branches are predicted, and the few numbers of state fit the registers.
//! Whatever is odd (times that do not ascend, an impossible window, a missing end) ends it, and the careful reader tells.

use skald_model::TimestampMs;

use super::marked::Mark;
use super::{XorReader, XorWindow};
#[cfg(target_arch = "x86_64")]
use crate::processor;

/// State between two samples.
pub(super) struct Plain<'a> {
    pub(super) bytes: &'a [u8],
    /// Bits read so far.
    pub(super) at: usize,
    pub(super) time: TimestampMs,
    pub(super) delta: u64,
    pub(super) value_bits: u64,
    pub(super) window: Window,
}

/// The window of significant bits.
#[derive(Clone, Copy)]
pub(super) struct Window {
    significant: u32,
    trailing: u32,
}

impl Window {
    /// The one with this header: 5 bits of leading zeros, 6 bits of width, of which 0 stands for 64. `None` if it is impossible.
    #[inline(always)]
    pub(super) fn new(header: u32) -> Option<Self> {
        let (leading, significant) = (header >> 6, (header & 63).wrapping_sub(1) % 64 + 1);
        let trailing = 64_u32.checked_sub(leading + significant)?;
        Some(Self { significant, trailing })
    }

    /// Its header; of none that of the whole 64 bits. It is no field: the state would not fit the registers.
    #[inline(always)]
    pub(super) fn header(self) -> u32 {
        (64 - self.significant - self.trailing) << 6 | (self.significant & 63)
    }
}

impl From<XorWindow> for Window {
    fn from(window: XorWindow) -> Self {
        let XorWindow { leading, trailing } = if window == XorWindow::NONE { XorWindow::WHOLE } else { window };
        let (leading, trailing) = (u32::from(leading), u32::from(trailing));
        Self { significant: 64 - leading - trailing, trailing }
    }
}

/// Samples between two looks at the time to stop at.
const BLOCK: usize = 32;

/// Decodes samples until both slices, which have one length, are full or a time is larger than `until`; says how many.
/// `None` if there is anything odd.
pub(super) fn decode(
    reader: &XorReader<'_>,
    until: TimestampMs,
    times: &mut [TimestampMs],
    values: &mut [f64],
) -> Option<usize> {
    let mut plain = Plain::after(reader);
    let mut decoded = 0;
    for (times, values) in times.chunks_mut(BLOCK).zip(values.chunks_mut(BLOCK)) {
        plain = plain.decode_block::<false>(times, values, &mut [])?;
        decoded += times.len();
        if plain.time > until {
            break;
        }
    }
    (plain.at <= plain.bytes.len() * 8).then_some(decoded)
}

impl<'a> Plain<'a> {
    pub(super) fn after(reader: &XorReader<'a>) -> Self {
        Self {
            bytes: reader.bits.bytes(),
            at: reader.bits.position(),
            time: reader.time,
            delta: reader.delta,
            value_bits: reader.value_bits,
            window: reader.window.into(),
        }
    }

    /// Decodes samples until the slices, which have one length, are full. With `MARKED` all marks are set, too.
    #[inline(never)]
    pub(super) fn decode_block<const MARKED: bool>(
        self,
        times: &mut [TimestampMs],
        values: &mut [f64],
        marks: &mut [Mark],
    ) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if processor::has_bit_instructions() {
            #[expect(unsafe_code, reason = "a tenth less time")]
            // SAFETY: the processor has them.
            return unsafe { self.decode_block_bmi2::<MARKED>(times, values, marks) };
        }
        self.decode_block_any::<MARKED>(times, values, marks)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt,movbe")]
    fn decode_block_bmi2<const MARKED: bool>(
        self,
        times: &mut [TimestampMs],
        values: &mut [f64],
        marks: &mut [Mark],
    ) -> Option<Self> {
        self.decode_block_any::<MARKED>(times, values, marks)
    }

    /// Takes and gives the state by value: its address is not taken, so that it lives in registers.
    #[inline(always)]
    fn decode_block_any<const MARKED: bool>(
        mut self,
        times: &mut [TimestampMs],
        values: &mut [f64],
        marks: &mut [Mark],
    ) -> Option<Self> {
        let len = times.len().min(values.len());
        let (times, values) = (&mut times[..len], &mut values[..len]);
        let marks = if MARKED { &mut marks[..len] } else { marks };
        let mut index = 0;
        while index < len {
            let before = self.time;
            let word = word_at(self.bytes, self.at);
            if word >> 62 == 0 {
                // Samples with the delta and the value of the one before are two zero bits each.
                let run = (word.leading_zeros().min(LOADED) / 2) as usize;
                let end = len.min(index + run);
                if MARKED {
                    for (mark, at) in marks[index..end].iter_mut().zip((self.at + 2..).step_by(2)) {
                        *mark = Mark::new(at, self.window);
                    }
                }
                self.at += 2 * (end - index);
                for (time, value) in times[index..end].iter_mut().zip(&mut values[index..end]) {
                    self.time = self.time.wrapping_add(self.delta as i64);
                    *time = self.time;
                    *value = f64::from_bits(self.value_bits);
                }
                index = end;
                // Few steps of a positive delta that wrap around end below where they began, or it is absurdly large.
                if self.time <= before || self.delta >= 1 << 56 {
                    return None;
                }
                continue;
            }
            let rest;
            if word >> 63 == 0 {
                (self.at, rest) = (self.at + 1, word << 1);
            } else {
                let dod;
                if word >> 62 == 0b10 {
                    dod = field::<14>(word << 2);
                    (self.at, rest) = (self.at + 16, word << 16);
                } else if word >> 61 == 0b110 {
                    dod = field::<17>(word << 3);
                    (self.at, rest) = (self.at + 20, word << 20);
                } else if word >> 60 == 0b1110 {
                    dod = field::<20>(word << 4);
                    (self.at, rest) = (self.at + 24, word << 24);
                } else {
                    let high = word_at(self.bytes, self.at + 4) >> 32;
                    let low = word_at(self.bytes, self.at + 36) >> 32;
                    dod = (high << 32 | low) as i64;
                    self.at += 68;
                    rest = word_at(self.bytes, self.at);
                }
                self.delta = self.delta.wrapping_add(dod as u64);
            }
            self.time = before.wrapping_add(self.delta as i64);
            if rest >> 63 == 0 {
                self.at += 1;
            } else {
                self.at += 2;
                if rest >> 62 == 0b11 {
                    self.at += 11;
                    self.window = Window::new((rest >> 51) as u32 & 0x7ff)?;
                }
                let Window { significant, trailing, .. } = self.window;
                let word = word_at(self.bytes, self.at);
                let mut xor = word >> (64 - significant);
                if significant > LOADED {
                    let more = significant - 32;
                    xor = (word >> 32) << more | word_at(self.bytes, self.at + 32) >> (64 - more);
                }
                if MARKED && xor == 0 {
                    // No writer does that; without its window it would be something else.
                    return None;
                }
                self.at += significant as usize;
                self.value_bits ^= xor << trailing;
            }
            if self.time <= before {
                return None;
            }
            times[index] = self.time;
            values[index] = f64::from_bits(self.value_bits);
            if MARKED {
                marks[index] = Mark::new(self.at, self.window);
            }
            index += 1;
        }
        Some(self)
    }
}

/// Bits that a word surely has.
pub(super) const LOADED: u32 = 57;

/// The signed field in the upper bits of `word`; raw values above `2^(BITS-1)` are negative.
#[inline(always)]
fn field<const BITS: u32>(word: u64) -> i64 {
    let raw = (word >> (64 - BITS)) as i64;
    if raw > 1 << (BITS - 1) { raw - (1 << BITS) } else { raw }
}

/// The bits from `at` on, left-aligned, [`LOADED`] at least; zeros past the end.
#[inline(always)]
pub(super) fn word_at(bytes: &[u8], at: usize) -> u64 {
    let byte = at / 8;
    let word = match bytes.get(byte..byte + 8).and_then(|bytes| bytes.first_chunk::<8>()) {
        Some(word) => u64::from_be_bytes(*word),
        None => word_at_end(bytes, byte),
    };
    word << (at % 8)
}

#[cold]
fn word_at_end(bytes: &[u8], byte: usize) -> u64 {
    // Part of the last whole word, most often.
    if let Some(word) = bytes.last_chunk::<8>() {
        let passed = byte - (bytes.len() - 8);
        return if passed < 8 { u64::from_be_bytes(*word) << (8 * passed) } else { 0 };
    }
    let mut word = [0; 8];
    if let Some(rest) = bytes.get(byte..) {
        word[..rest.len()].copy_from_slice(rest);
    }
    u64::from_be_bytes(word)
}
