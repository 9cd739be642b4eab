//! Show 4: flushed samples are answered from object storage, and Prometheus' own tools read the blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Skald, installed, now_ms};
use crate::sender::Request;

const QUERIES: &[&str] = &[
    "flushed",
    "flushed[30m]",
    "sum by (group) (rate(flushed[5m]))",
    "max_over_time(flushed[1h])",
    "count(flushed)",
    "flushed{group=~\"g[12]\"} offset 10m",
];

/// Pushes an hour of samples and returns what was pushed: `series -> timestamp -> value`.
pub async fn push_an_hour(skald: &Skald, end: i64) -> BTreeMap<String, BTreeMap<i64, f64>> {
    let mut pushed: BTreeMap<String, BTreeMap<i64, f64>> = BTreeMap::new();
    for round in 0..240_i64 {
        let at = end - (239 - round) * 15_000;
        let mut request = Request::default();
        for series in 0..30_i64 {
            let (group, name) = (format!("g{}", series % 5), format!("s{series:02}"));
            let value = (round * (series + 1)) as f64 + 0.25 * (series % 4) as f64;
            request = request.series(&[("__name__", "flushed"), ("group", &group), ("series", &name)], &[(at, value)]);
            pushed.entry(name).or_default().insert(at, value);
        }
        let answer = skald.push(request.body()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    pushed
}

/// The answers of [`QUERIES`], with vectors and matrices ordered by labels.
pub async fn answers(skald: &Skald, end: i64) -> Vec<Value> {
    let mut all = Vec::new();
    for query in QUERIES {
        let mut data = skald.query(query, end as f64 / 1000.0).await;
        if let Some(result) = data["result"].as_array_mut() {
            result.sort_by_key(|one| one["metric"].to_string());
        }
        assert_ne!(data["result"], serde_json::json!([]), "{query} finds nothing");
        all.push(data);
    }
    all
}

/// Waits until an answer of the blocks alone is complete: the bucket index has to be written and read first.
pub async fn wait_for_answers(skald: &Skald, end: i64, expected: &[Value]) {
    let begun = Instant::now();
    loop {
        let data = skald.query("count(flushed)", end as f64 / 1000.0).await;
        if data == expected[4] {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "the blocks are not found: {data}\n{}", skald.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(answers(skald, end).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_samples_come_from_object_storage() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--compactor.cleanup-interval=1s", "--blocks-storage.bucket-index.refresh-interval=500ms"];
    let mut skald = Skald::start(dir.path(), &flags).await;
    let end = now_ms() / 15_000 * 15_000;
    let pushed = push_an_hour(&skald, end).await;
    let expected = answers(&skald, end).await;
    let flushed = skald.post("/ingester/flush").await;
    assert!(flushed.status < 300, "{flushed:?}");
    assert_eq!(answers(&skald, end).await, expected, "right after the flush");
    skald.stop();
    for entry in std::fs::read_dir(dir.path().join("data")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().unwrap() != "blocks" {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    skald.start_again().await;
    wait_for_answers(&skald, end, &expected).await;
    skald.stop();
    if installed("promtool") {
        check_with_promtool(&dir.path().join("data/blocks/anonymous"), &pushed);
    }
}

fn promtool(arguments: &[&str]) -> String {
    let output = Command::new("promtool").args(arguments).output().expect("promtool runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// `promtool tsdb list`, `analyze` and `dump` accept the blocks of `tenant`, and the dump is what was pushed.
fn check_with_promtool(tenant: &Path, pushed: &BTreeMap<String, BTreeMap<i64, f64>>) {
    let dir = tenant.to_str().unwrap();
    let is_block = |path: &PathBuf| path.join("meta.json").exists();
    let blocks: Vec<PathBuf> = std::fs::read_dir(tenant).unwrap().map(|e| e.unwrap().path()).filter(is_block).collect();
    assert!(!blocks.is_empty());
    let listed = promtool(&["tsdb", "list", dir]);
    for block in &blocks {
        let id = block.file_name().unwrap().to_str().unwrap();
        assert!(listed.contains(id), "{listed}");
        assert!(promtool(&["tsdb", "analyze", dir, id]).contains("Series: 30\n"));
    }
    // It dumps whole databases only, and those have a log.
    std::fs::create_dir(tenant.join("wal")).unwrap();
    let mut dumped: BTreeMap<String, BTreeMap<i64, f64>> = BTreeMap::new();
    for line in promtool(&["tsdb", "dump", dir]).lines() {
        let (labels, sample) = line.rsplit_once("} ").expect("a dumped sample");
        let (value, at) = sample.split_once(' ').expect("value and time");
        let name = labels.split("series=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("the series label");
        dumped.entry(name.to_owned()).or_default().insert(at.parse().unwrap(), value.parse().unwrap());
    }
    assert_eq!(&dumped, pushed);
}
