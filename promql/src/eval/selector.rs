//! Instant selectors: the newest sample of each series within the lookback, per step.

use std::sync::Arc;

use skald_model::{Columns, FloatHistogram, Labels, ResetHint, is_stale_nan};

use super::env::Env;
use super::error::EvalError;
use super::histogram::{Incompatible, warn_incompatible_schemas};
use super::points::{Points, StepSeries};
use super::range_function::{Windows, edges, for_metric};
use super::reader::strip_stale;
use super::series_operator::{Buffers, SeriesWork};
use crate::ast::Span;
use crate::plan::{Counted, Grid, TimeShift, Yields};

/// What an instant selector makes of a series.
pub(crate) struct InstantSelect {
    pub(crate) grid: Grid,
    pub(crate) shift: TimeShift,
    /// A sample this old is not found.
    pub(crate) lookback: i64,
    pub(crate) yields: Yields,
    /// Values between two samples are interpolated.
    pub(crate) smoothed: bool,
    pub(crate) counted: Counted,
    pub(crate) span: Span,
}

impl SeriesWork for InstantSelect {
    fn run(&self, labels: Labels, buffers: &mut Buffers, env: &mut Env<'_>) -> Result<Option<StepSeries>, EvalError> {
        let columns = &mut buffers.columns;
        let mut points = env.points(self.grid.count, self.span)?;
        if self.smoothed {
            strip_stale(columns);
            self.interpolate(columns, &mut points, &labels, env)?;
        } else if columns.histograms.is_empty() {
            self.select_floats(columns, &mut points);
        } else {
            self.select_mixed(columns, &mut points)?;
        }
        env.tick(self.grid.count)?;
        if points.is_empty() {
            env.recycle(points);
            return Ok(None);
        }
        env.count_points(self.counted, &points);
        let mut series = StepSeries { labels, drop_name: false, points };
        if matches!(self.yields, Yields::Timestamp | Yields::StartTimestamp) {
            env.names.drop(&mut series);
        }
        Ok(Some(series))
    }
}

impl InstantSelect {
    fn select_floats(&self, columns: &Columns, points: &mut Points) {
        match self.yields {
            // The most usual one is apart so that it need not look at what is wanted at each step.
            Yields::Value => self.select_with(columns, points, |_, _, value| value),
            _ => self.select_with(columns, points, |i, time, value| self.float(columns, i, time, value)),
        }
    }

    #[inline(always)]
    fn select_with(&self, columns: &Columns, points: &mut Points, f: impl Fn(usize, i64, f64) -> f64) {
        let (times, values) = (&columns.float_timestamps[..], &columns.float_values[..]);
        let values = &values[..times.len()];
        let step = if self.shift.at.is_some() { 0 } else { self.grid.step };
        let mut at = self.shift.apply(self.grid.time(0));
        // The newest sample so far and until when it is found, exclusive; never if there is none or it is a stale
        // marker.
        let (mut next, mut found, mut until) = (0, f64::NAN, i64::MIN);
        points.fill_floats(|_| {
            if let Some(time) = times.get(next)
                && *time <= at
            {
                next += 1;
                while let Some(time) = times.get(next)
                    && *time <= at
                {
                    next += 1;
                }
                let (time, value) = (times[next - 1], values[next - 1]);
                found = f(next - 1, time, value);
                until = if is_stale_nan(value) { i64::MIN } else { time.saturating_add(self.lookback) };
            }
            let value = (at < until).then_some(found);
            at = at.saturating_add(step);
            value
        });
    }

    /// What is yielded of float `i`.
    #[inline]
    fn float(&self, columns: &Columns, i: usize, time: i64, value: f64) -> f64 {
        match self.yields {
            Yields::Value => value,
            Yields::Timestamp | Yields::InfoTime => time as f64 / 1000.0,
            Yields::StartTimestamp => seconds_of(&columns.float_starts, i),
        }
    }

    fn select_mixed(&self, columns: &Columns, points: &mut Points) -> Result<(), EvalError> {
        let (mut next_float, mut next_histogram) = (0, 0);
        for step in 0..self.grid.count {
            let at = self.shift.apply(self.grid.time(step));
            while columns.float_timestamps.get(next_float).is_some_and(|t| *t <= at) {
                next_float += 1;
            }
            while columns.histogram_timestamps.get(next_histogram).is_some_and(|t| *t <= at) {
                next_histogram += 1;
            }
            let float_time = next_float.checked_sub(1).map(|i| columns.float_timestamps[i]);
            let histogram_time = next_histogram.checked_sub(1).map(|i| columns.histogram_timestamps[i]);
            let Some(time) = float_time.max(histogram_time) else { continue };
            if at.saturating_sub(time) >= self.lookback {
                continue;
            }
            if float_time == Some(time) {
                let value = columns.float_values[next_float - 1];
                if !is_stale_nan(value) {
                    points.set_float(step, self.float(columns, next_float - 1, time, value));
                }
            } else {
                let histogram = &columns.histograms[next_histogram - 1];
                match self.yields {
                    _ if histogram.is_stale() => {}
                    // Which info series may not have native histograms, `info` knows.
                    Yields::Value | Yields::InfoTime => {
                        points.push_histogram(step, Arc::clone(histogram), self.span)?;
                    }
                    Yields::Timestamp => points.set_float(step, time as f64 / 1000.0),
                    Yields::StartTimestamp => {
                        points.set_float(step, seconds_of(&columns.histogram_starts, next_histogram - 1));
                    }
                }
            }
        }
        Ok(())
    }

    /// The value at each step on the line between the samples before and after it, at most the lookback away; the one
    /// before alone is carried on.
    fn interpolate(
        &self,
        columns: &Columns,
        points: &mut Points,
        labels: &Labels,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        let mut windows = Windows::new(columns);
        for step in 0..self.grid.count {
            let at = self.shift.apply(self.grid.time(step));
            let (start, end) = (at.saturating_sub(self.lookback), at.saturating_add(self.lookback));
            let window = windows.advance(start, end, step);
            env.tick(8)?;
            if window.is_mixed() {
                let text = for_metric("encountered a mix of histograms and floats", labels);
                env.annotations.warn(self.span, text);
                continue;
            }
            if window.histograms.is_empty() {
                let after = window.float_times.partition_point(|t| *t <= at);
                let Some(before) = after.checked_sub(1) else { continue };
                let sample = |i: usize| (window.float_times[i], window.floats[i]);
                let value = match sample(before) {
                    (time, _) if time < at && after < window.floats.len() => {
                        edges::interpolate(sample(before), sample(after), at, false)
                    }
                    (_, value) => value,
                };
                points.set_float(step, value);
            } else {
                let after = window.histogram_times.partition_point(|t| *t <= at);
                let Some(before) = after.checked_sub(1) else { continue };
                let sample = |i: usize| (window.histogram_times[i], &*window.histograms[i]);
                if window.histogram_times[before] == at {
                    points.push_histogram(step, Arc::clone(&window.histograms[before]), self.span)?;
                    continue;
                }
                if after == window.histograms.len() {
                    // What is known of a reset is about the sample itself, not about what is carried on.
                    let carried = FloatHistogram::clone(&window.histograms[before]);
                    let carried = FloatHistogram { reset_hint: ResetHint::Unknown, ..carried };
                    points.push_histogram(step, Arc::new(carried), self.span)?;
                    continue;
                }
                let is_counter = [before, after].iter().any(|i| sample(*i).1.reset_hint != ResetHint::Gauge);
                match edges::interpolate_histograms(sample(before), sample(after), at, is_counter) {
                    Ok(between) => points.push_histogram(step, Arc::new(between), self.span)?,
                    Err(Incompatible) => warn_incompatible_schemas(labels, self.span, env),
                }
            }
        }
        Ok(())
    }
}

/// The start timestamp of sample `i` in seconds.
fn seconds_of(starts: &[i64], i: usize) -> f64 {
    starts.get(i).copied().unwrap_or(0) as f64 / 1000.0
}
