//! Set operators: `and`, `or`, `unless`, decided step by step.

use std::task::{Context, Poll, ready};

use crate::ast::{BinaryOp, Span};
use crate::eval::context::Charge;
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::group_index::GroupIndex;
use crate::eval::operator::Operator;
use crate::eval::points::{Bits, Points, StepSeries};

/// What finding a series' match group costs, in units of [`Env::tick`].
const NOTE_WORK: usize = 16;

/// A set operator. Of the side that decides it keeps the steps of each match group, never a value.
pub(crate) struct SetOperator {
    lhs: Box<dyn Operator>,
    rhs: Box<dyn Operator>,
    op: BinaryOp,
    index: GroupIndex,
    /// The steps of each match group of the deciding side.
    present: Vec<Bits>,
    /// `and`, `unless`: the right side is read. `or`: the left side has passed.
    decided: bool,
    steps: usize,
    scratch: Bits,
    charge: Charge,
    span: Span,
}

impl SetOperator {
    pub(crate) fn new(
        (lhs, rhs): (Box<dyn Operator>, Box<dyn Operator>),
        op: BinaryOp,
        index: GroupIndex,
        steps: usize,
        charge: Charge,
        span: Span,
    ) -> Self {
        let scratch = Bits::default();
        Self { lhs, rhs, op, index, present: Vec::new(), decided: false, steps, scratch, charge, span }
    }

    fn note(&mut self, series: &StepSeries) -> Result<(), EvalError> {
        let id = self.index.insert(&series.labels);
        if id == self.present.len() {
            self.charge.grow(self.steps / 8 + 128 + self.index.key_bytes(id), self.span)?;
            self.present.push(Bits::new(self.steps));
        }
        series.points.presence(&mut self.scratch);
        self.present[id].unite(&self.scratch);
        Ok(())
    }

    fn filter(&mut self, series: &mut StepSeries) {
        let points = &mut series.points;
        match (self.index.get(&series.labels), self.op) {
            (Some(id), BinaryOp::And) => {
                keep(points, |bits| bits.intersect(&self.present[id]), |b| b, &self.present[id])
            }
            (None, BinaryOp::And) => {
                points.floats.reset(self.steps);
                points.drop_histograms();
            }
            (Some(id), _) => keep(points, |bits| bits.subtract(&self.present[id]), |b| !b, &self.present[id]),
            (None, _) => {}
        }
    }
}

fn keep(points: &mut Points, floats: impl Fn(&mut Bits), wanted: impl Fn(bool) -> bool, present: &Bits) {
    floats(&mut points.floats);
    if points.has_histograms() {
        points.retain_histograms(|step| wanted(present.get(step)));
    }
}

impl Operator for SetOperator {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        while !self.decided {
            if self.op == BinaryOp::Or {
                match ready!(self.lhs.poll_next(cx, env))? {
                    Some(series) => {
                        self.note(&series)?;
                        env.tick(NOTE_WORK)?;
                        return Poll::Ready(Ok(Some(series)));
                    }
                    None => self.decided = true,
                }
            } else {
                match ready!(self.rhs.poll_next(cx, env))? {
                    Some(series) => {
                        self.note(&series)?;
                        env.tick(NOTE_WORK)?;
                        env.recycle(series.points);
                    }
                    None => self.decided = true,
                }
            }
        }
        loop {
            let filtered = if self.op == BinaryOp::Or { &mut self.rhs } else { &mut self.lhs };
            let Some(mut series) = ready!(filtered.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
            self.filter(&mut series);
            env.tick(1)?;
            if series.points.is_empty() {
                env.recycle(series.points);
                continue;
            }
            return Poll::Ready(Ok(Some(series)));
        }
    }
}
