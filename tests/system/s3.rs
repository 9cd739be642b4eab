//! Show 5: blocks in an S3 store over HTTP, which checks every signature; a wrong secret, and a store that is away.

use std::path::Path;

use tokio::task::JoinHandle;

use crate::flush::{answers, push_an_hour, wait_for_answers};
use crate::process::{Skald, now_ms, wait_for};
use crate::s3_server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::sender::Request;

/// An S3 store that can go away and come back at the same address.
struct Store {
    root: tempfile::TempDir,
    address: String,
    serving: Option<JoinHandle<()>>,
}

impl Store {
    async fn start() -> Store {
        let root = tempfile::tempdir().unwrap();
        let mut store = Store { root, address: "127.0.0.1:0".to_owned(), serving: None };
        store.come_back().await;
        store
    }

    async fn come_back(&mut self) {
        let server = S3Server::bind(self.root.path(), &self.address).await.unwrap();
        self.address = server.address().unwrap().to_string();
        self.serving = Some(tokio::spawn(async move { server.serve().await.unwrap() }));
    }

    /// Refuses connections from now on and cuts those there are.
    async fn go_away(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    fn flags(&self, secret: &str) -> Vec<String> {
        vec![
            "--blocks-storage.backend=s3".to_owned(),
            format!("--blocks-storage.s3.endpoint={}", self.address),
            format!("--blocks-storage.s3.bucket-name={BUCKET}"),
            "--blocks-storage.s3.region=eu-north-1".to_owned(),
            format!("--blocks-storage.s3.access-key-id={ACCESS_KEY}"),
            format!("--blocks-storage.s3.secret-access-key={secret}"),
            "--blocks-storage.s3.insecure=true".to_owned(),
            "--blocks-storage.max-retries=1".to_owned(),
            "--blocks-storage.bucket-index.refresh-interval=500ms".to_owned(),
            "--compactor.cleanup-interval=1s".to_owned(),
            "--ingester.ship-interval=500ms".to_owned(),
        ]
    }

    /// How many blocks of the tenant are whole, told by their `meta.json`.
    fn blocks(&self) -> usize {
        let tenant = self.root.path().join(BUCKET).join("anonymous");
        let Ok(entries) = std::fs::read_dir(tenant) else { return 0 };
        entries.filter(|entry| entry.as_ref().unwrap().path().join("meta.json").exists()).count()
    }
}

async fn start(dir: &Path, flags: &[String]) -> Skald {
    Skald::start(dir, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Removes everything `skald` keeps on this machine.
fn lose_local_data(skald: &Skald) {
    std::fs::remove_dir_all(skald.data_dir()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_samples_come_from_s3() {
    let store = Store::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut skald = start(dir.path(), &store.flags(SECRET_KEY)).await;
    let end = now_ms() / 15_000 * 15_000;
    push_an_hour(&skald, end).await;
    let expected = answers(&skald, end).await;
    let flushed = skald.post("/ingester/flush").await;
    assert!(flushed.status < 300, "{flushed:?}\n{}", skald.log());
    assert!(store.blocks() > 0);
    skald.stop();
    lose_local_data(&skald);
    skald.start_again().await;
    wait_for_answers(&skald, end, &expected).await;
    skald.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_told_and_uploads_happen_once_it_is_right() {
    let store = Store::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut skald = start(dir.path(), &store.flags("not-the-secret")).await;
    let end = now_ms() / 15_000 * 15_000;
    push_an_hour(&skald, end).await;
    let flushed = skald.post("/ingester/flush").await;
    assert_eq!(flushed.status, 503, "{flushed:?}");
    // Tried again and again, and told each time.
    wait_for("the upload is tried again", 30, async || {
        (skald.metric("skald_ingester_block_upload_failures_total").await >= 2.0).then_some(())
    })
    .await;
    let log = skald.log();
    let mut told = log.lines().filter(|line| line.contains("block could not be uploaded"));
    assert!(told.any(|line| line.contains("403 Forbidden")), "the log does not tell why: {log}");
    assert!(log.contains("SignatureDoesNotMatch"), "the log does not tell what is wrong: {log}");
    assert!(!log.contains("not-the-secret"), "the log tells the secret: {log}");
    assert_eq!(store.blocks(), 0);
    // What was pushed is still answered where it is, and stays there over a restart.
    let data = skald.query("count(count_over_time(flushed[2h]))", end as f64 / 1000.0).await;
    assert_eq!(data["result"][0]["value"][1], "30", "{data}");
    skald.stop();
    let flags = store.flags(SECRET_KEY);
    skald.set_flags(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    skald.start_again().await;
    wait_for("the block is uploaded", 30, async || (store.blocks() > 0).then_some(())).await;
    skald.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_stops_neither_writes_nor_recent_queries() {
    let mut store = Store::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut skald = start(dir.path(), &store.flags(SECRET_KEY)).await;
    let end = now_ms() / 15_000 * 15_000;
    // Two blocks that the index lists and that are no longer here; the second is never read while the store is there.
    let months_ago = |months: i64| end - months * 30 * 24 * 3_600_000;
    for months in [2, 1] {
        let body = Request::default().series(&[("__name__", "old")], &[(months_ago(months), 7.0)]).body();
        assert_eq!(skald.push(body).await.unwrap().status, 200);
    }
    assert_eq!(skald.post("/ingester/flush").await.status, 204);
    skald.stop();
    lose_local_data(&skald);
    skald.start_again().await;
    let ask_old = async |months: i64| {
        let time = (months_ago(months) as f64 / 1000.0).to_string();
        skald.get("/prometheus/api/v1/query", &[("query", "old"), ("time", &time)]).await
    };
    wait_for("the old block is found", 30, async || {
        (ask_old(1).await.json()["data"]["result"][0]["value"][1] == "7").then_some(())
    })
    .await;
    push_an_hour(&skald, end).await;
    let expected = answers(&skald, end).await;
    store.go_away().await;
    // The answer would be short, so there is none.
    let answer = ask_old(2).await;
    assert_eq!((answer.status, answer.json()["errorType"].as_str()), (503, Some("unavailable")), "{}", answer.body);

    let flushed = skald.post("/ingester/flush").await;
    assert_eq!(flushed.status, 503, "{flushed:?}");
    assert_eq!(answers(&skald, end).await, expected, "while the store is away");
    let during = end + 1000;
    let body = Request::default().series(&[("__name__", "during")], &[(during, 1.0)]).body();
    let pushed = skald.push(body).await.unwrap();
    assert_eq!(pushed.status, 200, "{}", pushed.body);
    assert_eq!(skald.query("during", during as f64 / 1000.0).await["result"][0]["value"][1], "1");
    store.come_back().await;
    wait_for("the blocks are uploaded", 30, async || (store.blocks() > 2).then_some(())).await;
    let flushed = skald.post("/ingester/flush").await;
    assert!(flushed.status < 300, "{flushed:?}");
    assert_eq!(ask_old(2).await.json()["data"]["result"][0]["value"][1], "7");
    skald.stop();
    lose_local_data(&skald);
    skald.start_again().await;
    wait_for_answers(&skald, end, &expected).await;
    // In a block of its own, which the store-gateway may find later than the other.
    wait_for("what came while the store was away is found", 30, async || {
        (skald.query("during", during as f64 / 1000.0).await["result"][0]["value"][1] == "1").then_some(())
    })
    .await;
    skald.stop();
}
