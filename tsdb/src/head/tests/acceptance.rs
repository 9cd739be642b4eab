//! Which samples and series a head accepts.

use super::*;

#[test]
fn samples_older_than_the_last_follow_the_window() {
    let rig = Rig::new(OPTIONS);
    let a = labels(0);
    assert_eq!(reasons(&rig.floats(&a, &[(5000, 1.0)])), []);
    assert_eq!(reasons(&rig.floats(&a, &[(5000, 1.0), (5000, 2.0)])), [(RejectReason::DuplicateTimestamp, 1)]);
    assert_eq!(reasons(&rig.floats(&a, &[(4000, 1.0), (3500, 1.0), (3499, 1.0)])), [(RejectReason::TooOld, 1)]);
    assert_eq!(reasons(&rig.floats(&a, &[(4000, 1.0)])), []);
    assert_eq!(reasons(&rig.floats(&a, &[(4000, 3.0)])), [(RejectReason::DuplicateTimestamp, 1)]);
    // Another series' first sample is accepted wherever others are.
    assert_eq!(reasons(&rig.floats(&labels(1), &[(10, 1.0)])), []);
    // The next request may have another one.
    let strict = AppendLimits { out_of_order_window_ms: 0, ..limits() };
    let late = rig.append(&[(&a, &[float(4999, 1.0), float(5000, 1.0)])], &strict).unwrap();
    assert_eq!(reasons(&late), [(RejectReason::OutOfOrder, 1)]);
    assert_eq!(reasons(&rig.floats(&a, &[(4999, 1.0)])), []);
}

#[test]
fn a_sample_far_in_the_future_blocks_nothing() {
    let rig = Rig::new(OPTIONS);
    let limits = AppendLimits { max_time: 10_000, ..limits() };
    let batch = [float(9_999_999, 1.0), float(10_000, 2.0)];
    let appended = rig.append(&[(&labels(0), &batch)], &limits).unwrap();
    assert_eq!(reasons(&appended), [(RejectReason::TooFarInFuture, 1)]);
    assert_eq!(rig.append(&[(&labels(1), &[float(9000, 1.0)])], &limits).unwrap().samples, 1);
    assert_eq!(rig.append(&[(&labels(0), &[float(9500, 1.0)])], &limits).unwrap().samples, 1);
}
#[test]
fn limits_refuse_new_series_only() {
    let rig = Rig::new(OPTIONS);
    let limits = AppendLimits { max_series: Some(3), max_series_per_metric: Some(2), ..limits() };
    let (one, two) = ([float(1, 1.0)], [float(2, 1.0)]);
    let add = |i: usize, samples: &[TimedSample]| reasons(&rig.append(&[(&labels(i), samples)], &limits).unwrap());
    assert_eq!((add(0, &one), add(2, &one)), (vec![], vec![]));
    assert_eq!(add(4, &one), [(RejectReason::SeriesPerMetricLimit, 1)]);
    assert_eq!(add(1, &one), []);
    assert_eq!(add(3, &one), [(RejectReason::SeriesLimit, 1)]);
    assert_eq!(add(0, &two), []);
    assert_eq!(rig.head.series_count(), 3);
}

/// Appends a float to each series, known by its hash.
fn append_known(rig: &Rig, series: &[&Labels], sample: FloatSample) -> Appended {
    let hashes: Vec<u128> =
        series.iter().map(|labels| LabelBytes::new_unchecked(&LabelBytes::from_labels(labels)).hash()).collect();
    let request = hashes.iter().map(|hash| SeriesAppend {
        labels: None,
        hash: *hash,
        samples: std::slice::from_ref(&sample),
        sample_starts: &[],
        histograms: &[],
        histogram_starts: &[],
        exemplars: &[],
    });
    rig.head.append(&rig.wal, request, &limits()).unwrap()
}

#[test]
fn series_are_found_by_their_hash_alone() {
    // So small that most requests begin a new segment, which needs every series' labels.
    let mut rig = Rig::with_segments(OPTIONS, 400);
    let all: Vec<Labels> = (0..6).map(labels).collect();
    for known in [0, 2, 5] {
        rig.floats(&all[known], &[(1000, 1.0)]);
    }
    let every: Vec<&Labels> = all.iter().collect();
    let appended = append_known(&rig, &every, FloatSample { timestamp: 2000, value: 2.0 });
    assert_eq!((appended.samples, &*appended.unknown, &*appended.rejections), (3, &[1, 3, 4][..], &[][..]));
    for round in 0..100 {
        let sample = FloatSample { timestamp: 3000 + round * 1000, value: round as f64 };
        assert_eq!(append_known(&rig, &[&all[5], &all[0], &all[2], &all[0]], sample).samples, 4);
    }
    let refused = append_known(&rig, &[&all[2]], FloatSample { timestamp: 102_000, value: -1.0 });
    assert_eq!(reasons(&refused), [(RejectReason::DuplicateTimestamp, 1)]);
    let before = rig.contents();
    assert_eq!(before.values().map(|samples| samples.len()).collect::<Vec<_>>(), [102; 3]);
    assert_eq!(before.keys().collect::<Vec<_>>(), [&all[0], &all[2], &all[5]]);
    rig.restart();
    assert_eq!(rig.contents(), before);
    let hash = LabelBytes::new_unchecked(&LabelBytes::from_labels(&all[2])).hash();
    assert_eq!((rig.head.labels_by_hash(hash), rig.head.labels_by_hash(hash ^ 1 << 127)), (Some(all[2].clone()), None));
}
