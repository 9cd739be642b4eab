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
/// Keeps at most k candidates per group and step. NaN ranks behind every number. Which of equal values stay, and in what
/// order an instant query gives them, follows from how Prometheus' heap moves its elements: see [`Worst`].
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
    /// Candidates of group g at step s: `heaps[g * steps + s]`.
    heaps: Vec<Worst>,
    charge: Charge,
    picked: Option<VecDeque<StepSeries>>,
    /// Keeps the order of an instant query: by value within each group.
    instant: bool,
}

/// An element that may be among the k.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    value: f64,
    /// Index into `series`.
    series: u32,
}

/// The candidates of one group and step as a binary heap, the worst on top.
///
/// It moves elements exactly as Go's `container/heap` does (a new one rises from the end, a replaced top sinks), with the
/// order Prometheus gives it, in which a NaN lies before everything, itself too. Only so the same of equal values stay.
#[derive(Debug, Default)]
struct Worst(Vec<Candidate>);

impl Worst {
    fn is_worse(a: f64, b: f64, largest: bool) -> bool {
        a.is_nan() || if largest { a < b } else { a > b }
    }

    /// Whether a full heap takes `value` for its worst.
    fn takes(&self, value: f64, largest: bool) -> bool {
        !value.is_nan() && self.0.first().is_some_and(|worst| Self::is_worse(worst.value, value, largest))
    }

    fn push(&mut self, candidate: Candidate, largest: bool) {
        self.0.push(candidate);
        let mut at = self.0.len() - 1;
        while at > 0 {
            let parent = (at - 1) / 2;
            if !Self::is_worse(self.0[at].value, self.0[parent].value, largest) {
                break;
            }
            self.0.swap(at, parent);
            at = parent;
        }
    }

    fn replace_worst(&mut self, candidate: Candidate, largest: bool) {
        let heap = &mut self.0;
        heap[0] = candidate;
        let mut at = 0;
        loop {
            let mut child = 2 * at + 1;
            if child >= heap.len() {
                break;
            }
            if child + 1 < heap.len() && Self::is_worse(heap[child + 1].value, heap[child].value, largest) {
                child += 1;
            }
            if !Self::is_worse(heap[child].value, heap[at].value, largest) {
                break;
            }
            heap.swap(at, child);
            at = child;
        }
    }

    /// The best first. Up to a dozen are sorted as Go's `sort.Sort` does it, by insertion; of more, equal ones keep the
    /// heap's order, which need not be Prometheus'.
    fn into_sorted(self, largest: bool) -> Vec<Candidate> {
        const INSERTION: usize = 12;
        let mut all = self.0;
        if all.len() > INSERTION {
            all.sort_by(|a, b| match (a.value.is_nan(), b.value.is_nan()) {
                (false, false) if largest => b.value.partial_cmp(&a.value).unwrap_or(Ordering::Equal),
                (false, false) => a.value.partial_cmp(&b.value).unwrap_or(Ordering::Equal),
                (a, b) => a.cmp(&b),
            });
            return all;
        }
        for end in 1..all.len() {
            let mut at = end;
            while at > 0 && Self::is_worse(all[at - 1].value, all[at].value, largest) {
                all.swap(at - 1, at);
                at -= 1;
            }
        }
        all
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
        let largest = self.largest;
        let next = self.series.len() as u32;
        let mut kept = false;
        for step in points.floats.ones() {
            let k = self.k.at(step);
            if k == 0 {
                continue;
            }
            let candidate = Candidate { value: points.values[step], series: next };
            let heap = &mut self.heaps[group * self.steps + step];
            if heap.0.len() < k {
                self.charge.grow(size_of::<Candidate>() * 2, self.span)?;
                heap.push(candidate, largest);
            } else if heap.takes(candidate.value, largest) {
                heap.replace_worst(candidate, largest);
            } else {
                continue;
            }
            kept = true;
        }
        if kept {
            self.charge.grow(2 * size_of::<(Labels, bool)>() + labels.as_bytes().len(), self.span)?;
            self.series.push((labels.clone(), drop_name));
        }
        Ok(())
    }

    /// Gathers the candidates that stayed into series again.
    fn pick(&mut self, env: &mut Env<'_>) -> Result<VecDeque<StepSeries>, EvalError> {
        if self.instant {
            let mut out = VecDeque::new();
            for heap in std::mem::take(&mut self.heaps) {
                for candidate in heap.into_sorted(self.largest) {
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
            env.tick(heap.0.len())?;
            for candidate in heap.0 {
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
                    let heaps = self.steps.saturating_mul(2 * size_of::<Worst>());
                    self.charge.grow(heaps.saturating_add(self.index.key_bytes(group)), self.span)?;
                    self.heaps.resize_with((group + 1) * self.steps, Worst::default);
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

    /// The numbers of the elements that stay of `values`, the best first.
    fn kept(k: usize, largest: bool, values: &[f64]) -> Vec<u32> {
        let mut heap = Worst::default();
        for (series, &value) in (0..).zip(values) {
            let candidate = Candidate { value, series };
            if heap.0.len() < k {
                heap.push(candidate, largest);
            } else if heap.takes(value, largest) {
                heap.replace_worst(candidate, largest);
            }
        }
        heap.into_sorted(largest).iter().map(|candidate| candidate.series).collect()
    }

    #[test]
    fn the_best_stay_and_nan_goes_first() {
        let (inf, nan) = (f64::INFINITY, f64::NAN);
        assert_eq!(kept(3, true, &[-1.0, nan, 2.0, -inf, inf, 0.5]), [4, 2, 5]);
        assert_eq!(kept(3, false, &[-1.0, nan, 2.0, -inf, inf, 0.5]), [3, 0, 5]);
        assert_eq!(kept(2, true, &[nan, -inf, nan]), [1, 0]);
        assert_eq!(kept(1, true, &[-0.0, 0.0]), [0]);
        let many: Vec<f64> = (0..40).map(|i| if i % 8 == 3 { nan } else { f64::from(i * 7 % 40) }).collect();
        let best = kept(20, true, &many);
        assert!(best.windows(2).all(|pair| many[pair[0] as usize] > many[pair[1] as usize]), "{best:?}");
    }

    /// Worked out by hand from `container/heap`: which of equal ones leave is a matter of where they lie in the heap.
    #[test]
    fn of_equal_values_those_stay_that_stay_in_prometheus() {
        assert_eq!(kept(2, true, &[1.0, 1.0, 1.0]), [0, 1]);
        // [0, 1]: 2 takes the place of 0 and sinks below 1.
        assert_eq!(kept(2, true, &[1.0, 1.0, 2.0]), [2, 1]);
        assert_eq!(kept(2, false, &[1.0, 1.0, 0.5]), [2, 1]);
        // [0, 1, 2]: 3 takes the place of 0 and sinks to the left; 4 that of 1, and sinks to the left below 2, not 3.
        assert_eq!(kept(3, true, &[1.0, 1.0, 1.0, 2.0, 2.0]), [3, 4, 2]);
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
