//! Show 6: blocks written by real Prometheus, placed in the bucket, are answered as Prometheus answered them; bodies sent
//! by real Prometheus are accepted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::compare::same_data;
use crate::process::{Answer, Skald, metric_sum};

/// The golden data beside every checkout; tests that need it say so and end where it is missing.
fn golden(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden").join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            // Not `copy`, which would keep the file read-only.
            std::fs::write(&target, std::fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

async fn ask(skald: &Skald, request: &Value) -> Answer {
    let path = format!("/prometheus{}", request["path"].as_str().unwrap());
    let params: Vec<(&str, &str)> = request["params"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    if request["method"] == "POST" {
        return skald.post_form(&path, &params).await;
    }
    skald.get(&path, &params).await
}

async fn check_set(name: &str) {
    let Some(set) = golden(name) else { return };
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&set.join("blocks"), &dir.path().join("data/blocks/anonymous"));
    let flags = ["--blocks-storage.bucket-index.refresh-interval=200ms", "--compactor.cleanup-interval=1s"];
    let skald = Skald::start(dir.path(), &flags).await;
    let answers = std::fs::read_to_string(set.join("answers.jsonl")).unwrap();
    let lines: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let begun = Instant::now();
    loop {
        let names = skald.get("/prometheus/api/v1/label/__name__/values", &[]).await.json();
        if names["data"].as_array().is_some_and(|names| !names.is_empty()) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "the blocks are not found: {names}\n{}", skald.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut failures = Vec::new();
    let mut compared = 0;
    for line in &lines {
        let request = &line["request"];
        if !request["version_sensitive"].is_null() {
            continue;
        }
        compared += 1;
        let answer = ask(&skald, request).await;
        let expected = &line["response"];
        let found: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let status = u64::from(answer.status);
        let query = request["params"].to_string();
        let equal = if expected["status"] == "error" {
            status == line["status"] && found["errorType"] == expected["errorType"]
        } else {
            let query = request["params"].as_array().and_then(|all| all.iter().find(|p| p[0] == "query"));
            let query = query.and_then(|pair| pair[1].as_str()).unwrap_or_default();
            let path = request["path"].as_str().unwrap_or_default();
            status == 200 && same_data(query, path, &expected["data"], &found["data"])
        };
        if !equal {
            let short = |text: String| text.chars().take(600).collect::<String>();
            failures.push(format!(
                "{} {query}\n  expected {}\n  found    {}",
                request["path"],
                short(expected.to_string()),
                short(answer.body)
            ));
        }
    }
    println!(
        "{name}: {} of {compared} answers are equal ({} flagged)",
        compared - failures.len(),
        lines.len() - compared
    );
    assert!(failures.is_empty(), "{}\n{} differ", failures.join("\n"), failures.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn backfilled_blocks_answer_as_prometheus_did() {
    check_set("blocks-backfill").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_blocks_answer_as_prometheus_did() {
    check_set("blocks-head").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_a_real_sender_are_accepted() {
    let Some(set) = golden("remote-write") else { return };
    let dir = tempfile::tempdir().unwrap();
    let skald = Skald::start(dir.path(), &[]).await;
    let expected = std::fs::read_to_string(set.join("expected.jsonl")).unwrap();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for line in expected.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let body = std::fs::read(set.join(line["file"].as_str().unwrap())).unwrap();
        let answer = skald.push(body).await.unwrap();
        assert_eq!(answer.status, 200, "{line}: {}", answer.body);
        for key in ["samples", "exemplars", "histograms_int", "histograms_float", "metadata"] {
            *sums.entry(key).or_default() += line[key].as_u64().unwrap();
        }
    }
    let metrics = skald.get("/metrics", &[]).await.body;
    let counter = |name: &str| metric_sum(&metrics, name) as u64;
    let samples = sums["samples"] + sums["histograms_int"] + sums["histograms_float"];
    assert_eq!(counter("skald_distributor_received_samples_total"), samples);
    assert_eq!(counter("skald_distributor_received_exemplars_total"), sums["exemplars"]);
    assert_eq!(counter("skald_distributor_received_metadata_total"), sums["metadata"]);
    assert_eq!(counter("skald_discarded_samples_total"), 0);
    assert!(!skald.get("/prometheus/api/v1/metadata", &[]).await.json()["data"].as_object().unwrap().is_empty());
}
