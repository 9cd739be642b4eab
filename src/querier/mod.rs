//! The querier: evaluates queries over ingesters and store-gateways.
//!
//! A query's way: [`evaluate`] runs its plan on the query pool, or where it arrives while it is [`small`]; each of its
//! selectors becomes a [`select`], which
//! asks the [`sources`] of its time range: a quorum of every ingester group ([`replicas`]), and, for the blocks that
//! [`blocks`] finds in the bucket index, the store-gateways that own them ([`store`]). [`merge`] makes one stream of series
//! out of the answers. [`metadata`] asks the same sources for
//! labels and series. [`offers`] tells the query-schedulers how many queries it takes.
//!
//! Absent on purpose: no query is parsed, no sample is kept between queries, no block is read here.

pub mod blocks;
pub mod client;
mod evaluate;
pub mod grpc;
mod merge;
mod metadata;
mod metrics;
pub mod offers;
mod replicas;
mod select;
mod small;
pub mod sources;
mod store;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use crate::membership::{Ingesters, StoreGateways, TenantShards};
use crate::runtime::Runtime;
use crate::settings::{ByteSize, settings};
use blocks::BlockFinder;
pub use metrics::Metrics;
use replicas::HedgeDelay;

settings! {
    /// The querier: evaluates queries over ingesters and store-gateways.
    pub struct Config {
        /// Query-schedulers to take queries from (`host:port` of their gRPC listeners); all of them. Empty takes those of the
        /// ring, or of the query-frontend of this process.
        pub scheduler_addresses: Vec<String> = Vec::new(),
        /// Queries evaluated at one time; further ones wait. Query-schedulers share them, and each gets one at least.
        pub max_concurrent: usize = 20 => 1..=10_000,
        /// Most samples one query may hold at one time, as Prometheus' `--query.max-samples`. `none` is no limit.
        pub max_samples: Option<usize> = Some(50_000_000),
        /// Most bytes one query may hold at one time: samples, parts of its result, data on its way from ingesters and
        /// store-gateways, large regexes; and most that an answer about series, label names or label values may hold.
        /// `none` is no limit.
        pub query_memory_limit: Option<ByteSize> = Some(ByteSize::gib(1)),
        /// Ask ingesters only about samples younger than this. `none` asks them about every range: needed when
        /// samples of any age are written, since they are found nowhere else until their block is uploaded.
        pub query_ingesters_within: Option<Duration> = None,
        /// Ask the object store only about samples older than this; must be below `query_ingesters_within`. 0 asks it
        /// about every range, so that an ingester which lost its disk costs nothing that was uploaded. Up to the
        /// ingesters' local retention, larger spares the store-gateways.
        pub query_store_after: Duration = Duration::ZERO,
        /// Queries whose whole range is younger than this do not fail when the object store does, since ingesters keep
        /// what they have uploaded for at least as long; the answer carries a warning. At most the ingesters' local
        /// retention. 0 makes every query depend on the store.
        pub store_optional_within: Duration = Duration::from_secs(12 * 3600),
    }
    check |config| match config.query_ingesters_within {
        Some(within) if within <= config.query_store_after => Err(format!(
            "`query_ingesters_within` ({within:?}) must be larger than `query_store_after` ({:?}): between them samples \
             would be found nowhere",
            config.query_store_after
        )),
        _ => Ok(()),
    };
}

/// The querier of a process. Cheap to clone.
#[derive(Clone)]
pub struct Querier {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    ingesters: Arc<ArcSwap<Ingesters>>,
    store_gateways: Arc<ArcSwap<StoreGateways>>,
    /// Of this process; empty without zones.
    zone: String,
    /// Ingesters may hold what was written within it; clocks that are apart included.
    lookback: Duration,
    shards: Arc<TenantShards>,
    hedge_delay: HedgeDelay,
    blocks: BlockFinder,
    concurrency: Semaphore,
    runtime: Runtime,
    metrics: Metrics,
}

/// Whom a querier asks.
pub struct Neighbours {
    /// The ingesters.
    pub ingesters: Arc<ArcSwap<Ingesters>>,
    /// The store-gateways.
    pub store_gateways: Arc<ArcSwap<StoreGateways>>,
    /// The zone of this process, whose members are asked first; empty without zones.
    pub zone: String,
    /// How long ingesters hold what was written, and so much longer as clocks may be apart.
    pub lookback: Duration,
    /// Which groups a tenant's series were written to.
    pub shards: Arc<TenantShards>,
}

impl Querier {
    /// A querier over these ingesters and store-gateways.
    pub fn new(
        config: Config,
        neighbours: Neighbours,
        blocks: BlockFinder,
        runtime: Runtime,
        metrics: Metrics,
    ) -> Self {
        let concurrency = Semaphore::new(config.max_concurrent);
        let Neighbours { ingesters, store_gateways, zone, lookback, shards } = neighbours;
        let hedge_delay = HedgeDelay::new();
        let shared = Shared {
            config,
            ingesters,
            store_gateways,
            zone,
            lookback,
            shards,
            hedge_delay,
            blocks,
            concurrency,
            runtime,
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }
}
