//! Aggregations that pick series: `topk`, `bottomk`, `limitk`, `limit_ratio`.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use skald_model::Labels;

use super::fold::info_ignored;
use crate::ast::{AggregateOp, Span};
use crate::eval::context::Charge;
use crate::eval::env::Env;
use crate::eval::error::EvalError;
use crate::eval::group_index::GroupIndex;
use crate::eval::operator::Operator;
use crate::eval::points::{Points, StepSeries};
use crate::eval::quantile::format_g;
use crate::eval::scalar::ScalarPlan;

/// `topk` and `bottomk`: the k largest or smallest floats of each group and step.
///
/// Keeps at most k candidates per group and step. NaN ranks behind every number; of equal values the earlier stays.
pub(crate) struct TopK {
    child: Box<dyn Operator>,
    index: GroupIndex,
    k: Limits,
    largest: bool,
    steps: usize,
    /// Where the aggregated expression stands.
    span: Span,
    /// Labels of the series that were ever a candidate.
    series: Vec<(Labels, bool)>,
    /// Candidates of group g at step s: `heaps[g * steps + s]`, the worst first.
    heaps: Vec<Vec<Candidate>>,
    charge: Charge,
    picked: Option<VecDeque<StepSeries>>,
    /// Keeps the order of an instant query: by value within each group.
    instant: bool,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    value: f64,
    /// Index into `series`.
    series: u32,
}

impl TopK {
    pub(crate) fn new(
        child: Box<dyn Operator>,
        index: GroupIndex,
        k: ScalarPlan,
        largest: bool,
        steps: usize,
        span: Span,
        charge: Charge,
        instant: bool,
    ) -> Self {
        let k = Limits { scalar: k, counts: None };
        Self {
            child,
            index,
            k,
            largest,
            steps,
            span,
            series: Vec::new(),
            heaps: Vec::new(),
            charge,
            picked: None,
            instant,
        }
    }

    fn offer(&mut self, group: usize, points: &Points, labels: &Labels, drop_name: bool) -> Result<(), EvalError> {
        let mut id = None;
        for step in points.floats.ones() {
            let k = self.k.at(step);
            if k == 0 {
                continue;
            }
            let next = self.series.len() as u32;
            let candidate = Candidate { value: points.values[step], series: id.unwrap_or(next) };
            let largest = self.largest;
            let heap = &mut self.heaps[group * self.steps + step];
            if heap.len() >= k {
                if worse(largest, candidate, heap[0]) != Ordering::Greater {
                    continue;
                }
                heap.remove(0);
            } else {
                self.charge.grow(size_of::<Candidate>() * 2, self.span)?;
            }
            let at = heap.partition_point(|held| worse(largest, *held, candidate) == Ordering::Less);
            heap.insert(at, candidate);
            if id.is_none() {
                id = Some(next);
                self.charge.grow(size_of::<(Labels, bool)>(), self.span)?;
                self.series.push((labels.clone(), drop_name));
            }
        }
        Ok(())
    }

    /// Gathers the candidates that stayed into series again.
    fn pick(&mut self, env: &mut Env<'_>) -> Result<VecDeque<StepSeries>, EvalError> {
        if self.instant {
            let mut out = VecDeque::new();
            for heap in std::mem::take(&mut self.heaps) {
                for candidate in heap.into_iter().rev() {
                    let mut points = env.points(1, self.span)?;
                    points.set_float(0, candidate.value);
                    let (labels, drop_name) = self.series[candidate.series as usize].clone();
                    out.push_back(StepSeries { labels, drop_name, points });
                }
            }
            return Ok(out);
        }
        let mut points: Vec<Option<Points>> = Vec::new();
        points.resize_with(self.series.len(), || None);
        for (i, heap) in std::mem::take(&mut self.heaps).into_iter().enumerate() {
            let step = i % self.steps;
            env.tick(heap.len())?;
            for candidate in heap {
                let slot = &mut points[candidate.series as usize];
                let points = match slot {
                    Some(points) => points,
                    None => slot.insert(env.points(self.steps, self.span)?),
                };
                points.set_float(step, candidate.value);
            }
        }
        let series = std::mem::take(&mut self.series).into_iter().zip(points);
        Ok(series
            .filter_map(|((labels, drop_name), points)| Some(StepSeries { labels, drop_name, points: points? }))
            .collect())
    }
}

/// `Less` when `a` ranks behind `b`: the value first, then the later series.
fn worse(largest: bool, a: Candidate, b: Candidate) -> Ordering {
    let by_value = match (a.value.is_nan(), b.value.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => {
            let order = a.value.partial_cmp(&b.value).unwrap_or(Ordering::Equal);
            if largest { order } else { order.reverse() }
        }
    };
    by_value.then(b.series.cmp(&a.series))
}

impl Operator for TopK {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.k.poll_ready(self.steps, cx, env))?;
        while self.picked.is_none() {
            let Some(series) = ready!(self.child.poll_next(cx, env))? else {
                self.picked = Some(self.pick(env)?);
                break;
            };
            if series.points.has_histograms() {
                let op = if self.largest { AggregateOp::Topk } else { AggregateOp::Bottomk };
                info_ignored(op, self.span, env);
            }
            if !series.points.floats.is_empty() {
                let group = self.index.insert(&series.labels);
                if (group + 1) * self.steps > self.heaps.len() {
                    self.charge.grow(self.steps.saturating_mul(size_of::<Vec<Candidate>>()), self.span)?;
                    self.heaps.resize_with((group + 1) * self.steps, Vec::new);
                }
                self.offer(group, &series.points, &series.labels, series.drop_name)?;
            }
            env.tick(self.steps)?;
            env.recycle(series.points);
        }
        Poll::Ready(Ok(self.picked.as_mut().and_then(VecDeque::pop_front)))
    }
}

/// How many elements each step may keep.
struct Limits {
    scalar: ScalarPlan,
    counts: Option<Vec<usize>>,
}

impl Limits {
    fn poll_ready(&mut self, steps: usize, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<(), EvalError>> {
        if self.counts.is_some() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.scalar.poll_ready(cx, env))?;
        let counts = (0..steps).map(|step| limit(self.scalar.value().at(step))).collect::<Result<_, _>>()?;
        self.counts = Some(counts);
        Poll::Ready(Ok(()))
    }

    fn at(&self, step: usize) -> usize {
        self.counts.as_ref().map_or(0, |counts| counts[step])
    }
}

fn limit(k: f64) -> Result<usize, EvalError> {
    if k.is_nan() {
        return Err(EvalError::Execution("Parameter value is NaN".to_owned()));
    }
    if k >= 9_223_372_036_854_775_808.0 {
        return Err(EvalError::Execution(format!("Scalar value {} overflows int64", format_g(k))));
    }
    if k <= -9_223_372_036_854_775_808.0 {
        return Err(EvalError::Execution(format!("Scalar value {} underflows int64", format_g(k))));
    }
    Ok(if k < 1.0 { 0 } else { k as usize })
}

/// `limitk`: the first k elements of each group and step.
pub(crate) struct LimitK {
    child: Box<dyn Operator>,
    index: GroupIndex,
    k: Limits,
    steps: usize,
    /// Elements kept so far of group g at step s: `taken[g * steps + s]`.
    taken: Vec<usize>,
    charge: Charge,
    span: Span,
}

impl LimitK {
    pub(crate) fn new(
        child: Box<dyn Operator>,
        index: GroupIndex,
        k: ScalarPlan,
        steps: usize,
        charge: Charge,
        span: Span,
    ) -> Self {
        Self { child, index, k: Limits { scalar: k, counts: None }, steps, taken: Vec::new(), charge, span }
    }
}

impl Operator for LimitK {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.k.poll_ready(self.steps, cx, env))?;
        loop {
            let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
            let group = self.index.insert(&series.labels);
            if (group + 1) * self.steps > self.taken.len() {
                self.charge.grow(self.steps.saturating_mul(size_of::<usize>()), self.span)?;
                self.taken.resize((group + 1) * self.steps, 0);
            }
            let taken = &mut self.taken[group * self.steps..(group + 1) * self.steps];
            let k = &self.k;
            retain(&mut series.points, |step| {
                taken[step] += 1;
                taken[step] <= k.at(step)
            });
            env.tick(self.steps)?;
            if series.points.is_empty() {
                env.recycle(series.points);
                continue;
            }
            return Poll::Ready(Ok(Some(series)));
        }
    }
}

/// Keeps the values of the steps that `keep` says yes to; asks once for each step that has a value.
fn retain(points: &mut Points, mut keep: impl FnMut(usize) -> bool) {
    for step in 0..points.steps() {
        if points.floats.get(step) && !keep(step) {
            points.floats.unset(step);
        }
    }
    points.retain_histograms(keep);
}

/// `limit_ratio`: the share of the series whose label hash says so; `r` and `-(1 - r)` are each other's complement.
pub(crate) struct LimitRatio {
    pub(crate) child: Box<dyn Operator>,
    pub(crate) ratio: ScalarPlan,
    pub(crate) steps: usize,
    /// Where the ratio stands.
    pub(crate) span: Span,
    pub(crate) checked: bool,
}

impl Operator for LimitRatio {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.ratio.poll_ready(cx, env))?;
        if !self.checked {
            self.checked = true;
            self.check(env)?;
        }
        loop {
            let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
            let position = series.labels.stable_hash() as f64 / u64::MAX as f64;
            let ratio = self.ratio.value();
            retain(&mut series.points, |step| {
                let ratio = ratio.at(step).clamp(-1.0, 1.0);
                // A position may round up to 1, which a ratio of 1 has to hold as well.
                if ratio >= 0.0 { position < ratio || ratio == 1.0 } else { position >= 1.0 + ratio }
            });
            env.tick(self.steps)?;
            if series.points.is_empty() {
                env.recycle(series.points);
                continue;
            }
            return Poll::Ready(Ok(Some(series)));
        }
    }
}

impl LimitRatio {
    fn check(&self, env: &mut Env<'_>) -> Result<(), EvalError> {
        for step in 0..self.steps {
            let ratio = self.ratio.value().at(step);
            if ratio.is_nan() {
                return Err(EvalError::Execution("Ratio value is NaN".to_owned()));
            }
            if ratio.abs() > 1.0 {
                let got = format_g(ratio);
                let text = format!("ratio value should be between -1 and 1, got {got}, capping to {}", ratio.signum());
                env.annotations.warn(self.span, text);
            }
        }
        Ok(())
    }
}
