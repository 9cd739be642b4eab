//! Plans scalars and strings.

use super::{Planner, without_parens};
use crate::ast::{Expr, StringLiteral};
use crate::eval::error::EvalError;
use crate::eval::grid::Grid;
use crate::eval::scalar::{OfVector, ScalarPlan};

impl Planner<'_, '_, '_> {
    /// Plans an expression that yields a scalar.
    pub(crate) fn scalar(&mut self, expr: &Expr, grid: Grid) -> Result<ScalarPlan, EvalError> {
        Ok(match expr {
            Expr::Number(number) => ScalarPlan::constant(number.value),
            Expr::Paren(paren) => self.scalar(&paren.expr, grid)?,
            Expr::Unary(unary) => {
                let inner = self.scalar(&unary.expr, grid)?;
                if unary.negative { ScalarPlan::Negate(Box::new(inner)) } else { inner }
            }
            Expr::Binary(binary) => ScalarPlan::Binary {
                op: binary.op,
                lhs: Box::new(self.scalar(&binary.lhs, grid)?),
                rhs: Box::new(self.scalar(&binary.rhs, grid)?),
            },
            Expr::Call(call) => match (call.function.name, &call.args[..]) {
                ("time", []) => ScalarPlan::Time(grid),
                ("pi", []) => ScalarPlan::constant(std::f64::consts::PI),
                ("start", []) => ScalarPlan::constant(self.params.start_ms as f64 / 1000.0),
                ("end", []) => ScalarPlan::constant(self.params.end_ms as f64 / 1000.0),
                ("step", []) => ScalarPlan::constant(self.params.step_ms as f64 / 1000.0),
                ("range", []) => {
                    ScalarPlan::constant(self.params.end_ms.saturating_sub(self.params.start_ms) as f64 / 1000.0)
                }
                (name @ ("min_of" | "max_of"), [lhs, rhs]) => ScalarPlan::Extreme {
                    max: name == "max_of",
                    lhs: Box::new(self.scalar(lhs, grid)?),
                    rhs: Box::new(self.scalar(rhs, grid)?),
                },
                ("scalar", [vector]) => {
                    let child = self.vector(vector, grid, "scalar")?.operator;
                    ScalarPlan::OfVector(Box::new(OfVector::new(child, grid)))
                }
                (name, _) => return Err(EvalError::unsupported(format!("function {name:?}"))),
            },
            _ => return Err(EvalError::Internal("the expression is not a scalar".to_owned())),
        })
    }

    /// The text of an expression that yields a string.
    pub(crate) fn string(&mut self, expr: &Expr) -> Result<String, EvalError> {
        literal(expr).map(|literal| literal.value.clone())
    }
}

/// The string an expression is.
pub(super) fn literal(expr: &Expr) -> Result<&StringLiteral, EvalError> {
    match without_parens(expr) {
        Expr::String(literal) => Ok(literal),
        _ => Err(EvalError::Internal("the expression is not a string".to_owned())),
    }
}
