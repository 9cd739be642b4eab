//! Functions of windows of floats that need not look at every window anew.
//!
//! [`Sliding`] moves a window's two ends over a series. Counts, ends and numbers of changes follow from the ends alone;
//! extremes come from a queue of candidates, quantiles from a sorted copy of the window that samples enter and leave.
//! Sums, means, variances and regressions start anew at every window, as they do in Prometheus, whose bits they must
//! have; but several windows are walked at once, so that one's additions do not wait for each other.

use std::ops::Range;

use skald_model::Columns;

use super::lanes::{self, LANES, Variance};
use super::over_time::{mean, sum, variance};
use super::regression::Line;
use super::{RangeCall, RangeFunction};
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::kahan::{KahanMean, KahanSum};
use crate::eval::points::Points;
use crate::eval::quantile::{SortedWindow, check_quantile};
use crate::eval::window::WindowShape;
use crate::plan::Grid;

/// The windows of a series of floats, step by step.
pub(crate) struct Sliding<'c> {
    times: &'c [i64],
    window: Range<usize>,
    /// The window of the next step ends here, inclusive, …
    to: i64,
    /// … which then moves by this.
    step: i64,
    range: i64,
}

impl<'c> Sliding<'c> {
    pub(crate) fn new(times: &'c [i64], grid: &Grid, input: &WindowShape) -> Self {
        let step = if input.shift.at.is_some() { 0 } else { grid.step };
        Self { times, window: 0..0, to: input.shift.apply(grid.time(0)), step, range: input.range }
    }

    /// The samples of the next step's window.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> Range<usize> {
        let from = self.from();
        let Range { mut start, mut end } = self.window.clone();
        while let Some(time) = self.times.get(end)
            && *time <= self.to
        {
            end += 1;
        }
        while start < end && self.times[start] <= from {
            start += 1;
        }
        self.window = start..end;
        self.to = self.to.saturating_add(self.step);
        start..end
    }

    /// Where the next step's window begins, exclusive.
    #[inline(always)]
    pub(crate) fn from(&self) -> i64 {
        self.to.saturating_sub(self.range)
    }

    /// Where the next step's window ends, inclusive.
    #[inline(always)]
    pub(crate) fn to(&self) -> i64 {
        self.to
    }
}

/// Fills in the function of every window of a series without native histograms and start timestamps; says whether the
/// function is one of those that are done here.
pub(super) fn fill(
    call: &RangeCall,
    columns: &Columns,
    points: &mut Points,
    env: &mut Env<'_>,
) -> Result<bool, EvalError> {
    use RangeFunction as F;
    let (times, values) = (&columns.float_timestamps[..], &columns.float_values[..]);
    let seconds = |i: usize| times[i] as f64 / 1000.0;
    let mut each = Each { call, columns, points, env };
    match call.function {
        F::CountOverTime => each.window(|w| w.len() as f64),
        F::PresentOverTime => each.window(|_| 1.0),
        F::LastOverTime => each.window(|w| values[w.end - 1]),
        F::FirstOverTime => each.window(|w| values[w.start]),
        F::TsOfLastOverTime => each.window(|w| seconds(w.end - 1).max(0.0)),
        F::TsOfFirstOverTime => each.window(|w| seconds(w.start)),
        F::Irate => each.pair(|w| {
            let (before, last) = (values[w.end - 2], values[w.end - 1]);
            // A counter that dropped started at zero.
            let change = if last < before { last } else { last - before };
            change / ((times[w.end - 1] - times[w.end - 2]) as f64 / 1000.0)
        }),
        F::Idelta => each.pair(|w| values[w.end - 1] - values[w.end - 2]),
        F::Changes => {
            let changes = pairs_before(values, |a, b| a != b && !(a.is_nan() && b.is_nan()));
            each.window(|w| f64::from(changes[w.end - 1] - changes[w.start]))
        }
        F::Resets => {
            let resets = pairs_before(values, |before, after| after < before);
            each.window(|w| f64::from(resets[w.end - 1] - resets[w.start]))
        }
        F::MaxOverTime => each.extreme(|new, old| new > old, |i| values[i]),
        F::MinOverTime => each.extreme(|new, old| new < old, |i| values[i]),
        // Of equal ones the last.
        F::TsOfMaxOverTime => each.extreme(|new, old| new >= old, seconds),
        F::TsOfMinOverTime => each.extreme(|new, old| new <= old, seconds),
        F::SumOverTime => each.walk(lanes::sums, KahanSum::plus, |sum, _| sum.value(), sum)?,
        F::AvgOverTime => {
            each.walk(lanes::sums, KahanSum::plus, |sum, count| KahanMean::of_sum(sum, count).value(), mean)?;
        }
        F::StddevOverTime => {
            each.walk(lanes::variances, Variance::plus, |v, _| v.value().sqrt(), |values| variance(values).sqrt())?;
        }
        F::StdvarOverTime => each.walk(lanes::variances, Variance::plus, |v, _| v.value(), variance)?,
        F::QuantileOverTime => each.quantiles()?,
        F::MadOverTime => each.sorted(|sorted, _, _| sorted.median_deviation())?,
        F::Deriv => each.slopes()?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// For each value, how many pairs of neighbours up to it `f` says yes to.
fn pairs_before(values: &[f64], f: impl Fn(f64, f64) -> bool) -> Vec<u32> {
    let mut count = 0;
    let mut before = values.first().copied().unwrap_or(f64::NAN);
    let counts = values.iter().enumerate().map(|(i, value)| {
        count += u32::from(i > 0 && f(before, *value));
        before = *value;
        count
    });
    counts.collect()
}

/// What is needed to go through the windows of a series.
struct Each<'a, 'q> {
    call: &'a RangeCall,
    columns: &'a Columns,
    points: &'a mut Points,
    env: &'a mut Env<'q>,
}

impl Each<'_, '_> {
    /// Every window that is not empty becomes a value.
    #[inline(always)]
    fn window(&mut self, f: impl FnMut(Range<usize>) -> f64) {
        self.at_least(1, f);
    }

    /// Every window of two samples becomes a value.
    #[inline(always)]
    fn pair(&mut self, f: impl FnMut(Range<usize>) -> f64) {
        self.at_least(2, f);
    }

    #[inline(always)]
    fn at_least(&mut self, samples: usize, mut f: impl FnMut(Range<usize>) -> f64) {
        let mut windows = Sliding::new(&self.columns.float_timestamps, &self.call.grid, &self.call.window);
        let mut used = self.env.count_by_step(self.call.window.counted);
        self.points.fill_floats(|step| {
            let window = windows.advance();
            used.count(step, window.len());
            (window.len() >= samples).then(|| f(window))
        });
    }

    /// The extreme of each window, then what is made of its index. NaN is one only if there is nothing else.
    #[inline(always)]
    fn extreme(&mut self, beats: impl Fn(f64, f64) -> bool, of: impl Fn(usize) -> f64) {
        let values = &self.columns.float_values[..];
        // Candidates ascend by index, and each beats those after it: they matter once it has left the window.
        let mut candidates: Vec<usize> = Vec::new();
        let (mut first, mut next) = (0, 0);
        self.window(|w| {
            if next < w.start {
                next = w.start;
            }
            while next < w.end {
                if !values[next].is_nan() {
                    while candidates.len() > first && beats(values[next], values[candidates[candidates.len() - 1]]) {
                        candidates.pop();
                    }
                    candidates.push(next);
                }
                next += 1;
            }
            while candidates.get(first).is_some_and(|at| *at < w.start) {
                first += 1;
            }
            of(candidates.get(first).copied().unwrap_or(w.end - 1))
        });
    }

    /// Folds every window from its first sample to its last: `lanes` begins with several windows of one length,
    /// `plus` goes on with what they have more, and `finish` makes a value out of it and the window's length. Where
    /// that is not finite, or windows are too few, `whole` makes the value.
    #[inline(always)]
    fn walk<S: Copy>(
        &mut self,
        lanes: impl Fn([&[f64]; LANES]) -> [S; LANES],
        plus: impl Fn(S, f64) -> S,
        finish: impl Fn(S, usize) -> f64,
        whole: impl Fn(&[f64]) -> f64,
    ) -> Result<(), EvalError> {
        let values = &self.columns.float_values[..];
        let mut windows = Sliding::new(&self.columns.float_timestamps, &self.call.grid, &self.call.window);
        let steps = self.call.grid.count;
        let mut step = 0;
        while step < steps {
            let mut group: [(usize, &[f64]); LANES] = [(0, &[]); LANES];
            let (mut filled, mut work) = (0, 0);
            while filled < LANES && step < steps {
                let window = windows.advance();
                self.env.count_samples(self.call.window.counted, step, window.len());
                if !window.is_empty() {
                    work += window.len();
                    group[filled] = (step, &values[window]);
                    filled += 1;
                }
                step += 1;
            }
            self.env.tick(work)?;
            if filled < LANES {
                group[..filled].iter().for_each(|(step, window)| self.points.set_float(*step, whole(window)));
                continue;
            }
            let shared = group.iter().map(|(_, window)| window.len()).min().unwrap_or(0);
            let states = lanes(group.map(|(_, window)| &window[..shared]));
            for ((step, window), state) in group.into_iter().zip(states) {
                let state = window[shared..].iter().fold(state, |state, value| plus(state, *value));
                let value = finish(state, window.len());
                self.points.set_float(step, if value.is_finite() { value } else { whole(window) });
            }
        }
        Ok(())
    }

    /// Keeps a sorted copy of the window and makes a value of each that is not empty.
    fn sorted(&mut self, mut f: impl FnMut(&SortedWindow, usize, &mut Env<'_>) -> f64) -> Result<(), EvalError> {
        let values = &self.columns.float_values[..];
        let mut windows = Sliding::new(&self.columns.float_timestamps, &self.call.grid, &self.call.window);
        let mut sorted = SortedWindow::default();
        let mut before = 0..0;
        for step in 0..self.call.grid.count {
            let window = windows.advance();
            self.env.count_samples(self.call.window.counted, step, window.len());
            self.env.tick(16 + sorted.slide(values, before.clone(), window.clone()))?;
            before = window.clone();
            if !window.is_empty() {
                let value = f(&sorted, step, self.env);
                self.points.set_float(step, value);
            }
        }
        Ok(())
    }

    fn quantiles(&mut self) -> Result<(), EvalError> {
        let call = self.call;
        self.sorted(|sorted, step, env| {
            let q = call.scalars.first().map_or(f64::NAN, |q| q.at(step));
            check_quantile(q, call.parameter_span, env);
            sorted.quantile(q)
        })
    }

    fn slopes(&mut self) -> Result<(), EvalError> {
        let (times, values) = (&self.columns.float_timestamps[..], &self.columns.float_values[..]);
        // Where the run of equal values begins that a value is the last of so far.
        let mut begin = 0;
        let runs: Vec<usize> = (0..values.len())
            .map(|i| {
                if i > 0 && values[i] != values[i - 1] {
                    begin = i;
                }
                begin
            })
            .collect();
        let mut windows = Sliding::new(times, &self.call.grid, &self.call.window);
        for step in 0..self.call.grid.count {
            let w = windows.advance();
            self.env.count_samples(self.call.window.counted, step, w.len());
            if w.len() < 2 {
                continue;
            }
            let is_flat = runs[w.end - 1] <= w.start;
            self.env.tick(if is_flat { 1 } else { w.len() })?;
            let line = if is_flat {
                Line::flat(values[w.start])
            } else {
                Line::through(&times[w.clone()], &values[w.clone()], times[w.start])
            };
            self.points.set_float(step, line.slope);
        }
        Ok(())
    }
}
