//! Which part of a write goes to which replica group.

use std::sync::Arc;

use skald_proto::WriteBatch;
use skald_ring::{Ring, metadata_token, series_token};

use crate::tenant::TenantId;

/// The parts of a write with the position of their group in the ring. With one group the batch goes as it is.
pub(super) fn shard(batch: Arc<WriteBatch>, ring: &Ring, tenant: &TenantId) -> Vec<(usize, Arc<WriteBatch>)> {
    let groups = ring.groups().len();
    if groups == 1 {
        return vec![(0, batch)];
    }
    let tenant = tenant.as_str();
    let parts = batch.split(
        groups,
        |series| ring.position_of(series_token(tenant, series.hash)),
        |metadata| ring.position_of(metadata_token(tenant, &metadata.metric)),
    );
    parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()).map(|(i, part)| (i, Arc::new(part))).collect()
}
