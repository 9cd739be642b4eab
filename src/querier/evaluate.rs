//! Runs one query on the query pool.

use std::sync::Arc;

use skald_promql::eval::{self, EvalError, EvalParams, Interrupt, QueryContext};
use skald_promql::parse::parse_expr;
use skald_promql::source::SourceError;
use tokio::runtime::Handle;

use super::client::{QueryReply, QueryRequest};
use super::metrics::Counted;
use super::select::{ReadingBounds, TenantSeries, Warnings};
use super::{Querier, Shared};
use crate::error::{ErrorKind, ServiceError};
use crate::read_ahead::Place;
use crate::tenant::TenantId;

/// Warnings, and infos, that one answer carries.
const MOST_ANNOTATIONS: usize = 10;

/// Stops the query's loops when whoever asked is gone; dropping a pool task alone stops it only where it waits.
struct CancelOnDrop(Interrupt);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Querier {
    pub(super) async fn evaluate(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError> {
        let clock = &self.shared.runtime.clock;
        let begun = clock.monotonic();
        let reply = self.evaluate_in_time(tenant, request).await;
        self.shared.metrics.ended(clock.monotonic() - begun, reply.as_ref().map(|reply| &reply.stats));
        reply
    }

    async fn evaluate_in_time(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError> {
        let shared = &self.shared;
        let interrupt = Interrupt::default();
        let _cancel = CancelOnDrop(interrupt.clone());
        let timeout = shared.runtime.clock.sleep(request.timeout);
        let evaluated = async {
            let waiting = Counted::new(&shared.metrics.waiting);
            let _permit = shared.concurrency.acquire().await.map_err(|_| ServiceError::internal("shutting down"))?;
            drop(waiting);
            let _running = Counted::new(&shared.metrics.running);
            let place = Place { pool: shared.runtime.query_pool.clone(), io: Handle::current() };
            let run = run(shared.clone(), tenant.clone(), request, place, interrupt.clone());
            shared.runtime.query_pool.spawn(run).await?
        };
        tokio::select! {
            reply = evaluated => reply,
            () = timeout => {
                interrupt.time_out();
                Err(service_error(EvalError::Timeout))
            }
        }
    }
}

async fn run(
    shared: Arc<Shared>,
    tenant: TenantId,
    request: QueryRequest,
    place: Place,
    interrupt: Interrupt,
) -> Result<QueryReply, ServiceError> {
    let expr = parse_expr(&request.query, &shared.promql.parse_options())
        .map_err(|e| ServiceError::new(ErrorKind::BadData, "invalid-query", e.to_string()))?;
    let memory_limit = shared.config.query_memory_limit.map(|limit| limit.as_usize());
    let workers = Arc::new(shared.runtime.query_pool.clone());
    let context = QueryContext::new(memory_limit, shared.config.max_samples, interrupt).with_workers(workers);
    let bounds = ReadingBounds::new(context.clone(), memory_limit);
    let source = TenantSeries { shared: shared.clone(), tenant, place, warnings: Warnings::default(), bounds };
    let params = EvalParams {
        lookback_ms: request.lookback,
        default_subquery_step_ms: shared.promql.default_subquery_step.as_millis() as i64,
        delayed_name_removal: shared.promql.delayed_name_removal,
        per_step_stats: request.per_step_stats,
        ..EvalParams::range(request.start, request.end, request.step)
    };
    let output = eval::evaluate(&expr, &params, &source, &context).await.map_err(service_error)?;
    Ok(QueryReply {
        warnings: source.warnings.take().chain(output.annotations.warnings(&request.query, MOST_ANNOTATIONS)).collect(),
        infos: output.annotations.infos(&request.query, MOST_ANNOTATIONS),
        value: output.value,
        stats: output.stats,
        charge: Some(output.charge),
    })
}

fn service_error(error: EvalError) -> ServiceError {
    let (kind, reason) = match &error {
        EvalError::Execution(_) => (ErrorKind::Unprocessable, "query-execution"),
        EvalError::BadData(_) => (ErrorKind::BadData, "invalid-query"),
        EvalError::Timeout => (ErrorKind::Timeout, "query-timeout"),
        EvalError::Canceled => (ErrorKind::Canceled, "query-canceled"),
        EvalError::TooManySamples => (ErrorKind::Unprocessable, "max-samples-per-query"),
        EvalError::MemoryLimit { .. } => (ErrorKind::Unprocessable, "max-memory-per-query"),
        EvalError::Source(SourceError::Limit(_)) => (ErrorKind::Unprocessable, "query-limit"),
        EvalError::Source(SourceError::Unavailable(_)) => (ErrorKind::Unavailable, "source-unavailable"),
        EvalError::Source(SourceError::Interrupted(_)) => (ErrorKind::Timeout, "query-timeout"),
        EvalError::Source(SourceError::Corrupt(_)) => (ErrorKind::Internal, "source-corrupt"),
        EvalError::Internal(_) => (ErrorKind::Internal, "internal"),
    };
    ServiceError::new(kind, reason, error.to_string())
}
