//! The `*_over_time` family.

use std::sync::Arc;

use super::lanes::Variance;
use super::{Call, RangeFunction, Window};
use crate::eval::error::EvalError;
use crate::eval::histogram;
use crate::eval::kahan::{KahanMean, KahanSum};
use crate::eval::points::Point;
use crate::eval::quantile::{check_quantile, quantile};

/// The value of one window, which is not empty.
pub(super) fn value(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Result<Option<Point>, EvalError> {
    use RangeFunction as F;
    let value = match call.function {
        F::CountOverTime => window.len() as f64,
        F::PresentOverTime => 1.0,
        F::LastOverTime => return Ok(Some(last(window))),
        F::FirstOverTime => return Ok(Some(first(window))),
        // Prometheus looks for the latest after the epoch.
        F::TsOfLastOverTime => {
            seconds([window.float_times.last(), window.histogram_times.last(), Some(&0)].into_iter().max().flatten())
        }
        F::TsOfFirstOverTime => {
            let times = [window.float_times.first(), window.histogram_times.first()];
            seconds(times.into_iter().flatten().min())
        }
        F::SumOverTime | F::AvgOverTime => {
            if window.is_mixed() {
                call.warn_mixed();
                return Ok(None);
            }
            if window.floats.is_empty() {
                let mean = call.function == F::AvgOverTime;
                let total = histogram::aggregate(window.histograms, mean, call.labels, call.span, call.env);
                return Ok(total.map(|total| Point::Histogram(Arc::new(total))));
            }
            if call.function == F::SumOverTime { sum(window.floats) } else { mean(window.floats) }
        }
        _ => {
            if window.floats.is_empty() {
                return Ok(None);
            }
            if window.is_mixed() {
                call.info_ignored_histograms();
            }
            of_floats(window, call)
        }
    };
    Ok(Some(Point::Float(value)))
}

/// The functions that look at floats only; there is at least one.
fn of_floats(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> f64 {
    use RangeFunction as F;
    let floats = window.floats;
    match call.function {
        F::MinOverTime => floats[1..].iter().fold(floats[0], |m, v| if *v < m || m.is_nan() { *v } else { m }),
        F::MaxOverTime => floats[1..].iter().fold(floats[0], |m, v| if *v > m || m.is_nan() { *v } else { m }),
        F::TsOfMinOverTime => time_of(window, |v, m| v <= m || m.is_nan()),
        F::TsOfMaxOverTime => time_of(window, |v, m| v >= m || m.is_nan()),
        F::StdvarOverTime => variance(floats),
        F::StddevOverTime => variance(floats).sqrt(),
        F::QuantileOverTime => {
            let q = call.scalar(0, window.step);
            check_quantile(q, call.parameter_span, call.env);
            call.scratch.clear();
            call.scratch.extend_from_slice(floats);
            quantile(q, call.scratch)
        }
        F::MadOverTime if floats.iter().any(|v| v.is_nan()) => f64::NAN,
        F::MadOverTime => {
            call.scratch.clear();
            call.scratch.extend_from_slice(floats);
            let median = quantile(0.5, call.scratch);
            call.scratch.iter_mut().for_each(|v| *v = (*v - median).abs());
            quantile(0.5, call.scratch)
        }
        _ => f64::NAN,
    }
}

fn seconds(time: Option<&i64>) -> f64 {
    time.map_or(f64::NAN, |t| *t as f64 / 1000.0)
}

fn last(window: &Window<'_>) -> Point {
    match (window.floats.last(), window.histograms.last()) {
        (Some(float), _) if window.float_times.last() > window.histogram_times.last() => Point::Float(*float),
        (_, Some(histogram)) => Point::Histogram(histogram.clone()),
        (float, None) => Point::Float(float.copied().unwrap_or(f64::NAN)),
    }
}

fn first(window: &Window<'_>) -> Point {
    match (window.floats.first(), window.histograms.first()) {
        (Some(float), Some(_)) if window.float_times[0] < window.histogram_times[0] => Point::Float(*float),
        (_, Some(histogram)) => Point::Histogram(histogram.clone()),
        (float, None) => Point::Float(float.copied().unwrap_or(f64::NAN)),
    }
}

pub(super) fn sum(floats: &[f64]) -> f64 {
    floats.iter().fold(KahanSum::default(), |sum, v| sum.plus(*v)).value()
}

pub(super) fn mean(floats: &[f64]) -> f64 {
    let mut mean = KahanMean::of(floats[0]);
    floats[1..].iter().for_each(|v| mean.add(*v));
    mean.value()
}

/// Population variance.
pub(super) fn variance(floats: &[f64]) -> f64 {
    floats.iter().fold(Variance::default(), |variance, v| variance.plus(*v)).value()
}

/// When the extreme value stood last, in seconds.
fn time_of(window: &Window<'_>, better: impl Fn(f64, f64) -> bool) -> f64 {
    let (mut extreme, mut at) = (window.floats[0], window.float_times[0]);
    for (time, value) in window.float_times.iter().zip(window.floats).skip(1) {
        if better(*value, extreme) {
            (extreme, at) = (*value, *time);
        }
    }
    at as f64 / 1000.0
}
