//! Plans scalars and strings.

use super::Planner;
use crate::ast::{Expr, ValueType};
use crate::eval::EvalError;
use crate::plan::{Grid, NodeId, Op};

impl Planner<'_> {
    /// Plans an expression that yields a scalar.
    pub(super) fn scalar(&mut self, expr: &Expr, grid: Grid) -> Result<NodeId, EvalError> {
        self.depth += 1;
        if self.depth > super::MAX_DEPTH {
            return Err(EvalError::BadData("the query is nested too deeply".to_owned()));
        }
        let id = self.scalar_inside(expr, grid)?;
        self.depth -= 1;
        Ok(id)
    }

    fn scalar_inside(&mut self, expr: &Expr, grid: Grid) -> Result<NodeId, EvalError> {
        let span = expr.span();
        let params = self.params;
        let seconds = |ms: i64| Op::Number(ms as f64 / 1000.0);
        let (op, inputs) = match expr {
            Expr::Number(number) => (Op::Number(number.value), vec![]),
            Expr::Paren(paren) => return self.scalar(&paren.expr, grid),
            Expr::Unary(unary) if !unary.negative => return self.scalar(&unary.expr, grid),
            Expr::Unary(unary) => (Op::Negate, vec![(self.scalar(&unary.expr, grid)?, unary.expr.span())]),
            Expr::Binary(binary) => {
                let op = binary.op;
                let op = Op::Binary { op, return_bool: binary.return_bool, matching: None, many_unique: false };
                let lhs = (self.scalar(&binary.lhs, grid)?, binary.lhs.span());
                let rhs = (self.scalar(&binary.rhs, grid)?, binary.rhs.span());
                (op, vec![lhs, rhs])
            }
            Expr::Call(call) => match (call.function.name, &call.args[..]) {
                ("time", []) => (Op::Time, vec![]),
                ("pi", []) => (Op::Number(std::f64::consts::PI), vec![]),
                ("start", []) => (seconds(params.start_ms), vec![]),
                ("end", []) => (seconds(params.end_ms), vec![]),
                ("step", []) => (seconds(params.step_ms), vec![]),
                ("range", []) => (seconds(params.end_ms.saturating_sub(params.start_ms)), vec![]),
                ("min_of" | "max_of", [lhs, rhs]) => {
                    let sides = [(self.scalar(lhs, grid)?, lhs.span()), (self.scalar(rhs, grid)?, rhs.span())];
                    (Op::Call(call.function), sides.to_vec())
                }
                ("scalar", [vector]) => {
                    let keeps_all = std::mem::replace(&mut self.keeps_all, false);
                    let child = self.vector(vector, grid, "scalar")?;
                    self.keeps_all = keeps_all;
                    (Op::Call(call.function), vec![(child.id, vector.span())])
                }
                (name, _) => return Err(EvalError::unsupported(format!("function {name:?}"))),
            },
            _ => return Err(EvalError::Internal("the expression is not a scalar".to_owned())),
        };
        Ok(self.push(op, &inputs, grid, ValueType::Scalar, span))
    }

    /// Plans an expression that yields a string.
    pub(super) fn string(&mut self, expr: &Expr, grid: Grid) -> Result<NodeId, EvalError> {
        match expr {
            Expr::String(literal) => {
                Ok(self.push(Op::Text(literal.value.clone()), &[], grid, ValueType::String, literal.span))
            }
            Expr::Paren(paren) => self.string(&paren.expr, grid),
            _ => Err(EvalError::Internal("the expression is not a string".to_owned())),
        }
    }
}
