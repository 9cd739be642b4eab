//! Repair: digests, imports, and two heads that become equal by them.

use super::*;
use crate::SeriesChunks;

const LIMITS: ImportLimits = ImportLimits {
    append: AppendLimits {
        max_series: None,
        max_series_per_metric: None,
        max_time: TimestampMs::MAX,
        out_of_order_window_ms: WINDOW,
        max_exemplars: 0,
        fresh_from: TimestampMs::MIN,
    },
    max_late_bytes: usize::MAX,
};

fn import(rig: &Rig, series: &[SeriesChunks], limits: &ImportLimits) -> Result<Imported, ImportError> {
    let labels: Vec<Vec<u8>> = series.iter().map(|one| LabelBytes::from_labels(&one.labels)).collect();
    let series = labels
        .iter()
        .zip(series)
        .map(|(labels, one)| SeriesImport { labels: LabelBytes::new_unchecked(labels), chunks: &one.chunks });
    rig.head.import_chunks(&rig.wal, series, limits)
}

/// Fetches what `peer` holds and `rig` may lack, as a service would: parts that differ, their series, their chunks.
fn pull(rig: &Rig, peer: &Rig) -> Imported {
    let mut all = Imported::default();
    for range in peer.head.ranges() {
        let mut differing = vec![HashRange::ALL];
        for _ in 0..2 {
            let of = |head: &Head| differing.iter().flat_map(|part| head.digests(range, *part, 4)).collect::<Vec<_>>();
            let both = of(&rig.head).into_iter().zip(of(&peer.head));
            let parts = both.filter(|(own, theirs)| own != theirs).map(|(own, theirs)| {
                assert_eq!(own.hashes, theirs.hashes);
                own.hashes
            });
            differing = parts.collect();
        }
        for part in differing {
            let own: BTreeMap<u128, SampleDigest> =
                rig.head.series_digests(range, part, 1000).into_iter().map(|s| (s.hash, s.digest)).collect();
            let theirs = peer.head.series_digests(range, part, 1000);
            let wanted: Vec<u128> =
                theirs.iter().filter(|s| own.get(&s.hash) != Some(&s.digest)).map(|s| s.hash).collect();
            let chunks = peer.head.series_by_hash(range, &wanted);
            assert_eq!(chunks.len(), wanted.len());
            let imported = import(rig, &chunks, &LIMITS).unwrap();
            all.stored += imported.stored;
            all.known += imported.known;
            all.conflicts += imported.conflicts;
        }
    }
    all
}

fn digests(head: &Head) -> Vec<(BlockRange, Vec<PartDigest>)> {
    let ranges = head.ranges();
    ranges.into_iter().map(|range| (range, head.digests(range, HashRange::ALL, 7))).collect()
}

type Requests = Vec<Vec<(usize, TimestampMs, u8)>>;

/// Requests, which of their samples the second member gets before and after the others, or not at all.
fn requests() -> impl Strategy<Value = (Requests, Vec<u8>)> {
    let samples = || proptest::collection::vec((0..9_usize, 0..300_i64, 0..8_u8), 1..40);
    (proptest::collection::vec(samples(), 1..14), proptest::collection::vec(0..6_u8, 600))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn members_that_missed_different_samples_become_equal((requests, fates) in requests(), then in 0..3_u8) {
        let far_back = AppendLimits { out_of_order_window_ms: 1_000_000, ..limits() };
        let (mut a, mut b) = (Rig::with_segments(OPTIONS, 2000), Rig::with_segments(OPTIONS, 3000));
        let send = |rig: &Rig, samples: &[&(Labels, TimedSample)]| {
            let entries: Vec<_> = samples.iter().map(|(l, s)| (l, std::slice::from_ref(s))).collect();
            rig.append(&entries, &far_back).unwrap();
        };
        let mut fate = fates.iter().cycle();
        let (mut late_a, mut late_b) = (Vec::new(), Vec::new());
        let mut sent: BTreeMap<(Labels, TimestampMs), String> = BTreeMap::new();
        for (at, samples) in requests.iter().enumerate() {
            let mut batch = batch(at, samples);
            // One value per time: members that took different ones stay different.
            batch.retain(|(l, s)| {
                let value = full_text(s);
                *sent.entry((l.clone(), s.time)).or_insert_with(|| value.clone()) == value
            });
            let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
            for sample in batch {
                match fate.next() {
                    Some(0) => to_a.push(sample),
                    Some(1) => to_b.push(sample),
                    Some(2) => (late_a.push(sample.clone()), to_b.push(sample)).1,
                    Some(3) => (late_b.push(sample.clone()), to_a.push(sample)).1,
                    _ => (to_b.push(sample.clone()), to_a.push(sample)).1,
                }
            }
            send(&a, &to_a.iter().collect::<Vec<_>>());
            send(&b, &to_b.iter().collect::<Vec<_>>());
        }
        send(&a, &late_a.iter().rev().collect::<Vec<_>>());
        send(&b, &late_b.iter().collect::<Vec<_>>());
        let (pulled_a, pulled_b) = (pull(&a, &b), pull(&b, &a));
        prop_assert_eq!((pulled_a.conflicts, pulled_b.conflicts), (0, 0));
        prop_assert_eq!(digests(&a.head), digests(&b.head));
        prop_assert_eq!(a.contents(), b.contents());
        let all: BTreeMap<(Labels, TimestampMs), String> = a.contents().into_iter()
            .flat_map(|(l, s)| s.into_iter().map(move |(t, v)| ((l.clone(), t), v))).collect();
        prop_assert_eq!(&all, &sent, "everything sent to one of them is there");
        // It is all there again after a crash, and nothing is taken twice.
        match then {
            0 => {
                a.restart();
                b.restart();
            }
            1 => {
                a.snapshot(100);
                a.restart();
            }
            _ => {}
        }
        prop_assert_eq!(a.contents(), b.contents());
        prop_assert_eq!(digests(&a.head), digests(&b.head));
        prop_assert_eq!((pull(&a, &b).stored, pull(&b, &a).stored), (0, 0));
        // Cuts make blocks of it, and nothing of it is left.
        let (cut_a, cut_b) = (a.cut(100_000), b.cut(100_000));
        prop_assert_eq!(cut_a, cut_b);
        prop_assert_eq!((a.head.series_count(), a.head.late_bytes()), (0, 0));
    }
}

#[test]
fn digests_of_parts_and_series_add_up() {
    let rig = Rig::new(OPTIONS);
    for i in 0..40 {
        rig.floats(&labels(i), &[(100 + i as i64, 1.0), (1100, 2.0)]);
    }
    rig.append(&[(&labels(50), &[histogram(300, 5)])], &limits()).unwrap();
    let range = BlockRange { min: 0, max: 1000 };
    assert_eq!(rig.head.ranges(), [range, BlockRange { min: 1000, max: 2000 }]);
    let whole = rig.head.digests(range, HashRange::ALL, 1)[0];
    assert_eq!((whole.series, whole.digest.samples), (41, 41));
    let parts = rig.head.digests(range, HashRange::ALL, 5);
    assert_eq!(parts.iter().map(|part| part.series).sum::<u64>(), 41);
    let sum = parts.iter().fold(0_u64, |sum, part| sum.wrapping_add(part.digest.checksum));
    assert_eq!(sum, whole.digest.checksum);
    // Page by page, in the order of hashes, every series once.
    let (mut listed, mut first) = (Vec::new(), 0);
    loop {
        let some = rig.head.series_digests(range, HashRange { first, last: u64::MAX }, 7);
        let Some(last) = some.last().map(|series| series.hash) else { break };
        listed.extend(some);
        first = (last >> 64) as u64 + 1;
    }
    assert_eq!(listed.len(), 41);
    assert!(listed.is_sorted_by(|a, b| a.hash < b.hash));
    let hashes: Vec<u128> = listed.iter().map(|series| series.hash).collect();
    let series = rig.head.series_by_hash(range, &hashes);
    assert_eq!(
        series.iter().map(|series| &series.labels).collect::<Vec<_>>(),
        rig.head.series(&[], None).iter().collect::<Vec<_>>()
    );
    for one in &series {
        let bytes = LabelBytes::from_labels(&one.labels);
        let hash = LabelBytes::new_unchecked(&bytes).hash();
        let digest = listed.iter().find(|series| series.hash == hash).unwrap().digest;
        let range = QueryRange { min: 0, max: 999 };
        assert_eq!(SampleDigest::of_chunks(&one.chunks, range).unwrap(), digest);
        // A replica's copy of the same chunks changes nothing.
        let twice: Vec<Chunk> = one.chunks.iter().chain(&one.chunks).cloned().collect();
        assert_eq!(SampleDigest::of_chunks(&twice, range).unwrap(), digest);
    }
    assert!(rig.head.series_by_hash(range, &[7]).is_empty());
}

#[test]
fn hash_ranges_split_without_gaps() {
    for (range, parts) in [
        (HashRange::ALL, 1),
        (HashRange::ALL, 7),
        (HashRange { first: 5, last: 6 }, 4),
        (HashRange { first: 9, last: 9 }, 3),
    ] {
        let split = range.split(parts);
        assert_eq!((split[0].first, split.last().unwrap().last), (range.first, range.last));
        assert!(split.windows(2).all(|pair| pair[0].last + 1 == pair[1].first), "{split:?}");
        assert!(split.len() <= parts);
    }
}

/// What a peer with these samples sends.
fn peer_chunks(series: usize, samples: &[TimedSample]) -> Vec<SeriesChunks> {
    vec![SeriesChunks { labels: labels(series), chunks: recode::encode(samples, RANGE), deleted: Vec::new() }]
}

#[test]
fn imports_go_far_back_and_into_the_next_block() {
    let mut rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(100, 1.0), (9000, 1.0)]);
    let early = rig.cut(5000);
    assert_eq!(early.len(), 1);
    let boundary = rig.head.boundary();
    let version = |rig: &Rig, range| rig.head.changes(range).version(range);
    let (old, young) = (QueryRange { min: 0, max: 999 }, QueryRange { min: 600_000, max: 700_000 });
    let before = (version(&rig, old), version(&rig, young));
    // Far outside the window, below the boundary, in a range that is in a block.
    let limits = ImportLimits { append: AppendLimits { fresh_from: 500_000, ..LIMITS.append }, ..LIMITS };
    let sent = [float(150, 1.0), histogram(200, 3), float(9000, 1.0), float(9500, 4.0)];
    let imported = import(&rig, &peer_chunks(0, &sent), &limits).unwrap();
    assert_eq!((imported.stored, imported.known, imported.conflicts), (3, 1, 0));
    assert_ne!(version(&rig, old), before.0);
    assert_eq!(version(&rig, young), before.1);
    assert_eq!(rig.head.boundary(), boundary);
    let again = import(&rig, &peer_chunks(0, &sent), &limits).unwrap();
    assert_eq!((again.stored, again.known), (0, 4));
    let conflict = import(&rig, &peer_chunks(0, &[float(150, 2.0)]), &limits).unwrap();
    assert_eq!((conflict.stored, conflict.conflicts), (0, 1));
    // The newest sample went on in the open chunk: a later one is in order, an equal one known.
    assert_eq!(reasons(&rig.floats(&labels(0), &[(9500, 4.0), (9600, 1.0)])), []);
    let times = |contents: &Contents| contents.values().flat_map(|s| s.keys().copied()).collect::<Vec<_>>();
    assert_eq!(times(&rig.contents()), [150, 200, 9000, 9500, 9600]);
    rig.restart();
    assert_eq!(times(&rig.contents()), [150, 200, 9000, 9500, 9600]);
    assert!(rig.head.late_bytes() > 0);
    assert_eq!(times(&rig.cut(6000)), [150, 200]);
    assert_eq!(rig.head.late_bytes(), 0);
    rig.restart();
    assert_eq!(times(&rig.contents()), [9000, 9500, 9600]);
}

#[test]
fn imports_are_refused_with_a_reason() {
    let rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(100, 1.0)]);
    let few = ImportLimits { append: AppendLimits { max_series: Some(1), ..LIMITS.append }, ..LIMITS };
    let mut two = peer_chunks(0, &[float(50, 1.0)]);
    two.extend(peer_chunks(1, &[float(50, 1.0)]));
    let error = import(&rig, &two, &few).unwrap_err();
    assert!(matches!(error, ImportError::SeriesLimit { series: 1, limit: 1 }), "{error}");
    assert_eq!(rig.contents()[&labels(0)].len(), 2, "what came before is stored");
    let no_room = ImportLimits { max_late_bytes: 1, ..LIMITS };
    let error = import(&rig, &peer_chunks(0, &[float(51, 1.0)]), &no_room).unwrap_err();
    assert!(matches!(error, ImportError::LateBacklog { limit: 1, .. }), "{error}");
    let clock_behind = ImportLimits { append: AppendLimits { max_time: 60, ..LIMITS.append }, ..LIMITS };
    let imported = import(&rig, &peer_chunks(0, &[float(52, 1.0), float(61, 1.0)]), &clock_behind).unwrap();
    assert_eq!((imported.stored, imported.too_new), (1, 1));
    let imported = import(&rig, &peer_chunks(3, &[float(61, 1.0)]), &clock_behind).unwrap();
    assert_eq!((imported.too_new, rig.head.series_count()), (1, 1));
    // A full disk: nothing of it is stored, and no series remains.
    rig.disk.set_free_bytes(Some(3));
    let error = import(&rig, &peer_chunks(4, &[float(5, 1.0)]), &LIMITS).unwrap_err();
    rig.disk.set_free_bytes(None);
    assert!(matches!(error, ImportError::Append(AppendError::Wal(_))), "{error}");
    assert_eq!((rig.head.series_count(), rig.contents().len()), (1, 1));
    assert_eq!(import(&rig, &peer_chunks(4, &[float(5, 1.0)]), &LIMITS).unwrap().stored, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_chunks_are_refused_or_hold_what_they_say(
        samples in proptest::collection::vec((0..5000_i64, 0..8_u8), 1..60),
        flips in proptest::collection::vec(any::<usize>(), 1..4),
        encoding in 1..5_u8,
    ) {
        let samples: Vec<_> = samples.iter().map(|(t, kind)| (0, *t, *kind)).collect();
        let mut samples: Vec<TimedSample> = batch(0, &samples).into_iter().map(|(_, s)| s).collect();
        samples.sort_by_key(|sample| sample.time);
        samples.dedup_by_key(|sample| sample.time);
        let mut series = peer_chunks(0, &samples);
        let at = flips[0] % series[0].chunks.len();
        let chunk = &mut series[0].chunks[at];
        let mut data = chunk.data.to_vec();
        for flip in flips {
            let bit = flip % (data.len() * 8);
            data[bit / 8] ^= 1 << (bit % 8);
        }
        chunk.data = data.into();
        if encoding != 4 {
            chunk.encoding = crate::chunk::Encoding::from_byte(encoding).unwrap();
        }
        let rig = Rig::new(OPTIONS);
        match import(&rig, &series, &LIMITS) {
            Err(ImportError::Damaged { series: 0, .. }) => prop_assert_eq!(rig.head.series_count(), 0),
            Err(error) => prop_assert!(false, "{}", error),
            // The flip gave another chunk that is well formed.
            Ok(imported) => {
                let held: usize = rig.contents().values().map(BTreeMap::len).sum();
                prop_assert_eq!(held as u64, imported.stored);
            }
        }
    }
}

#[test]
fn imported_history_makes_whole_chunks() {
    let rig = Rig::new(HeadOptions { block_range_ms: 7_200_000 });
    let samples: Vec<TimedSample> = (0..480).map(|i| float(i * 15_000, (i * 7 % 31) as f64)).collect();
    rig.floats(&labels(0), &[(8_000_000, 1.0)]);
    let series =
        vec![SeriesChunks { labels: labels(0), chunks: recode::encode(&samples, 7_200_000), deleted: Vec::new() }];
    assert_eq!(import(&rig, &series, &LIMITS).unwrap().stored, 480);
    let held = rig.head.select(&[], QueryRange::ALL).next_batch(usize::MAX).unwrap().unwrap();
    assert!(held[0].chunks.len() <= 8, "{} chunks", held[0].chunks.len());
    let sent: usize = series[0].chunks.iter().map(|chunk| chunk.data.len()).sum();
    assert!(rig.head.late_bytes() < sent + 4096, "{} for {sent}", rig.head.late_bytes());
}
