//! Blocks written here, uploaded and served, against a plain model of what they hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use skald_model::{BlockRange, Labels};
use skald_tsdb::block::{BlockWriter, Compaction, NewBlock, SymbolSet, Tombstones};
use skald_tsdb::chunk::xor::XorAppender;

use super::*;
use crate::bucket::TenantBucket;
use crate::bucket::upload::upload_block;
use crate::settings::ByteSize;

/// Start and length of a block in time, series by number with the times of their chunks' samples.
#[derive(Debug, Clone)]
struct Content {
    start: i64,
    series: BTreeMap<u8, Vec<Vec<i64>>>,
    /// Series (by position among those of the block), from, to.
    stones: Vec<(usize, i64, i64)>,
}

const LENGTH: i64 = 100;

fn labels(number: u8) -> Labels {
    let group = format!("g{}", number % 3);
    Labels::from_pairs([("__name__", "m"), ("zone", &group), ("id", &format!("{number:03}"))])
}

/// Tells blocks apart, so that a sample shown can only come from the block that has it.
fn value(block: usize, number: u8, t: i64) -> f64 {
    (block * 1_000_000) as f64 + f64::from(number) * 1_000.0 + t as f64
}

fn content() -> impl Strategy<Value = Content> {
    let chunks = proptest::collection::btree_set(0..LENGTH, 1..30).prop_flat_map(|times| {
        let times: Vec<i64> = times.into_iter().collect();
        (1_usize..8).prop_map(move |len| times.chunks(len).map(<[i64]>::to_vec).collect::<Vec<_>>())
    });
    let series = proptest::collection::btree_map(0_u8..40, chunks, 1..25);
    let stones = proptest::collection::vec((0_usize..25, -10..LENGTH, 0..LENGTH / 2), 0..4);
    // Starts half a block apart, so that blocks touch, overlap, or are alone.
    ((0_i64..4).prop_map(|start| start * LENGTH / 2), series, stones).prop_map(|(start, series, stones)| {
        let shift = |chunk: Vec<i64>| chunk.into_iter().map(|t| t + start).collect();
        let series = series.into_iter().map(|(id, chunks)| (id, chunks.into_iter().map(shift).collect())).collect();
        let stones = stones.into_iter().map(|(at, from, len)| (at, from + start, from + start + len)).collect();
        Content { start, series, stones }
    })
}

fn chunk(block: usize, number: u8, times: &[i64]) -> Chunk {
    let (mut appender, mut data) = (XorAppender::new(), Vec::new());
    times.iter().for_each(|&t| appender.append(&mut data, t, value(block, number, t)).unwrap());
    Chunk { min_time: times[0], max_time: times[times.len() - 1], encoding: Encoding::Xor, data: data.into() }
}

/// Writes the blocks to a disk and uploads them for tenant `a`; their names, ascending.
async fn publish(contents: &[Content], bucket: &MemBucket) -> Vec<Ulid> {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    let parent = Path::new("/blocks");
    disk.create_dir_all(parent).unwrap();
    let tenant_bucket = TenantBucket::new(Arc::new(bucket.clone()), tenant("a"));
    let mut ids = Vec::new();
    for (at, content) in contents.iter().enumerate() {
        let mut symbols = SymbolSet::default();
        content.series.keys().for_each(|&number| symbols.insert_labels(&labels(number)).unwrap());
        let new = NewBlock {
            ulid: Ulid::from_parts(1, at as u128),
            range: BlockRange { min: content.start, max: content.start + LENGTH },
            compaction: Compaction::default(),
            thanos: None,
        };
        // Small segments, so that there are several.
        let mut writer = BlockWriter::with_segment_len(disk.clone(), parent, new, symbols.sort(), 700).unwrap();
        for (&number, chunks) in &content.series {
            let chunks: Vec<Chunk> = chunks.iter().map(|times| chunk(at, number, times)).collect();
            writer.add_series(&labels(number), &chunks).unwrap();
        }
        let meta = writer.finish().unwrap().unwrap();
        let dir = parent.join(meta.ulid.to_string());
        upload_block(&disk, &Pool::inline(), &dir, &tenant_bucket, &meta, "test").await.unwrap();
        ids.push(meta.ulid);
    }
    ids
}

/// Puts tombstones beside the blocks, as a deletion would.
async fn delete(contents: &[Content], bench: &Bench, ids: &[Ulid]) {
    for (content, id) in contents.iter().zip(ids) {
        let key = format!("a/{id}/index");
        let index = bench.bucket.get(&key).await.unwrap().bytes;
        let refs = series_refs(&index);
        let mut tombstones = Tombstones::default();
        for &(at, min, max) in &content.stones {
            if let Some(&series) = refs.get(at) {
                tombstones.delete(series, QueryRange { min, max });
            }
        }
        let key = format!("a/{id}/tombstones");
        bench.bucket.put(&key, tombstones.encode().into(), Condition::None).await.unwrap();
    }
}

/// The postings of all series, which are the first list of an index.
fn series_refs(index: &[u8]) -> Vec<u32> {
    let toc = skald_tsdb::block::Toc::parse(index.len() as u64, index).unwrap();
    let bytes = bytes::Bytes::copy_from_slice(index);
    let ranges = skald_tsdb::block::HeaderRanges::of(&toc);
    let slice = |range: std::ops::Range<u64>| bytes.slice(range.start as usize..range.end as usize);
    let header =
        skald_tsdb::block::IndexHeader::parse(toc, &slice(ranges.symbols), &slice(ranges.postings_table)).unwrap();
    let range = header.postings_range("", "").unwrap().unwrap();
    let list = skald_tsdb::block::parse_postings(range.start, header.postings_end(), &index[range.start as usize..]);
    match list.unwrap() {
        skald_tsdb::block::Ranged::Complete(refs) => refs,
        skald_tsdb::block::Ranged::Short { .. } => panic!("the whole index is here"),
    }
}

type Shown = BTreeMap<Labels, BTreeSet<(i64, u64)>>;

/// What the blocks hold of `range` and is not deleted.
fn model(contents: &[Content], range: QueryRange, wanted: impl Fn(&Labels) -> bool) -> Shown {
    let mut shown = Shown::new();
    for (block, content) in contents.iter().enumerate() {
        for (at, (&number, chunks)) in content.series.iter().enumerate() {
            let labels = labels(number);
            let deleted = |t: i64| content.stones.iter().any(|&(of, min, max)| of == at && min <= t && t <= max);
            for &t in chunks.iter().flatten().filter(|&&t| range.contains(t) && !deleted(t)) {
                if wanted(&labels) {
                    shown.entry(labels.clone()).or_default().insert((t, value(block, number, t).to_bits()));
                }
            }
        }
    }
    shown
}

fn shown(series: &[SeriesChunks], range: QueryRange) -> Shown {
    let mut all = Shown::new();
    for series in series {
        assert!(series.chunks.is_sorted_by_key(|chunk| chunk.min_time));
        for chunk in &series.chunks {
            let mut columns = Columns::default();
            decode_floats(chunk, &mut columns);
            for (&t, v) in columns.float_timestamps.iter().zip(&columns.float_values) {
                if range.contains(t) && !series.deleted.iter().any(|deleted| deleted.contains(t)) {
                    all.entry(series.labels.clone()).or_default().insert((t, v.to_bits()));
                }
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn uploaded_blocks_are_served(
        contents in proptest::collection::vec(content(), 1..5),
        (from, len) in (-20..300_i64, 0..200_i64),
        group in "g[0-3]",
        tiny_caches: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut config = Config::default();
            if tiny_caches {
                config.chunks_cache_size = ByteSize::kib(1);
                config.index_cache_size = ByteSize::kib(1);
                config.partitioner_max_gap = ByteSize::bytes(0);
            }
            let bench = Bench::with(MemBucket::default(), MemDisk::default(), config);
            let ids = publish(&contents, &bench.bucket).await;
            delete(&contents, &bench, &ids).await;
            let ranged = QueryRange { min: from, max: from + len };
            for range in [QueryRange::ALL, ranged] {
                for matchers in [vec![], vec![matcher("zone", MatchOp::Equal, &group)], vec![matcher("id", MatchOp::NotRegex, ".*[02468]")]] {
                    let mut all = vec![matcher("__name__", MatchOp::Equal, "m")];
                    all.extend(matchers);
                    let wanted = |labels: &Labels| all.iter().all(|m| m.matches(labels.get(m.name()).unwrap_or_default()));
                    let request = SelectRequest::new(all.clone(), range);
                    let (series, served) = bench.select("a", &ids, request).await.unwrap();
                    assert_eq!(served, ids);
                    assert_eq!(shown(&series, range), model(&contents, range, wanted));
                }
            }
        });
    }
}
