//! What a querier does for the query-frontend.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skald_model::{Labels, MetricMetadata};
use skald_promql::eval::{Annotations, AnswerCharge, EvalError, FragmentOutput, NodeCost, QueryStats, Value};
use skald_promql::source::SourceError;

use crate::error::{ErrorKind, ServiceError};
use crate::query_plan::SentPlan;
use crate::select::{LabelRequest, SeriesExemplars};
use crate::tenant::TenantId;

/// Asks for the evaluation of one query, or of a fragment of one.
#[derive(Debug, Clone)]
pub struct QueryRequest {
    /// The query's text, for people.
    pub query: Arc<str>,
    /// What is to be evaluated.
    pub plan: SentPlan,
    /// Time the evaluation may take.
    pub timeout: Duration,
    /// Whether the costs of the plan's nodes are wanted.
    pub explain: bool,
}

/// A query's answer with everything said about it.
#[derive(Debug)]
pub struct QueryReply {
    /// The answer.
    pub value: Value,
    /// Warnings and infos about parts of the query.
    pub annotations: Annotations,
    /// Warnings about its sources.
    pub warnings: Vec<String>,
    /// What it took.
    pub stats: QueryStats,
    /// What each node of the plan took, by its id, if that was asked for.
    pub explain: Option<Vec<NodeCost>>,
    /// What the answer holds of a budget, for as long as it is kept; `None` if it came from another process.
    pub charge: Option<AnswerCharge>,
}

/// What a fragment yields.
#[derive(Debug)]
pub struct FragmentReply {
    /// Groups, and what was said about them.
    pub output: FragmentOutput,
    /// Warnings about its sources.
    pub warnings: Vec<String>,
}

/// The error a query ends with.
pub fn query_error(error: EvalError) -> ServiceError {
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

/// A querier as the query-frontend sees it, in this process or behind gRPC. Dropping a call cancels it.
#[async_trait]
pub trait QuerierClient: Send + Sync + 'static {
    /// Evaluates a query.
    async fn query(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError>;
    /// Evaluates a plan whose root is an aggregation, its groups left unfinished.
    async fn fragment(&self, tenant: &TenantId, request: QueryRequest) -> Result<FragmentReply, ServiceError>;
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
