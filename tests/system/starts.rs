//! remote_write 2.0 with start timestamps, end to end: pushed, killed, flushed, asked for.

use crate::process::{Answer, Skald, answer_of, now_ms};
use crate::sender::{Request, put_field, put_uvarint};

/// A 2.0 body: `x` with one start for all its samples, `h` (native histograms) with that of the sample before, `none` without.
fn body(first: i64) -> Vec<u8> {
    let mut request = Vec::new();
    for symbol in ["", "__name__", "x", "h", "none", "job", "a", "seconds"] {
        put_field(&mut request, 4, symbol.as_bytes());
    }
    let times = || (0..20).map(|i| first + i * 15_000);
    let number = |message: &mut Vec<u8>, tag: &[u8], value: i64| {
        message.extend_from_slice(tag);
        put_uvarint(message, value as u64);
    };
    for name in [2, 3, 4] {
        let mut series = Vec::new();
        put_field(&mut series, 1, &[1, name, 5, 6]);
        for time in times() {
            let mut sample = Vec::new();
            if name == 3 {
                // Two observations in one bucket of schema 0.
                sample.extend_from_slice(&[0x08, 2, 0x19]);
                sample.extend_from_slice(&3.0_f64.to_le_bytes());
                put_field(&mut sample, 11, &[0x08, 0, 0x10, 1]);
                put_field(&mut sample, 12, &[4]);
                number(&mut sample, &[0x78], time);
                number(&mut sample, &[0x88, 1], time - 15_000);
                put_field(&mut series, 3, &sample);
            } else {
                sample.push(0x09);
                sample.extend_from_slice(&1.5_f64.to_le_bytes());
                number(&mut sample, &[0x10], time);
                if name == 2 {
                    number(&mut sample, &[0x18], first - 60_000);
                }
                put_field(&mut series, 2, &sample);
            }
        }
        put_field(&mut series, 5, &[0x08, 1, 0x20, 7]);
        put_field(&mut request, 5, &series);
    }
    Request { bytes: request }.body()
}

async fn push(skald: &Skald, body: Vec<u8>) -> Answer {
    let request = skald.request(reqwest::Method::POST, "/api/v1/push").body(body);
    let request = request.header("Content-Encoding", "snappy").header("X-Prometheus-Remote-Write-Version", "2.0.0");
    answer_of(request.header("Content-Type", "application/x-protobuf;proto=io.prometheus.write.v2.Request"))
        .await
        .unwrap()
}

/// `start_timestamp()` of the three series, a while after the first sample.
async fn starts(skald: &Skald, at: i64) -> Vec<i64> {
    let mut found = Vec::new();
    for name in ["x", "h", "none"] {
        let data = skald.query(&format!("start_timestamp({name})"), at as f64 / 1000.0).await;
        let text = data["result"][0]["value"][1].as_str().unwrap_or_else(|| panic!("{name}: {data}"));
        found.push((text.parse::<f64>().unwrap() * 1000.0).round() as i64);
    }
    found
}

async fn check(encoding: &str, keeps: bool) {
    let dir = tempfile::tempdir().unwrap();
    let encoding = format!("--ingester.block-chunk-encoding={encoding}");
    let mut skald = Skald::start(dir.path(), &["--limits.promql-experimental-functions=true", &encoding]).await;
    let first = now_ms() / 15_000 * 15_000 - 20 * 15_000;
    let answer = push(&skald, body(first)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let last = first + 19 * 15_000;
    let expected = vec![first - 60_000, last - 15_000, 0];
    assert_eq!(starts(&skald, last).await, expected);
    // Samples and metadata are those of any sender.
    let count = skald.query("count({job=\"a\"})", last as f64 / 1000.0).await;
    assert_eq!(count["result"][0]["value"][1], "3");
    let metadata = skald.get("/prometheus/api/v1/metadata", &[("metric", "x")]).await.json();
    assert_eq!(
        (&metadata["data"]["x"][0]["type"], &metadata["data"]["x"][0]["unit"]),
        (&"counter".into(), &"seconds".into())
    );

    skald.kill();
    skald.start_again().await;
    assert_eq!(starts(&skald, last).await, expected, "after kill -9");

    let flushed = skald.post("/ingester/flush").await;
    assert!(flushed.status < 300, "{flushed:?}");
    let in_blocks = if keeps { expected } else { vec![0; 3] };
    assert_eq!(starts(&skald, last).await, in_blocks, "after the flush");
    skald.kill();
    skald.start_again().await;
    assert_eq!(starts(&skald, last).await, in_blocks, "after another kill -9");
    skald.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_drop_start_timestamps_by_default() {
    check("xor", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_keep_start_timestamps_when_told_to() {
    check("xor2", true).await;
}
