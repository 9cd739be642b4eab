//! Any bytes as the only segment or snapshot of a write-ahead log: it opens, what it holds can be read and added to, and
//! opening it again gives the same.

use std::path::Path;
use std::sync::Arc;

use skald_model::{
    Columns, Exemplar, FloatSample, Histogram, HistogramSample, HistogramValue, LabelBytes, Labels, MetricMetadata,
    MetricType, QueryRange, Span,
};
use skald_tsdb::decode::decode_series;
use skald_tsdb::disk::{Disk, MemDisk};
use skald_tsdb::head::{
    AppendLimits, ChunkFileOptions, ChunkFiles, Head, HeadOptions, HeadsSnapshot, MetadataLimits, ReplayHeads,
    SeriesAppend, SnapshotProgress,
};
use skald_tsdb::wal::{HeadId, HeadState, Wal, WalOptions};
use skald_tsdb::{Alone, SeriesChunks};

use crate::{choice, chosen, reseal};

const AS_IT_IS: u8 = 0;
const SEALED: u8 = 1;
const WAL: &str = "/wal";
const CHUNKS: &str = "/chunks";
const SEGMENT: &str = "/wal/0000000001.wal";
const SNAPSHOT: &str = "/wal/snapshot-0000000002";
const OPTIONS: HeadOptions = HeadOptions { block_range_ms: 1000 };

struct Opened {
    wal: Wal,
    heads: Vec<Arc<Head>>,
    files: Arc<ChunkFiles>,
    /// Whatever there was is there; what makes no sense cannot be had again when its segment goes.
    is_sound: bool,
}

fn open(disk: &MemDisk, compress: bool) -> Option<Opened> {
    let options = ChunkFileOptions { file_bytes: 1 << 12, batch_bytes: 300, memory_budget: 1 << 24 };
    let files = ChunkFiles::open(Arc::new(disk.clone()), Path::new(CHUNKS), options).expect("in memory");
    let files = Arc::new(files);
    let make = |id: HeadId, _: &HeadState| Arc::new(Head::new(id, OPTIONS, files.clone()));
    let mut replay = ReplayHeads::new(files.clone(), make);
    let options = WalOptions { segment_bytes: 1 << 20, compress };
    let (wal, report) = Wal::open(Arc::new(disk.clone()), Path::new(WAL), options, &mut replay, &Alone).ok()?;
    let (heads, lost) = replay.finish(&Alone);
    let is_sound = report.orphan_records == 0 && lost.is_empty();
    let heads = heads.into_values().collect();
    files.upkeep();
    Some(Opened { wal, heads, files, is_sound })
}

/// What a process leaves: a log of all kinds of records, a snapshot of the same, and the chunk files that it refers to.
struct Left {
    segment: Vec<u8>,
    snapshot: Vec<u8>,
    chunk_files: Vec<(String, Vec<u8>)>,
}

fn written(compress: bool) -> Left {
    let disk = MemDisk::default();
    let Opened { wal, files, .. } = open(&disk, compress).expect("an empty log");
    let id = wal.define_head(b"tenant").expect("in memory");
    let head = Arc::new(Head::new(id, OPTIONS, files.clone()));
    let histogram = |n: u64| Histogram {
        count: 2 * n,
        sum: n as f64,
        positive_spans: vec![Span { offset: 0, length: 2 }],
        positive_deltas: vec![n as i64, 0],
        ..Histogram::default()
    };
    for n in 0..9_i64 {
        let floats =
            [FloatSample { timestamp: 200 * n, value: n as f64 }, FloatSample { timestamp: 200 * n - 70, value: 0.1 }];
        let value = match n % 3 {
            0 => HistogramValue::Float(histogram(n as u64).to_float().into()),
            _ => HistogramValue::Integer(histogram(n as u64).into()),
        };
        let histograms = [HistogramSample { timestamp: 200 * n, value }];
        let exemplars = [Exemplar { labels: Labels::from_pairs([("trace_id", "x")]), value: 0.5, timestamp: 200 * n }];
        append(&head, &wal, "floats", &floats, &[], &exemplars);
        append(&head, &wal, "histograms", &[], &histograms, &[]);
        if n == 4 {
            append(&head, &wal, "once", &floats[..1], &[], &[]);
            let cut = wal.begin_cut(id, 500).expect("in memory");
            wal.finish_cut(id, skald_tsdb::wal::Cut { generation: cut, up_to: 500 }).expect("in memory");
        }
    }
    let metadata = MetricMetadata {
        metric: "floats".into(),
        metric_type: MetricType::Gauge,
        help: "help".into(),
        unit: "s".into(),
    };
    head.append_metadata(&wal, &[metadata], MetadataLimits::NONE).expect("in memory");
    let segment = disk.read(Path::new(SEGMENT)).expect("the first segment");
    let mut snapshot = HeadsSnapshot::begin(&wal, &files).expect("in memory");
    let mut progress = SnapshotProgress::default();
    while !head.write_snapshot(&wal, &mut snapshot, &mut progress, 1).expect("in memory") {}
    snapshot.finish(&wal).expect("in memory");
    let names = disk.list(Path::new(CHUNKS)).expect("in memory").into_iter().map(|entry| entry.name);
    let chunk_files = names.map(|name| (name.clone(), disk.read(&Path::new(CHUNKS).join(name)).expect("it is there")));
    let chunk_files = chunk_files.collect();
    Left { segment, snapshot: disk.read(Path::new(SNAPSHOT)).expect("the snapshot"), chunk_files }
}

fn append(
    head: &Arc<Head>,
    wal: &Wal,
    name: &str,
    samples: &[FloatSample],
    histograms: &[HistogramSample],
    exemplars: &[Exemplar],
) {
    let bytes = LabelBytes::from_labels(&Labels::from_pairs([("__name__", name), ("a", "b")]));
    let labels = LabelBytes::new_unchecked(&bytes);
    // Every other sample has a start timestamp.
    let starts: Vec<i64> = (0..samples.len().max(histograms.len()) as i64).map(|i| i % 2 * 7).collect();
    let (sample_starts, histogram_starts) = (&starts[..samples.len()], &starts[..histograms.len()]);
    let (labels, hash) = (Some(labels), labels.hash());
    let series = SeriesAppend { labels, hash, samples, sample_starts, histograms, histogram_starts, exemplars };
    let limits = AppendLimits { out_of_order_window_ms: 1500, ..AppendLimits::default() };
    head.append(wal, [series], &limits).expect("there is room");
}

/// A segment.
pub mod segment {
    use super::*;

    /// Plain and compressed.
    pub fn seeds() -> Vec<Vec<u8>> {
        let (plain, compressed) = (written(false).segment, written(true).segment);
        vec![chosen(AS_IT_IS, &compressed), chosen(SEALED, &plain), chosen(SEALED, &compressed)]
    }

    /// Replays the bytes.
    pub fn check(bytes: &[u8]) {
        check_file(bytes, SEGMENT, 1);
    }
}

/// A snapshot.
pub mod snapshot {
    use super::*;

    /// Plain and compressed.
    pub fn seeds() -> Vec<Vec<u8>> {
        let snapshot = written(true).snapshot;
        vec![chosen(AS_IT_IS, &snapshot), chosen(SEALED, &snapshot)]
    }

    /// Restores the bytes.
    pub fn check(bytes: &[u8]) {
        check_file(bytes, SNAPSHOT, 2 | 1 << 63);
    }
}

fn check_file(bytes: &[u8], path: &str, id: u64) {
    let (choice, bytes) = choice(bytes);
    let mut bytes = bytes.to_vec();
    if choice != AS_IT_IS {
        reseal::frames(&mut bytes, id);
    }
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new(WAL)).expect("in memory");
    disk.create(Path::new(path)).and_then(|file| file.append(&bytes)).expect("in memory");
    thread_local!(static CHUNK_FILES: Vec<(String, Vec<u8>)> = written(true).chunk_files);
    if path == SNAPSHOT {
        disk.create_dir_all(Path::new(CHUNKS)).expect("in memory");
        CHUNK_FILES.with(|files| {
            for (name, bytes) in files {
                disk.create(&Path::new(CHUNKS).join(name)).and_then(|file| file.append(bytes)).expect("in memory");
            }
        });
    }
    let Some(first) = open(&disk, true) else { return };
    let before: Vec<_> = first.heads.iter().map(contents).collect();
    let is_sound = first.is_sound;
    drop(first);
    let Some(second) = open(&disk, true) else { return };
    let again: Vec<_> = second.heads.iter().map(contents).collect();
    // A log whose checksums were put right may say of itself that it is not needed any more.
    assert!(choice != AS_IT_IS || !is_sound || before == again, "{before:?}\n{again:?}");
    for head in &second.heads {
        let newest = head.max_time().unwrap_or(0);
        let timestamp = newest.saturating_add(1);
        append(head, &second.wal, "floats", &[FloatSample { timestamp, value: 1.5 }], &[], &[]);
        contents(head);
    }
}

/// Everything a head holds.
fn contents(head: &Arc<Head>) -> Vec<SeriesChunks> {
    let mut select = head.select(&[], QueryRange::ALL);
    let mut all = Vec::new();
    while let Ok(Some(batch)) = select.next_batch(1 << 16) {
        all.extend(batch);
    }
    assert!(all.is_sorted_by(|a, b| a.labels < b.labels));
    let mut columns = Columns::default();
    for series in &all {
        let _ = decode_series(&series.chunks, QueryRange::ALL, &mut columns);
    }
    head.exemplars(&[], QueryRange::ALL);
    head.metadata(None);
    head.label_names(&[]);
    head.stats();
    all
}
