//! Making a chunk of stretches of others, of their bits where they can be copied.

use std::ops::Range;

use super::marked::Marked;
use super::plain::Window;
use super::{XorWindow, put_num_samples, put_time_dod};
use crate::chunk::bits::BitWriter;

/// Samples of a decoded chunk that come one after the other.
pub(crate) struct Piece<'a> {
    pub(crate) chunk: &'a Marked,
    pub(crate) samples: Range<usize>,
}

/// So many samples are worth a window that is as wide as their chunk's, and eleven bits that say so.
const WORTH_A_WINDOW: usize = 8;

/// What a chunk's writer keeps between two samples.
struct Splicer<'a> {
    out: BitWriter<'a, Vec<u8>>,
    written: usize,
    time: i64,
    delta: u64,
    bits: u64,
    window: XorWindow,
}

/// Appends to `out` a chunk of samples that ascend from piece to piece, at most 65,535 of them.
///
/// Samples are those of the pieces, bit by bit. The chunk's bytes may differ from those of [`super::encode`] by the choice
/// of windows only.
#[inline(always)]
pub(crate) fn splice<'a>(pieces: impl Iterator<Item = Piece<'a>>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    let writer = BitWriter::new(out);
    let mut splicer = Splicer { out: writer, written: 0, time: 0, delta: 0, bits: 0, window: XorWindow::NONE };
    for Piece { chunk, samples } in pieces {
        let mut next = samples.start;
        while next < samples.end && !splicer.continues(chunk, next) {
            splicer.put(chunk.times()[next], chunk.bits(next));
            next += 1;
        }
        if next < samples.end {
            splicer.copy(chunk, next..samples.end);
        }
    }
    let written = splicer.written;
    splicer.out.finish();
    put_num_samples(&mut out[start..], written as u16);
}

impl Splicer<'_> {
    /// Whether the chunk was, before this sample, where this one is now, but for the window.
    #[inline(always)]
    fn continues(&self, chunk: &Marked, sample: usize) -> bool {
        self.written >= 2
            && sample >= 2
            && self.time == chunk.times()[sample - 1]
            && self.bits == chunk.bits(sample - 1)
            && self.delta == chunk.delta(sample - 1)
    }

    /// Writes a sample.
    #[inline(always)]
    fn put(&mut self, time: i64, bits: u64) {
        let delta = time.wrapping_sub(self.time) as u64;
        match self.written {
            0 => {
                self.out.put_varint(time);
                self.out.put(bits, 64);
            }
            1 => {
                self.out.put_uvarint(delta);
                self.window.put(&mut self.out, bits ^ self.bits);
            }
            _ => {
                put_time_dod(&mut self.out, delta.wrapping_sub(self.delta) as i64);
                self.window.put(&mut self.out, bits ^ self.bits);
            }
        }
        (self.time, self.bits, self.written) = (time, bits, self.written + 1);
        // The first sample has none.
        self.delta = if self.written > 1 { delta } else { 0 };
    }

    /// Writes samples of a chunk that go on from here.
    #[inline(always)]
    fn copy(&mut self, chunk: &Marked, samples: Range<usize>) {
        let Range { start: mut next, end } = samples;
        while next < end {
            let theirs = window(chunk, next - 1);
            let until = if self.window == theirs {
                end
            } else {
                // Values that stay need no window.
                let bits = chunk.bits(next - 1);
                next + chunk.values()[next..end].iter().take_while(|value| value.to_bits() == bits).count()
            };
            if until > next {
                self.copy_bits(chunk, next..until);
                if until == end && self.window == theirs {
                    self.window = window(chunk, end - 1);
                }
                next = until;
            } else if window(chunk, next) != theirs {
                // It brings its own.
                self.copy_bits(chunk, next..next + 1);
                self.window = window(chunk, next);
                next += 1;
            } else if end - next >= WORTH_A_WINDOW {
                self.put_in(theirs, chunk, next);
                next += 1;
            } else {
                self.put(chunk.times()[next], chunk.bits(next));
                next += 1;
            }
        }
    }

    #[inline(always)]
    fn copy_bits(&mut self, chunk: &Marked, samples: Range<usize>) {
        let last = samples.end - 1;
        self.out.put_bits_of(chunk.stream(), chunk.mark(samples.start - 1).end()..chunk.mark(last).end());
        (self.time, self.bits, self.delta) = (chunk.times()[last], chunk.bits(last), chunk.delta(last));
        self.written += samples.len();
    }

    /// Writes a sample whose value has changed inside a window that holds the change.
    fn put_in(&mut self, window: XorWindow, chunk: &Marked, sample: usize) {
        let (delta, bits) = (chunk.delta(sample), chunk.bits(sample));
        put_time_dod(&mut self.out, delta.wrapping_sub(self.delta) as i64);
        let significant = u32::from(64 - window.leading - window.trailing);
        self.out.put(0b11, 2);
        self.out.put(u64::from(Window::from(window).header()), 11);
        self.out.put((bits ^ self.bits) >> window.trailing, significant);
        (self.time, self.bits, self.delta, self.window) = (chunk.times()[sample], bits, delta, window);
        self.written += 1;
    }
}

/// The window after a sample.
#[inline(always)]
fn window(chunk: &Marked, sample: usize) -> XorWindow {
    let header = chunk.mark(sample).header();
    let (leading, significant) = (header >> 6, (header & 63).wrapping_sub(1) % 64 + 1);
    XorWindow { leading: leading as u8, trailing: 64_u32.wrapping_sub(leading + significant) as u8 }
}
