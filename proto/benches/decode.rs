//! What does decoding one series of a remote_write request cost?
//!
//! Data: 2,000 series of 10 labels (about 270 label bytes, as a Kubernetes scrape has them) with one sample each; the
//! same with one non-ASCII value per series, the same unsorted, and both orders as 2.0. Unit: ns/series, best of many passes; snappy is shown apart.
//! Run: `cargo bench -p skald-proto --bench decode`.
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![expect(clippy::print_stdout, reason = "a bench prints its result")]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use skald_model::varint::put_uvarint;
use skald_proto::remote_write::{Received, Version};

const SERIES: usize = 2000;
const PASSES: usize = 400;

fn main() {
    for (name, city, reversed, version) in [
        ("sorted, ASCII", "Cologne", false, Version::V1),
        ("non-ASCII value", "Köln", false, Version::V1),
        ("unsorted", "Cologne", true, Version::V1),
        ("2.0, sorted", "Cologne", false, Version::V2),
        ("2.0, unsorted", "Cologne", true, Version::V2),
    ] {
        let message = match version {
            Version::V1 => request(city, reversed),
            Version::V2 => request_v2(city, reversed),
        };
        let compressed = snap::raw::Encoder::new().compress_vec(&message).expect("a small message");
        let mut received = Received::default();
        let whole = best(|| received.decode(version, &compressed, 1 << 30, &mut |_| ()).expect("valid"));
        assert_eq!(received.batch.series.len(), SERIES);
        let mut raw = vec![0; message.len()];
        let snappy = best(|| drop(snap::raw::Decoder::new().decompress(&compressed, &mut raw)));
        let per_series = |time: Duration| time.as_nanos() as f64 / SERIES as f64;
        println!(
            "{name:16} {:6.1} ns/series decode, {:6.1} ns/series snappy, {} B/series, {} B compressed",
            per_series(whole.saturating_sub(snappy)),
            per_series(snappy),
            message.len() / SERIES,
            compressed.len() / SERIES,
        );
    }
}

fn best(mut pass: impl FnMut()) -> Duration {
    (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            pass();
            start.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn labels(i: usize, city: &str, reversed: bool) -> Vec<(&'static str, String)> {
    let mut labels = vec![
        ("__name__", "http_request_duration_seconds_bucket".to_owned()),
        ("cluster", "prod-eu-west-1".to_owned()),
        ("container", "checkout-service".to_owned()),
        ("datacenter", city.to_owned()),
        ("endpoint", format!("/api/v1/orders/{}", i % 50)),
        ("instance", format!("10.42.{}.{}:8080", i / 200, i % 200)),
        ("job", "kubernetes-pods".to_owned()),
        ("le", format!("{}", 0.005 * (1 << (i % 12)) as f64)),
        ("namespace", "commerce-production".to_owned()),
        ("pod", format!("checkout-service-6d5f7c8b9-{:05x}", i.wrapping_mul(7919))),
    ];
    if reversed {
        labels.reverse();
    }
    labels
}

fn sample(i: usize) -> Vec<u8> {
    let mut sample = vec![0x09];
    sample.extend_from_slice(&(i as f64 * 1.25).to_le_bytes());
    sample.push(0x10);
    put_uvarint(&mut sample, 1_717_200_000_000 + i as u64);
    sample
}

fn request(city: &str, reversed: bool) -> Vec<u8> {
    let mut request = Vec::new();
    for i in 0..SERIES {
        let mut series = Vec::new();
        for (name, value) in &labels(i, city, reversed) {
            let mut label = Vec::new();
            field(&mut label, 0x0A, name.as_bytes());
            field(&mut label, 0x12, value.as_bytes());
            field(&mut series, 0x0A, &label);
        }
        field(&mut series, 0x12, &sample(i));
        field(&mut request, 0x0A, &series);
    }
    request
}

/// As Prometheus sends it: symbols first, start timestamps and metadata with every series.
fn request_v2(city: &str, reversed: bool) -> Vec<u8> {
    let mut symbols: HashMap<String, u64> = HashMap::new();
    let (mut table, mut all) = (Vec::new(), Vec::new());
    let mut symbol = |text: &str| {
        let next = symbols.len() as u64;
        *symbols.entry(text.to_owned()).or_insert_with(|| {
            field(&mut table, 0x22, text.as_bytes());
            next
        })
    };
    symbol("");
    for i in 0..SERIES {
        let (mut series, mut refs) = (Vec::new(), Vec::new());
        for (name, value) in &labels(i, city, reversed) {
            put_uvarint(&mut refs, symbol(name));
            put_uvarint(&mut refs, symbol(value));
        }
        field(&mut series, 0x0A, &refs);
        let mut sample = sample(i);
        sample.push(0x18);
        put_uvarint(&mut sample, 1_717_000_000_000);
        field(&mut series, 0x12, &sample);
        let mut metadata = vec![0x08, 3, 0x18];
        put_uvarint(&mut metadata, symbol("How long requests took."));
        field(&mut series, 0x2A, &metadata);
        field(&mut all, 0x2A, &series);
    }
    [table, all].concat()
}

fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
