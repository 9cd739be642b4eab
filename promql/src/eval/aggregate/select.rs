//! Aggregations that pick series: `topk`, `bottomk`, `limitk`, `limit_ratio`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
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
    /// Candidates of group g at step s: `heaps[g * steps + s]`, the worst on top.
    heaps: Vec<BinaryHeap<Reverse<Candidate>>>,
    charge: Charge,
    picked: Option<VecDeque<StepSeries>>,
    /// Keeps the order of an instant query: by value within each group.
    instant: bool,
}

/// An element that may be among the k; the larger ranks before the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u64,
    /// Index into `series`; of equal ranks the earlier series comes first.
    series: Reverse<u32>,
    bits: u64,
}

impl Candidate {
    fn new(value: f64, series: u32, largest: bool) -> Self {
        // Adding zero makes both zeros one; flipping bits makes the floats' order that of the integers.
        let bits = (value + 0.0).to_bits();
        let ascending = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
        let rank = match (value.is_nan(), largest) {
            (true, _) => 0,
            (false, true) => ascending,
            (false, false) => !ascending,
        };
        Self { rank, series: Reverse(series), bits: value.to_bits() }
    }

    fn value(self) -> f64 {
        f64::from_bits(self.bits)
    }
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
            let candidate = Candidate::new(points.values[step], id.unwrap_or(next), self.largest);
            let heap = &mut self.heaps[group * self.steps + step];
            if heap.len() < k {
                self.charge.grow(size_of::<Candidate>() * 2, self.span)?;
                heap.push(Reverse(candidate));
            } else {
                match heap.peek_mut() {
                    Some(mut worst) if worst.0 < candidate => *worst = Reverse(candidate),
                    _ => continue,
                }
            }
            if id.is_none() {
                id = Some(next);
                self.charge.grow(2 * size_of::<(Labels, bool)>() + labels.as_bytes().len(), self.span)?;
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
                // Ascending in reverse is the best first.
                for Reverse(candidate) in heap.into_sorted_vec() {
                    let mut points = env.points(1, self.span)?;
                    points.set_float(0, candidate.value());
                    let (labels, drop_name) = self.series[candidate.series.0 as usize].clone();
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
            for Reverse(candidate) in heap {
                let slot = &mut points[candidate.series.0 as usize];
                let points = match slot {
                    Some(points) => points,
                    None => slot.insert(env.points(self.steps, self.span)?),
                };
                points.set_float(step, candidate.value());
            }
        }
        let series = std::mem::take(&mut self.series).into_iter().zip(points);
        Ok(series
            .filter_map(|((labels, drop_name), points)| Some(StepSeries { labels, drop_name, points: points? }))
            .collect())
    }
}

impl Operator for TopK {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.k.poll_ready(self.steps, cx, env))?;
        while self.picked.is_none() {
            let Some(series) = ready!(self.child.poll_next(cx, env))? else {
                self.picked = Some(self.pick(env)?);
                break;
            };
            if series.points.has_histograms() && !self.k.keep_nothing() {
                let op = if self.largest { AggregateOp::Topk } else { AggregateOp::Bottomk };
                info_ignored(op, self.span, env);
            }
            if !series.points.floats.is_empty() {
                let group = self.index.insert(&series.labels);
                if (group + 1) * self.steps > self.heaps.len() {
                    let heaps = self.steps.saturating_mul(2 * size_of::<BinaryHeap<Reverse<Candidate>>>());
                    self.charge.grow(heaps.saturating_add(self.index.key_bytes(group)), self.span)?;
                    self.heaps.resize_with((group + 1) * self.steps, BinaryHeap::new);
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
        let value = self.scalar.value();
        self.counts = Some(limit_of_steps(steps, |step| value.at(step))?);
        Poll::Ready(Ok(()))
    }

    /// Whether no step keeps anything.
    fn keep_nothing(&self) -> bool {
        self.counts.as_ref().is_none_or(|counts| counts.iter().all(|count| *count == 0))
    }

    fn at(&self, step: usize) -> usize {
        self.counts.as_ref().map_or(0, |counts| counts[step])
    }
}

/// Where no step keeps anything, Prometheus does not look at how little that is.
fn limit_of_steps(steps: usize, k: impl Fn(usize) -> f64) -> Result<Vec<usize>, EvalError> {
    if (0..steps).all(|step| k(step) < 1.0) {
        return Ok(vec![0; steps]);
    }
    (0..steps).map(|step| limit(k(step))).collect()
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
                let counts = self.steps.saturating_mul(2 * size_of::<usize>());
                self.charge.grow(counts.saturating_add(self.index.key_bytes(group)), self.span)?;
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
            let position = series.labels.prometheus_hash() as f64 / u64::MAX as f64;
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
        let (mut least, mut most) = (0.0, 0.0);
        for step in 0..self.steps {
            let ratio = self.ratio.value().at(step);
            if ratio.is_nan() {
                return Err(EvalError::Execution("Ratio value is NaN".to_owned()));
            }
            (least, most) = (ratio.min(least), ratio.max(most));
        }
        for ratio in [least, most].into_iter().filter(|ratio: &f64| ratio.abs() > 1.0) {
            let got = format_g(ratio);
            let text = format!("ratio value should be between -1 and 1, got {got}, capping to {}", ratio.signum());
            env.annotations.warn(self.span, text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_rank_by_value_then_by_age() {
        let check = |largest: bool, best_first: &[f64]| {
            for pair in best_first.windows(2) {
                let [better, worse] = [pair[0], pair[1]].map(|v| Candidate::new(v, 0, largest));
                assert!(better > worse, "{pair:?} {largest}");
            }
        };
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        check(true, &[inf, 2.0, 0.5, -1.0, -2.0, -inf, nan]);
        check(false, &[-inf, -2.0, -1.0, 0.5, 2.0, inf, -nan]);
        assert!(Candidate::new(0.0, 1, true) > Candidate::new(-0.0, 2, true));
        assert!(Candidate::new(-0.0, 1, true) > Candidate::new(0.0, 2, true));
    }

    #[test]
    fn limits_below_one_are_never_too_small() {
        let counts = |steps: &[f64]| limit_of_steps(steps.len(), |step| steps[step]);
        assert_eq!(counts(&[f64::NEG_INFINITY, 0.5]).unwrap(), [0, 0]);
        assert!(counts(&[f64::NEG_INFINITY, 2.0]).is_err() && counts(&[f64::NAN, 0.0]).is_err());
    }

    #[test]
    fn limits() {
        assert_eq!((limit(2.9).unwrap(), limit(0.9).unwrap(), limit(-3.0).unwrap()), (2, 0, 0));
        assert_eq!(limit(f64::NAN).unwrap_err().to_string(), "Parameter value is NaN");
        assert_eq!(limit(1e19).unwrap_err().to_string(), "Scalar value 1e+19 overflows int64");
    }
}
