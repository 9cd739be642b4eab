//! Show 6: blocks written by real Prometheus, placed in the bucket, are answered as Prometheus answered them; bodies sent
//! by real Prometheus are accepted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Answer, Skald};

/// The golden data beside every checkout; tests that need it say so and end where it is missing.
fn golden(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden").join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn copy_dir(from: &Path, to: &Path) {
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

/// Numbers compare with a relative tolerance of 1e-9; NaN equals NaN, and the sign of zero counts.
fn same_number(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) if a == 0.0 || b == 0.0 => a == b && a.is_sign_negative() == b.is_sign_negative(),
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()),
        _ => false,
    }
}

/// Compares two parts of an answer; text that is a number is compared as one.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => same_number(a, b),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// A vector by labels; or the values alone where their order counts.
fn same_data(query: &str, path: &str, expected: &Value, found: &Value) -> bool {
    let sorted = |value: &Value| -> Vec<String> {
        let mut texts: Vec<String> = value.as_array().into_iter().flatten().map(canonical).collect();
        texts.sort();
        texts
    };
    if !path.contains("/query") {
        return sorted(expected) == sorted(found);
    }
    if expected["resultType"] != found["resultType"] {
        return false;
    }
    let (expected, found) = (&expected["result"], &found["result"]);
    let by_labels = |value: &Value| -> BTreeMap<String, Value> {
        value.as_array().into_iter().flatten().map(|one| (canonical(&one["metric"]), one.clone())).collect()
    };
    let is_vector = expected.as_array().is_some_and(|all| all.iter().all(|one| one["metric"].is_object()));
    if !is_vector {
        return same(expected, found);
    }
    let (a, b) = (by_labels(expected), by_labels(found));
    let equal = a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)));
    let ordered = ["sort", "topk", "bottomk"].iter().any(|name| query.starts_with(name));
    let values = |value: &Value| -> Vec<Value> {
        value.as_array().into_iter().flatten().map(|one| one["value"][1].clone()).collect()
    };
    equal && (!ordered || same(&Value::Array(values(expected)), &Value::Array(values(found))))
}

/// An object with its keys in order.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().map(|(k, v)| (k, v.to_string())).collect();
            format!("{sorted:?}")
        }
        other => other.to_string(),
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
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish();
        let request = skald.client().post(skald.url(&path)).body(form);
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let response = request.send().await.unwrap();
        return Answer { status: response.status().as_u16(), body: response.text().await.unwrap() };
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
    let counter = |name: &str| -> u64 {
        let samples = metrics.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
    };
    let samples = sums["samples"] + sums["histograms_int"] + sums["histograms_float"];
    assert_eq!(counter("skald_distributor_received_samples_total"), samples);
    assert_eq!(counter("skald_distributor_received_exemplars_total"), sums["exemplars"]);
    assert_eq!(counter("skald_distributor_received_metadata_total"), sums["metadata"]);
    assert_eq!(counter("skald_discarded_samples_total"), 0);
    assert!(!skald.get("/prometheus/api/v1/metadata", &[]).await.json()["data"].as_object().unwrap().is_empty());
}
