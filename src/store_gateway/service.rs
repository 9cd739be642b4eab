//! The store-gateway's service: requests from queriers, and its upkeep.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use prometheus_client::registry::Registry;
use skald_model::{Labels, Matcher, QueryRange};
use ulid::Ulid;

use super::block::{OpenBlock, ReadError};
use super::blocks::Blocks;
use super::client::{BlocksStream, FromBlocks, StoreGatewayClient};
use super::config::Config;
use super::metrics::Metrics;
use super::opening::Opener;
use super::pages::PageReader;
use super::query::Query;
use super::reading::{Reading, Wanted};
use super::select::select;
use super::upkeep::Upkeep;
use crate::bucket::Bucket;
use crate::bucket::index_cache::IndexCache;
use crate::error::ServiceError;
use crate::runtime::Runtime;
use crate::select::{HeapBytes, LabelRequest, RequestBounds, SelectRequest};
use crate::tenant::TenantId;

/// Blocks of one query opened, or read for their labels, at once.
const BLOCK_CONCURRENCY: usize = 16;

/// Which blocks a store-gateway serves.
pub type Ownership = Arc<dyn Fn(&TenantId, Ulid) -> bool + Send + Sync>;

/// Serves blocks from object storage. Clones are the same.
#[derive(Clone)]
pub struct StoreGateway {
    inner: Arc<Inner>,
}

struct Inner {
    blocks: Blocks,
    pages: Arc<PageReader>,
    owns: Ownership,
    runtime: Runtime,
    upkeep: Upkeep,
    metrics: Metrics,
}

impl StoreGateway {
    /// A store-gateway for the blocks `owns` says yes to. Opens nothing before it is asked for.
    ///
    /// `indexes` is where its upkeep looks for blocks that are gone; `data_dir` holds its cache unless `config` names
    /// another place.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        indexes: Arc<IndexCache>,
        owns: Ownership,
        runtime: Runtime,
        config: &Config,
        data_dir: &Path,
        registry: &mut Registry,
    ) -> Self {
        let metrics = Metrics::new(registry);
        let dir = config.cache_dir.clone().unwrap_or_else(|| data_dir.join("store-gateway"));
        let pages = Arc::new(PageReader::new(bucket.clone(), runtime.query_pool.clone(), config, metrics.clone()));
        let opener = Opener {
            disk: runtime.disk.clone(),
            dir: dir.clone(),
            pool: runtime.query_pool.clone(),
            pages: pages.clone(),
            metrics: metrics.clone(),
            next_number: AtomicU64::new(1),
        };
        let blocks = Blocks::new(bucket, runtime.clock.clone(), opener, config, metrics.clone());
        let upkeep = Upkeep { indexes, dir, interval: config.sync_interval };
        Self { inner: Arc::new(Inner { blocks, pages, owns, runtime, upkeep, metrics }) }
    }

    /// Closes idle blocks and removes what is kept of blocks that are gone, again and again, until dropped.
    pub async fn run(&self) {
        let inner = &self.inner;
        inner.upkeep.run(&inner.runtime, &inner.blocks, &inner.owns).await;
    }

    fn begin(&self) -> (Query, Reading) {
        let inner = &self.inner;
        let query = Query::begin(inner.metrics.clone(), inner.runtime.clock.clone());
        let reading = Reading {
            pages: inner.pages.clone(),
            pool: inner.runtime.query_pool.clone(),
            usage: query.usage.clone(),
            metrics: inner.metrics.clone(),
        };
        (query, reading)
    }

    /// Those of the blocks that the bucket has, open. Who asks knows best whom to ask: also one that does not own a block,
    /// by its view of the ring, reads it.
    async fn open(
        &self,
        query: &Query,
        tenant: &TenantId,
        mut ids: Vec<Ulid>,
    ) -> Result<Vec<Arc<OpenBlock>>, ServiceError> {
        ids.sort_unstable();
        ids.dedup();
        let opening = ids.into_iter().map(|id| self.inner.blocks.get(tenant, id, &query.usage));
        let opened: Vec<Option<_>> = stream::iter(opening).buffered(BLOCK_CONCURRENCY).try_collect().await?;
        Ok(opened.into_iter().flatten().collect())
    }

    /// Turns the failure of a block into the answer. A block that is gone is looked for anew by the next query.
    fn failure(&self, block: &OpenBlock, error: ReadError) -> ServiceError {
        if matches!(&error, ReadError::Bucket(error) if error.is_not_found()) {
            self.inner.blocks.close(&block.tenant, block.id);
        }
        let error = error.into_service_error(&block.tenant, block.id);
        tracing::warn!(tenant = %block.tenant, block = %block.id, %error, "block could not be read");
        error
    }

    /// Asks every block the same question and gathers the answers.
    async fn gather<T: Ord + HeapBytes + Send + 'static>(
        &self,
        tenant: &TenantId,
        ids: Vec<Ulid>,
        request: LabelRequest,
        question: Question<T>,
    ) -> Result<FromBlocks<Vec<T>>, ServiceError> {
        let (query, reading) = self.begin();
        let result = self.gather_of(&query, &reading, tenant, ids, request, question).await;
        result.inspect_err(|_| query.failed())
    }

    async fn gather_of<T: Ord + HeapBytes + Send + 'static>(
        &self,
        query: &Query,
        reading: &Reading,
        tenant: &TenantId,
        ids: Vec<Ulid>,
        request: LabelRequest,
        question: Question<T>,
    ) -> Result<FromBlocks<Vec<T>>, ServiceError> {
        let blocks = self.open(query, tenant, ids).await?;
        let LabelRequest { selectors, range, bounds, limit: _ } = request;
        let selectors: Vec<Arc<[Matcher]>> = selectors.into_iter().map(Arc::from).collect();
        let overlapping: Vec<_> = blocks.iter().filter(|block| block.range.overlaps(range)).cloned().collect();
        let answers = overlapping.into_iter().map(|block| {
            let (selectors, bounds, question) = (&selectors, &bounds, &question);
            async move {
                let answer = answer(reading, &block, selectors, range, bounds, question).await;
                answer.map_err(|error| self.failure(&block, error))
            }
        });
        let mut value = BTreeSet::new();
        let mut answers = stream::iter(answers).buffer_unordered(BLOCK_CONCURRENCY);
        while let Some(answer) = answers.try_next().await? {
            value.extend(answer);
        }
        let served = blocks.iter().map(|block| block.id).collect();
        Ok(FromBlocks { value: value.into_iter().collect(), served })
    }
}

/// What is asked of each block, in the two ways it can be answered.
struct Question<T> {
    /// From the header alone, when every series counts; `None` when that is not enough.
    of_header: Option<HeaderAnswer<T>>,
    /// From the labels of each series that counts.
    of_series: SeriesAnswer<T>,
}

type HeaderAnswer<T> =
    Arc<dyn Fn(&OpenBlock, &mut BTreeSet<T>) -> Result<(), skald_tsdb::block::BlockError> + Send + Sync>;
type SeriesAnswer<T> = Arc<dyn Fn(&Labels, &mut BTreeSet<T>) + Send + Sync>;

async fn answer<T: Ord + HeapBytes + Send + 'static>(
    reading: &Reading,
    block: &Arc<OpenBlock>,
    selectors: &[Arc<[Matcher]>],
    range: QueryRange,
    bounds: &RequestBounds,
    question: &Question<T>,
) -> Result<BTreeSet<T>, ReadError> {
    let every: [Arc<[Matcher]>; 1] = [Arc::from([])];
    let selectors = match (selectors, &question.of_header) {
        ([], Some(of_header)) => {
            let (block, of_header, bounds) = (block.clone(), of_header.clone(), bounds.clone());
            let answered = reading.pool.run(move || {
                let mut values = BTreeSet::new();
                bounds.run(|| of_header(&block, &mut values)).map_err(ReadError::Bounded)??;
                bounds.gather(values.iter().map(HeapBytes::heap_bytes).sum()).map_err(ReadError::Bounded)?;
                Ok::<_, ReadError>(values)
            });
            return answered.await?;
        }
        ([], None) => &every[..],
        (selectors, _) => selectors,
    };
    let mut values = BTreeSet::new();
    for matchers in selectors {
        let found = reading.find_series(block, matchers, bounds).await?;
        let deferred: Arc<[Matcher]> = found.deferred.clone().into();
        let mut next = 0;
        loop {
            let portion = found.portion(next).to_vec();
            if portion.is_empty() {
                break;
            }
            next += portion.len();
            let indexed = reading.index_series(block, portion, &deferred, Wanted::LabelsOf(range)).await?;
            let of_series = question.of_series.clone();
            let collected = reading.pool.run(move || {
                let mut values = BTreeSet::new();
                indexed.iter().for_each(|series| of_series(&series.labels, &mut values));
                values
            });
            for value in collected.await? {
                let bytes = value.heap_bytes();
                if values.insert(value) {
                    bounds.gather(bytes).map_err(ReadError::Bounded)?;
                }
            }
        }
    }
    Ok(values)
}

#[async_trait]
impl StoreGatewayClient for StoreGateway {
    async fn select(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: SelectRequest,
    ) -> Result<BlocksStream, ServiceError> {
        let (query, reading) = self.begin();
        let blocks = self.open(&query, tenant, blocks).await.inspect_err(|_| query.failed())?;
        let gateway = self.clone();
        let on_failure = Arc::new(move |block: &OpenBlock, error| gateway.failure(block, error));
        let batches = select(reading, blocks, request, on_failure);
        // The query lasts as long as its stream.
        Ok(batches.inspect_err(move |_| query.failed()).boxed())
    }

    async fn label_names(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError> {
        let question = Question {
            of_header: Some(Arc::new(|block: &OpenBlock, names: &mut BTreeSet<String>| {
                names.extend(block.header.label_names().map(|(name, _)| name.to_owned()));
                Ok(())
            })),
            of_series: Arc::new(|labels, names| labels.iter().for_each(|(name, _)| put(names, name))),
        };
        self.gather(tenant, blocks, request, question).await
    }

    async fn label_values(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        name: &str,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError> {
        let name: Arc<str> = name.into();
        let of_header = {
            let name = name.clone();
            move |block: &OpenBlock, values: &mut BTreeSet<String>| {
                block.header.label_values(&name, &mut |value| put(values, value))
            }
        };
        let question = Question {
            of_header: Some(Arc::new(of_header)),
            of_series: Arc::new(move |labels, values| {
                labels.get(&name).into_iter().for_each(|value| put(values, value))
            }),
        };
        self.gather(tenant, blocks, request, question).await
    }

    async fn series(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<Labels>>, ServiceError> {
        let question = Question {
            of_header: None,
            of_series: Arc::new(|labels: &Labels, series: &mut BTreeSet<Labels>| _ = series.insert(labels.clone())),
        };
        self.gather(tenant, blocks, request, question).await
    }
}

/// Adds a text without copying what is there already.
fn put(texts: &mut BTreeSet<String>, text: &str) {
    if !texts.contains(text) {
        texts.insert(text.to_owned());
    }
}
