//! What an ingester does by itself: syncs the log, flushes and snapshots heads, uploads blocks, lets idle tenants go.

use std::sync::Arc;
use std::time::Duration;

use super::flush::FlushExtent;
use super::{Ingester, SyncPolicy};

/// Pause after a sync that failed, so that a broken disk is not hammered.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(500);

/// How often chunk files are looked after: also the longest time until writes are taken again once a full disk has space.
const CHUNK_FILE_INTERVAL: Duration = Duration::from_secs(1);

impl Ingester {
    /// Works until dropped.
    pub async fn run(&self) {
        tokio::join!(
            self.sync_forever(),
            self.flush_forever(),
            self.ship_forever(),
            self.tend_chunk_files(),
            self.snapshot_forever()
        );
    }

    /// Writes chunks again that could not be written, and removes chunk files nobody needs.
    async fn tend_chunk_files(&self) {
        let shared = &self.shared;
        loop {
            shared.runtime.clock.sleep(CHUNK_FILE_INTERVAL).await;
            let ingester = self.clone();
            // A task that is lost leaves everything for the next round.
            let _ = shared.runtime.background_pool.run(move || ingester.shared.chunk_files.upkeep()).await;
            shared.metrics.observe_chunk_files(&shared.chunk_files.stats());
        }
    }

    async fn sync_forever(&self) {
        let shared = &self.shared;
        loop {
            match shared.config.wal.sync {
                SyncPolicy::Interval => shared.runtime.clock.sleep(shared.config.wal.sync_interval).await,
                SyncPolicy::EveryBatch => shared.sync_wanted.notified().await,
            }
            if !self.sync().await {
                shared.runtime.clock.sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }

    /// Syncs the log and tells who waits for that; whether it worked.
    pub(super) async fn sync(&self) -> bool {
        let shared = &self.shared;
        let stats = shared.wal.stats();
        if stats.synced >= stats.written {
            return true;
        }
        let begun = shared.runtime.clock.monotonic();
        let wal = shared.wal.clone();
        let synced = shared.runtime.background_pool.run(move || wal.sync()).await;
        shared.metrics.wal_sync_duration.observe((shared.runtime.clock.monotonic() - begun).as_secs_f64());
        shared.synced.send_replace(());
        match synced {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                shared.metrics.wal_sync_failures.inc();
                tracing::error!(%error, "write-ahead log could not be synced");
                false
            }
            Err(_) => false,
        }
    }

    async fn flush_forever(&self) {
        let shared = &self.shared;
        loop {
            shared.runtime.clock.sleep(shared.config.head_compaction_interval).await;
            self.empty_sparse_chunk_files().await;
            for tenant in shared.tenants.all() {
                let idle_ms = shared.runtime.clock.monotonic().as_millis() as i64 - tenant.last_push();
                let idle = idle_ms >= shared.config.head_compaction_idle_timeout.as_millis() as i64;
                let extent = if idle { FlushExtent::Everything } else { FlushExtent::Due };
                if let Err(error) = self.flush(&tenant, extent).await {
                    shared.metrics.flush_failures.inc();
                    tracing::error!(tenant = %tenant.id, %error, "head could not be flushed");
                }
                if idle {
                    // Writes to the log. A task that is lost leaves the tenant for the next round.
                    let ingester = self.clone();
                    let _ = shared.runtime.background_pool.run(move || ingester.close_if_empty(&tenant)).await;
                }
            }
            self.flush_early().await;
            self.observe();
        }
    }

    /// Moves chunks out of files of which little is needed, so that their disk space comes back.
    async fn empty_sparse_chunk_files(&self) {
        let shared = &self.shared;
        let sparse = Arc::new(shared.chunk_files.sparse_files());
        if sparse.is_empty() {
            return;
        }
        for tenant in shared.tenants.all() {
            let sparse = sparse.clone();
            // A task that is lost leaves the files for the next round.
            let _ = shared.runtime.background_pool.run(move || tenant.head.move_chunks(&sparse)).await;
        }
    }

    async fn ship_forever(&self) {
        loop {
            self.shared.runtime.clock.sleep(self.shared.config.ship_interval).await;
            self.ship_all().await;
        }
    }

    /// Brings the gauges up to date.
    fn observe(&self) {
        let shared = &self.shared;
        let tenants = shared.tenants.all();
        shared.metrics.tenants.set(tenants.len() as i64);
        shared.metrics.series.set(tenants.iter().map(|t| t.head.series_count() as i64).sum());
        let stats = shared.wal.stats();
        shared.metrics.wal_bytes.set(stats.bytes as i64);
        shared.metrics.wal_segments.set(stats.segments as i64);
    }
}
