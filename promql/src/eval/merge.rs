//! Series with equal labels: joined where they never meet, refused where they do.

use std::task::{Context, Poll, ready};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use skald_model::Labels;

use super::context::Charge;
use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::{Bits, StepSeries};
use crate::ast::Span;

/// Joins series of equal labels whose steps do not meet; an error where they do. Keeps all series.
pub(crate) struct Merge {
    child: Box<dyn Operator>,
    merged: Merged,
    ended: bool,
    span: Span,
}

impl Merge {
    pub(crate) fn new(child: Box<dyn Operator>, span: Span) -> Self {
        Self { child, merged: Merged::default(), ended: false, span }
    }
}

impl Operator for Merge {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        while !self.ended {
            match ready!(self.child.poll_next(cx, env))? {
                Some(series) => self.merged.add(series, env, self.span)?,
                None => {
                    self.ended = true;
                    self.merged.series.reverse();
                }
            }
        }
        Poll::Ready(Ok(self.merged.series.pop()))
    }
}

/// Series by their labels, in the order they first came.
#[derive(Default)]
pub(crate) struct Merged {
    by_labels: HashMap<Labels, usize, foldhash::fast::RandomState>,
    series: Vec<StepSeries>,
}

impl Merged {
    pub(crate) fn add(&mut self, mut series: StepSeries, env: &mut Env<'_>, span: Span) -> Result<(), EvalError> {
        env.tick(1)?;
        match self.by_labels.entry(series.labels.clone()) {
            Entry::Vacant(entry) => {
                series.hold(span)?;
                entry.insert(self.series.len());
                self.series.push(series);
            }
            Entry::Occupied(entry) => {
                let first = &mut self.series[*entry.get()];
                if first.points.absorb(&series.points, span)?.is_err() {
                    return Err(EvalError::duplicate_labels());
                }
                first.hold(span)?;
                // The name goes only where every half agrees that it goes; halves come from one operator.
                first.drop_name &= series.drop_name;
                env.recycle(series.points);
            }
        }
        Ok(())
    }

    pub(crate) fn into_series(self) -> Vec<StepSeries> {
        self.series
    }
}

/// Lets series of equal labels pass as halves of one if their steps do not meet; an error where they do. Keeps only
/// which steps were seen.
pub(crate) struct Disjoint {
    child: Box<dyn Operator>,
    seen: HashMap<Labels, Bits, foldhash::fast::RandomState>,
    charge: Charge,
    span: Span,
}

impl Disjoint {
    pub(crate) fn new(child: Box<dyn Operator>, charge: Charge, span: Span) -> Self {
        Self { child, seen: HashMap::default(), charge, span }
    }
}

impl Operator for Disjoint {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let Some(series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
        let mut steps = Bits::default();
        series.points.presence(&mut steps);
        match self.seen.entry(series.labels.clone()) {
            Entry::Vacant(entry) => {
                self.charge.grow(112 + series.labels.as_bytes().len() + steps.words().len() * 8, self.span)?;
                entry.insert(steps);
            }
            Entry::Occupied(mut entry) => {
                if entry.get().intersects(&steps) {
                    return Poll::Ready(Err(EvalError::duplicate_labels()));
                }
                entry.get_mut().unite(&steps);
            }
        }
        env.tick(1)?;
        Poll::Ready(Ok(Some(series)))
    }
}

/// Refuses two series of equal labels even if they never meet, as Prometheus does after a function of range vectors.
pub(crate) struct Unique {
    child: Box<dyn Operator>,
    seen: hashbrown::HashSet<Labels, foldhash::fast::RandomState>,
    charge: Option<Charge>,
}

impl Unique {
    pub(crate) fn new(child: Box<dyn Operator>) -> Self {
        Self { child, seen: hashbrown::HashSet::default(), charge: None }
    }
}

impl Operator for Unique {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let next = ready!(self.child.poll_next(cx, env))?;
        if let Some(series) = &next {
            let charge = self.charge.get_or_insert_with(|| env.charge());
            charge.grow(48 + series.labels.as_bytes().len(), Span::default())?;
            if !self.seen.insert(series.labels.clone()) {
                return Poll::Ready(Err(EvalError::duplicate_labels()));
            }
        }
        Poll::Ready(Ok(next))
    }
}

/// Copies the one step of step-invariant series to every step.
pub(crate) struct Repeat {
    child: Box<dyn Operator>,
    steps: usize,
    span: Span,
}

impl Repeat {
    pub(crate) fn new(child: Box<dyn Operator>, steps: usize, span: Span) -> Self {
        Self { child, steps, span }
    }
}

impl Operator for Repeat {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
        let mut points = env.points(self.steps, self.span)?;
        if series.points.floats.get(0) {
            points.values.fill(series.points.values[0]);
            points.floats.set_all(self.steps);
        } else if let Some((_, histogram)) = series.points.take_histograms().pop() {
            for step in 0..self.steps {
                points.push_histogram(step, histogram.clone(), self.span)?;
            }
        }
        env.tick(self.steps)?;
        env.recycle(std::mem::replace(&mut series.points, points));
        Poll::Ready(Ok(Some(series)))
    }
}
