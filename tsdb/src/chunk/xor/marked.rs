//! Decoding a chunk so that its bits can be used again.
//!
//! What stands between the ends of two samples says how to come from the one to the other: by the difference of two times'
//! distances and by that of two values, inside a window. Wherever the same distance, value and window are reached, those
//! bits may follow. So a stretch of samples is written by copying its bits ([`super::splice()`]), and a chunk is read by
//! comparing its bits with those of one that has the same samples, mostly: a replica's.

use bytes::Bytes;
use skald_model::TimestampMs;

use super::XorReader;
use super::plain::{LOADED, Plain, Window, word_at};

/// Where a sample ends among its chunk's bits, in the upper 21 bits, and the header of the window after it, in the lower 11.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark(u32);

impl Mark {
    #[inline(always)]
    pub(super) fn new(end: usize, window: Window) -> Self {
        Self((end as u32) << 11 | window.header())
    }

    #[inline(always)]
    pub(super) fn end(self) -> usize {
        (self.0 >> 11) as usize
    }

    #[inline(always)]
    pub(super) fn header(self) -> u32 {
        self.0 & 0x7ff
    }

    /// The mark of a sample in other bits, where what ends at `from` here ends at `to`.
    #[inline(always)]
    fn moved(self, from: usize, to: usize) -> Self {
        Self(self.0.wrapping_add((to as u32).wrapping_sub(from as u32) << 11))
    }
}

/// Bytes of the longest chunk that is decoded so: the ends of its samples fit their marks.
const MAX_LEN: usize = 1 << 17;

/// Samples that are decoded at least before another look at the chunk beside: behind one that it lacks, the second one after
/// that has the same distance in both.
const FEW: usize = 3;
/// And at most.
const MANY: usize = 64;

/// Bytes that are compared at once: seven of each word, and one behind.
const COMPARED: usize = 5 * 7 + 1;

/// The bytes from that of bit `at` on, if there are so many.
#[inline(always)]
fn compared(bytes: &[u8], at: usize) -> Option<&[u8; COMPARED]> {
    bytes.get(at / 8..)?.first_chunk()
}

/// Whether seven bytes of each word differ, behind so many bits of the first byte.
#[inline(always)]
fn words_differ(a: &[u8; COMPARED], a_shift: usize, b: &[u8; COMPARED], b_shift: usize) -> bool {
    let word = |bytes: &[u8; COMPARED], at: usize| {
        let byte = |n: usize| bytes[at + n];
        u64::from_be_bytes([byte(0), byte(1), byte(2), byte(3), byte(4), byte(5), byte(6), byte(7)])
    };
    let mut differ = 0;
    for at in (0..COMPARED - 1).step_by(7) {
        differ |= (word(a, at) << a_shift) ^ (word(b, at) << b_shift);
    }
    differ >> 8 != 0
}

/// Samples that stand in another chunk, too, bit by bit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alike {
    /// The first one's place here and there, and how many they are.
    pub(crate) at: usize,
    pub(crate) theirs: usize,
    pub(crate) len: usize,
}

/// A chunk's samples, and where each stands among its bits.
#[derive(Default)]
pub(crate) struct Marked {
    bytes: Bytes,
    times: Vec<TimestampMs>,
    values: Vec<f64>,
    marks: Vec<Mark>,
    /// Which of them the one beside had, ascending.
    alike: Vec<Alike>,
}

impl Marked {
    /// Decodes a chunk. False if anything is odd about it, or it has no samples; then nothing can be said.
    ///
    /// It takes less time where samples follow as they do in `beside`.
    #[inline(always)]
    pub(crate) fn decode(&mut self, bytes: &Bytes, beside: Option<&Self>) -> bool {
        self.bytes = bytes.clone();
        self.alike.clear();
        self.decode_all(bytes, beside).is_some()
    }

    #[inline(always)]
    fn decode_all(&mut self, bytes: &[u8], beside: Option<&Self>) -> Option<()> {
        let mut reader = XorReader::new(bytes).ok()?;
        let count = usize::from(reader.num_samples);
        if count == 0 || bytes.len() > MAX_LEN {
            return None;
        }
        self.times.resize(count, 0);
        self.values.resize(count, 0.0);
        self.marks.resize(count, Mark::default());
        for index in 0..count.min(2) {
            if !reader.next(index as u16).ok()? {
                return None;
            }
            self.times[index] = reader.time;
            self.values[index] = f64::from_bits(reader.value_bits);
            self.marks[index] = Mark::new(reader.bits.position(), reader.window.into());
        }
        let mut plain = Plain::after(&reader);
        let mut done = count.min(2);
        // The sample of the one beside at the time of our last one, or the next.
        let mut other = beside.map_or(0, |beside| beside.times.partition_point(|&time| time < plain.time));
        let mut block = if beside.is_some() { FEW } else { usize::from(u16::MAX) };
        while done < count {
            if let Some(beside) = beside {
                other = beside.find(plain.time, other);
                let same = beside.alike(other, &plain).min(count - done);
                if same > 0 {
                    let (from, to) = (other + 1..other + 1 + same, done..done + same);
                    self.alike.push(Alike { at: done, theirs: other + 1, len: same });
                    self.times[to.clone()].copy_from_slice(&beside.times[from.clone()]);
                    self.values[to.clone()].copy_from_slice(&beside.values[from.clone()]);
                    let begun = beside.marks[other].end();
                    for (mark, theirs) in self.marks[to].iter_mut().zip(&beside.marks[from]) {
                        *mark = theirs.moved(begun, plain.at);
                    }
                    (done, other, block) = (done + same, other + same, FEW);
                    plain = self.at(done - 1, plain.bytes)?;
                    continue;
                }
            }
            let end = count.min(done + block);
            let (times, values) = (&mut self.times[done..end], &mut self.values[done..end]);
            plain = plain.decode_block::<true>(times, values, &mut self.marks[done..end])?;
            // They go side by side, most often.
            (done, other, block) = (end, other + end - done, (2 * block).min(MANY));
        }
        (plain.at <= plain.bytes.len() * 8).then_some(())
    }

    /// The state after a sample that is not the first.
    fn at<'a>(&self, sample: usize, bytes: &'a [u8]) -> Option<Plain<'a>> {
        Some(Plain {
            bytes,
            at: self.marks[sample].end(),
            time: self.times[sample],
            delta: self.delta(sample),
            value_bits: self.bits(sample),
            window: Window::new(self.marks[sample].header())?,
        })
    }

    /// The first sample that is not before `time`; `guess` may be it, or near.
    fn find(&self, time: TimestampMs, guess: usize) -> usize {
        let is_before = |sample: &TimestampMs| *sample < time;
        let mut found = guess.min(self.times.len());
        while self.times[..found].last().is_some_and(|sample| !is_before(sample)) {
            found -= 1;
        }
        found + self.times[found..].iter().take_while(|sample| is_before(sample)).count()
    }

    /// How many samples after `sample` stand in the other bits, too, with nothing between them.
    #[inline(always)]
    fn alike(&self, sample: usize, other: &Plain<'_>) -> usize {
        let is_same = (1..self.times.len()).contains(&sample)
            && self.times[sample] == other.time
            && self.delta(sample) == other.delta
            && self.bits(sample) == other.value_bits
            && self.marks[sample].header() == other.window.header();
        if !is_same {
            return 0;
        }
        let (begin, end) = (self.marks[sample].end(), self.marks[self.marks.len() - 1].end());
        let (mut at, mut others) = (begin, other.at);
        // Whole bytes at a time, so that shifts stay the same; several words without a branch, as far as there are.
        const STEP: usize = LOADED as usize / 8 * 8;
        while let (Some(ours), Some(theirs)) = (compared(self.stream(), at), compared(other.bytes, others)) {
            if words_differ(ours, at % 8, theirs, others % 8) {
                break;
            }
            (at, others) = (at + 8 * (COMPARED - 1), others + 8 * (COMPARED - 1));
        }
        while at < end {
            let same = (word_at(self.stream(), at) ^ word_at(other.bytes, others)).leading_zeros() as usize;
            if same < STEP {
                at += same;
                break;
            }
            (at, others) = (at + STEP, others + STEP);
        }
        self.marks[sample + 1..].partition_point(|mark| mark.end() <= at)
    }

    /// The bits that marks count.
    #[inline(always)]
    pub(super) fn stream(&self) -> &[u8] {
        self.bytes.get(2..).unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn mark(&self, sample: usize) -> Mark {
        self.marks[sample]
    }

    /// Wrapping distance of a sample that is not the first to the one before it.
    #[inline(always)]
    pub(super) fn delta(&self, sample: usize) -> u64 {
        self.times[sample].wrapping_sub(self.times[sample - 1]) as u64
    }

    /// A value, bit by bit.
    #[inline(always)]
    pub(super) fn bits(&self, sample: usize) -> u64 {
        self.values[sample].to_bits()
    }

    /// What it has like the chunk beside it when it was decoded.
    pub(crate) fn alike_runs(&self) -> &[Alike] {
        &self.alike
    }

    /// The samples' times, which ascend.
    #[inline(always)]
    pub(crate) fn times(&self) -> &[TimestampMs] {
        &self.times
    }

    /// Their values.
    #[inline(always)]
    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }
}
