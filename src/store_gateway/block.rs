//! A block that is open: what every query of it needs.

use std::sync::atomic::AtomicU64;

use skald_model::BlockRange;
use skald_tsdb::block::{BlockError, BlockFile, IndexHeader, Tombstones};
use ulid::Ulid;

use super::pages::PagedObject;
use crate::bucket::BucketError;
use crate::error::{ErrorKind, ServiceError};
use crate::runtime::pool::TaskLost;
use crate::tenant::TenantId;

/// A block that is open. The samples are in the bucket, and so are most of its index.
pub(super) struct OpenBlock {
    pub(super) tenant: TenantId,
    pub(super) id: Ulid,
    /// The time it answers for.
    pub(super) range: BlockRange,
    /// Symbols and postings offsets.
    pub(super) header: IndexHeader,
    /// What is deleted of it.
    pub(super) tombstones: Tombstones,
    pub(super) index: PagedObject,
    /// By number, from 0.
    pub(super) segments: Vec<PagedObject>,
    /// Bytes that most likely hold a series' entry; grows with the entries that are met.
    pub(super) entry_estimate: AtomicU64,
    /// Bytes that most likely hold a chunk; grows likewise.
    pub(super) chunk_estimate: AtomicU64,
}

/// A block could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// Its bytes are wrong, or of a kind this program does not know.
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Lost(#[from] TaskLost),
    /// A bound of the request.
    #[error(transparent)]
    Bounded(ServiceError),
}

impl ReadError {
    /// Whether it may be the cache or the transfer that is damaged, so that another look is worth its while.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Block(BlockError::Damaged { .. }))
    }

    /// What the service answers when reading this block ends so.
    pub(super) fn into_service_error(self, tenant: &TenantId, id: Ulid) -> ServiceError {
        match self {
            Self::Bucket(error) if error.is_not_found() => ServiceError::new(
                ErrorKind::Unavailable,
                "block-gone",
                format!("block {id} of tenant {tenant} is gone from the bucket: {error}"),
            ),
            Self::Bucket(error) => error.into(),
            Self::Block(BlockError::Io { file: BlockFile::IndexHeader, source }) => ServiceError::internal(format!(
                "what is kept on this machine of block {id} of tenant {tenant} cannot be read: {source}"
            )),
            Self::Block(error) => damaged_block(tenant, id, &error),
            Self::Lost(lost) => lost.into(),
            Self::Bounded(error) => error,
        }
    }
}

/// What the service answers when a block is damaged; names it.
pub(super) fn damaged_block(tenant: &TenantId, id: Ulid, why: &dyn std::fmt::Display) -> ServiceError {
    ServiceError::new(
        ErrorKind::Internal,
        "block-damaged",
        format!("block {id} of tenant {tenant} cannot be read: {why}"),
    )
}
