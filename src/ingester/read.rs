//! Answers reads from the head and from local blocks, and is the ingester's client trait.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use skald_model::{Labels, Matcher, MetricMetadata, QueryRange, TimestampMs};
use skald_proto::WriteBatch;
use skald_tsdb::block::{BlockError, LocalBlock, join_parts};
use skald_tsdb::head::{Head, LostChunk, PartDigest, Select};
use skald_tsdb::{SeriesChunks, SeriesFilter};

use super::Ingester;
use super::client::{IngesterClient, KnownReply, PushReply};
use super::push::Identified;
use super::repair::exchange::{
    ChunkStream, ChunksRequest, DigestsRequest, OverviewStream, SeriesDigestStream, SeriesRequest,
};
use super::tenants::Tenant;
use crate::error::{ErrorKind, ServiceError};
use crate::select::{BATCH_BYTES, HeapBytes, LabelRequest, SelectRequest, SeriesExemplars, SeriesStream};
use crate::tenant::TenantId;

/// One source of a tenant's series: its head, or a local block.
enum Source {
    Head(TenantId, Box<Select>, std::vec::IntoIter<SeriesChunks>),
    Block(Box<skald_tsdb::block::LocalSelect>),
}

impl Source {
    fn next(&mut self) -> Result<Option<SeriesChunks>, ServiceError> {
        match self {
            Self::Block(select) => select.next().transpose().map_err(block_error),
            Self::Head(tenant, select, ready) => {
                if let Some(series) = ready.next() {
                    return Ok(Some(series));
                }
                let batch = select.next_batch(BATCH_BYTES).map_err(|lost| lost_chunk(tenant, &lost))?;
                *ready = batch.unwrap_or_default().into_iter();
                Ok(ready.next())
            }
        }
    }
}

/// Merges a handful of sources by labels.
pub(super) struct Merge {
    /// Each with its next series; a source that has ended is gone.
    sources: Vec<(SeriesChunks, Source)>,
}

impl Merge {
    fn new(sources: Vec<Source>) -> Result<Self, ServiceError> {
        let mut begun = Vec::with_capacity(sources.len());
        for mut source in sources {
            if let Some(first) = source.next()? {
                begun.push((first, source));
            }
        }
        Ok(Self { sources: begun })
    }

    /// The next series, with the chunks of all sources that have it.
    pub(super) fn next(&mut self) -> Result<Option<SeriesChunks>, ServiceError> {
        let Some(smallest) = self.sources.iter().map(|(next, _)| &next.labels).min().cloned() else {
            return Ok(None);
        };
        let mut parts = Vec::new();
        let mut at = 0;
        while at < self.sources.len() {
            let (next, source) = &mut self.sources[at];
            if next.labels != smallest {
                at += 1;
                continue;
            }
            let following = source.next()?;
            parts.push(match following {
                Some(following) => {
                    at += 1;
                    std::mem::replace(next, following)
                }
                None => self.sources.remove(at).0,
            });
        }
        join_parts(parts)
            .map_err(|e| ServiceError::internal(format!("a chunk in memory or in a local block is damaged: {e}")))
    }

    pub(super) fn next_batch(&mut self) -> Result<Option<Vec<SeriesChunks>>, ServiceError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(series) = self.next()?
        {
            bytes += series.heap_bytes();
            batch.push(series);
        }
        Ok((!batch.is_empty()).then_some(batch))
    }
}

/// How long a question about many selectors goes on before it looks whether anyone waits for it.
const TURN: Duration = Duration::from_millis(10);

/// How far a select has come.
enum Reading {
    Before(Box<dyn FnOnce() -> Result<Merge, ServiceError> + Send>),
    Under(Merge),
}

/// The tenant's local blocks that may hold samples of `range`. Taken after the head: see the module `ingester`.
pub(super) fn blocks(tenant: &Tenant, range: QueryRange) -> Vec<Arc<LocalBlock>> {
    let blocks = tenant.blocks().into_iter().map(|entry| entry.block.clone());
    blocks.filter(|block| block.meta().range().overlaps(range)).collect()
}

fn open(tenant: &Tenant, request: &SelectRequest) -> Result<Merge, ServiceError> {
    let keep = || request.shard.map(|shard| Box::new(move |labels: &Labels| shard.holds(labels)) as SeriesFilter);
    merge(tenant, &request.matchers, request.range, keep)
}

/// The series of head and local blocks, each source with a filter of its own.
pub(super) fn merge(
    tenant: &Tenant,
    matchers: &[Matcher],
    range: QueryRange,
    keep: impl Fn() -> Option<SeriesFilter>,
) -> Result<Merge, ServiceError> {
    let mut head = tenant.head.select(matchers, range);
    if let Some(keep) = keep() {
        head = head.only(keep);
    }
    let mut sources = vec![Source::Head(tenant.id.clone(), Box::new(head), Vec::new().into_iter())];
    for block in blocks(tenant, range) {
        let mut block = block.select(matchers, range).map_err(block_error)?;
        if let Some(keep) = keep() {
            block = block.only(keep);
        }
        sources.push(Source::Block(Box::new(block)));
    }
    Merge::new(sources)
}

/// Without the chunk the answer would be wrong; another replica has it.
fn lost_chunk(tenant: &TenantId, lost: &LostChunk) -> ServiceError {
    tracing::error!(%tenant, "closed chunk cannot be read: {lost}");
    ServiceError::new(ErrorKind::Internal, "head-chunk-unreadable", lost.to_string())
}

/// Whether a select has nothing to read, be it from memory or from files: closed chunks and blocks, which may have to be
/// waited for.
fn reads_nothing(tenant: &Tenant, range: QueryRange) -> bool {
    !meets_head(tenant, range) && blocks(tenant, range).is_empty()
}

fn meets_head(tenant: &Tenant, range: QueryRange) -> bool {
    let held = tenant.head.min_time().zip(tenant.head.max_time());
    held.is_some_and(|(min, max)| min <= range.max && range.min <= max)
}

pub(super) fn block_error(error: BlockError) -> ServiceError {
    ServiceError::internal(format!("a local block could not be read: {error}"))
}

/// Asks head and blocks for labels and unites the answers, each of which ascends.
fn unite<T: Ord>(
    tenant: &Tenant,
    range: QueryRange,
    of_head: impl FnOnce() -> Vec<T>,
    of_block: impl Fn(&LocalBlock) -> Result<Vec<T>, BlockError>,
) -> Result<Vec<T>, ServiceError> {
    let mut all = if meets_head(tenant, range) { of_head() } else { Vec::new() };
    for block in blocks(tenant, range) {
        add(&mut all, of_block(&block).map_err(block_error)?);
    }
    Ok(all)
}

/// Adds what a list does not have yet; both ascend.
fn add<T: Ord>(all: &mut Vec<T>, more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else if !more.is_empty() {
        all.extend(more);
        // Finds the two lists, and merges them.
        all.sort();
        all.dedup();
    }
}

impl Ingester {
    /// Runs a question about one tenant on the query pool; a tenant without data has nothing to answer.
    async fn ask<T: Default + Send + 'static>(
        &self,
        tenant: &TenantId,
        question: impl FnOnce(&Tenant) -> Result<T, ServiceError> + Send + 'static,
    ) -> Result<T, ServiceError> {
        self.shared.repair.admits_reads()?;
        match self.shared.tenants.get(tenant) {
            None => Ok(T::default()),
            Some(tenant) => self.shared.runtime.query_pool.run(move || question(&tenant)).await?,
        }
    }
}

impl Ingester {
    /// Asks head and blocks about the series of every selector, a few selectors at a time: a question of thousands ends
    /// when nobody waits for it any more, and gives its thread, and the locks it reads under, away in between.
    async fn ask_selectors<T: Ord + HeapBytes + Send + 'static>(
        &self,
        tenant: &TenantId,
        request: LabelRequest,
        of_head: impl Fn(&Head, &[Vec<Matcher>], Option<usize>) -> Vec<T> + Send + Sync + 'static,
        of_block: impl Fn(&LocalBlock, &[Vec<Matcher>]) -> Result<Vec<T>, BlockError> + Send + Sync + 'static,
    ) -> Result<Vec<T>, ServiceError> {
        self.shared.repair.admits_reads()?;
        let Some(tenant) = self.shared.tenants.get(tenant) else { return Ok(Vec::new()) };
        let clock = self.shared.runtime.clock.clone();
        let answered = self.shared.runtime.query_pool.spawn(async move {
            let LabelRequest { selectors, range, bounds, limit } = request;
            let ask = |some: &[Vec<Matcher>]| {
                let of_head = || of_head(&tenant.head, some, limit);
                bounds.run(|| unite(&tenant, range, of_head, |block| of_block(block, some)))?
            };
            if selectors.len() <= 1 {
                return bounds.keep(ask(&selectors)?);
            }
            let (mut all, mut left, mut at_once) = (BTreeSet::new(), &selectors[..], 1);
            while !left.is_empty() {
                let (some, rest) = left.split_at(at_once.min(left.len()));
                let begun = clock.monotonic();
                for one in ask(some)? {
                    let bytes = one.heap_bytes();
                    if all.insert(one) {
                        bounds.gather(bytes)?;
                    }
                }
                left = rest;
                at_once = if clock.monotonic() - begun < TURN { at_once * 2 } else { at_once.div_ceil(2) };
                tokio::task::yield_now().await;
            }
            Ok(all.into_iter().collect())
        });
        answered.await?
    }
}

#[async_trait]
impl IngesterClient for Ingester {
    async fn push(&self, tenant: &TenantId, batch: Arc<WriteBatch>) -> Result<PushReply, ServiceError> {
        Ok(self.store(tenant, batch, Identified::ByLabels).await?.reply)
    }

    async fn push_known(&self, tenant: &TenantId, batch: Arc<WriteBatch>) -> Result<KnownReply, ServiceError> {
        self.store(tenant, batch, Identified::ByHash).await
    }

    async fn select(&self, tenant: &TenantId, request: SelectRequest) -> Result<SeriesStream, ServiceError> {
        self.shared.repair.admits_reads()?;
        let Some(tenant) = self.shared.tenants.get(tenant) else { return Ok(stream::empty().boxed()) };
        let pool = self.shared.runtime.query_pool.clone();
        let reads_nothing = reads_nothing(&tenant, request.range);
        let bounds = request.bounds.clone();
        let begin = move || open(&tenant, &request);
        let batches = stream::try_unfold(Reading::Before(Box::new(begin)), move |reading| {
            let (pool, bounds) = (pool.clone(), bounds.clone());
            async move {
                if !reads_nothing {
                    pool.leave().await;
                }
                let read = pool.run(move || {
                    bounds.run(|| {
                        let mut merge = match reading {
                            Reading::Before(begin) => begin()?,
                            Reading::Under(merge) => merge,
                        };
                        Ok(merge.next_batch()?.map(|batch| (batch, Reading::Under(merge))))
                    })?
                });
                read.await?
            }
        });
        Ok(batches.boxed())
    }

    async fn label_names(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<String>, ServiceError> {
        self.ask_selectors(tenant, request, |head, selectors, _| head.label_names(selectors), LocalBlock::label_names)
            .await
    }

    async fn label_values(
        &self,
        tenant: &TenantId,
        name: &str,
        request: LabelRequest,
    ) -> Result<Vec<String>, ServiceError> {
        let (name, of_block) = (name.to_owned(), name.to_owned());
        self.ask_selectors(
            tenant,
            request,
            move |head, selectors, limit| head.label_values(&name, selectors, limit),
            move |block, selectors| block.label_values(&of_block, selectors),
        )
        .await
    }

    async fn series(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        self.ask_selectors(tenant, request, Head::series, LocalBlock::series).await
    }

    async fn exemplars(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        self.ask(tenant, move |tenant| {
            let found = tenant.head.exemplars(&request.selectors, request.range);
            Ok(found.into_iter().map(|s| SeriesExemplars { labels: s.labels, exemplars: s.exemplars }).collect())
        })
        .await
    }

    async fn metadata(&self, tenant: &TenantId, metric: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        let metric = metric.map(str::to_owned);
        self.ask(tenant, move |tenant| Ok(tenant.head.metadata(metric.as_deref()))).await
    }

    async fn repair_overview(&self, up_to: TimestampMs) -> Result<OverviewStream, ServiceError> {
        Ok(self.serve_overview(up_to))
    }

    async fn repair_digests(
        &self,
        tenant: &TenantId,
        request: DigestsRequest,
    ) -> Result<Vec<PartDigest>, ServiceError> {
        self.serve_digests(tenant, request).await
    }

    async fn repair_series(
        &self,
        tenant: &TenantId,
        request: SeriesRequest,
    ) -> Result<SeriesDigestStream, ServiceError> {
        self.serve_series(tenant, request)
    }

    async fn repair_chunks(&self, tenant: &TenantId, request: ChunksRequest) -> Result<ChunkStream, ServiceError> {
        self.serve_chunks(tenant, request)
    }
}
