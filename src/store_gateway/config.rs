//! Settings of the store-gateway.

use std::path::PathBuf;
use std::time::Duration;

use crate::settings::{ByteSize, settings};

settings! {
    /// The role that reads the blocks in object storage.
    pub struct Config {
        /// Directory of the small part of each block's index that is kept on this machine. It is a cache: what is lost or
        /// damaged is fetched again. `none` is `store-gateway` inside the data directory.
        pub cache_dir: Option<PathBuf> = None,
        /// Memory for parts of indexes: half of it for their bytes (postings and series), which saves requests to the bucket
        /// and stays unused where that is a local directory, half of it for labels of series, which saves CPU time.
        pub index_cache_size: ByteSize = ByteSize::mib(256),
        /// Memory for parts of chunk segments. Larger saves requests to the bucket; unused where that is a local directory,
        /// whose files the operating system keeps in memory.
        pub chunks_cache_size: ByteSize = ByteSize::mib(256),
        /// Unwanted bytes between two wanted ranges that are fetched along to save a request.
        pub partitioner_max_gap: ByteSize = ByteSize::kib(512),
        /// How many requests to the bucket are under way at once, for all queries together. Each may hold up to 8 MiB.
        pub max_concurrent_requests: usize = 64 => 1..=10_000,
        /// How many blocks are opened at once. Opening one for the first time fetches its symbols and postings offsets.
        pub index_header_loading_concurrency: usize = 4 => 1..=1_000,
        /// Blocks that nobody queried for this long are closed; what is on disk of them stays.
        pub index_header_idle_timeout: Duration = Duration::from_secs(3600),
        /// How long a block that turned out damaged is refused without looking at it again.
        pub quarantine_period: Duration = Duration::from_secs(600),
        /// How often the bucket indexes are looked at for blocks that are gone, to remove what is kept of them here.
        pub sync_interval: Duration = Duration::from_secs(900) => Duration::from_secs(1)..,
    }
}
