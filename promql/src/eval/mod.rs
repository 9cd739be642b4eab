//! Evaluates a query over the series of a [`Queryable`].
//!
//! [`evaluate_plan`] makes operators of a plan's nodes ([`build`]: every select opened), then pulls series by series
//! through them. A [`selector`] or a range function ([`window`], [`range_function`]) turns one series' samples into
//! [`points::Points`], one value per step, on several threads where the query has them ([`series_operator`]); functions
//! change them in place, aggregations fold them into one accumulator per group and drop them, binary operators keep one
//! side. [`result`] makes the answer out of what the topmost operator yields.
//!
//! Absent on purpose: threads, timers, I/O. The future waits for its sources, and for pieces and fragments that others work
//! on.

mod absent;
mod aggregate;
pub mod annotations;
pub(crate) mod binary;
mod build;
mod combine;
pub mod context;
mod date;
mod env;
pub mod error;
mod explain;
mod go_math;
mod group_index;
pub(crate) mod histogram;
mod histogram_function;
mod info;
mod instant_function;
mod kahan;
mod label_function;
mod merge;
mod operator;
pub mod output;
mod points;
pub(crate) mod quantile;
mod range_function;
mod reader;
mod result;
mod scalar;
mod selector;
mod series_operator;
mod tee;
mod window;

#[cfg(test)]
mod tests;

use std::future::poll_fn;

pub(crate) use absent::absent_labels;
pub(crate) use aggregate::name as aggregate_name;
pub use aggregate::partial::PartialGroup;
pub(crate) use aggregate::partial::is_divisible;
pub use annotations::{Annotation, AnnotationPart, Annotations};
pub(crate) use binary::arithmetic::{keeps_name, symbol};
pub use combine::{FragmentFuture, FragmentOutput, FragmentRunner};
pub use context::{AnswerCharge, CancelOnDrop, Interrupt, QueryContext, SourceCharge, Workers};
pub use error::EvalError;
pub use explain::NodeCost;
pub use histogram::partial::PartialTotal;
pub(crate) use info::InfoSelection;
pub(crate) use label_function::is_label_name;
pub use output::{Element, QueryOutput, QueryStats, SampleValue, Series, Value};
pub(crate) use range_function::RangeFunction;

use crate::ast::Expr;
use crate::plan::Plan;
use crate::source::Queryable;

/// When and how a query is evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalParams {
    /// First step, in milliseconds since the epoch.
    pub start_ms: i64,
    /// Nominal end; the last step lies at or before it. Equal to the start for an instant query.
    pub end_ms: i64,
    /// Distance of the steps; 0 makes the query an instant one.
    pub step_ms: i64,
    /// How far an instant selector looks back for a sample, exclusive.
    pub lookback_ms: i64,
    /// Step of subqueries that name none.
    pub default_subquery_step_ms: i64,
    /// Metric names are dropped at the end of the evaluation instead of at once, so that `by (__name__)` and
    /// `label_replace` still see them.
    pub delayed_name_removal: bool,
    /// `__type__` and `__unit__` are dropped with the metric name.
    pub type_and_unit_labels: bool,
    /// Fills [`QueryStats::queryable_samples_per_step`].
    pub per_step_stats: bool,
}

impl EvalParams {
    /// An instant query at `time_ms` with Prometheus' defaults.
    pub fn instant(time_ms: i64) -> Self {
        Self::range(time_ms, time_ms, 0)
    }

    /// A range query with Prometheus' defaults.
    pub fn range(start_ms: i64, end_ms: i64, step_ms: i64) -> Self {
        Self {
            start_ms,
            end_ms,
            step_ms,
            lookback_ms: 5 * 60_000,
            default_subquery_step_ms: 60_000,
            delayed_name_removal: false,
            type_and_unit_labels: true,
            per_step_stats: false,
        }
    }
}

/// Bytes of a plan that are not worth counting.
const SMALL_PLAN: usize = 64 << 10;

/// Plans and evaluates `query`: [`Plan::of`] and [`evaluate_plan`].
pub async fn evaluate(
    query: &Expr,
    params: &EvalParams,
    source: &dyn Queryable,
    context: &QueryContext,
) -> Result<QueryOutput, EvalError> {
    context.interrupt().check()?;
    evaluate_plan(&Plan::of(query, params)?, source, context).await
}

/// Evaluates a plan. The future is `Send`, needs no runtime and can be dropped at any point.
///
/// All selects are opened when the future is first polled, before any source is. What the query holds is charged to
/// `context`, whose interrupt stops it in the middle of any loop.
pub async fn evaluate_plan(
    plan: &Plan,
    source: &dyn Queryable,
    context: &QueryContext,
) -> Result<QueryOutput, EvalError> {
    context.interrupt().check()?;
    let mut env = env::Env::new(context, plan);
    let plan_bytes = plan.heap_bytes();
    if plan_bytes > SMALL_PLAN {
        env.charge_kept(plan_bytes, plan.root().span)?;
    }
    let mut root = build::build(plan, source, &mut env)?;
    let mut output = poll_fn(|cx| root.poll(cx, &mut env)).await?;
    output.annotations.repeat(&plan.twins);
    Ok(output)
}

/// Evaluates a fragment of a plan: the aggregation at its root, its groups left unfinished.
pub async fn evaluate_fragment(
    plan: &Plan,
    source: &dyn Queryable,
    context: &QueryContext,
) -> Result<FragmentOutput, EvalError> {
    context.interrupt().check()?;
    let mut env = env::Env::new(context, plan);
    let mut fold = build::build_fragment(plan, source, &mut env)?;
    let groups = poll_fn(|cx| fold.poll_partial(cx, &mut env)).await?;
    let stats = QueryStats {
        peak_samples: context.peak_samples() as u64,
        peak_bytes: context.peak_bytes() as u64,
        ..std::mem::take(&mut env.stats)
    };
    // What is said of a place is said of its twins by the whole plan, once.
    let annotations = std::mem::take(&mut env.annotations);
    let explain = env.explain.as_ref().map(|explain| explain.costs());
    Ok(FragmentOutput { groups, annotations, stats, explain })
}
