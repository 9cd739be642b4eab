//! Metrics of the compactor.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::IndexUpdate;
use crate::tenant::TenantId;

/// The tenant's label; there are as many as tenants in the bucket, and they go when the tenant goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabel {
    tenant: String,
}

impl TenantLabel {
    fn new(tenant: &TenantId) -> Self {
        Self { tenant: tenant.as_str().to_owned() }
    }
}

/// What the compactor tells about itself.
pub(super) struct Metrics {
    pub(super) rounds: Counter,
    pub(super) rounds_failed: Counter,
    pub(super) updates: Counter,
    pub(super) updates_failed: Counter,
    blocks: Family<TenantLabel, Gauge>,
    partial_blocks: Family<TenantLabel, Gauge>,
    damaged_blocks: Family<TenantLabel, Gauge>,
    last_update: Family<TenantLabel, Gauge>,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            rounds: Counter::default(),
            rounds_failed: Counter::default(),
            updates: Counter::default(),
            updates_failed: Counter::default(),
            blocks: Family::default(),
            partial_blocks: Family::default(),
            damaged_blocks: Family::default(),
            last_update: Family::default(),
        };
        registry.register("skald_compactor_rounds", "Rounds over all tenants begun", metrics.rounds.clone());
        registry.register(
            "skald_compactor_rounds_failed",
            "Rounds that ended at once because the tenants could not be listed",
            metrics.rounds_failed.clone(),
        );
        registry.register("skald_bucket_index_updates", "Updates of a tenant's bucket index", metrics.updates.clone());
        registry.register(
            "skald_bucket_index_updates_failed",
            "Updates of a tenant's bucket index that failed",
            metrics.updates_failed.clone(),
        );
        registry.register("skald_bucket_blocks", "Blocks in the bucket index", metrics.blocks.clone());
        registry.register(
            "skald_bucket_partial_blocks",
            "Blocks without meta.json: uploads under way or given up, deletions under way",
            metrics.partial_blocks.clone(),
        );
        registry.register(
            "skald_bucket_damaged_blocks",
            "Blocks left out of the bucket index because their meta.json cannot be read",
            metrics.damaged_blocks.clone(),
        );
        registry.register(
            "skald_bucket_index_last_update_timestamp_seconds",
            "When the bucket index was last written",
            metrics.last_update.clone(),
        );
        metrics
    }

    pub(super) fn updated(&self, tenant: &TenantId, update: &IndexUpdate) {
        let label = TenantLabel::new(tenant);
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.blocks.get_or_create(&label).set(count(update.index.blocks.len()));
        self.partial_blocks.get_or_create(&label).set(count(update.partial.len()));
        self.damaged_blocks.get_or_create(&label).set(count(update.damaged.len()));
        self.last_update.get_or_create(&label).set(update.index.updated_at);
    }

    pub(super) fn forget(&self, tenant: &TenantId) {
        let label = TenantLabel::new(tenant);
        self.blocks.remove(&label);
        self.partial_blocks.remove(&label);
        self.damaged_blocks.remove(&label);
        self.last_update.remove(&label);
    }
}
