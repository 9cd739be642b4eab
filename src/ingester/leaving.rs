//! An ingester that goes for good: who asked for that, and what it has done before.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use skald_tsdb::disk::Disk;

use super::Ingester;
use super::flush::FlushExtent;
use super::retention::is_served;
use crate::error::{ErrorKind, ServiceError};
use crate::http::prometheus_error;
use crate::tenant::TenantId;

/// In the data directory while the ingester is to go for good, so that a restart in between changes nothing.
const MARKER: &str = "shutdown-requested.txt";

/// Whether the next stop is the last.
pub(super) struct Leaving {
    marker: PathBuf,
    requested: AtomicBool,
}

impl Leaving {
    pub(super) fn open(disk: &dyn Disk, data_dir: &Path) -> Self {
        let marker = data_dir.join(MARKER);
        let requested = AtomicBool::new(disk.exists(&marker));
        Self { marker, requested }
    }

    fn set(&self, disk: &dyn Disk, requested: bool) -> io::Result<()> {
        match (requested, disk.exists(&self.marker)) {
            (true, _) => disk.write_atomically(&self.marker, b"the next stop of this ingester is its last\n")?,
            (false, true) => {
                disk.remove_file(&self.marker)?;
                self.marker.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))?;
            }
            (false, false) => {}
        }
        self.requested.store(requested, Ordering::Relaxed);
        Ok(())
    }
}

impl Ingester {
    /// Whether the next stop is the last: then everything goes to object storage, and its place in the ring is given up.
    pub fn leaves_for_good(&self) -> bool {
        self.shared.leaving.requested.load(Ordering::Relaxed)
    }

    /// Cuts all samples in memory of these tenants, or of all when none is named, into blocks, and uploads them; what did not
    /// work.
    pub async fn flush_and_ship(&self, wanted: &[TenantId]) -> Vec<String> {
        let mut failed = Vec::new();
        for tenant in self.shared.tenants.all() {
            if !wanted.is_empty() && !wanted.contains(&tenant.id) {
                continue;
            }
            if let Err(error) = self.flush(&tenant, FlushExtent::Everything).await {
                self.shared.metrics.flush_failures.inc();
                tracing::error!(tenant = %tenant.id, %error, "head could not be flushed");
                failed.push(format!("{}: {error}", tenant.id));
            } else if !self.ship(&tenant).await {
                failed.push(format!("{}: not every block could be uploaded; the log tells why", tenant.id));
            }
        }
        failed
    }

    /// Whether all it holds is in object storage, and every querier has read a bucket index that says so.
    pub fn is_shipped(&self) -> bool {
        let (now, refresh) = (self.shared.runtime.clock.now_ms(), self.shared.index_refresh_interval);
        self.shared.tenants.all().iter().all(|tenant| {
            // In this order: what leaves the head meanwhile is found among the blocks.
            tenant.head.time_range().is_none()
                && tenant.blocks().iter().all(|block| is_served(block.shipped(), now, refresh))
        })
    }
}

/// Whether it is to go: `set` or `unset`.
pub(super) async fn requested(State(ingester): State<Ingester>) -> &'static str {
    if ingester.leaves_for_good() { "set\n" } else { "unset\n" }
}

pub(super) async fn request(State(ingester): State<Ingester>) -> Response {
    change(&ingester, true).await
}

pub(super) async fn take_back(State(ingester): State<Ingester>) -> Response {
    change(&ingester, false).await
}

async fn change(ingester: &Ingester, requested: bool) -> Response {
    let of = ingester.clone();
    let changed = ingester.shared.runtime.background_pool.run(move || {
        let shared = &of.shared;
        shared.leaving.set(shared.runtime.disk.as_ref(), requested)
    });
    let why = match changed.await {
        Ok(Ok(())) => {
            tracing::info!(requested, "whether the next stop is the last");
            return StatusCode::NO_CONTENT.into_response();
        }
        Ok(Err(error)) => error.to_string(),
        Err(lost) => lost.to_string(),
    };
    let text = format!("cannot write {}: {why}", ingester.shared.leaving.marker.display());
    prometheus_error(&ServiceError::new(ErrorKind::Unavailable, "data-directory-unavailable", text))
}
