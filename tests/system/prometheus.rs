//! Show 2: a real Prometheus scrapes itself, a node_exporter and Skald each second and sends all of it to Skald; nothing is
//! lost on the way, and dashboards show the same on both sides.
//!
//! `SKALD_PROMETHEUS_TEST_SECONDS` is how long it scrapes: 20 by default, 180 for the show:
//! `SKALD_PROMETHEUS_TEST_SECONDS=180 cargo test --test system prometheus -- --nocapture`
//!
//! Debian's Prometheus is a 2.42, Skald answers as 3.x does. The queries are asked at times at which the two agree: no
//! sample lies on the edge of a window, and every window is full, so that no counter is extrapolated to its zero.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::compare::same_data;
use crate::process::{Answer, Process, Skald, answer_of, free_port, http_client, installed, metric_sum, wait_for};

/// Queries of dashboards (node_exporter's, Prometheus' own, Skald's). `$W` stands for the window of a rate, `$L` for three
/// times as much, `$P` for milliseconds that put the windows inside a subquery between samples.
const QUERIES: &[&str] = &[
    // CPU
    "sum by (mode) (rate(node_cpu_seconds_total[$W])) / scalar(count(count by (cpu) (node_cpu_seconds_total)))",
    "1 - avg(rate(node_cpu_seconds_total{mode=\"idle\"}[$W]))",
    "sum by (instance) (irate(node_cpu_seconds_total{mode!=\"idle\"}[$W])) * 100",
    "topk(2, sum by (mode) (increase(node_cpu_seconds_total[$L])))",
    "node_load1 / on (instance) group_left () count by (instance) (node_cpu_seconds_total{mode=\"idle\"})",
    "rate(node_context_switches_total[$W])",
    // Memory
    "node_memory_MemTotal_bytes - node_memory_MemFree_bytes - node_memory_Buffers_bytes - node_memory_Cached_bytes",
    "100 * (1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
    "{__name__=~\"node_memory_(Active|Inactive|Dirty|Mapped)_bytes\"}",
    "node_memory_SwapTotal_bytes - node_memory_SwapFree_bytes",
    "min_over_time(node_memory_MemAvailable_bytes[$L]) / max_over_time(node_memory_MemAvailable_bytes[$L])",
    // Disk
    "rate(node_disk_read_bytes_total[$W]) + rate(node_disk_written_bytes_total[$W])",
    "sum by (device) (rate(node_disk_io_time_seconds_total{device!~\"loop.*\"}[$W])) > -1",
    "1 - node_filesystem_avail_bytes{fstype!~\"tmpfs|rootfs\"} / node_filesystem_size_bytes",
    "label_replace(node_filesystem_files_free, \"disk\", \"/dev/$1\", \"device\", \"(?:/dev/)?(.+)\")",
    // Network
    "rate(node_network_receive_bytes_total{device!=\"none\"}[$W]) * 8",
    "sum without (device) (irate(node_network_transmit_packets_total[$W]))",
    "node_netstat_Tcp_CurrEstab or node_sockstat_TCP_inuse or vector(-1)",
    "increase(node_netstat_Tcp_OutSegs[$L]) unless on (instance) absent(node_netstat_Tcp_InSegs)",
    // The machine
    "node_time_seconds - node_boot_time_seconds",
    "changes(node_scrape_collector_success[$L]) + resets(node_scrape_collector_success[$L])",
    "sort_desc(sum by (collector) (node_scrape_collector_duration_seconds) > 0)",
    "count by (job) ({job=~\".+\", __name__=~\".+_total\"})",
    // Prometheus itself
    "rate(prometheus_tsdb_head_samples_appended_total[$W])",
    "prometheus_tsdb_head_series and on (instance) up == bool 1",
    "histogram_quantile(0.9, sum by (le, handler) (rate(prometheus_http_request_duration_seconds_bucket[$L])))",
    "histogram_quantile(0.99, rate(skald_request_duration_seconds_bucket{route=\"/api/v1/push\"}[$W]))",
    "prometheus_target_interval_length_seconds{quantile=~\"0.(5|9)9?\"}",
    "rate(prometheus_remote_storage_samples_total[$W]) - ignoring (remote_name, url) group_left () rate(prometheus_remote_storage_samples_in_total[$W])",
    "quantile by (job) (0.5, scrape_duration_seconds)",
    "avg_over_time(scrape_samples_scraped[$L]) - scrape_samples_scraped",
    "stddev_over_time(scrape_duration_seconds[$L])",
    "go_memstats_alloc_bytes{job=\"prometheus\"} offset 3s - go_memstats_alloc_bytes",
    "rate(process_cpu_seconds_total[$W])",
    // Subqueries, and what looks at the time
    "max_over_time(sum by (job) (rate(process_cpu_seconds_total[$W] offset $Pms))[$W:1s])",
    "avg_over_time((up offset $Pms)[$W:2s])",
    "sum_over_time((prometheus_tsdb_head_series offset $Pms > bool 0)[$L:1s]) / count_over_time(up{job=\"prometheus\"}[$L])",
    "time() - timestamp(up)",
    "absent(up{job=\"nobody\"}) * on () group_right () count_values(\"up\", up)",
];

fn scrape_seconds() -> u64 {
    std::env::var("SKALD_PROMETHEUS_TEST_SECONDS").map_or(20, |s| s.parse().expect("SKALD_PROMETHEUS_TEST_SECONDS"))
}

/// A Prometheus with its files in a directory.
struct Prometheus {
    process: Process,
    client: reqwest::Client,
    url: String,
    log: PathBuf,
    targets_file: PathBuf,
}

/// Name and address of what is scraped.
type Job = (&'static str, String);

impl Prometheus {
    fn config(push_url: &str, targets_file: &Path, jobs: &[Job]) -> String {
        let mut config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
             remote_write:\n\
             - url: {push_url}\n  send_exemplars: true\n  metadata_config: {{send: true, send_interval: 2s}}\n  \
             queue_config: {{batch_send_deadline: 1s}}\n\
             scrape_configs:\n"
        );
        for (name, _) in jobs {
            config += &format!(
                "- job_name: {name}\n  file_sd_configs: [{{files: ['{}'], refresh_interval: 1s}}]\n  \
                 relabel_configs: [{{source_labels: [of_job], regex: {name}, action: keep}}, \
                 {{regex: of_job, action: labeldrop}}]\n",
                targets_file.display()
            );
        }
        config
    }

    /// Writes which targets there are; none has its end noticed and its series marked stale.
    fn set_targets(targets_file: &Path, jobs: &[Job]) {
        let targets =
            jobs.iter().map(|(name, address)| serde_json::json!({"targets": [address], "labels": {"of_job": name}}));
        let text = Value::Array(targets.collect()).to_string();
        // Prometheus watches the file: it must not see half of it.
        let half = targets_file.with_extension("half");
        std::fs::write(&half, text).unwrap();
        std::fs::rename(&half, targets_file).unwrap();
    }

    async fn start(dir: &Path, push_url: &str, port: u16, jobs: &[Job]) -> Prometheus {
        let targets_file = dir.join("targets.json");
        Self::set_targets(&targets_file, jobs);
        std::fs::write(dir.join("prometheus.yml"), Self::config(push_url, &targets_file, jobs)).unwrap();
        let arguments = [
            format!("--config.file={}", dir.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", dir.join("prometheus").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--enable-feature=exemplar-storage".to_owned(),
        ];
        let log = dir.join("prometheus.log");
        let process = Process::start("prometheus", &arguments, &log);
        let url = format!("http://127.0.0.1:{port}");
        let prometheus = Prometheus { process, client: http_client(), url, log, targets_file };
        wait_for("Prometheus is ready", 30, async || prometheus.ask("/-/ready", &[]).await.filter(|a| a.status == 200))
            .await;
        prometheus
    }

    async fn ask(&self, path: &str, params: &[(&str, &str)]) -> Option<Answer> {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        answer_of(self.client.get(format!("{}{path}?{query}", self.url))).await.ok()
    }

    async fn data(&self, path: &str, params: &[(&str, &str)]) -> Value {
        let answer = self.ask(path, params).await.expect("Prometheus answers");
        assert_eq!(answer.status, 200, "{path} {params:?}: {}", answer.body);
        answer.json()["data"].take()
    }

    async fn metrics(&self) -> String {
        self.ask("/metrics", &[]).await.expect("Prometheus answers").body
    }

    /// Stops all scraping and waits until everything scraped is sent.
    async fn stop_scraping(&self) {
        Self::set_targets(&self.targets_file, &[]);
        // The stale markers at the end of each target come a few seconds later.
        let stale_markers = "the end of every target's series";
        wait_for(stale_markers, 30, async || {
            let up = self.data("/api/v1/query", &[("query", "count({job=~\".+\"})")]).await;
            (up["result"] == serde_json::json!([])).then_some(())
        })
        .await;
        wait_for("everything is sent", 60, async || {
            let metrics = self.metrics().await;
            let counter = |name: &str| metric_sum(&metrics, &format!("prometheus_remote_storage_{name}"));
            let is_sent = counter("samples_pending") == 0.0
                && counter("exemplars_pending") == 0.0
                && counter("samples_total") >= counter("samples_in_total")
                && counter("exemplars_total") >= counter("exemplars_in_total");
            is_sent.then_some(())
        })
        .await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The samples of every series of `name`: labels -> time and value as they are written in JSON.
fn samples(data: &Value) -> BTreeMap<String, Vec<(String, String)>> {
    let labels = |metric: &Value| -> String {
        let sorted: BTreeMap<_, _> = metric.as_object().expect("labels").iter().collect();
        format!("{sorted:?}")
    };
    let samples = |values: &Value| -> Vec<(String, String)> {
        let values = values.as_array().expect("samples").iter();
        values.map(|v| (v[0].to_string(), v[1].as_str().expect("a value").to_owned())).collect()
    };
    let series = data["result"].as_array().expect("a matrix").iter();
    series.map(|one| (labels(&one["metric"]), samples(&one["values"]))).collect()
}

/// Compares every sample of every series; returns the times of all samples in milliseconds.
async fn compare_all_samples(prometheus: &Prometheus, skald: &Skald, end: f64, range: u64) -> BTreeSet<i64> {
    let end = end.to_string();
    let names_path = "/api/v1/label/__name__/values";
    let names = prometheus.data(names_path, &[]).await;
    assert_eq!(Skald::data(skald.get(&format!("/prometheus{names_path}"), &[]).await), names, "metric names");
    let mut times = BTreeSet::new();
    let (mut all_series, mut all_samples) = (0, 0);
    for name in names.as_array().expect("names") {
        let query = format!("{{__name__={name}}}[{range}s]");
        let params = [("query", query.as_str()), ("time", end.as_str())];
        let expected = samples(&prometheus.data("/api/v1/query", &params).await);
        let found = samples(&Skald::data(skald.get("/prometheus/api/v1/query", &params).await));
        assert!(!expected.is_empty(), "{name}: Prometheus has no samples");
        for (labels, expected) in &expected {
            let found = found.get(labels).unwrap_or_else(|| panic!("{labels} is missing"));
            assert_eq!(found.len(), expected.len(), "number of samples of {labels}");
            assert_eq!(found, expected, "samples of {labels}");
            all_samples += expected.len();
            times.extend(expected.iter().map(|(time, _)| (time.parse::<f64>().unwrap() * 1000.0).round() as i64));
        }
        assert_eq!(found.len(), expected.len(), "{name}: series Prometheus does not have");
        all_series += expected.len();
    }
    println!("{all_samples} samples of {all_series} series are equal");
    assert!(all_series > 500, "{all_series} series are no load");
    times
}

/// The millisecond of the second that is farthest from every sample.
fn quiet_phase(times: &BTreeSet<i64>) -> i64 {
    let phases: BTreeSet<i64> = times.iter().map(|time| time % 1000).collect();
    let distance = |phase: i64| {
        let apart = |other: &i64| (phase - other).rem_euclid(1000).min((other - phase).rem_euclid(1000));
        phases.iter().map(apart).min().unwrap_or(0)
    };
    let phase = (0..1000).max_by_key(|phase| distance(*phase)).unwrap_or(0);
    assert!(distance(phase) > 0, "there is a sample at every millisecond of a second");
    phase
}

/// What was different in the answers to [`QUERIES`] at one time or over a range, and which queries found nothing.
async fn compare_queries(
    prometheus: &Prometheus,
    skald: &Skald,
    path: &str,
    times: &[(&str, &str)],
    substitute: impl Fn(&str) -> String,
) -> (Vec<String>, Vec<String>) {
    let (mut different, mut empty) = (Vec::new(), Vec::new());
    for query in QUERIES {
        let query = substitute(query);
        let params = [&[("query", query.as_str())], times].concat();
        let expected = prometheus.data(path, &params).await;
        let answer = skald.get(&format!("/prometheus{path}"), &params).await;
        let found: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        if expected["result"] == serde_json::json!([]) {
            empty.push(query.clone());
        }
        if answer.status != 200 || !same_data(&query, path, &expected, &found["data"]) {
            let short = |text: String| text.chars().take(1500).collect::<String>();
            let (expected, found) = (short(expected.to_string()), short(answer.body));
            different.push(format!("{path} {params:?}\n  Prometheus {expected}\n  Skald      {found}"));
        }
    }
    (different, empty)
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_and_skald_hold_and_answer_the_same() {
    if !installed("prometheus") || !installed("prometheus-node-exporter") {
        return;
    }
    let seconds = scrape_seconds();
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let exporter_address = format!("127.0.0.1:{}", free_port());
    let exporter_flags = [format!("--web.listen-address={exporter_address}")];
    let _exporter = Process::start("prometheus-node-exporter", &exporter_flags, &dir.path().join("node_exporter.log"));
    let push_url = skald.url("/api/v1/push");
    let port = free_port();
    let jobs = [
        ("prometheus", format!("127.0.0.1:{port}")),
        ("node", exporter_address),
        ("skald", skald.url("").trim_start_matches("http://").to_owned()),
    ];
    let mut prometheus = Prometheus::start(dir.path(), &push_url, port, &jobs).await;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    prometheus.stop_scraping().await;
    assert!(prometheus.process.is_running() && skald.process().is_running());

    let metrics = prometheus.metrics().await;
    for kind in ["samples", "exemplars", "histograms", "metadata"] {
        for outcome in ["failed", "retried", "dropped"] {
            let name = format!("prometheus_remote_storage_{kind}_{outcome}_total");
            assert_eq!(metric_sum(&metrics, &name), 0.0, "{name}\n{}\n{}", prometheus.log(), skald.log());
        }
    }
    let sent = metric_sum(&metrics, "prometheus_remote_storage_samples_total");
    println!("{sent} samples sent in {seconds} s of scraping");
    assert_eq!(skald.metric("skald_distributor_received_samples_total").await, sent);
    assert_eq!(skald.metric("skald_discarded_samples_total").await, 0.0);
    assert!(metric_sum(&metrics, "prometheus_remote_storage_metadata_total") > 0.0);
    let metadata = Skald::data(skald.get("/prometheus/api/v1/metadata", &[("metric", "node_load1")]).await);
    assert_eq!(metadata["node_load1"][0]["type"], "gauge", "{metadata}");

    let now = crate::process::now_ms() as f64 / 1000.0 + 0.000_5;
    let times = compare_all_samples(&prometheus, &skald, now, seconds + 120).await;

    let phase = quiet_phase(&times);
    let (first, last) = (times.first().unwrap() / 1000, times.last().unwrap() / 1000);
    // A window of each rate, three times as much for the long ones, and subqueries of rates need to be full: see above.
    let window = (seconds as i64 / 8).clamp(2, 60);
    let at = |second: i64| format!("{second}.{phase:03}");
    let (start, end) = (at(first + 2 + 4 * window), at(last - 2));
    let substitute = |query: &str| {
        let (window, long) = (format!("{window}s"), format!("{}s", 3 * window));
        query.replace("$W", &window).replace("$L", &long).replace("$P", &(1000 - phase).to_string())
    };
    let (mut different, empty) =
        compare_queries(&prometheus, &skald, "/api/v1/query", &[("time", &end)], substitute).await;
    let range = [("start", start.as_str()), ("end", end.as_str()), ("step", "3")];
    different.extend(compare_queries(&prometheus, &skald, "/api/v1/query_range", &range, substitute).await.0);
    // After the end of every target: its stale markers hide it.
    let gone = at(last + 5);
    different.extend(compare_queries(&prometheus, &skald, "/api/v1/query", &[("time", &gone)], substitute).await.0);
    assert!(different.is_empty(), "{}\n{} answers differ", different.join("\n"), different.len());
    assert!(QUERIES.len() - empty.len() >= 30, "too many queries find nothing on both sides: {empty:?}");
    println!("{} queries are answered equally, {} with nothing: {empty:?}", QUERIES.len(), empty.len());
    skald.stop();
}
