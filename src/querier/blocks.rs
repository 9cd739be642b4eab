//! Which blocks of the object store a query has to read.

use std::sync::Arc;
use std::time::Duration;

use skald_model::QueryRange;
use ulid::Ulid;

use crate::bucket::index_cache::IndexCache;
use crate::error::ServiceError;
use crate::runtime::Clock;
use crate::tenant::TenantId;

/// How long a block is still read after it was marked for deletion. The blocks that replace it are in the index by then,
/// and it itself is kept for hours longer.
const READ_AFTER_MARK: Duration = Duration::from_secs(50 * 60);

/// Finds blocks in the bucket index.
pub struct BlockFinder {
    indexes: Arc<IndexCache>,
    clock: Arc<dyn Clock>,
}

impl BlockFinder {
    /// A finder that looks into these indexes.
    pub fn new(indexes: Arc<IndexCache>, clock: Arc<dyn Clock>) -> Self {
        Self { indexes, clock }
    }

    /// The tenant's blocks that may hold samples of `range`, ascending.
    pub async fn blocks(&self, tenant: &TenantId, range: QueryRange) -> Result<Vec<Ulid>, ServiceError> {
        let index = self.indexes.get(tenant).await?;
        let gone_before = self.clock.now_ms() - READ_AFTER_MARK.as_millis() as i64;
        let is_gone = |id: Ulid| index.marked_for_deletion_ms(id).is_some_and(|marked| marked < gone_before);
        let wanted = index.blocks.iter().filter(|b| b.range().overlaps(range) && !is_gone(b.block_id));
        Ok(wanted.map(|block| block.block_id).collect())
    }
}
