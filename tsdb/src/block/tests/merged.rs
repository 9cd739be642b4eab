//! Merging blocks, against the samples that go in.

use proptest::prelude::*;
use skald_model::{Columns, Histogram, HistogramValue, QueryRange, Span};

use super::*;
use crate::decode::decode_series;
use crate::disk::MemDisk;
use crate::encode::{ChunkEncoder, without_overlaps};

/// What a sample is: a float or a histogram, by the bits of its value or count.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Float(u64),
    Histogram(u64),
}

type Samples = BTreeMap<i64, Value>;

/// Samples by time; a number tells kind and value.
type Drawn = BTreeMap<i64, u8>;

/// The series of one source with what is deleted of each.
type Source = BTreeMap<u8, (Drawn, Option<(i64, i64)>)>;

fn source() -> impl Strategy<Value = Source> {
    // Few values, so that replicas agree now and then.
    let drawn = proptest::collection::btree_map(0_i64..60, 0_u8..6, 1..40);
    let deleted = proptest::option::weighted(0.3, (-5_i64..60, 0_i64..20));
    proptest::collection::btree_map(0_u8..12, (drawn, deleted), 1..8)
}

fn labels(series: u8) -> Labels {
    Labels::from_pairs([("__name__", format!("m{}", series % 3)), ("i", format!("{series}"))])
}

fn chunks(drawn: &Drawn, per_chunk: usize) -> Vec<Chunk> {
    let drawn: Vec<_> = drawn.iter().collect();
    let encode = |samples: &[(&i64, &u8)]| {
        let mut encoder = ChunkEncoder::default();
        for &(&time, &number) in samples {
            let count = u64::from(number);
            let histogram = Histogram {
                count,
                positive_spans: vec![Span { offset: 0, length: 1 }],
                positive_deltas: vec![count as i64],
                ..Histogram::default()
            };
            match number {
                0 => encoder.push_histogram(time, &HistogramValue::Integer(histogram.into())).unwrap(),
                1 => encoder.push_histogram(time, &HistogramValue::Float(histogram.to_float().into())).unwrap(),
                _ => encoder.push_float(time, f64::from(number)),
            }
        }
        encoder.finish()
    };
    drawn.chunks(per_chunk).flat_map(encode).collect()
}

fn samples(chunks: &[Chunk]) -> Samples {
    let mut columns = Columns::default();
    decode_series(chunks, QueryRange::ALL, &mut columns).unwrap();
    let floats = columns.float_timestamps.iter().zip(&columns.float_values);
    let histograms = columns.histogram_timestamps.iter().zip(&columns.histograms);
    let floats = floats.map(|(&time, value)| (time, Value::Float(value.to_bits())));
    floats.chain(histograms.map(|(&time, h)| (time, Value::Histogram(h.count.to_bits())))).collect()
}

/// Writes sources, the chunks of each with so many samples, and opens them.
fn open_sources(disk: &Arc<dyn Disk>, sources: &[Source], per_chunk: &[usize]) -> Vec<Arc<LocalBlock>> {
    let parent = Path::new("/sources");
    let open = |(number, source): (usize, &Source)| {
        let per_chunk = per_chunk[number % per_chunk.len()];
        let content: Content =
            source.iter().map(|(&series, (drawn, _))| (labels(series), chunks(drawn, per_chunk))).collect();
        let meta = write(disk, parent, new_block(1 + number as u128, 0, 60), &content, u64::MAX);
        let dir = parent.join(meta.ulid.to_string());
        let block = LocalBlock::open(&**disk, &dir).unwrap();
        let mut tombstones = Tombstones::default();
        for (&series, (_, deleted)) in source {
            let name = labels(series);
            let matchers: Vec<_> = name.iter().map(|(n, v)| skald_model::Matcher::equal(n, v)).collect();
            if let (Some((min, len)), [found]) = (deleted, &block.find(&matchers).unwrap()[..]) {
                tombstones.delete(*found, QueryRange { min: *min, max: min + len });
            }
        }
        disk.write_atomically(&dir.join(TOMBSTONES_FILE), &tombstones.encode()).unwrap();
        Arc::new(LocalBlock::open(&**disk, &dir).unwrap())
    };
    sources.iter().enumerate().map(open).collect()
}

/// Merges into a directory of its own and opens the result.
fn merge(disk: &Arc<dyn Disk>, merge: &MergeBlocks<'_>) -> Vec<Arc<LocalBlock>> {
    let parent = Path::new("/merged");
    disk.create_dir_all(parent).unwrap();
    let mut number = 1000;
    let mut name = |_| {
        number += 1;
        ulid(number)
    };
    let written = merge.write(disk, parent, &mut name, &mut |done, total| assert!(done <= total)).unwrap();
    let open = |meta: &BlockMeta| {
        let dir = parent.join(meta.ulid.to_string());
        let verified = verify_block(&**disk, &dir, &mut |_, _| ());
        assert!(verified.is_intact(), "{verified:?}");
        Arc::new(LocalBlock::open(&**disk, &dir).unwrap())
    };
    assert_eq!(disk.list(parent).unwrap().len(), written.len());
    written.iter().map(open).collect()
}

fn shard(block: &LocalBlock) -> CompactionShard {
    let label = block.meta().thanos.as_ref().unwrap().labels.get(COMPACTION_SHARD_LABEL);
    label.map_or(CompactionShard::ALL, |label| CompactionShard::parse(label).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn merged_blocks_hold_what_is_visible_in_the_sources(
        sources in proptest::collection::vec(source(), 1..4),
        per_chunk in proptest::collection::vec(1_usize..30, 1..4),
        replicated: bool,
        shards in 1_u32..5,
        again in 1_u32..4,
        clip in proptest::option::of((0_i64..40, 1_i64..40)),
    ) {
        let mut sources = sources;
        if replicated {
            sources.push(sources[0].clone());
        }
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
        let opened = open_sources(&disk, &sources, &per_chunk);
        let range = clip.map_or(BlockRange { min: 0, max: 60 }, |(min, len)| BlockRange { min, max: min + len });
        // One sample survives per time: one that some source shows.
        let mut visible: BTreeMap<Labels, BTreeMap<i64, Vec<Value>>> = BTreeMap::new();
        for (number, source) in sources.iter().enumerate() {
            let per_chunk = per_chunk[number % per_chunk.len()];
            for (&series, (drawn, deleted)) in source {
                for (time, value) in samples(&chunks(drawn, per_chunk)) {
                    let hidden = deleted.is_some_and(|(min, len)| (min..=min + len).contains(&time));
                    if !hidden && (range.min..range.max).contains(&time) {
                        visible.entry(labels(series)).or_default().entry(time).or_default().push(value);
                    }
                }
            }
        }
        let merged = merge(&disk, &MergeBlocks { range, shards, ..MergeBlocks::new(&opened) });
        let mut found: BTreeMap<Labels, Samples> = BTreeMap::new();
        let mut copies: BTreeMap<Labels, Vec<Chunk>> = BTreeMap::new();
        let mut parts = Vec::new();
        for block in &merged {
            let shard = shard(block);
            prop_assert_eq!(block.meta().range(), range);
            prop_assert!(block.tombstones().is_empty());
            for series in block.select(&[], QueryRange::ALL).unwrap() {
                let series = series.unwrap();
                prop_assert!(shards == 1 || shard.holds(&series.labels));
                prop_assert!(series.chunks.iter().all(|chunk| chunk.num_samples() <= 120));
                prop_assert!(found.insert(series.labels.clone(), samples(&series.chunks)).is_none());
                copies.insert(series.labels, series.chunks);
            }
            // A part that is split again has parts of its part.
            parts.extend(merge_again(&disk, block, again)?);
        }
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), visible.keys().collect::<Vec<_>>());
        for ((labels, found), visible) in found.iter().zip(visible.values()) {
            prop_assert_eq!(found.keys().collect::<Vec<_>>(), visible.keys().collect::<Vec<_>>(), "{}", labels);
            for (found, shown) in found.values().zip(visible.values()) {
                prop_assert!(shown.contains(found), "{}: {:?} is none of {:?}", labels, found, shown);
            }
        }
        if clip.is_none() {
            // Chunk by chunk what joining, cutting and parting give.
            let naive = merged_naively(&opened).into_iter().filter_map(|mut series| {
                series.cut_deleted().unwrap();
                let chunks = without_overlaps(&series.chunks).unwrap();
                (!chunks.is_empty()).then_some((series.labels, chunks))
            });
            prop_assert_eq!(copies, naive.collect::<BTreeMap<_, _>>());
        }
        // Merging what was split is merging at once.
        parts.sort_by(|a: &(Labels, Samples), b| a.0.cmp(&b.0));
        prop_assert_eq!(parts, found.into_iter().collect::<Vec<_>>());
    }
}

/// Splits a merged block and gives the series of all parts.
fn merge_again(
    disk: &Arc<dyn Disk>,
    block: &Arc<LocalBlock>,
    shards: u32,
) -> Result<Vec<(Labels, Samples)>, TestCaseError> {
    let parent = Path::new("/again");
    disk.create_dir_all(parent).unwrap();
    let sources = [block.clone()];
    let mut number = 2000;
    let mut name = |_| {
        number += 1;
        ulid(number)
    };
    let written =
        MergeBlocks { shards, ..MergeBlocks::new(&sources) }.write(disk, parent, &mut name, &mut |_, _| ()).unwrap();
    let mut all = Vec::new();
    for meta in &written {
        let part = Arc::new(LocalBlock::open(&**disk, &parent.join(meta.ulid.to_string())).unwrap());
        prop_assert_eq!(meta.compaction.level, block.meta().compaction.level + 1);
        prop_assert_eq!(&meta.compaction.sources, &block.meta().compaction.sources);
        for series in part.select(&[], QueryRange::ALL).unwrap() {
            let series = series.unwrap();
            prop_assert!(shard(&part).holds(&series.labels) && shard(block).holds(&series.labels));
            all.push((series.labels, samples(&series.chunks)));
        }
    }
    disk.remove_dir_all(parent).unwrap();
    Ok(all)
}

fn many_series(count: u8) -> Source {
    (0..count).map(|series| (series, (BTreeMap::from([(i64::from(series % 60), 5)]), None))).collect()
}

#[test]
fn what_would_not_fit_one_block_is_split_before_it_is_written() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    let sources = open_sources(&disk, &[many_series(100), many_series(50)], &[5]);
    let limits = IndexLimits { series: 30, ..IndexLimits::default() };
    let merged = merge(&disk, &MergeBlocks { limits, ..MergeBlocks::new(&sources) });
    assert_eq!(merged.iter().map(|block| block.meta().stats.num_series).sum::<u64>(), 100);
    assert!(merged.len() == 4 || merged.len() == 8, "{}", merged.len());
    assert!(merged.iter().all(|block| block.meta().stats.num_series <= 30));
    let names: Vec<String> = merged.iter().map(|block| shard(block).to_string()).collect();
    assert!(names.iter().enumerate().all(|(i, name)| *name == format!("{}_of_{}", i + 1, names.len())), "{names:?}");

    // One series that fits nowhere is an error, and nothing was written.
    let limits = IndexLimits { series_bytes: 10, ..limits };
    let merge = MergeBlocks { limits, ..MergeBlocks::new(&sources) };
    let parent = Path::new("/none");
    disk.create_dir_all(parent).unwrap();
    let refused = merge.write(&disk, parent, &mut |_| ulid(5000), &mut |_, _| ());
    let too_large =
        matches!(refused, Err(MergeBlocksError::Block(BlockError::TooLarge { what: "the series section", .. })));
    assert!(too_large, "{refused:?}");
    assert!(disk.list(parent).unwrap().is_empty());
}

#[test]
fn identical_chunks_are_copied_and_segments_stay_small() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    let drawn: Drawn = (0..60).map(|time| (time, 2 + (time % 3) as u8)).collect();
    let source: Source = (0..9).map(|series| (series, (drawn.clone(), None))).collect();
    let sources = open_sources(&disk, &[source.clone(), source.clone(), source], &[7]);
    let merged = merge(&disk, &MergeBlocks { segment_len: 500, ..MergeBlocks::new(&sources) });
    let [block] = &merged[..] else { panic!("{}", merged.len()) };
    let files = &block.meta().thanos.as_ref().unwrap().files;
    let segments: Vec<_> = files.iter().filter(|file| file.rel_path.starts_with("chunks/")).collect();
    assert!(segments.len() > 1 && segments.iter().all(|file| file.size_bytes <= 500), "{files:?}");
    let all = |block: &Arc<LocalBlock>| -> Vec<_> {
        block.select(&[], QueryRange::ALL).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(all(block), all(&sources[0]));
    assert_eq!(block.meta().compaction.level, 2);
    assert_eq!(block.meta().compaction.sources, [ulid(1), ulid(2), ulid(3)]);
    assert_eq!(block.meta().compaction.parents.len(), 3);
}

#[test]
fn a_damaged_chunk_of_any_replica_is_noticed() {
    let drawn: Drawn = (0..60).map(|time| (time, 2 + (time % 3) as u8)).collect();
    let source: Source = (0..4).map(|series| (series, (drawn.clone(), None))).collect();
    for damaged in 0..3 {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
        let sources = open_sources(&disk, &[source.clone(), source.clone(), source.clone()], &[7]);
        let path = segment_path(sources[damaged].dir(), 0);
        let mut bytes = disk.read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        disk.write_atomically(&path, &bytes).unwrap();
        let sources: Vec<_> =
            sources.iter().map(|source| Arc::new(LocalBlock::open(&*disk, source.dir()).unwrap())).collect();
        let parent = Path::new("/none");
        disk.create_dir_all(parent).unwrap();
        let refused = MergeBlocks::new(&sources).write(&disk, parent, &mut |_| ulid(5000), &mut |_, _| ());
        let segment = BlockFile::Segment(0);
        let noticed =
            matches!(&refused, Err(MergeBlocksError::Block(BlockError::Damaged { file, .. })) if *file == segment);
        assert!(noticed, "{damaged}: {refused:?}");
        assert!(disk.list(parent).unwrap().is_empty());
    }
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    let memory = MemDisk::default();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    let sources = open_sources(&disk, &[many_series(100)], &[5]);
    let parent = Path::new("/none");
    disk.create_dir_all(parent).unwrap();
    for free in (0..40_000).step_by(1500) {
        memory.set_free_bytes(Some(free));
        let mut number = 7000;
        let mut name = |_| {
            number += 1;
            ulid(number)
        };
        let merge = MergeBlocks { shards: 3, ..MergeBlocks::new(&sources) };
        if merge.write(&disk, parent, &mut name, &mut |_, _| ()).is_ok() {
            assert!(free > 10_000);
            return;
        }
        assert!(disk.list(parent).unwrap().is_empty(), "{free}");
    }
    panic!("40 kB are enough");
}
