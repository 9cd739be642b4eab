//! Show 3: `kill -9` at random moments under load loses nothing acknowledged and invents nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::process::{Skald, now_ms};
use crate::sender::Request;

const SERIES: usize = 40;
const KILLS: usize = 10;

/// A value that tells series and sample number, so that an invented or misplaced one is recognised.
fn value(series: usize, sample: u64) -> f64 {
    (series as u64 * 1_000_000 + sample) as f64
}

fn body(first: i64, sample: u64) -> Vec<u8> {
    let mut request = Request::default();
    for series in 0..SERIES {
        let name = format!("s{series}");
        let at = first + sample as i64;
        request = request.series(&[("__name__", "crash"), ("series", &name)], &[(at, value(series, sample))]);
    }
    request.body()
}

/// Samples of each series of [`bulk`], and its series: together more than one frame of the log holds.
const BULK: (usize, i64) = (50, 300);

/// One large request of new series, as a sender makes that catches up.
fn bulk(first: i64, kill: usize) -> Vec<u8> {
    let mut request = Request::default();
    for series in 0..BULK.0 {
        let samples: Vec<(i64, f64)> = (0..BULK.1).map(|i| (first + i, i as f64 / 3.0)).collect();
        let (name, kill) = (format!("b{series}"), kill.to_string());
        request = request.series(&[("__name__", "bulk"), ("kill", &kill), ("series", &name)], &samples);
    }
    request.body()
}

/// Every large request so far is there, whole.
async fn check_bulk(skald: &Skald, first: i64, kill: usize) {
    let end = (first + BULK.1) as f64 / 1000.0;
    let data = skald.query("sum(count_over_time(bulk[1h]))", end).await;
    let expected = (kill + 1) * BULK.0 * BULK.1 as usize;
    assert_eq!(data["result"][0]["value"][1], expected.to_string(), "after kill {kill}");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_samples_survive_kill_9() {
    let mut random = now_ms() as u64;
    println!("seed {random}");
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let first = now_ms() - 600_000;
    // Samples `0..acknowledged` were answered 2xx; the ones up to `sent` may or may not be there.
    let sent = Arc::new(AtomicU64::new(0));
    let mut acknowledged = 0;
    for kill in 0..KILLS {
        let answer = skald.push(bulk(first, kill)).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let stop = Arc::new(AtomicBool::new(false));
        let (client, url) = (skald.client().clone(), skald.url("/api/v1/push"));
        let sender = tokio::spawn({
            let (sent, stop) = (sent.clone(), stop.clone());
            async move {
                let mut done = acknowledged;
                while !stop.load(Ordering::Relaxed) {
                    sent.fetch_max(done + 1, Ordering::Relaxed);
                    let request = client
                        .post(&url)
                        .header("Content-Encoding", "snappy")
                        .header("Content-Type", "application/x-protobuf")
                        .body(body(first, done));
                    match request.send().await {
                        Ok(response) if response.status().is_success() => done += 1,
                        Ok(response) => panic!("{}: {}", response.status(), response.text().await.unwrap()),
                        Err(_) => break,
                    }
                }
                done
            }
        });
        tokio::time::sleep(Duration::from_millis(100 + (random >> 33) % 900)).await;
        skald.kill();
        stop.store(true, Ordering::Relaxed);
        let before = acknowledged;
        acknowledged = sender.await.unwrap();
        skald.start_again().await;
        check(&skald, first, acknowledged, sent.load(Ordering::Relaxed)).await;
        check_bulk(&skald, first, kill).await;
        println!("kill {kill}: {} samples acknowledged since the last", (acknowledged - before) * SERIES as u64);
    }
    assert!(acknowledged > 100, "the load was no load: {acknowledged}");
}

async fn check(skald: &Skald, first: i64, acknowledged: u64, sent: u64) {
    let end = (first + sent as i64 + 1) as f64 / 1000.0;
    let data = skald.query("crash[1h]", end).await;
    let mut found: BTreeMap<String, BTreeMap<i64, f64>> = BTreeMap::new();
    for series in data["result"].as_array().unwrap() {
        let samples = series["values"].as_array().unwrap().iter().map(|point| {
            let at = (point[0].as_f64().unwrap() * 1000.0).round() as i64;
            (at - first, point[1].as_str().unwrap().parse().unwrap())
        });
        found.insert(series["metric"]["series"].as_str().unwrap().to_owned(), samples.collect());
    }
    if acknowledged == 0 {
        return;
    }
    assert_eq!(found.len(), SERIES);
    for series in 0..SERIES {
        let samples = &found[&format!("s{series}")];
        for sample in 0..acknowledged {
            assert_eq!(samples.get(&(sample as i64)), Some(&value(series, sample)), "series {series} sample {sample}");
        }
        for (at, found) in samples {
            assert!(*at >= 0 && (*at as u64) < sent, "series {series} has a sample {at} that was never sent");
            assert_eq!(*found, value(series, *at as u64), "series {series} sample {at}");
        }
    }
}
