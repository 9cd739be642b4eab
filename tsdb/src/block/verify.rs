//! Checks everything a block promises.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hashbrown::HashMap;
use skald_model::{Columns, Labels, QueryRange};

use super::local::WantedChunk;
use super::{BlockError, BlockFile, BlockMeta, BlockStats, ChunkMeta, ChunkRef, LocalBlock, SeriesEntry};
use crate::chunk::Chunk;
use crate::decode::decode_series;
use crate::disk::Disk;
use crate::postings::{PostingsSource, SeriesRef};

/// So many problems are described; more are counted only.
const DESCRIBED: usize = 100;

/// What a check of a block found.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// What the block says about itself, as far as it could be opened.
    pub meta: Option<BlockMeta>,
    /// What was counted in it.
    pub counted: BlockStats,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// Number of problems, described or not.
    pub problem_count: u64,
}

/// One thing that is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In which file.
    pub file: BlockFile,
    /// Of which series, if it concerns one.
    pub series: Option<Labels>,
    /// Which rule is broken, and how.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if let Some(series) = &self.series {
            write!(f, "{series}: ")?;
        }
        f.write_str(&self.what)
    }
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.problem_count == 0
    }

    fn add(&mut self, file: BlockFile, series: Option<&Labels>, what: impl Into<String>) {
        if self.problems.len() < DESCRIBED {
            self.problems.push(Problem { file, series: series.cloned(), what: what.into() });
        }
        self.problem_count += 1;
    }

    fn add_error(&mut self, series: Option<&Labels>, error: &BlockError) {
        let file = match error {
            BlockError::Io { file, .. } | BlockError::Damaged { file, .. } | BlockError::Unsupported { file, .. } => {
                *file
            }
            BlockError::TooLarge { .. } | BlockError::Input(_) => BlockFile::Index,
        };
        self.add(file, series, error.to_string());
    }
}

/// Reads the whole block in `dir`, every checksum and every sample, and compares its parts with each other.
///
/// `progress` gets the series that are done, and all of them. Memory: some 40 bytes per label pair. Problems never stop the
/// check, except where nothing behind them can be found.
pub fn verify_block(disk: &dyn Disk, dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> VerifyReport {
    let mut report = VerifyReport::default();
    let block = match LocalBlock::open(disk, dir) {
        Ok(block) => Arc::new(block),
        Err(error) => {
            report.add_error(None, &error);
            return report;
        }
    };
    report.meta = Some(block.meta().clone());
    if dir.file_name().is_some_and(|name| name.to_string_lossy() != block.meta().ulid.to_string()) {
        report.add(BlockFile::Meta, None, "the directory has another name than the block");
    }
    let mut check = Check { block: &block, report, pairs: HashMap::default(), previous: None, last_chunk: ChunkRef(0) };
    match check.block.find(&[]) {
        Ok(all) => check.series(&all, progress),
        Err(error) => check.report.add_error(None, &error),
    }
    check.postings();
    check.stats();
    check.report
}

struct Check<'a> {
    block: &'a LocalBlock,
    report: VerifyReport,
    /// What the series say of each label pair's postings, by a hash of the pair.
    pairs: HashMap<u64, PairDigest, foldhash::fast::FixedState>,
    previous: Option<Labels>,
    last_chunk: ChunkRef,
}

/// Enough to recognise a postings list without keeping it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct PairDigest {
    count: u64,
    digest: u64,
}

impl PairDigest {
    fn add(&mut self, series: SeriesRef) {
        self.count += 1;
        self.digest = self.digest.wrapping_add(hash_of(&series));
    }
}

fn hash_of(value: &impl std::hash::Hash) -> u64 {
    use std::hash::BuildHasher;
    foldhash::fast::FixedState::default().hash_one(value)
}

impl Check<'_> {
    fn series(&mut self, all: &[SeriesRef], progress: &mut dyn FnMut(u64, u64)) {
        let block = self.block;
        // One by one, so that a damaged entry hides only itself.
        for (done, series) in all.iter().enumerate() {
            progress(done as u64, all.len() as u64);
            let visited = block.visit_entries(std::slice::from_ref(series), &mut |series, entry, labels| {
                self.one_series(series, entry, labels);
                Ok(())
            });
            if let Err(error) = visited {
                self.report.add_error(None, &error);
            }
        }
    }

    fn one_series(&mut self, series: SeriesRef, entry: &SeriesEntry, labels: &Labels) {
        self.report.counted.num_series += 1;
        if self.previous.as_ref().is_some_and(|previous| previous >= labels) {
            self.report.add(BlockFile::Index, Some(labels), "does not come after the series before it");
        }
        self.previous = Some(labels.clone());
        for pair in labels {
            self.pairs.entry(hash_of(&pair)).or_default().add(series);
        }
        if entry.chunks.is_empty() {
            self.report.add(BlockFile::Index, Some(labels), "has no chunks");
        }
        let range = self.block.meta().range();
        let mut previous_max = None;
        for meta in &entry.chunks {
            if previous_max.is_some_and(|max| max >= meta.min_time) {
                self.report.add(
                    BlockFile::Index,
                    Some(labels),
                    format!("chunk at {} overlaps the one before", meta.min_time),
                );
            }
            previous_max = Some(meta.max_time);
            if meta.min_time < range.min || meta.max_time >= range.max {
                let what =
                    format!("chunk {}..={} reaches outside the block's time range", meta.min_time, meta.max_time);
                self.report.add(BlockFile::Index, Some(labels), what);
            }
            if meta.reference < self.last_chunk {
                self.report.add(
                    BlockFile::Index,
                    Some(labels),
                    format!("chunk at {:?} lies before others", meta.reference),
                );
            }
            self.last_chunk = meta.reference;
            let wanted: Vec<WantedChunk> = WantedChunk::of_series(std::slice::from_ref(meta)).collect();
            match self.block.chunks(&wanted) {
                Ok(chunks) => chunks.iter().for_each(|chunk| self.one_chunk(labels, meta, chunk)),
                Err(error) => self.report.add_error(Some(labels), &error),
            }
        }
    }

    fn one_chunk(&mut self, labels: &Labels, meta: &ChunkMeta, chunk: &Chunk) {
        let (counted, samples) = (&mut self.report.counted, u64::from(chunk.num_samples()));
        counted.num_chunks += 1;
        counted.num_samples += samples;
        match chunk.encoding.is_float() {
            true => counted.num_float_samples += samples,
            false => counted.num_histogram_samples += samples,
        }
        let mut columns = Columns::default();
        let decoded = decode_series(std::slice::from_ref(chunk), QueryRange::ALL, &mut columns);
        let times = match columns.float_timestamps.is_empty() {
            true => &columns.histogram_timestamps,
            false => &columns.float_timestamps,
        };
        let what = match (decoded, times.first(), times.last()) {
            (Err(error), ..) => error.to_string(),
            (Ok(()), Some(&min), Some(&max)) if (min, max) != (meta.min_time, meta.max_time) => {
                format!("samples lie in {min}..={max}, the index says {}..={}", meta.min_time, meta.max_time)
            }
            (Ok(()), ..) if times.is_empty() || times.len() as u64 != samples => {
                format!("holds {} samples and says {samples}", times.len())
            }
            (Ok(()), ..) => return,
        };
        let what = format!("chunk at byte {}: {what}", meta.reference.offset());
        self.report.add(BlockFile::Segment(meta.reference.segment()), Some(labels), what);
    }

    /// Every postings list holds exactly the series that have its pair.
    fn postings(&mut self) {
        let header = self.block.header();
        let names: Vec<String> = header.label_names().map(|(name, _)| name.to_owned()).collect();
        for name in &names {
            let (mut values, mut lists) = (Vec::new(), Vec::new());
            let mut take = |value: &str| {
                values.push(value.to_owned());
                true
            };
            let scanned = header.scan(name, "", &mut take, &mut lists);
            for (value, range) in values.iter().zip(lists) {
                let expected = self.pairs.remove(&hash_of(&(name.as_str(), value.as_str()))).unwrap_or_default();
                match self.block.postings(range) {
                    Ok(list) => {
                        let mut found = PairDigest::default();
                        list.iter().for_each(|&series| found.add(series));
                        if found != expected {
                            let what = format!("postings of {name}={value:?} do not hold the series that have it");
                            self.report.add(BlockFile::Index, None, what);
                        }
                    }
                    Err(error) => self.report.add_error(None, &error),
                }
            }
            if let Err(error) = scanned {
                self.report.add_error(None, &error);
            }
        }
        if !self.pairs.is_empty() {
            self.report.add(BlockFile::Index, None, format!("{} label pairs have no postings", self.pairs.len()));
        }
    }

    fn stats(&mut self) {
        self.report.counted.num_tombstones = self.block.tombstones().len() as u64;
        let (stated, counted) = (self.block.meta().stats, self.report.counted);
        // Older writers do not tell floats from histograms.
        let split = stated.num_float_samples + stated.num_histogram_samples > 0;
        let numbers = [
            ("numSamples", stated.num_samples, counted.num_samples),
            ("numSeries", stated.num_series, counted.num_series),
            ("numChunks", stated.num_chunks, counted.num_chunks),
            ("numTombstones", stated.num_tombstones, counted.num_tombstones),
        ];
        let split_numbers = [
            ("numFloatSamples", stated.num_float_samples, counted.num_float_samples),
            ("numHistogramSamples", stated.num_histogram_samples, counted.num_histogram_samples),
        ];
        for (name, stated, counted) in numbers.into_iter().chain(split_numbers.into_iter().filter(|_| split)) {
            if stated != counted {
                self.report.add(BlockFile::Meta, None, format!("{name} is {stated}, counted are {counted}"));
            }
        }
    }
}
