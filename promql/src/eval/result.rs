//! The top of a running query: collects what the topmost operator yields and makes the answer out of it.

use std::task::{Context, Poll, ready};

use skald_model::{Columns, Labels};

use super::context::{AnswerCharge, Charge};
use super::env::Env;
use super::error::EvalError;
use super::explain::Explain;
use super::merge::Merged;
use super::operator::Operator;
use super::output::{Element, QueryOutput, SampleValue, Series, Value};
use super::points::{Point, StepSeries, histogram_bytes};
use super::reader::columns_bytes;
use super::scalar::ScalarPlan;
use super::window::WindowInput;
use crate::ast::Span;
use crate::plan::Grid;

/// The top of a running query.
pub(crate) struct Root {
    pub(crate) plan: RootPlan,
    pub(crate) grid: Grid,
    /// Whether it is an instant query: one step, and a vector keeps its order.
    pub(crate) instant: bool,
    pub(crate) span: Span,
}

/// What the topmost expression is.
pub(crate) enum RootPlan {
    Scalar(ScalarPlan),
    String(String),
    Vector { operator: Box<dyn Operator>, collected: Vec<StepSeries> },
    Matrix { input: Box<WindowInput>, collected: Vec<Series>, charge: Charge },
}

impl Root {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<QueryOutput, EvalError>> {
        let mut charge = env.charge();
        let time = self.grid.start;
        let value = match &mut self.plan {
            RootPlan::Scalar(scalar) => {
                ready!(scalar.poll_ready(cx, env))?;
                let value = scalar.value();
                if self.instant {
                    Value::Scalar { timestamp: time, value: value.at(0) }
                } else {
                    let mut samples = Columns::default();
                    charge.grow(16 * self.grid.count, self.span)?;
                    charge.hold_samples(self.grid.count)?;
                    (0..self.grid.count).for_each(|step| samples.push_float(self.grid.time(step), value.at(step)));
                    Value::Matrix(vec![Series { labels: Labels::empty(), samples }])
                }
            }
            RootPlan::String(text) => Value::String { timestamp: time, value: text.clone() },
            RootPlan::Vector { operator, collected } => {
                while let Some(mut series) = ready!(operator.poll_next(cx, env))? {
                    series.hold(self.span)?;
                    collected.push(series);
                }
                let series = finish_names(std::mem::take(collected), env, self.span)?;
                if self.instant {
                    Value::Vector(vector(series, time, &mut charge, self.span)?)
                } else {
                    Value::Matrix(matrix(series, self.grid, &mut charge, env, self.span)?)
                }
            }
            RootPlan::Matrix { input, collected, charge: held } => {
                let mut columns = Columns::default();
                while let Some((labels, drop_name)) = ready!(input.poll_series(cx, env, &mut columns))? {
                    let samples = input.cut(&columns, time);
                    if samples.is_empty() {
                        continue;
                    }
                    let labels = if drop_name { env.names.strip(&labels) } else { labels };
                    held.grow(2 * size_of::<Series>() + labels.as_bytes().len() + columns_bytes(&samples), self.span)?;
                    held.hold_more_samples(samples.len())?;
                    collected.push(Series { labels, samples });
                }
                std::mem::swap(&mut charge, held);
                let mut series = std::mem::take(collected);
                series.sort_by(|a, b| a.labels.cmp(&b.labels));
                Value::Matrix(join_equal(series, env.names.delayed)?)
            }
        };
        let mut stats = std::mem::take(&mut env.stats);
        stats.peak_samples = env.context.peak_samples() as u64;
        stats.peak_bytes = env.context.peak_bytes() as u64;
        let annotations = std::mem::take(&mut env.annotations);
        let explain = env.explain.as_ref().map(Explain::costs);
        Poll::Ready(Ok(QueryOutput { value, annotations, stats, explain, charge: AnswerCharge::new(charge) }))
    }
}

/// Joins series that became equal with the late dropping of names, if they never meet.
fn join_equal(series: Vec<Series>, delayed: bool) -> Result<Vec<Series>, EvalError> {
    let mut joined: Vec<Series> = Vec::with_capacity(series.len());
    for one in series {
        match joined.last_mut().filter(|last| last.labels == one.labels) {
            None => joined.push(one),
            Some(last) if delayed => {
                last.samples = together(&last.samples, &one.samples).ok_or_else(EvalError::duplicate_labels)?;
            }
            Some(_) => return Err(EvalError::duplicate_labels()),
        }
    }
    Ok(joined)
}

/// The samples of both; nothing if both have one at the same time.
fn together(a: &Columns, b: &Columns) -> Option<Columns> {
    let floats =
        |c: &Columns| c.float_timestamps.iter().copied().zip(c.float_values.iter().copied()).collect::<Vec<_>>();
    let histograms =
        |c: &Columns| c.histogram_timestamps.iter().copied().zip(c.histograms.iter().cloned()).collect::<Vec<_>>();
    let (mut all_floats, mut all_histograms) = (floats(a), histograms(a));
    all_floats.extend(floats(b));
    all_histograms.extend(histograms(b));
    all_floats.sort_by_key(|(time, _)| *time);
    all_histograms.sort_by_key(|(time, _)| *time);
    let mut times: Vec<i64> = all_floats.iter().map(|(time, _)| *time).collect();
    times.extend(all_histograms.iter().map(|(time, _)| *time));
    times.sort_unstable();
    if times.windows(2).any(|w| w[0] == w[1]) {
        return None;
    }
    let mut joined = Columns::default();
    all_floats.into_iter().for_each(|(time, value)| joined.push_float(time, value));
    all_histograms.into_iter().for_each(|(time, histogram)| joined.push_histogram(time, histogram));
    Some(joined)
}

/// Drops the names whose dropping was put off, and joins the halves of series.
fn finish_names(series: Vec<StepSeries>, env: &mut Env<'_>, span: Span) -> Result<Vec<StepSeries>, EvalError> {
    let mut merged = Merged::default();
    for mut one in series {
        if std::mem::take(&mut one.drop_name) {
            one.labels = env.names.strip(&one.labels);
        }
        merged.add(one, env, span)?;
    }
    Ok(merged.into_series())
}

fn vector(series: Vec<StepSeries>, timestamp: i64, charge: &mut Charge, span: Span) -> Result<Vec<Element>, EvalError> {
    let labels: usize = series.iter().map(|one| one.labels.as_bytes().len()).sum();
    charge.grow(series.len() * size_of::<Element>() + labels, span)?;
    charge.hold_samples(series.len())?;
    let elements = series.into_iter().filter_map(|one| {
        let value = match one.points.get(0)? {
            Point::Float(value) => SampleValue::Float(value),
            Point::Histogram(histogram) => SampleValue::Histogram(histogram),
        };
        Some(Element { labels: one.labels, timestamp, value })
    });
    Ok(elements.collect())
}

fn matrix(
    mut series: Vec<StepSeries>,
    grid: Grid,
    charge: &mut Charge,
    env: &mut Env<'_>,
    span: Span,
) -> Result<Vec<Series>, EvalError> {
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    let mut out = Vec::with_capacity(series.len());
    let mut total = 0;
    for one in series {
        let mut points = one.points;
        let (len, floats) = (points.len(), points.floats.len());
        let values = if 2 * floats > points.steps() { points.steps() } else { floats };
        let histograms: usize = points.histograms().iter().map(|(_, h)| 16 + histogram_bytes(h)).sum();
        let bytes = 8 * (values + floats) + histograms;
        charge.grow(size_of::<Series>() + one.labels.as_bytes().len() + bytes, span)?;
        let mut times = Vec::with_capacity(floats);
        if floats == points.steps() {
            times.extend((0..floats).map(|step| grid.time(step)));
        } else {
            times.extend(points.floats.ones().map(|step| grid.time(step)));
        }
        let mut samples = Columns { float_timestamps: times, float_values: points.take_floats(), ..Columns::default() };
        for (step, histogram) in points.histograms() {
            samples.push_histogram(grid.time(*step as usize), histogram.clone());
        }
        env.tick(len)?;
        total += len;
        drop(points);
        charge.hold_samples(total)?;
        if !samples.is_empty() {
            out.push(Series { labels: one.labels, samples });
        }
    }
    Ok(out)
}
