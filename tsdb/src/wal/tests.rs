//! The log under crashes, damage and a full disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use skald_model::{
    Exemplar, FloatHistogram, Histogram, HistogramValue, LabelBytes, Labels, MetricMetadata, MetricType, Span,
};

use super::commit::segment_name;
use super::*;
use crate::disk::{Disk, MemDisk, RealDisk};
use crate::{Alone, Workers};

const DIR: &str = "/wal";

/// Everything a replay saw, as text, plus the heads' last states.
#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    heads: BTreeMap<HeadId, (HeadState, Cut)>,
    defined: BTreeMap<(HeadId, u32), String>,
}

impl Replay for Seen {
    fn segment(&mut self, _: SegmentId) {
        self.defined.clear();
    }

    fn stretch(&mut self, replayed: Vec<Replayed<'_>>, _: &dyn Workers) -> Missed {
        let one = |one: Replayed<'_>| match one {
            Replayed::Head { head, state, done } => {
                self.heads.insert(head, (state, done));
                0
            }
            Replayed::Restored { .. } | Replayed::Dropped { .. } => 0,
            Replayed::Record { head, record, .. } => self.record(head, record),
        };
        let mut missed = Missed::default();
        missed.undefined(HeadId(0), Held { samples: replayed.into_iter().map(one).sum(), ..Held::NOTHING });
        missed
    }
}

impl Seen {
    fn record(&mut self, head: HeadId, record: Record<'_>) -> u64 {
        let mut undefined = 0;
        let mut name = |r: u32, defined: &BTreeMap<(HeadId, u32), String>| match defined.get(&(head, r)) {
            Some(labels) => labels.clone(),
            None => {
                undefined += 1;
                format!("?{r}")
            }
        };
        match record {
            Record::Series(series) => {
                for (r, labels) in series {
                    self.defined.insert((head, r), labels.to_labels().to_string());
                }
            }
            Record::Floats { samples, .. } => {
                for s in samples {
                    let series = name(s.series_ref, &self.defined);
                    let since = since(s.start);
                    self.lines.push(format!("{} {series} {} {:x}{since}", head.0, s.timestamp, s.value.to_bits()));
                }
            }
            Record::Histograms { samples, .. } => {
                for (r, sample, start) in samples {
                    let series = name(r, &self.defined);
                    self.lines.push(format!("{} {series} {sample:?}{}", head.0, since(start)));
                }
            }
            Record::Exemplars(exemplars) => {
                for (r, exemplar) in exemplars {
                    let series = name(r, &self.defined);
                    self.lines.push(format!("{} {series} {exemplar:?}", head.0));
                }
            }
            Record::Metadata(all) => {
                for metadata in all {
                    self.lines.push(format!("{} {metadata:?}", head.0));
                }
            }
            Record::CutBegun(cut) => self.lines.push(format!("{} begun {cut:?}", head.0)),
            Record::CutDone(cut) => self.lines.push(format!("{} done {cut:?}", head.0)),
        }
        undefined
    }
}

fn since(start: i64) -> String {
    if start == 0 { String::new() } else { format!(" since {start}") }
}

fn open(disk: &MemDisk, options: WalOptions) -> (Wal, Seen, RecoveryReport) {
    let mut seen = Seen::default();
    let (wal, report) = Wal::open(Arc::new(disk.clone()), Path::new(DIR), options, &mut seen, &Alone).unwrap();
    (wal, seen, report)
}

fn labels(i: u32) -> Vec<u8> {
    LabelBytes::from_labels(&Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())]))
}

/// Commits one float per series, defining each series; returns the lines a replay must show.
fn commit_floats(wal: &Wal, head: HeadId, series: std::ops::Range<u32>, t: i64) -> Result<Vec<String>, WalError> {
    let mut batch = WalBatch::default();
    loop {
        let mut lines = Vec::new();
        let generation = wal.state.lock().ledger.generation(head);
        wal.begin(&mut batch, head, generation);
        for i in series.clone() {
            let labels = labels(i);
            let labels = LabelBytes::new_unchecked(&labels);
            batch.series(i, labels);
            let value = f64::from(i) * 1.5;
            batch.float(i, t, value);
            lines.push(format!("{} {} {t} {:x}", head.0, labels.to_labels(), value.to_bits()));
        }
        match wal.commit(&mut batch) {
            Ok(_) => return Ok(lines),
            Err(CommitError::Rotated) => {}
            Err(CommitError::Wal(error)) => return Err(error),
        }
    }
}

fn segments(disk: &MemDisk) -> Vec<String> {
    crate::disk::Disk::list(disk, Path::new(DIR)).unwrap().into_iter().map(|e| e.name).collect()
}

fn file(disk: &MemDisk, name: &str) -> Vec<u8> {
    crate::disk::Disk::read(disk, &Path::new(DIR).join(name)).unwrap()
}

fn put_file(disk: &MemDisk, name: &str, bytes: &[u8]) {
    use crate::disk::Disk;
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.create(&Path::new(DIR).join(name)).unwrap().append(bytes).unwrap();
}

#[test]
fn every_kind_of_record_round_trips() {
    let disk = MemDisk::default();
    let (wal, ..) = open(&disk, WalOptions::default());
    let head = wal.define_head(b"tenant").unwrap();
    let mut batch = WalBatch::default();
    wal.begin(&mut batch, head, Generation(0));
    batch.series(7, LabelBytes::new_unchecked(&labels(7)));
    let integer = HistogramValue::Integer(Arc::new(Histogram {
        schema: 3,
        count: 9,
        sum: -0.0,
        positive_spans: vec![Span { offset: -2, length: 2 }],
        positive_deltas: vec![5, -1],
        reset_hint: skald_model::ResetHint::Gauge,
        ..Histogram::default()
    }));
    let float = HistogramValue::Float(Arc::new(FloatHistogram {
        schema: -53,
        count: 2.5,
        negative_spans: vec![Span { offset: 0, length: 1 }],
        negative_buckets: vec![2.5],
        custom_values: Arc::from([0.5, 1.0]),
        ..FloatHistogram::default()
    }));
    batch.histogram(7, 1000, &integer, 0);
    batch.histogram(7, 2000, &float, 0);
    let exemplar = Exemplar { labels: Labels::from_pairs([("trace_id", "x")]), value: 1.25, timestamp: -5 };
    batch.exemplar(7, &exemplar);
    let metadata = MetricMetadata {
        metric: "m".into(),
        metric_type: MetricType::Counter,
        help: "help".repeat(100),
        unit: String::new(),
    };
    batch.metadata(&metadata);
    let values =
        [0.0, -0.0, 1.0, f64::MIN_POSITIVE, f64::from_bits(1), skald_model::stale_nan(), f64::NAN, f64::INFINITY, 0.1];
    for (i, value) in values.iter().enumerate() {
        batch.float(7, i64::MIN + i as i64 * 1_000_000, *value);
    }
    wal.commit(&mut batch).unwrap();
    let (_, seen, report) = open(&disk, WalOptions::default());
    let series = r#"{__name__="m", i="7"}"#;
    let mut expected = vec![
        format!("1 {series} {:?}", skald_model::HistogramSample { timestamp: 1000, value: integer }),
        format!("1 {series} {:?}", skald_model::HistogramSample { timestamp: 2000, value: float }),
        format!("1 {series} {exemplar:?}"),
        format!("1 {metadata:?}"),
    ];
    for (i, value) in values.iter().enumerate() {
        expected.push(format!("1 {series} {} {:x}", i64::MIN + i as i64 * 1_000_000, value.to_bits()));
    }
    assert_eq!(seen.lines, expected);
    assert_eq!(seen.heads[&HeadId(1)].0.definition, b"tenant");
    assert!(!report.lost_something() && report.torn_tails.is_empty(), "{report:?}");
}

/// A segment of format version 1 as it was written on the day the format was fixed. Never write it anew: a change that
/// makes this test fail needs another version number.
const VERSION_1: &[u8] = include_bytes!("testdata/version1.wal");

/// The same of version 2.
const VERSION_2: &[u8] = include_bytes!("testdata/version2.wal");

/// The same of version 3, and samples with start timestamps.
const VERSION_3: &[u8] = include_bytes!("testdata/version3.wal");

/// What the file of version 3 holds, and how it came to be.
fn write_sample_with_starts(disk: &MemDisk) -> Vec<String> {
    let (wal, mut lines) = write_sample(disk);
    let head = HeadId(1);
    let mut batch = WalBatch::default();
    wal.begin(&mut batch, head, Generation(1));
    let value = HistogramValue::Float(Arc::new(FloatHistogram { count: 1.5, ..FloatHistogram::default() }));
    batch.histogram(3, 1_700_000_030_000, &value, 0);
    batch.histogram(3, 1_700_000_045_000, &value, 1_700_000_000_000);
    batch.histogram(3, 1_700_000_060_000, &value, 0);
    batch.float(1, 1_700_000_030_000, 1.0);
    batch.start_next_float(1_700_000_045_000, 1_700_000_030_000);
    batch.float(1, 1_700_000_045_000, 2.0);
    batch.start_next_float(1_700_000_045_000, 1_700_000_030_000);
    batch.float(2, 1_700_000_045_000, 2.0);
    batch.float(3, 1_700_000_075_000, 1.0);
    batch.start_next_float(1_700_000_090_000, 5);
    batch.float(3, 1_700_000_090_000, 1.0);
    wal.commit(&mut batch).unwrap();
    let series = |i: u32| format!(r#"1 {{__name__="m", i="{i}"}}"#);
    for (seconds, since) in [(30, ""), (45, " since 1700000000000"), (60, "")] {
        let sample =
            skald_model::HistogramSample { timestamp: 1_700_000_000_000 + seconds * 1000, value: value.clone() };
        lines.push(format!("{} {sample:?}{since}", series(3)));
    }
    for (i, seconds, value, since) in [
        (1, 30, 1.0, ""),
        (1, 45, 2.0, " since 1700000030000"),
        (2, 45, 2.0, " since 1700000030000"),
        (3, 75, 1.0, ""),
        (3, 90, 1.0, " since 5"),
    ] {
        let bits = f64::to_bits(value);
        lines.push(format!("{} {} {bits:x}{since}", series(i), 1_700_000_000_000_i64 + seconds * 1000));
    }
    lines
}

/// What the files of the first versions hold, and how they came to be.
fn write_sample(disk: &MemDisk) -> (Wal, Vec<String>) {
    let (wal, ..) = open(disk, WalOptions::default());
    let head = wal.define_head(b"tenant").unwrap();
    let mut lines = commit_floats(&wal, head, 0..40, 1_700_000_000_000).unwrap();
    let generation = wal.begin_cut(head, 1_700_000_000_001).unwrap();
    lines.push(format!("1 begun {:?}", Cut { generation, up_to: 1_700_000_000_001 }));
    let mut batch = WalBatch::default();
    wal.begin(&mut batch, head, generation);
    let value = HistogramValue::Integer(Arc::new(Histogram {
        count: 3,
        positive_spans: vec![Span { offset: 1, length: 2 }],
        positive_deltas: vec![1, 1],
        ..Histogram::default()
    }));
    batch.histogram(3, 1_700_000_015_000, &value, 0);
    let exemplar = Exemplar { labels: Labels::from_pairs([("a", "b")]), value: 0.5, timestamp: 7 };
    batch.exemplar(3, &exemplar);
    wal.commit(&mut batch).unwrap();
    let series = r#"{__name__="m", i="3"}"#;
    let sample = skald_model::HistogramSample { timestamp: 1_700_000_015_000, value };
    lines.push(format!("1 {series} {sample:?}"));
    lines.push(format!("1 {series} {exemplar:?}"));
    (wal, lines)
}

#[test]
fn earlier_versions_are_still_read() {
    let disk = MemDisk::default();
    let lines = write_sample_with_starts(&disk);
    if let Ok(path) = std::env::var("SKALD_WRITE_WAL") {
        RealDisk.write_atomically(Path::new(&path), &file(&disk, &segment_name(SegmentId(1)))).unwrap();
    }
    let earlier = write_sample(&MemDisk::default()).1;
    for (version, lines) in [(VERSION_1, &earlier), (VERSION_2, &earlier), (VERSION_3, &lines)] {
        let disk = MemDisk::default();
        put_file(&disk, &segment_name(SegmentId(1)), version);
        let (_, seen, report) = open(&disk, WalOptions::default());
        assert!(!report.lost_something() && report.torn_tails.is_empty(), "{report:?}");
        assert_eq!(&seen.lines, lines);
    }
}

#[test]
fn a_damaged_record_is_reported_by_series_samples_and_time() {
    let disk = MemDisk::default();
    let (wal, ..) = open(&disk, WalOptions::default());
    let head = wal.define_head(b"t").unwrap();
    commit_floats(&wal, head, 0..3, 100).unwrap();
    let before = file(&disk, &segment_name(SegmentId(1))).len();
    let mut batch = WalBatch::default();
    wal.begin(&mut batch, head, Generation(0));
    // Series 1 comes twice, with another between.
    for (series, t) in [(0, 200), (0, 150), (1, 210), (2, 190), (1, 220)] {
        batch.float(series, t, 0.5);
    }
    wal.commit(&mut batch).unwrap();
    commit_floats(&wal, head, 0..3, 300).unwrap();
    let mut bytes = file(&disk, &segment_name(SegmentId(1)));
    bytes[before + 60] ^= 1;
    put_file(&disk, &segment_name(SegmentId(1)), &bytes);
    let (_, seen, report) = open(&disk, WalOptions::default());
    assert_eq!(seen.lines.len(), 6);
    let [loss] = &report.losses()[..] else { panic!("{report:?}") };
    assert_eq!(loss.part, LostPart::Record { segment: SegmentId(1), offset: before as u64 });
    assert_eq!((loss.head, loss.series, loss.samples), (Some(head), Some(4), Some(5)), "at most four series");
    assert_eq!(loss.times, Some(skald_model::QueryRange { min: 150, max: 220 }));
    assert!(loss.may_hold(head, 150) && !loss.may_hold(head, 149) && !loss.may_hold(HeadId(9), 150));
}

proptest! {
    #[test]
    fn floats_round_trip(
        samples in proptest::collection::vec((any::<u32>(), any::<i64>(), any::<u64>(), 0..3_i64, any::<i64>()), 0..200),
        with_starts: bool,
    ) {
        let disk = MemDisk::default();
        let (wal, ..) = open(&disk, WalOptions::default());
        let head = wal.define_head(b"").unwrap();
        let mut batch = WalBatch::default();
        wal.begin(&mut batch, head, Generation(0));
        let start = |kind: i64, own: i64| match kind {
            0 if with_starts => own,
            1 if with_starts => 77,
            _ => 0,
        };
        for (r, t, v, kind, own) in &samples {
            match start(*kind, *own) {
                0 => {}
                start => batch.start_next_float(*t, start),
            }
            batch.float(*r, *t, f64::from_bits(*v));
        }
        wal.commit(&mut batch).unwrap();
        let (_, seen, report) = open(&disk, WalOptions::default());
        let expected: Vec<String> = samples
            .iter()
            .map(|(r, t, v, kind, own)| format!("1 ?{r} {t} {v:x}{}", since(start(*kind, *own))))
            .collect();
        prop_assert_eq!(seen.lines, expected);
        prop_assert_eq!(report.undefined_samples, samples.len() as u64);
    }

    #[test]
    fn arbitrary_files_never_panic(bytes: Vec<u8>, good_start: bool) {
        let disk = MemDisk::default();
        let mut file = if good_start { frame::segment_header(SegmentId(1)).to_vec() } else { Vec::new() };
        file.extend_from_slice(&bytes);
        put_file(&disk, &segment_name(SegmentId(1)), &file);
        open(&disk, WalOptions::default());
    }

    #[test]
    fn arbitrary_payloads_never_panic(payload: Vec<u8>) {
        for kind in [
            FrameKind::Head, FrameKind::CutBegun, FrameKind::CutDone, FrameKind::Series, FrameKind::Floats,
            FrameKind::Histograms, FrameKind::Exemplars, FrameKind::Metadata, FrameKind::StartedFloats,
            FrameKind::StartedHistograms,
        ] {
            if let Some(record) = Record::parse(kind, &payload) {
                Seen::default().record(HeadId(1), record);
            }
            let _ = HeadState::parse(&payload);
        }
    }
}

/// A log of five commits, and after each the file's length and the lines it holds.
fn five_commits(disk: &MemDisk) -> Vec<(usize, Vec<String>)> {
    let (wal, ..) = open(disk, WalOptions::default());
    let head = wal.define_head(b"t").unwrap();
    let name = segment_name(SegmentId(1));
    let mut lines = Vec::new();
    let mut states = vec![(file(disk, &name).len(), Vec::new())];
    for i in 0..5 {
        lines.extend(commit_floats(&wal, head, i * 3..i * 3 + 3, i64::from(i)).unwrap());
        states.push((file(disk, &name).len(), lines.clone()));
    }
    states
}

#[test]
fn a_tail_torn_at_any_byte_keeps_every_whole_commit() {
    let disk = MemDisk::default();
    let states = five_commits(&disk);
    let name = segment_name(SegmentId(1));
    let whole = file(&disk, &name);
    for cut in 0..whole.len() {
        let disk = MemDisk::default();
        put_file(&disk, &name, &whole[..cut]);
        let (wal, seen, report) = open(&disk, WalOptions::default());
        let expected = states.iter().rev().find(|(len, _)| *len <= cut).map_or(&[][..], |(_, lines)| lines);
        assert_eq!(&seen.lines[..expected.len()], expected, "cut at {cut}");
        assert!(!report.lost_something(), "cut at {cut}: {report:?}");
        // The log goes on, and the torn end is not met again.
        let head = wal.define_head(b"u").unwrap();
        let more = commit_floats(&wal, head, 90..92, 9).unwrap();
        let (_, again, report) = open(&disk, WalOptions::default());
        assert!(report.torn_tails.len() <= 1 && report.torn_tails.iter().all(|t| t.offset == 0), "{report:?}");
        assert_eq!(again.lines.len(), seen.lines.len() + more.len());
    }
}

#[test]
fn a_flipped_bit_costs_one_record() {
    let disk = MemDisk::default();
    let states = five_commits(&disk);
    let name = segment_name(SegmentId(1));
    let whole = file(&disk, &name);
    let all = &states[5].1;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let disk = MemDisk::default();
        put_file(&disk, &name, &damaged);
        let (_, seen, report) = open(&disk, WalOptions::default());
        let kept = seen.lines.iter().filter(|line| all.contains(line)).count();
        // A definition record stands for three series of one commit, a sample record for three samples.
        assert!(kept >= all.len() - 3 || report.orphan_records > 0, "flip at {at}: {:?}", seen.lines);
        assert!(report.damaged_bytes > 0 || !report.torn_tails.is_empty(), "flip at {at} went unnoticed");
        let undefined = seen.lines.iter().filter(|line| line.contains('?')).count();
        assert_eq!(report.undefined_samples, undefined as u64);
    }
}

#[test]
fn zeroes_in_the_middle_and_at_the_end_are_skipped() {
    let disk = MemDisk::default();
    let states = five_commits(&disk);
    let name = segment_name(SegmentId(1));
    let mut bytes = file(&disk, &name);
    bytes[states[2].0..states[3].0].fill(0);
    bytes.extend_from_slice(&[0; 5000]);
    put_file(&disk, &name, &bytes);
    put_file(&disk, &segment_name(SegmentId(2)), &[0; 4096]);
    put_file(&disk, &segment_name(SegmentId(3)), &[]);
    let (wal, seen, report) = open(&disk, WalOptions::default());
    assert_eq!(seen.lines.len(), 12);
    assert_eq!(report.damaged.len(), 2, "{report:?}");
    assert_eq!(report.damaged[0].len, (states[3].0 - states[2].0) as u64);
    assert!(wal.state.lock().segment() > SegmentId(3));
}

#[test]
fn definitions_come_before_a_large_request_s_samples() {
    for compress in [false, true] {
        let disk = MemDisk::default();
        let options = WalOptions { compress, ..WalOptions::default() };
        let (wal, ..) = open(&disk, options.clone());
        let head = wal.define_head(b"t").unwrap();
        let mut batch = WalBatch::default();
        wal.begin(&mut batch, head, Generation(0));
        for i in 0..200 {
            batch.series(i, LabelBytes::new_unchecked(&labels(i)));
        }
        // Several frames of floats for definitions that fill no frame.
        for i in 0..200 {
            for t in 0..200 {
                batch.float(i, t, f64::from(i) / 3.0);
            }
        }
        wal.commit(&mut batch).unwrap();
        drop(wal);
        let (_, seen, report) = open(&disk, options);
        assert!(!report.lost_something(), "{report:?}");
        assert_eq!(seen.lines.len(), 40_000);
    }
}

#[test]
fn a_missing_segment_is_named_and_a_freed_one_is_not() {
    let disk = MemDisk::default();
    let options = WalOptions { segment_bytes: 60, compress: false };
    let (wal, ..) = open(&disk, options.clone());
    let head = wal.define_head(b"t").unwrap();
    for t in 0..40 {
        commit_floats(&wal, head, 0..3, t).unwrap();
    }
    assert!(segments(&disk).len() > 5, "{:?}", segments(&disk));
    let generation = wal.begin_cut(head, 20).unwrap();
    wal.finish_cut(head, Cut { generation, up_to: 20 }).unwrap();
    let left = segments(&disk);
    drop(wal);
    let (_, _, report) = open(&disk, options.clone());
    assert_eq!(report.missing_segments, []);
    use crate::disk::Disk;
    disk.remove_file(&Path::new(DIR).join(&left[1])).unwrap();
    let (_, seen, report) = open(&disk, options);
    assert_eq!(report.missing_segments.len(), 1);
    assert_eq!(report.undefined_samples, 0, "series are defined in every segment");
    assert!(seen.lines.iter().any(|line| line.contains(" 39 ")));
}

#[test]
fn segments_go_when_their_samples_are_in_blocks() {
    let disk = MemDisk::default();
    let options = WalOptions { segment_bytes: 60, compress: false };
    let (wal, ..) = open(&disk, options.clone());
    let (a, b) = (wal.define_head(b"a").unwrap(), wal.define_head(b"b").unwrap());
    let mut of_b = Vec::new();
    for t in 0..30 {
        commit_floats(&wal, a, 0..3, t).unwrap();
        if t == 10 {
            of_b = commit_floats(&wal, b, 0..1, 5).unwrap();
        }
    }
    let before = wal.stats();
    let generation = wal.begin_cut(a, 30).unwrap();
    // A late sample, logged after the cut began: no block holds it.
    let late = commit_floats(&wal, a, 0..1, 3).unwrap();
    wal.finish_cut(a, Cut { generation, up_to: 30 }).unwrap();
    let after = wal.stats();
    assert!(after.segments < before.segments && after.bytes < before.bytes, "{before:?} {after:?}");
    let (_, seen, report) = open(&disk, options.clone());
    assert!(!report.lost_something(), "{report:?}");
    let (state, done) = &seen.heads[&a];
    assert_eq!((state.boundary, *done), (30, Cut { generation: Generation(1), up_to: 30 }));
    assert!(seen.lines.contains(&late[0]) && seen.lines.contains(&of_b[0]));
    // Once both heads need nothing, only the segment being written is left.
    wal.drop_head(b).unwrap();
    wal.drop_head(a).unwrap();
    for t in 0..10 {
        let c = wal.define_head(b"c").unwrap();
        commit_floats(&wal, c, 0..9, t).unwrap();
        wal.drop_head(c).unwrap();
    }
    assert!(segments(&disk).len() <= 2, "{:?}", segments(&disk));
    let (_, seen, _) = open(&disk, options);
    assert_eq!(seen.lines, Vec::<String>::new());
}

#[test]
fn a_full_disk_leaves_nothing_behind_and_needs_no_restart() {
    let disk = MemDisk::default();
    let (wal, ..) = open(&disk, WalOptions::default());
    let head = wal.define_head(b"t").unwrap();
    let mut expected = commit_floats(&wal, head, 0..3, 1).unwrap();
    let good = file(&disk, &segment_name(SegmentId(1)));
    for free in [0, 1, 19, 20, 60, 100] {
        disk.set_free_bytes(Some(free));
        assert!(matches!(commit_floats(&wal, head, 3..9, 2), Err(WalError::Full)), "{free}");
        assert_eq!(file(&disk, &segment_name(SegmentId(1))), good);
    }
    disk.set_free_bytes(None);
    expected.extend(commit_floats(&wal, head, 3..9, 3).unwrap());
    wal.sync().unwrap();
    disk.crash();
    // A start on a full disk works too; writes are refused until there is space.
    disk.set_free_bytes(Some(0));
    let (wal, seen, report) = open(&disk, WalOptions::default());
    assert_eq!(seen.lines, expected);
    assert!(!report.lost_something() && report.torn_tails.is_empty());
    assert!(matches!(commit_floats(&wal, head, 0..1, 4), Err(WalError::Full)));
    disk.set_free_bytes(None);
    expected.extend(commit_floats(&wal, head, 0..1, 5).unwrap());
    assert_eq!(open(&disk, WalOptions::default()).1.lines, expected);
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let disk = MemDisk::default();
    let (wal, ..) = open(&disk, WalOptions::default());
    let head = wal.define_head(b"t").unwrap();
    let mut batch = WalBatch::default();
    wal.begin(&mut batch, head, Generation(0));
    batch.series(1, LabelBytes::new_unchecked(&vec![7; 17 << 20]));
    assert!(matches!(wal.commit(&mut batch), Err(CommitError::Wal(WalError::Io(_)))));
    let lines = commit_floats(&wal, head, 0..2, 1).unwrap();
    assert_eq!(open(&disk, WalOptions::default()).1.lines, lines);
}

#[test]
fn a_crash_keeps_what_was_synced() {
    let disk = MemDisk::default();
    let (wal, ..) = open(&disk, WalOptions { segment_bytes: 300, compress: true });
    let head = wal.define_head(b"t").unwrap();
    let mut synced = Vec::new();
    for t in 0..20 {
        synced.extend(commit_floats(&wal, head, 0..3, t).unwrap());
    }
    let lsn = wal.stats().written;
    assert_eq!(wal.durability(lsn), Durability::Pending);
    assert_eq!(wal.sync().unwrap(), lsn);
    assert_eq!(wal.durability(lsn), Durability::Durable);
    commit_floats(&wal, head, 0..3, 99).unwrap();
    disk.crash();
    let (_, seen, report) = open(&disk, WalOptions::default());
    assert_eq!(seen.lines, synced);
    assert!(!report.lost_something(), "{report:?}");
}

#[test]
fn definitions_do_not_fill_segment_after_segment() {
    let disk = MemDisk::default();
    let (wal, ..) = open(&disk, WalOptions { segment_bytes: 1000, compress: false });
    let head = wal.define_head(b"t").unwrap();
    commit_floats(&wal, head, 0..50, 0).unwrap();
    assert_eq!(segments(&disk).len(), 1, "50 definitions exceed a segment, which must grow instead");
    let definitions = file(&disk, &segment_name(SegmentId(1))).len();
    let mut batch = WalBatch::default();
    for t in 1..100 {
        wal.begin(&mut batch, head, Generation(0));
        (0..50).for_each(|i| batch.float(i, t, 0.5));
        wal.commit(&mut batch).unwrap();
    }
    let first = file(&disk, &segment_name(SegmentId(1))).len();
    assert!((3 * definitions..5 * definitions).contains(&first), "{definitions} {first}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test needs several threads at once")]
fn commits_of_many_threads_are_all_there_in_order() {
    let disk = MemDisk::default();
    let (wal, ..) = open(&disk, WalOptions { segment_bytes: 20_000, compress: true });
    let wal = Arc::new(wal);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let wal = wal.clone();
            let head = wal.define_head(b"t").unwrap();
            std::thread::spawn(move || {
                let lines = (0..100).flat_map(|t| commit_floats(&wal, head, 0..5, t).unwrap());
                (head, lines.collect::<Vec<_>>())
            })
        })
        .collect();
    let expected: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let (_, seen, report) = open(&disk, WalOptions::default());
    assert!(!report.lost_something() && report.torn_tails.is_empty(), "{report:?}");
    for (head, lines) in expected {
        let start = format!("{} ", head.0);
        let of_head: Vec<_> = seen.lines.iter().filter(|line| line.starts_with(&start)).cloned().collect();
        assert_eq!(of_head, lines);
    }
}
