//! How series are read from one open block: postings, then entries, then chunks.
//!
//! Each step names the ranges it needs, waits for them without holding a thread, and decodes them on the query pool. What
//! turns out damaged is read once more past the caches before it counts as damaged.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use skald_model::{Labels, MatchOp, Matcher, QueryRange};
use skald_tsdb::SeriesChunks;
use skald_tsdb::block::{BlockError, BlockFile, ChunkMeta, Ranged, series_offset, series_range};
use skald_tsdb::chunk::Chunk;
use skald_tsdb::postings::{self, Deferral, Plan, PostingsSource, SeriesRef};

use super::block::{OpenBlock, ReadError};
use super::metrics::Metrics;
use super::pages::{Freshness, PageCount, PageReader, PagedObject, Usage};
use super::parsing::{Chunks, Entries, Lists, Parsing};
use crate::runtime::Pool;
use crate::select::RequestBounds;

/// How often a structure may turn out longer than the bytes fetched for it. The second time its length is known.
const MAX_EXTENSIONS: usize = 3;
/// Series whose entries are read at once: many to save requests; of a file fewer, so that decoding of samples can soon
/// begin. And the memory their pages may take meanwhile.
const MAX_ENTRIES_PER_READ: usize = 1024;
const MAX_ENTRIES_PER_FILE_READ: usize = 256;
const MAX_ENTRY_PAGES_PER_READ: u64 = 8 << 20;
/// CPU time, about, of looking up one value of a label, of one series in a list of postings, of a series' entry, and of
/// its chunks: what a thread is lent for has to cover it.
const LOOKUP_TIME: Duration = Duration::from_nanos(300);
const POSTING_TIME: Duration = Duration::from_nanos(5);
const ENTRY_TIME: Duration = Duration::from_micros(2);
const CHUNK_TIME: Duration = Duration::from_nanos(200);
/// Bytes of an entry as far as the choice between postings and labels goes: it sits on a page with its neighbours.
const PLANNED_ENTRY_BYTES: u64 = 256;

/// Reads from open blocks on behalf of one query.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) pages: Arc<PageReader>,
    pub(super) pool: Pool,
    pub(super) usage: Arc<Usage>,
    pub(super) metrics: Metrics,
}

/// The series of a block that may satisfy the matchers.
pub(super) struct FoundSeries {
    /// Ascending, so in label order.
    pub(super) series: Vec<SeriesRef>,
    /// What is still to be checked on their labels.
    pub(super) deferred: Vec<Matcher>,
    /// Most entries to read at once.
    at_once: usize,
}

impl FoundSeries {
    /// Series from number `from` on whose entries are read at once; none at the end.
    pub(super) fn portion(&self, from: usize) -> &[SeriesRef] {
        let rest = self.series.get(from..).unwrap_or_default();
        let mut pages = PageCount::default();
        let fits = |&&series: &&SeriesRef| pages.add(&series_range(series, 1, u64::MAX)) <= MAX_ENTRY_PAGES_PER_READ;
        let count = rest.iter().take(self.at_once).take_while(fits).count();
        &rest[..count]
    }
}

/// A series with the places of the chunks that are wanted.
#[derive(Debug)]
pub(super) struct IndexedSeries {
    pub(super) labels: Labels,
    pub(super) chunks: Vec<WantedChunk>,
    /// What must not be shown of them: deleted, or outside the block's time range.
    pub(super) hidden: Vec<QueryRange>,
}

/// A chunk's place, and the bytes of its segment that most likely hold it.
#[derive(Debug, Clone)]
pub(super) struct WantedChunk {
    pub(super) meta: ChunkMeta,
    pub(super) bytes: Range<u64>,
}

/// Which chunks of a series are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those that may hold a sample of this range; series without any are passed over.
    Overlapping(QueryRange),
    /// None, only the labels; series without a chunk in this range are passed over.
    LabelsOf(QueryRange),
}

impl Reading {
    /// The series of `block` that may satisfy all of `matchers`.
    pub(super) async fn find_series(
        &self,
        block: &Arc<OpenBlock>,
        matchers: &Arc<[Matcher]>,
        bounds: &RequestBounds,
    ) -> Result<FoundSeries, ReadError> {
        self.pool.afford(times(LOOKUP_TIME, lookups(block, matchers))).await;
        let (planned, conditions, bounds) = (block.clone(), matchers.clone(), bounds.clone());
        let plan = self.pool.run(move || {
            let deferral = Deferral::WhenCheaper { entry_bytes: PLANNED_ENTRY_BYTES, entry_values: 1 };
            bounds.run(|| postings::plan(&planned.header, &conditions, deferral)).map_err(ReadError::Bounded)
        });
        let plan = Arc::new(plan.await???);
        let deferred = plan.deferred().to_vec();
        let series = match self.evaluate(block, &plan, Freshness::Cached).await {
            Err(error) if error.is_damage() => {
                self.met_damage(block, &error);
                self.evaluate(block, &plan, Freshness::Anew).await?
            }
            result => result?,
        };
        let at_once = match self.pages.is_file(&block.index) {
            true => MAX_ENTRIES_PER_FILE_READ,
            false => MAX_ENTRIES_PER_READ,
        };
        Ok(FoundSeries { series, deferred, at_once })
    }

    async fn evaluate(
        &self,
        block: &Arc<OpenBlock>,
        plan: &Arc<Plan<Range<u64>>>,
        freshness: Freshness,
    ) -> Result<Vec<SeriesRef>, ReadError> {
        let mut ranges: Vec<Range<u64>> = plan.lists().cloned().collect();
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        ranges.dedup();
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let listed: u64 = ranges.iter().map(|range| block.header.series_count(range)).sum();
        self.pool.afford(times(POSTING_TIME, listed)).await;
        let starts: Vec<u64> = ranges.iter().map(|range| range.start).collect();
        let lists = Lists { end: block.header.postings_end(), lists: vec![Vec::new(); starts.len()], starts };
        let lists = self.parse_all(&block.index, ranges, freshness, BlockFile::Index, lists).await?;
        let plan = plan.clone();
        let evaluated = self.pool.run(move || {
            let load = |range: &Range<u64>| {
                let list = lists.starts.binary_search(&range.start).ok().and_then(|at| lists.lists.get(at));
                Ok(list.map(Vec::as_slice).unwrap_or_default())
            };
            plan.evaluate(load).unwrap_or_else(|never: std::convert::Infallible| match never {})
        });
        Ok(evaluated.await?)
    }

    /// Labels and chunk places of series that `wanted` and `deferred` are content with, in the order of `series`.
    pub(super) async fn index_series(
        &self,
        block: &Arc<OpenBlock>,
        series: Vec<SeriesRef>,
        deferred: &Arc<[Matcher]>,
        wanted: Wanted,
    ) -> Result<Vec<IndexedSeries>, ReadError> {
        self.pool.afford(times(ENTRY_TIME, series.len() as u64)).await;
        match self.index_series_once(block, series.clone(), deferred, wanted, Freshness::Cached).await {
            Err(error) if error.is_damage() => {
                self.met_damage(block, &error);
                self.index_series_once(block, series, deferred, wanted, Freshness::Anew).await
            }
            result => result,
        }
    }

    async fn index_series_once(
        &self,
        block: &Arc<OpenBlock>,
        series: Vec<SeriesRef>,
        deferred: &Arc<[Matcher]>,
        wanted: Wanted,
        freshness: Freshness,
    ) -> Result<Vec<IndexedSeries>, ReadError> {
        let series_end = block.header.toc().series_end();
        let estimate = block.entry_estimate.load(Ordering::Relaxed);
        let ranges = series.iter().enumerate().map(|(i, &of)| {
            let range = series_range(of, estimate, series_end);
            // An entry ends before the next one starts.
            series.get(i + 1).map_or(range.clone(), |&next| range.start..range.end.min(series_offset(next)))
        });
        let ranges = ranges.collect();
        let key = |series: SeriesRef| (block.index.block, series);
        let known = match freshness {
            Freshness::Cached => self.pages.labels.get_all(series.iter().map(|&series| key(series))),
            Freshness::Anew => vec![None; series.len()],
        };
        let entries = Entries::new(block.clone(), series, known, wanted);
        let entries = self.parse_all(&block.index, ranges, freshness, BlockFile::Index, entries).await?;
        let (deferred, pages) = (deferred.clone(), self.pages.clone());
        let indexed = self.pool.run(move || {
            let mut learned = Vec::new();
            let indexed = entries.finish(&deferred, &mut learned)?;
            pages.labels.insert_all(learned);
            Ok::<_, BlockError>(indexed)
        });
        Ok(indexed.await??)
    }

    /// The chunks of `series`.
    pub(super) async fn read_chunks(
        &self,
        block: &Arc<OpenBlock>,
        series: Vec<IndexedSeries>,
    ) -> Result<Vec<SeriesChunks>, ReadError> {
        let chunks = series.iter().map(|series| series.chunks.len() as u64).sum();
        self.pool.afford(times(CHUNK_TIME, chunks)).await;
        let chunks = match self.read_chunks_once(block, &series, Freshness::Cached).await {
            Err(error) if error.is_damage() => {
                self.met_damage(block, &error);
                self.read_chunks_once(block, &series, Freshness::Anew).await?
            }
            result => result?,
        };
        let mut chunks = chunks.into_iter();
        let with_chunks = |series: IndexedSeries| {
            let mut own = Vec::with_capacity(series.chunks.len());
            own.extend(chunks.by_ref().take(series.chunks.len()).flatten());
            SeriesChunks { chunks: own, labels: series.labels, deleted: series.hidden }
        };
        Ok(series.into_iter().map(with_chunks).collect())
    }

    /// The chunks of all `series`, one after the other; none is missing.
    async fn read_chunks_once(
        &self,
        block: &Arc<OpenBlock>,
        series: &[IndexedSeries],
        freshness: Freshness,
    ) -> Result<Vec<Option<Chunk>>, ReadError> {
        let wanted: Vec<&WantedChunk> = series.iter().flat_map(|series| &series.chunks).collect();
        // Where each chunk belongs, by segment and place: the order in which ranges are read.
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        if !wanted.is_sorted_by_key(|chunk| chunk.meta.reference) {
            order.sort_by_key(|&i| wanted[i].meta.reference);
        }
        let mut chunks: Vec<Option<Chunk>> = vec![None; wanted.len()];
        for group in order.chunk_by(|&a, &b| wanted[a].meta.reference.segment() == wanted[b].meta.reference.segment()) {
            let Some(segment) = group.first().map(|&i| wanted[i].meta.reference.segment()) else { continue };
            let file = BlockFile::Segment(segment);
            let object = block.segments.get(segment as usize).ok_or(BlockError::Damaged {
                file,
                offset: 0,
                what: "the index names a segment that does not exist",
            })?;
            let ranges = group.iter().map(|&i| wanted[i].bytes.clone()).collect();
            let metas = group.iter().map(|&i| wanted[i].meta).collect();
            let of_group = Chunks { block: block.clone(), metas, places: group.to_vec(), chunks };
            chunks = self.parse_all(object, ranges, freshness, file, of_group).await?.chunks;
        }
        Ok(chunks)
    }

    /// Reads every range and has `parsing` parse it, on the pool; reads on where a structure turns out longer than its
    /// range.
    async fn parse_all<P: Parsing>(
        &self,
        object: &PagedObject,
        ranges: Vec<Range<u64>>,
        freshness: Freshness,
        file: BlockFile,
        mut parsing: P,
    ) -> Result<P, ReadError> {
        // The number of each range, unless that is its place.
        let (mut ranges, mut numbers): (_, Option<Vec<usize>>) = (ranges, None);
        for _ in 0..=MAX_EXTENSIONS {
            let read = self.pages.read(object, &ranges, freshness, &self.usage).await?;
            let parse = self.pool.run(move || {
                let (mut short, mut near) = (Vec::new(), 0);
                for (place, range) in ranges.iter().enumerate() {
                    let number = numbers.as_ref().map_or(place, |numbers| numbers[place]);
                    let parsed = read.with_bytes(range, &mut near, |bytes, part| parsing.parse(number, bytes, part))?;
                    if let Ranged::Short { need } = parsed {
                        short.push((number, range.clone(), need));
                    }
                }
                Ok::<_, BlockError>((parsing, short))
            });
            let (parsed, short) = parse.await??;
            if short.is_empty() {
                return Ok(parsed);
            }
            parsing = parsed;
            let lengthen = |(number, range, need): (usize, Range<u64>, u64)| {
                let end = range.start.saturating_add(need);
                if range.end >= object.len || end <= range.end {
                    let what = "ends before its contents do";
                    return Err(BlockError::Damaged { file, offset: range.start, what });
                }
                Ok((number, range.start..end))
            };
            let longer = short.into_iter().map(lengthen).collect::<Result<Vec<_>, _>>()?;
            let (still, longer): (Vec<_>, Vec<_>) = longer.into_iter().unzip();
            (ranges, numbers) = (longer, Some(still));
        }
        let offset = ranges.first().map_or(0, |range| range.start);
        Err(BlockError::Damaged { file, offset, what: "its length changes while it is read" }.into())
    }

    fn met_damage(&self, block: &OpenBlock, error: &ReadError) {
        self.metrics.damages.inc();
        tracing::warn!(tenant = %block.tenant, block = %block.id, %error, "damaged data met, reading it once more");
    }
}

/// So many times a time.
fn times(time: Duration, count: u64) -> Duration {
    time.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Values that planning the matchers looks at, at most.
fn lookups(block: &OpenBlock, matchers: &[Matcher]) -> u64 {
    let values = |matcher: &Matcher| match (matcher.op(), matcher.set_matches()) {
        (MatchOp::Equal | MatchOp::NotEqual, _) => 1,
        (_, Some(values)) => values.len() as u64,
        (_, None) => block.header.value_count(matcher.name()),
    };
    matchers.iter().map(values).sum()
}
