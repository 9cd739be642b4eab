//! Metrics of the store-gateway.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What the store-gateway tells about itself.
#[derive(Clone)]
pub(super) struct Metrics {
    /// Cache of index pages.
    pub(super) index_cache: CacheMetrics,
    /// Cache of chunk pages.
    pub(super) chunks_cache: CacheMetrics,
    /// Blocks open.
    pub(super) open_blocks: Gauge,
    /// Blocks opened from what is on disk.
    pub(super) opened_from_disk: Counter,
    /// Blocks opened by fetching their header.
    pub(super) opened_from_bucket: Counter,
    /// Blocks that could not be opened.
    pub(super) open_failures: Counter,
    /// Damage met, in a block or in what is kept of it on disk.
    pub(super) damages: Counter,
    /// Blocks refused because they are damaged.
    pub(super) quarantined: Gauge,
    /// Requests to the bucket per query.
    pub(super) query_requests: Histogram,
    /// Bytes fetched per query.
    pub(super) query_bytes: Histogram,
    /// Time of a query, from its start to the last batch or the moment it was given up.
    pub(super) query_seconds: Histogram,
    /// Queries that ended with an error.
    pub(super) query_failures: Counter,
}

/// How one cache does.
#[derive(Clone, Default)]
pub(super) struct CacheMetrics {
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) bytes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            index_cache: CacheMetrics::default(),
            chunks_cache: CacheMetrics::default(),
            open_blocks: Gauge::default(),
            opened_from_disk: Counter::default(),
            opened_from_bucket: Counter::default(),
            open_failures: Counter::default(),
            damages: Counter::default(),
            quarantined: Gauge::default(),
            query_requests: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            query_bytes: Histogram::new(exponential_buckets(65_536.0, 4.0, 10)),
            query_seconds: Histogram::new(exponential_buckets(0.001, 3.0, 11)),
            query_failures: Counter::default(),
        }
    }
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("skald_store_gateway");
        for (name, cache) in [("index", &metrics.index_cache), ("chunks", &metrics.chunks_cache)] {
            registry.register(format!("{name}_cache_hits"), "Pages found in the cache", cache.hits.clone());
            registry.register(
                format!("{name}_cache_misses"),
                "Pages fetched because the cache did not hold them",
                cache.misses.clone(),
            );
            registry.register(format!("{name}_cache_bytes"), "Memory the cache uses", cache.bytes.clone());
        }
        registry.register("open_blocks", "Blocks open", metrics.open_blocks.clone());
        registry.register(
            "blocks_opened_from_disk",
            "Blocks opened from the header kept on this machine",
            metrics.opened_from_disk.clone(),
        );
        registry.register(
            "blocks_opened_from_bucket",
            "Blocks opened by fetching their header",
            metrics.opened_from_bucket.clone(),
        );
        registry.register("block_open_failures", "Blocks that could not be opened", metrics.open_failures.clone());
        registry.register(
            "damages",
            "Damaged data met in blocks or in what is kept of them on this machine",
            metrics.damages.clone(),
        );
        registry.register(
            "quarantined_blocks",
            "Blocks refused because they turned out damaged",
            metrics.quarantined.clone(),
        );
        registry.register("query_bucket_requests", "Requests to the bucket per query", metrics.query_requests.clone());
        registry.register("query_bucket_bytes", "Bytes fetched per query", metrics.query_bytes.clone());
        registry.register("query_duration_seconds", "Time of a query", metrics.query_seconds.clone());
        registry.register("query_failures", "Queries that failed", metrics.query_failures.clone());
        metrics
    }
}
