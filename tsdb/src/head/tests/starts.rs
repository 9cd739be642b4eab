//! Start timestamps: they stay with their samples wherever those go.

use super::*;
use crate::chunk::Encoding;
use crate::chunk::started::for_block;
use crate::decode::decode_series;

fn columns_of(head: &Arc<Head>) -> Columns {
    let mut select = head.select(&[], QueryRange::ALL);
    let series = select.next_batch(500).unwrap().unwrap();
    let mut columns = Columns::default();
    decode_series(&series[0].chunks, QueryRange::ALL, &mut columns).unwrap();
    columns
}

/// Times with starts of the floats, and of the histograms.
fn starts_of(head: &Arc<Head>) -> [Vec<(TimestampMs, TimestampMs)>; 2] {
    let mut columns = columns_of(head);
    columns.float_starts.resize(columns.float_timestamps.len(), 0);
    columns.histogram_starts.resize(columns.histogram_timestamps.len(), 0);
    let pairs = |times: &[i64], starts: &[i64]| times.iter().copied().zip(starts.iter().copied()).collect();
    [
        pairs(&columns.float_timestamps, &columns.float_starts),
        pairs(&columns.histogram_timestamps, &columns.histogram_starts),
    ]
}

#[test]
fn they_survive_closing_restarts_and_cuts() {
    let mut rig = Rig::new(OPTIONS);
    let limits = limits();
    // Chunks begin without starts, get some, and are closed by the range, by the number of samples, and by another kind.
    let floats: Vec<_> =
        (0..700).map(|t| started(float(t, t as f64), if t < 20 { 0 } else { t - t % 100 - 1 })).collect();
    let histograms: Vec<_> =
        (700..1100).map(|t| started(histogram(t, t as u64), if t % 3 == 0 { 0 } else { 650 })).collect();
    let late =
        [started(float(1100, 1.0), 0), started(float(-5, 1.0), -9), float(-6, 1.0), started(histogram(-7, 1), -8)];
    let all: Vec<_> = [&floats[..], &histograms, &late].concat();
    for some in all.chunks(50) {
        rig.append(&[(&labels(0), some)], &limits).unwrap();
    }
    let expected: [Vec<(i64, i64)>; 2] = [true, false].map(|is_float| {
        let wanted = all.iter().filter(|s| matches!(s.value, SampleValue::Float(_)) == is_float);
        let pairs: BTreeMap<_, _> = wanted.map(|s| (s.time, s.start)).collect();
        pairs.into_iter().collect()
    });
    assert_eq!(starts_of(&rig.head), expected);
    rig.restart();
    assert_eq!(starts_of(&rig.head), expected, "from the log");
    assert!(rig.snapshot(100));
    rig.restart();
    assert_eq!(starts_of(&rig.head), expected, "from a snapshot");
    // And the open chunk goes on.
    rig.append(&[(&labels(0), &[started(float(1101, 1.0), 1100)])], &limits).unwrap();
    assert_eq!(starts_of(&rig.head)[0].last(), Some(&(1101, 1100)));

    let cut = rig.head.begin_cut(&rig.wal, RANGE).unwrap();
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for range in rig.head.cut_ranges(cut) {
        let each = |_: &Labels, chunks: &[Chunk]| {
            kept.extend(for_block(chunks, true).unwrap().into_owned());
            dropped.extend(for_block(chunks, false).unwrap().into_owned());
            Ok::<_, ()>(())
        };
        rig.head.cut_series(cut, range, each).unwrap();
    }
    assert_eq!(rig.head.finish_cut(&rig.wal, cut).unwrap(), Dropped::Done);
    let encodings: BTreeSet<u8> = dropped.iter().map(|chunk| chunk.encoding as u8).collect();
    assert_eq!(encodings, BTreeSet::from([1, 2]));
    let encodings: BTreeSet<u8> = kept.iter().map(|chunk| chunk.encoding as u8).collect();
    assert!(encodings.is_subset(&BTreeSet::from([1, 2, 4, 5])) && encodings.contains(&4) && encodings.contains(&5));
    let mut columns = Columns::default();
    decode_series(&dropped, QueryRange::ALL, &mut columns).unwrap();
    assert!(columns.float_starts.is_empty() && columns.histogram_starts.is_empty());
    let histograms_dropped = columns.histograms.clone();
    decode_series(&kept, QueryRange::ALL, &mut columns).unwrap();
    assert_eq!(columns.histograms, histograms_dropped);
    let in_block = |pairs: &[(i64, i64)]| pairs.iter().copied().filter(|(t, _)| *t < RANGE).collect::<Vec<_>>();
    columns.float_starts.resize(columns.float_timestamps.len(), 0);
    columns.histogram_starts.resize(columns.histogram_timestamps.len(), 0);
    let floats: Vec<_> = columns.float_timestamps.iter().copied().zip(columns.float_starts.iter().copied()).collect();
    assert_eq!(floats, in_block(&expected[0]));
    let found: Vec<_> =
        columns.histogram_timestamps.iter().copied().zip(columns.histogram_starts.iter().copied()).collect();
    assert_eq!(found, in_block(&expected[1]));
}

#[test]
fn of_equal_samples_the_first_one_s_start_stays() {
    let rig = Rig::new(OPTIONS);
    let limits = limits();
    for sample in [float(10, 1.0), started(float(10, 1.0), 5), started(float(20, 1.0), 15), started(float(20, 1.0), 7)]
    {
        let appended = rig.append(&[(&labels(0), &[sample])], &limits).unwrap();
        assert_eq!((appended.samples, appended.rejections.len()), (1, 0));
    }
    // In one request, too, where the duplicate's place in the request is another sample's.
    let request = [started(float(30, 1.0), 1), started(float(30, 1.0), 2), started(float(40, 1.0), 3), float(50, 1.0)];
    rig.append(&[(&labels(0), &request)], &limits).unwrap();
    assert_eq!(starts_of(&rig.head)[0], [(10, 0), (20, 15), (30, 1), (40, 3), (50, 0)]);
}

#[test]
fn series_without_them_pay_nothing() {
    let rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &(0..500).map(|t| (t, 1.0)).collect::<Vec<_>>());
    let mut select = rig.head.select(&[], QueryRange::ALL);
    let series = select.next_batch(1).unwrap().unwrap();
    assert!(series[0].chunks.iter().all(|chunk| chunk.encoding == Encoding::Xor));
    let file = rig.disk.read(Path::new("/wal/0000000001.wal")).unwrap();
    assert!(!file.windows(2).any(|kind| kind == [0xD6, 17]), "a record of samples with starts");
}

#[test]
fn imports_bring_them_and_digests_ignore_them() {
    let (from, to) = (Rig::new(OPTIONS), Rig::new(OPTIONS));
    let limits = limits();
    let sent = [started(float(10, 1.0), 5), started(float(20, 1.0), 15), started(histogram(30, 4), 3)];
    from.append(&[(&labels(0), &sent)], &limits).unwrap();
    to.append(&[(&labels(0), &[float(20, 1.0)])], &limits).unwrap();
    let mut select = from.head.select(&[], QueryRange::ALL);
    let series = select.next_batch(1).unwrap().unwrap().remove(0);
    let bytes = LabelBytes::from_labels(&series.labels);
    let import = SeriesImport { labels: LabelBytes::new_unchecked(&bytes), chunks: &series.chunks };
    let import_limits = ImportLimits { append: limits, max_late_bytes: 1 << 20 };
    let imported = to.head.import_chunks(&to.wal, [import], &import_limits).unwrap();
    assert_eq!((imported.stored, imported.known, imported.conflicts), (2, 1, 0));
    assert_eq!(starts_of(&to.head), [vec![(10, 5), (20, 0)], vec![(30, 3)]]);
    let digests = |head: &Head| head.digests(BlockRange { min: 0, max: RANGE }, HashRange::ALL, 4);
    assert_eq!(digests(&from.head), digests(&to.head));
}
