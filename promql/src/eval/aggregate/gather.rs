//! Aggregations that need every value of a step: `quantile` and `count_values`.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use hashbrown::HashMap;
use skald_model::{Labels, LabelsBuilder};

use super::fold::info_ignored;
use crate::ast::{AggregateOp, Span};
use crate::eval::context::Charge;
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::group_index::{GroupIndex, LabelSubset};
use crate::eval::histogram::bucket::text;
use crate::eval::operator::Operator;
use crate::eval::points::{Points, StepSeries, histogram_work};
use crate::eval::quantile::{check_quantile, format_plain, quantile};
use crate::eval::scalar::ScalarPlan;

/// `quantile`: keeps all series of a group, then goes step by step.
pub(crate) struct Quantile {
    child: Box<dyn Operator>,
    index: GroupIndex,
    q: ScalarPlan,
    steps: usize,
    /// Where the quantile stands, and where the aggregated expression.
    parameter_span: Span,
    span: Span,
    groups: Vec<(Vec<Points>, bool)>,
    next: Option<usize>,
}

impl Quantile {
    pub(crate) fn new(
        child: Box<dyn Operator>,
        index: GroupIndex,
        q: ScalarPlan,
        steps: usize,
        parameter_span: Span,
        span: Span,
    ) -> Self {
        Self { child, index, q, steps, parameter_span, span, groups: Vec::new(), next: None }
    }
}

impl Operator for Quantile {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.q.poll_ready(cx, env))?;
        while self.next.is_none() {
            let Some(mut series) = ready!(self.child.poll_next(cx, env))? else {
                self.next = Some(0);
                (0..self.steps).for_each(|step| check_quantile(self.q.value().at(step), self.parameter_span, env));
                break;
            };
            if series.points.has_histograms() {
                info_ignored(AggregateOp::Quantile, self.span, env);
                series.points.drop_histograms();
            }
            if series.points.is_empty() {
                env.recycle(series.points);
                continue;
            }
            let id = self.index.insert(&series.labels);
            if id == self.groups.len() {
                self.groups.push((Vec::new(), false));
            }
            series.points.hold()?;
            series.points.charge_labels(2 * size_of::<Points>() + self.index.key_bytes(id), self.span)?;
            self.groups[id].1 |= series.drop_name && self.index.subset().has_name();
            self.groups[id].0.push(series.points);
        }
        let Some(id) = self.next.filter(|id| *id < self.groups.len()) else { return Poll::Ready(Ok(None)) };
        self.next = Some(id + 1);
        let (members, drop_name) = std::mem::take(&mut self.groups[id]);
        let mut points = env.points(self.steps, self.span)?;
        let mut values = Vec::with_capacity(members.len());
        for step in 0..self.steps {
            values.clear();
            values.extend(members.iter().filter(|m| m.floats.get(step)).map(|m| m.values[step]));
            env.tick(members.len())?;
            if !values.is_empty() {
                points.set_float(step, quantile(self.q.value().at(step), &mut values));
            }
        }
        members.into_iter().for_each(|m| env.recycle(m));
        Poll::Ready(Ok(Some(StepSeries { labels: self.index.labels(id), drop_name, points })))
    }
}

/// `count_values`: how many elements of a group have each value.
pub(crate) struct CountValues {
    child: Box<dyn Operator>,
    subset: LabelSubset,
    label: String,
    steps: usize,
    span: Span,
    /// By the labels of the result: the group's, with the value in `label`.
    counts: HashMap<Labels, usize, foldhash::fast::RandomState>,
    /// By the bits of the values that the series at hand has had.
    by_bits: HashMap<u64, usize, foldhash::fast::RandomState>,
    results: VecDeque<StepSeries>,
    charge: Charge,
    ended: bool,
}

impl CountValues {
    pub(crate) fn new(
        child: Box<dyn Operator>,
        subset: LabelSubset,
        label: String,
        steps: usize,
        span: Span,
        charge: Charge,
    ) -> Self {
        Self {
            child,
            subset,
            label,
            steps,
            span,
            counts: HashMap::default(),
            by_bits: HashMap::default(),
            results: VecDeque::new(),
            charge,
            ended: false,
        }
    }

    /// The number of the result that counts the elements of `series` with this value.
    fn result(&mut self, series: &StepSeries, value: &str, env: &mut Env<'_>) -> Result<usize, EvalError> {
        // The value is set first, so that `without (label)` removes it and `by` can name it.
        let with_value = LabelsBuilder::new(&series.labels).set(&self.label, value).build();
        let labels = self.subset.of(&with_value);
        let id = match self.counts.get(&labels) {
            Some(id) => *id,
            None => {
                let points = env.points(self.steps, self.span)?;
                let id = self.results.len();
                self.charge.grow(2 * size_of::<StepSeries>() + 64 + labels.as_bytes().len(), self.span)?;
                self.counts.insert(labels.clone(), id);
                self.results.push_back(StepSeries { labels, drop_name: false, points });
                id
            }
        };
        Ok(id)
    }

    fn count(&mut self, id: usize, step: usize) {
        let points = &mut self.results[id].points;
        let before = if points.floats.get(step) { points.values[step] } else { 0.0 };
        points.set_float(step, before + 1.0);
    }
}

impl Operator for CountValues {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        while !self.ended {
            let Some(series) = ready!(self.child.poll_next(cx, env))? else {
                self.ended = true;
                break;
            };
            self.by_bits.clear();
            let mut last = None;
            for step in series.points.floats.ones() {
                env.tick(4)?;
                let value = series.points.values[step];
                let bits = value.to_bits();
                let known = match last {
                    Some((same, id)) if same == bits => Some(id),
                    _ => self.by_bits.get(&bits).copied(),
                };
                let id = match known {
                    Some(id) => id,
                    None => {
                        env.tick(16)?;
                        let id = self.result(&series, &format_plain(value), env)?;
                        // A series of which no two values are the same gains nothing from all being known.
                        if self.by_bits.len() < 1024 {
                            self.by_bits.insert(bits, id);
                        }
                        id
                    }
                };
                last = Some((bits, id));
                self.count(id, step);
            }
            for (step, histogram) in series.points.histograms() {
                // Its text is made, and looked up.
                env.tick(4 * histogram_work(histogram))?;
                let id = self.result(&series, &text(histogram), env)?;
                self.count(id, *step as usize);
            }
            env.recycle(series.points);
        }
        Poll::Ready(Ok(self.results.pop_front()))
    }
}
