//! What do appends cost the head and its log, and what does a series cost in memory?
//!
//! Series with 10 labels (about 270 label bytes) get one sample every 15 s, in requests of 1,000 series from one sender:
//! half counters with small steps, a quarter gauges with two decimals, a quarter constant. The log is on the real file
//! system, never synced. CPU is user and system time of this process, so a busy machine matters little.
//!
//! `cargo bench -p skald-tsdb --bench head -- [series] [rounds]` (default 100000 and 240)
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and /proc itself")]
#![expect(clippy::print_stdout, reason = "a bench prints")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use skald_model::{FloatSample, LabelBytes, Labels, Matcher, QueryRange};
use skald_tsdb::Alone;
use skald_tsdb::disk::RealDisk;
use skald_tsdb::head::{AppendLimits, ChunkFileOptions, ChunkFiles, Head, HeadOptions, ReplayHeads, SeriesAppend};
use skald_tsdb::wal::{Wal, WalOptions};

const REQUEST_SERIES: usize = 1000;
const STEP_MS: i64 = 15_000;

struct Series {
    labels: Vec<u8>,
    hash: u128,
}

fn make_series(i: usize) -> Series {
    let labels = Labels::from_pairs([
        ("__name__", format!("http_request_duration_seconds_bucket_{}", i % 200)),
        ("cluster", "production-eu-west-1".to_owned()),
        ("container", format!("container-{}", i / 200 % 10)),
        ("endpoint", "http-metrics".to_owned()),
        ("instance", format!("10.{}.{}.{}:9100", i / 2000 / 65536, i / 2000 / 256 % 256, i / 2000 % 256)),
        ("job", "kubernetes-service-endpoints".to_owned()),
        ("le", format!("{}", i % 200 % 12)),
        ("namespace", format!("namespace-{}", i / 2000 % 40)),
        ("pod", format!("application-server-{:x}-{:x}", i / 200 * 2_654_435_761 % 0xff_ffff, i / 200)),
        ("service", format!("application-service-{}", i / 200 % 500)),
    ]);
    let labels = LabelBytes::from_labels(&labels);
    Series { hash: LabelBytes::new_unchecked(&labels).hash(), labels }
}

/// Small, fixed-seed noise.
fn noise(i: usize, round: i64) -> u64 {
    let mut x = (i as u64) << 32 ^ round as u64 ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn next_value(i: usize, round: i64, before: f64) -> f64 {
    match i % 4 {
        0 | 1 => before + (noise(i, round) % 8) as f64,
        2 => ((noise(i, round) % 20_000) as f64 / 100.0).round() / 4.0,
        _ => 1.0,
    }
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn rss_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

/// Chunk files; those of an earlier process go.
fn open_chunk_files(dir: &Path) -> Arc<ChunkFiles> {
    let files = ChunkFiles::open(Arc::new(RealDisk), dir, ChunkFileOptions::default()).expect("a directory");
    files.upkeep();
    Arc::new(files)
}

fn append(head: &Head, wal: &Wal, series: &[Series], samples: &[FloatSample]) {
    for (series, samples) in series.chunks(REQUEST_SERIES).zip(samples.chunks(REQUEST_SERIES)) {
        let request = series.iter().zip(samples).map(|(series, sample)| SeriesAppend {
            labels: Some(LabelBytes::new_unchecked(&series.labels)),
            hash: series.hash,
            samples: std::slice::from_ref(sample),
            sample_starts: &[],
            histograms: &[],
            histogram_starts: &[],
            exemplars: &[],
        });
        let appended = head.append(wal, request, &AppendLimits::default()).expect("the disk has space");
        assert_eq!(appended.samples as usize, series.len());
    }
}

/// What a tenant costs that has hardly anything.
fn idle_heads(wal: &Wal, files: &Arc<ChunkFiles>, series: &[Series], samples: &[FloatSample]) {
    let rss = rss_bytes();
    let heads: Vec<Head> = (0..2000)
        .map(|_| {
            let head = wal.define_head(b"idle").expect("space");
            let head = Head::new(head, HeadOptions::default(), files.clone());
            append(&head, wal, series, samples);
            head
        })
        .collect();
    let bytes = (rss_bytes() - rss) as f64 / heads.len() as f64;
    println!("idle head       {bytes:8.0} bytes RSS, with 10 series");
    for head in heads {
        wal.drop_head(head.id()).expect("space");
    }
}

/// One more round whose requests take the series in no order: each is looked up in the table.
fn shuffled(head: &Head, wal: &Wal, series: &[Series], samples: &mut [FloatSample], round: i64) {
    let mut order: Vec<usize> = (0..series.len()).collect();
    order.sort_by_key(|i| noise(*i, -1));
    let later = samples.iter().map(|s| FloatSample { timestamp: round * STEP_MS + 20, value: s.value });
    let later: Vec<FloatSample> = later.collect();
    // A request's bytes lie together, whatever order its series are in.
    let series: Vec<Series> =
        order.iter().map(|i| Series { labels: series[*i].labels.clone(), hash: series[*i].hash }).collect();
    let of_requests: Vec<FloatSample> = order.iter().map(|i| later[*i]).collect();
    let start = cpu_seconds();
    append(head, wal, &series, &of_requests);
    let cpu = cpu_seconds() - start;
    samples.copy_from_slice(&later);
    println!("in no order     {:8.0} ns CPU per sample", cpu * 1e9 / series.len() as f64);
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let count: usize = arguments.next().unwrap_or(100_000);
    let rounds: i64 = arguments.next().unwrap_or(240) as i64;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (path, chunks_dir): (&Path, &Path) = (&dir.path().join("wal"), &dir.path().join("chunks"));
    let files = open_chunk_files(chunks_dir);
    let mut nothing =
        ReplayHeads::new(files.clone(), |id, _| Arc::new(Head::new(id, HeadOptions::default(), files.clone())));
    let (wal, _) =
        Wal::open(Arc::new(RealDisk), path, WalOptions::default(), &mut nothing, &Alone).expect("an empty directory");
    let head = wal.define_head(b"bench").expect("space");
    let head = Arc::new(Head::new(head, HeadOptions::default(), files.clone()));

    let series: Vec<Series> = (0..count).map(make_series).collect();
    let label_bytes: usize = series.iter().map(|series| series.labels.len()).sum();
    println!("{count} series, {} label bytes each, {rounds} rounds", label_bytes / count);
    let mut samples = vec![FloatSample { timestamp: 0, value: 0.0 }; count];
    idle_heads(&wal, &files, &series[..10], &samples[..10]);
    let rss_before = rss_bytes();

    let start = cpu_seconds();
    append(&head, &wal, &series, &samples);
    let created = cpu_seconds();
    println!("new series      {:8.2} us CPU each", (created - start) * 1e6 / count as f64);
    println!("after one round {:8.0} bytes RSS per series", (rss_bytes() - rss_before) as f64 / count as f64);

    let (mut cpu, mut wall) = (0.0, 0.0);
    for round in 1..rounds {
        for (i, sample) in samples.iter_mut().enumerate() {
            *sample = FloatSample {
                timestamp: round * STEP_MS + (i / 1000) as i64 % 15,
                value: next_value(i, round, sample.value),
            };
        }
        let (cpu_start, wall_start) = (cpu_seconds(), Instant::now());
        append(&head, &wal, &series, &samples);
        cpu += cpu_seconds() - cpu_start;
        wall += wall_start.elapsed().as_secs_f64();
    }
    let appended = (count as i64 * (rounds - 1)) as f64;
    println!("existing series {:8.0} ns CPU per sample ({:.0} ns wall)", cpu * 1e9 / appended, wall * 1e9 / appended);
    let stats = head.stats();
    println!("head            {:8.0} heap bytes per series", stats.heap_bytes as f64 / count as f64);
    println!("                {:8.0} bytes RSS per series", (rss_bytes() - rss_before) as f64 / count as f64);
    shuffled(&head, &wal, &series, &mut samples, rounds);
    println!("log             {:8.2} bytes per sample", wal.stats().bytes as f64 / (appended + count as f64));

    for (what, matchers) in [
        ("one metric", vec![Matcher::equal("__name__", "http_request_duration_seconds_bucket_7")]),
        ("all series", vec![]),
    ] {
        let (start, mut found, mut bytes) = (cpu_seconds(), 0, 0);
        let mut select = head.select(&matchers, QueryRange::ALL);
        let selected = cpu_seconds();
        while let Some(batch) = select.next_batch(512 << 10).expect("undamaged chunks") {
            found += batch.len();
            bytes += batch.iter().map(|series| series.heap_bytes()).sum::<usize>();
        }
        println!(
            "select {what}: {found} series, {bytes} bytes: {:.2} us CPU per series, of which {:.2} to find and sort",
            (cpu_seconds() - start) * 1e6 / found as f64,
            (selected - start) * 1e6 / found as f64
        );
    }

    let start = cpu_seconds();
    let cut = head.begin_cut(&wal, rounds * STEP_MS / 2).expect("space");
    let mut chunks = 0;
    for range in head.cut_ranges(cut) {
        head.cut_series(cut, range, |_, of_series| {
            chunks += of_series.len();
            Ok::<_, ()>(())
        })
        .map(|lost| assert_eq!(lost.chunks, 0))
        .expect("nothing fails");
    }
    let written = cpu_seconds();
    let dropped = head.finish_cut(&wal, cut).expect("space");
    println!(
        "cut of the older half: {chunks} chunks, {:.2} us CPU per series, and {:.2} us to drop ({dropped:?})",
        (written - start) * 1e6 / count as f64,
        (cpu_seconds() - written) * 1e6 / count as f64
    );

    drop((head, wal, files));
    let files = open_chunk_files(chunks_dir);
    let (start, wall) = (cpu_seconds(), Instant::now());
    let mut replay =
        ReplayHeads::new(files.clone(), |id, _| Arc::new(Head::new(id, HeadOptions::default(), files.clone())));
    let (_, report) =
        Wal::open(Arc::new(RealDisk), path, WalOptions::default(), &mut replay, &Alone).expect("a readable log");
    let (heads, _) = replay.finish(&Alone);
    println!(
        "replay of {} MiB: {:.2} s CPU, {:.2} s wall, {} heads",
        report.bytes >> 20,
        cpu_seconds() - start,
        wall.elapsed().as_secs_f64(),
        heads.len()
    );
}
