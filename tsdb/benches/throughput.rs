//! How many samples a second does one core take through blocks, and how many bytes does a sample take in one?
//!
//! Decoding: 1,000 chunks of 120 samples 15 s apart, of four kinds of values, with jitter of up to 2 ms and without. Beside it
//! the floor: copying as many times and values. Merging: blocks of the same series from two or three replicas, of a day (48
//! chunks a series) and of two hours (4 chunks); either identical, so that chunks are copied, or different in one of the ways
//! of [`Differ`], so that chunks overlap and new ones are made. Rates are of the result's samples and, in brackets, of all
//! that are read. Beside them the floors: the files' bytes copied with their checksums, and decoding and encoding in memory.
//! Files are on the file system behind the temporary directory.
//!
//! Copying is a matter of bytes, so there are two mixes of series: `equal parts` are four kinds of values with jitter, half of
//! their samples eight bytes long; `monitoring` is what Prometheus sends: times on the interval, of ten series four that do
//! not change, four counters, two gauges that move by hundredths.
//!
//! Bytes: 400 series of two hours as OpenMetrics, made a block by `promtool` (where it is installed) and by us.
//!
//! Prints million samples a second of CPU time (the best of some rounds) and bytes per sample.
//! Run: `cargo bench -p skald-tsdb --bench throughput`; with `-- decode`, `-- merge`, `-- identical`, `-- differ` or `-- bytes`
//! only that part, with a text behind it only cases that are called so: `-- differ "interleave, a day of equal"`. Seeds are
//! fixed.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time and looks at files")]
#![allow(clippy::print_stdout, reason = "a bench prints")]
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};
use skald_model::{BlockRange, Columns, Labels, QueryRange};
use skald_tsdb::block::{BlockWriter, Compaction, LocalBlock, MergeBlocks, NewBlock, SymbolSet};
use skald_tsdb::chunk::{Chunk, xor};
use skald_tsdb::disk::{Disk, RealDisk};
use skald_tsdb::encode::ChunkEncoder;
use ulid::Ulid;

const STEP: i64 = 15_000;
const TWO_HOURS: i64 = 7_200_000;
const START: i64 = 1_717_200_000_000 / TWO_HOURS * TWO_HOURS;
const KINDS: [Kind; 4] = [Kind::Constant, Kind::Counter, Kind::Gauge, Kind::Noise];

fn main() {
    let mut asked = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let (asked, case) = (asked.next(), asked.next().unwrap_or_default());
    let wants = |part: &str| asked.as_ref().is_none_or(|asked| asked == part);
    if wants("decode") {
        decode();
    }
    for mix in [Mix::EqualParts, Mix::Monitoring] {
        for (what, series, hours) in [("a day", 2_000, 24), ("two hours", 24_000, 2)] {
            let data = Data::new(mix, series, hours);
            let what = &format!("{what} of {}", mix.name());
            if (wants("merge") || wants("identical")) && what.contains(&case) {
                merge_identical(&data, what);
            }
            if wants("merge") || wants("differ") {
                merge_different(&data, what, &case);
            }
        }
    }
    if wants("bytes") {
        bytes_per_sample();
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Constant,
    /// Grows by up to 99.
    Counter,
    /// Two digits behind the point.
    Gauge,
    /// All bits of a float between 0 and 1.
    Noise,
    /// Moves by up to half, two digits behind the point.
    Walk,
}

/// Which kinds of series a block holds.
#[derive(Debug, Clone, Copy)]
enum Mix {
    EqualParts,
    Monitoring,
}

impl Mix {
    fn name(self) -> &'static str {
        match self {
            Self::EqualParts => "equal parts",
            Self::Monitoring => "monitoring",
        }
    }

    fn kind(self, series: usize) -> Kind {
        match (self, series % 10) {
            (Self::EqualParts, _) => KINDS[series % 4],
            (Self::Monitoring, 0..4) => Kind::Constant,
            (Self::Monitoring, 4..8) => Kind::Counter,
            (Self::Monitoring, _) => Kind::Walk,
        }
    }

    fn jitter(self) -> i64 {
        match self {
            Self::EqualParts => 2,
            Self::Monitoring => 0,
        }
    }
}

/// A small deterministic generator (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

fn samples(kind: Kind, jitter: i64, count: i64, rng: &mut Rng) -> Vec<(i64, f64)> {
    let mut value = 1000.0;
    let sample = |i| {
        let time = START + STEP * i + (rng.next() % (jitter as u64 + 1)) as i64;
        match kind {
            Kind::Constant => {}
            Kind::Counter => value += (rng.next() % 100) as f64,
            Kind::Gauge => value = (rng.next() % 100_000) as f64 / 100.0,
            Kind::Walk => value = (f64::round(value * 100.0) + (rng.next() % 101) as f64 - 50.0) / 100.0,
            Kind::Noise => value = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64,
        }
        (time, value)
    };
    (0..count).map(sample).collect()
}

fn chunks(samples: &[(i64, f64)]) -> Vec<Chunk> {
    let mut encoder = ChunkEncoder::default();
    samples.iter().for_each(|&(time, value)| encoder.push_float(time, value));
    encoder.finish()
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Million samples a CPU second of the fastest round.
fn best(samples: usize, rounds: usize, mut round: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let begun = cpu();
        round();
        best = best.min(cpu() - begun);
    }
    samples as f64 / best / 1e6
}

fn decode() {
    const CHUNKS: usize = 1000;
    let mut seconds = (0.0, 0.0);
    for jitter in [0, 2] {
        for kind in KINDS {
            let mut rng = Rng(42);
            let chunks: Vec<Chunk> = (0..CHUNKS).flat_map(|_| chunks(&samples(kind, jitter, 120, &mut rng))).collect();
            let total = CHUNKS * 120;
            let mut out = Columns::default();
            let decoded = best(total, 15, || {
                for chunk in &chunks {
                    out.clear();
                    xor::decode(&chunk.data, QueryRange::ALL, &mut out).unwrap();
                    black_box(&out);
                }
            });
            let (times, values) = (vec![1_i64; 120], vec![1.0; 120]);
            let floor = best(total, 15, || {
                for _ in 0..CHUNKS {
                    out.clear();
                    out.float_timestamps.extend_from_slice(black_box(&times));
                    out.float_values.extend_from_slice(black_box(&values));
                    black_box(&out);
                }
            });
            let encoded: Vec<_> = chunks
                .iter()
                .map(|chunk| {
                    let mut columns = Columns::default();
                    xor::decode(&chunk.data, QueryRange::ALL, &mut columns).unwrap();
                    columns
                })
                .collect();
            let encoded = best(total, 15, || {
                for columns in &encoded {
                    black_box(xor::encode(&columns.float_timestamps, &columns.float_values));
                }
            });
            let bytes: usize = chunks.iter().map(|chunk| chunk.data.len()).sum();
            println!(
                "decode {:<9} jitter {jitter}: {decoded:6.0} M samples/s (copying {floor:5.0}; encoding {encoded:4.0}); {:5.2} bytes",
                format!("{kind:?}"),
                bytes as f64 / total as f64
            );
            seconds = (seconds.0 + 1.0 / decoded, seconds.1 + 1.0);
        }
    }
    println!("decode, all kinds together: {:.0} M samples/s (at least 100)", seconds.1 / seconds.0);
}

/// Series with their samples, in label order.
struct Data {
    series: Vec<(Labels, Vec<(i64, f64)>)>,
    range: BlockRange,
}

impl Data {
    fn new(mix: Mix, series: usize, hours: i64) -> Self {
        let mut rng = Rng(7);
        let count = hours * 3_600_000 / STEP;
        let labels = |i: usize| {
            Labels::from_pairs([
                ("__name__", format!("metric_{:02}", i % 20)),
                ("cluster", "production".to_owned()),
                ("instance", format!("host-{:05}:9100", i / 20)),
                ("job", format!("job-{}", i % 10)),
                ("namespace", format!("namespace-{}", i % 40)),
                ("pod", format!("pod-{:05}-x7k2p", i / 20)),
            ])
        };
        let mut series: Vec<_> =
            (0..series).map(|i| (labels(i), samples(mix.kind(i), mix.jitter(), count, &mut rng))).collect();
        series.sort_by(|a, b| a.0.cmp(&b.0));
        Self { series, range: BlockRange { min: START, max: START + hours * 3_600_000 } }
    }

    fn samples(&self) -> usize {
        self.series.iter().map(|(_, samples)| samples.len()).sum()
    }

    /// Writes a block of a replica: its chunks have 120 samples, and it differs from others as asked.
    fn write(&self, disk: &Arc<dyn Disk>, parent: &Path, replica: usize, differ: Differ) -> Arc<LocalBlock> {
        let mut symbols = SymbolSet::default();
        self.series.iter().for_each(|(labels, _)| symbols.insert_labels(labels).unwrap());
        let ulid = Ulid(differ as u128 * 16 + replica as u128 + 1);
        let new = NewBlock { ulid, range: self.range, compaction: Compaction::default(), thanos: None };
        let mut writer = BlockWriter::create(disk.clone(), parent, new, symbols.sort()).unwrap();
        for (number, (labels, samples)) in self.series.iter().enumerate() {
            let samples = differ.of_replica(replica, number, samples);
            let first = if matches!(differ, Differ::Cut) && replica == 1 { 60 } else { samples.len().min(120) };
            let (first, rest) = samples.split_at(first);
            let mut all = chunks(first);
            all.extend(chunks(rest));
            writer.add_series(labels, &all).unwrap();
        }
        let meta = writer.finish().unwrap().unwrap();
        Arc::new(LocalBlock::open(&**disk, &parent.join(meta.ulid.to_string())).unwrap())
    }
}

/// In what replicas differ from one another.
#[derive(Debug, Clone, Copy)]
enum Differ {
    Nothing,
    /// One's chunks begin 60 samples later: an ingester that was there before, one that came to it.
    Cut,
    /// Each lacks one of 40 samples, another one: many writes were shed.
    Lack,
    /// Each lacks one of 400 samples, another one for each series: a write was shed now and then.
    LackFew,
    /// Each lacks five minutes, every six hours, at another time: restarts.
    Gap,
    /// Every other sample is in one replica only: two senders whose samples come at other times.
    Interleave,
}

impl Differ {
    const ALL: [(Self, &str); 5] = [
        (Self::Cut, "are cut elsewhere"),
        (Self::Lack, "lack samples"),
        (Self::LackFew, "lack few samples"),
        (Self::Gap, "have gaps"),
        (Self::Interleave, "interleave"),
    ];

    /// What replica 0 or 1 has of a series.
    fn of_replica(self, replica: usize, series: usize, samples: &[(i64, f64)]) -> Vec<(i64, f64)> {
        let has = |at: usize| match self {
            Self::Nothing | Self::Cut => true,
            Self::Lack => at % 40 != 10 + replica,
            Self::LackFew => (at + 57 * series) % 400 != 170 * replica,
            Self::Gap => !(100 + 200 * replica..120 + 200 * replica).contains(&(at % 1440)),
            Self::Interleave => at % 2 == replica,
        };
        samples.iter().enumerate().filter(|(at, _)| has(*at)).map(|(_, sample)| *sample).collect()
    }
}

/// A directory to merge in.
struct Place {
    disk: Arc<dyn Disk>,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { disk: Arc::new(RealDisk), dir: tempfile::tempdir().unwrap() }
    }

    /// Million samples of the result a CPU second, and bytes of its chunks. That the result goes again is not counted.
    fn merge(&self, data: &Data, sources: &[Arc<LocalBlock>], shards: u32) -> (f64, u64) {
        let (mut fastest, mut bytes) = (f64::INFINITY, 0);
        for _ in 0..5 {
            let mut number = 1000;
            let mut name = |_| {
                number += 1;
                Ulid(number)
            };
            let merge = MergeBlocks { shards, ..MergeBlocks::new(sources) };
            let begun = cpu();
            let written = merge.write(&self.disk, self.dir.path(), &mut name, &mut |_, _| ()).unwrap();
            fastest = fastest.min(cpu() - begun);
            let samples: u64 = written.iter().map(|meta| meta.stats.num_samples).sum();
            assert_eq!(samples, data.samples() as u64);
            bytes = 0;
            for meta in &written {
                let block = self.dir.path().join(meta.ulid.to_string());
                bytes += std::fs::metadata(block.join("chunks/000001")).unwrap().len();
                std::fs::remove_dir_all(block).unwrap();
            }
        }
        (data.samples() as f64 / fastest / 1e6, bytes)
    }
}

fn merge_identical(data: &Data, what: &str) {
    let place = Place::new();
    let same: Vec<_> =
        (0..3).map(|replica| data.write(&place.disk, place.dir.path(), replica, Differ::Nothing)).collect();
    let chunks = same[0].dir().join("chunks/000001");
    let bytes = std::fs::read(&chunks).unwrap();
    println!("{what}: {:.2} bytes a sample", bytes.len() as f64 / data.samples() as f64);
    let copied = place.dir.path().join("copied");
    let mut buffer = bytes.clone();
    let mut floor = |replicas: usize| {
        best(data.samples(), 5, || {
            let mut crc = 0;
            for _ in 0..replicas {
                let file = std::fs::File::open(&chunks).unwrap();
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer, 0).unwrap();
            }
            crc ^= bytes.chunks(200).fold(0, |crc, chunk| crc ^ crc32c::crc32c(chunk));
            std::fs::write(&copied, &bytes).unwrap();
            black_box(crc);
        })
    };
    for replicas in [2, 3] {
        let (rate, _) = place.merge(data, &same[..replicas], 1);
        println!(
            "merge of {replicas} identical replicas, {what}: {rate:.0} M samples/s ({:.0} read; at least 150; bytes alone {:.0})",
            rate * replicas as f64,
            floor(replicas)
        );
    }
    let (rate, _) = place.merge(data, &same, 4);
    println!("merge of 3 identical replicas, {what}, into 4 shards: {rate:.0} M samples/s ({:.0} read)", rate * 3.0);
}

fn merge_different(data: &Data, what: &str, case: &str) {
    let place = Place::new();
    let whole = data.write(&place.disk, place.dir.path(), 0, Differ::Nothing);
    let mut out = Columns::default();
    let recoded = best(data.samples(), 3, || {
        for series in whole.select(&[], QueryRange::ALL).unwrap() {
            for chunk in &series.unwrap().chunks {
                for _ in 0..2 {
                    out.clear();
                    xor::decode(&chunk.data, QueryRange::ALL, &mut out).unwrap();
                }
                black_box(xor::encode(&out.float_timestamps, &out.float_values));
            }
        }
    });
    println!("{what}: decoding twice and encoding in memory {recoded:.0} M samples/s");
    for (differ, how) in Differ::ALL {
        if !format!("{how}, {what}").contains(case) {
            continue;
        }
        let sources: Vec<_> =
            (0..2).map(|replica| data.write(&place.disk, place.dir.path(), replica, differ)).collect();
        let read: u64 = sources.iter().map(|source| source.meta().stats.num_samples).sum();
        let (rate, bytes) = place.merge(data, &sources, 1);
        println!(
            "merge of 2 replicas that {how}, {what}: {rate:.0} M samples/s ({:.0} read; at least 30); {:.2} bytes a sample",
            rate * read as f64 / data.samples() as f64,
            bytes as f64 / data.samples() as f64
        );
    }
}

fn bytes_per_sample() {
    let mut data = Data::new(Mix::EqualParts, 400, 2);
    // What it is called in OpenMetrics; `promtool` cuts blocks at two hours.
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::new();
    data.series.sort_by(|a, b| a.0.cmp(&b.0));
    for name in 0..20 {
        let name = format!("metric_{name:02}");
        writeln!(text, "# TYPE {name} gauge").unwrap();
        for (labels, samples) in data.series.iter().filter(|(labels, _)| labels.get("__name__") == Some(&name)) {
            for (time, value) in samples {
                let millis = time % 1000;
                writeln!(text, "{labels} {value:?} {}.{millis:03}", time / 1000).unwrap();
            }
        }
    }
    text.push_str("# EOF\n");
    let text = text.replace(", ", ",").replace("{__name__=\"", "").replace("\",cluster", "{cluster");
    let input = dir.path().join("input");
    std::fs::write(&input, text).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let ours = data.write(&disk, dir.path(), 0, Differ::Nothing);
    let samples = data.samples() as f64;
    let print = |who: &str, block: &Path| {
        let len = |name: &str| std::fs::metadata(block.join(name)).unwrap().len() as f64;
        let (index, chunks) = (len("index"), len("chunks/000001"));
        println!("{who}: {:.3} bytes a sample, of which chunks {:.3}", (index + chunks) / samples, chunks / samples);
    };
    print("block of ours", ours.dir());
    let blocks = dir.path().join("blocks");
    let made =
        Command::new("promtool").args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&input).arg(&blocks).output();
    match made {
        Ok(made) if made.status.success() => {
            for block in std::fs::read_dir(&blocks).unwrap() {
                let block = block.unwrap().path();
                let meta = std::fs::read_to_string(block.join("meta.json")).unwrap();
                assert!(meta.contains(&format!("\"numSamples\": {}", data.samples())), "{meta}");
                print("block of promtool", &block);
            }
        }
        Ok(failed) => panic!("promtool: {}", String::from_utf8_lossy(&failed.stderr)),
        Err(_) => println!("promtool is not installed: nothing to compare with"),
    }
}
