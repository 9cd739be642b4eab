//! A vector and a scalar.

use std::task::{Context, Poll, ready};

use super::arithmetic::{
    Operation, arithmetic, compare, is_comparison, is_trim, keeps_name, symbol, warn_incompatible,
};
use crate::ast::{BinaryOp, Span};
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::operator::Operator;
use crate::eval::points::{Point, Points, StepSeries};
use crate::eval::scalar::{Scalar, ScalarPlan};

/// A vector and a scalar, either of them left.
pub(crate) struct VectorScalar {
    pub(crate) child: Box<dyn Operator>,
    pub(crate) scalar: ScalarPlan,
    pub(crate) operation: Operation,
    pub(crate) scalar_left: bool,
    pub(crate) span: Span,
}

impl Operator for VectorScalar {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.scalar.poll_ready(cx, env))?;
        loop {
            let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
            if is_trim(self.operation.op) && !series.points.floats.is_empty() {
                warn_incompatible(env, self.span, symbol(self.operation.op), "float", "float");
                series.points.floats.reset(series.points.steps());
            }
            self.apply_floats(&mut series.points);
            if series.points.has_histograms() {
                self.apply_histograms(&mut series.points, env)?;
            }
            env.tick(series.points.steps())?;
            if series.points.is_empty() {
                env.recycle(series.points);
                continue;
            }
            if !keeps_name(self.operation.op) || self.operation.return_bool {
                env.names.drop(&mut series);
            }
            return Poll::Ready(Ok(Some(series)));
        }
    }
}

impl VectorScalar {
    fn apply_floats(&self, points: &mut Points) {
        let scalar = self.scalar.value();
        // One loop per operator and side, so that each is free of branches.
        macro_rules! each {
            ($f:expr) => {
                match (scalar, self.scalar_left) {
                    (Scalar::Const(s), false) => points.values.iter_mut().for_each(|v| *v = $f(*v, *s)),
                    (Scalar::Const(s), true) => points.values.iter_mut().for_each(|v| *v = $f(*s, *v)),
                    (Scalar::Steps(s), false) => points.values.iter_mut().zip(s).for_each(|(v, s)| *v = $f(*v, *s)),
                    (Scalar::Steps(s), true) => points.values.iter_mut().zip(s).for_each(|(v, s)| *v = $f(*s, *v)),
                }
            };
        }
        let op = self.operation.op;
        match op {
            BinaryOp::Add => each!(|a: f64, b: f64| a + b),
            BinaryOp::Sub => each!(|a: f64, b: f64| a - b),
            BinaryOp::Mul => each!(|a: f64, b: f64| a * b),
            BinaryOp::Div => each!(|a: f64, b: f64| a / b),
            _ if !is_comparison(op) => each!(|a: f64, b: f64| arithmetic(op, a, b)),
            _ if self.operation.return_bool => each!(|a: f64, b: f64| f64::from(u8::from(compare(op, a, b)))),
            _ => {
                for step in 0..points.steps() {
                    let (vector, scalar) = (points.values[step], scalar.at(step));
                    let (a, b) = if self.scalar_left { (scalar, vector) } else { (vector, scalar) };
                    if !compare(op, a, b) {
                        points.floats.unset(step);
                    }
                }
            }
        }
    }

    fn apply_histograms(&self, points: &mut Points, env: &mut Env<'_>) -> Result<(), EvalError> {
        let comparison = is_comparison(self.operation.op);
        for (step, histogram) in points.take_histograms() {
            let step = step as usize;
            let vector = Point::Histogram(histogram);
            let scalar = Point::Float(self.scalar.value().at(step));
            let (lhs, rhs) = if self.scalar_left { (&scalar, &vector) } else { (&vector, &scalar) };
            let result = self.operation.apply_points(lhs, rhs, self.span, env)?;
            let Some(result) = result else { continue };
            // A filter keeps the vector's value, on whichever side it stands.
            let kept = if comparison && !self.operation.return_bool { vector } else { result };
            points.push(step, kept, self.span)?;
        }
        Ok(())
    }
}
