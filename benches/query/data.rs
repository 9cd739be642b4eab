//! The series that are queried, as blocks on disk and as remote_write bodies: always the same values.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skald_model::{BlockRange, Histogram, HistogramValue, Labels, Span, TimestampMs};
use skald_tsdb::block::{BlockWriter, Compaction, NewBlock, SymbolSet};
use skald_tsdb::disk::RealDisk;
use skald_tsdb::encode::ChunkEncoder;
use ulid::Ulid;

use crate::Error;

const DAY: i64 = 86_400_000;
/// Distance of samples, and of a query's steps.
pub const INTERVAL: i64 = 10_000;
/// Most steps of a query.
pub const MAX_STEPS: i64 = 10_000;
/// Samples of what is queried with a range of a day: the steps, the day before them, and some room.
const LONG: i64 = MAX_STEPS + DAY / INTERVAL + 100;
/// Samples of everything else.
const SHORT: i64 = MAX_STEPS + 100;
/// Numbers of series a metric may have.
pub const SIZES: [usize; 3] = [1, 100, 2_000];
/// Upper bounds of classic buckets.
const BOUNDS: [&str; 6] = ["0.1", "0.5", "1", "2.5", "10", "+Inf"];

/// The many series: their number, samples of each, and distance of samples.
pub const MANY: usize = 100_000;
const MANY_SAMPLES: i64 = 240;
pub const MANY_INTERVAL: i64 = 15_000;
/// How long before everything else they begin.
const MANY_BEFORE: i64 = 7 * DAY;

/// When the data is from: whole days, so that blocks begin where those of other systems do.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// First instant after the last sample.
    pub end: TimestampMs,
}

impl Times {
    /// Data that ends with the day before `now`.
    pub fn before(now: TimestampMs) -> Self {
        Self { end: now / DAY * DAY }
    }

    /// The last sample of the many series.
    pub fn many_last(self) -> TimestampMs {
        self.end - MANY_BEFORE + (MANY_SAMPLES - 1) * MANY_INTERVAL
    }

    /// Ranges of the blocks: one of two hours with the many series, and days with the others.
    pub fn blocks(self) -> Vec<BlockRange> {
        let many = self.end - MANY_BEFORE;
        let mut ranges = vec![BlockRange { min: many, max: many + DAY / 12 }];
        let days = (LONG * INTERVAL + DAY - 1) / DAY;
        ranges.extend((1..=days).rev().map(|day| self.end - day * DAY).map(|min| BlockRange { min, max: min + DAY }));
        ranges
    }
}

/// What a series holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Counter,
    /// The bucket of a classic histogram up to this bound.
    Bucket(usize),
    Native,
}

/// One series and how to make its samples.
#[derive(Debug, Clone)]
pub struct Series {
    pub labels: Labels,
    kind: Kind,
    seed: u64,
    first: TimestampMs,
    end: TimestampMs,
    interval: i64,
}

/// Every series in label order.
pub fn series(times: Times) -> Vec<Series> {
    let mut all = Vec::new();
    for size in SIZES {
        for l in 0..size {
            let mut add = |metric: &str, le: Option<&str>, kind, samples, seed: usize| {
                let mut pairs = vec![("__name__", format!("{metric}_{size}")), ("l", format!("{l:04}"))];
                pairs.extend(le.map(|le| ("le", le.to_owned())));
                let first = times.end - samples * INTERVAL;
                let seed = (size * 7_919 + l * 31 + seed) as u64;
                let labels = Labels::from_pairs(pairs);
                all.push(Series { labels, kind, seed, first, end: times.end, interval: INTERVAL });
            };
            add("a", None, Kind::Counter, LONG, 1);
            add("b", None, Kind::Counter, SHORT, 2);
            BOUNDS.iter().enumerate().for_each(|(i, le)| add("h", Some(le), Kind::Bucket(i), SHORT, 3));
            add("nh", None, Kind::Native, SHORT, 4);
        }
    }
    let first = times.end - MANY_BEFORE;
    all.extend((0..MANY).map(|i| {
        let pod = i / 4;
        let labels = Labels::from_pairs([
            ("__name__", "requests_total".to_owned()),
            ("cluster", format!("eu-west-{}", pod % 3)),
            ("code", ["200", "404", "500", "503"][i % 4].to_owned()),
            ("instance", format!("10.{}.{}.{}:8080", pod >> 16, (pod >> 8) & 255, pod & 255)),
            ("job", format!("team-{}/app-{:03}", pod % 40, pod % 200)),
            ("namespace", format!("team-{}", pod % 40)),
            ("pod", format!("app-{:03}-{:08x}-{pod:05}", pod % 200, (pod % 200) * 2_654_435_761 % 0xFFFF_FFFF)),
        ]);
        let end = first + MANY_SAMPLES * MANY_INTERVAL;
        Series { labels, kind: Kind::Counter, seed: i as u64, first, end, interval: MANY_INTERVAL }
    }));
    all.sort_by(|a, b| a.labels.cmp(&b.labels));
    all
}

impl Series {
    /// Whether the samples are floats.
    pub fn is_float(&self) -> bool {
        self.kind != Kind::Native
    }

    /// The times of its samples within `range`.
    fn times(&self, range: BlockRange) -> impl Iterator<Item = TimestampMs> + use<> {
        let skipped = ((range.min - self.first).max(0) + self.interval - 1) / self.interval;
        let first = self.first + skipped * self.interval;
        (first..self.end.min(range.max)).step_by(self.interval as usize)
    }

    /// What its values are drawn from; another sequence in every block, so that blocks can be made in any order.
    fn random(&self, range: BlockRange) -> Random {
        let mut random = Random((self.seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (range.min / DAY) as u64);
        random.next();
        random
    }

    /// Its float samples within `range`.
    pub fn floats(&self, range: BlockRange) -> Vec<(TimestampMs, f64)> {
        let mut random = self.random(range);
        // Counters go on where the block before might have ended.
        let mut value = (range.min - self.first).max(0) as f64 / 10.0;
        let bounds = match self.kind {
            Kind::Bucket(bound) => bound + 1,
            _ => 0,
        };
        let sample = |time| {
            let drawn = random.next();
            if bounds > 0 {
                // The same draws for all buckets of a histogram: eight bits for each make them cumulative.
                value += (0..bounds).map(|bound| (drawn >> (8 * bound) & 0x3F) as f64).sum::<f64>();
            } else if drawn.is_multiple_of(5_000) {
                value = 0.0;
            } else {
                value += (drawn >> 32 & 0x7F) as f64;
            }
            (time, value)
        };
        self.times(range).map(sample).collect()
    }

    /// Its histograms within `range`: schema 3, 20 buckets in two spans, counts growing.
    fn histograms(&self, range: BlockRange) -> impl Iterator<Item = (TimestampMs, Histogram)> + use<> {
        let mut random = self.random(range);
        let mut buckets = [0_i64; 20];
        let mut histogram = Histogram {
            schema: 3,
            zero_threshold: 0.001,
            positive_spans: vec![Span { offset: -8, length: 14 }, Span { offset: 3, length: 6 }],
            ..Histogram::default()
        };
        self.times(range).map(move |time| {
            let drawn = random.next();
            for (i, bucket) in buckets.iter_mut().enumerate() {
                *bucket += (drawn >> (3 * i) & 7) as i64;
            }
            histogram.zero_count += drawn >> 62;
            histogram.count = histogram.zero_count + buckets.iter().sum::<i64>() as u64;
            histogram.sum += (drawn & 0xFFFF) as f64 / 100.0;
            histogram.positive_deltas.clear();
            histogram.positive_deltas.push(buckets[0]);
            histogram.positive_deltas.extend(buckets.windows(2).map(|pair| pair[1] - pair[0]));
            (time, histogram.clone())
        })
    }
}

/// Writes every block into the directory `parent`, unless it is there; answers with their directories.
pub fn write_blocks(parent: &Path, times: Times) -> Result<Vec<PathBuf>, Error> {
    fs::create_dir_all(parent)?;
    let all = series(times);
    let ranges = times.blocks();
    let all = &all;
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            ranges.iter().map(|&range| scope.spawn(move || write_block(parent, range, all))).collect();
        writers.into_iter().map(|writer| writer.join().map_err(|_| "writing a block panicked")?).collect()
    })
}

fn write_block(parent: &Path, range: BlockRange, all: &[Series]) -> Result<PathBuf, Error> {
    let ulid = Ulid::from_parts(range.max as u64, 0x5EED);
    let path = parent.join(ulid.to_string());
    if path.exists() {
        return Ok(path);
    }
    let present: Vec<&Series> = all.iter().filter(|series| series.times(range).next().is_some()).collect();
    let mut symbols = SymbolSet::default();
    for series in &present {
        symbols.insert_labels(&series.labels)?;
    }
    let compaction = Compaction { level: 1, sources: vec![ulid], ..Compaction::default() };
    let new = NewBlock { ulid, range, compaction, thanos: None };
    let mut writer = BlockWriter::create(Arc::new(RealDisk), parent, new, symbols.sort())?;
    for series in present {
        let mut encoder = ChunkEncoder::default();
        if series.is_float() {
            series.floats(range).into_iter().for_each(|(time, value)| encoder.push_float(time, value));
        } else {
            for (time, histogram) in series.histograms(range) {
                encoder.push_histogram(time, &HistogramValue::Integer(Arc::new(histogram)))?;
            }
        }
        writer.add_series(&series.labels, &encoder.finish())?;
    }
    writer.finish()?;
    Ok(path)
}

/// Passes the float samples as compressed remote_write bodies to `send`.
pub fn remote_write(times: Times, mut send: impl FnMut(Vec<u8>) -> Result<(), Error>) -> Result<u64, Error> {
    const SAMPLES_PER_REQUEST: usize = 100_000;
    let all = series(times);
    let mut encoder = snap::raw::Encoder::new();
    let (mut request, mut waiting, mut sent) = (Vec::new(), 0, 0);
    for range in times.blocks() {
        for series in all.iter().filter(|series| series.is_float()) {
            let samples = series.floats(range);
            put_series(&mut request, &series.labels, &samples);
            waiting += samples.len();
            if waiting >= SAMPLES_PER_REQUEST {
                send(encoder.compress_vec(&request)?)?;
                request.clear();
                sent += std::mem::take(&mut waiting) as u64;
            }
        }
    }
    send(encoder.compress_vec(&request)?)?;
    Ok(sent + waiting as u64)
}

fn put_series(request: &mut Vec<u8>, labels: &Labels, samples: &[(TimestampMs, f64)]) {
    if samples.is_empty() {
        return;
    }
    let (mut series, mut part) = (Vec::new(), Vec::new());
    for (name, value) in labels {
        part.clear();
        put_bytes(&mut part, 0x0A, name.as_bytes());
        put_bytes(&mut part, 0x12, value.as_bytes());
        put_bytes(&mut series, 0x0A, &part);
    }
    for &(time, value) in samples {
        part.clear();
        part.push(0x09);
        part.extend_from_slice(&value.to_le_bytes());
        part.push(0x10);
        put_uvarint(&mut part, time as u64);
        put_bytes(&mut series, 0x12, &part);
    }
    put_bytes(request, 0x0A, &series);
}

fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// xorshift64*: fast, and the same values in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
