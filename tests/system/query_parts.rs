//! Queries cut by series and by steps over several queriers, and explained.

use std::path::Path;

use serde_json::Value;

use crate::flush::push_an_hour;
use crate::process::{Answer, Skald, now_ms, wait_for};

const QUERIES: &[&str] = &[
    "sum(rate(flushed[5m]))",
    "sum by (group) (flushed) / on (group) count by (group) (flushed)",
    "avg without (series) (rate(flushed[3m])) * 2",
    "max(flushed) - min(flushed)",
    "topk(2, sum by (group) (flushed))",
    "sum(flushed) / sum(flushed)",
    "max_over_time(sum(flushed)[10m:1m])",
    "histogram_quantile(0.9, sum by (group) (rate(flushed[5m])))",
    "flushed",
    "rate(flushed{group=~\"g[12]\"}[5m])",
    "flushed - on (series) flushed offset 5m",
    "sum(flushed) + on () group_right () flushed",
    "stddev(flushed)",
    "count(flushed @ end())",
    "time()",
    "vector(1)",
    "absent(nothing)",
];

/// One process with everything, two queriers, and query-frontends of different settings over both.
struct Rig {
    whole: Skald,
    scheduler: Skald,
    queriers: Vec<Skald>,
    frontends: Vec<Skald>,
}

/// Nobody sends anything to those who stop.
const AT_ONCE: &str = "--server.shutdown-delay=0s";

async fn start(dir: &Path) -> Rig {
    let bucket = format!("--blocks-storage.filesystem.dir={}", dir.join("bucket").display());
    let replication = "--ring.replication-factor=1";
    let mut whole = Skald::new(&dir.join("whole"), &[&bucket, replication]);
    whole.set_cluster("whole-0", None);
    whole.start_again().await;
    let other = async |name: &str, target: &str, more: &[&str]| {
        let target = format!("--target={target}");
        let mut flags = vec![bucket.as_str(), &target, replication, AT_ONCE];
        flags.extend(more);
        let mut skald = Skald::new(&dir.join(name), &flags);
        skald.set_cluster(name, Some(&whole));
        skald.start_again().await;
        skald
    };
    let scheduler = other("scheduler-0", "query-scheduler", &[]).await;
    let mut queriers = Vec::new();
    for name in ["querier-1", "querier-2"] {
        queriers.push(other(name, "querier", &[]).await);
    }
    let mut frontends = Vec::new();
    let settings: [&[&str]; 3] = [
        &["--query-frontend.query-shards=3"],
        &["--query-frontend.split-interval=10m"],
        &["--query-frontend.query-shards=2", "--query-frontend.split-interval=7m"],
    ];
    for (i, settings) in settings.iter().enumerate() {
        frontends.push(other(&format!("frontend-{i}"), "query-frontend", settings).await);
    }
    Rig { whole, scheduler, queriers, frontends }
}

async fn range(skald: &Skald, query: &str, end: i64, more: &[(&str, &str)]) -> Answer {
    let (start, end) = ((end - 3_000_000) / 1000, end / 1000);
    let (start, end) = (start.to_string(), end.to_string());
    let mut params = vec![("query", query), ("start", &start), ("end", &end), ("step", "20")];
    params.extend(more);
    skald.get("/prometheus/api/v1/query_range", &params).await
}

/// Equal but for the last digits of sums.
fn check_equal(query: &str, got: &Value, want: &Value) {
    match (got, want) {
        (Value::Array(got), Value::Array(want)) => {
            assert_eq!(got.len(), want.len(), "{query}: {got:?} is not {want:?}");
            got.iter().zip(want).for_each(|(got, want)| check_equal(query, got, want));
        }
        (Value::Object(got), Value::Object(want)) => {
            assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{query}");
            got.values().zip(want.values()).for_each(|(got, want)| check_equal(query, got, want));
        }
        (Value::String(got), Value::String(want)) if got != want => {
            let numbers = (got.parse::<f64>().ok(), want.parse::<f64>().ok());
            let (Some(a), Some(b)) = numbers else { panic!("{query}: {got} is not {want}") };
            assert!((a - b).abs() <= 1e-12 * b.abs(), "{query}: {got} is not {want}");
        }
        (got, want) => assert_eq!(got, want, "{query}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_shards_give_the_answer_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = start(dir.path()).await;
    let end = now_ms() / 15_000 * 15_000;
    push_an_hour(&rig.whole, end).await;
    for query in QUERIES {
        for stats in ["", "all"] {
            let want = range(&rig.whole, query, end, &[("stats", stats)]).await.json();
            assert_eq!(want["status"], "success", "{query}: {want}");
            for frontend in &rig.frontends {
                let got = range(frontend, query, end, &[("stats", stats)]).await.json();
                check_equal(query, &got["data"]["result"], &want["data"]["result"]);
                assert_eq!((&got["infos"], &got["warnings"]), (&want["infos"], &want["warnings"]), "{query}");
                let samples = |answer: &Value| answer["data"]["stats"]["samples"].clone();
                for of in ["totalQueryableSamples", "totalQueryableSamplesPerStep"] {
                    assert_eq!(samples(&got)[of], samples(&want)[of], "{query}: {of}");
                }
            }
        }
        let at = end as f64 / 1000.0;
        let want = rig.whole.query(query, at).await;
        check_equal(query, &rig.frontends[0].query(query, at).await, &want);
    }

    // Errors are those of the whole.
    for wrong in
        ["flushed + on () flushed", "sum(flushed + on () flushed)", "sum(flushed[5m:0s])", "sum(", "rate(flushed)"]
    {
        let want = range(&rig.whole, wrong, end, &[]).await;
        assert!(want.status >= 400, "{wrong}: {}", want.body);
        for frontend in &rig.frontends {
            let got = range(frontend, wrong, end, &[]).await;
            assert_eq!((got.status, got.body), (want.status, want.body.clone()), "{wrong}");
        }
    }

    // The explained shards of another process.
    let explained = range(&rig.frontends[0], "sum(rate(flushed[5m]))", end, &[("explain", "true")]).await;
    let tree = Skald::data(explained)["explain"].take();
    assert_eq!((tree["operation"].as_str(), tree["inputs"].as_array().map(Vec::len)), (Some("combine sum"), Some(3)));
    let read = |shard: &Value| shard["inputs"][0]["inputs"][0]["series_read"].as_u64().unwrap();
    let series: Vec<u64> = tree["inputs"].as_array().unwrap().iter().map(read).collect();
    assert!(series.iter().sum::<u64>() == 30 && series.iter().all(|n| *n < 20), "{series:?}");

    let want = range(&rig.whole, QUERIES[0], end, &[]).await.json();
    // A querier dies: the other one answers, and nobody notices.
    for round in 0..30 {
        if round == 5 {
            rig.queriers[1].kill();
        }
        for frontend in &rig.frontends {
            let got = range(frontend, QUERIES[0], end, &[]).await;
            assert_eq!(got.status, 200, "in round {round}: {}", got.body);
            check_equal("with a querier dying", &got.json()["data"]["result"], &want["data"]["result"]);
        }
    }
    assert!(rig.scheduler.metric("skald_query_scheduler_queue_duration_seconds_count").await > 100.0);
    rig.queriers[1].start_again().await;
    wait_for("the querier that is back", 30, async || {
        let got = range(&rig.frontends[0], QUERIES[0], end, &[]).await;
        (got.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let skald = Skald::start(dir.path(), &[]).await;
    let end = now_ms() / 15_000 * 15_000;
    push_an_hour(&skald, end).await;
    let query = "sum by (group) (rate(flushed[5m])) / sum by (group) (rate(flushed[5m]))";
    let data = Skald::data(range(&skald, query, end, &[("explain", "true")]).await);
    assert_eq!(data["result"].as_array().map(Vec::len), Some(5));
    let tree = &data["explain"];
    assert_eq!((tree["operation"].as_str(), tree["query"].as_str()), (Some("/"), Some(query)));
    assert_eq!(
        (tree["steps"].as_u64(), tree["series"].as_u64(), tree["points"].as_u64()),
        (Some(151), Some(5), Some(755))
    );
    let sum = &tree["inputs"][0];
    assert_eq!(tree["inputs"][1], serde_json::json!({ "reference": sum["id"] }));
    let select = &sum["inputs"][0]["inputs"][0];
    let count = |name: &str| select[name].as_u64().unwrap();
    assert_eq!((count("series_read"), count("places")), (30, 2));
    assert!(count("samples_read") > 6000 && count("bytes_read") > 6000, "{select}");
    let seconds = |node: &Value, name: &str| node[name].as_f64().unwrap();
    assert!(seconds(tree, "total_seconds") >= seconds(sum, "total_seconds") && seconds(sum, "total_seconds") > 0.0);

    let planned = Skald::data(range(&skald, query, end, &[("explain", "plan")]).await);
    assert_eq!((&planned["result"], planned["explain"]["operation"].as_str()), (&serde_json::json!([]), Some("/")));
    assert!(planned["explain"].get("series").is_none());
    let plain = Skald::data(range(&skald, query, end, &[("explain", "false")]).await);
    assert!(plain.get("explain").is_none());
    let wrong = range(&skald, query, end, &[("explain", "yes")]).await;
    assert_eq!(wrong.status, 400, "{}", wrong.body);
    assert!(wrong.body.contains("none of"), "{}", wrong.body);
}
