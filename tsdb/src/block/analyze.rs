//! What a block's bytes and series are spent on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::Path;
use std::sync::Arc;

use skald_model::QueryRange;

use super::{BlockError, BlockMeta, LocalBlock};
use crate::chunk::Encoding;
use crate::disk::Disk;
use crate::postings::PostingsSource;

/// What [`analyze_block`] found. Lists are descending and hold no more than was asked for.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// What the block says about itself.
    pub meta: BlockMeta,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Series.
    pub series: u64,
    /// Distinct strings in labels.
    pub symbols: u64,
    /// Label names.
    pub label_names: u64,
    /// Label pairs, each counted once.
    pub label_pairs: u64,
    /// Entries of all postings lists: the labels of all series.
    pub postings: u64,
    /// Names by how many values they have.
    pub values_by_name: Vec<Counted>,
    /// Names by the bytes of their values together.
    pub bytes_by_name: Vec<Counted>,
    /// Metric names by their series.
    pub series_by_metric: Vec<Counted>,
    /// Label pairs (`name=value`) by their series.
    pub series_by_pair: Vec<Counted>,
    /// Chunks by how they are coded.
    pub chunks: BTreeMap<&'static str, ChunkKind>,
    /// Chunks by number of samples: entry i counts those with up to 2^i samples and more than half of that.
    pub chunks_by_samples: Vec<u64>,
}

/// Something and how often it is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    /// How often.
    pub count: u64,
    /// What.
    pub name: String,
}

/// The chunks of one encoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkKind {
    /// How many.
    pub chunks: u64,
    /// Their samples.
    pub samples: u64,
    /// Their bytes, without framing.
    pub bytes: u64,
}

/// The largest of many counts.
struct Top {
    limit: usize,
    kept: BinaryHeap<Reverse<Counted>>,
}

impl Top {
    fn new(limit: usize) -> Self {
        Self { limit, kept: BinaryHeap::new() }
    }

    fn add(&mut self, count: u64, name: impl FnOnce() -> String) {
        let is_full = self.kept.len() >= self.limit;
        if count == 0 || (is_full && self.kept.peek().is_none_or(|Reverse(least)| least.count >= count)) {
            return;
        }
        if is_full {
            self.kept.pop();
        }
        self.kept.push(Reverse(Counted { count, name: name() }));
    }

    fn into_sorted(self) -> Vec<Counted> {
        let mut sorted: Vec<Counted> = self.kept.into_iter().map(|Reverse(counted)| counted).collect();
        sorted.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        sorted
    }
}

/// Reads the whole block in `dir` and counts; lists hold the `top` largest entries.
///
/// `progress` gets the series that are done, and all of them.
pub fn analyze_block(
    disk: &dyn Disk,
    dir: &Path,
    top: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Analysis, BlockError> {
    let block = Arc::new(LocalBlock::open(disk, dir)?);
    let header = block.header();
    let mut analysis = Analysis {
        meta: block.meta().clone(),
        index_bytes: header.toc().index_len,
        series: 0,
        symbols: u64::from(header.symbol_count()),
        label_names: 0,
        label_pairs: 0,
        postings: 0,
        values_by_name: Vec::new(),
        bytes_by_name: Vec::new(),
        series_by_metric: Vec::new(),
        series_by_pair: Vec::new(),
        chunks: BTreeMap::new(),
        chunks_by_samples: Vec::new(),
    };
    count_labels(&block, top, &mut analysis)?;
    count_chunks(&block, &mut analysis, progress)?;
    Ok(analysis)
}

fn count_labels(block: &LocalBlock, top: usize, analysis: &mut Analysis) -> Result<(), BlockError> {
    let header = block.header();
    let (mut values_by_name, mut bytes_by_name) = (Top::new(top), Top::new(top));
    let (mut series_by_metric, mut series_by_pair) = (Top::new(top), Top::new(top));
    let names: Vec<String> = header.label_names().map(|(name, _)| name.to_owned()).collect();
    for name in &names {
        let (mut texts, mut lists) = (Vec::new(), Vec::new());
        let mut take = |value: &str| {
            texts.push(value.to_owned());
            true
        };
        header.scan(name, "", &mut take, &mut lists)?;
        let (mut values, mut bytes) = (0, 0);
        for (value, range) in texts.iter().zip(lists) {
            let series = block.postings(range)?.len() as u64;
            values += 1;
            bytes += value.len() as u64;
            analysis.postings += series;
            series_by_pair.add(series, || format!("{name}={value}"));
            if name == skald_model::METRIC_NAME {
                series_by_metric.add(series, || value.clone());
            }
        }
        analysis.label_names += 1;
        analysis.label_pairs += values;
        values_by_name.add(values, || name.clone());
        bytes_by_name.add(bytes, || name.clone());
    }
    analysis.values_by_name = values_by_name.into_sorted();
    analysis.bytes_by_name = bytes_by_name.into_sorted();
    analysis.series_by_metric = series_by_metric.into_sorted();
    analysis.series_by_pair = series_by_pair.into_sorted();
    Ok(())
}

fn count_chunks(
    block: &Arc<LocalBlock>,
    analysis: &mut Analysis,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), BlockError> {
    let select = block.select(&[], QueryRange::ALL)?;
    let total = select.series_count() as u64;
    for series in select {
        for chunk in series?.chunks {
            let samples = chunk.num_samples();
            let kind = analysis.chunks.entry(encoding_name(chunk.encoding)).or_default();
            kind.chunks += 1;
            kind.samples += u64::from(samples);
            kind.bytes += chunk.data.len() as u64;
            let class = u32::from(samples.max(1)).next_power_of_two().trailing_zeros() as usize;
            if analysis.chunks_by_samples.len() <= class {
                analysis.chunks_by_samples.resize(class + 1, 0);
            }
            analysis.chunks_by_samples[class] += 1;
        }
        analysis.series += 1;
        progress(analysis.series, total);
    }
    Ok(())
}

fn encoding_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Xor => "xor",
        Encoding::Histogram => "histogram",
        Encoding::FloatHistogram => "float histogram",
        Encoding::Xor2 => "xor2",
        Encoding::HistogramStarts => "histogram with starts",
        Encoding::FloatHistogramStarts => "float histogram with starts",
        // Heads only have these.
        Encoding::StartedXor | Encoding::StartedHistogram | Encoding::StartedFloatHistogram => "started",
    }
}
