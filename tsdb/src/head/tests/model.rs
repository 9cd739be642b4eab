//! Random appends, cuts, snapshots, restarts and full disks against a naive model.

use super::*;

/// What the head should do, said in the plainest way.
#[derive(Default)]
struct Model {
    /// Generation and value by series and time.
    head: BTreeMap<Labels, BTreeMap<TimestampMs, (u32, String)>>,
    blocks: Contents,
    newest_in_order: BTreeMap<Labels, TimestampMs>,
    boundary: TimestampMs,
    generation: u32,
    newest: TimestampMs,
}

impl Model {
    fn new() -> Self {
        Self { boundary: TimestampMs::MIN, newest: TimestampMs::MIN, ..Self::default() }
    }

    /// `Some` stored or known, `None` refused. `newest` is the head's before the request.
    fn append(&mut self, series: &Labels, sample: &TimedSample, limits: &AppendLimits, newest: TimestampMs) -> bool {
        let (t, value) = (sample.time, full_text(sample));
        if t > limits.max_time {
            return false;
        }
        let newer = self.newest_in_order.get(series).is_none_or(|last| t > *last);
        let in_order = newer && t >= self.boundary;
        if !in_order {
            if let Some((_, stored)) = self.head.get(series).and_then(|samples| samples.get(&t)) {
                // The start that came first stays.
                let plain = |text: &str| text.split(" since ").next().map(str::to_owned);
                return plain(stored) == plain(&value);
            }
            if t < newest.min(limits.max_time).saturating_sub(WINDOW) {
                return false;
            }
        }
        if in_order {
            self.newest_in_order.insert(series.clone(), t);
        }
        self.head.entry(series.clone()).or_default().insert(t, (self.generation, value));
        self.newest = self.newest.max(t);
        true
    }

    fn cut(&mut self, up_to: TimestampMs) -> Contents {
        self.boundary = self.boundary.max(up_to);
        self.generation += 1;
        let mut written = Contents::new();
        for (series, samples) in &mut self.head {
            let gone = samples.extract_if(..self.boundary, |_, (generation, _)| *generation < self.generation);
            for (t, (_, value)) in gone {
                written.entry(series.clone()).or_default().insert(t, value);
            }
        }
        self.head.retain(|_, samples| !samples.is_empty());
        self.newest_in_order.retain(|_, last| *last >= self.boundary);
        written
    }

    fn contents(&self) -> Contents {
        let plain = |samples: &BTreeMap<TimestampMs, (u32, String)>| {
            samples.iter().map(|(t, (_, value))| (*t, value.clone())).collect()
        };
        self.head.iter().map(|(series, samples)| (series.clone(), plain(samples))).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Series, time, kind of value.
    Append(Vec<(usize, TimestampMs, u8)>),
    Cut(TimestampMs),
    BeginCutOnly(TimestampMs),
    /// So many pieces of a snapshot.
    Snapshot(usize),
    Restart,
    /// After a bit of the newest snapshot has flipped.
    RestartDamaged(usize),
    DiskFull(Vec<(usize, TimestampMs, u8)>, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let samples = || proptest::collection::vec((0..5_usize, 0..300_i64, 0..8_u8), 1..40);
    let step = prop_oneof![
        12 => samples().prop_map(Step::Append),
        2 => (0..8_i64).prop_map(|n| Step::Cut(n * RANGE / 2)),
        1 => (0..8_i64).prop_map(|n| Step::BeginCutOnly(n * RANGE / 2 + 7)),
        6 => (1..9_usize).prop_map(Step::Snapshot),
        2 => Just(Step::Restart),
        1 => any::<usize>().prop_map(Step::RestartDamaged),
        1 => (samples(), 0..400_u64).prop_map(|(samples, free)| Step::DiskFull(samples, free)),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Times wander upwards with the steps; the value depends on little, so that repeats are often equal.
pub(in crate::head) fn batch(at: usize, samples: &[(usize, TimestampMs, u8)]) -> Vec<(Labels, TimedSample)> {
    let base = at as i64 * 170;
    let sample = |t: TimestampMs, kind: u8| match kind {
        0 => histogram(t, 5 + t.unsigned_abs() / 50),
        1 => float(t, skald_model::stale_nan()),
        2 => float(t, 7.0),
        _ => float(t, (t / 7) as f64 * 0.5),
    };
    // Some samples have a start: one of their own, or that of many.
    let sample = |t: TimestampMs, kind: u8| match t % 5 {
        0 => started(sample(t, kind), t - 11),
        1 => started(sample(t, kind), 3),
        _ => sample(t, kind),
    };
    samples.iter().map(|(i, t, kind)| (labels(*i), sample(base + t, *kind))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn behaves_like_the_model(steps in steps()) {
        let mut rig = Rig::with_segments(OPTIONS, 2000);
        let mut model = Model::new();
        let mut had_two_snapshots = false;
        for (at, step) in steps.iter().enumerate() {
            let limits = AppendLimits { max_time: 4200, ..limits() };
            match step {
                Step::Append(samples) => {
                    let batch = batch(at, samples);
                    let newest = model.newest;
                    // The head takes a series' floats before its histograms; one sample per entry keeps their order.
                    let accepted = batch.iter().filter(|(l, s)| model.append(l, s, &limits, newest)).count() as u64;
                    let entries: Vec<_> = batch.iter().map(|(l, s)| (l, std::slice::from_ref(s))).collect();
                    let appended = rig.append(&entries, &limits).unwrap();
                    prop_assert_eq!(appended.samples + appended.histograms, accepted, "{:?}", appended);
                    let refused: u64 = appended.rejections.iter().map(|r| r.count).sum();
                    prop_assert_eq!(refused + accepted, batch.len() as u64);
                }
                Step::Cut(up_to) => {
                    let expected = model.cut(*up_to);
                    prop_assert_eq!(&rig.cut(*up_to), &expected);
                    for (series, samples) in expected {
                        model.blocks.entry(series).or_default().extend(samples);
                    }
                }
                Step::BeginCutOnly(up_to) => {
                    // A flush that fails after it began: nothing is lost, the next cut covers it.
                    rig.head.begin_cut(&rig.wal, *up_to).unwrap();
                    model.boundary = model.boundary.max(*up_to);
                    model.generation += 1;
                }
                Step::Snapshot(pieces) => _ = rig.snapshot(*pieces),
                Step::Restart | Step::RestartDamaged(_) => {
                    // What a damaged one lost is in the other, or in the log while that goes back to its beginning.
                    let snapshots = rig.wal.snapshots();
                    had_two_snapshots |= snapshots.len() == 2;
                    let supplied = snapshots.len() == 2 || !had_two_snapshots;
                    if let (Step::RestartDamaged(at), Some(newest), true) = (step, snapshots.last(), supplied) {
                        rig.flip_a_bit(&format!("snapshot-{:010}", newest.segment.0), *at);
                    }
                    rig.restart();
                    let times = model.head.values().flat_map(|samples| samples.keys());
                    model.newest = times.max().copied().unwrap_or(TimestampMs::MIN);
                    prop_assert_eq!(rig.head.boundary(), model.boundary);
                }
                Step::DiskFull(samples, free) => {
                    let batch = batch(at, samples);
                    let entries: Vec<_> = batch.iter().map(|(l, s)| (l, std::slice::from_ref(s))).collect();
                    rig.disk.set_free_bytes(Some(*free));
                    let appended = rig.append(&entries, &limits);
                    rig.disk.set_free_bytes(None);
                    rig.head.chunk_files.upkeep();
                    if appended.is_ok() {
                        let newest = model.newest;
                        batch.iter().for_each(|(l, s)| _ = model.append(l, s, &limits, newest));
                    }
                }
            }
            let expected = model.contents();
            prop_assert_eq!(&rig.contents(), &expected, "after step {} {:?}", at, step);
            prop_assert_eq!(rig.head.series_count(), expected.len());
            let texts: BTreeSet<&str> = expected.keys().flat_map(|labels| labels.iter()).flat_map(|(n, v)| [n, v]).collect();
            prop_assert_eq!(rig.head.stats().symbols, texts.len());
            let late = rig.head.pages.read().iter().map(|page| page.read().late_bytes()).sum::<usize>();
            prop_assert_eq!(rig.head.late_bytes(), late);
            prop_assert_eq!(rig.head.series(&[], None), expected.keys().cloned().collect::<Vec<_>>());
        }
    }
}
