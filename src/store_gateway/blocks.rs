//! The blocks a store-gateway has open, and those it refuses.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::sync::{OnceCell, Semaphore};
use ulid::Ulid;

use super::block::{OpenBlock, ReadError, damaged_block};
use super::config::Config;
use super::metrics::Metrics;
use super::opening::Opener;
use super::pages::Usage;
use crate::bucket::{Bucket, TenantBucket};
use crate::error::ServiceError;
use crate::runtime::{Clock, Pool};
use crate::tenant::TenantId;

/// Open blocks by tenant and name.
///
/// ```text
/// unknown ──get──► opening ──► open ──nobody asks──► unknown
///                     │  └──► (not in the bucket) ──► unknown
///                     └──► damaged: refused ──quarantine is over──► unknown
/// ```
/// A failure of the bucket leaves a block unknown.
pub(super) struct Blocks {
    bucket: Arc<dyn Bucket>,
    clock: Arc<dyn Clock>,
    pool: Pool,
    opener: Opener,
    /// Bounds how many blocks are being opened.
    opening: Semaphore,
    idle_timeout: Duration,
    quarantine_period: Duration,
    metrics: Metrics,
    /// Protects the map only; never held while a block is opened.
    slots: Mutex<HashMap<(TenantId, Ulid), Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    /// Lets one caller open the block while the others wait.
    block: OnceCell<Arc<OpenBlock>>,
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    last_used: Duration,
    /// Why the block is refused, and until when.
    refused: Option<(ServiceError, Duration)>,
}

/// Why a block is not open.
enum NotOpen {
    Absent,
    Failed(ServiceError),
}

impl Blocks {
    pub(super) fn new(
        bucket: Arc<dyn Bucket>,
        clock: Arc<dyn Clock>,
        opener: Opener,
        config: &Config,
        metrics: Metrics,
    ) -> Self {
        Self {
            bucket,
            clock,
            pool: opener.pool.clone(),
            opener,
            opening: Semaphore::new(config.index_header_loading_concurrency),
            idle_timeout: config.index_header_idle_timeout,
            quarantine_period: config.quarantine_period,
            metrics,
            slots: Mutex::default(),
        }
    }

    /// The block, opened if it is not; `None` when the bucket has no such block under this tenant.
    pub(super) async fn get(
        &self,
        tenant: &TenantId,
        id: Ulid,
        usage: &Usage,
    ) -> Result<Option<Arc<OpenBlock>>, ServiceError> {
        let key = (tenant.clone(), id);
        let slot = self.slots.lock().entry(key.clone()).or_default().clone();
        let now = self.clock.monotonic();
        {
            let mut state = slot.state.lock();
            state.last_used = now;
            match &state.refused {
                Some((error, until)) if now < *until => return Err(error.clone()),
                _ => state.refused = None,
            }
        }
        match slot.block.get_or_try_init(|| self.open(tenant, id, &slot, usage)).await {
            Ok(block) => Ok(Some(block.clone())),
            Err(NotOpen::Failed(error)) => Err(error),
            Err(NotOpen::Absent) => {
                self.slots.lock().remove(&key);
                Ok(None)
            }
        }
    }

    async fn open(&self, tenant: &TenantId, id: Ulid, slot: &Slot, usage: &Usage) -> Result<Arc<OpenBlock>, NotOpen> {
        // Files are read.
        self.pool.leave().await;
        // Never closed, so there is always a permit in the end.
        let _permit = self.opening.acquire().await;
        let bucket = TenantBucket::new(self.bucket.clone(), tenant.clone());
        match self.opener.open(&bucket, id, usage).await {
            Ok(Some(block)) => {
                self.metrics.open_blocks.inc();
                Ok(Arc::new(block))
            }
            Ok(None) => Err(NotOpen::Absent),
            Err(ReadError::Block(error)) => {
                self.metrics.open_failures.inc();
                self.metrics.damages.inc();
                tracing::error!(%tenant, block = %id, %error, "block cannot be opened and is quarantined");
                let refusal = damaged_block(tenant, id, &format_args!("quarantined: {error}"));
                let until = self.clock.monotonic() + self.quarantine_period;
                slot.state.lock().refused = Some((refusal.clone(), until));
                Err(NotOpen::Failed(refusal))
            }
            Err(error) => {
                self.metrics.open_failures.inc();
                Err(NotOpen::Failed(error.into_service_error(tenant, id)))
            }
        }
    }

    /// Closes a block, so that the next query looks at the bucket anew.
    pub(super) fn close(&self, tenant: &TenantId, id: Ulid) {
        let removed = self.slots.lock().remove(&(tenant.clone(), id));
        if removed.is_some_and(|slot| slot.block.initialized()) {
            self.metrics.open_blocks.dec();
        }
    }

    /// Closes the blocks nobody asked for lately; ends quarantines that are over.
    pub(super) fn close_idle(&self) {
        let now = self.clock.monotonic();
        let mut slots = self.slots.lock();
        slots.retain(|_, slot| {
            let state = slot.state.lock();
            match &state.refused {
                Some((_, until)) => now < *until,
                None => now.saturating_sub(state.last_used) < self.idle_timeout,
            }
        });
        let count = |open: &dyn Fn(&Slot) -> bool| {
            i64::try_from(slots.values().filter(|slot| open(slot)).count()).unwrap_or(i64::MAX)
        };
        self.metrics.open_blocks.set(count(&|slot| slot.block.initialized()));
        self.metrics.quarantined.set(count(&|slot| slot.state.lock().refused.is_some()));
    }
}
