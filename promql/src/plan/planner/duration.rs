//! Durations that depend on the query's range and step.

use crate::ast::{BinaryOp, Duration, DurationExpr, Expr, Span};
use crate::eval::binary::arithmetic::{go_max, go_min};
use crate::eval::{EvalError, EvalParams};

/// Longest duration in milliseconds, either way: 292 years, as far as Prometheus' nanoseconds reach.
const LONGEST: f64 = (i64::MAX / 1_000_000) as f64;

/// Refuses a query one of whose durations is not one for these parameters, before anything else can be wrong with it.
pub(super) fn check(query: &Expr, params: &EvalParams) -> Result<(), EvalError> {
    let mut left = vec![query];
    while let Some(expr) = left.pop() {
        let (offset, lengths) = match expr {
            Expr::Vector(e) => (&e.offset, [None, None]),
            Expr::Matrix(e) => (&e.selector.offset, [None, Some(&e.range)]),
            Expr::Subquery(e) => (&e.offset, [e.step.as_ref(), Some(&e.range)]),
            _ => (&None, [None, None]),
        };
        if let Some(offset) = offset {
            any(offset, params)?;
        }
        for length in lengths.into_iter().flatten() {
            positive(length, params)?;
        }
        left.extend(expr.children().rev());
    }
    Ok(())
}

/// Milliseconds of a range or a subquery's step, which must be positive.
pub(super) fn positive(duration: &Duration, params: &EvalParams) -> Result<i64, EvalError> {
    let ms = match duration {
        Duration::Literal(_) => any(duration, params)?,
        Duration::Expr(expr) => {
            let seconds = seconds(expr, params)?;
            if seconds <= 0.0 {
                return Err(refuse(expr, "duration must be greater than 0"));
            }
            milliseconds(seconds, expr)?
        }
    };
    // Less than a millisecond.
    if ms <= 0 {
        return Err(EvalError::BadData("duration must be greater than 0".to_owned()));
    }
    Ok(ms)
}

/// Milliseconds of an offset.
pub(super) fn any(duration: &Duration, params: &EvalParams) -> Result<i64, EvalError> {
    match duration {
        Duration::Literal(ms) => Ok((*ms).clamp(-(LONGEST as i64), LONGEST as i64)),
        Duration::Expr(expr) => milliseconds(seconds(expr, params)?, expr),
    }
}

fn milliseconds(seconds: f64, expr: &DurationExpr) -> Result<i64, EvalError> {
    if !seconds.is_finite() {
        return Err(refuse(expr, "duration is NaN or infinite"));
    }
    let ms = seconds * 1000.0;
    if ms.abs() > LONGEST {
        return Err(refuse(expr, "duration is out of range"));
    }
    Ok(ms as i64)
}

/// Prometheus names the place by its first and last byte, in `min_of` and parentheses those of what they hold.
fn refuse(expr: &DurationExpr, what: &str) -> EvalError {
    let span = match expr {
        DurationExpr::MinMax { lhs, rhs, .. } => Span { start: lhs.span().start, end: rhs.span().end },
        DurationExpr::Paren(inner, _) => return refuse(inner, what),
        expr => expr.span(),
    };
    EvalError::BadData(format!("{}:{}: {what}", span.start, span.end))
}

fn seconds(expr: &DurationExpr, params: &EvalParams) -> Result<f64, EvalError> {
    Ok(match expr {
        DurationExpr::Number { seconds, .. } => *seconds,
        DurationExpr::Step(_) => params.step_ms as f64 / 1000.0,
        DurationExpr::Range(_) => params.end_ms.saturating_sub(params.start_ms) as f64 / 1000.0,
        DurationExpr::Unary { negative: true, expr, .. } => -seconds(expr, params)?,
        DurationExpr::Unary { expr, .. } | DurationExpr::Paren(expr, _) => seconds(expr, params)?,
        DurationExpr::MinMax { max, lhs, rhs, .. } => {
            let (a, b) = (seconds(lhs, params)?, seconds(rhs, params)?);
            if *max { go_max(a, b) } else { go_min(a, b) }
        }
        DurationExpr::Binary { op, lhs, rhs, .. } => {
            let (a, b) = (seconds(lhs, params)?, seconds(rhs, params)?);
            match op {
                BinaryOp::Add => a + b,
                BinaryOp::Sub => a - b,
                BinaryOp::Mul => a * b,
                BinaryOp::Div if b == 0.0 => return Err(refuse(expr, "division by zero")),
                BinaryOp::Div => a / b,
                BinaryOp::Mod if b == 0.0 => return Err(refuse(expr, "modulo by zero")),
                BinaryOp::Mod => a % b,
                BinaryOp::Pow => a.powf(b),
                other => return Err(EvalError::Internal(format!("operator {other:?} in a duration"))),
            }
        }
    })
}
