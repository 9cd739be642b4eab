//! Cuts a head's older samples into blocks.

use std::sync::Arc;

use skald_model::{BlockRange, TimestampMs};
use skald_tsdb::block::{BlockError, BlockSplit, BlockWriter, Compaction, IndexLimits, LocalBlock, NewBlock};
use skald_tsdb::chunk::ChunkError;
use skald_tsdb::chunk::started::for_block;
use skald_tsdb::head::{CutExtent, Dropped, LostChunks};
use skald_tsdb::wal::{Cut, WalError};
use ulid::Ulid;

use super::tenants::{LocalBlockEntry, Tenant};
use super::{BlockChunkEncoding, Ingester};
use crate::runtime::pool::TaskLost;
use crate::tenant::TenantId;

/// Why a head could not be cut; its samples stay where they are, and the next flush tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlushError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error("a chunk of the head: {0}")]
    Chunk(#[from] ChunkError),
    #[error("the tenant's directory: {0}")]
    Disk(#[from] std::io::Error),
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

/// How much of a head a flush takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlushExtent {
    /// The ranges that are over.
    Due,
    /// What is older than this.
    Before(TimestampMs),
    Everything,
}

impl Ingester {
    /// Cuts a head's older samples into blocks. A flush that is interrupted or fails loses nothing.
    pub(super) async fn flush(&self, tenant: &Arc<Tenant>, extent: FlushExtent) -> Result<(), FlushError> {
        let _alone = tenant.flushing.lock().await;
        let shared = &self.shared;
        // What an earlier flush has written may still be pinned by a reader of that time.
        let (wal, flushed) = (shared.wal.clone(), tenant.clone());
        if shared.runtime.background_pool.run(move || flushed.head.drop_covered(&wal)).await? == Dropped::Pinned {
            tracing::debug!(tenant = %tenant.id, "an old reader still holds flushed samples");
            if let FlushExtent::Before(_) = extent {
                // The series of the flush before are counted as ended still, and would be written once more.
                return Ok(());
            }
        }
        let due = match extent {
            FlushExtent::Due => tenant.head.due_cut(),
            FlushExtent::Before(time) => tenant.head.min_time().is_some_and(|oldest| oldest < time).then_some(time),
            FlushExtent::Everything => tenant.head.time_range().map(|range| range.max.saturating_add(1)),
        };
        let Some(up_to) = due else { return Ok(()) };
        let begun = shared.runtime.clock.monotonic();
        let (ingester, flushed) = (self.clone(), tenant.clone());
        let pool = &shared.runtime.background_pool;
        let (cut, blocks) = pool.run(move || ingester.write_blocks(&flushed, up_to)).await??;
        let (written, series) = (blocks.len(), blocks.iter().map(|b| b.meta().stats.num_series).sum::<u64>());
        // Published before the head forgets: a reader takes the head first.
        for block in blocks {
            tenant.add_block(block);
        }
        let (wal, flushed) = (shared.wal.clone(), tenant.clone());
        let dropped = pool.run(move || flushed.head.finish_cut(&wal, cut)).await??;
        shared.metrics.blocks_written.inc_by(written as u64);
        if let FlushExtent::Before(_) = extent {
            shared.metrics.early_flushes.inc();
        }
        if written > 0 {
            let took = (shared.runtime.clock.monotonic() - begun).as_millis() as u64;
            let pinned = dropped == Dropped::Pinned;
            tracing::info!(tenant = %tenant.id, blocks = written, series, took_ms = took, pinned, "head flushed");
        }
        Ok(())
    }

    /// On the background pool: a block per aligned range below `up_to`, or more where one cannot hold the series.
    fn write_blocks(&self, tenant: &Tenant, up_to: TimestampMs) -> Result<(Cut, Vec<LocalBlockEntry>), FlushError> {
        let shared = &self.shared;
        let cut = tenant.head.begin_cut(&shared.wal, up_to)?;
        let mut blocks = Vec::new();
        for range in tenant.head.cut_ranges(cut) {
            if let Err(error) = self.write_range(tenant, cut, range, &IndexLimits::default(), &mut blocks) {
                // Nothing refers to the blocks written so far; the next cut writes their samples again.
                for block in blocks {
                    let _ = shared.runtime.disk.remove_dir_all(block.dir());
                }
                return Err(error);
            }
        }
        Ok((cut, blocks))
    }

    /// Adds to `blocks` those of one range, with indexes within `limits`.
    pub(super) fn write_range(
        &self,
        tenant: &Tenant,
        cut: Cut,
        range: BlockRange,
        limits: &IndexLimits,
        blocks: &mut Vec<LocalBlockEntry>,
    ) -> Result<(), FlushError> {
        let runtime = &self.shared.runtime;
        let mut samples: Option<(TimestampMs, TimestampMs)> = None;
        let split = BlockSplit::foresee(limits, |each| {
            tenant.head.cut_labels(cut, range, |labels, CutExtent { times, chunks }| {
                let (min, max) = samples.unwrap_or((times.min, times.max));
                samples = Some((min.min(times.min), max.max(times.max)));
                each(labels, chunks)
            })
        })?;
        let Some((min, max)) = samples else { return Ok(()) };
        runtime.disk.create_dir_all(&tenant.dir)?;
        let mut writers = Vec::new();
        for symbols in split.symbols() {
            let ulid: Ulid = runtime.rng.ulid(runtime.clock.now_ms());
            let new = NewBlock {
                ulid,
                range: BlockRange { min, max: max.saturating_add(1) },
                compaction: Compaction { level: 1, sources: vec![ulid], ..Compaction::default() },
                thanos: None,
            };
            writers.push(BlockWriter::create(runtime.disk.clone(), &tenant.dir, new, symbols)?);
        }
        let keep_starts = self.shared.config.block_chunk_encoding == BlockChunkEncoding::Xor2;
        let lost = tenant.head.cut_series(cut, range, |labels, chunks| {
            let chunks = for_block(chunks, keep_starts)?;
            writers[split.part_of(labels)].add_series(labels, &chunks).map_err(FlushError::from)
        })?;
        self.tell_lost(&tenant.id, &lost);
        for writer in writers {
            if let Some(meta) = writer.finish()? {
                let dir = tenant.dir.join(meta.ulid.to_string());
                let block = LocalBlock::open(runtime.disk.as_ref(), &dir)?;
                blocks.push(LocalBlockEntry::new(block, None));
            }
        }
        Ok(())
    }

    /// Tells what a flush could not read.
    fn tell_lost(&self, tenant: &TenantId, lost: &LostChunks) {
        if lost.chunks == 0 {
            return;
        }
        self.shared.metrics.chunks_lost.inc_by(lost.chunks);
        self.shared.metrics.samples_lost.inc_by(lost.samples);
        for chunk in &lost.named {
            tracing::error!(%tenant, "lost: {chunk}");
        }
        let (chunks, samples) = (lost.chunks, lost.samples);
        tracing::error!(%tenant, chunks, samples, "a block lacks samples whose chunks could not be read back");
    }

    /// Lets a tenant go whose head is empty and whose blocks are all gone. A push that comes meanwhile makes it anew.
    pub(super) fn close_if_empty(&self, tenant: &Arc<Tenant>) {
        let mut closed = tenant.closed.write();
        if *closed || tenant.head.series_count() > 0 || !tenant.blocks().is_empty() {
            return;
        }
        match self.shared.wal.drop_head(tenant.head.id()) {
            Ok(()) => {
                *closed = true;
                self.shared.tenants.remove(&tenant.id);
                tracing::info!(tenant = %tenant.id, "idle tenant closed");
            }
            Err(error) => tracing::warn!(tenant = %tenant.id, %error, "idle tenant could not be closed"),
        }
    }
}
