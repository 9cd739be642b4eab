//! Any bytes as one or two chunks of a series, in every encoding that is read.

use std::collections::BTreeMap;

use skald_model::{Columns, Histogram, QueryRange, Span};
use skald_tsdb::chunk::histogram::{self, Float, HistogramAppender, Integer, ResetHeader, decode_samples};
use skald_tsdb::chunk::xor::XorAppender;
use skald_tsdb::chunk::started::{self, StartWriter};
use skald_tsdb::chunk::{Chunk, Encoding};
use skald_tsdb::decode::decode_series;
use skald_tsdb::encode::{encode_columns, without_overlaps};

use crate::{choice, chosen};

/// One chunk of each encoding, alone and with itself.
pub fn seeds() -> Vec<Vec<u8>> {
    let (mut appender, mut floats) = (XorAppender::new(), Vec::new());
    for (time, value) in [(1000, 1.0), (2000, 1.0), (2990, 2.5), (900_000, -0.0), (900_001, f64::NAN), (900_002, 1e300)]
    {
        appender.append(&mut floats, time, value).expect("room");
    }
    let integer = |n: u64| sample(n, 3, -0.5);
    let mut integers = HistogramAppender::<Integer>::start(10, &integer(1), ResetHeader::Unknown).expect("valid");
    let mut counts = HistogramAppender::<Float>::start(10, &integer(1).to_float(), ResetHeader::Reset).expect("valid");
    let mut bounds = HistogramAppender::<Integer>::start(10, &custom(1), ResetHeader::Gauge).expect("valid");
    for n in 2..6 {
        let time = 10 + 15_000 * n as i64 + n as i64 % 2;
        let _ = integers.append(time, &integer(n)).expect("valid");
        let _ = counts.append(time, &integer(n).to_float()).expect("valid");
        let _ = bounds.append(time, &custom(n)).expect("valid");
    }
    // Count 3, no start timestamps; 1000 and 1.0; a second later the same; dod 0 and stale.
    let xor2 = [0, 3, 0, 0xD0, 0x0F, 0x3F, 0xF0, 0, 0, 0, 0, 0, 0, 0xE8, 0x07, 0b0111_1100];
    let mut starts = StartWriter::default();
    starts.push(1, 1000, 2000, 1000);
    starts.push(2, 2000, 2990, 77);
    let (integers, counts) = (integers.into_bytes(), counts.into_bytes());
    // Beside the samples, and among them.
    let [floats_started, integers_started] = [&floats, &integers].map(|plain| {
        let mut data = plain.clone();
        started::attach(&mut data, &starts);
        data
    });
    let mut column = Vec::new();
    starts.write(&mut column);
    let among = |encoding, plain| histogram::with_starts(encoding, plain, &column).expect("valid");
    let chunks = [
        (5, among(Encoding::Histogram, &integers)),
        (6, among(Encoding::FloatHistogram, &counts)),
        (0x41, floats_started),
        (0x42, integers_started),
        (1, floats),
        (2, integers),
        (3, counts),
        (4, xor2.to_vec()),
        (2, bounds.into_bytes()),
    ];
    let alone = chunks.iter().map(|(encoding, bytes)| chosen(*encoding, &chosen(0, bytes)));
    let both = chunks.iter().map(|(encoding, bytes)| {
        chosen(*encoding, &chosen(bytes.len() as u8, &[&bytes[..], &chosen(*encoding, bytes)].concat()))
    });
    alone.chain(both).collect()
}

fn sample(n: u64, schema: i32, sum: f64) -> Histogram {
    Histogram {
        schema,
        zero_threshold: 1e-128,
        zero_count: n,
        count: 4 * n + n / 3,
        sum: sum * n as f64,
        positive_spans: vec![Span { offset: -2, length: 1 }, Span { offset: 1 + (n / 3) as i32, length: 1 }],
        positive_deltas: vec![n as i64, 0],
        negative_spans: vec![Span { offset: 0, length: 1 }],
        negative_deltas: vec![n as i64],
        ..Histogram::default()
    }
}

fn custom(n: u64) -> Histogram {
    Histogram {
        schema: -53,
        count: 2 * n,
        sum: n as f64,
        positive_spans: vec![Span { offset: 0, length: 2 }],
        positive_deltas: vec![n as i64, 0],
        custom_values: vec![0.005, 1.0 / 3.0].into(),
        ..Histogram::default()
    }
}

/// Input: `encoding | length of the first chunk | first chunk | encoding of the second | second chunk`; a length of 0 means
/// that there is only one.
pub fn check(bytes: &[u8]) {
    let (encoding, bytes) = choice(bytes);
    let (first_len, bytes) = choice(bytes);
    let mut chunks = Vec::new();
    match bytes.split_at_checked(usize::from(first_len)) {
        Some((first, second)) if first_len > 0 => {
            chunks.extend(chunk(encoding, first));
            let (encoding, second) = choice(second);
            chunks.extend(chunk(encoding, second));
        }
        _ => chunks.extend(chunk(encoding, bytes)),
    }
    if let [one] = &chunks[..] {
        check_ranges(one);
        resume(one);
    }
    check_series(&chunks);
}

/// The chunk, if it can be decoded, with the times of its samples.
fn chunk(encoding: u8, bytes: &[u8]) -> Option<Chunk> {
    let encoding = Encoding::from_byte(encoding)?;
    let mut columns = Columns::default();
    decode(encoding, bytes, QueryRange::ALL, &mut columns).ok()?;
    let times = times(&columns);
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
    let (min_time, max_time) = (*times.first()?, *times.last()?);
    Some(Chunk { min_time, max_time, encoding, data: bytes.to_vec().into() })
}

fn decode(
    encoding: Encoding,
    bytes: &[u8],
    range: QueryRange,
    columns: &mut Columns,
) -> Result<(), skald_tsdb::chunk::ChunkError> {
    started::decode(encoding, bytes, range, columns)
}

fn times(columns: &Columns) -> &[i64] {
    if columns.histogram_timestamps.is_empty() { &columns.float_timestamps } else { &columns.histogram_timestamps }
}

/// A part of a chunk's time is a part of its samples.
fn check_ranges(chunk: &Chunk) {
    let mut all = Columns::default();
    decode(chunk.encoding, &chunk.data, QueryRange::ALL, &mut all).expect("decoded before");
    let middle = chunk.min_time + (chunk.max_time.wrapping_sub(chunk.min_time) as u64 / 2) as i64;
    for range in [QueryRange { min: i64::MIN, max: middle }, QueryRange { min: middle, max: i64::MAX }] {
        let mut part = Columns::default();
        decode(chunk.encoding, &chunk.data, range, &mut part).expect("a part of what decodes decodes");
        let expected: Vec<i64> = times(&all).iter().copied().filter(|time| range.contains(*time)).collect();
        assert_eq!(times(&part), expected);
    }
    if !chunk.encoding.is_float() && !chunk.encoding.has_column() {
        let mut samples = Vec::new();
        decode_samples(chunk.encoding, &chunk.data, QueryRange::ALL, &mut samples).expect("decoded before");
        assert!(samples.iter().map(|sample| sample.timestamp).eq(times(&all).iter().copied()));
    }
}

/// A restart goes on with a chunk's bytes: what is appended comes out behind what was there.
fn resume(chunk: &Chunk) {
    let Some(time) = chunk.max_time.checked_add(10) else { return };
    let before = columns(std::slice::from_ref(chunk));
    let mut data = chunk.data.to_vec();
    match chunk.encoding {
        Encoding::Xor => {
            let Ok(mut appender) = XorAppender::resume(&data) else { return };
            if appender.append(&mut data, time, 1.5).is_err() {
                return;
            }
        }
        Encoding::Histogram => {
            let Ok(mut appender) = HistogramAppender::<Integer>::resume(data) else { return };
            let _ = appender.append(time, &sample(1 << 20, 3, -0.5));
            data = appender.into_bytes();
        }
        Encoding::FloatHistogram => {
            let Ok(mut appender) = HistogramAppender::<Float>::resume(data) else { return };
            let _ = appender.append(time, &sample(1 << 20, 3, -0.5).to_float());
            data = appender.into_bytes();
        }
        _ => return,
    }
    let longer = Chunk { data: data.into(), max_time: time, ..chunk.clone() };
    let after = columns(&[longer]);
    assert!(times(&after).starts_with(times(&before)));
    assert!(after.len() <= before.len() + 1);
}

fn columns(chunks: &[Chunk]) -> Columns {
    let mut columns = Columns::default();
    decode_series(chunks, QueryRange::ALL, &mut columns).expect("each was decoded before");
    columns
}

/// What a sample is, whatever NaN.
#[derive(Debug, PartialEq, Clone, Copy)]
enum Value {
    Float(u64),
    Histogram { count: u64, sum: u64, buckets: usize },
}

fn samples(columns: &Columns) -> BTreeMap<i64, Value> {
    let floats = columns.float_timestamps.iter().zip(&columns.float_values);
    let histograms = columns.histogram_timestamps.iter().zip(&columns.histograms);
    let floats = floats.map(|(&time, value)| (time, Value::Float(value.to_bits())));
    floats
        .chain(histograms.map(|(&time, histogram)| {
            let buckets = histogram.positive_buckets.iter().chain(&histogram.negative_buckets);
            let buckets = buckets.filter(|count| **count != 0.0).count();
            (time, Value::Histogram { count: histogram.count.to_bits(), sum: histogram.sum.to_bits(), buckets })
        }))
        .collect()
}

/// Merged, written anew and read again, all samples are there, the first chunk's where both have one.
fn check_series(chunks: &[Chunk]) {
    let mut expected = BTreeMap::new();
    for chunk in chunks {
        for (time, value) in samples(&columns(std::slice::from_ref(chunk))) {
            expected.entry(time).or_insert(value);
        }
    }
    let merged = columns(chunks);
    assert_eq!(samples(&merged), expected);
    if let Ok(apart) = without_overlaps(chunks) {
        assert!(apart.is_sorted_by(|a, b| a.max_time < b.min_time));
        assert_eq!(samples(&columns(&apart)), expected);
    }
    if let Ok(encoded) = encode_columns(&merged) {
        assert_eq!(samples(&columns(&encoded)), expected);
    }
}
