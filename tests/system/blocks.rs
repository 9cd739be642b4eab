//! Show 6: floats, stale markers and every histogram schema, in blocks as they are written and as merging makes them.
//! `promtool` accepts them (`list`, `analyze`, and `dump` of the floats, which is all it dumps), and Debian's Prometheus 2.42
//! and Skald show the same at every sample. Random queries over such blocks are in [`crate::differential`]. (Custom buckets
//! are newer than that Prometheus.)

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skald_model::{BlockRange, Histogram, HistogramValue, Labels, ResetHint, Span, stale_nan};
use skald_tsdb::block::{BlockMeta, BlockWriter, Compaction, LocalBlock, MergeBlocks, NewBlock, SymbolSet};
use skald_tsdb::chunk::Chunk;
use skald_tsdb::disk::{Disk, RealDisk};
use skald_tsdb::encode::ChunkEncoder;
use ulid::Ulid;

use crate::compare::same_data;
use crate::differential::Prometheus;
use crate::golden::copy_dir;
use crate::process::{Skald, answer_of, http_client, installed};

const BEGIN_MS: i64 = 1_699_999_200_000;
const BLOCK_MS: i64 = 7_200_000;
const SAMPLES: i64 = 160;
const INTERVAL_MS: i64 = 15_000;
const KINDS: [&str; 3] = ["float", "gauge", "integer"];
const FLOAT_KINDS: [&str; 3] = ["counter", "gauge", "odd"];

/// The samples of one series: they grow, get more buckets, begin again, end with a stale marker.
fn samples(schema: i32, kind: &str) -> impl Iterator<Item = (i64, HistogramValue)> {
    (0..SAMPLES).map(move |n| {
        let age = n % 90;
        let buckets = 1 + age as usize / 30;
        let mut histogram = Histogram {
            schema,
            zero_threshold: if n < 90 { 1e-128 } else { 0.001 },
            zero_count: age as u64,
            count: (age + buckets as i64 * (3 * age + 1) + 2 * age + 1) as u64,
            sum: age as f64 * 0.125 - 1.0,
            positive_spans: vec![Span { offset: -2, length: 1 }, Span { offset: 3, length: buckets as u32 - 1 }],
            positive_deltas: (0..buckets).map(|i| if i == 0 { 3 * age + 1 } else { 0 }).collect(),
            negative_spans: vec![Span { offset: 2, length: 1 }],
            negative_deltas: vec![2 * age + 1],
            ..Histogram::default()
        };
        histogram.positive_spans.retain(|span| span.length > 0);
        if n == SAMPLES - 1 {
            histogram = Histogram { sum: stale_nan(), ..Histogram::default() };
        }
        let value = match kind {
            "integer" => HistogramValue::Integer(histogram.into()),
            _ => {
                let mut float = histogram.to_float();
                if kind == "gauge" {
                    float.reset_hint = ResetHint::Gauge;
                }
                HistogramValue::Float(float.into())
            }
        };
        (BEGIN_MS + n * INTERVAL_MS, value)
    })
}

/// The samples of one series of floats: a counter that begins again, a gauge of all bits, or what is no number. Each goes away
/// for a while, as a stale marker says.
fn floats(kind: &str) -> impl Iterator<Item = (i64, f64)> {
    (0..SAMPLES).filter(|n| !(50..70).contains(n)).map(move |n| {
        let value = match kind {
            _ if n == 49 || n == SAMPLES - 1 => stale_nan(),
            "counter" => (n % 90 * 1000 + n % 7) as f64,
            "gauge" => (n as f64 * 0.7).sin() / 3.0,
            _ => [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -0.0, 1e-310][n as usize % 5],
        };
        (BEGIN_MS + n * INTERVAL_MS, value)
    })
}

/// Writes a block of all series but a part of each one's samples.
fn write(disk: &Arc<dyn Disk>, dir: &Path, number: u128, leave_out: impl Fn(i64) -> bool) -> Arc<LocalBlock> {
    let ulid = Ulid(number << 80 | number);
    let range = BlockRange { min: BEGIN_MS, max: BEGIN_MS + BLOCK_MS };
    let compaction = Compaction { level: 1, sources: vec![ulid], ..Compaction::default() };
    let mut series: BTreeMap<Labels, Vec<Chunk>> = BTreeMap::new();
    let wanted = |time: i64| !leave_out((time - BEGIN_MS) / INTERVAL_MS);
    for kind in FLOAT_KINDS {
        let mut encoder = ChunkEncoder::default();
        floats(kind).filter(|(time, _)| wanted(*time)).for_each(|(time, value)| encoder.push_float(time, value));
        series.insert(Labels::from_pairs([("__name__", "f"), ("kind", kind)]), encoder.finish());
    }
    for (schema, kind) in (-4..=8).flat_map(|schema| KINDS.map(|kind| (schema, kind))) {
        let mut encoder = ChunkEncoder::default();
        for (time, value) in samples(schema, kind).filter(|(time, _)| wanted(*time)) {
            encoder.push_histogram(time, &value).unwrap();
        }
        let labels = Labels::from_pairs([("__name__", "h"), ("kind", kind), ("schema", &schema.to_string())]);
        series.insert(labels, encoder.finish());
    }
    let mut symbols = SymbolSet::default();
    series.keys().for_each(|labels| symbols.insert_labels(labels).unwrap());
    let new = NewBlock { ulid, range, compaction, thanos: None };
    let mut writer = BlockWriter::create(disk.clone(), dir, new, symbols.sort()).unwrap();
    series.iter().for_each(|(labels, chunks)| writer.add_series(labels, chunks).unwrap());
    writer.finish().unwrap().expect("a block");
    Arc::new(LocalBlock::open(&**disk, &dir.join(ulid.to_string())).unwrap())
}

fn accepted_by_promtool(dir: &Path, blocks: &[BlockMeta]) {
    let run = |arguments: &[&str]| {
        let output = Command::new("promtool").args(arguments).output().expect("promtool runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    };
    let dir = dir.to_str().unwrap();
    let listed = run(&["tsdb", "list", dir]);
    for block in blocks {
        let (id, stats) = (block.ulid.to_string(), block.stats);
        let row = listed.lines().find(|line| line.starts_with(&id)).unwrap_or_else(|| panic!("{id}: {listed}"));
        let numbers: Vec<&str> = row.split_whitespace().skip(4).take(3).collect();
        assert_eq!(numbers, [stats.num_samples, stats.num_chunks, stats.num_series].map(|n| n.to_string()));
        let analysis = run(&["tsdb", "analyze", dir, &id]);
        assert!(analysis.contains(&format!("Series: {}\n", stats.num_series)), "{analysis}");
    }
    let dump = run(&["tsdb", "dump", "--match={__name__=\"f\"}", dir]);
    // One text for all that is not a number: a stale marker is shown as such.
    let row = |labels: &str, value: f64, time: i64| {
        format!("{labels} {:x} {time}", if value.is_nan() { 0 } else { value.to_bits() })
    };
    let parsed = |line: &str| {
        let mut fields = line.rsplitn(3, ' ');
        let time = fields.next()?.parse().ok()?;
        let value = fields.next()?.parse().ok()?;
        Some(row(fields.next()?, value, time))
    };
    let mut dumped: Vec<String> = dump.lines().map(|line| parsed(line).unwrap_or_else(|| panic!("{line}"))).collect();
    dumped.sort_unstable();
    let labels = |kind: &str| format!("{{__name__=\"f\", kind=\"{kind}\"}}");
    let rows = FLOAT_KINDS.iter().flat_map(|kind| floats(kind).map(|(time, value)| row(&labels(kind), value, time)));
    let mut expected: Vec<String> = rows.collect();
    expected.sort_unstable();
    assert_eq!(dumped, expected);
}

/// Compares what both show at every sample. (Rates of histograms are 3.x's own: they round and extrapolate otherwise.)
async fn compare(prometheus: &Prometheus, skald: &Skald) {
    let client = http_client();
    let mut compared = 0;
    for number in 0..SAMPLES {
        let time = ((BEGIN_MS + number * INTERVAL_MS) as f64 / 1000.0 + 0.001).to_string();
        for query in ["f", "f[1m]", "h", "histogram_count(h)"] {
            let params = [("query", query), ("time", time.as_str())];
            let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
            let old = answer_of(client.get(format!("{}/api/v1/query?{form}", prometheus.url))).await.unwrap().json();
            let new = skald.get("/prometheus/api/v1/query", &params).await.json();
            let path = "/api/v1/query";
            let all_there = query != "h" || old["data"]["result"].as_array().map_or(0, Vec::len) == 39;
            assert!(all_there || number == SAMPLES - 1, "{number}: {old}");
            assert!(same_data(query, path, &old["data"], &new["data"]), "{query} at {number}:\n{old}\n{new}");
            compared += old["data"]["result"].as_array().map_or(0, Vec::len);
        }
    }
    println!("{compared} series are shown alike");
    assert!(compared > 10_000, "{compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_accepts_our_blocks_and_shows_the_same() {
    if !installed("prometheus") || !installed("promtool") {
        return;
    }
    for merged in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let blocks = dir.path().join("data/blocks/anonymous");
        std::fs::create_dir_all(&blocks).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let metas = if merged {
            // Chunks that are identical, that overlap, and that one of them lacks.
            let replicas = [
                write(&disk, &blocks, 1, |n| n / 40 == 1),
                write(&disk, &blocks, 2, |n| (n / 10) % 7 == 5),
                write(&disk, &blocks, 3, |n| n / 40 == 1),
            ];
            let mut number = 10;
            let mut name = |_| {
                number += 1;
                Ulid(number << 80)
            };
            let merge = MergeBlocks { shards: 2, ..MergeBlocks::new(&replicas) };
            let metas = merge.write(&disk, &blocks, &mut name, &mut |_, _| ()).unwrap();
            replicas.iter().for_each(|replica| std::fs::remove_dir_all(replica.dir()).unwrap());
            metas
        } else {
            vec![write(&disk, &blocks, 1, |_| false).meta().clone()]
        };
        copy_dir(&blocks, &dir.path().join("prometheus"));
        std::fs::create_dir_all(dir.path().join("prometheus/wal")).unwrap();
        accepted_by_promtool(&dir.path().join("prometheus"), &metas);
        let prometheus = Prometheus::start(dir.path()).await;
        let flags = ["--blocks-storage.bucket-index.refresh-interval=200ms", "--compactor.cleanup-interval=1s"];
        let mut skald = Skald::start(dir.path(), &flags).await;
        let begun = Instant::now();
        let names: Value = json!(["f", "h"]);
        while skald.get("/prometheus/api/v1/label/__name__/values", &[]).await.json()["data"] != names {
            assert!(begun.elapsed() < Duration::from_secs(30), "the blocks are not found\n{}", skald.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        compare(&prometheus, &skald).await;
        skald.stop();
    }
}
