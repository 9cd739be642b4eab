//! What does it cost to append one sample to a chunk, and to decode one?
//!
//! Data: 10,000 chunks of 120 samples, 15 s apart with jitter of a few ms, of four kinds (constant, counter of whole
//! numbers, gauge with two decimals, random bits). Prints ns/sample and bytes/sample.
//! Run: `cargo bench -p skald-tsdb --bench chunk`. Seeds are fixed.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![expect(clippy::print_stdout, reason = "a bench prints")]

use std::hint::black_box;
use std::time::Instant;

use skald_model::{Columns, QueryRange};
use skald_tsdb::chunk::xor::{self, XorAppender};

const CHUNKS: usize = 10_000;
const SAMPLES: usize = 120;

fn main() {
    for kind in [Kind::Constant, Kind::Counter, Kind::Gauge, Kind::Random] {
        floats(kind);
    }
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

fn series(kind: Kind, rng: &mut Rng) -> Vec<(i64, f64)> {
    let mut time = 1_717_200_000_000;
    let mut value = 1000.0;
    (0..SAMPLES)
        .map(|_| {
            time += 15_000 + (rng.next() % 5) as i64 - 2;
            match kind {
                Kind::Constant => {}
                Kind::Counter => value += (rng.next() % 100) as f64,
                Kind::Gauge => value = ((rng.next() % 100_000) as f64).round() / 100.0,
                Kind::Random => value = f64::from_bits(rng.next()),
            }
            (time, value)
        })
        .collect()
}

fn floats(kind: Kind) {
    let mut rng = Rng(42);
    let data: Vec<Vec<(i64, f64)>> = (0..CHUNKS).map(|_| series(kind, &mut rng)).collect();
    let mut chunks: Vec<Vec<u8>> = (0..CHUNKS).map(|_| Vec::with_capacity(2048)).collect();
    let mut appenders = vec![XorAppender::new(); CHUNKS];

    let begun = Instant::now();
    for ((samples, chunk), appender) in data.iter().zip(&mut chunks).zip(&mut appenders) {
        for &(time, value) in samples {
            appender.append(chunk, time, value).expect("room");
        }
    }
    let append = begun.elapsed();

    // The order in which a head sees them: one sample of every series at a time.
    let mut arena = vec![0u8; CHUNKS * 2048];
    let mut appenders = vec![XorAppender::new(); CHUNKS];
    let begun = Instant::now();
    #[expect(clippy::needless_range_loop, reason = "rounds go across the series")]
    for round in 0..SAMPLES {
        for (series, appender) in appenders.iter_mut().enumerate() {
            let (time, value) = data[series][round];
            let encoded = appender.encode(time, value).expect("room");
            let at = series * 2048 + encoded.offset();
            arena[at..at + encoded.bytes().len()].copy_from_slice(encoded.bytes());
        }
    }
    let interleaved = begun.elapsed();
    black_box(&arena);

    let mut out = Columns::default();
    let begun = Instant::now();
    for chunk in &chunks {
        out.clear();
        xor::decode(chunk, QueryRange::ALL, &mut out).expect("good chunk");
        black_box(&out);
    }
    let decode = begun.elapsed();

    let bytes: usize = chunks.iter().map(Vec::len).sum();
    let total = (CHUNKS * SAMPLES) as f64;
    println!(
        "{:<9} append {:5.1} ns/sample, interleaved {:5.1} ns/sample, decode {:5.2} ns/sample, {:5.2} bytes/sample",
        format!("{kind:?}"),
        append.as_nanos() as f64 / total,
        interleaved.as_nanos() as f64 / total,
        decode.as_nanos() as f64 / total,
        bytes as f64 / total
    );
}
