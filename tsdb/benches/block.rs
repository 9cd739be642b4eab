//! What does it cost to write a block, to open it, and to select from it?
//!
//! Data: 200,000 series of 8 labels with 2 chunks of 120 floats each: 20 metrics × 10,000 instances in 10 jobs. On the
//! file system behind the temporary directory. Prints ns/series (one round for writing, the best of 5 for reading) and
//! bytes of index per series. Run: `cargo bench -p skald-tsdb --bench block`.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "a bench prints")]
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use skald_model::{BlockRange, Labels, MatchOp, Matcher, QueryRange};
use skald_tsdb::block::{BlockWriter, Compaction, LocalBlock, NewBlock, SymbolSet};
use skald_tsdb::chunk::xor::XorAppender;
use skald_tsdb::chunk::{Chunk, Encoding};
use skald_tsdb::disk::{Disk, RealDisk};
use ulid::Ulid;

const INSTANCES: usize = 10_000;
const METRICS: usize = 20;
const ROUNDS: usize = 5;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let series = series();
    let chunks = [chunk(0), chunk(120 * 15_000)];

    let start = Instant::now();
    let mut symbols = SymbolSet::default();
    series.iter().for_each(|labels| symbols.insert_labels(labels).unwrap());
    let symbols = symbols.sort();
    report("collect symbols", start, series.len());

    let range = BlockRange { min: 0, max: 7_200_000 };
    let new = NewBlock { ulid: Ulid(1), range, compaction: Compaction::default(), thanos: None };
    let start = Instant::now();
    let mut writer = BlockWriter::create(disk.clone(), dir.path(), new, symbols).unwrap();
    series.iter().for_each(|labels| writer.add_series(labels, &chunks).unwrap());
    report("write series", start, series.len());
    let start = Instant::now();
    let meta = writer.finish().unwrap().unwrap();
    report("finish, with fsync", start, series.len());

    let path = dir.path().join(meta.ulid.to_string());
    let index_len = disk.open(&path.join("index")).unwrap().len().unwrap();
    let segment_len = disk.open(&path.join("chunks/000001")).unwrap().len().unwrap();
    println!("{:<40} {:>9.1} bytes/series", "index", index_len as f64 / series.len() as f64);
    println!("{:<40} {:>9.1} bytes/series", "chunks", segment_len as f64 / series.len() as f64);
    best("open", series.len(), || {
        LocalBlock::open(&*disk, &path).unwrap();
        series.len()
    });
    let block = Arc::new(LocalBlock::open(&*disk, &path).unwrap());
    println!(
        "{:<40} {:>9.1} bytes/series",
        "memory of its header",
        block.header().memory_bytes() as f64 / series.len() as f64
    );
    let regex = |name: &str, value: &str| Matcher::new(MatchOp::Regex, name, value).unwrap();
    for (what, matchers) in [
        ("select all", vec![]),
        ("select one metric", vec![Matcher::equal("__name__", "metric_07")]),
        (
            "select one metric, instances by regex",
            vec![Matcher::equal("__name__", "metric_07"), regex("instance", ".*[05]:9100")],
        ),
        (
            "select one metric of one instance",
            vec![Matcher::equal("__name__", "metric_07"), Matcher::equal("instance", "host-00042:9100")],
        ),
    ] {
        best(what, series.len(), || {
            let mut found = 0;
            for series in block.select(&matchers, QueryRange::ALL).unwrap() {
                black_box(series.unwrap());
                found += 1;
            }
            found
        });
    }
    best("labels of all", series.len(), || black_box(block.series(&[]).unwrap()).len());
}

fn series() -> Vec<Labels> {
    let mut series: Vec<Labels> = (0..INSTANCES * METRICS)
        .map(|i| {
            let instance = i % INSTANCES;
            Labels::from_pairs([
                ("__name__", format!("metric_{:02}", i / INSTANCES)),
                ("cluster", "production".to_owned()),
                ("instance", format!("host-{instance:05}:9100")),
                ("job", format!("job-{}", instance % 10)),
                ("namespace", format!("namespace-{}", instance % 40)),
                ("pod", format!("pod-{instance:05}-x7k2p")),
                ("region", format!("region-{}", instance % 3)),
                ("zone", format!("zone-{}", instance % 9)),
            ])
        })
        .collect();
    series.sort();
    series
}

fn chunk(start: i64) -> Chunk {
    let (mut appender, mut data) = (XorAppender::new(), Vec::new());
    for i in 0..120 {
        appender.append(&mut data, start + i * 15_000, (i * i % 97) as f64).unwrap();
    }
    Chunk { min_time: start, max_time: start + 119 * 15_000, encoding: Encoding::Xor, data: data.into() }
}

fn report(what: &str, start: Instant, series: usize) {
    println!("{what:<40} {:>9.1} ns/series", start.elapsed().as_nanos() as f64 / series as f64);
}

fn best(what: &str, total: usize, mut run: impl FnMut() -> usize) {
    let mut best = f64::INFINITY;
    let mut found = 0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        found = run();
        best = best.min(start.elapsed().as_nanos() as f64);
    }
    println!(
        "{what:<40} {:>9.1} ns/series found, {:.2} ms, {found} of {total}",
        best / found.max(1) as f64,
        best / 1e6
    );
}
