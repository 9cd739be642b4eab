//! Scalars: one float per step, worked out once before the vectors that need them.

use std::task::{Context, Poll, ready};

use super::binary::arithmetic::{apply_scalars, go_max, go_min};
use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::Bits;
use crate::ast::BinaryOp;
use crate::plan::Grid;

/// One float per step.
#[derive(Debug, Clone)]
pub(crate) enum Scalar {
    /// The same at every step.
    Const(f64),
    /// One per step.
    Steps(Vec<f64>),
}

impl Scalar {
    #[inline]
    pub(crate) fn at(&self, step: usize) -> f64 {
        match self {
            Self::Const(value) => *value,
            Self::Steps(values) => values[step],
        }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        match self {
            Self::Const(value) => Self::Const(f(value)),
            Self::Steps(values) => Self::Steps(values.into_iter().map(f).collect()),
        }
    }

    fn combine(self, other: Scalar, f: impl Fn(f64, f64) -> f64) -> Self {
        match (self, other) {
            (Self::Const(a), Self::Const(b)) => Self::Const(f(a, b)),
            (Self::Steps(a), Self::Const(b)) => Self::Steps(a.into_iter().map(|a| f(a, b)).collect()),
            (Self::Const(a), Self::Steps(b)) => Self::Steps(b.into_iter().map(|b| f(a, b)).collect()),
            (Self::Steps(a), Self::Steps(b)) => Self::Steps(a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect()),
        }
    }
}

/// A scalar expression and, once worked out, its value.
pub(crate) enum ScalarPlan {
    Known(Scalar),
    /// `time()`
    Time(Grid),
    Negate(Box<ScalarPlan>),
    Binary {
        op: BinaryOp,
        lhs: Box<ScalarPlan>,
        rhs: Box<ScalarPlan>,
    },
    /// `min_of`, `max_of`
    Extreme {
        max: bool,
        lhs: Box<ScalarPlan>,
        rhs: Box<ScalarPlan>,
    },
    /// `scalar(v)`
    OfVector(Box<OfVector>),
}

impl ScalarPlan {
    pub(crate) fn constant(value: f64) -> Self {
        Self::Known(Scalar::Const(value))
    }

    /// Works the value out; afterwards [`ScalarPlan::value`] has it.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<(), EvalError>> {
        let value = match self {
            Self::Known(_) => return Poll::Ready(Ok(())),
            Self::Time(grid) => {
                env.charge_scalars(grid.count)?;
                Scalar::Steps((0..grid.count).map(|i| grid.time(i) as f64 / 1000.0).collect())
            }
            Self::Negate(inner) => {
                ready!(inner.poll_ready(cx, env))?;
                inner.take().map(|v| -v)
            }
            Self::Binary { op, lhs, rhs } => {
                ready!(lhs.poll_ready(cx, env))?;
                ready!(rhs.poll_ready(cx, env))?;
                let op = *op;
                lhs.take().combine(rhs.take(), |a, b| apply_scalars(op, a, b))
            }
            Self::Extreme { max, lhs, rhs } => {
                ready!(lhs.poll_ready(cx, env))?;
                ready!(rhs.poll_ready(cx, env))?;
                lhs.take().combine(rhs.take(), if *max { go_max } else { go_min })
            }
            Self::OfVector(vector) => ready!(vector.poll_value(cx, env))?,
        };
        *self = Self::Known(value);
        Poll::Ready(Ok(()))
    }

    /// The value, which [`ScalarPlan::poll_ready`] has worked out.
    pub(crate) fn value(&self) -> &Scalar {
        match self {
            Self::Known(value) => value,
            _ => &Scalar::Const(f64::NAN),
        }
    }

    fn take(&mut self) -> Scalar {
        match std::mem::replace(self, Self::constant(f64::NAN)) {
            Self::Known(value) => value,
            _ => Scalar::Const(f64::NAN),
        }
    }
}

/// `scalar(v)`: the one float of each step, NaN where there is none or there are several.
pub(crate) struct OfVector {
    child: Box<dyn Operator>,
    steps: usize,
    /// Empty until the first poll.
    values: Vec<f64>,
    seen: Bits,
    several: Bits,
}

impl OfVector {
    pub(crate) fn new(child: Box<dyn Operator>, grid: Grid) -> Self {
        Self { child, steps: grid.count, values: Vec::new(), seen: Bits::default(), several: Bits::default() }
    }

    fn poll_value(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Scalar, EvalError>> {
        if self.values.is_empty() {
            env.charge_scalars(self.steps)?;
            self.values = vec![f64::NAN; self.steps];
            (self.seen, self.several) = (Bits::new(self.steps), Bits::new(self.steps));
        }
        while let Some(series) = ready!(self.child.poll_next(cx, env))? {
            for step in series.points.floats.ones() {
                if self.seen.get(step) {
                    self.several.set(step);
                } else {
                    self.seen.set(step);
                    self.values[step] = series.points.values[step];
                }
            }
            env.tick(self.values.len())?;
            env.recycle(series.points);
        }
        for step in self.several.ones() {
            self.values[step] = f64::NAN;
        }
        Poll::Ready(Ok(Scalar::Steps(std::mem::take(&mut self.values))))
    }
}
