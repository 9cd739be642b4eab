//! Snapshots one by one: their format, what damage costs, who refuses them. Random ones are in [`super::tests`] and
//! [`super::crash_tests`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skald_model::{Exemplar, LabelBytes, Labels, MetricMetadata, MetricType, QueryRange};

use super::tests::{OPTIONS, Rig, append, contents, float, histogram, labels, limits, open_chunk_files, started};
use super::{Head, MetadataLimits, ReplayHeads, SeriesAppend};
use crate::Alone;
use crate::disk::{Disk, MemDisk, RealDisk};
use crate::wal::{SegmentId, Wal, WalError, WalOptions};

/// A snapshot of format version 1 as it was written on the day the format was fixed. Never write it anew: a change that
/// makes this test fail needs another version number.
const VERSION_1: &[u8] = include_bytes!("testdata/snapshot-version1");

/// The same of version 2, and the chunk file it refers to.
const VERSION_2: &[u8] = include_bytes!("testdata/snapshot-version2");
const VERSION_2_CHUNKS: &[u8] = include_bytes!("testdata/snapshot-version2.chunks");

/// The same of version 3, and samples with start timestamps.
const VERSION_3: &[u8] = include_bytes!("testdata/snapshot-version3");
const VERSION_3_CHUNKS: &[u8] = include_bytes!("testdata/snapshot-version3.chunks");

/// What the files of the first versions hold: every kind of chunk, open, closed and late, exemplars and metadata.
fn sample() -> Rig {
    let mut rig = unfinished_sample();
    assert!(rig.snapshot(100));
    rig
}

/// What those of version 3 hold: open, closed and late chunks with start timestamps, too.
fn sample_with_starts() -> Rig {
    let mut rig = unfinished_sample();
    let floats = [float(10, 1.0), float(20, 2.5), started(float(30, 3.0), 25), float(1010, 1.0)];
    let late = [started(float(15, 1.0), 15), started(float(1020, 4.0), 1010)];
    let histograms = [started(histogram(30, 4), 7), histogram(1030, 6), started(histogram(1040, 7), 7)];
    for (series, samples) in [(3, &floats[..]), (3, &late), (4, &histograms)] {
        append(&rig.head, &rig.wal, &[(&labels(series), samples)], &limits()).unwrap();
    }
    assert!(rig.snapshot(100));
    rig
}

fn unfinished_sample() -> Rig {
    let rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(10, 1.0), (20, 2.5), (1010, -0.5), (15, 7.0)]);
    let histograms = [histogram(30, 4), histogram(40, 5), histogram(1030, 6)];
    append(&rig.head, &rig.wal, &[(&labels(1), &histograms)], &limits()).unwrap();
    append(&rig.head, &rig.wal, &[(&labels(2), &[float(5, 1.0), histogram(50, 9)])], &limits()).unwrap();
    let bytes = LabelBytes::from_labels(&labels(0));
    let label_bytes = LabelBytes::new_unchecked(&bytes);
    let exemplar = Exemplar { labels: Labels::from_pairs([("trace_id", "x")]), value: 0.5, timestamp: 20 };
    let series = SeriesAppend {
        labels: Some(label_bytes),
        hash: label_bytes.hash(),
        samples: &[],
        sample_starts: &[],
        histograms: &[],
        histogram_starts: &[],
        exemplars: &[exemplar],
    };
    rig.head.append(&rig.wal, [series], &limits()).unwrap();
    let (metric, help, unit) = ("m0".into(), "help".into(), String::new());
    let metadata = MetricMetadata { metric, metric_type: MetricType::Gauge, help, unit };
    rig.head.append_metadata(&rig.wal, &[metadata], MetadataLimits::NONE).unwrap();
    rig
}

fn newest(rig: &Rig) -> PathBuf {
    Path::new("/wal").join(format!("snapshot-{:010}", rig.wal.snapshots().last().unwrap().segment.0))
}

/// A disk with one file in the log's directory.
fn disk_with(name: &str, bytes: &[u8]) -> MemDisk {
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new("/wal")).unwrap();
    disk.create(&Path::new("/wal").join(name)).unwrap().append(bytes).unwrap();
    disk
}

#[test]
fn earlier_versions_are_still_read() {
    let (written, with_starts) = (sample(), sample_with_starts());
    let chunks = Path::new("/chunks/0000000001.chunks");
    if let Ok(path) = std::env::var("SKALD_WRITE_SNAPSHOT") {
        RealDisk.write_atomically(Path::new(&path), &with_starts.disk.read(&newest(&with_starts)).unwrap()).unwrap();
        RealDisk
            .write_atomically(Path::new(&format!("{path}.chunks")), &with_starts.disk.read(chunks).unwrap())
            .unwrap();
    }
    check_sample(&written, disk_with("snapshot-0000000002", VERSION_1));
    let versions = [(&written, VERSION_2, VERSION_2_CHUNKS), (&with_starts, VERSION_3, VERSION_3_CHUNKS)];
    for (written, snapshot, in_chunks) in versions {
        let disk = disk_with("snapshot-0000000002", snapshot);
        disk.create_dir_all(Path::new("/chunks")).unwrap();
        disk.create(chunks).unwrap().append(in_chunks).unwrap();
        check_sample(written, disk);
    }
}

fn check_sample(written: &Rig, disk: MemDisk) {
    let mut rig = Rig::new(OPTIONS);
    rig.disk = disk;
    let (report, _, head) = rig.reopen();
    assert!(!report.lost_something() && report.snapshots[0].is_whole(), "{report:?}");
    let head = head.unwrap();
    assert_eq!(contents(&head, &[], QueryRange::ALL), written.contents());
    assert_eq!(head.exemplars(&[], QueryRange::ALL), written.head.exemplars(&[], QueryRange::ALL));
    assert_eq!(head.metadata(None), written.head.metadata(None));
    assert_eq!(head.metadata(None).len(), 1);
    // The snapshot's own number is taken: positions in it must not mean two places.
    assert!(rig.wal.segment() > SegmentId(2));
}

#[test]
fn an_unknown_version_is_refused() {
    let mut bytes = VERSION_1.to_vec();
    bytes[4] = 4;
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    let disk = disk_with("snapshot-0000000002", &bytes);
    let files = open_chunk_files(&disk);
    let mut replay = ReplayHeads::new(files.clone(), |id, _| Arc::new(Head::new(id, OPTIONS, files.clone())));
    let opened = Wal::open(Arc::new(disk), Path::new("/wal"), WalOptions::default(), &mut replay, &Alone);
    assert!(matches!(opened.err(), Some(WalError::Version { version: 4, .. })));
}

#[test]
fn what_no_other_has_is_told_by_series_samples_and_time() {
    for at in 0..VERSION_1.len() * 8 {
        let mut bytes = VERSION_1.to_vec();
        bytes[at / 8] ^= 1 << (at % 8);
        let mut rig = Rig::new(OPTIONS);
        rig.disk = disk_with("snapshot-0000000002", &bytes);
        let (report, _, head) = rig.reopen();
        let [snapshot] = &report.snapshots[..] else { panic!("{report:?}") };
        assert!(!snapshot.is_whole(), "bit {at} went unnoticed");
        let found = head.map(|head| contents(&head, &[], QueryRange::ALL)).unwrap_or_default();
        let samples: usize = found.values().map(BTreeMap::len).sum();
        let held = snapshot.damaged_total();
        assert_eq!(found.len() as u64 + held.series, 3, "bit {at}: {report:?}");
        assert_eq!(samples as u64 + held.samples, 9, "bit {at}: {report:?}");
        assert!(held.series <= 1 && (held.series == 0 || (5 <= held.min_time && held.max_time <= 1030)), "{held:?}");
        // There is no log that could have the rest: the next start finds the same.
        assert!(!snapshot.supplied, "bit {at}: {report:?}");
        let (_, _, head) = rig.reopen();
        let again = head.map(|head| contents(&head, &[], QueryRange::ALL)).unwrap_or_default();
        assert_eq!(again, found, "bit {at}");
    }
}

#[test]
fn an_unfinished_one_is_removed_and_one_given_up_leaves_nothing() {
    let mut rig = sample();
    rig.floats(&labels(0), &[(1500, 1.0)]);
    assert!(!rig.snapshot(1));
    let unfinished = |rig: &Rig| {
        rig.disk.list(Path::new("/wal")).unwrap().iter().filter(|entry| entry.name.ends_with(".tmp")).count()
    };
    assert_eq!(unfinished(&rig), 1);
    let before = rig.contents();
    rig.restart_after_damage();
    assert_eq!((unfinished(&rig), rig.contents()), (0, before.clone()));
    rig.disk.set_free_bytes(Some(30));
    rig.try_snapshot(100);
    rig.disk.set_free_bytes(None);
    assert_eq!((unfinished(&rig), rig.wal.snapshots().len()), (0, 1));
    rig.floats(&labels(0), &[(1501, 1.0)]);
    assert!(rig.snapshot(100));
    assert_eq!(rig.wal.snapshots().len(), 2);
}

fn chunk_files(rig: &Rig) -> Vec<String> {
    rig.disk.list(Path::new("/chunks")).unwrap().into_iter().map(|entry| entry.name).collect()
}

/// Two closed chunks a thousand apart, and an open one.
fn three_ranges(rig: &Rig, from: i64) {
    for range in 0..3 {
        let samples: Vec<_> = (0..20).map(|at| (from + range * 1000 + at, at as f64 * 1.1)).collect();
        rig.floats(&labels(0), &samples);
    }
}

fn flip(rig: &Rig, path: &Path, at: usize) {
    let mut bytes = rig.disk.read(path).unwrap();
    bytes[at] ^= 1;
    rig.disk.create(path).unwrap().append(&bytes).unwrap();
}

#[test]
fn files_live_as_long_as_a_snapshot_refers_to_them() {
    let mut rig = Rig::new(OPTIONS);
    three_ranges(&rig, 0);
    assert!(rig.snapshot(100));
    let copied = rig.wal.snapshots()[0].bytes;
    rig.cut(10_000);
    rig.files.upkeep();
    assert_eq!(chunk_files(&rig).len(), 1, "the snapshot refers to it");
    // Also of one that was not read.
    rig.floats(&labels(1), &[(20_000, 1.0)]);
    assert!(rig.snapshot(100));
    rig.restart_after_damage();
    assert_eq!(chunk_files(&rig).len(), 1);
    assert!(rig.snapshot(100));
    rig.files.upkeep();
    assert_eq!(chunk_files(&rig), Vec::<String>::new(), "two newer ones do not");
    // What it holds is small: 40 samples of 60 are in the file.
    assert!(copied < 700, "{copied}");
}

#[test]
fn a_damaged_chunk_comes_from_the_older_snapshot_and_its_log() {
    let mut rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(0, 0.5), (1, 1.5)]);
    rig.floats(&labels(1), &[(3000, 0.5)]);
    assert!(rig.snapshot(100));
    // What was open is closed, and so is what came later, before the second one.
    three_ranges(&rig, 10);
    assert!(rig.snapshot(100));
    rig.floats(&labels(0), &[(2900, 9.0)]);
    let before = rig.contents();
    let len = rig.disk.read(Path::new("/chunks/0000000001.chunks")).unwrap().len();
    for at in (16..len).step_by(11) {
        flip(&rig, Path::new("/chunks/0000000001.chunks"), at);
        rig.kill();
        let (report, lost, head) = rig.reopen();
        assert_eq!(lost, super::LostChunks::default(), "{report:?}");
        assert!(!report.lost_something(), "{report:?}");
        rig.head = head.unwrap();
        assert_eq!(rig.contents(), before);
        if !report.snapshots[0].is_whole() {
            assert_eq!(rig.wal.snapshots().len(), 1, "what refers to a damaged chunk is not kept");
            // What was found is as good as what was there, also in the next snapshot.
            assert!(rig.snapshot(100));
            rig.restart_after_damage();
            assert_eq!(rig.contents(), before);
            return;
        }
    }
    panic!("no chunk was hit");
}

#[test]
fn a_damaged_chunk_of_both_snapshots_is_lost_and_named() {
    let mut rig = Rig::new(OPTIONS);
    three_ranges(&rig, 0);
    assert!(rig.snapshot(100));
    rig.floats(&labels(1), &[(2500, 0.5)]);
    assert!(rig.snapshot(100));
    let before: usize = rig.contents().values().map(BTreeMap::len).sum();
    flip(&rig, Path::new("/chunks/0000000001.chunks"), 16 + 32 + 5);
    rig.kill();
    let (report, lost, head) = rig.reopen();
    assert!(report.lost_something() && report.snapshots.len() == 2, "{report:?}");
    rig.head = head.unwrap();
    assert_eq!(rig.contents().values().map(BTreeMap::len).sum::<usize>(), before - 20);
    assert_eq!((lost.chunks, lost.series, lost.samples), (1, 1, 20));
    assert_eq!(lost.times, Some(QueryRange { min: 0, max: 19 }));
    assert_eq!(lost.named[0].labels, labels(0));
}

#[test]
fn after_a_failed_sync_chunks_are_copied_and_their_file_emptied() {
    let mut rig = Rig::new(OPTIONS);
    three_ranges(&rig, 0);
    rig.disk.set_failing_syncs(true);
    rig.try_snapshot(100);
    rig.disk.set_failing_syncs(false);
    assert_eq!(rig.wal.snapshots().len(), 0);
    assert!(rig.snapshot(100), "with copies");
    let before = rig.contents();
    // It does without the file.
    let sparse = rig.files.sparse_files();
    assert_eq!(sparse.into_iter().collect::<Vec<_>>(), [1]);
    rig.disk.remove_file(Path::new("/chunks/0000000001.chunks")).unwrap();
    rig.kill();
    let (report, lost, head) = rig.reopen();
    assert!(!report.lost_something() && lost.chunks == 0 && report.snapshots[0].is_whole(), "{report:?}");
    rig.head = head.unwrap();
    assert_eq!(rig.contents(), before);
}
