//! What readers get: chunks, labels, exemplars, metadata; also while others write.

use super::*;

#[test]
fn chunks_end_near_120_samples_and_at_range_ends() {
    let rig = Rig::new(HeadOptions { block_range_ms: 7_200_000 });
    let a = labels(0);
    let samples: Vec<_> = (0..700).map(|i| (i * 15_000, (i % 13) as f64)).collect();
    rig.floats(&a, &samples);
    let mut select = rig.head.select(&[], QueryRange::ALL);
    let series = select.next_batch(usize::MAX).unwrap().unwrap().remove(0);
    let starts: Vec<i64> = series.chunks.iter().map(|chunk| chunk.min_time / 15_000).collect();
    assert_eq!(starts, [0, 120, 240, 360, 480, 600]);
}

#[test]
fn exemplars_and_metadata_survive_a_restart() {
    let mut rig = Rig::new(OPTIONS);
    let bytes = LabelBytes::from_labels(&labels(0));
    let series_labels = LabelBytes::new_unchecked(&bytes);
    let exemplar = |t| Exemplar { labels: Labels::from_pairs([("trace_id", "x")]), value: 2.0, timestamp: t };
    let exemplars = [exemplar(10), exemplar(10), exemplar(20), exemplar(15)];
    let samples = [FloatSample { timestamp: 10, value: 1.0 }];
    let (labels_of, hash) = (series_labels, series_labels.hash());
    let series = SeriesAppend {
        labels: Some(labels_of),
        hash,
        samples: &samples,
        sample_starts: &[],
        histograms: &[],
        histogram_starts: &[],
        exemplars: &exemplars,
    };
    let appended = rig.head.append(&rig.wal, [series], &limits()).unwrap();
    assert_eq!(appended.exemplars, 3, "{appended:?}");
    let orphan = LabelBytes::from_labels(&labels(1));
    let orphan = LabelBytes::new_unchecked(&orphan);
    let series = SeriesAppend {
        labels: Some(orphan),
        hash: orphan.hash(),
        samples: &[],
        sample_starts: &[],
        histograms: &[],
        histogram_starts: &[],
        exemplars: &exemplars,
    };
    let refused = rig.head.append(&rig.wal, [series], &limits()).unwrap();
    assert_eq!(reasons(&refused), [(RejectReason::ExemplarSeriesMissing, 4)]);
    let about = |metric: &str, help: &str| MetricMetadata {
        metric: metric.into(),
        metric_type: MetricType::Gauge,
        help: help.into(),
        unit: String::new(),
    };
    let limits = MetadataLimits { max_metrics: Some(2), max_per_metric: Some(2) };
    let sent = [about("b", "1"), about("a", "1"), about("a", "1"), about("a", "2"), about("c", "1")];
    let outcome = rig.head.append_metadata(&rig.wal, &sent, limits).unwrap();
    assert_eq!((outcome.accepted, outcome.over_metrics, outcome.over_per_metric), (4, 1, 0));
    for _ in 0..2 {
        let found = rig.head.exemplars(&[vec![Matcher::equal("i", "0")]], QueryRange { min: 0, max: 100 });
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].exemplars, [exemplar(10), exemplar(20)]);
        assert_eq!(rig.head.metadata(None), [about("a", "1"), about("a", "2"), about("b", "1")]);
        rig.restart();
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test needs several threads at once")]
fn threads_append_read_and_cut_at_once() {
    let rig = Rig::with_segments(HeadOptions { block_range_ms: 1000 }, 30_000);
    let (wal, head) = (Arc::new(rig.wal), rig.head);
    const SERIES: usize = 40;
    let in_order = AppendLimits { out_of_order_window_ms: 0, ..limits() };
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (wal, head) = (wal.clone(), head.clone());
            std::thread::spawn(move || {
                let mut accepted = 0;
                for t in 0..300 {
                    // All writers send the same samples: each is stored once, and accepted from everybody.
                    let one = [float(t * 10, t as f64)];
                    let all: Vec<Labels> = (0..SERIES).map(|i| labels((i + writer * 7) % SERIES)).collect();
                    let batch: Vec<_> = all.iter().map(|labels| (labels, &one[..])).collect();
                    accepted += append(&head, &wal, &batch, &in_order).unwrap().samples;
                }
                accepted
            })
        })
        .collect();
    let reader = {
        let head = head.clone();
        std::thread::spawn(move || {
            for _ in 0..60 {
                for (series, samples) in contents(&head, &[], QueryRange::ALL) {
                    let times: Vec<i64> = samples.keys().copied().collect();
                    let whole = times.windows(2).all(|pair| pair[1] == pair[0] + 10);
                    assert!(whole, "{series} misses samples: {times:?}");
                }
            }
        })
    };
    let total: u64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
    reader.join().unwrap();
    let final_contents = contents(&head, &[], QueryRange::ALL);
    assert_eq!(final_contents.values().map(BTreeMap::len).sum::<usize>(), SERIES * 300);
    assert!(total >= (SERIES * 300) as u64);
    let Opened { head: replayed, report, .. } = open(&rig.disk, head.options(), 30_000);
    assert!(!report.lost_something(), "{report:?}");
    assert_eq!(contents(&replayed.unwrap(), &[], QueryRange::ALL), final_contents);
}
