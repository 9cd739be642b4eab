//! Evaluates a query over the series of a [`Queryable`].
//!
//! [`evaluate`] plans the query ([`plan`]: durations resolved, step-invariant parts found, every select opened), then
//! pulls series by series through a tree of operators. A [`selector`] or a range function ([`window`],
//! [`range_function`]) turns one series' samples into [`points::Points`], one value per step; functions change them in
//! place, aggregations fold them into one accumulator per group and drop them, binary operators keep one side.
//! [`result`] makes the answer out of what the topmost operator yields.
//!
//! Absent on purpose: threads, timers, I/O. The future waits for nothing but its sources.

mod absent;
mod aggregate;
pub mod annotations;
mod binary;
pub mod context;
mod date;
mod duration;
mod env;
pub mod error;
mod grid;
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
mod plan;
mod points;
mod quantile;
mod range_function;
mod reader;
mod result;
mod scalar;
mod selector;
mod window;

#[cfg(test)]
mod tests;

use std::future::poll_fn;

pub use annotations::{Annotation, Annotations};
pub use context::{AnswerCharge, Interrupt, QueryContext};
pub use error::EvalError;
pub use output::{Element, QueryOutput, QueryStats, SampleValue, Series, Value};

use crate::ast::Expr;
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

/// Evaluates `query`. The future is `Send`, needs no runtime and can be dropped at any point.
///
/// All selects are opened when the future is first polled, before any source is. What the query holds is charged to
/// `context`, whose interrupt stops it in the middle of any loop.
pub async fn evaluate(
    query: &Expr,
    params: &EvalParams,
    source: &dyn Queryable,
    context: &QueryContext,
) -> Result<QueryOutput, EvalError> {
    context.interrupt().check()?;
    let mut env = env::Env::new(context, params);
    let mut root = plan::plan(query, params, source, &mut env)?;
    poll_fn(|cx| root.poll(cx, &mut env)).await
}
