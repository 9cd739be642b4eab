//! Query-frontends, query-schedulers and queriers are restarted one after the other while queries go on: none fails.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::flush::push_an_hour;
use crate::process::{Skald, metric_sum, now_ms, wait_for};

/// Two of each role on the read path, over one process that has the samples.
struct Cluster {
    whole: Skald,
    schedulers: Vec<Skald>,
    queriers: Vec<Skald>,
    frontends: Vec<Skald>,
}

/// How long a process goes on that is asked to stop, so that others learn of it.
const DELAY: &str = "--server.shutdown-delay=500ms";

async fn start(dir: &Path) -> Cluster {
    let bucket = format!("--blocks-storage.filesystem.dir={}", dir.join("bucket").display());
    let replication = "--ring.replication-factor=1";
    let mut whole = Skald::new(&dir.join("whole"), &[&bucket, replication]);
    whole.set_cluster("whole-0", None);
    whole.start_again().await;
    let two = async |role: &str, flags: &[&str]| {
        let mut started = Vec::new();
        for name in [format!("{role}-0"), format!("{role}-1")] {
            let target = format!("--target={role}");
            let mut all = vec![bucket.as_str(), &target, replication, DELAY];
            all.extend(flags);
            let mut skald = Skald::new(&dir.join(&name), &all);
            skald.set_cluster(&name, Some(&whole));
            skald.start_again().await;
            started.push(skald);
        }
        started
    };
    let schedulers = two("query-scheduler", &[]).await;
    let queriers = two("querier", &["--querier.max-concurrent=4"]).await;
    let frontends = two("query-frontend", &["--query-frontend.query-shards=2"]).await;
    Cluster { whole, schedulers, queriers, frontends }
}

/// Asks again and again; whoever does not answer, or says that it stops, is replaced by the other one, once.
async fn load(urls: [String; 2], client: reqwest::Client, end: i64, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) {
    let time = (end / 1000).to_string();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let query = if turn % 3 == 0 { "sum by (group) (rate(flushed[5m]))" } else { "count(flushed)" };
        let mut answers = Vec::new();
        for url in [&urls[turn % 2], &urls[(turn + 1) % 2]] {
            let query = form_urlencoded::Serializer::new(String::new())
                .extend_pairs([("query", query), ("time", &time)])
                .finish();
            match client.get(format!("{url}?{query}")).send().await {
                Ok(answer) if answer.status() == 200 => {
                    let body = answer.text().await.unwrap();
                    assert!(body.contains("\"value\""), "{query}: a short answer: {body}");
                    answers.clear();
                    break;
                }
                Ok(answer) => answers.push(format!("{} {:?}", answer.status(), answer.text().await)),
                Err(error) => answers.push(format!("{error:?}")),
            }
        }
        assert!(answers.is_empty(), "a query failed twice: {answers:?}");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_query_fails_while_the_read_path_is_rolled() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = start(dir.path()).await;
    let end = now_ms() / 15_000 * 15_000;
    push_an_hour(&cluster.whole, end).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let urls = [0, 1].map(|i| cluster.frontends[i].url("/prometheus/api/v1/query"));
    let client = cluster.whole.client().clone();
    let loads: Vec<_> =
        (0..6).map(|_| tokio::spawn(load(urls.clone(), client.clone(), end, stop.clone(), done.clone()))).collect();
    let served = async |more: usize| {
        let before = done.load(Ordering::Relaxed);
        let enough = async || (done.load(Ordering::Relaxed) >= before + more).then_some(());
        wait_for("queries are answered", 60, enough).await;
    };
    served(20).await;
    for process in cluster.schedulers.iter_mut().chain(&mut cluster.queriers).chain(&mut cluster.frontends) {
        // While it drains it is not ready, and answers.
        process.process().ask_to_stop();
        wait_for("it says that it stops", 10, async || {
            match process.client().get(process.url("/ready")).send().await {
                Ok(answer) if answer.status() == 503 => Some(()),
                Ok(_) => None,
                Err(_) => Some(()),
            }
        })
        .await;
        assert_eq!(process.process().wait(), Some(0), "{}", process.log());
        served(10).await;
        process.start_again().await;
        served(10).await;
    }
    // One of each role dies without a word.
    for role in [&mut cluster.schedulers, &mut cluster.queriers] {
        role[0].kill();
        served(20).await;
        role[0].start_again().await;
        served(10).await;
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    println!("{} queries", done.load(Ordering::Relaxed));
    let connected = async |scheduler: &Skald| {
        let metrics = scheduler.get("/metrics", &[]).await.body;
        metric_sum(&metrics, "skald_query_scheduler_connected_queriers")
    };
    for scheduler in &cluster.schedulers {
        wait_for("both queriers are connected", 20, async || (connected(scheduler).await == 2.0).then_some(())).await;
    }
    let all = cluster.frontends.iter_mut().chain(&mut cluster.queriers).chain(&mut cluster.schedulers);
    for process in all.chain([&mut cluster.whole]) {
        process.stop();
    }
}
