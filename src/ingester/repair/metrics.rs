//! What repair tells of itself.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Why a comparison was not whole: a stable id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(in crate::ingester) struct Failure {
    pub(super) reason: String,
}

/// Metrics of repair.
#[derive(Debug, Clone, Default)]
pub(in crate::ingester) struct RepairMetrics {
    pub(super) passes: Counter,
    pub(super) failures: Family<Failure, Counter>,
    pub(super) repaired: Gauge,
    pub(super) tenants_failed: Counter,
    pub(super) ranges_compared: Counter,
    pub(super) ranges_differing: Counter,
    pub(super) series_compared: Counter,
    pub(super) series_differing: Counter,
    pub(super) samples_digested: Counter,
    pub(super) chunks_fetched: Counter,
    pub(super) bytes_fetched: Counter,
    pub(super) samples_imported: Counter,
    pub(super) conflicts: Counter,
    pub(super) last_pass_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub(super) last_whole_pass_time: Gauge,
}

impl RepairMetrics {
    /// Registers the metrics.
    pub(in crate::ingester) fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("repair");
        let metrics = Self::default();
        let count = |registry: &mut Registry, name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        count(registry, "passes", "Comparisons with another member of the replica group", &metrics.passes);
        registry.register("failures", "Comparisons that were not whole, by reason", metrics.failures.clone());
        registry.register("repaired", "Whether this ingester counts for reads", metrics.repaired.clone());
        count(registry, "tenants_failed", "Tenants that could not be compared whole", &metrics.tenants_failed);
        count(registry, "ranges_compared", "Ranges of a tenant compared", &metrics.ranges_compared);
        count(registry, "ranges_differing", "Ranges of a tenant that differed", &metrics.ranges_differing);
        count(registry, "series_compared", "Series compared one by one", &metrics.series_compared);
        count(registry, "series_differing", "Series whose chunks were asked for", &metrics.series_differing);
        count(registry, "samples_digested", "Samples decoded for digests of ranges", &metrics.samples_digested);
        count(registry, "chunks_fetched", "Chunks fetched", &metrics.chunks_fetched);
        count(registry, "bytes_fetched", "Bytes of chunks fetched", &metrics.bytes_fetched);
        count(
            registry,
            "samples_imported",
            "Samples that were missing here and are not any more",
            &metrics.samples_imported,
        );
        count(registry, "conflicts", "Samples of which another member has another value", &metrics.conflicts);
        let help = "Time of the last pass over all members";
        registry.register_with_unit("last_pass_duration", help, Unit::Seconds, metrics.last_pass_seconds.clone());
        let help = "When a pass over all members of the group was last whole";
        registry.register("last_whole_pass_timestamp_seconds", help, metrics.last_whole_pass_time.clone());
        metrics
    }
}
