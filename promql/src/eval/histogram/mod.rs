//! Native histograms as the engine uses them: the arithmetic of `skald_model`, with what there is to say about it.

pub(crate) mod sum;

use skald_model::Labels;

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
    env.annotations.warn(span, format!("this native histogram metric is not a counter: {name:?}"));
}

/// Warns that a function of gauges met a counter.
pub(crate) fn warn_not_gauge(labels: &Labels, span: Span, env: &mut Env<'_>) {
    let name = labels.metric_name().unwrap_or("");
    env.annotations.warn(span, format!("this native histogram metric is not a gauge: {name:?}"));
}
