//! A whole cluster as `deploy/local/cluster` starts it, while its processes are killed and rolled: nothing acknowledged is
//! lost, no query fails, none answers short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::cluster::{ALONE, Chaos, Cluster, Member, ask};
use crate::process::{Answer, answer_of, http_client, now_ms};
use crate::sender::Request;

/// Series written with every batch.
const SERIES: usize = 100;

/// Writes a batch every so often, as a sender does: each until it is acknowledged, at whichever distributor answers.
struct Writer {
    /// Time of the newest acknowledged batch, and how many are.
    acknowledged: AtomicI64,
    batches: AtomicU64,
    refused: AtomicU64,
    stop: AtomicBool,
}

impl Writer {
    async fn run(&self, distributors: &[Member]) {
        let client = http_client();
        let mut turn = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let time = now_ms();
            let number = self.batches.load(Ordering::SeqCst) as f64;
            let body = (0..SERIES).fold(Request::default(), |request, i| {
                request.series(&[("__name__", "chaos"), ("i", &i.to_string())], &[(time, number)])
            });
            let body = body.body();
            loop {
                turn += 1;
                let url = format!("http://{}/api/v1/push", distributors[turn % distributors.len()].http);
                let request = client.post(url).header("Content-Encoding", "snappy").body(body.clone());
                match answer_of(request.timeout(Duration::from_secs(30))).await {
                    Ok(Answer { status: 200, .. }) => break,
                    Ok(Answer { status, body }) => {
                        assert!(status >= 500, "a sender would drop this: {status} {body}");
                        println!("refused: {status} {body}");
                        self.refused.fetch_add(1, Ordering::SeqCst);
                    }
                    // A distributor that is away; its neighbour takes it.
                    Err(_) => {}
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.batches.fetch_add(1, Ordering::SeqCst);
            self.acknowledged.store(time, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Counts what is acknowledged, again and again.
async fn read(writer: &Writer, frontends: &[Member], problems: &parking_lot::Mutex<Vec<String>>) -> u64 {
    let client = http_client();
    let mut asked = 0;
    while !writer.stop.load(Ordering::SeqCst) {
        // In this order: there are at least so many until then.
        let batches = writer.batches.load(Ordering::SeqCst);
        let time = writer.acknowledged.load(Ordering::SeqCst);
        if batches > 0 {
            let answer = ask(&client, frontends, asked, "sum(count_over_time(chaos[3h]))", time).await;
            asked += 1;
            let begun = now_ms();
            match answer {
                Ok(result) => {
                    let found: f64 = result[0]["value"][1].as_str().and_then(|count| count.parse().ok()).unwrap_or(0.0);
                    if found < batches as f64 * SERIES as f64 {
                        problems.lock().push(format!("{begun}: short: {found} of {}", batches * SERIES as u64));
                    }
                }
                Err(why) => problems.lock().push(format!("{begun}: {why}")),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    asked as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_killed_and_rolled_and_nobody_notices() {
    let _alone = ALONE.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let cluster = Arc::new(Cluster::up(dir.path(), &[]));
    let writer = Arc::new(Writer {
        acknowledged: AtomicI64::new(0),
        batches: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let problems: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
    let distributors = cluster.of_role("distributor");
    let frontends = cluster.of_role("query-frontend");
    let writing = {
        let writer = writer.clone();
        tokio::spawn(async move { writer.run(&distributors).await })
    };
    let reading = {
        let (writer, frontends, problems) = (writer.clone(), frontends.clone(), problems.clone());
        tokio::spawn(async move { read(&writer, &frontends, &problems).await })
    };
    let chaos =
        cluster.clone().cause_chaos(Chaos { of_ingesters: 3, zone_down: Duration::from_secs(2), store_away: None });
    while !chaos.is_finished() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writer.stop.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    let asked = reading.await.unwrap();
    assert!(chaos.join().is_ok());
    let batches = writer.batches.load(Ordering::SeqCst);
    println!(
        "{batches} batches acknowledged, {} attempts refused, {asked} queries",
        writer.refused.load(Ordering::SeqCst)
    );
    // Everything at last, sample by sample.
    let time = writer.acknowledged.load(Ordering::SeqCst);
    let all = ask(&http_client(), &frontends, 0, "chaos[3h]", time).await.unwrap();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), SERIES);
    for series in all {
        let values: Vec<f64> =
            series["values"].as_array().unwrap().iter().map(|v| v[1].as_str().unwrap().parse().unwrap()).collect();
        let expected: Vec<f64> = (0..batches).map(|number| number as f64).collect();
        assert_eq!(values, expected, "{}", series["metric"]);
    }
    assert!(batches > 20 && asked > 20);
    let problems = problems.lock();
    assert!(problems.is_empty(), "{} of {asked} queries: {problems:#?}", problems.len());
}
