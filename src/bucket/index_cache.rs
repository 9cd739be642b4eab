//! Recent copies of bucket indexes, for those who read them often.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skald_model::TimestampMs;
use std::collections::HashMap;

use super::index::{BucketIndex, IndexError};
use super::{Bucket, TenantBucket};
use crate::runtime::Clock;
use crate::settings::settings;
use crate::tenant::TenantId;

settings! {
    /// How readers keep the list of a tenant's blocks.
    pub struct BucketIndexConfig {
        /// A copy older than this is read anew. Smaller sees new blocks sooner and costs a request per tenant and interval;
        /// an ingester keeps its blocks until twice this time has passed since the index listed them.
        pub refresh_interval: Duration = Duration::from_secs(60),
        /// Copies nobody asked for in this time are dropped.
        pub idle_timeout: Duration = Duration::from_secs(3600),
        /// Queries fail rather than use an index that was not updated for this long, because newer blocks may be missing
        /// from it. Must be larger than the compactor's update interval.
        pub max_stale_period: Duration = Duration::from_secs(3600),
    }
    check |config| if config.refresh_interval < config.max_stale_period {
        Ok(())
    } else {
        Err("`refresh_interval` must be below `max_stale_period`".to_owned())
    };
}

/// Recent copies of bucket indexes by tenant.
///
/// A copy is read on first use and again once it is older than the refresh interval; those who ask meanwhile wait for
/// one and the same read. If the new read fails, the copy at hand serves until it is too old.
pub struct IndexCache {
    bucket: Arc<dyn Bucket>,
    clock: Arc<dyn Clock>,
    config: BucketIndexConfig,
    /// Protects the map only, never held while a slot is read.
    slots: Mutex<HashMap<TenantId, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot {
    /// Held while the bucket is read, so that there is one read at a time. Counts the reads.
    reads: tokio::sync::Mutex<u64>,
    state: Mutex<SlotState>,
}

#[derive(Default, Clone)]
struct SlotState {
    /// What was read last; stays when a later read fails.
    index: Option<Arc<BucketIndex>>,
    /// Number and monotonic time of the last read, successful or not.
    last_read: (u64, Duration),
    last_used: Duration,
}

impl IndexCache {
    /// An empty cache.
    pub fn new(bucket: Arc<dyn Bucket>, clock: Arc<dyn Clock>, config: BucketIndexConfig) -> Self {
        Self { bucket, clock, config, slots: Mutex::default() }
    }

    /// The tenant's index, at most the refresh interval behind the bucket (longer while the bucket fails) and never older
    /// than `max_stale_period`.
    ///
    /// A tenant without an index has no blocks. Should its folder hold blocks nevertheless, older than
    /// `max_stale_period`, the index is missing by mistake and the error is [`IndexError::TooOld`].
    pub async fn get(&self, tenant: &TenantId) -> Result<Arc<BucketIndex>, IndexError> {
        let index = self.copy(tenant, self.config.refresh_interval).await?;
        self.check_age(tenant, &index)?;
        Ok(index)
    }

    /// The tenant's index as it is in the bucket now, however old that is; later calls of [`IndexCache::get`] see it too.
    pub async fn refresh(&self, tenant: &TenantId) -> Result<Arc<BucketIndex>, IndexError> {
        self.copy(tenant, Duration::ZERO).await
    }

    /// Drops the copies that nobody asked for lately. Called now and then by their owner.
    pub fn drop_idle(&self) {
        let now = self.clock.monotonic();
        self.slots.lock().retain(|_, slot| now.saturating_sub(slot.state.lock().last_used) < self.config.idle_timeout);
    }

    async fn copy(&self, tenant: &TenantId, max_age: Duration) -> Result<Arc<BucketIndex>, IndexError> {
        let asked = self.clock.monotonic();
        let slot = self.slots.lock().entry(tenant.clone()).or_default().clone();
        let seen = {
            let mut state = slot.state.lock();
            state.last_used = asked;
            state.clone()
        };
        let recent = |state: &SlotState| asked.saturating_sub(state.last_read.1) < max_age;
        if let Some(index) = seen.index.as_ref().filter(|_| recent(&seen)) {
            return Ok(index.clone());
        }
        let mut reads = slot.reads.lock().await;
        let known = slot.state.lock().clone();
        // Whoever held the lock has read: recently enough, or even begun after this call was made, as the read next to the
        // one that may have been under way then.
        let anew = known.last_read.0 > seen.last_read.0 + 1;
        if let Some(index) = known.index.as_ref().filter(|_| recent(&known) || anew) {
            return Ok(index.clone());
        }
        *reads += 1;
        let began = (*reads, self.clock.monotonic());
        let result = self.fetch(tenant).await;
        let mut state = slot.state.lock();
        state.last_read = began;
        match (result, known.index) {
            (Ok(index), _) => Ok(state.index.insert(Arc::new(index)).clone()),
            (Err(error), Some(index)) if !max_age.is_zero() => {
                tracing::warn!(%tenant, %error, "bucket index could not be read anew, going on with the last copy");
                Ok(index)
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn fetch(&self, tenant: &TenantId) -> Result<BucketIndex, IndexError> {
        let bucket = TenantBucket::new(self.bucket.clone(), tenant.clone());
        if let Some((index, _)) = BucketIndex::fetch(&bucket).await? {
            return Ok(index);
        }
        // Without an index there should be no block, save those the compactor has not come across yet. A block's name
        // tells its age, so the oldest one says since when the index is missing.
        let now = self.clock.now_ms();
        let blocks = bucket.list_blocks().await?;
        let oldest = blocks.first().map_or(now, |block| TimestampMs::try_from(block.timestamp_ms()).unwrap_or(now));
        Ok(BucketIndex::new(Vec::new(), Vec::new(), oldest.min(now)))
    }

    fn check_age(&self, tenant: &TenantId, index: &BucketIndex) -> Result<(), IndexError> {
        let age_ms = self.clock.now_ms().saturating_sub(index.updated_at_ms());
        let max_ms = i64::try_from(self.config.max_stale_period.as_millis()).unwrap_or(i64::MAX);
        if age_ms <= max_ms {
            return Ok(());
        }
        Err(IndexError::TooOld { tenant: tenant.to_string(), age_seconds: age_ms / 1000, max_seconds: max_ms / 1000 })
    }
}
