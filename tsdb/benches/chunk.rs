//! What does it cost to append one sample to a chunk, to decode one, and to merge two replicas?
//!
//! Data: 1,000 chunks of 120 samples, 15 s apart (with jitter of up to 2 ms where said), of several kinds of values; and
//! 100 histogram chunks of 60 samples with 30 buckets. Prints ns/sample (the best of 15 rounds) and bytes/sample.
//! Run: `cargo bench -p skald-tsdb --bench chunk`. Seeds are fixed.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::hint::black_box;
use std::time::Instant;

use skald_model::{Columns, Histogram, QueryRange, Span};
use skald_tsdb::chunk::histogram::{self, HistogramAppender, Integer, ResetHeader};
use skald_tsdb::chunk::xor::{self, XorAppender};
use skald_tsdb::chunk::{Chunk, Encoding};
use skald_tsdb::decode::decode_series;

const CHUNKS: usize = 1000;
const SAMPLES: usize = 120;
const ROUNDS: usize = 15;

fn main() {
    for jitter in [0, 2] {
        for kind in [Kind::Constant, Kind::Counter, Kind::Gauge, Kind::Random] {
            floats(kind, jitter);
        }
    }
    integer_histograms();
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Constant,
    Counter,
    Gauge,
    Random,
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

fn series(kind: Kind, jitter: i64, rng: &mut Rng) -> Vec<(i64, f64)> {
    let mut value = 1000.0;
    (0..SAMPLES as i64)
        .map(|i| {
            let time = 1_717_200_000_000 + 15_000 * i + rng.next() as i64 % (jitter + 1);
            match kind {
                Kind::Constant => {}
                Kind::Counter => value += (rng.next() % 100) as f64,
                Kind::Gauge => value = (rng.next() % 100_000) as f64 / 100.0,
                Kind::Random => value = f64::from_bits(rng.next()),
            }
            (time, value)
        })
        .collect()
}

/// Nanoseconds per sample of the fastest round.
fn best(samples: usize, mut round: impl FnMut()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        round();
        begun.elapsed().as_nanos() as f64 / samples as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn encode(samples: &[(i64, f64)], data: &mut Vec<u8>) {
    data.clear();
    let mut appender = XorAppender::new();
    for &(time, value) in samples {
        appender.append(data, time, value).expect("room");
    }
}

fn floats(kind: Kind, jitter: i64) {
    let mut rng = Rng(42);
    let all: Vec<Vec<(i64, f64)>> = (0..CHUNKS).map(|_| series(kind, jitter, &mut rng)).collect();
    let mut chunks: Vec<Vec<u8>> = (0..CHUNKS).map(|_| Vec::with_capacity(2048)).collect();
    let total = CHUNKS * SAMPLES;

    let append = best(total, || all.iter().zip(&mut chunks).for_each(|(samples, data)| encode(samples, data)));

    // The order in which a head sees them: one sample of every series at a time, into an arena.
    let mut arena = vec![0u8; CHUNKS * 2048];
    let interleaved = best(total, || {
        let mut appenders = vec![XorAppender::new(); CHUNKS];
        #[expect(clippy::needless_range_loop, reason = "rounds go across the series")]
        for round in 0..SAMPLES {
            for (series, appender) in appenders.iter_mut().enumerate() {
                let (time, value) = all[series][round];
                let encoded = appender.encode(time, value).expect("room");
                let at = series * 2048 + encoded.offset();
                arena[at..at + encoded.bytes().len()].copy_from_slice(encoded.bytes());
            }
        }
        black_box(&arena);
    });

    let mut out = Columns::default();
    let decode = best(total, || {
        for chunk in &chunks {
            out.clear();
            xor::decode(chunk, QueryRange::ALL, &mut out).expect("good chunk");
            black_box(&out);
        }
    });

    // Two replicas' open chunks, one of which lacks the last sample.
    let replicas: Vec<[Chunk; 2]> = all.iter().map(|all| [xor_chunk(all), xor_chunk(&all[..SAMPLES - 1])]).collect();
    let merge = best(total, || {
        for chunks in &replicas {
            decode_series(chunks, QueryRange::ALL, &mut out).expect("good chunks");
            assert_eq!(out.len(), SAMPLES);
        }
    });

    let bytes: usize = chunks.iter().map(Vec::len).sum();
    println!(
        "{:<9} jitter {jitter}: append {append:5.1}, interleaved {interleaved:5.1}, decode {decode:5.2}, \
         two replicas {merge:5.2} ns/sample; {:5.2} bytes/sample",
        format!("{kind:?}"),
        bytes as f64 / total as f64
    );
}

fn xor_chunk(samples: &[(i64, f64)]) -> Chunk {
    let mut data = Vec::new();
    encode(samples, &mut data);
    let (min_time, max_time) = (samples[0].0, samples[samples.len() - 1].0);
    Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() }
}

fn integer_histograms() {
    const HISTOGRAMS: usize = 60;
    const BUCKETS: usize = 30;
    let mut rng = Rng(7);
    let samples: Vec<Histogram> = (0..HISTOGRAMS)
        .scan([0u64; BUCKETS], |counts, _| {
            counts.iter_mut().for_each(|count| *count += rng.next() % 50);
            let mut before = 0;
            let deltas = counts.iter().map(|&count| count as i64 - std::mem::replace(&mut before, count as i64));
            Some(Histogram {
                schema: 3,
                zero_threshold: 1e-128,
                count: counts.iter().sum(),
                sum: counts.iter().sum::<u64>() as f64 * 0.3,
                positive_spans: vec![Span { offset: -10, length: BUCKETS as u32 }],
                positive_deltas: deltas.collect(),
                ..Histogram::default()
            })
        })
        .collect();
    let encode = || {
        let mut appender =
            HistogramAppender::<Integer>::start(0, &samples[0], ResetHeader::Unknown).expect("good histogram");
        for (i, sample) in samples.iter().enumerate().skip(1) {
            let _ = black_box(appender.append(i as i64 * 15_000, sample).expect("good histogram"));
        }
        appender.into_bytes()
    };
    let append = best(100 * HISTOGRAMS, || (0..100).for_each(|_| drop(black_box(encode()))));
    let chunk = encode();
    let mut out = Columns::default();
    let decode = best(100 * HISTOGRAMS, || {
        for _ in 0..100 {
            out.clear();
            histogram::decode(Encoding::Histogram, &chunk, QueryRange::ALL, &mut out).expect("good chunk");
        }
    });
    let bytes = chunk.len() as f64 / HISTOGRAMS as f64;
    println!(
        "Histograms of {BUCKETS} buckets: append {append:.0}, decode {decode:.0} ns/sample; {bytes:.1} bytes/sample"
    );
}
