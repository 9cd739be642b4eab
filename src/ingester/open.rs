//! Start and stop: finds the local blocks, replays the log, and closes it in the end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skald_tsdb::Workers;
use skald_tsdb::block::LocalBlock;
use skald_tsdb::disk::Disk;
use skald_tsdb::head::{ChunkFileOptions, ChunkFiles, Head, ReplayHeads};
use skald_tsdb::wal::{
    HeadId, HeadState, Keep, Missed, RecoveryReport, Replay, Replayed, SegmentId, Wal, WalError, WalOptions,
};
use std::collections::HashMap;
use ulid::Ulid;

use super::leaving::Leaving;
use super::losses::{self, TenantLoss};
use super::push::head_options;
use super::repair;
use super::repair::history::{History, LogFound};
use super::repair::serve::Floors;
use super::tenants::{LocalBlockEntry, ShippedFile, Tenant, Tenants, load_shipped};
use super::{Config, Ingester, Metrics, Shared};
use crate::bucket::Bucket;
use crate::bucket::index_cache::IndexCache;
use crate::limits::TenantLimits;
use crate::runtime::Runtime;
use crate::runtime::pool::TaskLost;
use crate::tenant::TenantId;

/// Why an ingester could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log's directory.
    #[error("cannot open the write-ahead log in {path}: {source}")]
    Wal {
        /// Which.
        path: PathBuf,
        /// What the disk says.
        source: WalError,
    },
    /// The directory of blocks.
    #[error("cannot read {path}: {source}")]
    Disk {
        /// Which.
        path: PathBuf,
        /// What the disk says.
        source: io::Error,
    },
    /// The process is stopping.
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

/// What an ingester needs from outside.
pub struct Surroundings {
    /// Where uploaded blocks go.
    pub bucket: Arc<dyn Bucket>,
    /// The lists of what is there.
    pub indexes: Arc<IndexCache>,
    /// After this long every querier has read a newer bucket index.
    pub index_refresh_interval: Duration,
    /// Whose samples may lie how far in the future.
    pub limits: TenantLimits,
    /// Clocks, pools, disk.
    pub runtime: Runtime,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Ingester {
    /// Opens the ingester that lives in `data_dir`: everything acknowledged before is readable when this returns.
    /// `progress` is told how far the replay is.
    pub async fn open(
        config: Config,
        data_dir: &Path,
        surroundings: Surroundings,
        progress: impl Fn(String) + Send + 'static,
    ) -> Result<Self, OpenError> {
        let Surroundings { bucket, indexes, index_refresh_interval, limits, runtime, metrics } = surroundings;
        let (wal_dir, blocks_dir) = (data_dir.join("wal"), data_dir.join("tsdb"));
        let opening = Opening {
            config: config.clone(),
            runtime: runtime.clone(),
            metrics: metrics.clone(),
            data_dir: data_dir.to_owned(),
            wal_dir,
            chunks_dir: data_dir.join("chunks"),
            blocks_dir: blocks_dir.clone(),
        };
        let Opened { wal, chunk_files, tenants, orphans, losses, repair } =
            runtime.background_pool.run(move || opening.open(&progress)).await??;
        let leaving = Leaving::open(runtime.disk.as_ref(), data_dir);
        let permits = config.max_inflight_push_bytes.as_usize().min(tokio::sync::Semaphore::MAX_PERMITS);
        let shared = Shared {
            config,
            blocks_dir,
            wal: Arc::new(wal),
            chunk_files,
            tenants,
            orphans,
            losses,
            repair,
            leaving,
            bucket,
            indexes,
            index_refresh_interval,
            limits,
            series_limits: std::sync::OnceLock::new(),
            clock_watch: std::sync::OnceLock::new(),
            inflight: Arc::new(tokio::sync::Semaphore::new(permits)),
            synced: tokio::sync::watch::channel(()).0,
            sync_wanted: tokio::sync::Notify::new(),
            runtime,
            metrics,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Syncs the log. Nothing is pushed any more by then.
    pub async fn close(&self) -> Result<(), WalError> {
        let ingester = self.clone();
        let closed = self.shared.runtime.background_pool.run(move || {
            ingester.shared.wal.sync()?;
            ingester.shared.repair.closed(ingester.shared.runtime.disk.as_ref());
            Ok(())
        });
        match closed.await {
            Ok(synced) => synced,
            Err(lost) => Err(WalError::Io(Arc::new(io::Error::other(lost.to_string())))),
        }
    }
}

struct Opened {
    wal: Wal,
    chunk_files: Arc<ChunkFiles>,
    tenants: Tenants,
    orphans: Vec<Arc<Head>>,
    losses: Vec<TenantLoss>,
    repair: repair::State,
}

struct Opening {
    config: Config,
    runtime: Runtime,
    metrics: Metrics,
    data_dir: PathBuf,
    wal_dir: PathBuf,
    chunks_dir: PathBuf,
    blocks_dir: PathBuf,
}

impl Opening {
    fn open(&self, progress: &dyn Fn(String)) -> Result<Opened, OpenError> {
        let disk = self.runtime.disk.clone();
        let (mut blocks, floors) = self.open_blocks()?;
        let chunk_files = self.open_chunk_files()?;
        let options =
            WalOptions { segment_bytes: self.config.wal.segment_size.as_u64(), compress: self.config.wal.compression };
        let head_options = head_options();
        let mut owners: HashMap<HeadId, TenantId> = HashMap::new();
        let begun = self.runtime.clock.monotonic();
        let heads = ReplayHeads::new(chunk_files.clone(), |id, state: &HeadState| {
            if let Some(tenant) = std::str::from_utf8(&state.definition).ok().and_then(|t| TenantId::new(t).ok()) {
                owners.insert(id, tenant);
            }
            let head = Head::new(id, head_options, chunk_files.clone());
            Arc::new(head.with_incarnation(self.runtime.rng.next_u64()))
        });
        let crew = self.runtime.ingest_pool.crew();
        let mut replay = Observed { inner: heads, progress, last_percent: None };
        let opened = Wal::open(disk, &self.wal_dir, options, &mut replay, &crew);
        let (wal, report) = opened.map_err(|source| OpenError::Wal { path: self.wal_dir.clone(), source })?;
        let (heads, lost) = replay.inner.finish(&crew);
        tell(&report, self.runtime.clock.monotonic() - begun);
        let losses = losses::losses(&report, &lost, &owners);
        let found = LogFound {
            nothing: report.segments == 0 && report.snapshots.is_empty(),
            lost: report.lost_something() || lost.values().any(|lost| lost.chunks > 0),
            torn: !report.torn_tails.is_empty(),
        };
        let history = History::open(self.runtime.disk.as_ref(), &self.data_dir, self.config.wal.sync, &found);
        if let Some(gap) = history.gap() {
            tracing::info!(gap, "this ingester has not, or may not have, all it acknowledged");
        }
        let repair = repair::State::new(history, floors);
        losses::tell(&losses, &self.metrics);
        for chunk in lost.values().flat_map(|lost| &lost.named) {
            tracing::error!("lost: {chunk}");
        }
        let now = self.runtime.clock.monotonic().as_millis() as i64;
        let tenants = Tenants::default();
        let mut orphans = Vec::new();
        for (id, head) in heads {
            let Some(tenant) = owners.remove(&id) else {
                tracing::error!(head = id.0, "a head of the log belongs to no tenant; it is left in the log");
                orphans.push(head);
                continue;
            };
            let own = blocks.remove(&tenant).unwrap_or_default();
            self.add(&tenants, tenant, head, own, now);
        }
        // Tenants with blocks but nothing in the log.
        for (tenant, own) in blocks {
            match wal.define_head(tenant.as_str().as_bytes()) {
                Ok(id) => {
                    let head = Head::new(id, head_options, chunk_files.clone());
                    let head = head.with_incarnation(self.runtime.rng.next_u64());
                    self.add(&tenants, tenant, Arc::new(head), own, now);
                }
                // A full disk must not keep the process from starting; the blocks are found with the next start.
                Err(error) => {
                    tracing::error!(%tenant, %error, "local blocks cannot be read: the log takes no new tenant")
                }
            }
        }
        Ok(Opened { wal, chunk_files, tenants, orphans, losses, repair })
    }

    /// The replay removes the files that no snapshot refers to before it begins: so a disk they filled has space.
    fn open_chunk_files(&self) -> Result<Arc<ChunkFiles>, OpenError> {
        let config = &self.config.chunk_files;
        let options = ChunkFileOptions {
            file_bytes: u32::try_from(config.file_size.as_u64()).unwrap_or(u32::MAX),
            memory_budget: config.memory_budget.as_u64(),
            ..ChunkFileOptions::default()
        };
        let opened = ChunkFiles::open(self.runtime.disk.clone(), &self.chunks_dir, options);
        Ok(Arc::new(opened.map_err(|source| OpenError::Disk { path: self.chunks_dir.clone(), source })?))
    }

    fn add(&self, tenants: &Tenants, id: TenantId, head: Arc<Head>, blocks: Vec<LocalBlockEntry>, now: i64) {
        let dir = self.blocks_dir.join(id.as_str());
        let made: Result<_, std::convert::Infallible> =
            tenants.get_or_insert(&id, || Ok(Tenant::new(id.clone(), head, dir, blocks, now)));
        drop(made);
    }

    /// The blocks on the disk, by tenant. Remains of interrupted writes are removed; a damaged block is left alone, named,
    /// and not read. Also, what of each tenant was dropped before.
    fn open_blocks(&self) -> Result<(HashMap<TenantId, Vec<LocalBlockEntry>>, Floors), OpenError> {
        let disk: &dyn Disk = self.runtime.disk.as_ref();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Disk { path, source }
        };
        disk.create_dir_all(&self.blocks_dir).map_err(failed(&self.blocks_dir))?;
        let (mut found, floors) = (HashMap::new(), Floors::default());
        for entry in disk.list(&self.blocks_dir).map_err(failed(&self.blocks_dir))? {
            let Some(tenant) = Some(&entry.name).filter(|_| entry.is_dir).and_then(|n| TenantId::new(n).ok()) else {
                continue;
            };
            let dir = self.blocks_dir.join(&entry.name);
            let ShippedFile { uploaded, dropped_until_ms } = load_shipped(disk, &dir);
            dropped_until_ms.into_iter().for_each(|end| floors.raise(&tenant, end));
            let mut blocks = Vec::new();
            for entry in disk.list(&dir).map_err(failed(&dir))? {
                let path = dir.join(&entry.name);
                if entry.name.contains(".tmp-for-") {
                    let _ = disk.remove_dir_all(&path);
                    continue;
                }
                let Some(id) = Some(&entry.name).filter(|_| entry.is_dir).and_then(|n| Ulid::from_string(n).ok())
                else {
                    continue;
                };
                match LocalBlock::open(disk, &path) {
                    Ok(block) => blocks.push(LocalBlockEntry::new(block, uploaded.get(&id).copied())),
                    Err(error) => {
                        tracing::error!(%tenant, block = %id, %error, "local block is damaged; it is not read");
                    }
                }
            }
            if !blocks.is_empty() {
                found.insert(tenant, blocks);
            }
        }
        Ok((found, floors))
    }
}

/// Passes a replay on and tells how far it is.
struct Observed<'a, R> {
    inner: R,
    progress: &'a dyn Fn(String),
    last_percent: Option<u64>,
}

impl<R: Replay> Replay for Observed<'_, R> {
    fn segment(&mut self, segment: SegmentId) {
        self.inner.segment(segment);
    }

    fn keep_files(&mut self, of_snapshots: &[Option<Vec<u32>>]) -> Vec<Keep> {
        self.inner.keep_files(of_snapshots)
    }

    fn stretch(&mut self, replayed: Vec<Replayed<'_>>, workers: &dyn Workers) -> Missed {
        self.inner.stretch(replayed, workers)
    }

    fn series(&self) -> usize {
        self.inner.series()
    }

    fn progress(&mut self, bytes_done: u64, bytes_total: u64) {
        let percent = (bytes_done * 100).checked_div(bytes_total).unwrap_or(100);
        if self.last_percent != Some(percent) {
            self.last_percent = Some(percent);
            (self.progress)(format!("restoring snapshot and log: {percent} % of {} MiB", bytes_total >> 20));
        }
    }
}

fn tell(report: &RecoveryReport, took: Duration) {
    let took_ms = took.as_millis() as u64;
    for snapshot in &report.snapshots {
        let (segment, bytes) = (snapshot.segment.0, snapshot.bytes);
        if snapshot.is_whole() {
            tracing::info!(segment, bytes, "snapshot restored");
        } else {
            let held = snapshot.damaged_total();
            tracing::error!(
                segment,
                bytes,
                damaged = ?snapshot.damaged,
                incomplete = snapshot.incomplete,
                series = held.series,
                samples = held.samples,
                min_time = held.min_time,
                max_time = held.max_time,
                supplied = snapshot.supplied,
                "the snapshot is damaged; `supplied` says whether older snapshots and the log had what it lost"
            );
        }
    }
    let (segments, bytes, records) = (report.segments, report.bytes, report.records);
    tracing::info!(segments, bytes, records, torn_tails = report.torn_tails.len(), took_ms, "log replayed");
    if report.lost_something() {
        tracing::error!(
            damaged_bytes = report.damaged_bytes,
            damaged = ?report.damaged,
            missing_segments = ?report.missing_segments,
            unreadable = ?report.unreadable,
            undefined_samples = report.undefined_samples,
            orphan_records = report.orphan_records,
            "the log was damaged: samples may be missing here"
        );
    }
}
