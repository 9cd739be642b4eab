//! Cuts: when they are due, what readers and late samples see of them, and the memory they give back.

use super::*;

#[test]
fn a_cut_is_due_half_a_range_after_its_end() {
    let rig = Rig::new(OPTIONS);
    assert_eq!(rig.head.due_cut(), None);
    rig.floats(&labels(0), &[(700, 1.0), (1499, 1.0)]);
    assert_eq!(rig.head.due_cut(), None);
    rig.floats(&labels(0), &[(1500, 1.0)]);
    assert_eq!(rig.head.due_cut(), Some(1000));
    rig.head.begin_cut(&rig.wal, 1000).unwrap();
    assert_eq!(rig.head.due_cut(), Some(1000), "the cut failed: it is due again");
    rig.cut(1000);
    assert_eq!(rig.head.due_cut(), None);
    rig.floats(&labels(1), &[(900, 1.0)]);
    assert_eq!((rig.head.due_cut(), rig.head.time_range()), (None, Some(QueryRange { min: 900, max: 1500 })));
    rig.floats(&labels(0), &[(5600, 1.0)]);
    assert_eq!(rig.head.due_cut(), Some(5000));
}

#[test]
fn readers_that_began_before_a_cut_keep_what_they_saw() {
    let rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(10, 1.0), (20, 2.0)]);
    rig.floats(&labels(1), &[(10, 1.0), (1500, 2.0)]);
    let mut before = rig.head.select(&[], QueryRange::ALL);
    let cut = rig.head.begin_cut(&rig.wal, 1000).unwrap();
    assert_eq!(rig.write_blocks(cut).len(), 2);
    assert_eq!(rig.head.finish_cut(&rig.wal, cut).unwrap(), Dropped::Pinned);
    let after = rig.contents();
    assert_eq!(after.len(), 1, "new readers see only what no block holds");
    assert_eq!(before.next_batch(usize::MAX).unwrap().unwrap().len(), 2);
    drop(before);
    assert_eq!(rig.head.drop_covered(&rig.wal), Dropped::Done);
    assert_eq!((rig.head.series_count(), rig.contents()), (1, after));
    assert_eq!(rig.head.min_time(), Some(1500));
}

#[test]
fn late_samples_come_with_the_next_cut() {
    let mut rig = Rig::new(OPTIONS);
    rig.floats(&labels(0), &[(10, 1.0), (1200, 1.0)]);
    let cut = rig.head.begin_cut(&rig.wal, 1000).unwrap();
    let blocks = rig.write_blocks(cut);
    rig.floats(&labels(0), &[(500, 5.0)]);
    rig.floats(&labels(1), &[(600, 6.0)]);
    assert_eq!(rig.head.finish_cut(&rig.wal, cut).unwrap(), Dropped::Done);
    assert_eq!(blocks.values().map(BTreeMap::len).sum::<usize>(), 1);
    let times = |contents: &Contents| contents.values().flat_map(|s| s.keys().copied()).collect::<Vec<_>>();
    assert_eq!(times(&rig.contents()), [500, 1200, 600]);
    rig.restart();
    assert_eq!(times(&rig.contents()), [500, 1200, 600]);
    assert_eq!(times(&rig.cut(1000)), [500, 600]);
    assert_eq!(times(&rig.contents()), [1200]);
    rig.restart();
    assert_eq!(times(&rig.contents()), [1200]);
}

#[test]
fn memory_comes_back_after_churn() {
    let rig = Rig::with_segments(HeadOptions { block_range_ms: 1000 }, 20_000);
    let mut sizes = Vec::new();
    for round in 0..6_i64 {
        for i in 0..1500 {
            let pod = format!("pod-{round}-{i}");
            let labels = Labels::from_pairs([("__name__", "m"), ("pod", &pod), ("zone", "a")]);
            let samples: Vec<_> = (0..20).map(|t| (round * 1000 + t * 40, t as f64)).collect();
            rig.floats(&labels, &samples);
        }
        sizes.push(rig.head.stats().heap_bytes);
        rig.cut((round + 1) * 1000);
        assert_eq!(rig.head.stats().series, 0);
    }
    let left = rig.head.stats();
    assert!(left.symbols == 0 && left.heap_bytes < sizes[0] / 2, "{left:?} {sizes:?}");
    assert!(sizes[5] < sizes[0] * 5 / 4, "{sizes:?}");
}

#[test]
fn memory_after_churn_is_that_of_a_head_without() {
    let pod = |round: i64, i: usize| {
        let pod = format!("pod-{round}-{i}-{}", "x".repeat(40));
        Labels::from_pairs([("__name__", format!("m{}", i % 10)), ("pod", pod), ("zone", "a".to_owned())])
    };
    let samples = |round: i64| (0..20).map(|t| (round * 1000 + t * 40, t as f64)).collect::<Vec<_>>();
    // A hundred series stay; of others there are 3,000 at a time, each for one round.
    let send = |rig: &Rig, round: i64, others: usize| {
        (0..100).for_each(|i| _ = rig.floats(&labels(i), &samples(round)));
        (0..others).for_each(|i| _ = rig.floats(&pod(round, i), &samples(round)));
    };
    let (rig, fresh) = (Rig::with_segments(OPTIONS, 20_000), Rig::with_segments(OPTIONS, 20_000));
    for round in 0..5 {
        send(&rig, round, 3000);
        // An early cut: within the range, half a range behind.
        rig.cut(round * 1000 + 500);
        assert_eq!(rig.head.series_before(round * 1000 + 500), 0);
        assert_eq!(rig.head.series_before((round + 1) * 1000), 3100);
    }
    rig.cut(5000);
    send(&rig, 5, 0);
    send(&fresh, 5, 0);
    assert_eq!(rig.contents(), fresh.contents());
    let (left, expected) = (rig.head.stats(), fresh.head.stats());
    assert_eq!((left.series, left.symbols), (expected.series, expected.symbols));
    assert!(left.heap_bytes < expected.heap_bytes + (200 << 10), "{left:?} {expected:?}");
}
