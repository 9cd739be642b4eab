//! The compactor's loop over all tenants.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use prometheus_client::registry::Registry;

use super::config::Config;
use super::index_update::{IndexUpdate, update_bucket_index};
use super::metrics::Metrics;
use crate::bucket::index::IndexError;
use crate::bucket::layout::list_tenants;
use crate::bucket::{Bucket, BucketError, TenantBucket};
use crate::runtime::Clock;
use crate::tenant::TenantId;

/// Which tenants a compactor works for.
pub type Ownership = Arc<dyn Fn(&TenantId) -> bool + Send + Sync>;

/// Tends the blocks of the tenants it owns.
pub struct Compactor {
    bucket: Arc<dyn Bucket>,
    clock: Arc<dyn Clock>,
    config: Config,
    owns: Ownership,
    metrics: Metrics,
}

/// What wakes the loop.
enum Event {
    /// A round is due.
    RoundDue,
    /// The bucket has told who has data.
    Tenants(Result<Vec<TenantId>, BucketError>),
    /// A tenant is done, well or not.
    Done(TenantId),
}

impl Compactor {
    /// A compactor that works for the tenants `owns` says yes to, once [`Compactor::run`] runs.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        clock: Arc<dyn Clock>,
        config: Config,
        owns: Ownership,
        registry: &mut Registry,
    ) -> Self {
        Self { bucket, clock, config, owns, metrics: Metrics::new(registry) }
    }

    /// Works until dropped, which it may be at any moment. The first round begins at once.
    ///
    /// A round puts every tenant in line that is not there yet; a tenant that fails or takes long holds up nobody else.
    pub async fn run(&self) {
        let mut waiting: VecDeque<TenantId> = VecDeque::new();
        // Tenants waiting or worked on.
        let mut in_line: BTreeSet<TenantId> = BTreeSet::new();
        let mut seen: BTreeSet<TenantId> = BTreeSet::new();
        let mut events: FuturesUnordered<BoxFuture<'_, Event>> = FuturesUnordered::new();
        let mut busy = 0;
        events.push(Box::pin(async { Event::RoundDue }));
        while let Some(event) = events.next().await {
            match event {
                Event::RoundDue => {
                    self.metrics.rounds.inc();
                    events.push(Box::pin(async { Event::Tenants(list_tenants(&*self.bucket).await) }));
                    let pause = self.clock.sleep(self.config.cleanup_interval);
                    events.push(Box::pin(async {
                        pause.await;
                        Event::RoundDue
                    }));
                }
                Event::Tenants(Ok(tenants)) => {
                    let owned: BTreeSet<TenantId> = tenants.into_iter().filter(|t| (self.owns)(t)).collect();
                    seen.difference(&owned).for_each(|gone| self.metrics.forget(gone));
                    waiting.extend(owned.difference(&in_line).cloned());
                    in_line.extend(owned.iter().cloned());
                    seen = owned;
                }
                Event::Tenants(Err(error)) => {
                    self.metrics.rounds_failed.inc();
                    tracing::error!(%error, "tenants could not be listed");
                }
                Event::Done(tenant) => {
                    busy -= 1;
                    in_line.remove(&tenant);
                }
            }
            while busy < self.config.cleanup_concurrency
                && let Some(tenant) = waiting.pop_front()
            {
                busy += 1;
                events.push(Box::pin(async {
                    if let Err(error) = self.update_tenant(&tenant).await {
                        tracing::error!(%tenant, %error, "bucket index could not be updated");
                    }
                    Event::Done(tenant)
                }));
            }
        }
    }

    /// Makes one tenant's bucket index anew now, whoever owns the tenant.
    pub async fn update_tenant(&self, tenant: &TenantId) -> Result<IndexUpdate, IndexError> {
        let bucket = TenantBucket::new(self.bucket.clone(), tenant.clone());
        self.metrics.updates.inc();
        let result = update_bucket_index(&bucket, self.clock.now_ms(), self.config.meta_sync_concurrency).await;
        match &result {
            Ok(update) => {
                self.metrics.updated(tenant, update);
                for (block, why) in &update.damaged {
                    tracing::warn!(%tenant, %block, why, "block is left out of the bucket index");
                }
            }
            Err(_) => drop(self.metrics.updates_failed.inc()),
        }
        result
    }

    /// Makes the bucket index of every tenant anew now, whoever owns it. What became of each, by tenant.
    pub async fn update_all(&self) -> Result<Vec<(TenantId, Result<IndexUpdate, IndexError>)>, BucketError> {
        let tenants = list_tenants(&*self.bucket).await?;
        let updates = tenants.into_iter().map(|tenant| async move {
            let result = self.update_tenant(&tenant).await;
            (tenant, result)
        });
        let mut updates: Vec<_> =
            futures::stream::iter(updates).buffer_unordered(self.config.cleanup_concurrency).collect().await;
        updates.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(updates)
    }
}
