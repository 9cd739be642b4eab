//! What a querier does for the query-frontend.

use std::time::Duration;

use async_trait::async_trait;
use skald_model::{Labels, MetricMetadata};
use skald_promql::eval::{AnswerCharge, QueryStats, Value};

use crate::error::ServiceError;
use crate::select::{LabelRequest, SeriesExemplars};
use crate::tenant::TenantId;

/// Asks for the evaluation of one query.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryRequest {
    /// The expression.
    pub query: String,
    /// First step, milliseconds since the epoch.
    pub start: i64,
    /// Nominal end; equal to the start for an instant query.
    pub end: i64,
    /// Distance of the steps in milliseconds; 0 makes the query an instant one.
    pub step: i64,
    /// How far an instant selector looks back, milliseconds.
    pub lookback: i64,
    /// Time the evaluation may take.
    pub timeout: Duration,
    /// Whether the statistics are wanted per step, too.
    pub per_step_stats: bool,
}

/// A query's answer with everything said about it.
#[derive(Debug)]
pub struct QueryReply {
    /// The answer.
    pub value: Value,
    /// Warnings, as the API shows them.
    pub warnings: Vec<String>,
    /// Infos, likewise.
    pub infos: Vec<String>,
    /// What it took.
    pub stats: QueryStats,
    /// What the answer holds of a budget, for as long as it is kept; `None` if it came from another process.
    pub charge: Option<AnswerCharge>,
}

/// A querier as the query-frontend sees it, in this process or behind gRPC. Dropping a call cancels it.
#[async_trait]
pub trait QuerierClient: Send + Sync + 'static {
    /// Evaluates a query.
    async fn query(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError>;
    /// Label names, ascending, unique.
    async fn label_names(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<String>, ServiceError>;
    /// Values of one label, ascending, unique.
    async fn label_values(
        &self,
        tenant: &TenantId,
        name: &str,
        request: LabelRequest,
    ) -> Result<Vec<String>, ServiceError>;
    /// Label sets, ascending, unique.
    async fn series(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<Labels>, ServiceError>;
    /// Exemplars by series, ascending by labels.
    async fn exemplars(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError>;
    /// Metadata of one metric, or of all.
    async fn metadata(&self, tenant: &TenantId, metric: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError>;
}
