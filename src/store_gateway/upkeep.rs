//! The store-gateway's upkeep: closing idle blocks, removing what is kept of blocks that are gone.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skald_tsdb::disk::Disk;
use ulid::Ulid;

use super::blocks::Blocks;
use super::service::Ownership;
use crate::bucket::index_cache::IndexCache;
use crate::runtime::Runtime;
use crate::tenant::TenantId;

/// How often idle blocks are looked for.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// What the upkeep needs of its own.
pub(super) struct Upkeep {
    pub(super) indexes: Arc<IndexCache>,
    /// Where blocks' headers are kept: `<dir>/<tenant>/<ulid>/`.
    pub(super) dir: PathBuf,
    /// How often blocks that are gone are looked for.
    pub(super) interval: Duration,
}

impl Upkeep {
    pub(super) async fn run(&self, runtime: &Runtime, blocks: &Blocks, owns: &Ownership) {
        let mut synced = runtime.clock.monotonic();
        loop {
            runtime.clock.sleep(self.interval.min(IDLE_INTERVAL)).await;
            blocks.close_idle();
            self.indexes.drop_idle();
            let now = runtime.clock.monotonic();
            if now.saturating_sub(synced) >= self.interval {
                synced = now;
                self.remove_gone(runtime, blocks, owns).await;
            }
        }
    }

    /// Removes what is kept of blocks that the bucket index does not list, or that are another gateway's.
    async fn remove_gone(&self, runtime: &Runtime, blocks: &Blocks, owns: &Ownership) {
        let kept = match on_background(runtime, &self.dir, kept_blocks).await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(dir = %self.dir.display(), %error, "the store-gateway's cache cannot be listed");
                return;
            }
        };
        for (tenant, ids) in kept {
            // Without a recent index nobody knows what is gone; there is no hurry.
            let Ok(index) = self.indexes.get(&tenant).await else { continue };
            for id in ids.into_iter().filter(|&id| index.block(id).is_none() || !owns(&tenant, id)) {
                blocks.close(&tenant, id);
                let dir = self.dir.join(tenant.as_str()).join(id.to_string());
                if let Err(error) = on_background(runtime, &dir, |disk, dir| disk.remove_dir_all(dir)).await {
                    tracing::warn!(%tenant, block = %id, %error, "what is kept of a block that is gone cannot be removed");
                }
            }
        }
    }
}

async fn on_background<T: Send + 'static>(
    runtime: &Runtime,
    path: &Path,
    work: impl FnOnce(&dyn Disk, &Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (disk, path) = (runtime.disk.clone(), path.to_owned());
    let done = runtime.background_pool.run(move || work(&*disk, &path));
    done.await.map_err(|lost| io::Error::other(lost.to_string())).flatten()
}

/// The blocks of which something is kept below `dir`, by tenant.
fn kept_blocks(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<(TenantId, Vec<Ulid>)>> {
    if !disk.exists(dir) {
        return Ok(Vec::new());
    }
    let mut kept = Vec::new();
    for folder in disk.list(dir)? {
        let Ok(tenant) = TenantId::new(&folder.name) else { continue };
        let blocks = disk.list(&dir.join(&folder.name))?;
        kept.push((tenant, blocks.iter().filter_map(|block| Ulid::from_string(&block.name).ok()).collect()));
    }
    Ok(kept)
}
