//! How a process begins, shows itself, and ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Skald, metric_sum, now_ms, wait_for};
use crate::sender::Request;

fn body(name: &str, sender: usize, at: i64, value: f64) -> Vec<u8> {
    let sender = format!("{sender}");
    Request::default().series(&[("__name__", name), ("sender", &sender)], &[(at, value)]).body()
}

const SENDERS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_is_under_way_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let first = now_ms() - 600_000;
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for sender in 0..SENDERS {
        let (client, url, stop) = (skald.client().clone(), skald.url("/api/v1/push"), stop.clone());
        senders.push(tokio::spawn(async move {
            let mut acknowledged = 0_i64;
            while !stop.load(Ordering::Relaxed) {
                let body = body("load", sender, first + acknowledged, acknowledged as f64);
                let request = client.post(&url).header("Content-Encoding", "snappy").body(body);
                match request.send().await {
                    Ok(response) if response.status() == 200 => acknowledged += 1,
                    Ok(response) => assert_eq!(response.status(), 503, "a write at the end is told to come back"),
                    Err(_) => break,
                }
            }
            acknowledged
        }));
    }
    // A write that is half there when the process is asked to stop.
    let address = skald.url("").trim_start_matches("http://").to_owned();
    let slow = body("slow", 0, first, 1.0);
    let head = format!(
        "POST /api/v1/push HTTP/1.1\r\nHost: {address}\r\nContent-Encoding: snappy\r\nContent-Length: {}\r\n\r\n",
        slow.len()
    );
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&slow[..5]).await.unwrap();
    wait_for("the slow write is under way", 10, async || {
        (skald.metric("skald_distributor_inflight_push_requests").await >= 1.0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    skald.process().ask_to_stop();
    wait_for("it takes note", 10, async || skald.log().contains("stopping").then_some(())).await;
    stream.write_all(&slow[5..]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(skald.process().wait(), Some(0), "{}", skald.log());
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for sender in senders {
        acknowledged.push(sender.await.unwrap());
    }
    println!("{acknowledged:?} writes acknowledged");
    assert!(acknowledged.iter().all(|count| *count > 10), "{acknowledged:?}");

    skald.start_again().await;
    let end = (first + 500_000) as f64 / 1000.0;
    assert_eq!(skald.query("slow[1h]", end).await["result"][0]["values"][0][1], "1");
    let data = skald.query("load[1h]", end).await;
    for one in data["result"].as_array().unwrap() {
        let sender: usize = one["metric"]["sender"].as_str().unwrap().parse().unwrap();
        let values: Vec<f64> =
            one["values"].as_array().unwrap().iter().map(|v| v[1].as_str().unwrap().parse().unwrap()).collect();
        let count = acknowledged[sender] as usize;
        // The last one may have been stored and its answer lost.
        assert!(values.len() == count || values.len() == count + 1, "{} of {count} writes", values.len());
        assert!(values.iter().enumerate().all(|(i, value)| *value == i as f64), "{values:?}");
    }
    assert_eq!(data["result"].as_array().map(Vec::len), Some(SENDERS));
    skald.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_replays_is_not_ready_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let first = now_ms() - 600_000;
    // Enough that replay takes a while.
    for round in 0..60 {
        let mut request = Request::default();
        for series in 0..2000 {
            let name = format!("series number {series}");
            let labels = [("__name__", "replayed"), ("series", name.as_str())];
            request = request.series(&labels, &[(first + round * 1000, series as f64)]);
        }
        assert_eq!(skald.push(request.body()).await.unwrap().status, 200);
    }
    skald.kill();
    skald.spawn();
    let mut refused = None;
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", skald.log());
        let Ok(ready) = skald.client().get(skald.url("/ready")).send().await else { continue };
        if ready.status() == 200 {
            break;
        }
        assert_eq!(ready.status(), 503);
        let text = ready.text().await.unwrap();
        if text.contains("ingester: Starting") {
            // While it starts it answers neither writes nor queries, and what it shows people works.
            let write = skald.push(body("early", 0, first, 1.0)).await.unwrap();
            let query = skald.get("/prometheus/api/v1/query", &[("query", "replayed")]).await;
            let metrics = skald.get("/metrics", &[]).await;
            // It may have got ready in between.
            if skald.client().get(skald.url("/ready")).send().await.unwrap().status() == 503 {
                refused = Some([write.status, query.status, metrics.status]);
            }
        }
    }
    assert_eq!(refused, Some([503, 503, 200]), "not seen while it replayed: {}", skald.log());
    let end = (first + 60_000) as f64 / 1000.0;
    let data = skald.query("sum(count_over_time(replayed[1h]))", end).await;
    assert_eq!(data["result"][0]["value"][1], "120000", "{data}");
    skald.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_for_people_answer() {
    let dir = tempfile::tempdir().unwrap();
    let skald = Skald::start(dir.path(), &["--blocks-storage.s3.secret-access-key=very-secret"]).await;
    let index = skald.get("/", &[]).await;
    assert_eq!(index.status, 200);
    // Every link leads somewhere. Those that change something are answered to POST only.
    let links: Vec<&str> = index.body.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(links.len() >= 6, "{}", index.body);
    for link in &links {
        let answer = skald.get(link, &[]).await;
        assert!(matches!(answer.status, 200 | 400 | 405), "{link}: {answer:?}");
    }
    let config = skald.get("/config", &[]).await.body;
    assert!(config.contains("\nmultitenancy_enabled: false\n"), "{config}");
    assert!(!config.contains("very-secret"), "the secret is shown");
    let services = skald.get("/services", &[]).await.body;
    for service in
        ["http", "grpc", "ingester", "querier", "query-frontend", "store-gateway", "compactor", "distributor"]
    {
        assert!(services.contains(&format!("{service}: Running")), "{services}");
    }
    let build = Skald::data(skald.get("/prometheus/api/v1/status/buildinfo", &[]).await);
    assert!(build["version"].is_string(), "{build}");
    let metrics = skald.get("/metrics", &[]).await.body;
    assert!(metric_sum(&metrics, "process_resident_memory_bytes") > 1e6, "{metrics}");
    let undescribed: Vec<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .filter(|line| !line.starts_with("skald_") && !line.starts_with("process_"))
        .collect();
    assert_eq!(undescribed, Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_query_of_a_client_that_goes_away_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let end = now_ms();
    let mut request = Request::default();
    for series in 0..200 {
        let name = format!("{series}");
        let samples: Vec<(i64, f64)> = (0..100).map(|i| (end - (100 - i) * 1000, i as f64)).collect();
        request = request.series(&[("__name__", "heavy"), ("series", &name)], &samples);
    }
    assert_eq!(skald.push(request.body()).await.unwrap().status, 200);
    // Minutes of work that need little memory.
    let query = "count(max_over_time(rate(heavy[5m])[5m:10ms]) > 0)";
    let params = [
        ("query", query),
        ("start", &(end / 1000 - 1000).to_string()),
        ("end", &(end / 1000).to_string()),
        ("step", "1"),
    ];
    let before = skald.process().cpu_time();
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish();
    let asking = tokio::spawn(skald.client().get(skald.url(&format!("/prometheus/api/v1/query_range?{form}"))).send());
    let begun = Instant::now();
    while skald.process().cpu_time() - before < Duration::from_secs(1) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the query does not burn");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!asking.is_finished(), "that was no heavy query");
    asking.abort();
    // The client is gone. Within a few seconds the process rests.
    let begun = Instant::now();
    loop {
        let before = skald.process().cpu_time();
        tokio::time::sleep(Duration::from_millis(500)).await;
        if skald.process().cpu_time() - before < Duration::from_millis(100) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "the query goes on without its client");
    }
    let canceled = skald.get("/metrics", &[]).await.body;
    assert!(
        canceled.lines().any(|line| line.contains("query_range") && line.contains("status_code=\"499\"")),
        "{canceled}"
    );
    // A deadline ends a query as well.
    let begun = Instant::now();
    let params = [&params[..], &[("timeout", "1s")]].concat();
    let answer = skald.get("/prometheus/api/v1/query_range", &params).await;
    assert_eq!((answer.status, answer.json()["errorType"].as_str()), (503, Some("timeout")), "{}", answer.body);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
