//! `rate` and what belongs to it: the change of a series over a window.

use std::sync::Arc;

use skald_model::{Columns, FloatHistogram, Labels, Quoted, ResetHint};

use super::histogram_rate;
use super::sliding::Sliding;
use super::start::{self, Starts};
use super::{Call, RangeCall, RangeFunction, Window};
use crate::eval::env::{Env, StepCounter};
use crate::eval::error::EvalError;
use crate::eval::histogram::reset::{equal, is_reset};
use crate::eval::histogram::sum::HistogramSum;
use crate::eval::histogram::{self, Combination};
use crate::eval::points::{Point, Points};

/// `rate`, `increase` and `delta` of a series of floats. The places where a counter drops are found once; a window
/// only walks those inside it, so that a step costs no more with a longer window.
pub(super) fn fill_floats(
    call: &RangeCall,
    columns: &Columns,
    points: &mut Points,
    labels: &Labels,
    env: &mut Env<'_>,
) -> Result<(), EvalError> {
    let RangeCall { function, window: input, grid, .. } = call;
    let is_counter = *function != RangeFunction::Delta;
    let (times, values) = (&columns.float_timestamps[..], &columns.float_values[..]);
    let drops = if is_counter { drops(values) } else { Vec::new() };
    let used = env.count_by_step(input.counted);
    let mut windows = RateWindows { windows: Sliding::new(times, grid, input), times, values, drops: &drops, used };
    // Nothing changes when it is divided by one.
    let range = if *function == RangeFunction::Rate { seconds(input.range) } else { 1.0 };
    if grid.count < BLOCK / 4 {
        points.fill_floats(|step| {
            let edges = windows.advance(step)?;
            Some(edges.change * (edges.extrapolation(is_counter) / range))
        });
    } else {
        let mut block = Block::default();
        for (i, (out, present)) in points.blocks_mut().enumerate() {
            let mut word = 0;
            for b in 0..out.len() {
                // What stays in the block of a step without a value is computed with, too, and not looked at.
                if let Some(edges) = windows.advance(i * BLOCK + b) {
                    word |= 1 << b;
                    block.set(b, &edges);
                }
            }
            *present = word;
            let changes = if is_counter { block.changes::<true>(range) } else { block.changes::<false>(range) };
            out.copy_from_slice(&changes[..out.len()]);
        }
    }
    drop(windows);
    env.tick(grid.count)?;
    if is_counter && !points.is_empty() {
        info_unless_counter_name(labels, input.span, env);
    }
    Ok(())
}

/// The windows of a counter or gauge, step by step.
struct RateWindows<'c, 'e, 'q> {
    windows: Sliding<'c>,
    times: &'c [i64],
    values: &'c [f64],
    /// Where the counter drops, from the window's second sample on.
    drops: &'c [usize],
    used: StepCounter<'e, 'q>,
}

impl RateWindows<'_, '_, '_> {
    #[inline(always)]
    fn advance(&mut self, step: usize) -> Option<WindowEdges> {
        let (from, to) = (self.windows.from(), self.windows.to());
        let window = self.windows.advance();
        self.used.count(step, window.len());
        if window.len() < 2 {
            return None;
        }
        let (first, last) = (window.start, window.end - 1);
        let first_value = self.values[first];
        let mut change = self.values[last] - first_value;
        // A drop at the window's first sample compares with a sample outside.
        while let [at, others @ ..] = self.drops
            && *at <= first
        {
            self.drops = others;
        }
        for at in self.drops.iter().take_while(|at| **at <= last) {
            change += self.values[at - 1];
        }
        let (first_time, last_time) = (self.times[first], self.times[last]);
        Some(WindowEdges {
            to_start: (first_time - from) as f64,
            to_end: (to - last_time) as f64,
            sampled: (last_time - first_time) as f64,
            pairs: (last - first) as f64,
            first: first_value,
            change,
        })
    }
}

/// Windows computed together.
const BLOCK: usize = 64;

/// [`WindowEdges`] of so many windows, in columns.
struct Block {
    to_start: [f64; BLOCK],
    to_end: [f64; BLOCK],
    sampled: [f64; BLOCK],
    pairs: [f64; BLOCK],
    first: [f64; BLOCK],
    change: [f64; BLOCK],
}

impl Default for Block {
    fn default() -> Self {
        let ones = [1.0; BLOCK];
        Self { to_start: ones, to_end: ones, sampled: ones, pairs: ones, first: ones, change: ones }
    }
}

impl Block {
    #[inline(always)]
    fn set(&mut self, at: usize, edges: &WindowEdges) {
        self.to_start[at] = edges.to_start;
        self.to_end[at] = edges.to_end;
        self.sampled[at] = edges.sampled;
        self.pairs[at] = edges.pairs;
        self.first[at] = edges.first;
        self.change[at] = edges.change;
    }

    #[inline(never)]
    fn changes<const COUNTER: bool>(&self, range: f64) -> [f64; BLOCK] {
        let mut changes = [0.0; BLOCK];
        for (i, change) in changes.iter_mut().enumerate() {
            let edges = WindowEdges {
                to_start: self.to_start[i],
                to_end: self.to_end[i],
                sampled: self.sampled[i],
                pairs: self.pairs[i],
                first: self.first[i],
                change: self.change[i],
            };
            *change = edges.change * (edges.extrapolation(COUNTER) / range);
        }
        changes
    }
}

/// A window's first and last sample; times in milliseconds.
#[derive(Debug, Clone, Copy)]
struct WindowEdges {
    /// From the window's start to its first sample.
    to_start: f64,
    /// From its last sample to its end.
    to_end: f64,
    /// From its first to its last sample.
    sampled: f64,
    /// Samples but one.
    pairs: f64,
    /// The first value.
    first: f64,
    change: f64,
}

impl WindowEdges {
    /// What the change is multiplied with to cover the whole window. The order of the operations is Prometheus', for
    /// the last bits' sake.
    ///
    /// A counter is not extended to the left beyond where it would have been zero.
    #[inline(always)]
    fn extrapolation(&self, is_counter: bool) -> f64 {
        let Self { first, change, .. } = *self;
        let (mut to_start, mut to_end) = (self.to_start / 1000.0, self.to_end / 1000.0);
        let sampled = self.sampled / 1000.0;
        let average = sampled / self.pairs;
        let threshold = average * 1.1;
        to_start = if to_start >= threshold { average / 2.0 } else { to_start };
        let to_zero = sampled * (first / change);
        let is_cut = is_counter & (change > 0.0) & (first >= 0.0) & (to_zero < to_start);
        to_start = if is_cut { to_zero } else { to_start };
        to_end = if to_end >= threshold { average / 2.0 } else { to_end };
        (sampled + to_start + to_end) / sampled
    }
}

/// Indices of the values smaller than the one before.
fn drops(values: &[f64]) -> Vec<usize> {
    values.windows(2).enumerate().filter(|(_, w)| w[1] < w[0]).map(|(i, _)| i + 1).collect()
}

pub(super) fn info_unless_counter_name(labels: &Labels, span: crate::ast::Span, env: &mut Env<'_>) {
    let Some(name) = labels.metric_name() else { return };
    if ["_total", "_sum", "_count", "_bucket"].iter().any(|suffix| name.ends_with(suffix)) {
        return;
    }
    let text = "metric might not be a counter, name does not end in _total/_sum/_count/_bucket";
    env.annotations.info(span, format!("{text}: {}", Quoted(name)));
}

/// Seconds of a range, as Go's `Duration.Seconds` gives them: now and then another last bit than that of a division.
pub(super) fn seconds(ms: i64) -> f64 {
    (ms / 1000) as f64 + (ms % 1000 * 1_000_000) as f64 / 1e9
}

/// What the change between a window's first and last sample is multiplied with to cover the whole window, per second
/// for `rate`; `zero_from` is a counter's first value.
pub(super) fn extrapolation(
    window: &Window<'_>,
    times: &[i64],
    change: f64,
    zero_from: Option<f64>,
    function: RangeFunction,
    range: i64,
) -> f64 {
    let (first, last) = (times[0], times[times.len() - 1]);
    let edges = WindowEdges {
        to_start: (first - window.start) as f64,
        to_end: (window.end - last) as f64,
        sampled: (last - first) as f64,
        pairs: (times.len() - 1) as f64,
        first: zero_from.unwrap_or(0.0),
        change,
    };
    let factor = edges.extrapolation(zero_from.is_some());
    if function == RangeFunction::Rate { factor / seconds(range) } else { factor }
}

/// `rate`, `increase` and `delta` of a series that has histograms or start timestamps.
pub(crate) fn window(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Result<Option<Point>, EvalError> {
    if window.is_mixed() {
        call.warn_mixed();
        return Ok(None);
    }
    let start = call.starts.inside(window);
    // The start is as good as another sample.
    if window.len() < 2 && start.is_none() {
        return Ok(None);
    }
    if window.histograms.is_empty() {
        let is_counter = call.function != RangeFunction::Delta;
        let range = window.end - window.start;
        let starts = call.starts;
        let (first, last) = (window.floats[0], window.floats[window.floats.len() - 1]);
        let mut change = last - first;
        if is_counter {
            for (i, pair) in window.floats.windows(2).enumerate() {
                let restarts = || starts.float(window, i + 1).restarts_after(starts.float(window, i));
                if pair[1] < pair[0] || restarts() {
                    change += pair[0];
                }
            }
            starts.warn_overlaps(window, call);
            info_unless_counter_name(call.labels, call.span, call.env);
        }
        let factor = match start {
            Some(start) => {
                change += first;
                start::extrapolation(window, window.float_times, start, call.function, range)
            }
            None => {
                let zero_from = is_counter.then_some(first);
                extrapolation(window, window.float_times, change, zero_from, call.function, range)
            }
        };
        return Ok(Some(Point::Float(change * factor)));
    }
    histogram_rate::value(window, start, call)
}

/// `irate` and `idelta`: the change between the last two samples.
pub(crate) fn instant_rate(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Result<Option<Point>, EvalError> {
    if window.len() < 2 {
        return Ok(None);
    }
    let is_rate = call.function == RangeFunction::Irate;
    if window.histograms.is_empty() {
        let [.., before, last] = window.floats else { return Ok(None) };
        let [.., before_time, last_time] = window.float_times else { return Ok(None) };
        // A counter that dropped started at zero.
        let change = if is_rate && (last < before || restarts_last(window, call)) { *last } else { last - before };
        let seconds = (last_time - before_time) as f64 / 1000.0;
        return Ok(Some(Point::Float(if is_rate { change / seconds } else { change })));
    }
    instant_rate_of_last(window, is_rate, call)
}

/// Whether the last of two or more floats starts after the one before it.
fn restarts_last(window: &Window<'_>, call: &Call<'_, '_, '_>) -> bool {
    let last = window.floats.len() - 1;
    call.starts.float(window, last).restarts_after(call.starts.float(window, last - 1))
}

/// `irate` and `idelta` of a window that holds histograms, which the last two samples need not be.
fn instant_rate_of_last(
    window: &Window<'_>,
    is_rate: bool,
    call: &mut Call<'_, '_, '_>,
) -> Result<Option<Point>, EvalError> {
    let (mut float, mut histogram) = (window.floats.len(), window.histograms.len());
    let mut previous = || {
        let float_time = float.checked_sub(1).map(|i| window.float_times[i]);
        let histogram_time = histogram.checked_sub(1).map(|i| window.histogram_times[i]);
        if float_time > histogram_time {
            float -= 1;
            (window.float_times[float], Point::Float(window.floats[float]))
        } else {
            histogram -= 1;
            (window.histogram_times[histogram], Point::Histogram(Arc::clone(&window.histograms[histogram])))
        }
    };
    let (last_time, last) = previous();
    let (before_time, before) = previous();
    let last_histogram = window.histograms.len().saturating_sub(1);
    let seconds = (last_time - before_time) as f64 / 1000.0;
    match (before, last) {
        (Point::Float(before), Point::Float(last)) => {
            let change = if is_rate && (last < before || restarts_last(window, call)) { last } else { last - before };
            Ok(Some(Point::Float(if is_rate { change / seconds } else { change })))
        }
        (Point::Histogram(before), Point::Histogram(last)) => {
            let restarts = is_rate && (call.starts.restarts_at(window, last_histogram) || is_reset(&last, &before));
            let change = last_change(&before, &last, is_rate, restarts, call);
            let scaled = change.map(|change| if is_rate { histogram::divided(&change, seconds) } else { change });
            Ok(scaled.map(|h| {
                let gauge = FloatHistogram { reset_hint: ResetHint::Gauge, ..h };
                Point::Histogram(Arc::new(gauge))
            }))
        }
        _ => {
            call.warn_mixed();
            Ok(None)
        }
    }
}

fn last_change(
    before: &FloatHistogram,
    last: &FloatHistogram,
    is_rate: bool,
    restarts: bool,
    call: &mut Call<'_, '_, '_>,
) -> Option<FloatHistogram> {
    let gauges = [before, last].iter().filter(|h| h.reset_hint == ResetHint::Gauge).count();
    if is_rate && gauges > 0 {
        histogram::warn_not_counter(call.labels, call.span, call.env);
    }
    if !is_rate && gauges < 2 {
        histogram::warn_not_gauge(call.labels, call.span, call.env);
    }
    let mut sum = HistogramSum::plain(last);
    if restarts {
        return Some(sum.finish());
    }
    if sum.add(before, -1.0).is_err() {
        histogram::warn_incompatible_schemas(call.labels, call.span, call.env);
        return None;
    }
    if sum.is_reconciled() {
        histogram::info_reconciled(Combination::Subtraction, call.span, call.env);
    }
    Some(sum.finish())
}

/// `changes`: how often the value differs from the one before; a NaN after a NaN does not.
pub(crate) fn changes(window: &Window<'_>) -> Option<Point> {
    let differ = |w: &&[f64]| w[0] != w[1] && !(w[0].is_nan() && w[1].is_nan());
    if window.histograms.is_empty() {
        return Some(Point::Float(window.floats.windows(2).filter(differ).count() as f64));
    }
    let mut count = 0;
    each_pair(window, |before, after| match (before, after) {
        (Ok(a), Ok(b)) => count += usize::from(differ(&&[a, b][..])),
        (Err(a), Err(b)) => count += usize::from(!equal(&window.histograms[a], &window.histograms[b])),
        _ => count += 1,
    });
    Some(Point::Float(count as f64))
}

/// `resets`: how often a counter started anew.
pub(crate) fn resets(window: &Window<'_>, starts: Starts<'_>) -> Option<Point> {
    if window.len() == 0 {
        return None;
    }
    if !starts.is_empty() {
        return Some(Point::Float(start::resets(window, starts) as f64));
    }
    if window.histograms.is_empty() {
        return Some(Point::Float(window.floats.windows(2).filter(|w| w[1] < w[0]).count() as f64));
    }
    let mut count = 0u32;
    each_pair(window, |before, after| {
        count += u32::from(match (before, after) {
            (Ok(a), Ok(b)) => b < a,
            (Err(a), Err(b)) => is_reset(&window.histograms[b], &window.histograms[a]),
            _ => true,
        });
    });
    Some(Point::Float(f64::from(count)))
}

/// Calls `f` with every sample and its successor in time: floats by value, histograms by index.
pub(super) fn each_pair(window: &Window<'_>, mut f: impl FnMut(Result<f64, usize>, Result<f64, usize>)) {
    let mut before = None;
    each_sample(window, |after| {
        let after = after.map(|i| window.floats[i]);
        if let Some(before) = before {
            f(before, after);
        }
        before = Some(after);
    });
}

/// Calls `f` with the index of every sample in time order: `Ok` is a float, `Err` a histogram.
pub(super) fn each_sample(window: &Window<'_>, mut f: impl FnMut(Result<usize, usize>)) {
    let (mut float, mut histogram) = (0, 0);
    loop {
        let float_time = window.float_times.get(float).copied();
        let histogram_time = window.histogram_times.get(histogram).copied();
        match (float_time, histogram_time) {
            (None, None) => return,
            (Some(_), None) => float += 1,
            (Some(f), Some(h)) if f < h => float += 1,
            _ => {
                histogram += 1;
                f(Err(histogram - 1));
                continue;
            }
        }
        f(Ok(float - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_those_of_go() {
        assert_eq!((seconds(60_000), seconds(1_500)), (60.0, 1.5));
        assert_ne!(seconds(1_118), 1.118);
        assert!((seconds(1_118) - 1.118).abs() < 1e-15);
    }
}
