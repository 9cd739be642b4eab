//! What the ingester tells of itself.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use skald_tsdb::head::ChunkFileStats;

use super::repair::RepairMetrics;

/// The ingester's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Samples stored.
    pub(super) samples: Counter,
    /// Exemplars stored.
    pub(super) exemplars: Counter,
    /// Pushes that failed as a whole.
    pub(super) push_failures: Counter,
    /// Seconds a push takes in head and log.
    pub(super) push_duration: Histogram,
    /// Series in memory, of all tenants.
    pub(super) series: Gauge,
    /// Tenants with a head.
    pub(super) tenants: Gauge,
    /// Tenants of which other groups are told.
    pub(super) counted_tenants: Gauge,
    /// Bytes of the log on disk.
    pub(super) wal_bytes: Gauge,
    /// Segments of the log.
    pub(super) wal_segments: Gauge,
    /// Syncs of the log that failed.
    pub(super) wal_sync_failures: Counter,
    /// Seconds one sync takes.
    pub(super) wal_sync_duration: Histogram,
    /// Chunk files.
    chunk_files: Gauge,
    /// Bytes of chunk files.
    chunk_file_bytes: Gauge,
    /// Bytes of chunks in them that heads need.
    chunk_file_live_bytes: Gauge,
    /// Bytes of closed chunks that wait in memory.
    chunk_pending_bytes: Gauge,
    /// Writes to chunk files that failed.
    chunk_write_failures: Counter,
    /// Reads of chunks that failed.
    chunk_read_failures: Counter,
    /// Chunks that blocks lack because they could not be read.
    pub(super) chunks_lost: Counter,
    /// Samples in them.
    pub(super) samples_lost: Counter,
    /// Samples that the start knows to have been lost.
    pub(super) restart_lost_samples: Counter,
    /// Bytes of damaged places of which it does not know what they held.
    pub(super) restart_lost_bytes: Counter,
    /// Seconds a snapshot of the heads takes.
    pub(super) snapshot_duration: Histogram,
    /// Bytes of the last snapshot.
    pub(super) snapshot_bytes: Gauge,
    /// When the last snapshot was completed, Unix seconds.
    pub(super) snapshot_success_time: Gauge,
    /// Snapshots that were given up.
    pub(super) snapshot_failures: Counter,
    /// Blocks written.
    pub(super) blocks_written: Counter,
    /// Flushes before their time, to let series go.
    pub(super) early_flushes: Counter,
    /// Flushes that failed.
    pub(super) flush_failures: Counter,
    /// Blocks uploaded.
    pub(super) uploads: Counter,
    /// Uploads that failed.
    pub(super) upload_failures: Counter,
    /// Comparisons with other members of the replica group.
    pub(super) repair: RepairMetrics,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("skald_ingester");
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let metrics = Self {
            samples: Counter::default(),
            exemplars: Counter::default(),
            push_failures: Counter::default(),
            push_duration: seconds(),
            series: Gauge::default(),
            tenants: Gauge::default(),
            counted_tenants: Gauge::default(),
            wal_bytes: Gauge::default(),
            wal_segments: Gauge::default(),
            wal_sync_failures: Counter::default(),
            wal_sync_duration: seconds(),
            chunk_files: Gauge::default(),
            chunk_file_bytes: Gauge::default(),
            chunk_file_live_bytes: Gauge::default(),
            chunk_pending_bytes: Gauge::default(),
            chunk_write_failures: Counter::default(),
            chunk_read_failures: Counter::default(),
            chunks_lost: Counter::default(),
            samples_lost: Counter::default(),
            restart_lost_samples: Counter::default(),
            restart_lost_bytes: Counter::default(),
            snapshot_duration: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            snapshot_bytes: Gauge::default(),
            snapshot_success_time: Gauge::default(),
            snapshot_failures: Counter::default(),
            blocks_written: Counter::default(),
            early_flushes: Counter::default(),
            flush_failures: Counter::default(),
            uploads: Counter::default(),
            upload_failures: Counter::default(),
            repair: RepairMetrics::new(registry),
        };
        registry.register("ingested_samples", "Samples stored", metrics.samples.clone());
        registry.register("ingested_exemplars", "Exemplars stored", metrics.exemplars.clone());
        registry.register("push_failures", "Pushes that failed as a whole", metrics.push_failures.clone());
        registry.register("push_duration_seconds", "Time of a push in head and log", metrics.push_duration.clone());
        registry.register("memory_series", "Series in memory", metrics.series.clone());
        registry.register(
            "limit_tenants",
            "Tenants that have used a quarter of their limit of series, of which the replica groups tell each other",
            metrics.counted_tenants.clone(),
        );
        registry.register("memory_tenants", "Tenants with a head in memory", metrics.tenants.clone());
        registry.register("wal_bytes", "Size of the write-ahead log", metrics.wal_bytes.clone());
        registry.register("wal_segments", "Segments of the write-ahead log", metrics.wal_segments.clone());
        registry.register("wal_sync_failures", "Syncs of the log that failed", metrics.wal_sync_failures.clone());
        registry.register("wal_sync_duration_seconds", "Time of a sync of the log", metrics.wal_sync_duration.clone());
        registry.register("chunk_files", "Files with closed chunks", metrics.chunk_files.clone());
        registry.register("chunk_file_bytes", "Size of the chunk files", metrics.chunk_file_bytes.clone());
        let live_bytes = metrics.chunk_file_live_bytes.clone();
        registry.register("chunk_file_live_bytes", "Bytes of chunk files that heads need", live_bytes);
        let pending_bytes = metrics.chunk_pending_bytes.clone();
        registry.register("chunk_pending_bytes", "Bytes of closed chunks that wait in memory", pending_bytes);
        let write_failures = metrics.chunk_write_failures.clone();
        registry.register("chunk_write_failures", "Writes to chunk files that failed", write_failures);
        let read_failures = metrics.chunk_read_failures.clone();
        registry.register("chunk_read_failures", "Reads of chunks that failed", read_failures);
        registry.register("chunks_lost", "Chunks missing in blocks: not readable", metrics.chunks_lost.clone());
        registry.register("samples_lost", "Samples missing in blocks: not readable", metrics.samples_lost.clone());
        let lost = metrics.restart_lost_samples.clone();
        registry.register("restart_lost_samples", "Acknowledged samples the start could not bring back", lost);
        let lost = metrics.restart_lost_bytes.clone();
        registry.register("restart_lost_bytes", "Damaged bytes of the log that held nobody knows what", lost);
        let snapshots = metrics.snapshot_duration.clone();
        registry.register("snapshot_duration_seconds", "Time of a snapshot of the heads", snapshots);
        registry.register("snapshot_bytes", "Size of the last snapshot of the heads", metrics.snapshot_bytes.clone());
        let success = metrics.snapshot_success_time.clone();
        registry.register("snapshot_last_success_timestamp_seconds", "When the last snapshot was completed", success);
        registry.register("snapshot_failures", "Snapshots that were given up", metrics.snapshot_failures.clone());
        registry.register("blocks_written", "Blocks cut from heads", metrics.blocks_written.clone());
        registry.register("early_flushes", "Flushes that let ended series go", metrics.early_flushes.clone());
        registry.register("flush_failures", "Flushes of a head that failed", metrics.flush_failures.clone());
        registry.register("block_uploads", "Blocks uploaded to the bucket", metrics.uploads.clone());
        registry.register("block_upload_failures", "Uploads that failed", metrics.upload_failures.clone());
        metrics
    }

    /// Brings what concerns chunk files up to date.
    pub(super) fn observe_chunk_files(&self, stats: &ChunkFileStats) {
        self.chunk_files.set(stats.files as i64);
        self.chunk_file_bytes.set(stats.bytes as i64);
        self.chunk_file_live_bytes.set(stats.live_bytes as i64);
        self.chunk_pending_bytes.set(stats.pending_bytes as i64);
        let raise = |counter: &Counter, to: u64| counter.inc_by(to.saturating_sub(counter.get()));
        raise(&self.chunk_write_failures, stats.write_failures);
        raise(&self.chunk_read_failures, stats.lost_reads);
    }
}
