//! The data both sides answer from: what each metric is like, its series, and their samples, written as blocks.
//!
//! Every sample's time is 1 modulo [`GRID_MS`] milliseconds, so that the edges of windows, which are not, never hit one.

use std::path::Path;
use std::sync::Arc;

use skald::runtime::Rng;
use skald_model::{BlockRange, FloatHistogram, Histogram, HistogramValue, Labels, ResetHint, Span, stale_nan};
use skald_tsdb::block::{BlockWriter, Compaction, LocalBlock, MergeBlocks, NewBlock, SymbolSet};
use skald_tsdb::disk::{Disk, RealDisk};
use skald_tsdb::encode::ChunkEncoder;
use ulid::Ulid;

use super::chance::Chance;

/// Times count modulo this many milliseconds.
pub const GRID_MS: i64 = 4;
/// The remainder of every sample's time.
pub const SAMPLE_PHASE: i64 = 1;
/// Where the data begins: the start of a two-hour block.
pub const BEGIN_MS: i64 = 1_699_999_200_000;
/// Length of the data.
pub const LENGTH_MS: i64 = 3 * 3_600_000;
const BLOCK_MS: i64 = 2 * 3_600_000;
const INTERVAL_MS: i64 = 15_000;

/// What the samples of a metric are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A large counter, with gaps, stale markers and jitter. Sometimes it is 0 for one sample, or falls to half. Its
    /// increase between such events is small beside its value.
    Counter,
    /// A small counter from 0, scraped regularly.
    YoungCounter,
    /// Any finite number; regular.
    Gauge,
    /// Few small values, often the same; regular.
    Level,
    /// Positive numbers of many digits, series come and go.
    Size,
    /// NaN, infinities, zeros of both signs, numbers large and small.
    Weird,
    /// The same without negative ones.
    WeirdPositive,
    /// 0 or 1, with stale markers where the target vanishes.
    Up,
    /// A sample every few minutes, so that lookback decides.
    Sparse,
    /// Always 1.
    Info,
    /// Buckets of a classic histogram, large counters.
    Bucket,
    /// The number of its observations.
    BucketCount,
    /// A native histogram that counts.
    Native,
    /// A native histogram of several resolutions, one per series.
    NativeSchemas,
    /// A native histogram with half its observations in the zero bucket and none below.
    NativeZero,
    /// A native histogram that goes up and down; float counts.
    NativeGauge,
    /// Floats at first, native histograms later.
    Mixed,
}

/// A metric and the labels its series have.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub shape: Shape,
    pub labels: &'static [&'static str],
}

const fn metric(name: &'static str, shape: Shape, labels: &'static [&'static str]) -> Metric {
    Metric { name, shape, labels }
}

pub const METRICS: &[Metric] = &[
    metric("requests_total", Shape::Counter, &["job", "instance", "code"]),
    metric("errors_total", Shape::Counter, &["job", "instance"]),
    metric("young_total", Shape::YoungCounter, &["job", "instance"]),
    metric("temperature", Shape::Gauge, &["job", "instance", "sensor"]),
    metric("voltage", Shape::Gauge, &["job", "instance"]),
    metric("level", Shape::Level, &["job", "instance"]),
    metric("queue_length", Shape::Level, &["job", "instance", "queue"]),
    metric("size_bytes", Shape::Size, &["job", "instance", "disk"]),
    metric("weird", Shape::Weird, &["job", "kind"]),
    metric("weird_positive", Shape::WeirdPositive, &["job", "kind"]),
    metric("up", Shape::Up, &["job", "instance"]),
    metric("sparse", Shape::Sparse, &["job", "instance"]),
    metric("build_info", Shape::Info, &["job", "instance", "version"]),
    metric("owner", Shape::Info, &["job", "team"]),
    metric("orphan", Shape::Gauge, &["cluster", "sensor"]),
    metric("latency_seconds_bucket", Shape::Bucket, &["job", "instance", "le"]),
    metric("latency_seconds_count", Shape::BucketCount, &["job", "instance"]),
    metric("rpc_duration", Shape::Native, &["job", "instance"]),
    metric("io_duration", Shape::NativeSchemas, &["job", "instance"]),
    metric("idle_duration", Shape::NativeZero, &["job", "instance"]),
    metric("queue_age", Shape::NativeGauge, &["job", "instance"]),
    metric("changeling", Shape::Mixed, &["job", "instance"]),
];

/// Upper bounds of the classic histogram's buckets.
pub const LE: &[&str] = &["0.005", "0.1", "0.5", "1", "2.5", "10", "+Inf"];

const JOBS: &[&str] = &["api", "db", "edge \"β\""];
const INSTANCES: &[&str] = &["a:1", "b:2", "c.d:3"];

/// Values a label has somewhere, and one that it has nowhere.
pub fn values_of(label: &str) -> &'static [&'static str] {
    match label {
        "job" => &["api", "db", "edge \"β\"", "nobody"],
        "instance" => &["a:1", "b:2", "c.d:3", "d:4"],
        "code" => &["200", "404", "500", "2000"],
        "sensor" => &["cpu", "disk", "cpu\\0", "none"],
        "queue" => &["in", "out", "out<&>"],
        "disk" => &["sda", "sdb", "sdc"],
        "kind" => &["nan", "inf", "mix", "zero", "none"],
        "version" => &["1.0", "1.1", "2.0"],
        "team" => &["red", "blue", "green"],
        "cluster" => &["eu", "us"],
        "le" => LE,
        _ => &["x", "y"],
    }
}

/// A sample of a series: floats, or a histogram.
#[derive(Debug, Clone)]
enum Value {
    Float(f64),
    Histogram(HistogramValue),
}

struct Series {
    labels: Labels,
    samples: Vec<(i64, Value)>,
}

/// The times at which a series is scraped, and where a stale marker follows.
struct Scrapes {
    times: Vec<i64>,
    /// Positions in `times` that hold a stale marker.
    stale: Vec<usize>,
}

/// How regularly a shape is scraped.
fn scrapes(shape: Shape, chance: &Chance) -> Scrapes {
    let (jitter, interval, holes) = match shape {
        Shape::YoungCounter | Shape::Gauge | Shape::Level => (0, INTERVAL_MS, false),
        Shape::Sparse => (15_000, 270_000, false),
        Shape::Info => (0, 60_000, false),
        _ => (900, INTERVAL_MS, true),
    };
    // Multiples of the grid, so that only the sample's own phase remains.
    let grid = |ms: i64| ms / GRID_MS * GRID_MS;
    let mut time = BEGIN_MS + grid(chance.below(interval as usize) as i64) + SAMPLE_PHASE;
    let mut end = BEGIN_MS + LENGTH_MS;
    if chance.one_in(4) {
        time += grid(chance.below(LENGTH_MS as usize / 2) as i64);
    }
    if chance.one_in(4) {
        end -= grid(chance.below(LENGTH_MS as usize / 3) as i64);
    }
    let (mut times, mut stale) = (Vec::new(), Vec::new());
    while time < end {
        times.push(time);
        if holes && chance.one_in(60) {
            let hole = interval * chance.between(1, 30);
            if chance.one_in(2) {
                stale.push(times.len());
                times.push(time + interval);
            }
            time += hole + interval;
        }
        time += interval + grid(if jitter > 0 { chance.between(-jitter, jitter) } else { 0 });
    }
    if chance.one_in(2) && !times.is_empty() {
        stale.push(times.len());
        times.push(time);
    }
    Scrapes { times, stale }
}

/// The values of a series one after the other.
struct Walk<'a> {
    shape: Shape,
    chance: &'a Chance,
    /// Position of the sample.
    at: usize,
    value: f64,
    /// What a counter grows by at most, in eighths.
    growth: usize,
    variant: usize,
    /// Of a histogram: counts of its buckets, the zero bucket first.
    buckets: Vec<u64>,
    sum: f64,
}

impl<'a> Walk<'a> {
    fn new(shape: Shape, variant: usize, chance: &'a Chance) -> Self {
        let value = match shape {
            Shape::Counter | Shape::BucketCount | Shape::Mixed => chance.between(40_000, 4_000_000) as f64,
            _ => 0.0,
        };
        let buckets = match shape {
            Shape::NativeZero => vec![100_000, 20_000, 0, 30_000, 40_000],
            _ => (0..9).map(|_| if chance.one_in(4) { 0 } else { chance.between(20_000, 90_000) as u64 }).collect(),
        };
        let sum = chance.between(10_000, 20_000) as f64;
        Walk { shape, chance, at: 0, value, growth: chance.between(0, 90) as usize, variant, buckets, sum }
    }

    fn next(&mut self) -> Value {
        self.at += 1;
        Value::Float(match self.shape {
            Shape::Counter => return Value::Float(self.counter()),
            Shape::YoungCounter => {
                if self.at > 1 {
                    self.value += self.chance.below(40) as f64 / 8.0;
                }
                if self.chance.one_in(150) {
                    self.value = 0.0;
                }
                self.value
            }
            // The first is negative: a rate does not look for the zero of a series that begins below it.
            Shape::Gauge if self.at == 1 => self.chance.real(-273.15, -200.0),
            Shape::Gauge => self.chance.real(-50.0, 120.0),
            Shape::Level if self.at == 1 => -1.0,
            Shape::Level => {
                if self.chance.one_in(3) {
                    self.value = (self.chance.between(-6, 20) as f64) / 2.0;
                }
                self.value
            }
            Shape::Size => self.chance.real(1e3, 1e9),
            Shape::Weird => weird(self.variant, self.chance),
            Shape::WeirdPositive => {
                // Neither negative numbers nor the negative zero.
                let value = weird(self.variant, self.chance);
                if value.is_nan() || value == f64::INFINITY || value > 0.0 { value } else { 0.0 }
            }
            Shape::Up => f64::from(u8::from(!self.chance.one_in(6))),
            Shape::Sparse => self.chance.between(0, 100) as f64,
            Shape::Info => 1.0,
            Shape::Mixed if self.at < 300 => self.counter(),
            Shape::Bucket | Shape::BucketCount => return Value::Float(self.value),
            _ => return Value::Histogram(self.histogram()),
        })
    }

    fn counter(&mut self) -> f64 {
        if self.chance.one_in(250) {
            // Gone for one sample, then begun anew at half.
            self.value *= 0.5;
            self.value = (self.value * 8.0).floor() / 8.0;
            if self.chance.one_in(2) {
                return 0.0;
            }
        }
        self.value += self.chance.below(self.growth + 1) as f64 / 8.0;
        self.value
    }

    fn histogram(&mut self) -> HistogramValue {
        if self.shape == Shape::NativeGauge {
            return HistogramValue::Float(Arc::new(self.gauge_histogram()));
        }
        if self.chance.one_in(250) {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.sum = (self.sum * 4.0).floor() / 8.0;
        }
        for count in self.buckets.iter_mut().filter(|count| **count > 0) {
            *count += self.chance.below(8) as u64;
        }
        self.sum += self.chance.below(100) as f64 / 8.0;
        let (schema, zero_threshold) = match self.shape {
            Shape::NativeSchemas => ([0, 1, 3][self.variant % 3], 0.001),
            Shape::NativeZero => (0, 0.125),
            _ => (2, 0.001),
        };
        // The first count is the zero bucket's; the last three are negative buckets unless there are none.
        let counts = &self.buckets[1..];
        let positive = if self.shape == Shape::NativeZero { counts } else { &counts[..counts.len() - 3] };
        let negative = &counts[positive.len()..];
        let (positive_spans, positive_deltas) = sparse(positive, -2);
        let (negative_spans, negative_deltas) = sparse(negative, 0);
        HistogramValue::Integer(Arc::new(Histogram {
            reset_hint: ResetHint::Unknown,
            schema,
            zero_threshold,
            zero_count: self.buckets[0],
            count: self.buckets.iter().sum(),
            sum: self.sum,
            positive_spans,
            negative_spans,
            positive_deltas,
            negative_deltas,
            ..Histogram::default()
        }))
    }

    fn gauge_histogram(&self) -> FloatHistogram {
        let counts: Vec<f64> = (0..4).map(|_| self.chance.below(4000) as f64 / 8.0 + 0.125).collect();
        FloatHistogram {
            reset_hint: ResetHint::Gauge,
            schema: 1,
            zero_threshold: 0.001,
            zero_count: counts[0],
            count: counts.iter().sum(),
            sum: self.chance.below(1000) as f64 / 8.0,
            positive_spans: vec![Span { offset: 1, length: 3 }],
            positive_buckets: counts[1..].to_vec(),
            ..FloatHistogram::default()
        }
    }
}

fn weird(variant: usize, chance: &Chance) -> f64 {
    let any = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.5, 1e300, -1e300, 1e-7, 123_456_789.0, 1e21, 999_999_999_999_999.9];
    match variant % 4 {
        0 if chance.one_in(2) => f64::NAN,
        1 if chance.one_in(2) => *chance.pick(&[f64::INFINITY, f64::NEG_INFINITY]),
        2 if chance.one_in(4) => *chance.pick(&[f64::INFINITY, f64::NEG_INFINITY, f64::NAN]),
        3 => *chance.pick(&[0.0, -0.0]),
        _ => *chance.pick(&any),
    }
}

/// Spans and deltas of the populated ones among consecutive buckets, the first of which has index `first`.
fn sparse(counts: &[u64], first: i32) -> (Vec<Span>, Vec<i64>) {
    let (mut spans, mut deltas): (Vec<Span>, Vec<i64>) = (Vec::new(), Vec::new());
    let (mut next, mut previous) = (0, 0);
    for (index, &count) in (first..).zip(counts).filter(|(_, count)| **count > 0) {
        match spans.last_mut() {
            Some(span) if index == next => span.length += 1,
            last => {
                let offset = if last.is_some() { index - next } else { index };
                spans.push(Span { offset, length: 1 });
            }
        }
        deltas.push(count as i64 - previous);
        (previous, next) = (count as i64, index + 1);
    }
    (spans, deltas)
}

/// Every series of a metric.
fn series_of(metric: &Metric, chance: &Chance) -> Vec<Series> {
    let mut all = Vec::new();
    let mut sets: Vec<Vec<(&str, &str)>> = vec![vec![("__name__", metric.name)]];
    for label in metric.labels.iter().filter(|label| **label != "le") {
        let values = match *label {
            "job" => JOBS,
            "instance" => INSTANCES,
            // One of them per series: they say something about it.
            "version" | "team" => &[""],
            other => &values_of(other)[..values_of(other).len().min(3)],
        };
        sets = sets.iter().flat_map(|set| values.iter().map(|v| [&set[..], &[(*label, *v)]].concat())).collect();
    }
    for (variant, mut set) in sets.into_iter().enumerate() {
        // Some targets lack some series, so that joins find nobody.
        if chance.one_in(8) {
            continue;
        }
        for (name, value) in &mut set {
            if value.is_empty() {
                *value = *chance.pick(values_of(name));
            }
        }
        let scrapes = scrapes(metric.shape, chance);
        if metric.shape == Shape::Bucket {
            all.extend(classic(&set, &scrapes, chance));
            continue;
        }
        let mut walk = Walk::new(metric.shape, variant, chance);
        if metric.shape == Shape::BucketCount {
            walk.shape = Shape::Counter;
        }
        let is_histogram = |value: &Value| matches!(value, Value::Histogram(_));
        let mut samples: Vec<(i64, Value)> = Vec::new();
        for (at, &time) in scrapes.times.iter().enumerate() {
            let value = match samples.last() {
                Some((_, last)) if scrapes.stale.contains(&at) && is_histogram(last) => {
                    Value::Histogram(stale_histogram(last))
                }
                _ if scrapes.stale.contains(&at) => Value::Float(stale_nan()),
                _ => walk.next(),
            };
            samples.push((time, value));
        }
        all.push(Series { labels: Labels::from_pairs(set), samples });
    }
    all
}

/// The stale marker after a histogram, of its kind: 2.42 counts one of another kind as a sample.
fn stale_histogram(last: &Value) -> HistogramValue {
    let sum = stale_nan();
    match last {
        Value::Histogram(HistogramValue::Float(_)) => {
            HistogramValue::Float(Arc::new(FloatHistogram { sum, ..FloatHistogram::default() }))
        }
        _ => HistogramValue::Integer(Arc::new(Histogram { sum, ..Histogram::default() })),
    }
}

/// The buckets of one classic histogram: cumulative, each a large counter or empty for ever.
fn classic(set: &[(&str, &str)], scrapes: &Scrapes, chance: &Chance) -> Vec<Series> {
    let mut own: Vec<i64> =
        LE.iter().map(|_| if chance.one_in(3) { 0 } else { chance.between(40_000, 90_000) }).collect();
    own[0] = chance.between(40_000, 90_000);
    let labels = |le: &str| Labels::from_pairs(set.iter().copied().chain([("le", le)]));
    let mut all: Vec<Series> = LE.iter().map(|le| Series { labels: labels(le), samples: Vec::new() }).collect();
    for (at, &time) in scrapes.times.iter().enumerate() {
        if chance.one_in(250) {
            own.iter_mut().for_each(|count| *count /= 2);
        }
        own.iter_mut().filter(|count| **count > 0).for_each(|count| *count += chance.between(0, 7));
        let mut cumulative = 0;
        for (series, count) in all.iter_mut().zip(&own) {
            cumulative += count;
            let value = if scrapes.stale.contains(&at) { stale_nan() } else { cumulative as f64 };
            series.samples.push((time, Value::Float(value)));
        }
    }
    all
}

/// What was written, for the report.
#[derive(Debug)]
pub struct Written {
    pub series: usize,
    pub samples: usize,
    /// Times of samples, for questions at and beside them.
    pub times: Vec<i64>,
}

/// Writes all series into `dir` as blocks of two hours, three of each, as compaction leaves them: two replicas, each of which
/// lacks some samples and begins its chunks at others, are merged and split by series.
pub fn write_blocks(dir: &Path, chance: &Chance) -> Written {
    let mut all: Vec<Series> = METRICS.iter().flat_map(|metric| series_of(metric, chance)).collect();
    all.sort_by(|a, b| a.labels.cmp(&b.labels));
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    std::fs::create_dir_all(dir).unwrap();
    let ulids = Rng::seeded(1);
    for (min, max) in [(BEGIN_MS, BEGIN_MS + BLOCK_MS), (BEGIN_MS + BLOCK_MS, BEGIN_MS + 2 * BLOCK_MS)] {
        let range = BlockRange { min, max };
        let replicas = [0, 1].map(|replica| write_replica(&disk, dir, ulids.ulid(max), range, &all, replica));
        let merge = MergeBlocks { shards: 3, ..MergeBlocks::new(&replicas) };
        let written = merge.write(&disk, dir, &mut |_| ulids.ulid(max), &mut |_, _| ()).unwrap();
        assert_eq!(written.len(), 3);
        replicas.iter().for_each(|replica| std::fs::remove_dir_all(replica.dir()).unwrap());
    }
    let times = all.iter().flat_map(|series| series.samples.iter().map(|(time, _)| *time)).collect::<Vec<_>>();
    Written { series: all.len(), samples: times.len(), times }
}

fn write_replica(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    ulid: Ulid,
    range: BlockRange,
    all: &[Series],
    replica: usize,
) -> Arc<LocalBlock> {
    let compaction = Compaction { level: 1, sources: vec![ulid], ..Compaction::default() };
    let new = NewBlock { ulid, range, compaction, thanos: None };
    let mut symbols = SymbolSet::default();
    all.iter().for_each(|series| symbols.insert_labels(&series.labels).unwrap());
    let mut writer = BlockWriter::create(disk.clone(), dir, new, symbols.sort()).unwrap();
    for series in all {
        let mut encoder = ChunkEncoder::default();
        let inside = series.samples.iter().filter(|(time, _)| (range.min..range.max).contains(time));
        for (number, (time, value)) in inside.enumerate() {
            if number / 70 % 4 == 2 * replica {
                continue;
            }
            match value {
                Value::Float(value) => encoder.push_float(*time, *value),
                Value::Histogram(histogram) => encoder.push_histogram(*time, histogram).unwrap(),
            }
        }
        writer.add_series(&series.labels, &encoder.finish()).unwrap();
    }
    writer.finish().unwrap().expect("a block");
    Arc::new(LocalBlock::open(&**disk, &dir.join(ulid.to_string())).unwrap())
}
