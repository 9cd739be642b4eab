//! What an ingester does for others.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use skald_model::{Labels, MetricMetadata, TimestampMs};
use skald_proto::WriteBatch;
use skald_tsdb::head::PartDigest;

use super::repair::exchange::{
    ChunkStream, ChunksRequest, DigestsRequest, OverviewStream, SeriesDigestStream, SeriesRequest,
};
use crate::error::{ErrorKind, ServiceError};
use crate::select::{LabelRequest, SelectRequest, SeriesExemplars, SeriesStream};
use crate::tenant::TenantId;

/// What became of a push that was carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushReply {
    /// Float and histogram samples stored, those that were there already included.
    pub samples: u64,
    /// Histogram samples among them.
    pub histograms: u64,
    /// Exemplars stored.
    pub exemplars: u64,
    /// What was refused, one entry per kind and reason, in the order of first occurrence.
    pub rejections: Vec<Rejection>,
}

/// What became of a push of series known by their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownReply {
    /// Of the series that are here.
    pub reply: PushReply,
    /// Numbers of the series in the batch that are not, ascending.
    pub unknown: Vec<u32>,
}

/// Parts of a push refused for one reason; repeating them cannot succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What was refused.
    pub kind: RejectedKind,
    /// Stable id of the cause.
    pub reason: Cow<'static, str>,
    /// How many.
    pub count: u64,
    /// The first one's message: names series, value and limit.
    pub message: String,
}

/// What a [`Rejection`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectedKind {
    /// Float and histogram samples; they make the write answer 400.
    Sample,
    /// Exemplars; counted only.
    Exemplar,
    /// Metadata; counted only.
    Metadata,
}

/// An ingester as its neighbours see it, in this process or behind gRPC.
///
/// Contract, checked by `ingester::tests` for both implementations: an error means nothing was acknowledged (a
/// retry is safe, writes are idempotent); a reply means every sample it counts as stored is logged. Refused parts never
/// make a push fail. No method shows one tenant another's data. Dropping a stream cancels its reading.
#[async_trait]
pub trait IngesterClient: Send + Sync + 'static {
    /// Whether it may be asked like any other: calls to it have not failed to reach it again and again of late. Callers who
    /// have a choice ask one that is not healthy last.
    fn is_healthy(&self) -> bool {
        true
    }
    /// Stores a batch.
    async fn push(&self, tenant: &TenantId, batch: Arc<WriteBatch>) -> Result<PushReply, ServiceError>;
    /// Stores a batch of series that are probably here, each known by its hash alone (its labels in the batch are not looked
    /// at). What is not here is told, and nothing of it stored or refused.
    async fn push_known(&self, _: &TenantId, _: Arc<WriteBatch>) -> Result<KnownReply, ServiceError> {
        Err(ServiceError::new(ErrorKind::Unimplemented, "no-push-known", "this ingester takes series with labels only"))
    }
    /// Series with their chunks.
    async fn select(&self, tenant: &TenantId, request: SelectRequest) -> Result<SeriesStream, ServiceError>;
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

    /// For the other members of the replica group: what is here of every tenant, up to a time.
    async fn repair_overview(&self, _up_to: TimestampMs) -> Result<OverviewStream, ServiceError> {
        Err(no_repair())
    }
    /// Digests of parts of a tenant's series.
    async fn repair_digests(&self, _: &TenantId, _: DigestsRequest) -> Result<Vec<PartDigest>, ServiceError> {
        Err(no_repair())
    }
    /// Digests of single series.
    async fn repair_series(&self, _: &TenantId, _: SeriesRequest) -> Result<SeriesDigestStream, ServiceError> {
        Err(no_repair())
    }
    /// The chunks of series, those of which there are any.
    async fn repair_chunks(&self, _: &TenantId, _: ChunksRequest) -> Result<ChunkStream, ServiceError> {
        Err(no_repair())
    }
}

/// Who only stands in for an ingester has nothing to compare.
fn no_repair() -> ServiceError {
    ServiceError::new(ErrorKind::Unimplemented, "no-repair", "this ingester compares nothing")
}
