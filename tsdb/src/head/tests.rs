//! The head against a naive model, through appends in and out of order, cuts, restarts and a full disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use skald_model::{
    BlockRange, Exemplar, FloatSample, Histogram, HistogramSample, HistogramValue, LabelBytes, Labels, MatchOp,
    Matcher, MetricMetadata, MetricType, QueryRange, Span, TimestampMs,
};

use super::recode;
use super::sample::{SampleValue, TimedSample};
use super::*;
use crate::chunk::Chunk;
use crate::disk::{Disk, MemDisk};
use crate::wal::{HeadState, RecoveryReport, Replay, Replayed, SnapshotWriter, Wal, WalOptions};
use crate::{Alone, Workers};

mod chunks;

const RANGE: i64 = 1000;
pub(super) const OPTIONS: HeadOptions = HeadOptions { block_range_ms: RANGE, out_of_order_window_ms: 1500 };

/// A head with its log on a disk in memory.
pub(super) struct Rig {
    pub(super) disk: MemDisk,
    pub(super) wal: Wal,
    pub(super) head: Arc<Head>,
    options: HeadOptions,
    /// The snapshot being written.
    snapshot: Option<(SnapshotWriter, SnapshotProgress)>,
}

/// Chunk files of the log's disk whose batches are hardly larger than a chunk; those of an earlier process go.
pub(super) fn open_chunk_files(disk: &MemDisk) -> Arc<ChunkFiles> {
    let options = ChunkFileOptions { file_bytes: 1 << 12, batch_bytes: 150, memory_budget: 1 << 20 };
    let files = ChunkFiles::open(Arc::new(disk.clone()), Path::new("/chunks"), options).unwrap();
    files.upkeep();
    Arc::new(files)
}

/// Three threads.
struct Threads;

impl Workers for Threads {
    fn for_each(&self, count: usize, job: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let numbers = || std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count));
        std::thread::scope(|scope| {
            (0..3.min(count)).for_each(|_| drop(scope.spawn(|| numbers().for_each(job))));
        });
    }

    fn alongside(&self, beside: &mut (dyn FnMut() + Send), work: &mut dyn FnMut()) {
        std::thread::scope(|scope| {
            scope.spawn(beside);
            work();
        });
    }
}

/// Replays one record after the other, in the order of the log.
struct OneByOne<R>(R);

impl<R: Replay> Replay for OneByOne<R> {
    fn segment(&mut self, segment: SegmentId) {
        self.0.segment(segment);
    }

    fn stretch(&mut self, replayed: Vec<Replayed<'_>>, _: &dyn Workers) -> u64 {
        replayed.into_iter().map(|one| self.0.stretch(vec![one], &Alone)).sum()
    }
}

fn copy(disk: &MemDisk) -> MemDisk {
    let (from, to, dir) = (disk, MemDisk::default(), Path::new("/wal"));
    if from.exists(dir) {
        to.create_dir_all(dir).unwrap();
        for entry in from.list(dir).unwrap() {
            let path = dir.join(entry.name);
            to.create(&path).unwrap().append(&from.read(&path).unwrap()).unwrap();
        }
    }
    to
}

/// Opens the log as a process does, after checking that replaying it record by record gives the same.
fn open(disk: &MemDisk, options: HeadOptions, segment_bytes: u64) -> (Wal, Option<Arc<Head>>, RecoveryReport) {
    let make = |files: Arc<ChunkFiles>| move |id, _: &HeadState| Arc::new(Head::new(id, options, files.clone()));
    let wal_options = WalOptions { segment_bytes, compress: true };
    let path = Path::new("/wal");
    // Opening frees segments: each way of replaying gets a disk of its own.
    let twin = copy(disk);
    let mut replay = OneByOne(ReplayHeads::new(make(open_chunk_files(&twin))));
    Wal::open(Arc::new(twin), path, wal_options.clone(), &mut replay, &Alone).unwrap();
    let expected = replay.0.finish(&Alone);
    let mut replay = ReplayHeads::new(make(open_chunk_files(disk)));
    let (wal, report) = Wal::open(Arc::new(disk.clone()), path, wal_options, &mut replay, &Threads).unwrap();
    let mut heads = replay.finish(&Threads);
    let all = |heads: &BTreeMap<HeadId, Arc<Head>>| -> Vec<_> {
        let batch = |head: &Arc<Head>| head.select(&[], QueryRange::ALL).next_batch(usize::MAX);
        let state = |head: &Arc<Head>| (head.id(), head.time_range(), head.boundary(), head.stats().exemplars);
        heads.values().map(|head| (state(head), batch(head))).collect()
    };
    for (found, expected) in all(&heads).iter().zip(&all(&expected)) {
        assert_eq!(found, expected);
    }
    assert_eq!(heads.len(), expected.len());
    (wal, heads.pop_first().map(|(_, head)| head), report)
}

impl Rig {
    pub(super) fn new(options: HeadOptions) -> Self {
        Self::with_segments(options, 1 << 20)
    }

    pub(super) fn with_segments(options: HeadOptions, segment_bytes: u64) -> Self {
        let disk = MemDisk::default();
        let (wal, ..) = open(&disk, options, segment_bytes);
        let head = Arc::new(Head::new(wal.define_head(b"t").unwrap(), options, open_chunk_files(&disk)));
        Self { disk, wal, head, options, snapshot: None }
    }

    /// Writes so many pieces of a snapshot, beginning one if need be; `true` once it is complete.
    pub(super) fn snapshot(&mut self, pieces: usize) -> bool {
        let begin = || (self.wal.begin_snapshot().unwrap(), SnapshotProgress::default());
        let (mut writer, mut progress) = self.snapshot.take().unwrap_or_else(begin);
        for _ in 0..pieces {
            if self.head.write_snapshot(&self.wal, &mut writer, &mut progress, 1).unwrap() {
                self.wal.finish_snapshot(writer).unwrap();
                return true;
            }
        }
        self.snapshot = Some((writer, progress));
        false
    }

    /// The same on a disk that may be full: it is given up then.
    pub(super) fn try_snapshot(&mut self, pieces: usize) {
        let begun = match self.snapshot.take() {
            Some(begun) => Ok(begun),
            None => self.wal.begin_snapshot().map(|writer| (writer, SnapshotProgress::default())),
        };
        let Ok((mut writer, mut progress)) = begun else { return };
        for _ in 0..pieces {
            match self.head.write_snapshot(&self.wal, &mut writer, &mut progress, 1) {
                Ok(false) => {}
                Ok(true) => {
                    let _ = self.wal.finish_snapshot(writer);
                    return;
                }
                Err(_) => return,
            }
        }
        self.snapshot = Some((writer, progress));
    }

    /// A process that is killed removes nothing.
    pub(super) fn kill(&mut self) {
        std::mem::forget(self.snapshot.take());
    }

    /// Opens what is on the disk now.
    pub(super) fn reopen(&mut self) -> (RecoveryReport, Option<Arc<Head>>) {
        let (wal, head, report) = open(&self.disk, self.options, 2000);
        self.wal = wal;
        (report, head)
    }

    /// Kills the process and starts another one on what the log holds.
    fn restart(&mut self) {
        self.kill();
        let (wal, head, report) = open(&self.disk, self.options, 2000);
        assert!(!report.lost_something() && report.torn_tails.is_empty(), "{report:?}");
        (self.wal, self.head) = (wal, head.unwrap());
    }

    fn flip_a_bit(&self, name: &str, at: usize) {
        let path = Path::new("/wal").join(name);
        let mut bytes = self.disk.read(&path).unwrap();
        let at = at % (bytes.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        self.disk.create(&path).unwrap().append(&bytes).unwrap();
    }

    pub(super) fn restart_after_damage(&mut self) {
        self.kill();
        let (wal, head, _) = open(&self.disk, self.options, 2000);
        (self.wal, self.head) = (wal, head.unwrap());
    }

    pub(super) fn append(
        &self,
        batch: &[(&Labels, &[TimedSample])],
        limits: &AppendLimits,
    ) -> Result<Appended, AppendError> {
        append(&self.head, &self.wal, batch, limits)
    }

    pub(super) fn floats(&self, labels: &Labels, samples: &[(TimestampMs, f64)]) -> Appended {
        let samples: Vec<TimedSample> = samples.iter().map(|(t, v)| float(*t, *v)).collect();
        self.append(&[(labels, &samples)], &AppendLimits::default()).unwrap()
    }

    pub(super) fn contents(&self) -> Contents {
        contents(&self.head, &[], QueryRange::ALL)
    }

    /// Cuts up to `up_to`; returns what the blocks hold.
    pub(super) fn cut(&self, up_to: TimestampMs) -> Contents {
        let cut = self.head.begin_cut(&self.wal, up_to).unwrap();
        let blocks = self.write_blocks(cut);
        assert_eq!(self.head.finish_cut(&self.wal, cut).unwrap(), Dropped::Done);
        blocks
    }

    fn write_blocks(&self, cut: Cut) -> Contents {
        let mut blocks = Contents::new();
        for range in self.head.cut_ranges(cut) {
            let mut previous: Option<Labels> = None;
            let mut announced = Vec::new();
            self.head
                .cut_labels(cut, range, |labels, times| {
                    announced.push((labels.clone(), times));
                    Ok::<_, ()>(())
                })
                .unwrap();
            let lost = self
                .head
                .cut_series(cut, range, |labels, chunks| {
                    let (_, times) = announced.iter().find(|(announced, _)| announced == labels).unwrap();
                    assert!(chunks.iter().all(|c| times.min <= c.min_time && c.max_time <= times.max));
                    assert!(previous.as_ref().is_none_or(|previous| previous < labels), "series out of order");
                    previous = Some(labels.clone());
                    check_block_chunks(range, chunks);
                    for chunk in chunks {
                        add(blocks.entry(labels.clone()).or_default(), chunk, "in two blocks");
                    }
                    Ok::<_, ()>(())
                })
                .unwrap();
            assert_eq!(lost, LostChunks::default());
        }
        blocks
    }
}

fn check_block_chunks(range: BlockRange, chunks: &[Chunk]) {
    assert!(chunks.is_sorted_by(|a, b| a.max_time < b.min_time), "chunks overlap");
    assert!(chunks.iter().all(|c| range.min <= c.min_time && c.max_time < range.max), "chunk outside its block");
}

/// Per series, per time, the value as text.
pub(super) type Contents = BTreeMap<Labels, BTreeMap<TimestampMs, String>>;

fn add(series: &mut BTreeMap<TimestampMs, String>, chunk: &Chunk, what: &str) {
    let mut samples = Vec::new();
    recode::decode(chunk.encoding, &chunk.data, QueryRange::ALL, &mut samples).unwrap();
    assert_eq!(samples.first().map(|s| s.time), Some(chunk.min_time));
    assert_eq!(samples.last().map(|s| s.time), Some(chunk.max_time));
    assert_eq!(samples.len(), usize::from(chunk.num_samples()));
    for sample in samples {
        let before = series.insert(sample.time, text(&sample.value));
        assert!(before.is_none(), "time {} {what}", sample.time);
    }
}

pub(super) fn contents(head: &Arc<Head>, matchers: &[Matcher], range: QueryRange) -> Contents {
    let mut select = head.select(matchers, range);
    let mut all = Vec::new();
    while let Some(batch) = select.next_batch(500).unwrap() {
        all.extend(batch);
    }
    assert!(all.is_sorted_by(|a, b| a.labels < b.labels), "series out of order");
    let mut contents = Contents::new();
    for series in all {
        assert!(series.chunks.is_sorted_by_key(|chunk| chunk.min_time));
        let samples = contents.entry(series.labels).or_default();
        series.chunks.iter().for_each(|chunk| add(samples, chunk, "twice in the head"));
    }
    contents
}

fn text(value: &SampleValue) -> String {
    match value {
        SampleValue::Float(value) => format!("{:x}", value.to_bits()),
        SampleValue::Histogram(HistogramValue::Integer(h)) => format!("i {} {:x}", h.count, h.sum.to_bits()),
        SampleValue::Histogram(HistogramValue::Float(h)) => format!("f {} {:x}", h.count, h.sum.to_bits()),
    }
}

pub(super) fn append(
    head: &Head,
    wal: &Wal,
    batch: &[(&Labels, &[TimedSample])],
    limits: &AppendLimits,
) -> Result<Appended, AppendError> {
    struct Owned {
        labels: Vec<u8>,
        floats: Vec<FloatSample>,
        histograms: Vec<HistogramSample>,
    }
    let mut owned = Vec::new();
    for (labels, samples) in batch {
        let (mut floats, mut histograms) = (Vec::new(), Vec::new());
        for TimedSample { time: timestamp, value } in *samples {
            match value.clone() {
                SampleValue::Float(value) => floats.push(FloatSample { timestamp: *timestamp, value }),
                SampleValue::Histogram(value) => histograms.push(HistogramSample { timestamp: *timestamp, value }),
            }
        }
        owned.push(Owned { labels: LabelBytes::from_labels(labels), floats, histograms });
    }
    let series = owned.iter().map(|one| {
        let labels = LabelBytes::new_unchecked(&one.labels);
        let (samples, histograms) = (&one.floats[..], &one.histograms[..]);
        SeriesAppend { labels, hash: labels.hash(), samples, histograms, exemplars: &[] }
    });
    head.append(wal, series, limits)
}

pub(super) fn float(time: TimestampMs, value: f64) -> TimedSample {
    TimedSample { time, value: SampleValue::Float(value) }
}

pub(super) fn histogram(time: TimestampMs, count: u64) -> TimedSample {
    let histogram = Histogram {
        count,
        sum: count as f64,
        positive_spans: vec![Span { offset: (count % 3) as i32, length: 1 }],
        positive_deltas: vec![count as i64],
        ..Histogram::default()
    };
    TimedSample { time, value: SampleValue::Histogram(HistogramValue::Integer(Arc::new(histogram))) }
}

pub(super) fn labels(i: usize) -> Labels {
    Labels::from_pairs([("__name__", format!("m{}", i % 2)), ("i", i.to_string())])
}

fn reasons(appended: &Appended) -> Vec<(RejectReason, u64)> {
    appended.rejections.iter().map(|r| (r.reason, r.count)).collect()
}

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
        let (t, value) = (sample.time, text(&sample.value));
        if t > limits.max_time {
            return false;
        }
        let newer = self.newest_in_order.get(series).is_none_or(|last| t > *last);
        let in_order = newer && t >= self.boundary;
        if !in_order {
            if let Some((_, stored)) = self.head.get(series).and_then(|samples| samples.get(&t)) {
                return *stored == value;
            }
            if t < newest.min(limits.max_time).saturating_sub(OPTIONS.out_of_order_window_ms) {
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
pub(super) fn batch(at: usize, samples: &[(usize, TimestampMs, u8)]) -> Vec<(Labels, TimedSample)> {
    let base = at as i64 * 170;
    let sample = |t: TimestampMs, kind: u8| match kind {
        0 => histogram(t, 5 + t.unsigned_abs() / 50),
        1 => float(t, skald_model::stale_nan()),
        2 => float(t, 7.0),
        _ => float(t, (t / 7) as f64 * 0.5),
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
            let limits = AppendLimits { max_time: 4200, ..AppendLimits::default() };
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
            prop_assert_eq!(rig.head.series(&[]), expected.keys().cloned().collect::<Vec<_>>());
        }
    }
}

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
            rig.append(&entries, &AppendLimits::default()).unwrap();
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
        let (wal, head, report) = open(&rig.disk, OPTIONS, 1000);
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
            (rig.wal, rig.head) = (wal, head);
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
        rig.append(&entries, &AppendLimits::default()).unwrap();
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
    let files: Vec<(String, Vec<u8>)> = rig
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
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    for damaged_at in (0..total).step_by(7) {
        let disk = MemDisk::default();
        disk.create_dir_all(dir).unwrap();
        let mut left = damaged_at;
        for (name, bytes) in &files {
            let mut bytes = bytes.clone();
            if let Some(byte) = bytes.get_mut(left) {
                *byte ^= 0x10;
            }
            left = left.wrapping_sub(bytes.len());
            disk.create(&dir.join(name)).unwrap().append(&bytes).unwrap();
        }
        let (wal, head, report) = open(&disk, OPTIONS, 300);
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
        let mut rig = Rig { disk, wal, head, options: OPTIONS, snapshot: None };
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
    let strict = Rig::new(HeadOptions { out_of_order_window_ms: 0, ..OPTIONS });
    strict.floats(&a, &[(5000, 1.0)]);
    assert_eq!(reasons(&strict.floats(&a, &[(4999, 1.0), (5000, 1.0)])), [(RejectReason::OutOfOrder, 1)]);
}

#[test]
fn a_sample_far_in_the_future_blocks_nothing() {
    let rig = Rig::new(OPTIONS);
    let limits = AppendLimits { max_time: 10_000, ..AppendLimits::default() };
    let batch = [float(9_999_999, 1.0), float(10_000, 2.0)];
    let appended = rig.append(&[(&labels(0), &batch)], &limits).unwrap();
    assert_eq!(reasons(&appended), [(RejectReason::TooFarInFuture, 1)]);
    assert_eq!(rig.append(&[(&labels(1), &[float(9000, 1.0)])], &limits).unwrap().samples, 1);
    assert_eq!(rig.append(&[(&labels(0), &[float(9500, 1.0)])], &limits).unwrap().samples, 1);
}

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
fn limits_refuse_new_series_only() {
    let rig = Rig::new(OPTIONS);
    let limits = AppendLimits { max_series: Some(3), max_series_per_metric: Some(2), ..AppendLimits::default() };
    let (one, two) = ([float(1, 1.0)], [float(2, 1.0)]);
    let add = |i: usize, samples: &[TimedSample]| reasons(&rig.append(&[(&labels(i), samples)], &limits).unwrap());
    assert_eq!((add(0, &one), add(2, &one)), (vec![], vec![]));
    assert_eq!(add(4, &one), [(RejectReason::SeriesPerMetricLimit, 1)]);
    assert_eq!(add(1, &one), []);
    assert_eq!(add(3, &one), [(RejectReason::SeriesLimit, 1)]);
    assert_eq!(add(0, &two), []);
    assert_eq!(rig.head.series_count(), 3);
}

#[test]
fn chunks_end_near_120_samples_and_at_range_ends() {
    let rig = Rig::new(HeadOptions { block_range_ms: 7_200_000, ..OPTIONS });
    let a = labels(0);
    let samples: Vec<_> = (0..700).map(|i| (i * 15_000, (i % 13) as f64)).collect();
    rig.floats(&a, &samples);
    let mut select = rig.head.select(&[], QueryRange::ALL);
    let series = select.next_batch(usize::MAX).unwrap().unwrap().remove(0);
    let starts: Vec<i64> = series.chunks.iter().map(|chunk| chunk.min_time / 15_000).collect();
    assert_eq!(starts, [0, 120, 240, 360, 480, 600]);
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
fn matchers_select_and_labels_are_listed() {
    let rig = Rig::new(OPTIONS);
    for i in 0..40 {
        rig.floats(&labels(i), &[(100, 1.0)]);
    }
    let matcher = |op, name: &str, value: &str| Matcher::new(op, name, value).unwrap();
    let select = |matchers: &[Matcher]| contents(&rig.head, matchers, QueryRange::ALL).into_keys().collect::<Vec<_>>();
    let by_hand = |matchers: &[Matcher]| {
        let all = (0..40).map(labels);
        let mut found: Vec<Labels> =
            all.filter(|l| matchers.iter().all(|m| m.matches(l.get(m.name()).unwrap_or("")))).collect();
        found.sort();
        found
    };
    for matchers in [
        vec![Matcher::equal("__name__", "m1")],
        vec![Matcher::equal("__name__", "m1"), matcher(MatchOp::Regex, "i", "1.*")],
        vec![matcher(MatchOp::NotRegex, "i", "[0-9]"), matcher(MatchOp::NotEqual, "__name__", "m0")],
        vec![matcher(MatchOp::Regex, "i", "3|4|99|11")],
        vec![Matcher::equal("absent", "")],
        vec![matcher(MatchOp::NotEqual, "absent", "")],
        vec![Matcher::equal("__name__", "nothing")],
    ] {
        assert_eq!(select(&matchers), by_hand(&matchers), "{matchers:?}");
    }
    assert!(contents(&rig.head, &[], QueryRange { min: 101, max: 200 }).is_empty());
    let odd = [vec![Matcher::equal("__name__", "m1")]];
    assert_eq!(rig.head.label_names(&[]), ["__name__", "i"]);
    assert_eq!(rig.head.label_names(&odd), ["__name__", "i"]);
    assert_eq!(rig.head.label_values("__name__", &[]), ["m0", "m1"]);
    assert_eq!(rig.head.label_values("__name__", &odd), ["m1"]);
    assert_eq!(rig.head.label_values("i", &odd).len(), 20);
    assert_eq!(rig.head.label_values("m0", &[]), Vec::<String>::new());
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
    let series = SeriesAppend { labels: labels_of, hash, samples: &samples, histograms: &[], exemplars: &exemplars };
    let appended = rig.head.append(&rig.wal, [series], &AppendLimits::default()).unwrap();
    assert_eq!(appended.exemplars, 3, "{appended:?}");
    let orphan = LabelBytes::from_labels(&labels(1));
    let orphan = LabelBytes::new_unchecked(&orphan);
    let series =
        SeriesAppend { labels: orphan, hash: orphan.hash(), samples: &[], histograms: &[], exemplars: &exemplars };
    let refused = rig.head.append(&rig.wal, [series], &AppendLimits::default()).unwrap();
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
fn memory_comes_back_after_churn() {
    let rig = Rig::with_segments(HeadOptions { block_range_ms: 1000, ..OPTIONS }, 20_000);
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
#[expect(clippy::disallowed_methods, reason = "the test needs several threads at once")]
fn threads_append_read_and_cut_at_once() {
    let rig = Rig::with_segments(HeadOptions { block_range_ms: 1000, out_of_order_window_ms: 0 }, 30_000);
    let (wal, head) = (Arc::new(rig.wal), rig.head);
    const SERIES: usize = 40;
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
                    accepted += append(&head, &wal, &batch, &AppendLimits::default()).unwrap().samples;
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
    let (_, replayed, report) = open(&rig.disk, head.options(), 30_000);
    assert!(!report.lost_something(), "{report:?}");
    assert_eq!(contents(&replayed.unwrap(), &[], QueryRange::ALL), final_contents);
}
