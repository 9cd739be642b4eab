//! Merging blocks into new ones, split by series.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skald_model::{BlockRange, Labels, QueryRange};
use ulid::Ulid;

use super::compaction_shard::{COMPACTION_SHARD_LABEL, CompactionShard};
use super::forecast::{Excess, Forecast, IndexLimits};
use super::framed_chunks::FramedChunks;
use super::join_parts::join_parts;
use super::merge_source::{Candidate, MergeWalk, WalkError};
use super::number_set::NumberSet;
use super::segment::SEGMENT_LEN;
use super::symbols::SortedSymbols;
use super::{BlockError, BlockMeta, BlockWriter, Compaction, LocalBlock, MAX_PARTS, NewBlock, ParentBlock};
use crate::chunk::ChunkError;
use crate::disk::Disk;
use crate::encode::Untangle;

/// Blocks to be merged into one, or into several by series.
///
/// What is hidden in a source, because it is deleted or outside the block's range, is gone in the result; where sources
/// overlap, one sample survives per time, the one that queries would give ([`join_parts()`]). Chunks that overlap no other are copied as they are.
///
/// The indexes of the sources are walked twice: first alone, to find out which symbols are used and to foresee how large each
/// index will be, then with the chunks. When one would not fit the format, twice as many blocks are made. In memory are the
/// symbols of all sources, four bytes for each symbol and each series of each source and of the result, the
/// postings of the new blocks, and a window of each source's index and chunks.
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
    /// A chunk that is not just copied is damaged.
    #[error("chunk of series {labels}: {source}")]
    Chunk {
        /// Which series.
        labels: Labels,
        /// What is wrong.
        source: ChunkError,
    },
    /// A source does not give its series in ascending order.
    #[error("series {labels} does not come after the one before it")]
    OutOfOrder {
        /// The later series.
        labels: Labels,
    },
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
        let mut walk = MergeWalk::new(self.sources.iter().map(|source| &**source), self.range())?;
        let Planned { symbols, part_of } = self.plan(shard, &mut walk)?;
        let (parts, total) = (symbols.len() as u32, part_of.len() as u64);
        let too_many = || BlockError::Input(format!("shard {shard} cannot be split into {parts}"));
        let shards = shard.split(parts).ok_or_else(too_many)?;
        let mut writers = Vec::with_capacity(symbols.len());
        for (shard, symbols) in shards.into_iter().zip(symbols) {
            let (disk, new) = (disk.clone(), self.new_block(name(shard), shard));
            writers.push(BlockWriter::with_segment_len(disk, parent, new, symbols, self.segment_len)?);
        }
        let (mut done, mut chunks, mut untangle) = (0, FramedChunks::default(), Untangle::default());
        walk.rewind();
        while walk.advance().map_err(|error| stopped(&walk, error))? {
            if !self.copy(&mut walk, &mut chunks)? {
                self.recode(&mut walk, &mut untangle, &mut chunks)?;
            }
            let changed = || BlockError::Input("a source has changed while it was read".into());
            let part = *part_of.get(done).ok_or_else(changed)?;
            writers[part as usize].add(walk.labels(), &chunks)?;
            done += 1;
            progress(done as u64, total);
        }
        let mut written = Published { disk, parent, blocks: Vec::new() };
        for writer in writers {
            written.blocks.extend(writer.finish()?);
        }
        Ok(std::mem::take(&mut written.blocks))
    }

    fn plan(&self, shard: CompactionShard, walk: &mut MergeWalk<'_>) -> Result<Planned, MergeBlocksError> {
        let mut parts = self.shards.max(1);
        loop {
            match self.forecast(shard, parts, walk)? {
                Ok(planned) => return Ok(planned),
                Err(_) if parts < MAX_PARTS && shard.split(2 * parts).is_some() => parts *= 2,
                Err(Excess { what, len, limit }) => return Err(BlockError::TooLarge { what, len, limit }.into()),
            }
        }
    }

    /// What so many parts hold, or what of one would be too large.
    fn forecast(
        &self,
        shard: CompactionShard,
        parts: u32,
        walk: &mut MergeWalk<'_>,
    ) -> Result<Result<Planned, Excess>, MergeBlocksError> {
        let offset_bytes = self.sources.iter().map(|source| source.header().offset_table_bytes()).sum();
        let part = || (Forecast::among(offset_bytes, &self.limits), NumberSet::below(walk.symbols.shared_len()));
        let mut forecasts: Vec<_> = (0..parts).map(|_| part()).collect();
        let mut part_of = Vec::new();
        walk.rewind();
        while walk.advance().map_err(|error| stopped(walk, error))? {
            // Its hash is of the texts.
            let part = if parts == 1 { 0 } else { shard.part_of(parts, &walk.symbols.labels(walk.labels())) };
            part_of.push(part as u32);
            let (forecast, used) = &mut forecasts[part];
            let chunks = walk.chunk_count();
            walk.labels().iter().for_each(|&(name, value)| {
                used.insert(name);
                used.insert(value);
            });
            let symbol = |number| walk.symbols.symbol(number);
            if let Err(excess) = forecast.add(walk.labels(), symbol, chunks, &self.limits) {
                return Ok(Err(excess));
            }
        }
        let symbols = forecasts.into_iter().map(|(_, used)| walk.symbols.only(used)).collect();
        Ok(Ok(Planned { symbols, part_of }))
    }

    /// Takes the chunks of the current series as they are, identical ones of several sources once. False if more has to be
    /// done than that.
    ///
    /// Chunks are compared byte by byte, so that one checksum speaks for all that are alike.
    fn copy(&self, walk: &mut MergeWalk<'_>, chunks: &mut FramedChunks) -> Result<bool, BlockError> {
        chunks.clear();
        let range = self.range();
        let outside = |chunk: &Candidate| chunk.min_time < range.min || chunk.max_time > range.max;
        if walk.has_hidden() || walk.candidates().iter().any(outside) {
            return Ok(false);
        }
        let mut number = 0;
        while let Some(candidate) = walk.candidate(number) {
            number += 1;
            let (meta, frame, bytes) = walk.frame(candidate)?;
            match chunks.last() {
                Some((last, its_bytes)) if last.max_time >= meta.min_time => {
                    let same_time = (last.min_time, last.max_time) == (meta.min_time, meta.max_time);
                    if !same_time || its_bytes != &bytes[..frame.len()] {
                        return Ok(false);
                    }
                }
                _ => chunks.copy(&meta, &frame, bytes)?,
            }
        }
        Ok(true)
    }

    /// Makes new chunks of those of the current series where samples are hidden or chunks overlap.
    fn recode(
        &self,
        walk: &mut MergeWalk<'_>,
        untangle: &mut Untangle,
        out: &mut FramedChunks,
    ) -> Result<(), MergeBlocksError> {
        out.clear();
        let parts = walk.parts()?;
        let damaged = |source| MergeBlocksError::Chunk { labels: walk.symbols.labels(walk.labels()), source };
        let Some(mut series) = join_parts(parts).map_err(damaged)? else { return Ok(()) };
        let range = self.range();
        if series.chunks.iter().any(|chunk| chunk.min_time < range.min || chunk.max_time > range.max) {
            series.deleted.extend([
                QueryRange { min: i64::MIN, max: range.min.saturating_sub(1) },
                QueryRange { min: range.max.saturating_add(1), max: i64::MAX },
            ]);
        }
        series.cut_deleted().map_err(damaged)?;
        if !series.chunks.is_sorted_by(|a, b| a.max_time < b.min_time) {
            series.chunks = untangle.chunks(&series.chunks).map_err(damaged)?;
        }
        Ok(series.chunks.iter().try_for_each(|chunk| out.push(chunk))?)
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

fn stopped(walk: &MergeWalk<'_>, error: WalkError) -> MergeBlocksError {
    match error {
        WalkError::Block(error) => MergeBlocksError::Block(error),
        WalkError::OutOfOrder(labels) => MergeBlocksError::OutOfOrder { labels: walk.symbols.labels(&labels) },
    }
}

/// What is known of the new blocks before they are written.
struct Planned {
    /// Those of each.
    symbols: Vec<SortedSymbols>,
    /// Which of the blocks each series belongs to, by its place in the walk.
    part_of: Vec<u32>,
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
