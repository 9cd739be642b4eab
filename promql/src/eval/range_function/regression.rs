//! Least squares and smoothing.

use super::{Call, Window, lanes};
use crate::eval::error::EvalError;
use crate::eval::kahan::KahanSum;
use crate::eval::points::Point;

/// `deriv`: the slope per second; the origin is the first sample.
pub(super) fn deriv(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Option<Point> {
    enough(window, call)?;
    Some(Point::Float(least_squares(window, window.float_times[0]).slope))
}

/// `predict_linear`: the value so many seconds after the evaluation time.
pub(super) fn predict_linear(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Option<Point> {
    enough(window, call)?;
    let ahead = call.scalar(0, window.step);
    let line = least_squares(window, call.time);
    Some(Point::Float(line.slope * ahead + line.intercept))
}

/// `double_exponential_smoothing` with a smoothing and a trend factor.
pub(super) fn double_exponential_smoothing(
    window: &Window<'_>,
    call: &mut Call<'_, '_, '_>,
) -> Result<Option<Point>, EvalError> {
    let (smoothing, trend) = (call.scalar(0, window.step), call.scalar(1, window.step));
    for (what, short, factor) in [("smoothing", "sf", smoothing), ("trend", "tf", trend)] {
        if factor <= 0.0 || factor >= 1.0 {
            let text = format!("invalid {what} factor. Expected: 0 < {short} < 1, got: {factor:.6}");
            return Err(EvalError::Execution(text));
        }
    }
    if enough(window, call).is_none() {
        return Ok(None);
    }
    let floats = window.floats;
    let (mut before, mut level, mut slope) = (0.0, floats[0], floats[1] - floats[0]);
    for (i, value) in floats.iter().enumerate().skip(1) {
        let x = smoothing * value;
        if i > 1 {
            slope = trend * (level - before) + (1.0 - trend) * slope;
        }
        let y = (1.0 - smoothing) * (level + slope);
        (before, level) = (level, x + y);
    }
    Ok(Some(Point::Float(level)))
}

/// Whether there are two floats; tells about histograms among floats.
fn enough(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Option<()> {
    if window.is_mixed() {
        call.info_ignored_histograms();
    }
    (window.floats.len() >= 2).then_some(())
}

/// A line through a window's samples.
pub(super) struct Line {
    /// Per second.
    pub(super) slope: f64,
    /// The value at the origin.
    pub(super) intercept: f64,
}

impl Line {
    /// Through samples that all have this value.
    pub(super) fn flat(value: f64) -> Self {
        let (slope, intercept) = if value.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, value) };
        Self { slope, intercept }
    }

    /// Least squares; time counts from `origin`.
    pub(super) fn through(times: &[i64], values: &[f64], origin: i64) -> Self {
        let mut sums = lanes::products(times, values, origin);
        if !sums.iter().all(|sum| sum.is_finite()) {
            sums = plain_products(times, values, origin);
        }
        let n = values.len() as f64;
        let [sum_x, sum_y, sum_xy, sum_x2] = sums;
        let covariance = sum_xy - sum_x * sum_y / n;
        let variance = sum_x2 - sum_x * sum_x / n;
        let slope = covariance / variance;
        Self { slope, intercept: sum_y / n - slope * sum_x / n }
    }
}

/// The same as [`lanes::products`], whatever the values are.
fn plain_products(times: &[i64], values: &[f64], origin: i64) -> [f64; 4] {
    let mut sums = [KahanSum::of(0.0); 4];
    for (time, y) in times.iter().zip(values) {
        let x = (time - origin) as f64 / 1000.0;
        sums.iter_mut().zip([x, *y, x * y, x * x]).for_each(|(sum, value)| sum.add(value));
    }
    sums.map(KahanSum::value)
}

fn least_squares(window: &Window<'_>, origin: i64) -> Line {
    let first = window.floats[0];
    if window.floats.iter().all(|v| *v == first) {
        return Line::flat(first);
    }
    Line::through(window.float_times, window.floats, origin)
}
