//! The ingester: logs what is pushed, holds recent samples in a head per tenant, and turns them into uploaded blocks.
//!
//! A push goes through [`push`] to the tenant's head and the one log all heads share. A read ([`read`]) takes a snapshot of
//! the head first and of the local blocks after it: a flush publishes a block before it empties the head, so nothing
//! falls between. [`flush`] cuts heads into blocks, [`ship`] uploads them and drops them when [`retention`] says so;
//! [`early_flush`] lets series go that have ended when there are many;
//! [`snapshot`] writes down what the heads hold, so that the log need not be kept from its beginning. [`upkeep`] calls all
//! three and syncs the log; [`open`] restores and replays at start. [`repair`] fetches what other members of the replica
//! group have and this one lacks. [`leaving`] is what it does before it goes for good, [`series_limits`] compares
//! tenants' limits with what all groups hold. [`tenants`] is who is here at all,
//! [`admin`] the HTTP side.
//!
//! Absent on purpose: placement and quorum (the distributor's and the querier's), and any reading from the bucket but
//! its index.

mod admin;
pub mod client;
mod early_flush;
mod flush;
pub mod grpc;
mod leaving;
mod losses;
mod metrics;
mod open;
mod push;
mod push_message;
mod read;
pub mod repair;
pub mod retention;
pub mod series_limits;
mod ship;
mod snapshot;
mod tenants;
mod upkeep;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skald_tsdb::head::{ChunkFiles, Head};
use skald_tsdb::wal::Wal;

use crate::bucket::Bucket;
use crate::bucket::index_cache::IndexCache;
use crate::limits::TenantLimits;
use crate::membership::ClockWatch;
use crate::runtime::Runtime;
use crate::settings::{ByteSize, setting_enum, settings};
use losses::TenantLoss;
pub use metrics::Metrics;
pub use open::{OpenError, Surroundings};
use tenants::Tenants;

settings! {
    /// The ingester: logs what is pushed, holds recent samples in memory, and uploads them as blocks.
    pub struct Config {
        /// The write-ahead log.
        pub wal: WalConfig,
        /// Where closed chunks of samples lie until their range becomes a block.
        pub chunk_files: ChunkFilesConfig,
        /// How often heads are looked at for something to cut into blocks.
        pub head_compaction_interval: Duration = Duration::from_secs(60) => Duration::from_millis(100)..,
        /// A tenant that pushed nothing for this long is flushed whole, so that it costs no memory.
        pub head_compaction_idle_timeout: Duration = Duration::from_secs(3600) => Duration::from_secs(1)..,
        /// Series in memory, of all tenants together, from which on heads are flushed before their time for the sake of
        /// series that get no samples any more (pods that came and went): whatever is older than 20 minutes becomes a
        /// block (older than an hour where a tenant's `out_of_order_time_window` is below that), and series without anything newer
        /// leave memory. Smaller values bound memory tighter and make more, smaller blocks. `none` never does.
        pub early_head_compaction_min_in_memory_series: Option<usize> = Some(2_000_000) => 1..,
        /// Percentage of a tenant's series that an early flush must let go to be worth a block.
        pub early_head_compaction_min_estimated_series_reduction_percentage: u32 = 15 => 0..=100,
        /// How often blocks that are not in the bucket yet are uploaded. A failed upload is tried again then.
        pub ship_interval: Duration = Duration::from_secs(60) => Duration::from_millis(100)..,
        /// How blocks have their chunks. With `xor` they are what every Prometheus since 2.40 reads, and start timestamps,
        /// which remote_write 2.0 may bring, are lost when samples leave memory for a block, after two to three hours:
        /// `start_timestamp()` answers 0 from there on. With `xor2` blocks keep them, in chunks that only Prometheus from 3.14
        /// on reads (those of histograms are experimental there); chunks without start timestamps stay as they are.
        pub block_chunk_encoding: BlockChunkEncoding = BlockChunkEncoding::Xor,
        /// How long a block stays here after its upload. Must be at least `querier.store_optional_within`, and
        /// `querier.query_store_after` if that is set.
        pub local_retention: Duration = Duration::from_secs(13 * 3600),
        /// How often this ingester compares what it holds with the other members of its replica group, and fetches what it
        /// lacks: pushes that it shed or that timed out. A shorter interval finds them sooner; a comparison of equal
        /// members decodes the newest half hour or so of samples.
        pub repair_interval: Duration = Duration::from_secs(120) => Duration::from_secs(1)..,
        /// Bytes of pushes being carried out at one time; further pushes are answered 503.
        pub max_inflight_push_bytes: ByteSize = ByteSize::mib(512),
    }
}

settings! {
    /// Enforced by each ingester for what it holds of a tenant.
    pub struct Limits {
        /// Samples older than their series' newest are accepted this far behind the tenant's newest sample. 0 accepts none.
        pub out_of_order_time_window: Duration = Duration::from_secs(2 * 3600),
        /// Most series of a tenant in the memory of the ingesters, of all replica groups together. What is spread unevenly may be
        /// refused for some seconds before the limit is reached, while groups tell each other what they hold. `none` is no limit.
        pub max_series_per_tenant: Option<usize> = Some(10_000_000),
        /// Most series of one metric name of a tenant in the memory of the ingesters, of all replica groups together. Each group takes its
        /// part and four standard deviations of it, since hashes do not spread series exactly: with several groups the limit
        /// may be exceeded by that (by 4 % with 100,000 series and 10 groups). `none` is no limit.
        pub max_series_per_metric: Option<usize> = None,
        /// Exemplars of a tenant that an ingester keeps; the oldest give way. 0 keeps none.
        pub max_exemplars_per_tenant: usize = 100_000,
    }
}

setting_enum! {
    /// How the chunks of blocks are encoded.
    pub enum BlockChunkEncoding {
        /// Without start timestamps.
        Xor = "xor",
        /// With start timestamps where samples have any.
        Xor2 = "xor2",
    }
}

setting_enum! {
    /// When an acknowledged push is on the disk itself rather than in the operating system's memory.
    pub enum SyncPolicy {
        /// Within `interval` after the answer: a crash of the process loses nothing, a power cut that much.
        Interval = "interval",
        /// Before the answer: a power cut loses nothing; each push waits for the disk.
        EveryBatch = "every-batch",
    }
}

settings! {
    /// The write-ahead log of an ingester.
    pub struct WalConfig {
        /// When the log is synced to the disk.
        pub sync: SyncPolicy = SyncPolicy::Interval,
        /// Longest time an acknowledged push may sit only in the operating system's memory.
        pub sync_interval: Duration = Duration::from_millis(100) => Duration::from_millis(1)..,
        /// Size at which a segment of the log is closed and another begun.
        pub segment_size: ByteSize = ByteSize::mib(128) => ByteSize::mib(1)..=ByteSize::gib(1),
        /// Compress series definitions, histograms and metadata in the log; floats have a compact form of their own.
        pub compression: bool = true,
        /// Growth of the log after which what the heads hold is written down in a snapshot, so that a restart replays only
        /// what came later. Smaller values make restarts faster and write more; a snapshot is never begun before the log
        /// has grown by the size of the last one. Two snapshots are kept, and the log back to the older one. `none` writes
        /// none: then an idle tenant keeps the log from being freed.
        pub snapshot_after: Option<ByteSize> = Some(ByteSize::mib(256)) => ByteSize::mib(1)..,
        /// Most bytes a snapshot writes per second, so that it leaves the disk to the log.
        pub snapshot_bandwidth: ByteSize = ByteSize::mib(128) => ByteSize::mib(1)..,
    }
}

settings! {
    /// The files in `<data-dir>/chunks` that hold closed chunks of recent samples, so that memory holds only the open ones.
    /// A start keeps those that snapshots of the log refer to.
    pub struct ChunkFilesConfig {
        /// Size at which a file is complete and another begun. A file is removed when no chunk in it is needed any more:
        /// smaller files give disk space back sooner.
        pub file_size: ByteSize = ByteSize::mib(128) => ByteSize::mib(1)..=ByteSize::gib(1),
        /// Bytes of closed chunks that may wait in memory while they cannot be written, on a full disk for example. Beyond
        /// that pushes are answered 503 (`chunk-files-unavailable`) until the disk takes them.
        pub memory_budget: ByteSize = ByteSize::mib(256) => ByteSize::mib(1)..,
    }
}

/// Length of the blocks that heads are cut into, aligned to multiples of it.
pub(crate) const BLOCK_RANGE_MS: i64 = 2 * 3_600_000;

/// The ingester of a process. Clones are the same.
#[derive(Clone)]
pub struct Ingester {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// `<data-dir>/tsdb`: a directory of blocks per tenant.
    blocks_dir: PathBuf,
    wal: Arc<Wal>,
    chunk_files: Arc<ChunkFiles>,
    tenants: Tenants,
    /// Heads of the log whose tenant is unknown: nobody can reach them, and snapshots must not forget them.
    orphans: Vec<Arc<Head>>,
    repair: repair::State,
    leaving: leaving::Leaving,
    /// What the start could not bring back.
    losses: Vec<TenantLoss>,
    bucket: Arc<dyn Bucket>,
    indexes: Arc<IndexCache>,
    /// After this long every querier has read a newer bucket index.
    index_refresh_interval: Duration,
    /// How far in the future a sample may lie.
    limits: TenantLimits,
    /// What tenants may hold here of what all groups hold; unset while there is no other group.
    series_limits: std::sync::OnceLock<series_limits::SeriesLimits>,
    /// Whether the wall clock can be trusted; unset where nobody judges it.
    clock_watch: std::sync::OnceLock<Arc<ClockWatch>>,
    /// Bytes of pushes under way.
    inflight: Arc<tokio::sync::Semaphore>,
    /// Tells who waits for durability that the log was synced.
    synced: tokio::sync::watch::Sender<()>,
    /// Asks for a sync before the interval is over.
    sync_wanted: tokio::sync::Notify,
    runtime: Runtime,
    metrics: Metrics,
}
