//! The queriers as one: each request waits for its turn, and goes to another querier once when the first cannot take it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use skald_model::{Labels, MetricMetadata, TimestampMs};
use skald_promql::plan::{Op, Plan};

use crate::error::{ErrorKind, ServiceError};
use crate::grpc::may_succeed_elsewhere;
use crate::querier::client::{FragmentReply, QuerierClient, QueryReply, QueryRequest};
use crate::query_plan::SentPlan;
use crate::query_scheduler::client::{Ask, Reads, SchedulerClient};
use crate::runtime::Clock;
use crate::select::{LabelRequest, SeriesExemplars};
use crate::tenant::TenantId;

/// A client of the querier at an address.
pub type QuerierAt = Arc<dyn Fn(&str) -> Result<Arc<dyn QuerierClient>, ServiceError> + Send + Sync>;

/// Queriers that a scheduler shares out.
pub struct Queriers {
    scheduler: Arc<dyn SchedulerClient>,
    querier_at: QuerierAt,
    recent_within: Duration,
    clock: Arc<dyn Clock>,
    retries: Counter,
}

impl Queriers {
    /// Those the scheduler knows. What reads samples younger than `recent_within` only waits by itself.
    pub fn new(
        scheduler: Arc<dyn SchedulerClient>,
        querier_at: QuerierAt,
        recent_within: Duration,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Self {
        let retries = Counter::default();
        registry.register(
            "skald_query_frontend_retried_requests",
            "Requests sent to a second querier because the first could not be reached, was cut off or did not know the plan",
            retries.clone(),
        );
        Self { scheduler, querier_at, recent_within, clock, retries }
    }

    fn reads_from(&self, oldest: Option<TimestampMs>) -> Reads {
        let recent = self.clock.now_ms().saturating_sub(self.recent_within.as_millis() as i64);
        if oldest.is_none_or(|oldest| oldest >= recent) { Reads::Recent } else { Reads::Store }
    }

    fn reads(&self, request: &QueryRequest) -> Reads {
        match &request.plan {
            SentPlan::Here(plan) => self.reads_from(oldest(plan)),
            SentPlan::Encoded(_) => Reads::Store,
        }
    }

    async fn ask<T>(
        &self,
        tenant: &TenantId,
        reads: Reads,
        call: impl Fn(Arc<dyn QuerierClient>) -> BoxFuture<'static, Result<T, ServiceError>> + Send + Sync,
    ) -> Result<T, ServiceError>
    where
        T: Send,
    {
        let mut not = Vec::new();
        loop {
            let turn = self.scheduler.turn(tenant, Ask { reads, not: not.clone() }).await?;
            let outcome = call((self.querier_at)(&turn.querier)?).await;
            match outcome {
                Err(error) if not.is_empty() && another_may(&error) => {
                    tracing::debug!(querier = &*turn.querier, error = error.message, "asking another querier");
                    self.retries.inc();
                    not.push(turn.querier);
                }
                outcome => return outcome,
            }
        }
    }
}

/// Whether another querier may succeed: this one was not reached, stops, broke off, or does not know the plan.
fn another_may(error: &ServiceError) -> bool {
    may_succeed_elsewhere(error) || error.reason == "query-answer-cut" || error.kind == ErrorKind::Unimplemented
}

/// The oldest sample that a plan may read.
fn oldest(plan: &Plan) -> Option<TimestampMs> {
    let start = |op: &Op| match op {
        Op::Select { selector, .. } | Op::RangeSelect { selector, .. } => Some(selector.range.min),
        _ => None,
    };
    plan.nodes.iter().filter_map(|node| start(&node.op)).min()
}

#[async_trait]
impl QuerierClient for Queriers {
    async fn query(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError> {
        let reads = self.reads(&request);
        self.ask(tenant, reads, |querier| {
            let (tenant, request) = (tenant.clone(), request.clone());
            Box::pin(async move { querier.query(&tenant, request).await })
        })
        .await
    }

    async fn fragment(&self, tenant: &TenantId, request: QueryRequest) -> Result<FragmentReply, ServiceError> {
        let reads = self.reads(&request);
        self.ask(tenant, reads, |querier| {
            let (tenant, request) = (tenant.clone(), request.clone());
            Box::pin(async move { querier.fragment(&tenant, request).await })
        })
        .await
    }

    async fn label_names(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<String>, ServiceError> {
        self.ask(tenant, self.reads_from(Some(request.range.min)), |querier| {
            let (tenant, request) = (tenant.clone(), request.clone());
            Box::pin(async move { querier.label_names(&tenant, request).await })
        })
        .await
    }

    async fn label_values(
        &self,
        tenant: &TenantId,
        name: &str,
        request: LabelRequest,
    ) -> Result<Vec<String>, ServiceError> {
        self.ask(tenant, self.reads_from(Some(request.range.min)), |querier| {
            let (tenant, name, request) = (tenant.clone(), name.to_owned(), request.clone());
            Box::pin(async move { querier.label_values(&tenant, &name, request).await })
        })
        .await
    }

    async fn series(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        self.ask(tenant, self.reads_from(Some(request.range.min)), |querier| {
            let (tenant, request) = (tenant.clone(), request.clone());
            Box::pin(async move { querier.series(&tenant, request).await })
        })
        .await
    }

    async fn exemplars(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        self.ask(tenant, Reads::Recent, |querier| {
            let (tenant, request) = (tenant.clone(), request.clone());
            Box::pin(async move { querier.exemplars(&tenant, request).await })
        })
        .await
    }

    async fn metadata(&self, tenant: &TenantId, metric: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        self.ask(tenant, Reads::Recent, |querier| {
            let (tenant, metric) = (tenant.clone(), metric.map(str::to_owned));
            Box::pin(async move { querier.metadata(&tenant, metric.as_deref()).await })
        })
        .await
    }
}
