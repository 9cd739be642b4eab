//! A cluster grows by a replica group, gives another one up, and comes back after it was stopped whole, while nothing that was
//! acknowledged is missing from any answer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Answer, Skald, answer_of, now_ms, wait_for};
use crate::sender::Request;

const SERIES: usize = 60;

fn batch(time: i64, number: u64) -> Vec<u8> {
    let series = |request: Request, i: usize| {
        request.series(&[("__name__", "scaled"), ("i", &i.to_string())], &[(time, number as f64)])
    };
    (0..SERIES).fold(Request::default(), series).body()
}

/// The rows of a page.
async fn rows(skald: &Skald, path: &str) -> Vec<Value> {
    let request = skald.request(reqwest::Method::GET, path).header("Accept", "application/json");
    let answer = answer_of(request).await.expect("an answer");
    answer.json()["rows"].as_array().unwrap_or_else(|| panic!("{path}: {}", answer.body)).clone()
}

async fn scale_in_of(skald: &Skald, group: u64) -> Option<Value> {
    rows(skald, "/ring/scale_in").await.into_iter().find(|row| row["replica_group"] == group)
}

/// Writes and reads all the time, and counts.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    /// Batches acknowledged, and the time of the newest one.
    batches: AtomicU64,
    acknowledged: AtomicI64,
    queries: AtomicU64,
}

impl Load {
    async fn write(&self, url: String, client: reqwest::Client) {
        while !self.stop.load(Ordering::SeqCst) {
            let time = now_ms();
            let body = batch(time, self.batches.load(Ordering::SeqCst));
            let answer = answer_of(client.post(&url).header("Content-Encoding", "snappy").body(body)).await;
            let answer = answer.expect("an answer");
            assert_eq!(answer.status, 200, "a write failed: {}", answer.body);
            self.batches.fetch_add(1, Ordering::SeqCst);
            self.acknowledged.store(time, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn read(&self, url: String, client: reqwest::Client) {
        while !self.stop.load(Ordering::SeqCst) {
            // In this order: there are at least so many until then.
            let batches = self.batches.load(Ordering::SeqCst);
            let time = self.acknowledged.load(Ordering::SeqCst);
            if batches > 0 {
                let answer = count(&client, &url, time).await;
                assert_eq!(answer.status, 200, "a query failed: {}", answer.body);
                let found: f64 = answer.json()["data"]["result"][0]["value"][1].as_str().unwrap().parse().unwrap();
                assert!(found >= (batches * SERIES as u64) as f64, "short: {found} samples of {batches} batches");
                self.queries.fetch_add(1, Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Until so many more are written and read.
    async fn goes_on(&self, more: u64) {
        for counted in [&self.batches, &self.queries] {
            let from = counted.load(Ordering::SeqCst);
            let enough = async || (counted.load(Ordering::SeqCst) >= from + more).then_some(());
            wait_for("writes and queries go on", 60, enough).await;
        }
    }
}

async fn count(client: &reqwest::Client, url: &str, time: i64) -> Answer {
    let time = (time as f64 / 1000.0).to_string();
    let params = [("query", "sum(count_over_time(scaled[1h]))"), ("time", &time)];
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
    answer_of(client.get(format!("{url}?{query}"))).await.expect("an answer")
}

/// Everything happens within seconds that takes half a day otherwise.
const HURRIED: [&str; 14] = [
    "--ring.replication-factor=3",
    "--ring.heartbeat-period=1s",
    "--ring.heartbeat-timeout=30s",
    "--ring.clock-tolerance=1s",
    "--memberlist.announce-delay=500ms",
    "--ingester.local-retention=3s",
    "--ingester.head-compaction-interval=500ms",
    "--ingester.head-compaction-idle-timeout=1s",
    "--ingester.ship-interval=500ms",
    "--ingester.repair-interval=2s",
    "--querier.store-optional-within=0s",
    "--blocks-storage.bucket-index.refresh-interval=1s",
    "--compactor.cleanup-interval=1s",
    "--log.level=info",
];

async fn ingesters(dir: &Path, bucket: &str, front: &Skald, numbers: std::ops::Range<usize>) -> Vec<Skald> {
    let mut started = Vec::new();
    for number in numbers {
        let name = format!("ingester-{number}");
        let flags: Vec<&str> = HURRIED.iter().copied().chain([bucket, "--target=ingester"]).collect();
        let mut skald = Skald::new(&dir.join(&name), &flags);
        skald.set_cluster(&name, Some(front));
        skald.spawn();
        started.push(skald);
    }
    for skald in &mut started {
        skald.wait_ready().await;
    }
    started
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_comes_and_another_one_goes_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = format!("--blocks-storage.filesystem.dir={}", dir.path().join("bucket").display());
    let front = "--target=distributor,query-frontend,querier,store-gateway,compactor";
    let flags: Vec<&str> = HURRIED.iter().copied().chain([bucket.as_str(), front]).collect();
    let mut front = Skald::new(&dir.path().join("front"), &flags);
    front.set_cluster("front", None);
    front.start_again().await;
    let mut old = ingesters(dir.path(), &bucket, &front, 0..3).await;

    let load = Arc::new(Load::default());
    let (push, query) = (front.url("/api/v1/push"), front.url("/prometheus/api/v1/query"));
    let client = front.client().clone();
    let writing = tokio::spawn({
        let (load, client) = (load.clone(), client.clone());
        async move { load.write(push, client).await }
    });
    let reading = tokio::spawn({
        let (load, client, query) = (load.clone(), client.clone(), query.clone());
        async move { load.read(query, client).await }
    });
    load.goes_on(10).await;

    // Out: a second group, which gets its share.
    let mut new = ingesters(dir.path(), &bucket, &front, 3..6).await;
    wait_for("the new group has series", 30, async || {
        let tenants = rows(&new[0], "/ingester/tenants").await;
        tenants.iter().any(|row| row["series"].as_u64() > Some(SERIES as u64 / 6)).then_some(())
    })
    .await;
    load.goes_on(10).await;

    // In: the first one.
    assert_eq!(scale_in_of(&front, 0).await.unwrap()["why"], "it takes series");
    let early = front.post_form("/ring", &[("remove", "0")]).await;
    assert!(early.status == 400 && early.body.contains("it takes series"), "{early:?}");
    assert_eq!(front.post_form("/ring", &[("read_only", "0")]).await.status, 200);
    let row = scale_in_of(&front, 0).await.unwrap();
    assert_eq!((&row["state"], &row["may_be_removed"]), (&Value::from("READONLY"), &Value::from(false)), "{row}");
    let last = front.post_form("/ring", &[("read_only", "1")]).await;
    assert!(last.status == 400 && last.body.contains("the only one that takes series"), "{last:?}");
    let row = wait_for("the group may be removed", 40, async || {
        let row = scale_in_of(&front, 0).await.unwrap();
        (row["may_be_removed"] == true).then_some(row)
    })
    .await;
    assert!(row["read_only_for_seconds"].as_u64() >= Some(4), "{row}");
    for ingester in &old {
        assert_eq!(ingester.get("/ingester/prepare-shutdown", &[]).await.body, "unset\n");
        assert_eq!(ingester.post("/ingester/prepare-shutdown").await.status, 204);
        assert_eq!(ingester.get("/ingester/prepare-shutdown", &[]).await.body, "set\n");
    }
    let taken_back = old[0].request(reqwest::Method::DELETE, "/ingester/prepare-shutdown");
    assert_eq!(answer_of(taken_back).await.unwrap().status, 204);
    // A restart does not change what was asked for.
    old[2].stop();
    assert!(old[2].data_dir().join("shutdown-requested.txt").exists());
    wait_for("the group is removed", 20, async || {
        let row = scale_in_of(&front, 0).await.unwrap();
        (row["state"] == "REMOVED").then_some(())
    })
    .await;
    old[1].stop();
    load.goes_on(10).await;
    // Even who was not prepared has nothing to come back to.
    old[0].stop();
    wait_for("the group is gone", 20, async || scale_in_of(&front, 0).await.is_none().then_some(())).await;
    load.goes_on(20).await;

    load.stop.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    reading.await.unwrap();
    let (batches, time) = (load.batches.load(Ordering::SeqCst), load.acknowledged.load(Ordering::SeqCst));
    println!("{batches} batches, {} queries", load.queries.load(Ordering::SeqCst));
    let all = front.query("scaled[1h]", time as f64 / 1000.0).await;
    let all = all["result"].as_array().unwrap();
    assert_eq!(all.len(), SERIES);
    for series in all {
        let values = series["values"].as_array().unwrap();
        let values: Vec<f64> = values.iter().map(|value| value[1].as_str().unwrap().parse().unwrap()).collect();
        let expected: Vec<f64> = (0..batches).map(|number| number as f64).collect();
        assert_eq!(values, expected, "{}", series["metric"]);
    }
    for ingester in &mut new {
        ingester.stop();
    }
    front.stop();
}

/// Whoever comes back first knows of the group that is not there yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_stopped_whole_misses_no_group_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = format!("--blocks-storage.filesystem.dir={}", dir.path().join("bucket").display());
    let flags = [bucket.as_str(), "--ring.replication-factor=1", "--memberlist.join-timeout=200ms"];
    let mut first = Skald::new(&dir.path().join("first"), &flags);
    let mut second = Skald::new(&dir.path().join("second"), &flags);
    first.set_cluster("skald-0", Some(&second));
    second.set_cluster("skald-1", Some(&first));
    first.start_again().await;
    second.start_again().await;
    let spread = async || {
        let time = now_ms();
        assert_eq!(first.push(batch(time, 0)).await.unwrap().status, 200);
        let held = rows(&second, "/ingester/tenants").await;
        held.iter().any(|row| row["series"].as_u64() > Some(0)).then_some(time)
    };
    let time = wait_for("both groups have series", 30, spread).await;
    first.kill();
    second.kill();

    first.start_again().await;
    let url = first.url("/prometheus/api/v1/query");
    for _ in 0..3 {
        let answer = count(first.client(), &url, time).await;
        let names_it = answer.body.contains("replica group 1 of ingesters has no read quorum");
        assert!(answer.status == 503 && names_it, "{answer:?}");
    }
    second.start_again().await;
    let whole = async || {
        let answer = count(first.client(), &url, time).await;
        if answer.status == 503 {
            return None;
        }
        Some(Skald::data(answer)["result"][0]["value"][1].as_str().unwrap().parse::<usize>().unwrap())
    };
    let found = wait_for("the second group is back", 30, whole).await;
    assert!(found >= SERIES && found.is_multiple_of(SERIES), "{found}");

    // One that was given up is not missed: its members are gone and forgotten, and nobody brings it back.
    second.kill();
    let forgotten = first.post_form("/ingester/ring", &[("forget", "skald-1")]).await;
    assert_eq!(forgotten.status, 200, "{forgotten:?}");
    assert_eq!(count(first.client(), &url, time).await.status, 503);
    assert_eq!(first.post_form("/ring", &[("remove", "1")]).await.status, 200);
    assert_eq!(count(first.client(), &url, time).await.status, 200);
    first.stop();
    first.start_again().await;
    assert_eq!(count(first.client(), &url, time).await.status, 200);
    first.stop();
}
