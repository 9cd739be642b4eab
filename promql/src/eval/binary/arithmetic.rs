//! Operators on two values.

use super::vector_vector::Side;
use crate::eval::histogram::bucket::is_custom;
use crate::eval::histogram::reset::equal;
use crate::eval::histogram::sum::HistogramSum;
use crate::eval::histogram::trim::trim;
use crate::eval::histogram::{
    Combination, divided, info_reconciled, scaled, warn_collision, warn_incompatible_schemas,
};
use std::sync::Arc;

use skald_model::{FloatHistogram, Labels, ResetHint};

use crate::ast::{BinaryOp, Span};
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::points::{Bits, Point, Points, histogram_work};

/// Whether the operator compares.
pub(crate) fn is_comparison(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge)
}

/// Whether the operator cuts off a part of a histogram.
pub(crate) fn is_trim(op: BinaryOp) -> bool {
    matches!(op, BinaryOp::TrimUpper | BinaryOp::TrimLower)
}

/// Whether the result keeps the metric name: it is a part of the left side, not a new value.
pub(crate) fn keeps_name(op: BinaryOp) -> bool {
    is_comparison(op) || is_trim(op)
}

/// As PromQL writes it.
pub(crate) fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "^",
        BinaryOp::Atan2 => "atan2",
        BinaryOp::Eq => "==",
        BinaryOp::Ne => "!=",
        BinaryOp::Lt => "<",
        BinaryOp::Le => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::Ge => ">=",
        BinaryOp::And => "and",
        BinaryOp::Or => "or",
        BinaryOp::Unless => "unless",
        BinaryOp::TrimUpper => "</",
        BinaryOp::TrimLower => ">/",
    }
}

/// An arithmetic operator on two floats; NaN for the others.
#[inline(always)]
pub(crate) fn arithmetic(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Mod => a % b,
        BinaryOp::Pow => go_pow(a, b),
        BinaryOp::Atan2 => a.atan2(b),
        _ => f64::NAN,
    }
}

/// A comparison of two floats; false for the others.
#[inline(always)]
pub(crate) fn compare(op: BinaryOp, a: f64, b: f64) -> bool {
    match op {
        BinaryOp::Eq => a == b,
        BinaryOp::Ne => a != b,
        BinaryOp::Lt => a < b,
        BinaryOp::Le => a <= b,
        BinaryOp::Gt => a > b,
        BinaryOp::Ge => a >= b,
        _ => false,
    }
}

/// An operator on two scalars: comparisons yield 0 or 1.
pub(crate) fn apply_scalars(op: BinaryOp, a: f64, b: f64) -> f64 {
    if is_comparison(op) { f64::from(u8::from(compare(op, a, b))) } else { arithmetic(op, a, b) }
}

/// Power as Go has it: it agrees with IEEE 754 `pow` except in the last bits.
fn go_pow(a: f64, b: f64) -> f64 {
    a.powf(b)
}

/// The larger of two, NaN if either is NaN (Go's `math.Max`).
pub(crate) fn go_max(a: f64, b: f64) -> f64 {
    if a == f64::INFINITY || b == f64::INFINITY {
        f64::INFINITY
    } else if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a == 0.0 && a == b {
        if a.is_sign_negative() { b } else { a }
    } else if a > b {
        a
    } else {
        b
    }
}

/// The smaller of two, NaN if either is NaN (Go's `math.Min`).
pub(crate) fn go_min(a: f64, b: f64) -> f64 {
    -go_max(-a, -b)
}

/// An operator as it is applied to two values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) op: BinaryOp,
    /// A comparison yields 0 or 1 instead of filtering.
    pub(crate) return_bool: bool,
}

impl Operation {
    /// Applies the operator at the steps of `met`, where both sides have a value.
    pub(crate) fn apply(
        self,
        lhs: &Side<'_>,
        rhs: &Side<'_>,
        met: &Bits,
        out: &mut Points,
        span: Span,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        if lhs.has_histograms() || rhs.has_histograms() || is_trim(self.op) {
            return self.apply_mixed(lhs, rhs, met, out, span, env);
        }
        out.floats.unite(met);
        let values = &mut out.values[..];
        // One loop per operator and kind of operands, so that each is free of branches; values of steps without both
        // sides are computed as well, and never read.
        macro_rules! each {
            ($f:expr) => {
                match (lhs, rhs) {
                    (Side::Of(a), Side::Of(b)) => {
                        values.iter_mut().zip(&a.values).zip(&b.values).for_each(|((v, a), b)| *v = $f(*a, *b));
                    }
                    (Side::Of(a), Side::Constant(b, _)) => {
                        values.iter_mut().zip(&a.values).for_each(|(v, a)| *v = $f(*a, *b));
                    }
                    (Side::Constant(a, _), Side::Of(b)) => {
                        values.iter_mut().zip(&b.values).for_each(|(v, b)| *v = $f(*a, *b));
                    }
                    (Side::Constant(a, _), Side::Constant(b, _)) => values.fill($f(*a, *b)),
                }
            };
        }
        let op = self.op;
        match op {
            BinaryOp::Add => each!(|a: f64, b: f64| a + b),
            BinaryOp::Sub => each!(|a: f64, b: f64| a - b),
            BinaryOp::Mul => each!(|a: f64, b: f64| a * b),
            BinaryOp::Div => each!(|a: f64, b: f64| a / b),
            _ if !is_comparison(op) => each!(|a: f64, b: f64| arithmetic(op, a, b)),
            _ if self.return_bool => each!(|a: f64, b: f64| f64::from(u8::from(compare(op, a, b)))),
            _ => {
                // A filter keeps the left value.
                for step in met.ones() {
                    let (a, b) = (lhs.float(step), rhs.float(step));
                    out.values[step] = a;
                    if !compare(op, a, b) {
                        out.floats.unset(step);
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes from `met` the steps whose values the operator has no meaning for: such a pair counts as not met.
    pub(crate) fn retain_fitting(self, lhs: &Side<'_>, rhs: &Side<'_>, met: &mut Bits) {
        if !(lhs.has_histograms() || rhs.has_histograms() || is_trim(self.op)) {
            return;
        }
        for step in met.ones().collect::<Vec<_>>() {
            let pair = lhs.get(step).zip(rhs.get(step));
            if !pair.is_some_and(|(a, b)| self.fits(&a, &b)) {
                met.unset(step);
            }
        }
    }

    fn fits(self, lhs: &Point, rhs: &Point) -> bool {
        use BinaryOp::{Add, Div, Eq, Mul, Ne, Sub};
        match (lhs, rhs) {
            (Point::Float(_), Point::Float(_)) => !is_trim(self.op),
            (Point::Float(_), Point::Histogram(_)) => self.op == Mul,
            (Point::Histogram(_), Point::Float(_)) => matches!(self.op, Mul | Div) || is_trim(self.op),
            (Point::Histogram(a), Point::Histogram(b)) => match self.op {
                Add | Sub => is_custom(a) == is_custom(b),
                op => matches!(op, Eq | Ne),
            },
        }
    }

    fn apply_mixed(
        self,
        lhs: &Side<'_>,
        rhs: &Side<'_>,
        met: &Bits,
        out: &mut Points,
        span: Span,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        for step in met.ones() {
            if let (Some(a), Some(b)) = (lhs.get(step), rhs.get(step))
                && let Some(point) = self.apply_points(&a, &b, span, env)?
            {
                out.push(step, point, span)?;
            }
        }
        Ok(())
    }

    /// Applies the operator to two values of any kind; nothing where a filter removes them or they do not fit.
    pub(crate) fn apply_points(
        self,
        lhs: &Point,
        rhs: &Point,
        span: Span,
        env: &mut Env<'_>,
    ) -> Result<Option<Point>, EvalError> {
        for side in [lhs, rhs] {
            if let Point::Histogram(histogram) = side {
                env.tick(histogram_work(histogram))?;
            }
        }
        let op = self.op;
        if let (Point::Float(a), Point::Float(b)) = (lhs, rhs)
            && !is_trim(op)
        {
            if !is_comparison(op) {
                return Ok(Some(Point::Float(arithmetic(op, *a, *b))));
            }
            let holds = compare(op, *a, *b);
            if self.return_bool {
                return Ok(Some(Point::Float(f64::from(u8::from(holds)))));
            }
            return Ok(holds.then_some(Point::Float(*a)));
        }
        Ok(self.apply_histograms(lhs, rhs, span, env))
    }

    fn apply_histograms(self, lhs: &Point, rhs: &Point, span: Span, env: &mut Env<'_>) -> Option<Point> {
        use Point::{Float, Histogram};
        let result = match (self.op, lhs, rhs) {
            (BinaryOp::Mul, Histogram(h), Float(f)) | (BinaryOp::Mul, Float(f), Histogram(h)) => scaled(h, *f),
            (BinaryOp::Div, Histogram(h), Float(f)) => divided(h, *f),
            (BinaryOp::TrimUpper, Histogram(h), Float(f)) => trim(h, *f, true),
            (BinaryOp::TrimLower, Histogram(h), Float(f)) => trim(h, *f, false),
            (BinaryOp::Add, Histogram(a), Histogram(b)) => combined(a, b, Combination::Addition, span, env)?,
            (BinaryOp::Sub, Histogram(a), Histogram(b)) => {
                let difference = combined(a, b, Combination::Subtraction, span, env)?;
                FloatHistogram { reset_hint: ResetHint::Gauge, ..difference }
            }
            (BinaryOp::Eq | BinaryOp::Ne, Histogram(a), Histogram(b)) => {
                let holds = equal(a, b) == (self.op == BinaryOp::Eq);
                if self.return_bool {
                    return Some(Float(f64::from(u8::from(holds))));
                }
                return holds.then(|| Histogram(Arc::clone(a)));
            }
            _ => {
                warn_incompatible(env, span, symbol(self.op), lhs.kind(), rhs.kind());
                return None;
            }
        };
        Some(Histogram(Arc::new(result)))
    }
}

fn combined(
    a: &FloatHistogram,
    b: &FloatHistogram,
    combination: Combination,
    span: Span,
    env: &mut Env<'_>,
) -> Option<FloatHistogram> {
    let mut sum = HistogramSum::plain(a);
    let factor = if combination == Combination::Subtraction { -1.0 } else { 1.0 };
    if sum.add(b, factor).is_err() {
        warn_incompatible_schemas(&Labels::empty(), span, env);
        return None;
    }
    if sum.has_collision() {
        warn_collision(combination, span, env);
    }
    if sum.is_reconciled() {
        info_reconciled(combination, span, env);
    }
    Some(sum.finish())
}

/// Says that an operator met a pair of values it has no meaning for; the pair yields nothing.
pub(crate) fn warn_incompatible(env: &mut Env<'_>, span: Span, symbol: &str, lhs: &str, rhs: &str) {
    let text = format!("incompatible sample types encountered for binary operator {symbol:?}: {lhs} {symbol} {rhs}");
    env.annotations.info(span, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_follow_go() {
        assert!(go_max(f64::NAN, 3.0).is_nan() && go_min(3.0, f64::NAN).is_nan());
        assert_eq!(go_max(f64::NAN, f64::INFINITY), f64::INFINITY);
        assert_eq!(go_min(f64::NAN, f64::NEG_INFINITY), f64::NEG_INFINITY);
        assert!(go_max(-0.0, 0.0).is_sign_positive() && go_min(0.0, -0.0).is_sign_negative());
        assert_eq!((go_max(1.0, 2.0), go_min(1.0, 2.0)), (2.0, 1.0));
    }

    #[test]
    fn modulo_takes_the_sign_of_the_dividend() {
        assert_eq!(arithmetic(BinaryOp::Mod, -5.0, 3.0), -2.0);
        assert!(arithmetic(BinaryOp::Mod, 5.0, 0.0).is_nan());
    }
}
