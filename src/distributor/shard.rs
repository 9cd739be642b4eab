//! Which part of a write goes to which replica group.

use std::sync::Arc;

use skald_proto::WriteBatch;
use skald_ring::{Positions, Subring, metadata_token, series_token};

use crate::tenant::TenantId;

/// The parts of a write with the position of their group in the tenant's subring, among the `usable` ones, of which there
/// is at least one. With one group the batch goes as it is.
pub(super) fn shard(
    batch: Arc<WriteBatch>,
    subring: &Subring,
    usable: &Positions,
    tenant: &TenantId,
) -> Vec<(usize, Arc<WriteBatch>)> {
    let groups = subring.groups().len();
    if groups == 1 {
        return vec![(0, batch)];
    }
    let tenant = tenant.as_str();
    let all = usable.len() == groups;
    let position =
        |token| if all { subring.position_of(token) } else { subring.position_among(token, usable).unwrap_or(0) };
    let parts = batch.split(
        groups,
        |series| position(series_token(tenant, series.hash)),
        |metadata| position(metadata_token(tenant, &metadata.metric)),
    );
    parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()).map(|(i, part)| (i, Arc::new(part))).collect()
}
