//! `anchored` and `smoothed`: what lies just outside a window counts at its ends.
//!
//! `anchored` starts from the last sample at or before the window's start. `smoothed` also interpolates the values at
//! the window's ends. Neither extrapolates.

use std::sync::Arc;

use skald_model::{FloatHistogram, ResetHint};

use super::rate::{self, info_unless_counter_name, seconds};
use super::{Call, RangeFunction, Window};
use crate::ast::EdgeMode;
use crate::eval::error::EvalError;
use crate::eval::histogram::bucket::is_custom;
use crate::eval::histogram::reset::is_reset;
use crate::eval::histogram::sum::HistogramSum;
use crate::eval::histogram::{self, Combination, Incompatible};
use crate::eval::points::Point;
use crate::eval::window::WindowShape;

/// The value of a window that brings the samples around it.
pub(super) fn value(
    around: &Window<'_>,
    input: &WindowShape,
    call: &mut Call<'_, '_, '_>,
) -> Result<Option<Point>, EvalError> {
    match call.function {
        RangeFunction::Changes | RangeFunction::Resets => {
            let Some(window) = anchored(around) else { return Ok(None) };
            let changes = call.function == RangeFunction::Changes;
            Ok(if changes { rate::changes(&window) } else { rate::resets(&window, call.starts) })
        }
        _ if around.len() == 0 => Ok(None),
        _ if around.is_mixed() => {
            call.warn_mixed();
            Ok(None)
        }
        _ if around.histograms.is_empty() => Ok(float_rate(around, input, call).map(Point::Float)),
        _ => histogram_rate(around, input, call),
    }
}

/// The window with the one sample before it, if the window itself holds a sample.
fn anchored<'c>(around: &Window<'c>) -> Option<Window<'c>> {
    let first = |times: &[i64]| times.partition_point(|t| *t <= around.start);
    let (mut float, mut histogram) = (first(around.float_times), first(around.histogram_times));
    if float == around.floats.len() && histogram == around.histograms.len() {
        return None;
    }
    let float_anchor = float.checked_sub(1).map(|i| around.float_times[i]);
    let histogram_anchor = histogram.checked_sub(1).map(|i| around.histogram_times[i]);
    if float_anchor.is_some() && float_anchor > histogram_anchor {
        float -= 1;
    } else if histogram_anchor.is_some() {
        histogram -= 1;
    }
    Some(Window {
        float_times: &around.float_times[float..],
        floats: &around.floats[float..],
        histogram_times: &around.histogram_times[histogram..],
        histograms: &around.histograms[histogram..],
        first_float: around.first_float + float,
        first_histogram: around.first_histogram + histogram,
        ..*around
    })
}

/// First and last sample that count: the last at or before the window's start (else the first one), and the last one
/// inside, or with `smoothed` the first at or after its end. `None` when all lie on one side of the window.
pub(super) fn bounds(times: &[i64], start: i64, end: i64, smoothed: bool) -> Option<(usize, usize)> {
    let last = times.len() - 1;
    let first = times[..last].partition_point(|t| *t <= start).saturating_sub(1);
    let last = if smoothed { times[..last].partition_point(|t| *t < end) } else { last };
    (times[last] > start && times[first] <= end).then_some((first, last))
}

fn float_rate(around: &Window<'_>, input: &WindowShape, call: &mut Call<'_, '_, '_>) -> Option<f64> {
    let is_counter = call.function != RangeFunction::Delta;
    let smoothed = input.edges == EdgeMode::Smoothed;
    let (times, floats) = (around.float_times, around.floats);
    let (first, last) = bounds(times, around.start, around.end, smoothed)?;
    let sample = |i: usize| (times[i], floats[i]);
    let left = if smoothed && times[first] < around.start {
        interpolate(sample(first), sample(first + 1), around.start, is_counter)
    } else {
        floats[first]
    };
    let right = if smoothed && last > 0 && times[last] > around.end {
        interpolate(sample(last - 1), sample(last), around.end, is_counter)
    } else {
        floats[last]
    };
    let mut change = right - left;
    if is_counter {
        let (mut before, mut lost) = (left, 0.0);
        for value in floats.get(first + 1..last).unwrap_or(&[]).iter().chain([&right]) {
            if *value < before {
                lost += before;
            }
            before = *value;
        }
        change += lost;
        info_unless_counter_name(call.labels, call.span, call.env);
    }
    Some(if call.function == RangeFunction::Rate { change / seconds(input.range) } else { change })
}

fn histogram_rate(
    around: &Window<'_>,
    input: &WindowShape,
    call: &mut Call<'_, '_, '_>,
) -> Result<Option<Point>, EvalError> {
    let is_counter = call.function != RangeFunction::Delta;
    let smoothed = input.edges == EdgeMode::Smoothed;
    let (times, histograms) = (around.histogram_times, around.histograms);
    let Some((first, last)) = bounds(times, around.start, around.end, smoothed) else { return Ok(None) };
    let used = &histograms[first..=last];
    let is_gauge = |h: &FloatHistogram| h.reset_hint == ResetHint::Gauge;
    if used.iter().any(|h| is_custom(h) != is_custom(&used[0])) {
        histogram::warn_incompatible_schemas(call.labels, call.span, call.env);
        return Ok(None);
    }
    if is_counter && used.iter().any(|h| is_gauge(h)) {
        histogram::warn_not_counter(call.labels, call.span, call.env);
    }
    if !(is_counter || is_gauge(&used[0]) && is_gauge(&used[used.len() - 1])) {
        histogram::warn_not_gauge(call.labels, call.span, call.env);
    }
    let between = |i: usize, at: i64| {
        let (before, after) = ((times[i], &*histograms[i]), (times[i + 1], &*histograms[i + 1]));
        interpolate_histograms(before, after, at, is_counter)
    };
    let inside_left = smoothed && times[first] < around.start;
    let left = if inside_left { between(first, around.start) } else { Ok(FloatHistogram::clone(&histograms[first])) };
    let right = if smoothed && last > 0 && times[last] > around.end {
        between(last - 1, around.end)
    } else {
        Ok(FloatHistogram::clone(&histograms[last]))
    };
    let change = || -> Result<FloatHistogram, Incompatible> {
        let (left, right) = (left?, right?);
        let mut change = HistogramSum::plain(&right);
        change.add(&left, -1.0)?;
        if change.is_reconciled() {
            histogram::info_reconciled(Combination::Subtraction, call.span, call.env);
        }
        if is_counter && let Some(lost) = lost_in_resets(used, &left, &right, inside_left)? {
            change.add(&lost, 1.0)?;
        }
        if call.function == RangeFunction::Rate {
            change.divide(seconds(input.range));
        }
        Ok(change.finish())
    };
    match { change }() {
        Ok(change) => {
            let gauge = FloatHistogram { reset_hint: ResetHint::Gauge, ..change };
            Ok(Some(Point::Histogram(Arc::new(gauge))))
        }
        Err(Incompatible) => {
            histogram::warn_incompatible_schemas(call.labels, call.span, call.env);
            Ok(None)
        }
    }
}

/// The sum of the histograms right before a reset, if there is one. `left` and `right` stand for the first and last
/// of `used`.
fn lost_in_resets(
    used: &[Arc<FloatHistogram>],
    left: &FloatHistogram,
    right: &FloatHistogram,
    inside_left: bool,
) -> Result<Option<FloatHistogram>, Incompatible> {
    // An interpolated left end already lies after a reset of the first pair.
    let spanned = inside_left && used.len() > 1 && is_reset(&used[1], &used[0]);
    let (mut before, next) = if spanned { (&*used[1], 2) } else { (left, 1) };
    if next >= used.len() {
        return Ok(None);
    }
    let mut lost: Option<HistogramSum> = None;
    for histogram in used[next..used.len() - 1].iter().map(|h| &**h).chain([right]) {
        if is_reset(histogram, before) {
            match &mut lost {
                Some(lost) => lost.add(before, 1.0)?,
                None => lost = Some(HistogramSum::plain(before)),
            }
        }
        before = histogram;
    }
    Ok(lost.map(|lost| lost.finish()))
}

/// The histogram at `at` on the line between two; a counter that was reset between them starts from zero.
pub(crate) fn interpolate_histograms(
    before: (i64, &FloatHistogram),
    after: (i64, &FloatHistogram),
    at: i64,
    is_counter: bool,
) -> Result<FloatHistogram, Incompatible> {
    let share = (at - before.0) as f64 / (after.0 - before.0) as f64;
    let mut between = HistogramSum::plain(after.1);
    if is_custom(before.1) != is_custom(after.1) {
        return Err(Incompatible);
    }
    if is_counter && is_reset(after.1, before.1) {
        between.scale(share);
    } else {
        between.add(before.1, -1.0)?;
        between.scale(share);
        between.add(before.1, 1.0)?;
    }
    Ok(between.finish())
}

/// The value at `at` on the line between two samples; a counter that drops between them starts from zero.
pub(crate) fn interpolate(before: (i64, f64), after: (i64, f64), at: i64, is_counter: bool) -> f64 {
    let from = if is_counter && after.1 < before.1 { 0.0 } else { before.1 };
    from + (after.1 - from) * (at - before.0) as f64 / (after.0 - before.0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_restarts_counters() {
        assert_eq!(interpolate((0, 100.0), (15, 10.0), 12, true), 8.0);
        assert_eq!(interpolate((0, 100.0), (15, 10.0), 12, false), 28.0);
    }

    #[test]
    fn bounds_need_a_sample_on_the_right_side() {
        assert_eq!(bounds(&[0, 60], 60, 120, false), None);
        assert_eq!(bounds(&[0, 60, 180], 60, 120, true), Some((1, 2)));
        assert_eq!(bounds(&[10, 20], 0, 5, true), None);
        assert_eq!(bounds(&[0], -55, 5, false), Some((0, 0)));
    }
}
