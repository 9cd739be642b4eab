//! Aggregations with a running value per group and step: O(groups × steps) memory, whatever the number of series.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use skald_model::{FloatHistogram, Labels};

use super::partial::PartialGroup;
use crate::ast::{AggregateOp, Span};
use crate::eval::context::Charge;
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::group_index::{GroupIndex, LabelSubset};
use crate::eval::histogram::{Total, warn_incompatible_schemas};
use crate::eval::kahan::{KahanMean, KahanSum};
use crate::eval::operator::Operator;
use crate::eval::points::{Bits, Points, StepSeries};

/// `sum`, `avg`, `min`, `max`, `count`, `group`, `stddev`, `stdvar`.
pub(crate) struct Fold {
    /// `None`: groups come as [`PartialGroup`]s.
    child: Option<Box<dyn Operator>>,
    op: AggregateOp,
    index: GroupIndex,
    groups: Vec<Group>,
    steps: usize,
    span: Span,
    /// Next group to yield, once the child has ended.
    next: Option<usize>,
}

/// One group's running values.
pub(super) struct Group {
    pub(super) drop_name: bool,
    /// The steps where the group has a float.
    pub(super) floats: Bits,
    /// sum: sum · avg: sum, or mean once `incremental` · min, max: extreme · count: count · stddev, stdvar: mean
    pub(super) first: Vec<f64>,
    /// sum, avg: compensation · stddev, stdvar: sum of squares
    pub(super) second: Vec<f64>,
    /// avg, stddev, stdvar: number of values
    pub(super) count: Vec<f64>,
    /// avg: the steps whose sum would have become infinite
    pub(super) incremental: Bits,
    /// sum, avg: totals of the steps that have histograms; empty until the first one comes.
    pub(super) histograms: Vec<Slot>,
    pub(super) charge: Charge,
}

/// What a group has of histograms at a step.
#[derive(Debug, Default)]
pub(super) enum Slot {
    #[default]
    Empty,
    Total(Box<Total>),
    /// Exponential and custom buckets met.
    Incompatible,
}

impl Fold {
    pub(crate) fn new(
        child: Option<Box<dyn Operator>>,
        op: AggregateOp,
        subset: LabelSubset,
        steps: usize,
        span: Span,
    ) -> Self {
        Self { child, op, index: GroupIndex::new(subset), groups: Vec::new(), steps, span, next: None }
    }

    fn new_group(&self, env: &Env<'_>) -> Result<Group, EvalError> {
        let steps = self.steps;
        let (first, second, count) = match self.op {
            AggregateOp::Sum => (-0.0, true, false),
            AggregateOp::Avg => (0.0, true, true),
            AggregateOp::Stddev | AggregateOp::Stdvar => (0.0, true, true),
            // NaN gives way to any first value.
            AggregateOp::Min | AggregateOp::Max => (f64::NAN, false, false),
            _ => (0.0, false, false),
        };
        let columns = 1 + usize::from(second) + usize::from(count);
        let mut charge = env.charge();
        charge.grow(steps.saturating_mul(8 * columns).saturating_add(steps / 4 + 256), self.span)?;
        charge.hold_samples(steps)?;
        Ok(Group {
            drop_name: false,
            floats: Bits::new(steps),
            first: vec![first; steps],
            second: if second { vec![0.0; steps] } else { Vec::new() },
            count: if count { vec![0.0; steps] } else { Vec::new() },
            incremental: if self.op == AggregateOp::Avg { Bits::new(steps) } else { Bits::default() },
            histograms: Vec::new(),
            charge,
        })
    }
}

impl Fold {
    /// Folds all series into their groups.
    fn poll_groups(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<(), EvalError>> {
        while self.next.is_none() {
            let Some(child) = &mut self.child else { break };
            let Some(series) = ready!(child.poll_next(cx, env))? else { break };
            let id = self.group(&series.labels, env)?;
            let group = &mut self.groups[id];
            group.drop_name |= series.drop_name && self.index.subset().has_name();
            group.add_floats(self.op, &series.points);
            if series.points.has_histograms() {
                group.add_histograms(self.op, series.points.histograms(), self.span, env)?;
            }
            env.tick(self.steps)?;
            env.recycle(series.points);
        }
        self.next = self.next.or(Some(0));
        Poll::Ready(Ok(()))
    }

    /// The number of the group of a series.
    fn group(&mut self, labels: &Labels, env: &mut Env<'_>) -> Result<usize, EvalError> {
        let id = self.index.insert(labels);
        if id == self.groups.len() {
            let mut group = self.new_group(env)?;
            group.charge.grow(2 * size_of::<Group>() + self.index.key_bytes(id), self.span)?;
            self.groups.push(group);
        }
        Ok(id)
    }

    /// Folds all series into their groups, which are then taken out unfinished.
    pub(crate) fn poll_partial(
        &mut self,
        cx: &mut Context<'_>,
        env: &mut Env<'_>,
    ) -> Poll<Result<Vec<PartialGroup>, EvalError>> {
        ready!(self.poll_groups(cx, env))?;
        let groups = std::mem::take(&mut self.groups);
        let index = &self.index;
        let partial = |(id, group): (usize, Group)| group.into_partial(index.labels(id));
        Poll::Ready(Ok(groups.into_iter().enumerate().map(partial).collect()))
    }

    /// Takes in a group of a shard.
    pub(crate) fn add_partial(&mut self, partial: PartialGroup, env: &mut Env<'_>) -> Result<(), EvalError> {
        let id = self.group(&partial.labels, env)?;
        env.tick(4 * self.steps)?;
        self.groups[id].absorb(self.op, partial, self.span, env)
    }
}

impl Operator for Fold {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.poll_groups(cx, env))?;
        loop {
            let Some(id) = self.next.filter(|id| *id < self.groups.len()) else { return Poll::Ready(Ok(None)) };
            self.next = Some(id + 1);
            let mut points = env.points(self.steps, self.span)?;
            let labels = self.index.labels(id);
            let group = &mut self.groups[id];
            group.finish(self.op, &mut points, self.span, env)?;
            let drop_name = group.drop_name;
            group.release();
            env.tick(self.steps)?;
            if points.is_empty() {
                env.recycle(points);
                continue;
            }
            return Poll::Ready(Ok(Some(StepSeries { labels, drop_name, points })));
        }
    }
}

/// Says that an aggregation of floats met a histogram.
pub(super) fn info_ignored(op: AggregateOp, span: Span, env: &mut Env<'_>) {
    env.annotations.info(span, format!("ignored histogram in {} aggregation", super::name(op)));
}

/// Calls `f` for every step of `bits`; runs of 64 steps without a gap become plain loops.
#[inline(always)]
fn each(bits: &Bits, mut f: impl FnMut(usize)) {
    for (w, &word) in bits.words().iter().enumerate() {
        if word == u64::MAX {
            (w * 64..w * 64 + 64).for_each(&mut f);
        } else {
            let mut rest = word;
            while rest != 0 {
                f(w * 64 + rest.trailing_zeros() as usize);
                rest &= rest - 1;
            }
        }
    }
}

impl Group {
    fn add_floats(&mut self, op: AggregateOp, points: &Points) {
        let values = &points.values[..];
        let Self { first, second, count, incremental, floats, .. } = self;
        let first = &mut first[..values.len()];
        match op {
            AggregateOp::Sum => {
                let second = &mut second[..values.len()];
                each(&points.floats, |i| {
                    let sum = KahanSum { sum: first[i], compensation: second[i] }.plus(values[i]);
                    (first[i], second[i]) = (sum.sum, sum.compensation);
                });
            }
            AggregateOp::Avg => each(&points.floats, |i| {
                let mut mean = KahanMean {
                    total: KahanSum { sum: first[i], compensation: second[i] },
                    count: count[i],
                    incremental: incremental.get(i),
                };
                mean.add(values[i]);
                (first[i], second[i], count[i]) = (mean.total.sum, mean.total.compensation, mean.count);
                if mean.incremental {
                    incremental.set(i);
                }
            }),
            AggregateOp::Min => each(&points.floats, |i| {
                if values[i] < first[i] || first[i].is_nan() {
                    first[i] = values[i];
                }
            }),
            AggregateOp::Max => each(&points.floats, |i| {
                if values[i] > first[i] || first[i].is_nan() {
                    first[i] = values[i];
                }
            }),
            AggregateOp::Count => each(&points.floats, |i| first[i] += 1.0),
            AggregateOp::Stddev | AggregateOp::Stdvar => each(&points.floats, |i| {
                let value = values[i];
                count[i] += 1.0;
                if count[i] == 1.0 {
                    first[i] = value;
                    // The first value alone decides that there is no answer.
                    second[i] = if value.is_finite() { 0.0 } else { f64::NAN };
                } else {
                    let delta = value - first[i];
                    first[i] += delta / count[i];
                    second[i] += delta * (value - first[i]);
                }
            }),
            _ => {}
        }
        floats.unite(&points.floats);
    }

    fn add_histograms(
        &mut self,
        op: AggregateOp,
        histograms: &[(u32, Arc<FloatHistogram>)],
        span: Span,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        match op {
            AggregateOp::Count | AggregateOp::Group => {
                for (step, _) in histograms {
                    self.first[*step as usize] += 1.0;
                    self.floats.set(*step as usize);
                }
                Ok(())
            }
            AggregateOp::Sum | AggregateOp::Avg => self.total_histograms(op, histograms, span, env),
            _ => {
                info_ignored(op, span, env);
                Ok(())
            }
        }
    }

    fn total_histograms(
        &mut self,
        op: AggregateOp,
        histograms: &[(u32, Arc<FloatHistogram>)],
        span: Span,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        if self.histograms.is_empty() {
            let steps = self.first.len();
            self.charge.grow(steps * size_of::<Slot>(), span)?;
            self.histograms.resize_with(steps, Slot::default);
        }
        for (step, histogram) in histograms {
            env.tick(histogram.positive_buckets.len() + histogram.negative_buckets.len())?;
            let slot = &mut self.histograms[*step as usize];
            match slot {
                Slot::Empty => {
                    let total = Box::new(Total::of(histogram, op == AggregateOp::Avg));
                    self.charge.grow(total.heap_bytes(), span)?;
                    *slot = Slot::Total(total);
                }
                Slot::Total(total) => {
                    let before = total.heap_bytes();
                    if total.add(histogram).is_err() {
                        warn_incompatible_schemas(&Labels::empty(), span, env);
                        *slot = Slot::Incompatible;
                    } else {
                        self.charge.grow(total.heap_bytes().saturating_sub(before), span)?;
                    }
                }
                Slot::Incompatible => {}
            }
        }
        Ok(())
    }

    fn finish(&mut self, op: AggregateOp, points: &mut Points, span: Span, env: &mut Env<'_>) -> Result<(), EvalError> {
        let Self { first, second, count, incremental, floats, .. } = self;
        for i in floats.ones() {
            points.values[i] = match op {
                AggregateOp::Sum => first[i] + second[i],
                AggregateOp::Avg if incremental.get(i) => first[i] + second[i],
                AggregateOp::Avg => first[i] / count[i] + second[i] / count[i],
                AggregateOp::Stdvar => second[i] / count[i],
                AggregateOp::Stddev => (second[i] / count[i]).sqrt(),
                AggregateOp::Group => 1.0,
                _ => first[i],
            };
        }
        points.floats.unite(floats);
        for (step, slot) in std::mem::take(&mut self.histograms).into_iter().enumerate() {
            if matches!(slot, Slot::Empty) {
                continue;
            }
            env.tick(16)?;
            if points.floats.get(step) {
                let text = "encountered a mix of histograms and floats for aggregation";
                env.annotations.warn(span, text);
                points.floats.unset(step);
            } else if let Slot::Total(total) = slot {
                total.tell(span, env);
                points.push_histogram(step, Arc::new(total.finish()), span)?;
            }
        }
        Ok(())
    }

    /// Frees the memory of a group that has been yielded.
    fn release(&mut self) {
        self.first = Vec::new();
        self.second = Vec::new();
        self.count = Vec::new();
    }
}
