//! Native histograms as the engine uses them: the arithmetic of `skald_model`, with what there is to say about it.

pub(crate) mod bucket;
pub(crate) mod counts;
pub(crate) mod partial;
pub(crate) mod reset;
pub(crate) mod sum;
pub(crate) mod trim;

use std::sync::Arc;

use skald_model::{FloatHistogram, Labels, Quoted, ResetHint};

use self::sum::{HistogramMean, HistogramSum};

use super::env::Env;
use super::range_function::for_metric;
use crate::ast::Span;

/// What two histograms were combined in, as annotations name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Combination {
    Addition,
    Subtraction,
    Aggregation,
}

impl Combination {
    fn name(self) -> &'static str {
        match self {
            Self::Addition => "addition",
            Self::Subtraction => "subtraction",
            Self::Aggregation => "aggregation",
        }
    }
}

/// Exponential and custom buckets cannot be combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incompatible;

/// Says that different custom bounds were reduced to the common ones.
pub(crate) fn info_reconciled(combination: Combination, span: Span, env: &mut Env<'_>) {
    let text = format!("mismatched custom buckets were reconciled during {}", combination.name());
    env.annotations.info(span, text);
}

/// Says that one histogram follows a reset and another does not.
pub(crate) fn warn_collision(combination: Combination, span: Span, env: &mut Env<'_>) {
    let text = format!("conflicting counter resets during histogram {}", combination.name());
    env.annotations.warn(span, text);
}

/// Says that exponential and custom buckets met; the result is left out.
pub(crate) fn warn_incompatible_schemas(labels: &Labels, span: Span, env: &mut Env<'_>) {
    let text = "vector contains a mix of histograms with exponential and custom buckets schemas";
    env.annotations.warn(span, for_metric(text, labels));
}

/// Warns that a function of counters met a gauge.
pub(crate) fn warn_not_counter(labels: &Labels, span: Span, env: &mut Env<'_>) {
    let name = labels.metric_name().unwrap_or("");
    env.annotations.warn(span, format!("this native histogram metric is not a counter: {}", Quoted(name)));
}

/// Warns that a function of gauges met a counter.
pub(crate) fn warn_not_gauge(labels: &Labels, span: Span, env: &mut Env<'_>) {
    let name = labels.metric_name().unwrap_or("");
    env.annotations.warn(span, format!("this native histogram metric is not a gauge: {}", Quoted(name)));
}

/// The histogram times `factor`, without empty buckets; a negative factor makes it a gauge.
pub(crate) fn scaled(histogram: &FloatHistogram, factor: f64) -> FloatHistogram {
    let mut sum = HistogramSum::plain(histogram);
    sum.scale(factor);
    with_sign(sum.finish(), factor)
}

/// The histogram divided by `divisor`; by zero nothing is left but the infinite count, sum and zero count.
pub(crate) fn divided(histogram: &FloatHistogram, divisor: f64) -> FloatHistogram {
    let mut sum = HistogramSum::plain(histogram);
    sum.divide(divisor);
    let mut result = with_sign(sum.finish(), divisor);
    if divisor == 0.0 {
        result.positive_spans.clear();
        result.positive_buckets.clear();
        result.negative_spans.clear();
        result.negative_buckets.clear();
    }
    result
}

fn with_sign(mut histogram: FloatHistogram, factor: f64) -> FloatHistogram {
    if factor < 0.0 {
        histogram.reset_hint = ResetHint::Gauge;
    }
    histogram
}

/// The sum (or mean) of histograms, with what there is to say about it; nothing where they do not fit.
pub(crate) fn aggregate(
    histograms: &[Arc<FloatHistogram>],
    mean: bool,
    labels: &Labels,
    span: Span,
    env: &mut Env<'_>,
) -> Option<FloatHistogram> {
    let (first, rest) = histograms.split_first()?;
    let mut total = Total::of(first, mean);
    for histogram in rest {
        if total.add(histogram).is_err() {
            warn_incompatible_schemas(labels, span, env);
            return None;
        }
    }
    total.tell(span, env);
    Some(total.finish())
}

/// A running sum or mean.
#[derive(Debug)]
pub(crate) enum Total {
    Sum(HistogramSum),
    Mean(HistogramMean),
}

impl Total {
    pub(crate) fn of(first: &FloatHistogram, mean: bool) -> Self {
        if mean { Self::Mean(HistogramMean::of(first)) } else { Self::Sum(HistogramSum::compensated(first)) }
    }

    pub(crate) fn add(&mut self, other: &FloatHistogram) -> Result<(), Incompatible> {
        match self {
            Self::Sum(sum) => sum.add(other, 1.0),
            Self::Mean(mean) => mean.add(other),
        }
    }

    fn sum(&self) -> &HistogramSum {
        match self {
            Self::Sum(sum) => sum,
            Self::Mean(mean) => mean.total(),
        }
    }

    /// Says what had to be given up for the total.
    pub(crate) fn tell(&self, span: Span, env: &mut Env<'_>) {
        if self.sum().has_collision() {
            warn_collision(Combination::Aggregation, span, env);
        }
        if self.sum().is_reconciled() {
            info_reconciled(Combination::Aggregation, span, env);
        }
    }

    pub(crate) fn finish(&self) -> FloatHistogram {
        match self {
            Self::Sum(sum) => sum.finish(),
            Self::Mean(mean) => mean.finish(),
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.sum().heap_bytes()
    }
}
