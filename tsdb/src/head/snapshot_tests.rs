//! Snapshots one by one: their format, what damage costs, who refuses them. Random ones are in [`super::tests`] and
//! [`super::crash_tests`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skald_model::{Exemplar, LabelBytes, Labels, MetricMetadata, MetricType, QueryRange};

use super::tests::{OPTIONS, Rig, append, contents, float, histogram, labels, open_chunk_files};
use super::{AppendLimits, Head, MetadataLimits, ReplayHeads, SeriesAppend};
use crate::Alone;
use crate::disk::{Disk, MemDisk, RealDisk};
use crate::wal::{SegmentId, Wal, WalError, WalOptions};

/// A snapshot of format version 1 as it was written on the day the format was fixed. Never write it anew: a change that
/// makes this test fail needs another version number.
const VERSION_1: &[u8] = include_bytes!("testdata/snapshot-version1");

/// What `VERSION_1` holds: every kind of chunk, open, closed and late, exemplars and metadata.
fn version_1() -> Rig {
    let mut rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(10, 1.0), (20, 2.5), (1010, -0.5), (15, 7.0)]);
    let histograms = [histogram(30, 4), histogram(40, 5), histogram(1030, 6)];
    append(&rig.head, &rig.wal, &[(&labels(1), &histograms)], &AppendLimits::default()).unwrap();
    append(&rig.head, &rig.wal, &[(&labels(2), &[float(5, 1.0), histogram(50, 9)])], &AppendLimits::default()).unwrap();
    let bytes = LabelBytes::from_labels(&labels(0));
    let label_bytes = LabelBytes::new_unchecked(&bytes);
    let exemplar = Exemplar { labels: Labels::from_pairs([("trace_id", "x")]), value: 0.5, timestamp: 20 };
    let series = SeriesAppend {
        labels: label_bytes,
        hash: label_bytes.hash(),
        samples: &[],
        histograms: &[],
        exemplars: &[exemplar],
    };
    rig.head.append(&rig.wal, [series], &AppendLimits::default()).unwrap();
    let (metric, help, unit) = ("m0".into(), "help".into(), String::new());
    let metadata = MetricMetadata { metric, metric_type: MetricType::Gauge, help, unit };
    rig.head.append_metadata(&rig.wal, &[metadata], MetadataLimits::NONE).unwrap();
    assert!(rig.snapshot(100));
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
fn version_1_is_still_read() {
    let written = version_1();
    if let Ok(path) = std::env::var("SKALD_WRITE_SNAPSHOT") {
        RealDisk.write_atomically(Path::new(&path), &written.disk.read(&newest(&written)).unwrap()).unwrap();
    }
    let mut rig = Rig::new(OPTIONS);
    rig.disk = disk_with("snapshot-0000000002", VERSION_1);
    let (report, head) = rig.reopen();
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
    bytes[4] = 2;
    let crc = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    let disk = disk_with("snapshot-0000000002", &bytes);
    let files = open_chunk_files(&disk);
    let mut replay = ReplayHeads::new(|id, _| Arc::new(Head::new(id, OPTIONS, files.clone())));
    let opened = Wal::open(Arc::new(disk), Path::new("/wal"), WalOptions::default(), &mut replay, &Alone);
    assert!(matches!(opened.err(), Some(WalError::Version { version: 2, .. })));
}

#[test]
fn what_no_other_has_is_told_by_series_samples_and_time() {
    for at in 0..VERSION_1.len() * 8 {
        let mut bytes = VERSION_1.to_vec();
        bytes[at / 8] ^= 1 << (at % 8);
        let mut rig = Rig::new(OPTIONS);
        rig.disk = disk_with("snapshot-0000000002", &bytes);
        let (report, head) = rig.reopen();
        let [snapshot] = &report.snapshots[..] else { panic!("{report:?}") };
        assert!(!snapshot.is_whole(), "bit {at} went unnoticed");
        let found = head.map(|head| contents(&head, &[], QueryRange::ALL)).unwrap_or_default();
        let samples: usize = found.values().map(BTreeMap::len).sum();
        let held = snapshot.damaged_total();
        assert_eq!(found.len() as u64 + held.series, 3, "bit {at}: {report:?}");
        assert_eq!(samples as u64 + held.samples, 9, "bit {at}: {report:?}");
        assert!(held.series <= 1 && (held.series == 0 || (5 <= held.min_time && held.max_time <= 1030)), "{held:?}");
    }
}

#[test]
fn an_unfinished_one_is_removed_and_one_given_up_leaves_nothing() {
    let mut rig = version_1();
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
