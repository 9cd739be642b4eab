//! One value per step of one series.

use std::sync::Arc;

use skald_model::{FloatHistogram, Labels};

use super::context::{Budget, Charge};
use super::env::Env;
use super::error::EvalError;
use crate::ast::Span;

/// A set of steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// The empty set, with room for `steps`.
    pub(crate) fn new(steps: usize) -> Self {
        Self { words: vec![0; steps.div_ceil(64)] }
    }

    /// Empties the set and makes room for `steps`.
    pub(crate) fn reset(&mut self, steps: usize) {
        self.words.clear();
        self.words.resize(steps.div_ceil(64), 0);
    }

    /// The set that [`Bits::words`] had given; `None` if they hold more than `steps`.
    pub(crate) fn of_words(words: &[u64], steps: usize) -> Option<Self> {
        let highest = words.iter().enumerate().rev().find(|(_, word)| **word != 0);
        let last = highest.map_or(0, |(w, word)| w * 64 + 64 - word.leading_zeros() as usize);
        (last <= steps).then(|| Self { words: words.to_vec() })
    }

    #[inline]
    pub(crate) fn set(&mut self, i: usize) {
        self.words[i / 64] |= 1 << (i % 64);
    }

    #[inline]
    pub(crate) fn unset(&mut self, i: usize) {
        self.words[i / 64] &= !(1 << (i % 64));
    }

    #[inline]
    pub(crate) fn get(&self, i: usize) -> bool {
        self.words[i / 64] >> (i % 64) & 1 == 1
    }

    /// Puts the first `steps` steps into the set.
    pub(crate) fn set_all(&mut self, steps: usize) {
        for (w, word) in self.words.iter_mut().enumerate() {
            let left = steps.saturating_sub(w * 64);
            *word = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }

    pub(crate) fn len(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    pub(crate) fn intersects(&self, other: &Bits) -> bool {
        self.words.iter().zip(&other.words).any(|(a, b)| a & b != 0)
    }

    /// Keeps the steps that `other` holds too.
    pub(crate) fn intersect(&mut self, other: &Bits) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= b);
    }

    /// Takes in the steps of `other`.
    pub(crate) fn unite(&mut self, other: &Bits) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
    }

    /// Drops the steps of `other`.
    pub(crate) fn subtract(&mut self, other: &Bits) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= !b);
    }

    /// The steps, ascending.
    #[inline]
    pub(crate) fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(w, &word)| Ones { word, base: w * 64 })
    }

    /// The 64-step words: bit `b` of word `w` is step `64 * w + b`.
    #[inline]
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }
}

struct Ones {
    word: u64,
    base: usize,
}

impl Iterator for Ones {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.word == 0 {
            return None;
        }
        let bit = self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some(self.base + bit)
    }
}

/// One value per step: a float, a histogram or nothing. Charged to the query's budget while it lives.
#[derive(Debug)]
pub(crate) struct Points {
    /// One per step; meaningful where `floats` holds the step.
    pub(crate) values: Vec<f64>,
    /// The steps that have a float.
    pub(crate) floats: Bits,
    /// The steps that have a histogram, ascending; none of them is in `floats`.
    histograms: Vec<(u32, Arc<FloatHistogram>)>,
    charge: Charge,
    /// Bytes of the series' labels among the charge.
    labels_charged: usize,
}

/// What points cost besides their values: themselves, and what the allocator adds to their buffers.
const BASE_BYTES: usize = size_of::<Points>() + 64;

/// One value of one step.
#[derive(Debug, Clone)]
pub(crate) enum Point {
    Float(f64),
    Histogram(Arc<FloatHistogram>),
}

impl Point {
    /// As texts name it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "float",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl Points {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self {
            values: Vec::new(),
            floats: Bits::default(),
            histograms: Vec::new(),
            charge: Charge::new(budget),
            labels_charged: 0,
        }
    }

    /// Forgets every value and makes room for `steps`.
    pub(crate) fn reset(&mut self, steps: usize, span: Span) -> Result<(), EvalError> {
        // Steps fit the `u32` of a histogram's entry.
        let bytes = allocated(steps.saturating_mul(8)).saturating_add(allocated(steps.div_ceil(64) * 8) + BASE_BYTES);
        if steps > u32::MAX as usize {
            return Err(EvalError::Execution(format!("an evaluation of {steps} steps is more than the engine can do")));
        }
        self.histograms = Vec::new();
        self.charge.hold_samples(0)?;
        self.charge.resize(bytes, span)?;
        self.labels_charged = 0;
        // Values of steps that are not present are never read, so stale ones may stay.
        self.values.resize(steps, 0.0);
        self.floats.reset(steps);
        Ok(())
    }

    /// Whether the buffers suit `steps`: neither too small nor mostly unused, which the charge would not show.
    pub(crate) fn fits(&self, steps: usize) -> bool {
        let room = self.values.capacity();
        room >= steps && room <= steps.saturating_mul(2).saturating_add(64)
    }

    /// Bytes that the points take up without any value.
    pub(crate) fn buffer_bytes(&self) -> usize {
        8 * (self.values.capacity() + self.floats.words.capacity()) + BASE_BYTES
    }

    /// Counts `bytes` of the series' labels, in place of fewer counted before, as long as the points live.
    pub(crate) fn charge_labels(&mut self, bytes: usize, span: Span) -> Result<(), EvalError> {
        if bytes > self.labels_charged {
            let more = bytes - self.labels_charged;
            self.labels_charged = bytes;
            self.charge.grow(more, span)?;
        }
        Ok(())
    }

    /// Takes the histograms of `other` over.
    pub(crate) fn take_histograms_of(&mut self, other: &mut Points, span: Span) -> Result<(), EvalError> {
        self.histograms = other.take_histograms();
        self.charge.grow(self.histograms.iter().map(|(_, h)| 16 + histogram_bytes(h)).sum(), span)
    }

    pub(crate) fn steps(&self) -> usize {
        self.values.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.histograms.is_empty() && self.floats.is_empty()
    }

    /// Number of values, floats and histograms.
    pub(crate) fn len(&self) -> usize {
        self.floats.len() + self.histograms.len()
    }

    #[inline]
    pub(crate) fn set_float(&mut self, step: usize, value: f64) {
        self.values[step] = value;
        self.floats.set(step);
    }

    /// Gives each step the float that `f` makes for it, if any; `f` is asked once for every step, ascending. There must
    /// be no float yet.
    #[inline(always)]
    pub(crate) fn fill_floats(&mut self, mut f: impl FnMut(usize) -> Option<f64>) {
        for (w, (values, word)) in self.values.chunks_mut(64).zip(&mut self.floats.words).enumerate() {
            let mut present = 0;
            for (b, value) in values.iter_mut().enumerate() {
                if let Some(float) = f(w * 64 + b) {
                    *value = float;
                    present |= 1 << b;
                }
            }
            *word = present;
        }
    }

    /// The values and presence of each 64 steps.
    pub(crate) fn blocks_mut(&mut self) -> impl Iterator<Item = (&mut [f64], &mut u64)> {
        self.values.chunks_mut(64).zip(&mut self.floats.words)
    }

    /// Adds the histogram of a step later than every other that has one.
    pub(crate) fn push_histogram(
        &mut self,
        step: usize,
        histogram: Arc<FloatHistogram>,
        span: Span,
    ) -> Result<(), EvalError> {
        debug_assert!(self.histograms.last().is_none_or(|(last, _)| (*last as usize) < step));
        let bytes = 16 + histogram_bytes(&histogram);
        self.histograms.push((step as u32, histogram));
        self.charge.grow(bytes, span)
    }

    /// Adds a value of a step later than every histogram so far.
    #[inline]
    pub(crate) fn push(&mut self, step: usize, point: Point, span: Span) -> Result<(), EvalError> {
        match point {
            Point::Float(value) => self.set_float(step, value),
            Point::Histogram(histogram) => self.push_histogram(step, histogram, span)?,
        }
        Ok(())
    }

    /// Takes the floats out, ascending by step: in the memory they lie in, unless that is mostly unused. There are no floats
    /// any more.
    pub(crate) fn take_floats(&mut self) -> Vec<f64> {
        let (mut values, floats) = (std::mem::take(&mut self.values), std::mem::take(&mut self.floats));
        let count = floats.len();
        if 2 * count <= values.len() {
            let mut few = Vec::with_capacity(count);
            few.extend(floats.ones().map(|step| values[step]));
            return few;
        }
        if count < values.len() {
            floats.ones().enumerate().for_each(|(to, step)| values[to] = values[step]);
            values.truncate(count);
        }
        values
    }

    /// The histograms with their steps, ascending.
    pub(crate) fn histograms(&self) -> &[(u32, Arc<FloatHistogram>)] {
        &self.histograms
    }

    pub(crate) fn has_histograms(&self) -> bool {
        !self.histograms.is_empty()
    }

    /// Takes the histograms out; their bytes stay charged until the points are reset or dropped.
    pub(crate) fn take_histograms(&mut self) -> Vec<(u32, Arc<FloatHistogram>)> {
        std::mem::take(&mut self.histograms)
    }

    pub(crate) fn drop_histograms(&mut self) {
        self.histograms = Vec::new();
    }

    /// Keeps the histograms of the steps `keep` says yes to.
    pub(crate) fn retain_histograms(&mut self, mut keep: impl FnMut(usize) -> bool) {
        self.histograms.retain(|(step, _)| keep(*step as usize));
    }

    pub(crate) fn histogram(&self, step: usize) -> Option<&Arc<FloatHistogram>> {
        if self.histograms.is_empty() {
            return None;
        }
        let at = self.histograms.binary_search_by_key(&(step as u32), |(s, _)| *s).ok()?;
        Some(&self.histograms[at].1)
    }

    /// The value of a step.
    #[inline]
    pub(crate) fn get(&self, step: usize) -> Option<Point> {
        if self.floats.get(step) {
            return Some(Point::Float(self.values[step]));
        }
        self.histogram(step).cloned().map(Point::Histogram)
    }

    #[inline]
    pub(crate) fn is_present(&self, step: usize) -> bool {
        self.floats.get(step) || self.histogram(step).is_some()
    }

    /// The steps that have a value, into `out`.
    pub(crate) fn presence(&self, out: &mut Bits) {
        out.reset(self.steps());
        out.unite(&self.floats);
        for (step, _) in &self.histograms {
            out.set(*step as usize);
        }
    }

    /// Bytes the values hold.
    pub(crate) fn heap_bytes(&self) -> usize {
        let histograms: usize = self.histograms.iter().map(|(_, h)| 16 + histogram_bytes(h)).sum();
        8 * self.values.len() + histograms
    }

    /// The same values once more.
    pub(crate) fn copy(&self, env: &mut Env<'_>, span: Span) -> Result<Self, EvalError> {
        let mut copy = env.points(self.steps(), span)?;
        copy.values.copy_from_slice(&self.values);
        copy.floats.unite(&self.floats);
        for (step, histogram) in &self.histograms {
            copy.push_histogram(*step as usize, Arc::clone(histogram), span)?;
        }
        Ok(copy)
    }

    /// Says that the points stay (part of a result, or the kept side of an operator): their samples count as held.
    pub(crate) fn hold(&mut self) -> Result<(), EvalError> {
        let floats = self.floats.len();
        let histograms: usize = self.histograms.iter().map(|(_, h)| histogram_bytes(h) / 16 + 1).sum();
        self.charge.hold_samples(floats + histograms)
    }

    /// Takes over the values of `other`, which has none of this one's steps; the steps both have otherwise.
    pub(crate) fn absorb(&mut self, other: &Points, span: Span) -> Result<Result<(), usize>, EvalError> {
        for step in other.floats.ones() {
            if self.is_present(step) {
                return Ok(Err(step));
            }
            self.set_float(step, other.values[step]);
        }
        if other.has_histograms() {
            let mut all = self.take_histograms();
            for (step, histogram) in other.histograms() {
                if self.floats.get(*step as usize) {
                    return Ok(Err(*step as usize));
                }
                self.charge.grow(16 + histogram_bytes(histogram), span)?;
                all.push((*step, Arc::clone(histogram)));
            }
            all.sort_by_key(|(step, _)| *step);
            if let Some(twice) = all.windows(2).find(|w| w[0].0 == w[1].0) {
                return Ok(Err(twice[0].0 as usize));
            }
            self.histograms = all;
        }
        Ok(Ok(()))
    }
}

/// What an allocator gives for `bytes`: allocators have about four sizes for each power of two.
pub(crate) fn allocated(bytes: usize) -> usize {
    let spacing = (bytes.saturating_sub(1).checked_ilog2().map_or(0, |log| 1usize << log) / 4).max(16);
    bytes.div_ceil(spacing).saturating_mul(spacing)
}

/// Bytes a histogram holds on the heap.
pub(crate) fn histogram_bytes(histogram: &FloatHistogram) -> usize {
    size_of::<FloatHistogram>()
        + 8 * (histogram.positive_spans.len()
            + histogram.negative_spans.len()
            + histogram.positive_buckets.len()
            + histogram.negative_buckets.len())
}

/// Steps of work that a loop over the buckets of a histogram counts as; making a new one costs as much as a few dozen.
pub(crate) fn histogram_work(histogram: &FloatHistogram) -> usize {
    32 + 2 * (histogram.positive_buckets.len() + histogram.negative_buckets.len())
}

/// A series on its way through the operators.
#[derive(Debug)]
pub(crate) struct StepSeries {
    pub(crate) labels: Labels,
    /// The metric name is to be dropped at the end of the evaluation (delayed name removal).
    pub(crate) drop_name: bool,
    pub(crate) points: Points,
}

impl StepSeries {
    /// Says that the series stays (part of a result, or the kept side of an operator): its labels are charged, its samples
    /// count as held.
    pub(crate) fn hold(&mut self, span: Span) -> Result<(), EvalError> {
        // Lists of series grow by doubling, some are found by their labels, and labels are counted where they lie.
        let bytes = 2 * size_of::<StepSeries>() + 64 + self.labels.as_bytes().len();
        self.points.charge_labels(bytes, span)?;
        self.points.hold()
    }
}
