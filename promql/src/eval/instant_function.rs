//! Functions that turn each float into another: rounding, logarithms, trigonometry, clamping.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::binary::arithmetic::{go_max, go_min};
use super::env::Env;
use super::error::EvalError;
use super::go_math;
use super::histogram::scaled;
use super::operator::Operator;
use super::points::{StepSeries, histogram_work};
use super::scalar::ScalarPlan;

/// A function of each float; native histograms are dropped.
#[derive(Debug, Clone, Copy)]
pub(crate) enum FloatFunction {
    /// Of the value alone.
    Plain(fn(f64) -> f64),
    /// `clamp(v, min, max)`: nothing at steps where max < min.
    Clamp,
    /// `clamp_max(v, max)`
    ClampMax,
    /// `clamp_min(v, min)`
    ClampMin,
    /// `round(v, to_nearest)`
    Round,
}

impl FloatFunction {
    /// The function called `name`, if it is of this kind.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "abs" => Self::Plain(f64::abs),
            "ceil" => Self::Plain(f64::ceil),
            "floor" => Self::Plain(f64::floor),
            "exp" => Self::Plain(f64::exp),
            "sqrt" => Self::Plain(f64::sqrt),
            "ln" => Self::Plain(f64::ln),
            "log2" => Self::Plain(f64::log2),
            "log10" => Self::Plain(f64::log10),
            "sin" => Self::Plain(f64::sin),
            "cos" => Self::Plain(f64::cos),
            "tan" => Self::Plain(f64::tan),
            "asin" => Self::Plain(f64::asin),
            "acos" => Self::Plain(f64::acos),
            "atan" => Self::Plain(f64::atan),
            "sinh" => Self::Plain(go_math::sinh),
            "cosh" => Self::Plain(go_math::cosh),
            "tanh" => Self::Plain(f64::tanh),
            "asinh" => Self::Plain(asinh),
            "acosh" => Self::Plain(acosh),
            "atanh" => Self::Plain(atanh),
            "rad" => Self::Plain(|v| v * std::f64::consts::PI / 180.0),
            "deg" => Self::Plain(|v| v * 180.0 / std::f64::consts::PI),
            "sgn" => Self::Plain(|v| {
                if v < 0.0 {
                    -1.0
                } else if v > 0.0 {
                    1.0
                } else {
                    v
                }
            }),
            "clamp" => Self::Clamp,
            "clamp_max" => Self::ClampMax,
            "clamp_min" => Self::ClampMin,
            "round" => Self::Round,
            _ => return None,
        })
    }
}

/// From here on adding or subtracting one under a root makes no difference.
const LARGE: f64 = (1u64 << 28) as f64;

/// The inverse hyperbolic functions as FreeBSD's msun and Go have them: the standard library's overflow where these
/// do not.
fn acosh(x: f64) -> f64 {
    if x >= LARGE {
        x.ln() + std::f64::consts::LN_2
    } else if x > 2.0 {
        (2.0 * x - 1.0 / (x + (x * x - 1.0).sqrt())).ln()
    } else if x >= 1.0 {
        let t = x - 1.0;
        (t + (2.0 * t + t * t).sqrt()).ln_1p()
    } else {
        f64::NAN
    }
}

fn asinh(x: f64) -> f64 {
    if !x.is_finite() {
        return x;
    }
    let y = x.abs();
    let result = if y > LARGE {
        y.ln() + std::f64::consts::LN_2
    } else if y > 2.0 {
        (2.0 * y + 1.0 / ((y * y + 1.0).sqrt() + y)).ln()
    } else if y < 1.0 / LARGE {
        y
    } else {
        (y + y * y / (1.0 + (1.0 + y * y).sqrt())).ln_1p()
    };
    result.copysign(x)
}

fn atanh(x: f64) -> f64 {
    let y = x.abs();
    let result = if y < 1.0 / LARGE {
        y
    } else if y < 0.5 {
        let twice = y + y;
        0.5 * (twice + twice * y / (1.0 - y)).ln_1p()
    } else if y <= 1.0 {
        0.5 * ((y + y) / (1.0 - y)).ln_1p()
    } else {
        return f64::NAN;
    };
    result.copysign(x)
}

/// Applies a [`FloatFunction`].
pub(crate) struct MapFloats {
    pub(crate) child: Box<dyn Operator>,
    pub(crate) function: FloatFunction,
    pub(crate) scalars: Vec<ScalarPlan>,
}

impl Operator for MapFloats {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        for scalar in &mut self.scalars {
            ready!(scalar.poll_ready(cx, env))?;
        }
        loop {
            let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
            series.points.drop_histograms();
            self.apply(&mut series);
            env.tick(series.points.steps())?;
            if series.points.is_empty() {
                env.recycle(series.points);
                continue;
            }
            env.names.drop(&mut series);
            return Poll::Ready(Ok(Some(series)));
        }
    }
}

impl MapFloats {
    fn apply(&self, series: &mut StepSeries) {
        let points = &mut series.points;
        let scalar = |i: usize, step: usize| self.scalars.get(i).map_or(f64::NAN, |s| s.value().at(step));
        match self.function {
            FloatFunction::Plain(f) => {
                // Steps without a value cost a call as well, but few series have many of them.
                points.values.iter_mut().for_each(|v| *v = f(*v));
            }
            FloatFunction::ClampMax => {
                points.values.iter_mut().enumerate().for_each(|(step, v)| *v = go_min(scalar(0, step), *v));
            }
            FloatFunction::ClampMin => {
                points.values.iter_mut().enumerate().for_each(|(step, v)| *v = go_max(scalar(0, step), *v));
            }
            FloatFunction::Clamp => {
                for step in 0..points.steps() {
                    let (min, max) = (scalar(0, step), scalar(1, step));
                    if max < min {
                        points.floats.unset(step);
                    }
                    points.values[step] = go_max(min, go_min(max, points.values[step]));
                }
            }
            FloatFunction::Round => {
                for (step, v) in points.values.iter_mut().enumerate() {
                    // The inverse is multiplied with, as Prometheus does: it keeps 0.1 and its like exact.
                    let inverse = 1.0 / if self.scalars.is_empty() { 1.0 } else { scalar(0, step) };
                    *v = (*v * inverse + 0.5).floor() / inverse;
                }
            }
        }
    }
}

/// A change of sign: floats and histograms alike.
pub(crate) struct Negate {
    pub(crate) child: Box<dyn Operator>,
    pub(crate) span: crate::ast::Span,
}

impl Operator for Negate {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
        series.points.values.iter_mut().for_each(|v| *v = -*v);
        for (step, histogram) in series.points.take_histograms() {
            env.tick(histogram_work(&histogram))?;
            series.points.push_histogram(step as usize, Arc::new(scaled(&histogram, -1.0)), self.span)?;
        }
        env.tick(series.points.steps())?;
        env.names.drop(&mut series);
        Poll::Ready(Ok(Some(series)))
    }
}

/// `vector(s)`: one series without labels.
pub(crate) struct VectorOf {
    scalar: ScalarPlan,
    steps: usize,
    span: crate::ast::Span,
    done: bool,
}

impl VectorOf {
    pub(crate) fn new(scalar: ScalarPlan, steps: usize, span: crate::ast::Span) -> Self {
        Self { scalar, steps, span, done: false }
    }
}

impl Operator for VectorOf {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        if self.done {
            return Poll::Ready(Ok(None));
        }
        ready!(self.scalar.poll_ready(cx, env))?;
        self.done = true;
        let mut points = env.points(self.steps, self.span)?;
        points.floats.set_all(self.steps);
        points.values.iter_mut().enumerate().for_each(|(step, v)| *v = self.scalar.value().at(step));
        Poll::Ready(Ok(Some(StepSeries { labels: skald_model::Labels::empty(), drop_name: false, points })))
    }
}
