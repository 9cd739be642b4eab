//! How series are read from one open block: postings, then entries, then chunks.
//!
//! Each step names the ranges it needs, waits for them without holding a thread, and decodes them on the query pool. What
//! turns out damaged is read once more past the caches before it counts as damaged.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use skald_model::{Labels, Matcher, QueryRange};
use skald_tsdb::SeriesChunks;
use skald_tsdb::block::{
    BlockError, BlockFile, ChunkMeta, ChunkRef, Ranged, SeriesEntry, chunk_range, hidden_ranges, is_hidden,
    parse_chunk, parse_postings, series_range,
};
use skald_tsdb::chunk::Chunk;
use skald_tsdb::postings::{self, Deferral, Plan, SeriesRef};
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
        let ranges = series.iter().map(|&series| series_range(series, block.entry_estimate, series_end)).collect();
        let parse = move |_, range: &Range<u64>, bytes: &Bytes| {
            let mut entry = SeriesEntry::default();
            // The reference is the start in units of 16 bytes.
            let series = SeriesRef::try_from(range.start / 16).unwrap_or(SeriesRef::MAX);
            Ok(match entry.parse(series, series_end, bytes)? {
                Ranged::Complete(()) => Ranged::Complete((series, entry)),
                Ranged::Short { need } => Ranged::Short { need },
            })
        };
        let entries = self.decode_all(&block.index, ranges, freshness, BlockFile::Index, parse).await?;
        let (block, deferred, pages) = (block.clone(), deferred.clone(), self.pages.clone());
        let indexed = self.pool.run(move || {
            let key = |series: SeriesRef| (block.index.block, series);
            let known = match freshness {
                Freshness::Cached => pages.labels.get_all(entries.iter().map(|(_, (series, _))| key(*series))),
                Freshness::Anew => vec![None; entries.len()],
            };
            let mut labels_reader = block.header.labels_reader();
            let mut learned = Vec::new();
            let mut indexed = Vec::with_capacity(entries.len());
            for (at, ((_, (series, entry)), known)) in entries.iter().zip(known).enumerate() {
                let next_start = entries.get(at + 1).and_then(|(_, (_, next))| next.chunks.first());
                let next_start = next_start.map(|chunk| chunk.reference);
                let mut hidden = hidden_ranges(&entry.chunks, block.range, block.tombstones.of(*series));
                let Some(chunks) = wanted_chunks(entry, wanted, &hidden, next_start, block.chunk_estimate) else {
                    continue;
                };
                hidden.retain(|range| chunks.iter().any(|chunk| chunk.meta.overlaps(*range)));
                let labels = match known {
                    Some(labels) => labels,
                    None => {
                        let labels = labels_reader.labels(entry)?;
                        learned.push((key(*series), labels.clone()));
                        labels
                    }
                };
                if deferred.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or_default())) {
                    indexed.push(IndexedSeries { labels, chunks, hidden });
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
            let parse = move |at: usize, _: &Range<u64>, bytes: &Bytes| parse_chunk(&metas[at], bytes);
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
        parse: impl Fn(usize, &Range<u64>, &Bytes) -> Result<Ranged<T>, BlockError> + Send + Sync + 'static,
    ) -> Result<Vec<(Range<u64>, T)>, ReadError> {
        let parse = Arc::new(parse);
        let mut done: Vec<Option<(Range<u64>, T)>> = Vec::new();
        done.resize_with(ranges.len(), || None);
        // Positions in `done` with what is read for them.
        let mut open: Vec<(usize, Range<u64>)> = ranges.into_iter().enumerate().collect();
        for _ in 0..=MAX_EXTENSIONS {
            let wanted: Vec<Range<u64>> = open.iter().map(|(_, range)| range.clone()).collect();
            let pages = self.pages.read(object, &wanted, freshness, &self.usage).await?;
            let (parse, batch) = (parse.clone(), std::mem::take(&mut open));
            let decoded = self.pool.run(move || {
                let decode = |(at, range): (usize, Range<u64>)| {
                    parse(at, &range, &pages.bytes(&range)).map(|result| (at, range, result))
                };
                batch.into_iter().map(decode).collect::<Result<Vec<_>, _>>()
            });
            for (at, range, result) in decoded.await?? {
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

/// The chunks of a series that are wanted; `None` when the series is not.
///
/// Where the next series' chunks start bounds how long this one's last can be, as they are normally written in order; else
/// `estimate` is a guess.
fn wanted_chunks(
    entry: &SeriesEntry,
    wanted: Wanted,
    hidden: &[QueryRange],
    next_start: Option<ChunkRef>,
    estimate: u64,
) -> Option<Vec<WantedChunk>> {
    let is_wanted = |chunk: &ChunkMeta, range| chunk.overlaps(range) && !is_hidden(chunk, hidden);
    let range = match wanted {
        Wanted::LabelsOf(range) => return entry.chunks.iter().any(|chunk| is_wanted(chunk, range)).then(Vec::new),
        Wanted::Overlapping(range) => range,
    };
    let estimate_of_last = match (entry.chunks.last(), next_start) {
        (Some(last), Some(next)) if next.segment() == last.reference.segment() && next > last.reference => {
            estimate.min(u64::from(next.offset() - last.reference.offset()))
        }
        _ => estimate,
    };
    // Chunks stand in time order.
    let first = entry.chunks.partition_point(|chunk| chunk.max_time < range.min);
    let behind = entry.chunks.partition_point(|chunk| chunk.min_time <= range.max);
    let chunks: Vec<WantedChunk> = (first..behind)
        .filter(|&i| is_wanted(&entry.chunks[i], range))
        .map(|i| WantedChunk { meta: entry.chunks[i], bytes: chunk_range(&entry.chunks, i, estimate_of_last) })
        .collect();
    (!chunks.is_empty()).then_some(chunks)
}
