//! Blocks written by Prometheus 2.42, served sample by sample.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use skald_model::{Columns, HistogramSample, HistogramValue, Labels, ResetHint, Span};
use skald_tsdb::block::BlockMeta;
use skald_tsdb::chunk::histogram;
use skald_tsdb::disk::{Disk, RealDisk};

use super::*;
use crate::bucket::tests::{directory, open_bucket, start_s3};
use crate::bucket::upload::upload_block;
use crate::bucket::{BucketIndex, TenantBucket};
use crate::compactor::update_bucket_index;

/// One line of `float-series.jsonl.gz` or `histogram-series.jsonl.gz`.
#[derive(Deserialize)]
struct Expected {
    metric: BTreeMap<String, String>,
    samples: usize,
    first_ms: i64,
    last_ms: i64,
    sha256: String,
}

fn expected(path: &Path) -> BTreeMap<Labels, Expected> {
    let mut text = String::new();
    GzDecoder::new(&RealDisk.read(path).unwrap()[..]).read_to_string(&mut text).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Expected>(line).unwrap());
    lines.map(|line| (Labels::from_pairs(&line.metric), line)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The hash the golden set's README describes: time and value bits, every NaN alike.
fn float_hash(columns: &Columns) -> String {
    let mut bytes = Vec::new();
    for (t, v) in columns.float_timestamps.iter().zip(&columns.float_values) {
        bytes.extend_from_slice(&t.to_le_bytes());
        let bits = if v.is_nan() { 0x7FF8_0000_0000_0001 } else { v.to_bits() };
        bytes.extend_from_slice(&bits.to_le_bytes());
    }
    hex(&Sha256::digest(&bytes))
}

/// Serves a golden set through index and gateway; its series.
async fn serve(set: &str) -> Option<(std::path::PathBuf, Vec<SeriesChunks>)> {
    let dir = golden_set(set)?;
    let bench = Bench::new();
    let ids = bench.put_golden(&dir, "golden").await;
    let bucket = TenantBucket::new(Arc::new(bench.bucket.clone()), tenant("golden"));
    update_bucket_index(&bucket, 1_717_400_000_000, 4).await.unwrap();
    let (index, _) = BucketIndex::fetch(&bucket).await.unwrap().unwrap();
    let listed: Vec<Ulid> = index.blocks.iter().map(|block| block.block_id).collect();
    assert_eq!(listed, ids);
    let (series, served) = bench.select("golden", &listed, everything()).await.unwrap();
    assert_eq!(served, listed);
    Some((dir, series))
}

async fn floats_agree(set: &str) {
    let Some((dir, series)) = serve(set).await else { return };
    let mut expected = expected(&dir.join("float-series.jsonl.gz"));
    assert!(!expected.is_empty());
    for series in &series {
        let columns = samples(series, decode_floats);
        if columns.float_timestamps.is_empty() {
            continue;
        }
        let expected = expected.remove(&series.labels).unwrap_or_else(|| panic!("{} is not expected", series.labels));
        assert_eq!(columns.float_timestamps.len(), expected.samples, "{}", series.labels);
        assert_eq!(columns.float_timestamps.first(), Some(&expected.first_ms), "{}", series.labels);
        assert_eq!(columns.float_timestamps.last(), Some(&expected.last_ms), "{}", series.labels);
        assert_eq!(float_hash(&columns), expected.sha256, "{}", series.labels);
    }
    assert!(expected.is_empty(), "missing: {:?}", expected.keys().collect::<Vec<_>>());
}

#[tokio::test]
async fn floats_of_backfilled_blocks_agree() {
    floats_agree("blocks-backfill").await;
}

#[tokio::test]
async fn floats_of_head_blocks_agree() {
    floats_agree("blocks-head").await;
}

/// A number as the golden set writes it: shortest form, whole ones without a point.
fn number(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Absolute, non-empty buckets by index.
fn buckets(spans: &[Span], counts: impl Iterator<Item = f64>) -> String {
    let mut next = 0;
    let indexes = spans.iter().flat_map(|span| {
        let first = next + span.offset;
        next = first + span.length as i32;
        first..next
    });
    let texts = indexes.zip(counts).filter(|(_, n)| *n != 0.0).map(|(i, n)| format!("{i}:{}", number(n)));
    texts.collect::<Vec<_>>().join(",")
}

/// The text form the golden set's README describes.
fn text(sample: &HistogramSample) -> String {
    let absolute = |deltas: &[i64]| {
        let counts = deltas.iter().scan(0, |count, delta| {
            *count += delta;
            Some(*count as f64)
        });
        counts.collect::<Vec<_>>().into_iter()
    };
    let (kind, schema, zero_threshold, count, zero_count, sum, hint, positive, negative) = match &sample.value {
        HistogramValue::Integer(h) => (
            'i',
            h.schema,
            h.zero_threshold,
            h.count as f64,
            h.zero_count as f64,
            h.sum,
            h.reset_hint,
            buckets(&h.positive_spans, absolute(&h.positive_deltas)),
            buckets(&h.negative_spans, absolute(&h.negative_deltas)),
        ),
        HistogramValue::Float(h) => (
            'f',
            h.schema,
            h.zero_threshold,
            h.count,
            h.zero_count,
            h.sum,
            h.reset_hint,
            buckets(&h.positive_spans, h.positive_buckets.iter().copied()),
            buckets(&h.negative_spans, h.negative_buckets.iter().copied()),
        ),
    };
    format!(
        "{} {kind} s{schema} z{} c{} zc{} S{:016x} p{positive} n{negative}{}",
        sample.timestamp,
        number(zero_threshold),
        number(count),
        number(zero_count),
        sum.to_bits(),
        if hint == ResetHint::Gauge { " gauge" } else { "" },
    )
}

#[tokio::test]
async fn histograms_of_head_blocks_agree() {
    let Some((dir, series)) = serve("blocks-head").await else { return };
    let mut expected = expected(&dir.join("histogram-series.jsonl.gz"));
    assert!(!expected.is_empty());
    for series in &series {
        let mut samples = BTreeMap::new();
        for chunk in series.chunks.iter().filter(|chunk| chunk.encoding != Encoding::Xor) {
            let mut decoded = Vec::new();
            histogram::decode_samples(chunk.encoding, &chunk.data, QueryRange::ALL, &mut decoded).unwrap();
            for sample in decoded {
                samples.entry(sample.timestamp).or_insert(sample);
            }
        }
        samples.retain(|&t, _| !series.deleted.iter().any(|range| range.contains(t)));
        if samples.is_empty() {
            continue;
        }
        let expected = expected.remove(&series.labels).unwrap_or_else(|| panic!("{} is not expected", series.labels));
        assert_eq!(samples.len(), expected.samples, "{}", series.labels);
        assert_eq!(samples.keys().next(), Some(&expected.first_ms), "{}", series.labels);
        assert_eq!(samples.keys().next_back(), Some(&expected.last_ms), "{}", series.labels);
        let texts: Vec<String> = samples.values().map(text).collect();
        assert_eq!(hex(&Sha256::digest(texts.join("\n"))), expected.sha256, "{}: {}", series.labels, texts[0]);
    }
    assert!(expected.is_empty(), "missing: {:?}", expected.keys().collect::<Vec<_>>());
}

/// The same from real stores: uploaded, indexed, served.
async fn served_from(config: &crate::bucket::Config) {
    let Some(dir) = golden_set("blocks-head") else { return };
    let Some((_, expected)) = serve("blocks-head").await else { return };
    let shared: Arc<dyn Bucket> = Arc::new(open_bucket(config));
    let bench = Bench::over(shared.clone(), MemBucket::default(), MemDisk::default(), Config::default());
    let bucket = TenantBucket::new(shared, tenant("team-a"));
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    for block in disk.list(&dir.join("blocks")).unwrap() {
        let block = dir.join("blocks").join(block.name);
        let meta = BlockMeta::parse(&disk.read(&block.join("meta.json")).unwrap()).unwrap();
        upload_block(&disk, &Pool::inline(), &block, &bucket, &meta, "ingester").await.unwrap();
    }
    let update = update_bucket_index(&bucket, 1_717_400_000_000, 4).await.unwrap();
    assert_eq!((update.index.blocks.len(), update.partial.len(), update.damaged.len()), (5, 0, 0));
    let listed: Vec<Ulid> = update.index.blocks.iter().map(|block| block.block_id).collect();
    let (series, served) = bench.select("team-a", &listed, everything()).await.unwrap();
    assert_eq!(served, listed);
    assert_eq!(series, expected);
}

#[tokio::test]
async fn a_directory_serves_the_same() {
    let dir = tempfile::tempdir().unwrap();
    served_from(&directory(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_serves_the_same() {
    let s3 = start_s3().await;
    served_from(&s3.config).await;
}
