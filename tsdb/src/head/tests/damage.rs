//! Power cuts and damaged logs.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_power_cut_loses_nothing_that_was_synced(
        requests in proptest::collection::vec(
            (proptest::collection::vec((0..5_usize, 0..300_i64, 0..8_u8), 1..40), 0..6_u8),
            1..25,
        ),
    ) {
        let mut rig = Rig::with_segments(OPTIONS, 1000);
        let (mut acknowledged, mut synced, mut blocks) = (Contents::new(), Contents::new(), Contents::new());
        for (at, (samples, then)) in requests.iter().enumerate() {
            let batch = batch(at, samples);
            let entries: Vec<_> = batch.iter().map(|(l, s)| (l, std::slice::from_ref(s))).collect();
            rig.append(&entries, &limits()).unwrap();
            for (series, samples) in rig.contents() {
                acknowledged.entry(series).or_default().extend(samples);
            }
            match then {
                0 => {
                    rig.wal.sync().unwrap();
                    synced = acknowledged.clone();
                }
                1 => {
                    for (series, samples) in rig.cut(at as i64 * 170 - 100) {
                        blocks.entry(series).or_default().extend(samples);
                    }
                }
                _ => {}
            }
        }
        rig.disk.crash();
        let Opened { wal, files, head, report, .. } = open(&rig.disk, OPTIONS, 1000);
        prop_assert!(!report.lost_something(), "{:?}", report);
        let left = head.as_ref().map(|head| contents(head, &[], QueryRange::ALL)).unwrap_or_default();
        let has = |contents: &Contents, series: &Labels, t: &TimestampMs, value: &String| {
            contents.get(series).and_then(|samples| samples.get(t)) == Some(value)
        };
        for (series, samples) in &synced {
            for (t, value) in samples {
                prop_assert!(has(&left, series, t, value) || has(&blocks, series, t, value), "{} at {} is lost", series, t);
            }
        }
        for (series, samples) in &left {
            for (t, value) in samples {
                prop_assert!(has(&acknowledged, series, t, value), "{} at {} was never sent", series, t);
            }
        }
        // And it goes on.
        if let Some(head) = head {
            (rig.wal, rig.files, rig.head) = (wal, files, head);
            rig.floats(&labels(0), &[(1_000_000, 1.0)]);
        }
    }
}

/// Two blocks' worth of samples with a cut, late samples after it, and a cut begun; one commit per request.
fn scenario(rig: &Rig) -> Contents {
    let mut acknowledged = Contents::new();
    for at in 0..12 {
        let samples: Vec<_> = (0..6).map(|i| (i % 5, (i * 37 + at * 11) as i64 % 300, (i + at) as u8 % 5)).collect();
        let batch = batch(at, &samples);
        let entries: Vec<_> = batch.iter().map(|(l, s)| (l, std::slice::from_ref(s))).collect();
        rig.append(&entries, &limits()).unwrap();
        for (series, samples) in rig.contents() {
            acknowledged.entry(series).or_default().extend(samples);
        }
        match at {
            6 => drop(rig.cut(1000)),
            9 => drop(rig.head.begin_cut(&rig.wal, 1500).unwrap()),
            _ => {}
        }
    }
    acknowledged
}

#[test]
fn a_damaged_log_loses_records_and_invents_nothing() {
    use crate::disk::Disk;
    let rig = Rig::with_segments(OPTIONS, 300);
    let acknowledged = scenario(&rig);
    let expected: usize = rig.contents().values().map(BTreeMap::len).sum();
    let dir = Path::new("/wal");
    let logged: Vec<(String, Vec<u8>)> = rig
        .disk
        .list(dir)
        .unwrap()
        .into_iter()
        .map(|e| e.name)
        .map(|name| {
            let bytes = rig.disk.read(&dir.join(&name)).unwrap();
            (name, bytes)
        })
        .collect();
    let total: usize = logged.iter().map(|(_, bytes)| bytes.len()).sum();
    for damaged_at in (0..total).step_by(7) {
        let disk = MemDisk::default();
        disk.create_dir_all(dir).unwrap();
        let mut left = damaged_at;
        for (name, bytes) in &logged {
            let mut bytes = bytes.clone();
            if let Some(byte) = bytes.get_mut(left) {
                *byte ^= 0x10;
            }
            left = left.wrapping_sub(bytes.len());
            disk.create(&dir.join(name)).unwrap().append(&bytes).unwrap();
        }
        let Opened { wal, files, head, report, .. } = open(&disk, OPTIONS, 300);
        let head = head.unwrap();
        let found = contents(&head, &[], QueryRange::ALL);
        for (series, samples) in &found {
            for (t, value) in samples {
                let sent = acknowledged.get(series).and_then(|samples| samples.get(t));
                assert_eq!(sent, Some(value), "{series} at {t} after damage at {damaged_at}");
            }
        }
        // A record here holds at most six samples or the definitions of five series of one segment.
        let kept: usize = found.values().map(BTreeMap::len).sum();
        assert!(kept + 30 >= expected, "{kept} of {expected} after damage at {damaged_at}: {report:?}");
        // A cut after the damage covers everything; what it writes and what stays are what was there.
        let mut rig = Rig { disk, wal, files, head, options: OPTIONS, snapshot: None };
        rig.floats(&labels(7), &[(5000, 1.0)]);
        let before = rig.contents();
        rig.restart_after_damage();
        assert_eq!(rig.contents(), before, "damage at {damaged_at}");
        let written = rig.cut(4000);
        let all = written.values().chain(rig.contents().values()).map(BTreeMap::len).sum::<usize>();
        assert_eq!(all, before.values().map(BTreeMap::len).sum::<usize>(), "damage at {damaged_at}");
    }
}

#[test]
fn a_histogram_that_makes_no_sense_is_passed_over() {
    let mut rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(10, 1.0)]);
    let before = rig.contents();
    // Its checksum holds, as if a writer had been wrong: two spans, and a bucket too few.
    let spans = vec![Span { offset: 0, length: 1 }, Span { offset: 3, length: 1 }];
    let wrong = Histogram { count: 1, positive_spans: spans, positive_deltas: vec![1], ..Histogram::default() };
    let bytes = LabelBytes::from_labels(&labels(1));
    let mut log = crate::wal::WalBatch::default();
    rig.wal.begin(&mut log, rig.head.id(), crate::wal::Generation(0));
    log.series(77, LabelBytes::new_unchecked(&bytes));
    log.histogram(77, 20, &HistogramValue::Integer(wrong.clone().into()), 0);
    log.histogram(77, 15, &HistogramValue::Integer(wrong.into()), 3);
    rig.wal.commit(&mut log).unwrap();
    rig.restart_after_damage();
    let mut left = rig.contents();
    left.retain(|_, samples| !samples.is_empty());
    assert_eq!(left, before);
}
