//! Uploads local blocks and drops the ones nobody needs here any more.

use std::sync::Arc;

use skald_tsdb::disk::Disk;

use super::Ingester;
use super::retention::may_drop;
use super::tenants::{LocalBlockEntry, Tenant};
use crate::bucket::TenantBucket;
use crate::bucket::upload::upload_block;

/// What `source` of an uploaded block's meta.json says.
const SOURCE: &str = "ingester";

impl Ingester {
    /// Uploads every tenant's blocks that are not in the bucket yet and drops those that may go. A failure is logged,
    /// counted, and tried again the next time; it holds up nobody else.
    pub(super) async fn ship_all(&self) {
        for tenant in self.shared.tenants.all() {
            self.ship(&tenant).await;
        }
    }

    /// Does so for one tenant; whether everything is uploaded.
    pub(super) async fn ship(&self, tenant: &Arc<Tenant>) -> bool {
        let shared = &self.shared;
        let mut all = true;
        for block in tenant.blocks() {
            if block.shipped().uploaded_at.is_some() {
                continue;
            }
            match self.upload(tenant, &block).await {
                Ok(()) => {
                    shared.metrics.uploads.inc();
                    tracing::info!(tenant = %tenant.id, block = %block.id(), "block uploaded");
                }
                Err(error) => {
                    all = false;
                    shared.metrics.upload_failures.inc();
                    tracing::error!(tenant = %tenant.id, block = %block.id(), %error, "block could not be uploaded");
                }
            }
        }
        self.drop_shipped(tenant).await;
        all
    }

    async fn upload(
        &self,
        tenant: &Arc<Tenant>,
        block: &LocalBlockEntry,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let shared = &self.shared;
        let bucket = TenantBucket::new(shared.bucket.clone(), tenant.id.clone());
        let disk: Arc<dyn Disk> = shared.runtime.disk.clone();
        let pool = &shared.runtime.background_pool;
        upload_block(&disk, pool, block.dir(), &bucket, block.meta(), SOURCE).await?;
        let now = shared.runtime.clock.now_ms();
        block.mark_uploaded(now);
        // Losing the note only means that the block is found in the bucket again after a restart.
        let tenant = tenant.clone();
        let floor = shared.repair.floors.get(&tenant.id);
        pool.run(move || tenant.save_shipped(disk.as_ref(), floor)).await??;
        Ok(())
    }

    /// Notes which blocks the bucket index lists, and drops those of which [`may_drop`] holds.
    async fn drop_shipped(&self, tenant: &Arc<Tenant>) {
        let shared = &self.shared;
        let uploaded: Vec<_> = tenant.blocks().into_iter().filter(|b| b.shipped().uploaded_at.is_some()).collect();
        if uploaded.is_empty() {
            return;
        }
        if uploaded.iter().any(|block| block.shipped().listed_at.is_none()) {
            match shared.indexes.get(&tenant.id).await {
                Ok(index) => {
                    for block in &uploaded {
                        if index.block(block.id()).is_some() {
                            block.mark_listed(index.updated_at_ms());
                        }
                    }
                }
                Err(error) => tracing::warn!(tenant = %tenant.id, %error, "bucket index could not be read"),
            }
        }
        let now = shared.runtime.clock.now_ms();
        let (retention, refresh) = (shared.config.local_retention, shared.index_refresh_interval);
        for block in uploaded {
            if may_drop(block.shipped(), now, retention, refresh) {
                // First: what is not here any more must not be fetched from another member that has it still.
                shared.repair.floors.raise(&tenant.id, block.meta().range().max);
                tenant.remove_block(block.id());
                let (disk, dir) = (shared.runtime.disk.clone(), block.dir().to_owned());
                let (of, floor) = (tenant.clone(), shared.repair.floors.get(&tenant.id));
                // Readers that hold the block keep its open files; the names go at once.
                let removed = shared.runtime.background_pool.run(move || {
                    of.save_shipped(disk.as_ref(), floor)?;
                    disk.remove_dir_all(&dir)
                });
                let removed = removed.await;
                match removed {
                    Ok(Ok(())) => tracing::info!(tenant = %tenant.id, block = %block.id(), "local block dropped"),
                    Ok(Err(error)) => {
                        tracing::warn!(tenant = %tenant.id, block = %block.id(), %error, "local block could not be removed");
                    }
                    Err(_) => {}
                }
            }
        }
    }
}
