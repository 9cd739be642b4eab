//! A real Prometheus scrapes several targets each second and writes to a cluster while its processes are killed and rolled
//! and its object store goes away: all samples of the sender's own TSDB are in Skald, no query fails, none answers short,
//! and the sender drops nothing.
//!
//! What a query must find is what was acknowledged: writes go through a proxy ([`Proxy`]) that takes turns at the
//! distributors, as a balancer does, and knows which samples were. `CLUSTER_TEST_SECONDS=600` is the long run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::Value;
use skald_proto::remote_write::{Received, Version};

use crate::cluster::{ALONE, Chaos, Cluster, Member, ask};
use crate::process::{Process, answer_of, free_port, http_client, installed, metric_sum, now_ms, wait_for};

/// The metric that is counted all the time, of a target with many series.
const COUNTED: &str = "node_cpu_seconds_total";
/// How far back queries look, and over which window they count.
const BACK_MS: i64 = 2_000;
const WINDOW_MS: i64 = 10_000;

/// Between the sender and the distributors.
struct Proxy {
    distributors: Vec<Member>,
    turn: AtomicUsize,
    client: reqwest::Client,
    /// Acknowledged samples of the metric that is counted, by time.
    acknowledged: Mutex<BTreeMap<i64, u64>>,
    refused: Mutex<BTreeMap<String, u64>>,
}

impl Proxy {
    async fn serve(distributors: Vec<Member>) -> (Arc<Proxy>, u16) {
        let (turn, client, acknowledged) = (AtomicUsize::new(0), http_client(), Mutex::default());
        let proxy = Arc::new(Proxy { distributors, turn, client, acknowledged, refused: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = axum::Router::new().route("/api/v1/push", axum::routing::post(forward)).with_state(proxy.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (proxy, port)
    }

    /// How many acknowledged samples a window has, its beginning not included.
    fn count(&self, from: i64, to: i64) -> u64 {
        self.acknowledged.lock().range(from + 1..=to).map(|(_, count)| count).sum()
    }

    fn note(&self, body: &[u8]) {
        let mut received = Received::default();
        received.decode(Version::V1, body, 64 << 20, &mut |_| {}).unwrap();
        let mut acknowledged = self.acknowledged.lock();
        for series in received.batch.iter() {
            if series.labels.iter().any(|label| label == ("__name__", COUNTED)) {
                let sound = series.samples.iter().filter(|sample| !skald_model::is_stale_nan(sample.value));
                sound.for_each(|sample| *acknowledged.entry(sample.timestamp).or_default() += 1);
            }
        }
    }
}

/// Sends a write to the next distributor that answers; what it says is the answer, whatever it is.
async fn forward(State(proxy): State<Arc<Proxy>>, body: bytes::Bytes) -> Response {
    let mut last = String::new();
    for _ in 0..proxy.distributors.len() {
        let turn = proxy.turn.fetch_add(1, Ordering::Relaxed);
        let url = format!("http://{}/api/v1/push", proxy.distributors[turn % proxy.distributors.len()].http);
        let request = proxy.client.post(url).header("Content-Encoding", "snappy").body(body.clone());
        match answer_of(request.timeout(Duration::from_secs(30))).await {
            Ok(answer) if answer.status == 200 => {
                proxy.note(&body);
                return http::StatusCode::OK.into_response();
            }
            Ok(answer) => {
                let status = http::StatusCode::from_u16(answer.status).unwrap();
                *proxy.refused.lock().entry(format!("{status} {}", answer.body)).or_default() += 1;
                return (status, answer.body).into_response();
            }
            Err(error) => last = error.to_string(),
        }
    }
    *proxy.refused.lock().entry(last.clone()).or_default() += 1;
    (http::StatusCode::BAD_GATEWAY, last).into_response()
}

/// A Prometheus that sends to a port, and the node exporter that it scrapes beside itself and the ingesters.
struct Sender {
    url: String,
    targets: std::path::PathBuf,
    _prometheus: Process,
    _exporter: Process,
}

impl Sender {
    async fn start(dir: &Path, push_port: u16, scraped: &[Member]) -> Sender {
        let (port, exporter_port) = (free_port(), free_port());
        let exporter = [format!("--web.listen-address=127.0.0.1:{exporter_port}")];
        let exporter = Process::start("prometheus-node-exporter", &exporter, &dir.join("exporter.log"));
        let targets = dir.join("targets.json");
        let mut addresses = vec![format!("127.0.0.1:{port}"), format!("127.0.0.1:{exporter_port}")];
        addresses.extend(scraped.iter().map(|member| member.http.clone()));
        write_targets(&targets, &addresses);
        let config = format!(
            "global: {{scrape_interval: 1s}}\nremote_write:\n- url: http://127.0.0.1:{push_port}/api/v1/push\n  \
             queue_config: {{batch_send_deadline: 1s}}\nscrape_configs:\n- job_name: all\n  \
             file_sd_configs: [{{files: ['{}'], refresh_interval: 1s}}]\n",
            targets.display()
        );
        std::fs::write(dir.join("prometheus.yml"), config).unwrap();
        let arguments = [
            format!("--config.file={}", dir.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", dir.join("prometheus").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let prometheus = Process::start("prometheus", &arguments, &dir.join("prometheus.log"));
        Sender { url: format!("http://127.0.0.1:{port}"), targets, _prometheus: prometheus, _exporter: exporter }
    }

    async fn metrics(&self) -> String {
        let answer = answer_of(http_client().get(format!("{}/metrics", self.url))).await;
        answer.map_or_else(|_| String::new(), |answer| answer.body)
    }

    async fn query(&self, query: &str, time: i64) -> Value {
        let time = (time as f64 / 1000.0).to_string();
        let form =
            form_urlencoded::Serializer::new(String::new()).extend_pairs([("query", query), ("time", &time)]).finish();
        let request = http_client().get(format!("{}/api/v1/query?{form}", self.url));
        answer_of(request).await.unwrap().json()["data"]["result"].take()
    }

    /// Ends all scraping, and waits until everything that was scraped is sent.
    async fn stop_scraping(&self) {
        write_targets(&self.targets, &[]);
        // Stale markers come within some seconds of the end.
        let (mut quiet_for, mut before) = (0, -1.0);
        for _ in 0..120 {
            let metrics = self.metrics().await;
            let of = |name: &str| metric_sum(&metrics, &format!("prometheus_remote_storage_{name}"));
            let sent = of("samples_total");
            let is_quiet = sent == before && of("samples_pending") == 0.0 && sent >= of("samples_in_total");
            before = sent;
            quiet_for = if is_quiet { quiet_for + 1 } else { 0 };
            if quiet_for == 8 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("not everything is sent after two minutes");
    }
}

fn write_targets(path: &Path, addresses: &[String]) {
    let half = path.with_extension("half");
    std::fs::write(&half, serde_json::json!([{ "targets": addresses }]).to_string()).unwrap();
    std::fs::rename(&half, path).unwrap();
}

/// Counts what was acknowledged, again and again, until told to stop; how often.
async fn read(proxy: &Proxy, frontends: &[Member], stop: &AtomicUsize, problems: &Mutex<Vec<String>>) -> usize {
    let client = http_client();
    let query = format!("sum(count_over_time({COUNTED}[{WINDOW_MS}ms]))");
    let mut asked = 0;
    while stop.load(Ordering::SeqCst) == 0 {
        // The newest whose scrape may still be on its way are left out: more must not be found than is acknowledged later.
        let time = now_ms() - BACK_MS;
        // Before the query: what comes later may be found, and need not be.
        let expected = proxy.count(time - WINDOW_MS, time);
        if expected > 0 {
            match ask(&client, frontends, asked, &query, time).await {
                Ok(result) => {
                    let found =
                        result[0]["value"][1].as_str().and_then(|count| count.parse::<f64>().ok()).unwrap_or(0.0);
                    if found < expected as f64 {
                        problems.lock().push(format!("{time}: short: {found} of {expected}"));
                    }
                }
                Err(why) => problems.lock().push(format!("{time}: {why}")),
            }
            asked += 1;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    asked
}

/// Samples by labels.
fn by_labels(result: &Value) -> BTreeMap<String, Value> {
    let series = result.as_array().unwrap().iter();
    series.map(|one| (one["metric"].to_string(), one["values"].clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_loses_nothing_while_a_cluster_is_killed_and_rolled() {
    if !installed("prometheus") || !installed("prometheus-node-exporter") {
        return;
    }
    let _alone = ALONE.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let cluster = Arc::new(Cluster::up(dir.path(), &[]));
    let frontends = cluster.of_role("query-frontend");
    let (proxy, port) = Proxy::serve(cluster.of_role("distributor")).await;
    let begun = now_ms();
    let sender = Sender::start(dir.path(), port, &cluster.of_role("ingester")).await;
    wait_for("the first samples", 60, async || (proxy.count(0, i64::MAX) > 0).then_some(())).await;

    let (problems, stop) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
    let reading = {
        let (proxy, frontends, problems, stop) = (proxy.clone(), frontends.clone(), problems.clone(), stop.clone());
        tokio::spawn(async move { read(&proxy, &frontends, &stop, &problems).await })
    };
    let store_away = Some(Duration::from_secs(5));
    let chaos = cluster.clone().cause_chaos(Chaos { of_ingesters: 2, zone_down: Duration::from_secs(5), store_away });
    while !chaos.is_finished() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(1, Ordering::SeqCst);
    let asked = reading.await.unwrap();
    assert!(chaos.join().is_ok());
    sender.stop_scraping().await;

    let metrics = sender.metrics().await;
    let counter = |name: &str| metric_sum(&metrics, &format!("prometheus_remote_storage_samples_{name}_total"));
    let sent = metric_sum(&metrics, "prometheus_remote_storage_samples_total");
    let (dropped, failed, retried) = (counter("dropped"), counter("failed"), counter("retried"));
    println!("sent {sent}, dropped {dropped}, failed {failed}, retried {retried}; {asked} queries");
    println!("refused: {:?}", proxy.refused.lock());
    assert_eq!((dropped, failed), (0.0, 0.0));

    // Sample by sample, what the sender has itself.
    let (client, end) = (http_client(), now_ms());
    let seconds = (end - begun) / 1000 + 60;
    let names = sender.query("count by (__name__) ({job=\"all\"} or last_over_time({job=\"all\"}[3h]))", end).await;
    let names: Vec<String> = names
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["metric"]["__name__"].as_str().map(str::to_owned))
        .collect();
    let (mut series, mut samples) = (0, 0);
    for some in names.chunks(40) {
        let query = format!("{{__name__=~\"{}\"}}[{seconds}s]", some.join("|"));
        let expected = by_labels(&sender.query(&query, end).await);
        let found = by_labels(&ask(&client, &frontends, 0, &query, end).await.unwrap());
        for (labels, values) in &expected {
            assert_eq!(found.get(labels), Some(values), "{labels}");
            series += 1;
            samples += values.as_array().map_or(0, Vec::len);
        }
        assert_eq!(found.len(), expected.len());
    }
    println!("{samples} samples of {series} series are equal");
    assert!(series > 500 && asked > 20, "{series} series, {asked} queries");
    let problems = problems.lock();
    assert!(problems.is_empty(), "{} of {asked} queries: {problems:#?}", problems.len());
}
