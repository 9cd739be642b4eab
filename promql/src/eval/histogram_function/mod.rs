//! `histogram_quantile`, `histogram_quantiles` and `histogram_fraction`, on classic buckets and native histograms.
//!
//! [`classic`] has the arithmetic on classic buckets.

pub(crate) mod classic;

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use skald_model::{FloatHistogram, Labels, LabelsBuilder, Quoted};

use self::classic::Bucket;
use super::env::Env;
use super::error::EvalError;
use super::group_index::{GroupIndex, LabelSubset};
use super::histogram::bucket::{self, NanEffect};
use super::operator::Operator;
use super::points::{Points, StepSeries, histogram_work};
use super::quantile::{check_quantile, format_open_metrics};
use super::range_function::for_metric;
use super::scalar::ScalarPlan;
use crate::ast::Span;
use crate::plan::Grid;

/// Label of a classic bucket's upper bound.
const BUCKET_LABEL: &str = "le";

/// What is asked of the histograms.
pub(crate) enum Question {
    /// `histogram_quantile`; where the quantile stands.
    Quantile(ScalarPlan, Span),
    /// `histogram_quantiles`: each quantile a series of its own, told apart by this label.
    Quantiles { label: String, quantiles: Vec<(ScalarPlan, Span)> },
    /// `histogram_fraction` between two bounds.
    Fraction { lower: ScalarPlan, upper: ScalarPlan },
}

/// Answers a [`Question`] for every histogram of a vector. Keeps the buckets of all histograms.
pub(crate) struct HistogramOperator {
    child: Box<dyn Operator>,
    question: Question,
    index: GroupIndex,
    groups: Vec<Group>,
    grid: Grid,
    /// Where the vector stands.
    span: Span,
    /// Next group to answer for, once the child has ended.
    next: Option<usize>,
    results: VecDeque<StepSeries>,
}

/// One histogram: its classic buckets, and the native histogram of the same labels.
#[derive(Default)]
struct Group {
    /// Upper bound and cumulative count per step.
    buckets: Vec<(f64, Points)>,
    /// The series that have native histograms.
    native: Vec<(Labels, Points)>,
}

impl HistogramOperator {
    pub(crate) fn new(child: Box<dyn Operator>, question: Question, grid: Grid, span: Span) -> Self {
        // The name tells histograms apart, whenever it is dropped.
        let subset = LabelSubset::Without(vec![BUCKET_LABEL.to_owned()]);
        Self {
            child,
            question,
            index: GroupIndex::new(subset),
            groups: Vec::new(),
            grid,
            span,
            next: None,
            results: VecDeque::new(),
        }
    }

    fn keep(&mut self, mut series: StepSeries, env: &mut Env<'_>) -> Result<(), EvalError> {
        let bound = series.labels.get(BUCKET_LABEL).unwrap_or("");
        let parsed = parse_bound(bound);
        if !series.points.floats.is_empty() && parsed.is_none() {
            let text =
                format!("bucket label {BUCKET_LABEL:?} is missing or has a malformed value of {}", Quoted(bound));
            env.annotations.warn(self.span, for_metric(&text, &told(&series.labels, env)));
            series.points.floats.reset(self.grid.count);
        }
        if series.points.is_empty() {
            env.recycle(series.points);
            return Ok(());
        }
        series.hold(self.span)?;
        let id = self.index.insert(&series.labels);
        if id == self.groups.len() {
            self.groups.push(Group::default());
        }
        let group = &mut self.groups[id];
        if series.points.has_histograms() {
            let mut native = env.points(self.grid.count, self.span)?;
            native.take_histograms_of(&mut series.points, self.span)?;
            native.charge_labels(2 * size_of::<StepSeries>() + series.labels.as_bytes().len(), self.span)?;
            group.native.push((series.labels.clone(), native));
        }
        match parsed {
            Some(bound) if !series.points.floats.is_empty() => group.buckets.push((bound, series.points)),
            _ => env.recycle(series.points),
        }
        Ok(())
    }

    fn answer(&mut self, id: usize, env: &mut Env<'_>) -> Result<(), EvalError> {
        let mut group = std::mem::take(&mut self.groups[id]);
        let labels = self.index.labels(id);
        group.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let questions = self.question.parts();
        let mut classic: Vec<Points> = Vec::new();
        for _ in &questions {
            classic.push(env.points(self.grid.count, self.span)?);
        }
        let mut buckets = Vec::with_capacity(group.buckets.len());
        for step in 0..self.grid.count {
            if group.buckets.is_empty() {
                break;
            }
            env.tick(group.buckets.len())?;
            buckets.clear();
            for (bound, points) in &group.buckets {
                if points.floats.get(step) {
                    buckets.push(Bucket { bound: *bound, count: points.values[step] });
                }
            }
            if buckets.is_empty() {
                continue;
            }
            let mixed = group.native.iter_mut().find(|(_, points)| points.histogram(step).is_some());
            if let Some((labels, points)) = mixed {
                let text = "vector contains a mix of classic and native histograms";
                env.annotations.warn(self.span, for_metric(text, &told(labels, env)));
                points.retain_histograms(|s| s != step);
                continue;
            }
            let mut fixed = None;
            for (part, out) in questions.iter().zip(&mut classic) {
                let value = match part {
                    Part::Quantile(q) => {
                        let (value, change) = classic::quantile(q.value().at(step), &mut buckets);
                        fixed = fixed.or(change);
                        value
                    }
                    Part::Fraction { lower, upper } => {
                        classic::fraction(lower.value().at(step), upper.value().at(step), &mut buckets)
                    }
                };
                out.set_float(step, value);
            }
            if let Some(change) = fixed {
                let told = told(&labels, env);
                let name = told.metric_name().unwrap_or("");
                env.annotations.info_forced_monotonicity(self.span, name, change, self.grid.time(step));
            }
        }
        for (part, out) in questions.iter().zip(classic) {
            push_result(&mut self.results, &self.question, part, labels.clone(), out, (env, self.span))?;
        }
        for (labels, points) in group.native {
            for part in &questions {
                let mut out = env.points(self.grid.count, self.span)?;
                for (step, histogram) in points.histograms() {
                    env.tick(histogram.positive_buckets.len() + histogram.negative_buckets.len())?;
                    let step = *step as usize;
                    out.set_float(step, part.of_native(histogram, step, &labels, self.span, env));
                }
                push_result(&mut self.results, &self.question, part, labels.clone(), out, (env, self.span))?;
            }
        }
        Ok(())
    }
}

/// The labels that an annotation names a histogram by: the name is not told if it is dropped at once.
fn told(labels: &Labels, env: &Env<'_>) -> Labels {
    if env.names.delayed { labels.clone() } else { env.names.strip(labels) }
}

/// One value asked for per histogram and step.
enum Part<'a> {
    Quantile(&'a ScalarPlan),
    Fraction { lower: &'a ScalarPlan, upper: &'a ScalarPlan },
}

impl Part<'_> {
    fn of_native(
        &self,
        histogram: &FloatHistogram,
        step: usize,
        labels: &Labels,
        span: Span,
        env: &mut Env<'_>,
    ) -> f64 {
        let (value, text) = match self {
            Self::Quantile(q) => {
                let quantile = bucket::quantile(q.value().at(step), histogram);
                let text = match quantile.nan {
                    NanEffect::None => None,
                    NanEffect::Skewed => {
                        Some("input to histogram_quantile has NaN observations, result is skewed higher")
                    }
                    NanEffect::Result => Some("input to histogram_quantile has NaN observations, result is NaN"),
                };
                (quantile.value, text)
            }
            Self::Fraction { lower, upper } => {
                let (lower, upper) = (lower.value().at(step), upper.value().at(step));
                let value = bucket::fraction(lower, upper, histogram);
                let text = "input to histogram_fraction has NaN observations, which are excluded from all fractions";
                (value, (lower < upper && bucket::has_nan_observations(histogram)).then_some(text))
            }
        };
        if let Some(text) = text {
            env.annotations.info(span, for_metric(text, &told(labels, env)));
        }
        value
    }
}

/// A number of each native histogram; floats are dropped.
pub(crate) struct HistogramNumber {
    pub(crate) child: Box<dyn Operator>,
    pub(crate) number: fn(&FloatHistogram) -> f64,
}

impl HistogramNumber {
    /// The function called `name`, if it is of this kind.
    pub(crate) fn by_name(name: &str) -> Option<fn(&FloatHistogram) -> f64> {
        Some(match name {
            "histogram_count" => |h| h.count,
            "histogram_sum" => |h| h.sum,
            "histogram_avg" => |h| h.sum / h.count,
            "histogram_stddev" => |h| bucket::variance(h).sqrt(),
            "histogram_stdvar" => bucket::variance,
            _ => return None,
        })
    }
}

impl Operator for HistogramNumber {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        loop {
            let Some(mut series) = ready!(self.child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
            let histograms = series.points.take_histograms();
            series.points.floats.reset(series.points.steps());
            for (step, histogram) in &histograms {
                series.points.set_float(*step as usize, (self.number)(histogram));
                env.tick(histogram_work(histogram))?;
            }
            if series.points.is_empty() {
                env.recycle(series.points);
                continue;
            }
            env.names.drop(&mut series);
            return Poll::Ready(Ok(Some(series)));
        }
    }
}

impl Question {
    fn parts(&self) -> Vec<Part<'_>> {
        match self {
            Self::Quantile(q, _) => vec![Part::Quantile(q)],
            Self::Quantiles { quantiles, .. } => quantiles.iter().map(|(q, _)| Part::Quantile(q)).collect(),
            Self::Fraction { lower, upper } => vec![Part::Fraction { lower, upper }],
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<(), EvalError>> {
        match self {
            Self::Quantile(q, _) => q.poll_ready(cx, env),
            Self::Quantiles { quantiles, .. } => {
                for (q, _) in quantiles {
                    ready!(q.poll_ready(cx, env))?;
                }
                Poll::Ready(Ok(()))
            }
            Self::Fraction { lower, upper } => {
                ready!(lower.poll_ready(cx, env))?;
                upper.poll_ready(cx, env)
            }
        }
    }

    fn check(&self, steps: usize, env: &mut Env<'_>) {
        let quantiles = match self {
            Self::Quantile(q, span) => vec![(q, *span)],
            Self::Quantiles { quantiles, .. } => quantiles.iter().map(|(q, span)| (q, *span)).collect(),
            Self::Fraction { .. } => Vec::new(),
        };
        for (q, span) in quantiles {
            (0..steps).for_each(|step| check_quantile(q.value().at(step), span, env));
        }
    }
}

/// Queues a result; that of `histogram_quantiles` gets its label, and is cut where the quantile changes with the step.
fn push_result(
    results: &mut VecDeque<StepSeries>,
    question: &Question,
    part: &Part<'_>,
    labels: Labels,
    mut points: Points,
    (env, span): (&mut Env<'_>, Span),
) -> Result<(), EvalError> {
    while !points.is_empty() {
        let mut quantile = None;
        let mut rest = None;
        if let (Question::Quantiles { label, .. }, Part::Quantile(q)) = (question, part) {
            let at = |step: usize| q.value().at(step).to_bits();
            let first = points.floats.ones().next().map_or(0, at);
            quantile = Some((label, format_open_metrics(f64::from_bits(first))));
            let others: Vec<usize> = points.floats.ones().filter(|step| at(*step) != first).collect();
            if !others.is_empty() {
                let mut later = env.points(points.steps(), span)?;
                for step in others {
                    later.set_float(step, points.values[step]);
                    points.floats.unset(step);
                }
                rest = Some(later);
            }
        }
        let mut series = StepSeries { labels: labels.clone(), drop_name: false, points };
        env.names.drop(&mut series);
        if let Some((label, quantile)) = quantile {
            series.labels = LabelsBuilder::new(&series.labels).set(label, &quantile).build();
        }
        results.push_back(series);
        match rest {
            Some(later) => points = later,
            None => return Ok(()),
        }
    }
    env.recycle(points);
    Ok(())
}

/// An upper bound as Go's `strconv.ParseFloat` reads it.
fn parse_bound(text: &str) -> Option<f64> {
    let digits = text.trim_start_matches(['+', '-']);
    let plain = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let named = ["inf", "infinity", "nan"].iter().any(|name| digits.eq_ignore_ascii_case(name));
    if plain || named { text.parse().ok() } else { None }
}

impl Operator for HistogramOperator {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        ready!(self.question.poll_ready(cx, env))?;
        while self.next.is_none() {
            match ready!(self.child.poll_next(cx, env))? {
                Some(series) => self.keep(series, env)?,
                None => {
                    self.question.check(self.grid.count, env);
                    self.next = Some(0);
                }
            }
        }
        loop {
            if let Some(series) = self.results.pop_front() {
                return Poll::Ready(Ok(Some(series)));
            }
            let Some(id) = self.next.filter(|id| *id < self.groups.len()) else { return Poll::Ready(Ok(None)) };
            self.next = Some(id + 1);
            self.answer(id, env)?;
        }
    }
}
