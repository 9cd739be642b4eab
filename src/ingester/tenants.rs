//! Who has data here: a head and local blocks per tenant.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use skald_model::TimestampMs;
use skald_tsdb::block::{BlockMeta, LocalBlock};
use skald_tsdb::disk::Disk;
use skald_tsdb::head::Head;
use std::collections::HashMap;
use ulid::Ulid;

use super::retention::Shipped;
use crate::tenant::TenantId;

/// Which blocks of a tenant are in the bucket; beside the blocks themselves.
const SHIPPED_FILE: &str = "shipped.json";

/// The tenants of an ingester.
#[derive(Default)]
pub(super) struct Tenants {
    /// Held only to look up and change the map.
    map: RwLock<HashMap<TenantId, Arc<Tenant>>>,
}

impl Tenants {
    pub(super) fn get(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.map.read().get(id).cloned()
    }

    /// The tenant, made by `make` if it is not here; of two who make it at one time, both get the same.
    pub(super) fn get_or_insert<E>(
        &self,
        id: &TenantId,
        make: impl FnOnce() -> Result<Tenant, E>,
    ) -> Result<Arc<Tenant>, E> {
        if let Some(tenant) = self.get(id) {
            return Ok(tenant);
        }
        let mut map = self.map.write();
        if let Some(tenant) = map.get(id) {
            return Ok(tenant.clone());
        }
        let tenant = Arc::new(make()?);
        map.insert(id.clone(), tenant.clone());
        Ok(tenant)
    }

    pub(super) fn remove(&self, id: &TenantId) {
        self.map.write().remove(id);
    }

    /// All tenants, ascending.
    pub(super) fn all(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.map.read().values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }
}

/// One tenant's data on this ingester.
pub(super) struct Tenant {
    pub(super) id: TenantId,
    pub(super) head: Arc<Head>,
    /// `<data-dir>/tsdb/<tenant>`
    pub(super) dir: PathBuf,
    /// One flush at a time.
    pub(super) flushing: tokio::sync::Mutex<()>,
    /// Pushes hold it shared; whoever removes the tenant sets it, exclusively. A push that finds it set starts over.
    pub(super) closed: RwLock<bool>,
    /// Monotonic milliseconds of the last push.
    last_push: AtomicI64,
    blocks: RwLock<Vec<Arc<LocalBlockEntry>>>,
}

impl Tenant {
    pub(super) fn new(id: TenantId, head: Arc<Head>, dir: PathBuf, blocks: Vec<LocalBlockEntry>, now: i64) -> Self {
        Self {
            id,
            head,
            dir,
            flushing: tokio::sync::Mutex::default(),
            closed: RwLock::new(false),
            last_push: AtomicI64::new(now),
            blocks: RwLock::new(blocks.into_iter().map(Arc::new).collect()),
        }
    }

    pub(super) fn blocks(&self) -> Vec<Arc<LocalBlockEntry>> {
        self.blocks.read().clone()
    }

    pub(super) fn add_block(&self, block: LocalBlockEntry) {
        self.blocks.write().push(Arc::new(block));
    }

    pub(super) fn remove_block(&self, id: Ulid) {
        self.blocks.write().retain(|block| block.id() != id);
    }

    /// Notes a push at this monotonic time.
    pub(super) fn pushed(&self, now_ms: i64) {
        self.last_push.store(now_ms, Ordering::Relaxed);
    }

    /// Monotonic milliseconds of the last push, or of the start.
    pub(super) fn last_push(&self) -> i64 {
        self.last_push.load(Ordering::Relaxed)
    }

    /// Writes down which blocks are in the bucket, and until when samples went with blocks that were dropped.
    pub(super) fn save_shipped(&self, disk: &dyn Disk, dropped_until_ms: Option<TimestampMs>) -> io::Result<()> {
        let uploaded = self.blocks.read().iter().filter_map(|b| Some((b.id(), b.shipped().uploaded_at?))).collect();
        disk.write_atomically(
            &self.dir.join(SHIPPED_FILE),
            &serde_json::to_vec(&ShippedFile { uploaded, dropped_until_ms })?,
        )
    }
}

/// `shipped.json`
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct ShippedFile {
    /// When each block was uploaded, Unix milliseconds.
    pub(super) uploaded: BTreeMap<Ulid, TimestampMs>,
    /// The end of the newest block that was dropped here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dropped_until_ms: Option<TimestampMs>,
}

/// When each block in `dir` was uploaded, and what was dropped. A missing or damaged note says nothing: the blocks are uploaded again, which
/// finds them in the bucket.
pub(super) fn load_shipped(disk: &dyn Disk, dir: &Path) -> ShippedFile {
    let bytes = disk.read(&dir.join(SHIPPED_FILE)).unwrap_or_default();
    serde_json::from_slice::<ShippedFile>(&bytes).unwrap_or_default()
}

/// A block on the ingester's disk.
pub(super) struct LocalBlockEntry {
    pub(super) block: Arc<LocalBlock>,
    shipped: Mutex<Shipped>,
}

impl LocalBlockEntry {
    pub(super) fn new(block: LocalBlock, uploaded_at: Option<TimestampMs>) -> Self {
        Self { block: Arc::new(block), shipped: Mutex::new(Shipped { uploaded_at, listed_at: None }) }
    }

    pub(super) fn id(&self) -> Ulid {
        self.block.meta().ulid
    }

    pub(super) fn meta(&self) -> &BlockMeta {
        self.block.meta()
    }

    pub(super) fn dir(&self) -> &Path {
        self.block.dir()
    }

    pub(super) fn shipped(&self) -> Shipped {
        *self.shipped.lock()
    }

    pub(super) fn mark_uploaded(&self, at: TimestampMs) {
        self.shipped.lock().uploaded_at = Some(at);
    }

    pub(super) fn mark_listed(&self, at: TimestampMs) {
        self.shipped.lock().listed_at.get_or_insert(at);
    }
}
