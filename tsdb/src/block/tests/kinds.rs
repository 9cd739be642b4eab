//! A block of every kind of sample: every histogram schema, custom buckets, integer and float counts, gauges, resets, stale
//! markers, gaps, mixed series; merged, split and read back as it was written.
//!
//! `SKALD_WRITE_KINDS=DIR cargo test -p skald-tsdb kinds` also leaves the blocks and a text of what they hold in DIR, for
//! decoders of others: `LABELS\tTIME\tf BITS` or `LABELS\tTIME\th KIND SCHEMA THRESHOLD ZERO COUNT SUM CUSTOM POSITIVE NEGATIVE`,
//! floats as hexadecimal bits, buckets as `INDEX:BITS` where not empty. KIND is `i` or `f`, and `g` behind it for gauges.

use std::fmt::Write as _;

use skald_model::histogram::bucket_indexes;
use skald_model::{FloatHistogram, Histogram, HistogramValue, QueryRange, ResetHint, Span, stale_nan};

use super::*;
use crate::chunk::histogram::decode_samples;
use crate::disk::{MemDisk, RealDisk};
use crate::encode::ChunkEncoder;

const BEGIN: i64 = 1_699_999_200_000;
const RANGE: i64 = 7_200_000;

/// Histogram number `n` of a series: counts grow, buckets appear, and now and then it begins again.
fn histogram(schema: i32, n: i64) -> Histogram {
    let (age, n) = ((n % 97) as u64, n as u64);
    let custom = schema == -53;
    let buckets = 2 + (age / 40) as usize;
    let deltas: Vec<i64> = (0..buckets).map(|i| if i == 0 { 3 * age as i64 + 1 } else { (i as i64 % 3) - 1 }).collect();
    let total = |deltas: &[i64]| {
        deltas
            .iter()
            .scan(0_i64, |count, delta| {
                *count += delta;
                Some(*count as u64)
            })
            .sum::<u64>()
    };
    let first = Span { offset: if custom { 0 } else { -7 }, length: 1 };
    let positive_spans = match custom {
        true => vec![Span { offset: 0, length: buckets as u32 }],
        false => vec![first, Span { offset: 2, length: buckets as u32 - 1 }],
    };
    let negative_deltas = if custom || n % 2 == 0 { Vec::new() } else { vec![2 * age as i64 + 1] };
    let zero_count = if custom { 0 } else { age };
    Histogram {
        schema,
        zero_threshold: if custom { 0.0 } else { [1e-128, 0.001, 0.0][(n / 97 % 3) as usize] },
        zero_count,
        count: zero_count + total(&deltas) + total(&negative_deltas),
        sum: age as f64 * 1.7 - 3.0,
        negative_spans: if negative_deltas.is_empty() { Vec::new() } else { vec![Span { offset: 4, length: 1 }] },
        negative_deltas,
        positive_spans,
        positive_deltas: deltas,
        custom_values: if custom { vec![0.005, 0.1, 1.0 / 3.0, 2.5, 1e6].into() } else { Vec::new().into() },
        ..Histogram::default()
    }
}

fn series(name: &str, kind: &str, sample: impl Fn(i64, &mut ChunkEncoder)) -> (Labels, Vec<Chunk>) {
    let mut encoder = ChunkEncoder::default();
    // A sample every 15 s with a gap of some minutes.
    (0..RANGE / 15_000).filter(|n| !(200..230).contains(n)).for_each(|n| sample(n, &mut encoder));
    (Labels::from_pairs([("__name__", name), ("kind", kind)]), encoder.finish())
}

fn time(n: i64) -> i64 {
    BEGIN + n * 15_000 + n % 3
}

fn content(custom: bool) -> Content {
    let mut content = Content::new();
    let float = |value: fn(i64) -> f64| move |n: i64, encoder: &mut ChunkEncoder| encoder.push_float(time(n), value(n));
    content.extend([
        series("floats", "counter", float(|n| (n % 300) as f64 * 1e6)),
        series("floats", "gauge", float(|n| (n as f64 * 0.77).sin())),
        series("floats", "constant", float(|_| 1.0)),
        series("floats", "odd", float(|n| [f64::NAN, f64::INFINITY, -0.0, 5e-324, f64::MIN][n as usize % 5])),
        series("floats", "stale", float(|n| if n % 50 == 49 { stale_nan() } else { n as f64 })),
    ]);
    let schemas = (-4..=8).chain(custom.then_some(-53));
    for schema in schemas {
        let stale = |n: i64| n % 150 == 149;
        let integer = move |n: i64, encoder: &mut ChunkEncoder| {
            let stale = Histogram { sum: stale_nan(), ..Histogram::default() };
            let value = if n % 150 == 149 { stale } else { histogram(schema, n) };
            encoder.push_histogram(time(n), &HistogramValue::Integer(value.into())).unwrap();
        };
        let float = move |gauge: bool| {
            move |n: i64, encoder: &mut ChunkEncoder| {
                let mut value = histogram(schema, n).to_float();
                if gauge {
                    value.reset_hint = ResetHint::Gauge;
                }
                if stale(n) {
                    value = FloatHistogram { sum: stale_nan(), ..FloatHistogram::default() };
                }
                encoder.push_histogram(time(n), &HistogramValue::Float(value.into())).unwrap();
            }
        };
        let name = format!("histograms_{}{}", if schema < 0 { "m" } else { "" }, schema.abs());
        content.extend([
            series(&name, "integer", integer),
            series(&name, "float", float(false)),
            series(&name, "gauge", float(true)),
        ]);
    }
    content.extend([series("mixed", "both", |n, encoder| match n / 40 % 2 {
        0 => encoder.push_float(time(n), n as f64),
        _ => encoder.push_histogram(time(n), &HistogramValue::Integer(histogram(3, n).into())).unwrap(),
    })]);
    content
}

/// A line for every sample, as the front of this file says.
fn lines(labels: &Labels, chunks: &[Chunk]) -> String {
    let mut out = String::new();
    let text: String = labels.iter().map(|(name, value)| format!("{name}={value};")).collect();
    let buckets = |spans: &[Span], counts: &[f64]| -> String {
        let all = bucket_indexes(spans).zip(counts).filter(|(_, count)| **count != 0.0);
        let all: Vec<String> = all.map(|(index, count)| format!("{index}:{:016x}", count.to_bits())).collect();
        if all.is_empty() { "-".to_owned() } else { all.join(",") }
    };
    for chunk in chunks {
        if matches!(chunk.encoding, Encoding::Xor | Encoding::Xor2) {
            let mut columns = skald_model::Columns::default();
            crate::chunk::xor::decode(&chunk.data, QueryRange::ALL, &mut columns).unwrap();
            for (time, value) in columns.float_timestamps.iter().zip(&columns.float_values) {
                writeln!(out, "{text}\t{time}\tf {:016x}", value.to_bits()).unwrap();
            }
            continue;
        }
        let mut samples = Vec::new();
        decode_samples(chunk.encoding, &chunk.data, QueryRange::ALL, &mut samples).unwrap();
        for sample in samples {
            let (kind, h) = match &sample.value {
                HistogramValue::Integer(histogram) => ("i", histogram.to_float()),
                HistogramValue::Float(histogram) => ("f", (**histogram).clone()),
            };
            let gauge = if h.reset_hint == ResetHint::Gauge { "g" } else { "" };
            let custom: Vec<String> = h.custom_values.iter().map(|v| format!("{:016x}", v.to_bits())).collect();
            let custom = if custom.is_empty() { "-".to_owned() } else { custom.join(",") };
            let [threshold, zero, count, sum] = [h.zero_threshold, h.zero_count, h.count, h.sum].map(f64::to_bits);
            let positive = buckets(&h.positive_spans, &h.positive_buckets);
            let negative = buckets(&h.negative_spans, &h.negative_buckets);
            writeln!(
                out,
                "{text}\t{}\th {kind}{gauge} {} {threshold:016x} {zero:016x} {count:016x} {sum:016x} {custom} {positive} {negative}",
                sample.timestamp, h.schema
            )
            .unwrap();
        }
    }
    out
}

/// Writes two blocks with parts of everything, and merges them.
fn written(disk: &Arc<dyn Disk>, parent: &Path, content: &Content) -> (Vec<Arc<LocalBlock>>, Vec<Arc<LocalBlock>>) {
    let open = |meta: &BlockMeta| {
        let dir = parent.join(meta.ulid.to_string());
        let verified = verify_block(&**disk, &dir, &mut |_, _| ());
        assert!(verified.is_intact(), "{verified:?}");
        Arc::new(LocalBlock::open(&**disk, &dir).unwrap())
    };
    // Replicas: every second chunk is in both.
    let part = |remainder: usize| -> Content {
        let chosen = |chunks: &Vec<Chunk>| -> Vec<Chunk> {
            chunks.iter().enumerate().filter(|(i, _)| i % 3 != remainder).map(|(_, chunk)| chunk.clone()).collect()
        };
        content.iter().map(|(labels, chunks)| (labels.clone(), chosen(chunks))).collect()
    };
    let sources: Vec<_> = (0..2)
        .map(|number| {
            let new = new_block(100 + number as u128, BEGIN, BEGIN + RANGE);
            open(&write(disk, parent, new, &part(number), 50_000))
        })
        .collect();
    let mut number = 200;
    let mut name = |_| {
        number += 1;
        ulid(number)
    };
    let merge = MergeBlocks { shards: 3, ..MergeBlocks::new(&sources) };
    let merged = merge.write(disk, parent, &mut name, &mut |_, _| ()).unwrap();
    (sources, merged.iter().map(open).collect())
}

#[test]
fn every_kind_of_sample_is_written_merged_and_read() {
    let content = content(true);
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    let (_, merged) = written(&disk, Path::new("/kinds"), &content);
    let mut found = Content::new();
    for block in &merged {
        let series = block.select(&[], QueryRange::ALL).unwrap().map(Result::unwrap);
        found.extend(series.map(|series| (series.labels, series.chunks)));
    }
    assert_eq!(merged.len(), 3);
    assert_eq!(found.len(), content.len());
    for ((labels, chunks), (found_labels, found)) in content.iter().zip(&found) {
        assert_eq!((labels, lines(labels, chunks)), (found_labels, lines(labels, found)));
    }
    if let Some(dir) = std::env::var_os("SKALD_WRITE_KINDS") {
        let (disk, dir) = (Arc::new(RealDisk) as Arc<dyn Disk>, Path::new(&dir));
        for (name, content) in [("all", &content), ("without-custom", &super::kinds::content(false))] {
            let dir = dir.join(name);
            disk.create_dir_all(&dir).unwrap();
            let (sources, _) = written(&disk, &dir, content);
            // The merged ones have it all.
            sources.iter().for_each(|source| disk.remove_dir_all(source.dir()).unwrap());
            let text: String = content.iter().map(|(labels, chunks)| lines(labels, chunks)).collect();
            disk.write_atomically(&dir.join("expected.txt"), text.as_bytes()).unwrap();
        }
    }
}
