//! What a store-gateway does for others.

use async_trait::async_trait;
use futures::stream::BoxStream;
use skald_model::Labels;
use skald_tsdb::SeriesChunks;
use ulid::Ulid;

use crate::error::ServiceError;
use crate::select::{LabelRequest, SelectRequest};
use crate::tenant::TenantId;

/// A step of a store-gateway's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlocksBatch {
    /// Series in ascending label order over the whole stream, each once.
    Series(Vec<SeriesChunks>),
    /// Always the last: the blocks whose series all went before. A block that was asked for and is not named here was
    /// not read; ask another store-gateway for it.
    Served(Vec<Ulid>),
}

/// Batches of series, then the blocks they came from.
pub type BlocksStream = BoxStream<'static, Result<BlocksBatch, ServiceError>>;

/// An answer with the blocks it was computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromBlocks<T> {
    /// The answer.
    pub value: T,
    /// The blocks that were read.
    pub served: Vec<Ulid>,
}

/// A store-gateway as its neighbours see it, in this process or behind gRPC.
///
/// Every request names the blocks to read. Blocks this gateway does not have are left out of `served`; a block that
/// turns out damaged is an error naming it. A block is only ever looked for under the tenant's own prefix.
#[async_trait]
pub trait StoreGatewayClient: Send + Sync + 'static {
    /// Whether it may be asked like any other: calls to it have not failed to reach it again and again of late. Callers who
    /// have a choice ask one that is not healthy last.
    fn is_healthy(&self) -> bool {
        true
    }
    /// Series with their chunks.
    async fn select(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: SelectRequest,
    ) -> Result<BlocksStream, ServiceError>;
    /// Label names, ascending, unique.
    async fn label_names(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError>;
    /// Values of one label, ascending, unique.
    async fn label_values(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        name: &str,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError>;
    /// Label sets, ascending, unique.
    async fn series(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<Labels>>, ServiceError>;
}
