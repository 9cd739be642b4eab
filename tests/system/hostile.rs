//! Show 5: two hundred queries made to blow up. Skald must answer each, a limit's error being an answer, and grow by no
//! more than the memory limit of a query and a fifth of it.
//!
//! The full measurement runs a release binary over more data and gives each query more time:
//! `SKALD_HOSTILE_BINARY=target/release/skald SKALD_HOSTILE_SERIES=50000 SKALD_HOSTILE_LIMIT_MIB=128
//! SKALD_HOSTILE_TIMEOUT_MS=20000 cargo test --test system hostile -- --ignored --nocapture`

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;

use crate::process::{Skald, now_ms};
use crate::sender::{Request, put_field, put_uvarint};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What is loaded: one wide metric, classic and native histograms, info series.
struct Data {
    series: usize,
    samples: i64,
    end: i64,
}

const STEP_MS: i64 = 15_000;
const SERIES_PER_REQUEST: usize = 2000;

impl Data {
    async fn push(&self, skald: &Skald) {
        let mut request = Request::default();
        let mut pending = 0;
        let times: Vec<i64> = (0..self.samples).map(|i| self.end - (self.samples - 1 - i) * STEP_MS).collect();
        let floats = |n: usize| -> Vec<(i64, f64)> {
            times.iter().enumerate().map(|(i, t)| (*t, n as f64 + i as f64 * 0.37)).collect()
        };
        for n in 0..self.series {
            let (i, job) = (format!("number-{n:06}"), format!("job-{}", n % 10));
            let (instance, zone) = (format!("host-{:03}", n % 100), format!("zone-{}", n % 3));
            let labels = [("__name__", "wide"), ("i", &i), ("instance", &instance), ("job", &job), ("zone", &zone)];
            request = request.series(&labels, &floats(n));
            if n % 20 == 0 {
                for le in ["0.1", "0.5", "1", "2.5", "5", "10", "+Inf"] {
                    let labels = [("__name__", "lat_bucket"), ("h", &i), ("le", le)];
                    request = request.series(&labels, &floats(n));
                }
            }
            if n % 50 == 0 {
                let labels = [("__name__", "target_info"), ("instance", &instance), ("job", &job), ("version", &i)];
                request = request.series(&labels, &floats(1));
                request = request.histograms(&[("__name__", "native"), ("h", &i)], &times, n as u64);
            }
            pending += 1;
            if pending == SERIES_PER_REQUEST || n + 1 == self.series {
                let answer = skald.push(std::mem::take(&mut request).body()).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.body);
                pending = 0;
            }
        }
    }
}

impl Request {
    /// Adds a series of native histograms of 160 buckets each.
    fn histograms(mut self, labels: &[(&str, &str)], times: &[i64], seed: u64) -> Self {
        let mut series = Vec::new();
        for (name, value) in labels {
            let mut label = Vec::new();
            put_field(&mut label, 1, name.as_bytes());
            put_field(&mut label, 2, value.as_bytes());
            put_field(&mut series, 1, &label);
        }
        for (i, time) in times.iter().enumerate() {
            let count = 160 * (i as u64 + 1 + seed % 7);
            let mut histogram = vec![0x08];
            put_uvarint(&mut histogram, count);
            histogram.push(0x19);
            histogram.extend_from_slice(&(count as f64).to_le_bytes());
            // Schema 3, zigzag; one span of 160 buckets; the first count, then no differences.
            histogram.extend_from_slice(&[0x20, 6]);
            put_field(&mut histogram, 11, &[0x08, 0, 0x10, 0xa0, 0x01]);
            let mut deltas = Vec::new();
            put_uvarint(&mut deltas, 2 * (count / 160));
            deltas.extend_from_slice(&[0; 159]);
            put_field(&mut histogram, 12, &deltas);
            histogram.push(0x78);
            put_uvarint(&mut histogram, *time as u64);
            put_field(&mut series, 4, &histogram);
        }
        put_field(&mut self.bytes, 1, &series);
        self
    }
}

/// A request made to hurt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Hostile {
    path: &'static str,
    params: Vec<(&'static str, String)>,
}

impl Hostile {
    fn name(&self) -> String {
        let (name, text) = &self.params[0];
        let short: String = text.chars().take(90).collect();
        let rest = if text.len() > short.len() { format!("… ({} bytes)", text.len()) } else { String::new() };
        let step = self.params.iter().find(|(name, _)| *name == "step").map_or("", |(_, step)| step);
        format!("{} {step} {name}={short}{rest} x{}", self.path, self.params.len())
    }
}

struct Attack {
    end: i64,
    all: Vec<Hostile>,
}

impl Attack {
    fn instant(&mut self, query: impl Into<String>) {
        let time = format!("{}", self.end as f64 / 1000.0);
        self.all.push(Hostile { path: "query", params: vec![("query", query.into()), ("time", time)] });
    }

    /// A range query of so many points, a second apart.
    fn range(&mut self, query: impl Into<String>, points: i64) {
        let seconds = |ms: i64| format!("{}", ms as f64 / 1000.0);
        let params = vec![
            ("query", query.into()),
            ("start", seconds(self.end - (points - 1) * 1000)),
            ("end", seconds(self.end)),
            ("step", "1".to_owned()),
        ];
        self.all.push(Hostile { path: "query_range", params });
    }

    fn both(&mut self, query: impl Into<String>, points: i64) {
        let query = query.into();
        self.instant(query.clone());
        self.range(query, points);
    }

    fn request(&mut self, path: &'static str, params: Vec<(&'static str, String)>) {
        self.all.push(Hostile { path, params });
    }
}

/// `inner` inside `depth` times `before` and `after`.
fn nested(before: &str, inner: &str, after: &str, depth: usize) -> String {
    format!("{}{inner}{}", before.repeat(depth), after.repeat(depth))
}

fn chain(part: impl Fn(usize) -> String, operator: &str, count: usize) -> String {
    (0..count).map(part).collect::<Vec<_>>().join(operator)
}

fn hostile_queries(end: i64) -> Vec<Hostile> {
    let mut attack = Attack { end, all: Vec::new() };
    selections(&mut attack);
    combinations(&mut attack);
    aggregations(&mut attack);
    functions(&mut attack);
    texts(&mut attack);
    metadata(&mut attack);
    attack.all
}

/// Everything at once, in every shape.
fn selections(attack: &mut Attack) {
    for selector in ["wide", r#"{__name__=~".+"}"#, r#"{job=~"job-.*"}"#, r#"wide{i=~".*1.*"}"#, "native"] {
        attack.both(selector, 11_000);
        attack.instant(format!("{selector}[1d]"));
        attack.range(format!("{selector} * 2"), 1000);
    }
    for tricks in ["wide @ end()", "wide @ start() offset -1h", "sum_over_time(wide[1h] @ end())", "wide offset 100y"] {
        attack.both(tricks, 11_000);
    }
    for inner in ["wide", "wide * 2", "rate(wide[1m])", "sum by (i) (wide)", "native"] {
        for window in ["10s:1ms", "1h:1s", "1y:1m", "50y:1s"] {
            attack.instant(format!("max_over_time(({inner})[{window}])"));
        }
    }
    for function in ["rate", "changes", "sum_over_time", "mad_over_time"] {
        attack.range(format!("{function}(avg_over_time(wide[1m:1ms])[1m:1ms])"), 100);
    }
    attack.instant(nested("max_over_time(", "wide", "[10s:1ms])", 8));
    attack.both("sum_over_time(time()[10d:1ms])", 10);
    attack.instant("time()[10d:1ms]");
    attack.instant("wide[10m:1ms]");
    attack.instant(r#"{__name__=~".+"}[1d:1s]"#);
}

/// Sides against sides.
fn combinations(attack: &mut Attack) {
    for operator in [" or ", " and ", " unless ", " + ", " == "] {
        attack.instant(chain(|_| "wide".to_owned(), operator, 300));
        attack.range(chain(|_| r#"{__name__=~".+"}"#.to_owned(), operator, 20), 1000);
    }
    for operator in [" or ", " + on(i) "] {
        attack.instant(chain(|n| format!(r#"wide{{i!="{n}"}}"#), operator, 400));
    }
    attack.range(chain(|n| format!("wide * {n}"), " or ", 200), 1000);
    for join in [
        "wide * on (i) group_left (version) wide",
        "wide * on () group_left () vector(1)",
        "wide * on (job, instance) group_left (version) target_info",
        "wide + ignoring (i) group_right () wide",
        "wide - ignoring (zone) wide",
        "native + native",
        "native * on (h) group_left () lat_bucket",
        "wide > bool on (i) wide",
        "wide and on (job) wide",
    ] {
        attack.both(join, 3000);
    }
    attack.both("info(wide)", 1000);
    attack.both(r#"info(wide, {version=~".+"})"#, 1000);
    for deep in [nested("(", "wide", ")", 900), nested("-", "wide", "", 900), nested("abs(", "wide", ")", 400)] {
        attack.both(deep, 1000);
    }
    attack.both(nested("sum by (i) (", "wide", ")", 300), 1000);
    attack.both(chain(|_| "wide".to_owned(), " + ", 900), 11_000);
}

fn aggregations(attack: &mut Attack) {
    for op in ["sum", "avg", "stddev", "count", "group", "min"] {
        attack.range(format!("{op} by (i) (wide)"), 11_000);
        attack.range(format!("{op} without () (rate(wide[5m]))"), 3000);
    }
    for op in ["topk(1e9, ", "bottomk(1e9, ", "limitk(1e9, ", "limit_ratio(0.999, ", "quantile(0.5, "] {
        attack.both(format!("{op}wide)"), 3000);
        attack.both(format!("{op}{{__name__=~\".+\"}})"), 11_000);
    }
    attack.range("topk by (i) (1e9, wide)", 3000);
    attack.range("quantile by (i) (0.9, wide)", 11_000);
    for values in ["wide", "wide * time()", "rate(wide[1m])", "native"] {
        attack.both(format!(r#"count_values("v", {values})"#), 3000);
        attack.instant(format!(r#"count_values without (i) ("i", {values})"#));
    }
    for sum in ["sum(native)", "avg by (h) (native)", "sum(rate(native[5m]))"] {
        attack.both(sum, 3000);
    }
}

fn functions(attack: &mut Attack) {
    for question in [
        "histogram_quantile(0.9, lat_bucket)",
        "histogram_quantile(0.9, wide)",
        "histogram_quantile(0.9, native)",
        r#"histogram_quantiles(lat_bucket, "q", 0.1, 0.5, 0.9)"#,
        "histogram_fraction(0, 1, native)",
        "histogram_stddev(rate(native[5m]))",
        "absent(wide)",
        r#"absent_over_time({__name__=~".+"}[1d])"#,
        "last_over_time(wide[1d])",
        "quantile_over_time(0.5, wide[1d])",
        "predict_linear(wide[1d], 3600)",
        "scalar(wide)",
        r#"sort_by_label(wide, "i")"#,
        r#"sort_by_label_desc(wide, "zone", "job", "i")"#,
        "sort_desc(wide)",
        "sort(native)",
        "timestamp(wide)",
        "day_of_year(wide * 1e9)",
        "clamp(wide, 1, scalar(wide))",
        "vector(scalar(wide)) or wide",
    ] {
        attack.both(question, 3000);
    }
    for depth in [5, 15, 19] {
        let doubled = nested("label_replace(", "wide", r#", "i", "$1$1", "i", "(.*)")"#, depth);
        attack.both(doubled, 1000);
    }
    let joined = r#", "i", "-", "i", "job", "instance", "zone", "i", "i")"#;
    attack.both(nested("label_join(", "wide", joined, 4), 1000);
    attack.instant(nested("label_join(", "wide", joined, 300));
    attack.both(format!(r#"label_replace(wide, "x", "{}", "i", ".*")"#, "$0".repeat(2000)), 100);
}

/// Long texts and large regexes.
fn texts(attack: &mut Attack) {
    let alternatives = chain(|n| format!("number-{n:06}x?"), "|", 20_000);
    let many = ["(x{1,500}){1,2}", "(a|b|c|d){1,300}.*(e|f){1,300}", ".*.*.*.*.*.*.*1", "([a-z0-9-]+)+!"];
    for pattern in many.into_iter().map(str::to_owned).chain([alternatives, ".*[0-9]{1,200}.*".to_owned()]) {
        attack.instant(format!(r#"wide{{i=~"{pattern}"}}"#));
        attack.instant(format!(r#"wide{{i!~"{pattern}", job=~"{pattern}"}}"#));
        attack.instant(format!(r#"label_replace(wide, "x", "$1", "i", "({pattern})")"#));
    }
    let regexes = chain(|n| format!(r#"wide{{i=~"(x{{1,500}}){{1,2}}{n}"}}"#), " or ", 1000);
    attack.instant(regexes);
    attack.instant(format!("\"{}\"", "x".repeat(500_000)));
    attack.instant(format!("wide{{i=\"{}\"}}", "y".repeat(500_000)));
    attack.instant(format!("sum by ({}) (wide)", chain(|n| format!("l{n}"), ",", 20_000)));
    for text in [
        nested("(", "wide", ")", 990),
        chain(|n| format!("a_rather_long_metric_name_number_{n}"), " + ", 990),
        nested("abs(", &chain(|n| format!("wide_{n}"), " + ", 400), ")", 500),
        nested("avg_over_time(", "wide", "[1h:1m])", 900),
        format!("f({}", "(".repeat(100_000)),
    ] {
        attack.request("format_query", vec![("query", text.clone())]);
        attack.request("parse_query", vec![("query", text)]);
    }
}

/// Labels and series by thousands of selectors.
fn metadata(attack: &mut Attack) {
    for count in [1, 1000, 10_000] {
        for selector in [r#"{__name__=~".+"}"#, r#"wide{i=~".*1.*"}"#, r#"{i=~"(a|b)c{1,9}.*|number-0.*"}"#] {
            let matches = |n: usize| selector.replace("1.*", &format!("{n}.*"));
            let params: Vec<_> = (0..count).map(|n| ("match[]", matches(n))).collect();
            for path in ["series", "labels"] {
                attack.request(path, params.clone());
            }
            // By GET only.
            attack.request("label/i/values", params[..count.min(400 + count / 100)].to_vec());
        }
    }
    let (start, end) = (("start", "0".to_owned()), ("end", "4000000000".to_owned()));
    for query in [r#"{__name__=~".+"}"#.to_owned(), chain(|n| format!("wide{{i!=\"{n}\"}}"), " + ", 900)] {
        attack.request("query_exemplars", vec![("query", query), start.clone(), end.clone()]);
    }
}

/// How a request ended.
struct Outcome {
    what: String,
    bytes: usize,
    took: Duration,
}

/// Sends a request; the answer is read and thrown away but for its ends, by which it is judged.
async fn send(skald: &Skald, hostile: &Hostile, timeout_ms: u64) -> Outcome {
    let begun = Instant::now();
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(&hostile.params);
    if hostile.path.starts_with("query") {
        form.append_pair("timeout", &format!("{timeout_ms}ms"));
    }
    let path = format!("/prometheus/api/v1/{}", hostile.path);
    let request = if hostile.path.starts_with("label/") {
        // Only GET there; what a URL cannot hold is refused by its length.
        skald.request(reqwest::Method::GET, &format!("{path}?{}", form.finish()))
    } else {
        let post = skald.request(reqwest::Method::POST, &path).body(form.finish());
        post.header("Content-Type", "application/x-www-form-urlencoded")
    };
    let response = request.send().await.unwrap_or_else(|e| panic!("{}: no answer: {e}", hostile.name()));
    let status = response.status().as_u16();
    let (mut head, mut tail, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.unwrap_or_else(|e| panic!("{}: cut after {bytes} bytes: {e}", hostile.name()));
        bytes += piece.len();
        if head.len() < 1000 {
            head.extend_from_slice(&piece[..piece.len().min(1000)]);
        }
        tail = piece[piece.len().saturating_sub(10)..].to_vec();
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let what = if status == 200 {
        assert!(head.starts_with(r#"{"status":"success""#) && tail.ends_with(b"}"), "{}: {head}", hostile.name());
        "success".to_owned()
    } else if status == 431 || status == 414 {
        "too long".to_owned()
    } else {
        let error = head.split(r#""errorType":""#).nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("none");
        let known = [(400, "bad_data"), (422, "execution"), (503, "timeout"), (413, "bad_data")];
        assert!(known.contains(&(status, error)), "{}: {status} {head}", hostile.name());
        let limits = ["memory limit", "too many samples", "limit"];
        let limit = limits.into_iter().find(|limit| head.contains(limit)).unwrap_or("");
        format!("{error} {limit}")
    };
    Outcome { what, bytes, took: begun.elapsed() }
}

/// Lets VmHWM begin anew at what is resident now.
fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the peak can be reset");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes, meant for a release binary: see above"]
async fn hostile_queries_stay_within_their_budget() {
    let limit_mib = setting("SKALD_HOSTILE_LIMIT_MIB", 128);
    let timeout_ms = setting("SKALD_HOSTILE_TIMEOUT_MS", 150);
    let series = setting("SKALD_HOSTILE_SERIES", 4000) as usize;
    let samples = setting("SKALD_HOSTILE_SAMPLES", 40) as i64;
    let dir = tempfile::tempdir().unwrap();
    let limit = format!("--querier.query-memory-limit={limit_mib}MiB");
    // What has no parameter of its own for it, too.
    let timeout = format!("--query-frontend.query-timeout={timeout_ms}ms");
    let flags = [
        limit.as_str(),
        timeout.as_str(),
        "--querier.max-samples=none",
        "--limits.promql-experimental-functions=true",
        "--limits.max-native-histogram-buckets=none",
    ];
    let mut skald = Skald::new(dir.path(), &flags);
    if let Ok(binary) = std::env::var("SKALD_HOSTILE_BINARY") {
        skald.set_binary(&binary);
    }
    skald.start_again().await;
    let data = Data { series, samples, end: now_ms() / 1000 * 1000 };
    data.push(&skald).await;
    let attacks = hostile_queries(data.end);
    let distinct: HashSet<&Hostile> = attacks.iter().collect();
    assert_eq!(distinct.len(), attacks.len(), "some queries are the same");
    assert!(attacks.len() >= 200, "{} queries", attacks.len());

    // Threads, caches and code that any query needs are not what a query costs.
    for query in ["count(wide)", "sum(rate(native[5m]))", r#"{i="number-000001"}"#] {
        skald.query(query, data.end as f64 / 1000.0).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let baseline = skald.process().memory_kib("VmRSS");
    let pid = skald.process().pid();
    let mut measured = Vec::new();
    for attack in &attacks {
        // The allocator gives freed memory back after a moment.
        for _ in 0..10 {
            if skald.process().memory_kib("VmRSS") < baseline + 16_384 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        forget_peak(pid);
        let before = skald.process().memory_kib("VmRSS");
        let outcome = send(&skald, attack, timeout_ms).await;
        assert!(skald.process().is_running(), "it ended at {}: {}", attack.name(), skald.log());
        let peak = skald.process().memory_kib("VmHWM");
        println!(
            "{:>6} MiB {:>7.0?} {} {}",
            (peak.saturating_sub(baseline)) >> 10,
            outcome.took,
            outcome.what,
            attack.name()
        );
        measured.push((peak.saturating_sub(baseline), peak.saturating_sub(before), outcome, attack));
    }
    let rss_after = skald.process().memory_kib("VmRSS");
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    measured.iter().for_each(|(_, _, outcome, _)| *outcomes.entry(&outcome.what).or_default() += 1);
    println!(
        "{} hostile queries, {limit_mib} MiB each, {series} series of {samples} samples: {outcomes:?}; resident \
         {} MiB before, {} MiB after",
        attacks.len(),
        baseline >> 10,
        rss_after >> 10
    );
    println!("growth over the baseline and over what was resident right before, MiB; answer; query");
    measured.sort_by_key(|(growth, ..)| std::cmp::Reverse(*growth));
    for (growth, own, outcome, attack) in measured.iter().take(15) {
        let (growth, own) = (growth >> 10, own >> 10);
        println!(
            "{growth:>6} {own:>6}  {} ({} bytes, {:?})  {}",
            outcome.what,
            outcome.bytes,
            outcome.took,
            attack.name()
        );
    }
    measured.sort_by_key(|(_, _, outcome, _)| std::cmp::Reverse(outcome.took));
    println!("the slowest");
    for (growth, _, outcome, attack) in measured.iter().take(8) {
        println!(
            "{:>6}  {} ({} bytes, {:?})  {}",
            growth >> 10,
            outcome.what,
            outcome.bytes,
            outcome.took,
            attack.name()
        );
    }

    // Some at once: each has a budget of its own.
    const AT_ONCE: u64 = 4;
    forget_peak(pid);
    let concurrent = attacks.iter().step_by(7).take(28);
    let ended =
        stream::iter(concurrent).map(|attack| send(&skald, attack, timeout_ms)).buffer_unordered(AT_ONCE as usize);
    let ended = ended.count().await;
    let peak = skald.process().memory_kib("VmHWM").saturating_sub(baseline);
    println!("{ended} of them, {AT_ONCE} at once: {} MiB", peak >> 10);

    let begun = Instant::now();
    let answer = skald.query("count(wide)", data.end as f64 / 1000.0).await;
    assert_eq!(answer["result"][0]["value"][1], series.to_string(), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(1), "an ordinary query takes {:?}", begun.elapsed());

    let allowed = limit_mib * 1024 * 6 / 5;
    let beyond: Vec<_> = measured.iter().filter(|(growth, ..)| *growth > allowed).collect();
    let names: Vec<_> =
        beyond.iter().map(|(growth, .., attack)| format!("{} KiB: {}", growth, attack.name())).collect();
    assert!(beyond.is_empty(), "{} queries grew by more than {allowed} KiB:\n{}", beyond.len(), names.join("\n"));
    assert!(peak <= allowed * AT_ONCE, "{AT_ONCE} at once grew by {peak} KiB");
    skald.stop();
}
