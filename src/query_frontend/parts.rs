//! One query: evaluated whole by a querier, or in parts by several, its steps cut into intervals and its aggregations into
//! shards of series.
//!
//! Parts are put together by [`super::join`]; shards by the engine itself, which evaluates here what stands above them.
//! Whatever part fails, the query fails: an answer is whole or an error.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use skald_promql::ast::Expr;
use skald_promql::eval::{
    CancelOnDrop, EvalError, EvalParams, FragmentFuture, FragmentRunner, Interrupt, QueryContext, evaluate_plan,
};
use skald_promql::plan::Plan;
use skald_promql::source::{Queryable, Select, SeriesBatch, SeriesSource, SourceError};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::QueryFrontend;
use super::join::Joined;
use super::reading::SHORT_QUERY;
use crate::error::ServiceError;
use crate::querier::client::{QuerierClient, QueryReply, QueryRequest, query_error};
use crate::query_plan::SentPlan;
use crate::runtime::Clock;
use crate::tenant::TenantId;

/// A query, as all its parts know it.
pub struct Asked {
    /// Whose.
    pub tenant: TenantId,
    /// Its text.
    pub query: Arc<str>,
    /// Monotonic time when it must have ended.
    pub deadline: Duration,
    /// Whether the costs of its nodes are wanted.
    pub explain: bool,
    /// Parts that may still begin.
    pub at_once: Semaphore,
}

impl Asked {
    fn request(&self, plan: Arc<Plan>, clock: &dyn Clock) -> QueryRequest {
        QueryRequest {
            query: self.query.clone(),
            plan: SentPlan::Here(plan),
            timeout: self.deadline.saturating_sub(clock.monotonic()),
            explain: self.explain,
        }
    }
}

/// A plan and who evaluates it.
pub struct Planned {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Its shards are evaluated by queriers, the rest here.
    sharded: bool,
}

impl QueryFrontend {
    /// Plans a query, or some of its steps; a long one on the query pool.
    pub(super) async fn planned(
        &self,
        query: &str,
        expr: &Arc<Expr>,
        params: &EvalParams,
        steps: Option<Range<usize>>,
    ) -> Result<Planned, ServiceError> {
        let (expr, params, shards) = (expr.clone(), params.clone(), self.config.query_shards);
        let work = move || {
            let plan = Plan::of_steps(&expr, &params, steps)?;
            if shards > 1 {
                let sharded = plan.sharded(shards);
                if sharded.needs_only_fragments() && sharded.check().is_ok() {
                    return Ok(Planned { plan: Arc::new(sharded), sharded: true });
                }
            }
            Ok(Planned { plan: Arc::new(plan), sharded: false })
        };
        let planned = if query.len() <= SHORT_QUERY { work() } else { self.runtime.query_pool.run(work).await? };
        planned.map_err(query_error)
    }

    /// Where a query is cut by its steps; nothing or one range if it is not. Its costs are those of the whole.
    pub(super) fn cuts(&self, params: &EvalParams, explain: bool) -> Vec<Range<usize>> {
        match self.config.split_interval {
            Some(interval) if params.step_ms > 0 && !explain => {
                cuts(params, i64::try_from(interval.as_millis()).unwrap_or(i64::MAX))
            }
            _ => Vec::new(),
        }
    }

    /// The parts of a query, each evaluated for itself and put together.
    pub(super) async fn in_parts(
        &self,
        asked: &Arc<Asked>,
        expr: &Arc<Expr>,
        params: &EvalParams,
        cuts: Vec<Range<usize>>,
    ) -> Result<QueryReply, ServiceError> {
        let part = |steps: Range<usize>| async move {
            let planned = self.planned(&asked.query, expr, params, Some(steps)).await?;
            self.evaluated(asked, planned).await
        };
        let parts = stream::iter(cuts).map(part).buffered(self.config.max_parts_at_once);
        let joined = Joined::new(self.config.query_memory_limit.map(|limit| limit.as_usize()));
        let joined = parts.try_fold(joined, |mut joined, reply| async move {
            joined.add(reply)?;
            Ok(joined)
        });
        Ok(joined.await?.finish())
    }

    /// The answer to a plan.
    pub(super) async fn evaluated(&self, asked: &Arc<Asked>, planned: Planned) -> Result<QueryReply, ServiceError> {
        if planned.sharded {
            return self.in_shards(asked, planned.plan).await;
        }
        // Alone, it never waits here.
        let _permit = asked.at_once.acquire().await.map_err(|_| ServiceError::internal("shutting down"))?;
        let request = asked.request(planned.plan, self.runtime.clock.as_ref());
        self.querier().query(&asked.tenant, request).await
    }

    /// Evaluates here what stands above the shards.
    async fn in_shards(&self, asked: &Arc<Asked>, plan: Arc<Plan>) -> Result<QueryReply, ServiceError> {
        let interrupt = Interrupt::default();
        let _cancel = CancelOnDrop(interrupt.clone());
        let said = Arc::<Mutex<Said>>::default();
        let fragments = Fragments {
            queriers: self.queriers.clone(),
            asked: asked.clone(),
            clock: self.runtime.clock.clone(),
            io: Handle::current(),
            said: said.clone(),
        };
        let memory_limit = self.config.query_memory_limit.map(|limit| limit.as_usize());
        let mut context = QueryContext::new(memory_limit, None, interrupt).with_fragments(Arc::new(fragments));
        if asked.explain {
            let clock = self.runtime.clock.clone();
            context = context.with_clock(move || clock.monotonic());
        }
        let work = async move { evaluate_plan(&plan, &NoSeries, &context).await };
        let outcome = self.runtime.query_pool.spawn(work).await?;
        let Said { warnings, failure } = std::mem::take(&mut *said.lock());
        match (outcome, failure) {
            (Ok(output), _) => Ok(QueryReply {
                value: output.value,
                annotations: output.annotations,
                warnings: warnings.into_iter().collect(),
                stats: output.stats,
                explain: output.explain,
                charge: Some(output.charge),
            }),
            (Err(_), Some(failure)) => Err(failure),
            (Err(error), None) => Err(query_error(error)),
        }
    }
}

/// The steps of a query by the multiples of `interval` (milliseconds) between which they lie.
fn cuts(params: &EvalParams, interval: i64) -> Vec<Range<usize>> {
    let (start, end, step) = (i128::from(params.start_ms), i128::from(params.end_ms), i128::from(params.step_ms));
    let interval = i128::from(interval.max(1));
    let count = (end - start) / step + 1;
    let mut cuts = Vec::new();
    let mut from = 0;
    while from < count {
        let boundary = ((start + from * step).div_euclid(interval) + 1) * interval;
        // The first step at or behind the boundary.
        let to = (boundary - start + step - 1).div_euclid(step).min(count);
        cuts.push(from as usize..to as usize);
        from = to;
    }
    cuts
}

/// What shards said beside their groups.
#[derive(Default)]
struct Said {
    warnings: BTreeSet<String>,
    /// The first error of a shard, as its querier worded it.
    failure: Option<ServiceError>,
}

/// Has shards evaluated by queriers in turn.
struct Fragments {
    queriers: Arc<dyn QuerierClient>,
    asked: Arc<Asked>,
    clock: Arc<dyn Clock>,
    /// Where calls are made: the engine runs on the query pool, which has no sockets and timers.
    io: Handle,
    said: Arc<Mutex<Said>>,
}

impl FragmentRunner for Fragments {
    fn run(&self, fragment: Plan) -> FragmentFuture {
        let (queriers, asked, clock) = (self.queriers.clone(), self.asked.clone(), self.clock.clone());
        let call = async move {
            let _permit = asked.at_once.acquire().await.map_err(|_| ServiceError::internal("shutting down"))?;
            let request = asked.request(Arc::new(fragment), clock.as_ref());
            queriers.fragment(&asked.tenant, request).await
        };
        let call = AbortOnDropHandle::new(self.io.spawn(call));
        let said = self.said.clone();
        Box::pin(async move {
            match call.await {
                Ok(Ok(reply)) => {
                    said.lock().warnings.extend(reply.warnings);
                    Ok(reply.output)
                }
                Ok(Err(error)) => {
                    said.lock().failure.get_or_insert(error);
                    Err(EvalError::Canceled)
                }
                Err(lost) => Err(EvalError::Internal(format!("a shard was lost: {lost}"))),
            }
        })
    }
}

/// Nothing is read in a query-frontend.
struct NoSeries;

impl Queryable for NoSeries {
    fn select(&self, _: Select) -> Box<dyn SeriesSource> {
        Box::new(Self)
    }
}

impl SeriesSource for NoSeries {
    fn poll_batch(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Box<dyn SeriesBatch>>, SourceError>> {
        Poll::Ready(Err(SourceError::Corrupt("a query-frontend was to read series".to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(start: i64, end: i64, step: i64, interval: i64, expected: &[(usize, usize)]) {
        let cuts = cuts(&EvalParams::range(start, end, step), interval);
        assert_eq!(cuts.iter().map(|cut| (cut.start, cut.end)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn steps_are_cut_at_multiples_of_the_interval() {
        check(0, 100, 10, 1000, &[(0, 11)]);
        check(0, 100, 10, 50, &[(0, 5), (5, 10), (10, 11)]);
        check(7, 100, 10, 50, &[(0, 5), (5, 10)]);
        check(-25, 25, 10, 20, &[(0, 1), (1, 3), (3, 5), (5, 6)]);
        check(0, 100, 70, 50, &[(0, 1), (1, 2)]);
        check(50, 50, 10, 50, &[(0, 1)]);
        check(i64::MAX / 1024 - 10, i64::MAX / 1024, 3, i64::MAX, &[(0, 4)]);
    }
}
