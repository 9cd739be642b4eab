//! How series are read from one open block: postings, then entries, then chunks.
//!
//! Each step names the ranges it needs, waits for them without holding a thread, and decodes them on the query pool. What
//! turns out damaged is read once more past the caches before it counts as damaged.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use skald_model::{Labels, MatchOp, Matcher, QueryRange};
use skald_tsdb::SeriesChunks;
use skald_tsdb::block::{
    BlockError, BlockFile, ChunkMeta, ChunkRef, Ranged, SeriesEntry, chunk_range, hidden_ranges, is_hidden,
    parse_chunk, parse_postings, series_offset, series_range,
};
use skald_tsdb::chunk::Chunk;
use skald_tsdb::postings::{self, Deferral, Plan, PostingsSource, SeriesRef};
use std::collections::HashMap;

use super::block::{OpenBlock, ReadError};
use super::metrics::Metrics;
use super::pages::{Freshness, PageCount, PageReader, PagedObject, Usage};
use crate::runtime::Pool;

/// How often a structure may turn out longer than the bytes fetched for it. The second time its length is known.
const MAX_EXTENSIONS: usize = 3;
/// Series whose entries are read at once, and the memory their pages may take meanwhile.
const MAX_ENTRIES_PER_READ: usize = 1024;
const MAX_ENTRY_PAGES_PER_READ: u64 = 8 << 20;
/// Longest entry that the estimate for further ones follows.
const MAX_LEARNED_ENTRY: u64 = 4 << 10;
/// Longest chunk that the estimate for further ones follows.
const MAX_LEARNED_CHUNK: u64 = 16 << 10;
/// CPU time, about, of looking up one value of a label, of one series in a list of postings, of a series' entry, and of
/// its chunks: what a thread is lent for has to cover it.
const LOOKUP_TIME: Duration = Duration::from_nanos(300);
const POSTING_TIME: Duration = Duration::from_nanos(5);
const ENTRY_TIME: Duration = Duration::from_micros(3);
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
}

impl FoundSeries {
    /// Series from number `from` on whose entries are read at once; none at the end.
    pub(super) fn portion(&self, from: usize) -> &[SeriesRef] {
        let rest = self.series.get(from..).unwrap_or_default();
        let mut pages = PageCount::default();
        let fits = |&&series: &&SeriesRef| pages.add(&series_range(series, 1, u64::MAX)) <= MAX_ENTRY_PAGES_PER_READ;
        let count = rest.iter().take(MAX_ENTRIES_PER_READ).take_while(fits).count();
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
    ) -> Result<FoundSeries, ReadError> {
        self.pool.afford(times(LOOKUP_TIME, lookups(block, matchers))).await;
        let (planned, conditions) = (block.clone(), matchers.clone());
        let plan = self.pool.run(move || {
            let deferral = Deferral::WhenCheaper { entry_bytes: PLANNED_ENTRY_BYTES };
            postings::plan(&planned.header, &conditions, deferral)
        });
        let plan = Arc::new(plan.await??);
        let deferred = plan.deferred().to_vec();
        let series = match self.evaluate(block, &plan, Freshness::Cached).await {
            Err(error) if error.is_damage() => {
                self.met_damage(block, &error);
                self.evaluate(block, &plan, Freshness::Anew).await?
            }
            result => result?,
        };
        Ok(FoundSeries { series, deferred })
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
        let lists_end = block.header.postings_end();
        let lists = self
            .decode_all(&block.index, ranges, freshness, BlockFile::Index, move |_, range, bytes| {
                parse_postings(range.start, lists_end, bytes)
            })
            .await?;
        let plan = plan.clone();
        let evaluated = self.pool.run(move || {
            let by_start: HashMap<u64, &[SeriesRef]> =
                lists.iter().map(|(range, list)| (range.start, list.as_slice())).collect();
            let load = |range: &Range<u64>| Ok(by_start.get(&range.start).copied().unwrap_or_default());
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
        // One entry's memory serves all: most of what an entry says is not wanted.
        let (mut entry, of_block) = (SeriesEntry::default(), block.clone());
        let is_known: Vec<bool> = known.iter().map(Option::is_some).collect();
        let numbers = series.clone();
        let parse = move |at: usize, _: &Range<u64>, bytes: &Bytes| {
            Ok(match entry.parse(numbers[at], series_end, bytes)? {
                Ranged::Complete(()) => {
                    Ranged::Complete(Parsed::new(&entry, &of_block, numbers[at], wanted, is_known[at]))
                }
                Ranged::Short { need } => {
                    of_block.entry_estimate.fetch_max(need.min(MAX_LEARNED_ENTRY), Ordering::Relaxed);
                    Ranged::Short { need }
                }
            })
        };
        let parsed = self.decode_all(&block.index, ranges, freshness, BlockFile::Index, parse).await?;
        let (block, deferred, pages) = (block.clone(), deferred.clone(), self.pages.clone());
        let indexed = self.pool.run(move || {
            let mut labels_reader = block.header.labels_reader();
            let mut learned = Vec::new();
            let mut indexed = Vec::with_capacity(parsed.len());
            let mut following: Vec<Option<ChunkRef>> = parsed.iter().skip(1).map(|(_, next)| next.first).collect();
            following.push(None);
            for (((_, mut parsed), known), (series, next)) in
                parsed.into_iter().zip(known).zip(series.iter().zip(following))
            {
                if !parsed.is_wanted {
                    continue;
                }
                parsed.end_last_chunk(next);
                let labels = match known {
                    Some(labels) => labels,
                    None => {
                        let labels = labels_reader.labels(&parsed.symbols)?;
                        learned.push(((block.index.block, *series), labels.clone()));
                        labels
                    }
                };
                if deferred.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or_default())) {
                    indexed.push(IndexedSeries { labels, chunks: parsed.chunks, hidden: parsed.hidden });
                }
            }
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
        let with_chunks = |series: IndexedSeries| SeriesChunks {
            chunks: chunks.by_ref().take(series.chunks.len()).collect(),
            labels: series.labels,
            deleted: series.hidden,
        };
        Ok(series.into_iter().map(with_chunks).collect())
    }

    /// The chunks of all `series`, one after the other.
    async fn read_chunks_once(
        &self,
        block: &Arc<OpenBlock>,
        series: &[IndexedSeries],
        freshness: Freshness,
    ) -> Result<Vec<Chunk>, ReadError> {
        let wanted: Vec<&WantedChunk> = series.iter().flat_map(|series| &series.chunks).collect();
        // Where each chunk belongs, by segment and place: the order in which ranges are read.
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by_key(|&i| wanted[i].meta.reference);
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
            let metas: Vec<ChunkMeta> = group.iter().map(|&i| wanted[i].meta).collect();
            let of_block = block.clone();
            let parse = move |at: usize, _: &Range<u64>, bytes: &Bytes| {
                let parsed = parse_chunk(&metas[at], bytes)?;
                if let Ranged::Short { need } = parsed {
                    of_block.chunk_estimate.fetch_max(need.min(MAX_LEARNED_CHUNK), Ordering::Relaxed);
                }
                Ok(parsed)
            };
            let decoded = self.decode_all(object, ranges, freshness, file, parse).await?;
            for (&i, (_, chunk)) in group.iter().zip(decoded) {
                chunks[i] = Some(chunk);
            }
        }
        Ok(chunks.into_iter().flatten().collect())
    }

    /// Reads every range and decodes it on the pool; reads on where a structure turns out longer than its range. The
    /// results are in the order of `ranges`; `parse` is told the number of its range, too.
    async fn decode_all<T: Send + 'static>(
        &self,
        object: &PagedObject,
        ranges: Vec<Range<u64>>,
        freshness: Freshness,
        file: BlockFile,
        mut parse: impl FnMut(usize, &Range<u64>, &Bytes) -> Result<Ranged<T>, BlockError> + Send + 'static,
    ) -> Result<Vec<(Range<u64>, T)>, ReadError> {
        let mut done: Vec<Option<(Range<u64>, T)>> = Vec::new();
        done.resize_with(ranges.len(), || None);
        // Positions in `done` with what is read for them.
        let mut open: Vec<(usize, Range<u64>)> = ranges.into_iter().enumerate().collect();
        for _ in 0..=MAX_EXTENSIONS {
            let wanted: Vec<Range<u64>> = open.iter().map(|(_, range)| range.clone()).collect();
            let pages = self.pages.read(object, &wanted, freshness, &self.usage).await?;
            let batch = std::mem::take(&mut open);
            let decoding = self.pool.run(move || {
                let decode = |(at, range): (usize, Range<u64>)| {
                    parse(at, &range, &pages.bytes(&range)).map(|result| (at, range, result))
                };
                let decoded = batch.into_iter().map(decode).collect::<Result<Vec<_>, _>>();
                (decoded, parse)
            });
            let (decoded, used) = decoding.await?;
            parse = used;
            for (at, range, result) in decoded? {
                match result {
                    Ranged::Complete(value) => done[at] = Some((range, value)),
                    Ranged::Short { need } => {
                        let end = range.start.saturating_add(need);
                        if range.end >= object.len || end <= range.end {
                            let what = "ends before its contents do";
                            return Err(BlockError::Damaged { file, offset: range.start, what }.into());
                        }
                        open.push((at, range.start..end));
                    }
                }
            }
            if open.is_empty() {
                return Ok(done.into_iter().flatten().collect());
            }
        }
        let offset = open.first().map_or(0, |(_, range)| range.start);
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

/// What is wanted of a series' entry.
struct Parsed {
    /// Whether the series is wanted at all.
    is_wanted: bool,
    chunks: Vec<WantedChunk>,
    hidden: Vec<QueryRange>,
    /// The entry without its chunks, for series whose labels are not known.
    symbols: SeriesEntry,
    /// The series' first chunk.
    first: Option<ChunkRef>,
    /// Whether its last chunk is wanted, whose end the entry does not tell.
    ends_open: bool,
}

impl Parsed {
    fn new(entry: &SeriesEntry, block: &OpenBlock, series: SeriesRef, wanted: Wanted, labels_known: bool) -> Self {
        let mut hidden = hidden_ranges(&entry.chunks, block.range, block.tombstones.of(series));
        let chunks = wanted_chunks(entry, wanted, &hidden, block.chunk_estimate.load(Ordering::Relaxed));
        let is_wanted = chunks.is_some();
        let chunks = chunks.unwrap_or_default();
        hidden.retain(|range| chunks.iter().any(|chunk| chunk.meta.overlaps(*range)));
        let symbols = match is_wanted && !labels_known {
            true => SeriesEntry { offset: entry.offset, labels: entry.labels.clone(), chunks: Vec::new() },
            false => SeriesEntry::default(),
        };
        let first = entry.chunks.first().map(|chunk| chunk.reference);
        let last = entry.chunks.last().map(|chunk| chunk.reference);
        let ends_open = last.is_some() && chunks.last().map(|chunk| chunk.meta.reference) == last;
        Self { is_wanted, chunks, hidden, symbols, first, ends_open }
    }

    /// Where the next series' chunks start, this one's last has ended, as they are normally written in order.
    fn end_last_chunk(&mut self, next: Option<ChunkRef>) {
        let (true, Some(last), Some(next)) = (self.ends_open, self.chunks.last_mut(), next) else { return };
        let reference = last.meta.reference;
        if next.segment() == reference.segment() && next > reference {
            last.bytes.end = last.bytes.end.min(last.bytes.start + u64::from(next.offset() - reference.offset()));
        }
    }
}

/// The chunks of a series that are wanted; `None` when the series is not. `estimate` is a guess of the last one's length.
fn wanted_chunks(
    entry: &SeriesEntry,
    wanted: Wanted,
    hidden: &[QueryRange],
    estimate: u64,
) -> Option<Vec<WantedChunk>> {
    let is_wanted = |chunk: &ChunkMeta, range| chunk.overlaps(range) && !is_hidden(chunk, hidden);
    let range = match wanted {
        Wanted::LabelsOf(range) => return entry.chunks.iter().any(|chunk| is_wanted(chunk, range)).then(Vec::new),
        Wanted::Overlapping(range) => range,
    };
    // Chunks stand in time order.
    let first = entry.chunks.partition_point(|chunk| chunk.max_time < range.min);
    let behind = entry.chunks.partition_point(|chunk| chunk.min_time <= range.max);
    let chunks: Vec<WantedChunk> = (first..behind)
        .filter(|&i| is_wanted(&entry.chunks[i], range))
        .map(|i| WantedChunk { meta: entry.chunks[i], bytes: chunk_range(&entry.chunks, i, estimate) })
        .collect();
    (!chunks.is_empty()).then_some(chunks)
}
