//! Merging blocks into new ones, split by series.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skald_model::{BlockRange, Labels, QueryRange};
use ulid::Ulid;

use super::compaction_shard::{COMPACTION_SHARD_LABEL, CompactionShard};
use super::forecast::{Excess, Forecast, IndexLimits};
use super::merge::{MergeError, merge_series};
use super::segment::SEGMENT_LEN;
use super::symbols::SortedSymbols;
use super::{BlockError, BlockMeta, BlockWriter, Compaction, LocalBlock, NewBlock, ParentBlock};
use crate::SeriesChunks;
use crate::chunk::ChunkError;
use crate::disk::Disk;
use crate::encode::without_overlaps;

/// More blocks than that are not made of one merge: whatever does not fit then is one series' fault.
const MAX_PARTS: u32 = 1 << 16;

/// Blocks to be merged into one, or into several by series.
///
/// What is hidden in a source, because it is deleted or outside the block's range, is gone in the result; where sources
/// overlap, one sample survives per time, the one that queries would give ([`super::join_parts`]). Chunks that overlap no other are copied as they are.
///
/// The labels of the sources are walked twice: first alone, to collect symbols and to foresee how large each index will be,
/// then with the chunks. When one would not fit the format, twice as many blocks are made. In memory are the symbols and
/// postings of the new blocks, and one batch of each source.
pub struct MergeBlocks<'a> {
    /// The blocks.
    pub sources: &'a [Arc<LocalBlock>],
    /// The time range of the new blocks; samples outside are left out.
    pub range: BlockRange,
    /// How many blocks to make at least: each holds the series of a [`CompactionShard`]. Sources that are of one shard are
    /// split into parts of that.
    pub shards: u32,
    /// What an index may hold.
    pub limits: IndexLimits,
    /// Bytes of a chunk segment, at most the format's.
    pub segment_len: u64,
}

/// A merge had to stop; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MergeBlocksError {
    /// A source could not be read, or a block not be written.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A source holds a damaged chunk, or series out of order.
    #[error(transparent)]
    Series(MergeError<BlockError>),
}

impl From<MergeError<BlockError>> for MergeBlocksError {
    fn from(error: MergeError<BlockError>) -> Self {
        match error {
            MergeError::Source(error) => Self::Block(error),
            other => Self::Series(other),
        }
    }
}

impl<'a> MergeBlocks<'a> {
    /// All that the sources hold, as one block.
    pub fn new(sources: &'a [Arc<LocalBlock>]) -> Self {
        let ranges = || sources.iter().map(|source| source.meta().range());
        let min = ranges().map(|range| range.min).min().unwrap_or(0);
        let max = ranges().map(|range| range.max).max().unwrap_or(0);
        let (limits, range) = (IndexLimits::default(), BlockRange { min, max });
        Self { sources, range, shards: 1, limits, segment_len: SEGMENT_LEN }
    }

    /// Writes the new blocks into the directory `parent`, under names that `name` gives; a shard without series gets none.
    ///
    /// `progress` gets the series that are done, and how many there are in all sources. After an error nothing of it is left.
    pub fn write(
        &self,
        disk: &Arc<dyn Disk>,
        parent: &Path,
        name: &mut dyn FnMut(CompactionShard) -> Ulid,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<BlockMeta>, MergeBlocksError> {
        let shard = self.common_shard();
        let Planned { symbols, series: total } = self.plan(shard)?;
        let parts = symbols.len() as u32;
        let too_many = || BlockError::Input(format!("shard {shard} cannot be split into {parts}"));
        let shards = shard.split(parts).ok_or_else(too_many)?;
        let mut writers = Vec::with_capacity(symbols.len());
        for (shard, symbols) in shards.into_iter().zip(symbols) {
            let (disk, new) = (disk.clone(), self.new_block(name(shard), shard));
            writers.push(BlockWriter::with_segment_len(disk, parent, new, symbols, self.segment_len)?);
        }
        for (done, series) in self.merged()?.enumerate() {
            let series = series?;
            let part = shard.part_of(parts, &series.labels);
            self.add(&mut writers[part], series)?;
            progress(done as u64 + 1, total);
        }
        let mut written = Published { disk, parent, blocks: Vec::new() };
        for writer in writers {
            written.blocks.extend(writer.finish()?);
        }
        Ok(std::mem::take(&mut written.blocks))
    }

    fn plan(&self, shard: CompactionShard) -> Result<Planned, MergeBlocksError> {
        let mut parts = self.shards.max(1);
        loop {
            match self.forecast(shard, parts)? {
                Ok(planned) => return Ok(planned),
                Err(_) if parts < MAX_PARTS && shard.split(2 * parts).is_some() => parts *= 2,
                Err(Excess { what, len, limit }) => return Err(BlockError::TooLarge { what, len, limit }.into()),
            }
        }
    }

    /// What so many parts hold, or what of one would be too large.
    fn forecast(&self, shard: CompactionShard, parts: u32) -> Result<Result<Planned, Excess>, MergeBlocksError> {
        let mut forecasts: Vec<Forecast> = Vec::new();
        forecasts.resize_with(parts as usize, Forecast::default);
        let mut count = 0;
        let selects = self.sources.iter().map(|source| Ok(source.select(&[], self.range())?.without_data()));
        for series in merge_series(selects.collect::<Result<_, BlockError>>()?) {
            let series = series?;
            let part = shard.part_of(parts, &series.labels);
            if let Err(excess) = forecasts[part].add(&series.labels, series.chunks.len(), &self.limits) {
                return Ok(Err(excess));
            }
            count += 1;
        }
        Ok(Ok(Planned { symbols: forecasts.into_iter().map(Forecast::into_symbols).collect(), series: count }))
    }

    fn merged(&self) -> Result<impl Iterator<Item = Result<SeriesChunks, MergeError<BlockError>>>, BlockError> {
        let selects = self.sources.iter().map(|source| source.select(&[], self.range()));
        Ok(merge_series(selects.collect::<Result<_, _>>()?))
    }

    fn add(&self, writer: &mut BlockWriter, mut series: SeriesChunks) -> Result<(), MergeBlocksError> {
        let damaged = |labels: &Labels, source: ChunkError| {
            MergeBlocksError::Series(MergeError::Chunk { labels: labels.clone(), source })
        };
        let range = self.range();
        if series.chunks.iter().any(|chunk| chunk.min_time < range.min || chunk.max_time > range.max) {
            series.deleted.extend([
                QueryRange { min: i64::MIN, max: range.min.saturating_sub(1) },
                QueryRange { min: range.max.saturating_add(1), max: i64::MAX },
            ]);
        }
        series.cut_deleted().map_err(|error| damaged(&series.labels, error))?;
        if !series.chunks.is_sorted_by(|a, b| a.max_time < b.min_time) {
            series.chunks = without_overlaps(&series.chunks).map_err(|error| damaged(&series.labels, error))?;
        }
        Ok(writer.add_series(&series.labels, &series.chunks)?)
    }

    fn range(&self) -> QueryRange {
        QueryRange { min: self.range.min, max: self.range.max.saturating_sub(1) }
    }

    /// The shard that all sources say they are of.
    fn common_shard(&self) -> CompactionShard {
        let of = |source: &Arc<LocalBlock>| {
            let labels = &source.meta().thanos.as_ref()?.labels;
            CompactionShard::parse(labels.get(COMPACTION_SHARD_LABEL)?)
        };
        let mut shards = self.sources.iter().map(of);
        let first = shards.next().flatten();
        first.filter(|_| shards.all(|shard| shard == first)).unwrap_or(CompactionShard::ALL)
    }

    fn new_block(&self, ulid: Ulid, shard: CompactionShard) -> NewBlock {
        let metas = || self.sources.iter().map(|source| source.meta());
        let sources: BTreeSet<Ulid> = metas().flat_map(|meta| meta.compaction.sources.iter().copied()).collect();
        let parent =
            |meta: &BlockMeta| ParentBlock { ulid: meta.ulid, min_time: meta.min_time, max_time: meta.max_time };
        // What holds of every source holds of what is made of them.
        let shared = |hint: &&String| metas().all(|meta| meta.compaction.hints.contains(hint));
        let first = metas().next();
        let compaction = Compaction {
            level: metas().map(|meta| meta.compaction.level).max().unwrap_or(0).saturating_add(1),
            sources: sources.into_iter().collect(),
            parents: metas().map(parent).collect(),
            hints: first.iter().flat_map(|meta| &meta.compaction.hints).filter(shared).cloned().collect(),
            ..Compaction::default()
        };
        let mut thanos = first.and_then(|meta| meta.thanos.clone()).unwrap_or_default();
        thanos.labels.retain(|name, value| {
            metas().all(|meta| meta.thanos.as_ref().is_some_and(|thanos| thanos.labels.get(name) == Some(value)))
        });
        thanos.segment_files.clear();
        thanos.extensions = None;
        "compactor".clone_into(&mut thanos.source);
        thanos.labels.remove(COMPACTION_SHARD_LABEL);
        if shard != CompactionShard::ALL {
            thanos.labels.insert(COMPACTION_SHARD_LABEL.to_owned(), shard.to_string());
        }
        NewBlock { ulid, range: self.range, compaction, thanos: Some(thanos) }
    }
}

/// What is known of the new blocks before they are written.
struct Planned {
    /// Those of each.
    symbols: Vec<SortedSymbols>,
    /// Of all together.
    series: u64,
}

/// Blocks that have their names already, and go again unless all others get theirs.
struct Published<'a> {
    disk: &'a Arc<dyn Disk>,
    parent: &'a Path,
    blocks: Vec<BlockMeta>,
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        let dir = |block: &BlockMeta| -> PathBuf { self.parent.join(block.ulid.to_string()) };
        for block in &self.blocks {
            let _ = self.disk.remove_dir_all(&dir(block));
        }
    }
}
