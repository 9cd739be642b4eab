//! Durations that depend on the query's range and step.

use crate::ast::{BinaryOp, Duration, DurationExpr};
use crate::eval::{EvalError, EvalParams};

/// Longest duration in milliseconds, either way: 292 years, as far as Prometheus' nanoseconds reach.
const LONGEST: f64 = (i64::MAX / 1_000_000) as f64;

/// Milliseconds of a range or a subquery's step, which must be positive.
pub(super) fn positive(duration: &Duration, params: &EvalParams) -> Result<i64, EvalError> {
    let ms = any(duration, params)?;
    if ms <= 0 {
        return Err(EvalError::BadData("duration must be greater than 0".to_owned()));
    }
    Ok(ms)
}

/// Milliseconds of an offset.
pub(super) fn any(duration: &Duration, params: &EvalParams) -> Result<i64, EvalError> {
    match duration {
        Duration::Literal(ms) => Ok((*ms).clamp(-(LONGEST as i64), LONGEST as i64)),
        Duration::Expr(expr) => {
            let ms = seconds(expr, params)? * 1000.0;
            if ms.is_nan() || ms.abs() > LONGEST {
                return Err(EvalError::BadData("duration out of range".to_owned()));
            }
            Ok(ms as i64)
        }
    }
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
            if *max { a.max(b) } else { a.min(b) }
        }
        DurationExpr::Binary { op, lhs, rhs, .. } => {
            let (a, b) = (seconds(lhs, params)?, seconds(rhs, params)?);
            match op {
                BinaryOp::Add => a + b,
                BinaryOp::Sub => a - b,
                BinaryOp::Mul => a * b,
                BinaryOp::Div if b == 0.0 => return Err(EvalError::BadData("division by zero".to_owned())),
                BinaryOp::Div => a / b,
                BinaryOp::Mod if b == 0.0 => return Err(EvalError::BadData("modulo by zero".to_owned())),
                BinaryOp::Mod => a % b,
                BinaryOp::Pow => a.powf(b),
                other => return Err(EvalError::Internal(format!("operator {other:?} in a duration"))),
            }
        }
    })
}
