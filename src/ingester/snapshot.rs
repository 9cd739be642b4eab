//! Snapshots of all heads, so that a restart need not replay the whole log.
//!
//! One is due once the log has grown by `wal.snapshot_after` since the last one was begun, and by at least that one's
//! size: so snapshots never cost more writing than the log itself. Closed chunks stay in the chunk files, which are synced
//! before the snapshot counts. It is written in small steps on the background pool,
//! no faster than `wal.snapshot_bandwidth`; appends wait for a page being copied (tens of microseconds), nothing else.

use std::sync::Arc;
use std::time::Duration;

use skald_tsdb::head::{Head, HeadsSnapshot, SnapshotProgress};
use skald_tsdb::wal::{Snapshot, WalError};

use super::Ingester;
use crate::runtime::pool::TaskLost;

/// How often it is looked whether a snapshot is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after one that failed: a full disk does not get better by trying.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Bytes written by one task of the pool.
const STEP_BYTES: u64 = 1 << 20;

/// Why a snapshot was given up. The log and the snapshots before it are as they were.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

impl Ingester {
    pub(super) async fn snapshot_forever(&self) {
        let shared = &self.shared;
        let Some(after) = shared.config.wal.snapshot_after else { return };
        loop {
            shared.runtime.clock.sleep(CHECK_INTERVAL).await;
            let last = shared.wal.snapshots().last().map_or(0, |last| last.bytes);
            if shared.wal.bytes_since_snapshot() < last.max(after.as_u64()) {
                continue;
            }
            let begun = shared.runtime.clock.monotonic();
            match self.snapshot().await {
                Ok(Snapshot { segment, bytes }) => {
                    let took = shared.runtime.clock.monotonic() - begun;
                    shared.metrics.snapshot_duration.observe(took.as_secs_f64());
                    shared.metrics.snapshot_bytes.set(bytes as i64);
                    shared.metrics.snapshot_success_time.set(shared.runtime.clock.now_ms() / 1000);
                    let took_ms = took.as_millis() as u64;
                    tracing::info!(segment = segment.0, bytes, took_ms, "heads snapshotted");
                }
                Err(error) => {
                    shared.metrics.snapshot_failures.inc();
                    tracing::warn!(%error, "snapshot of the heads given up; the log is kept");
                    shared.runtime.clock.sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
    }

    /// Writes one now.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        let shared = &self.shared;
        let (clock, pool) = (&shared.runtime.clock, &shared.runtime.background_pool);
        let begun = clock.monotonic();
        let (wal, chunk_files) = (shared.wal.clone(), shared.chunk_files.clone());
        let mut writer = pool.run(move || HeadsSnapshot::begin(&wal, &chunk_files)).await??;
        // After the beginning: who comes later has logged nothing before.
        let heads: Vec<Arc<Head>> = shared.tenants.all().iter().map(|tenant| tenant.head.clone()).collect();
        for head in heads.iter().chain(&shared.orphans) {
            let mut progress = SnapshotProgress::default();
            loop {
                let step;
                (writer, progress, step) = self.write_step(head.clone(), writer, progress).await?;
                let owed = Duration::from_secs_f64(
                    writer.bytes() as f64 / shared.config.wal.snapshot_bandwidth.as_u64() as f64,
                );
                let early = owed.saturating_sub(clock.monotonic().saturating_sub(begun));
                if early > Duration::from_millis(5) {
                    clock.sleep(early).await;
                }
                if step == Step::Done {
                    break;
                }
            }
        }
        let wal = shared.wal.clone();
        Ok(pool.run(move || writer.finish(&wal)).await??)
    }

    async fn write_step(
        &self,
        head: Arc<Head>,
        mut writer: HeadsSnapshot,
        mut progress: SnapshotProgress,
    ) -> Result<(HeadsSnapshot, SnapshotProgress, Step), SnapshotError> {
        let wal = self.shared.wal.clone();
        let written = self.shared.runtime.background_pool.run(move || {
            let done = head.write_snapshot(&wal, &mut writer, &mut progress, STEP_BYTES)?;
            Ok::<_, WalError>((writer, progress, if done { Step::Done } else { Step::More }))
        });
        Ok(written.await??)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Done,
}
