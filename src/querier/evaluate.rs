//! Runs one query, or a fragment of one, on the query pool, beginning where it arrives.

use std::sync::Arc;
use std::time::Duration;

use skald_promql::eval::{
    CancelOnDrop, EvalError, Interrupt, QueryContext, QueryStats, evaluate_fragment, evaluate_plan,
};
use skald_promql::plan::Plan;
use tokio::runtime::Handle;

use super::client::{FragmentReply, QueryReply, QueryRequest, query_error};
use super::metrics::Counted;
use super::select::{ReadingBounds, TenantSeries, Warnings};
use super::small::Small;
use super::{Querier, Shared};
use crate::error::ServiceError;
use crate::query_plan::SentPlan;
use crate::read_ahead::Place;
use crate::tenant::TenantId;

/// A query about to run.
struct Evaluation {
    plan: Arc<Plan>,
    source: TenantSeries,
    context: QueryContext,
}

impl Evaluation {
    fn new(
        shared: Arc<Shared>,
        tenant: TenantId,
        request: QueryRequest,
        place: Place,
        (interrupt, deadline): (Interrupt, Duration),
        small: Option<Small>,
    ) -> Result<Self, ServiceError> {
        let plan = request.plan.ready()?;
        let memory_limit = shared.config.query_memory_limit.map(|limit| limit.as_usize());
        let workers = Arc::new(shared.runtime.query_pool.clone());
        let mut context = QueryContext::new(memory_limit, shared.config.max_samples, interrupt).with_workers(workers);
        let bounds = ReadingBounds::new(context.clone(), memory_limit, Some(deadline));
        if request.explain {
            let clock = shared.runtime.clock.clone();
            context = context.with_clock(move || clock.monotonic());
        }
        let source = TenantSeries { shared, tenant, place, warnings: Warnings::default(), bounds, small };
        Ok(Self { plan, source, context })
    }

    async fn query(self) -> Result<QueryReply, ServiceError> {
        let output = evaluate_plan(&self.plan, &self.source, &self.context).await.map_err(query_error)?;
        Ok(QueryReply {
            value: output.value,
            annotations: output.annotations,
            warnings: self.source.warnings.take().collect(),
            stats: output.stats,
            explain: output.explain,
            charge: Some(output.charge),
        })
    }

    async fn fragment(self) -> Result<FragmentReply, ServiceError> {
        let output = evaluate_fragment(&self.plan, &self.source, &self.context).await.map_err(query_error)?;
        Ok(FragmentReply { output, warnings: self.source.warnings.take().collect() })
    }
}

impl Querier {
    pub(super) async fn evaluate(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError> {
        self.observed(tenant, request, Evaluation::query, |reply| &reply.stats).await
    }

    pub(super) async fn evaluate_fragment(
        &self,
        tenant: &TenantId,
        request: QueryRequest,
    ) -> Result<FragmentReply, ServiceError> {
        self.observed(tenant, request, Evaluation::fragment, |reply| &reply.output.stats).await
    }

    async fn observed<T, F>(
        &self,
        tenant: &TenantId,
        request: QueryRequest,
        run: fn(Evaluation) -> F,
        stats: fn(&T) -> &QueryStats,
    ) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let clock = &self.shared.runtime.clock;
        let begun = clock.monotonic();
        let reply = self.in_time(tenant, request, run).await;
        self.shared.metrics.ended(clock.monotonic() - begun, reply.as_ref().map(stats));
        reply
    }

    async fn in_time<T, F>(
        &self,
        tenant: &TenantId,
        request: QueryRequest,
        run: fn(Evaluation) -> F,
    ) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let shared = &self.shared;
        let interrupt = Interrupt::default();
        let _cancel = CancelOnDrop(interrupt.clone());
        let timeout = shared.runtime.clock.sleep(request.timeout);
        let deadline = shared.runtime.clock.monotonic().saturating_add(request.timeout);
        let evaluated = async {
            let waiting = Counted::new(&shared.metrics.waiting);
            let _permit = shared.concurrency.acquire().await.map_err(|_| ServiceError::internal("shutting down"))?;
            drop(waiting);
            let _running = Counted::new(&shared.metrics.running);
            let place = Place { pool: shared.runtime.query_pool.clone(), io: Handle::current() };
            let (shared, tenant, end) = (shared.clone(), tenant.clone(), (interrupt.clone(), deadline));
            let query_pool = shared.runtime.query_pool.clone();
            // A plan from elsewhere is decoded on the pool.
            let small = match &request.plan {
                SentPlan::Here(plan) => Small::of(plan),
                SentPlan::Encoded(_) => None,
            };
            let work = async move { run(Evaluation::new(shared, tenant, request, place, end, small)?).await };
            match small.and_then(|small| small.lent()) {
                Some(time) => query_pool.begin(time, work).await?,
                None => query_pool.spawn(work).await?,
            }
        };
        tokio::select! {
            // What is there at once needs no timer.
            biased;
            reply = evaluated => reply,
            () = timeout => {
                interrupt.time_out();
                Err(query_error(EvalError::Timeout))
            }
        }
    }
}
