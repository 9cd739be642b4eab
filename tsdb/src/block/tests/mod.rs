//! Whole blocks: written and read back, golden ones, damaged ones, and what promtool says of ours.

mod damage;
mod golden;
mod kinds;
mod merged;
mod promtool;
mod round_trip;
mod tools;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use skald_model::{BlockRange, Labels, QueryRange};
use ulid::Ulid;

use super::*;
use crate::SeriesChunks;
use crate::chunk::xor::XorAppender;
use crate::chunk::{Chunk, Encoding};
use crate::disk::Disk;

/// Series of a block with their chunks.
type Content = BTreeMap<Labels, Vec<Chunk>>;

/// A chunk of floats.
fn floats(samples: &[(i64, f64)]) -> Chunk {
    let (mut appender, mut data) = (XorAppender::new(), Vec::new());
    for &(time, value) in samples {
        appender.append(&mut data, time, value).unwrap();
    }
    let (min_time, max_time) = (samples[0].0, samples[samples.len() - 1].0);
    Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() }
}

fn ulid(number: u128) -> Ulid {
    Ulid(number)
}

fn symbols(content: &Content) -> SortedSymbols {
    let mut symbols = SymbolSet::default();
    content.keys().for_each(|labels| symbols.insert_labels(labels).unwrap());
    symbols.sort()
}

fn new_block(number: u128, min: i64, max: i64) -> NewBlock {
    let compaction = Compaction { level: 1, sources: vec![ulid(number)], ..Compaction::default() };
    NewBlock { ulid: ulid(number), range: BlockRange { min, max }, compaction, thanos: Some(ThanosMeta::default()) }
}

/// What several blocks hold together, series by series.
fn merged_naively(blocks: &[Arc<LocalBlock>]) -> Vec<SeriesChunks> {
    let mut parts: BTreeMap<Labels, Vec<SeriesChunks>> = BTreeMap::new();
    for series in blocks.iter().flat_map(|block| block.select(&[], QueryRange::ALL).unwrap()) {
        let series = series.unwrap();
        parts.entry(series.labels.clone()).or_default().push(series);
    }
    parts.into_values().filter_map(|parts| join_parts(parts).unwrap()).collect()
}

fn write(disk: &Arc<dyn Disk>, parent: &Path, new: NewBlock, content: &Content, segment_len: u64) -> BlockMeta {
    disk.create_dir_all(parent).unwrap();
    let mut writer = BlockWriter::with_segment_len(disk.clone(), parent, new, symbols(content), segment_len).unwrap();
    for (labels, chunks) in content {
        writer.add_series(labels, chunks).unwrap();
    }
    writer.finish().unwrap().unwrap()
}
