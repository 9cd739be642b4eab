//! How a select over several blocks is answered: one reader per block, their series merged.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use skald_model::{Matcher, QueryRange};
use skald_promql::plan::SeriesShard;
use skald_tsdb::SeriesChunks;
use skald_tsdb::block::join_parts;
use tokio::runtime::Handle;
use ulid::Ulid;

use super::block::{OpenBlock, ReadError};
use super::client::{BlocksBatch, BlocksStream};
use super::pages::PageCount;
use super::reading::{FoundSeries, IndexedSeries, Reading, Wanted};
use crate::error::{ErrorKind, ServiceError};
use crate::read_ahead::{Depth, Place, ReadAhead};
use crate::select::{BATCH_BYTES, RequestBounds, SelectRequest};

/// Bytes of chunks that all readers of one query together aim to have at hand, besides one batch under way each.
const BYTES_AT_HAND: usize = 16 << 20;
/// Least bytes of chunks one reader fetches at once.
const MIN_FETCH: usize = 64 << 10;
/// Memory that the pages of one fetch may take, as a multiple of the bytes that are wanted of them.
const PAGES_PER_WANTED: u64 = 8;

/// Each block's series are read where they are merged, unless they have to be waited for: then a batch ahead.
const DEPTH: Depth = Depth { items_in_place: usize::MAX, items_ahead: 1 };

/// What becomes of a block's failure: the service's error, and whether the block is gone.
pub(super) type OnFailure = Arc<dyn Fn(&OpenBlock, ReadError) -> ServiceError + Send + Sync>;

/// Series of all `blocks`, merged, then the names of the blocks.
pub(super) fn select(
    reading: Reading,
    blocks: Vec<Arc<OpenBlock>>,
    request: SelectRequest,
    on_failure: OnFailure,
) -> BlocksStream {
    let served: Vec<Ulid> = blocks.iter().map(|block| block.id).collect();
    let blocks: Vec<_> = blocks.into_iter().filter(|block| block.range.overlaps(request.range)).collect();
    let (matchers, bounds): (Arc<[Matcher]>, _) = (request.matchers.into(), request.bounds);
    let fetch_bytes = (BYTES_AT_HAND / blocks.len().max(1)).clamp(MIN_FETCH, BATCH_BYTES);
    let place = Place { pool: reading.pool.clone(), io: Handle::current() };
    let start = |block: Arc<OpenBlock>| {
        let reader = BlockReader {
            reading: reading.clone(),
            block,
            matchers: matchers.clone(),
            bounds: bounds.clone(),
            range: request.range,
            shard: request.shard,
            fetch_bytes,
            found: None,
            indexed: VecDeque::new(),
            on_failure: on_failure.clone(),
        };
        Source { batches: ReadAhead::start(place.clone(), DEPTH, reader.batches()), at_hand: VecDeque::new() }
    };
    let sources: Vec<Source> = blocks.into_iter().map(start).collect();
    let series = stream::try_unfold(Merge::new(sources), |mut merge| async move {
        let batch = merge.next_batch().await?;
        Ok((!batch.is_empty()).then_some((BlocksBatch::Series(batch), merge)))
    });
    series.chain(stream::once(async { Ok(BlocksBatch::Served(served)) })).boxed()
}

/// Reads one block's series.
struct BlockReader {
    reading: Reading,
    block: Arc<OpenBlock>,
    matchers: Arc<[Matcher]>,
    bounds: RequestBounds,
    range: QueryRange,
    shard: Option<SeriesShard>,
    fetch_bytes: usize,
    found: Option<Found>,
    /// Series whose chunks are still to be read.
    indexed: VecDeque<IndexedSeries>,
    on_failure: OnFailure,
}

/// The series that may match, and how far their entries are read.
struct Found {
    series: FoundSeries,
    deferred: Arc<[Matcher]>,
    next: usize,
}

impl BlockReader {
    /// The block's series in label order.
    fn batches(self) -> BoxStream<'static, Result<Vec<SeriesChunks>, ServiceError>> {
        let batches = stream::try_unfold(self, |mut reader| async move {
            match reader.next_batch().await {
                Ok(batch) => Ok(batch.map(|batch| (batch, reader))),
                Err(error) => Err((reader.on_failure)(&reader.block, error)),
            }
        });
        batches.boxed()
    }

    async fn next_batch(&mut self) -> Result<Option<Vec<SeriesChunks>>, ReadError> {
        while self.indexed.is_empty() {
            let found = match &mut self.found {
                Some(found) => found,
                none => {
                    let series = self.reading.find_series(&self.block, &self.matchers, &self.bounds).await?;
                    let deferred = series.deferred.clone().into();
                    none.insert(Found { series, deferred, next: 0 })
                }
            };
            let portion = found.series.portion(found.next);
            if portion.is_empty() {
                return Ok(None);
            }
            found.next += portion.len();
            let wanted = Wanted::Overlapping(self.range);
            self.indexed =
                self.reading.index_series(&self.block, portion.to_vec(), &found.deferred, wanted).await?.into();
            // Before any of their chunks is fetched.
            if let Some(shard) = self.shard {
                self.indexed.retain(|series| shard.holds(&series.labels));
            }
        }
        let fetch = self.take();
        Ok(Some(self.reading.read_chunks(&self.block, fetch).await?))
    }

    /// As many series as one fetch of chunks should serve, at least one.
    fn take(&mut self) -> Vec<IndexedSeries> {
        let (wanted_limit, pages_limit) = (self.fetch_bytes as u64, self.fetch_bytes as u64 * PAGES_PER_WANTED);
        let (mut wanted, mut pages) = (0, PageCount::default());
        let mut segment = None;
        let fits = |series: &&IndexedSeries| {
            series.chunks.iter().all(|chunk| {
                if segment.replace(chunk.meta.reference.segment()) != Some(chunk.meta.reference.segment()) {
                    pages.begin_object();
                }
                wanted += chunk.bytes.end - chunk.bytes.start;
                wanted <= wanted_limit && pages.add(&chunk.bytes) <= pages_limit
            })
        };
        let count = self.indexed.iter().take_while(fits).count().max(1);
        self.indexed.drain(..count.min(self.indexed.len())).collect()
    }
}

/// One block's series as they come.
struct Source {
    batches: ReadAhead<Vec<SeriesChunks>, ServiceError>,
    at_hand: VecDeque<SeriesChunks>,
}

impl Source {
    /// The next series, in label order.
    async fn next(&mut self) -> Result<Option<SeriesChunks>, ServiceError> {
        while self.at_hand.is_empty() {
            match self.batches.next().await {
                Some(batch) => self.at_hand = batch?.into(),
                None => return Ok(None),
            }
        }
        Ok(self.at_hand.pop_front())
    }
}

/// Merges sources by labels; equal label sets become one series.
struct Merge {
    sources: Vec<Source>,
    /// The next series of each source that has one.
    heads: BinaryHeap<Head>,
    /// Sources whose next series is not in `heads` yet.
    wanted: Vec<usize>,
}

struct Head {
    series: SeriesChunks,
    source: usize,
}

/// Reversed, as the heap's greatest comes first: least labels, then the source asked for first.
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        let reversed = other.series.labels.cmp(&self.series.labels);
        reversed.then_with(|| other.source.cmp(&self.source))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl Merge {
    fn new(sources: Vec<Source>) -> Self {
        let wanted = (0..sources.len()).collect();
        Self { sources, heads: BinaryHeap::new(), wanted }
    }

    /// Series worth a batch; none at the end.
    async fn next_batch(&mut self) -> Result<Vec<SeriesChunks>, ServiceError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            if let Some(source) = self.only_source() {
                // Its batches have their size, and nobody else's series come between.
                let source = &mut self.sources[source];
                if source.at_hand.is_empty() && batch.is_empty() {
                    return source.batches.try_next().await.map(Option::unwrap_or_default);
                }
                batch.extend(source.at_hand.drain(..));
                return Ok(batch);
            }
            let Some(series) = self.next_series().await? else { break };
            bytes += series.heap_bytes();
            batch.push(series);
        }
        Ok(batch)
    }

    /// The source that is left when all others have ended, as long as none of its series is among the heads.
    fn only_source(&self) -> Option<usize> {
        match (self.wanted.as_slice(), self.heads.is_empty()) {
            (&[source], true) => Some(source),
            _ => None,
        }
    }

    async fn next_series(&mut self) -> Result<Option<SeriesChunks>, ServiceError> {
        for source in std::mem::take(&mut self.wanted) {
            if let Some(series) = self.sources[source].next().await? {
                self.heads.push(Head { series, source });
            }
        }
        let Some(first) = self.heads.pop() else { return Ok(None) };
        self.wanted.push(first.source);
        let mut parts = vec![first.series];
        while let Some(next) = self.heads.peek()
            && next.series.labels == parts[0].labels
            && let Some(next) = self.heads.pop()
        {
            self.wanted.push(next.source);
            parts.push(next.series);
        }
        if parts.len() == 1 {
            return Ok(parts.pop());
        }
        let labels = parts[0].labels.clone();
        join_parts(parts).map_err(|error| {
            let message = format!("a chunk of series {labels} cannot be read: {error}");
            ServiceError::new(ErrorKind::Internal, "block-damaged", message)
        })
    }
}
