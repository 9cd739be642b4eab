//! Show 5: work nobody waits for stops within 50 ms: when a client goes away, when a deadline passes, when nobody takes the
//! answer.
//!
//! How long the server goes on is told in CPU time of its busiest thread, so that it is the server's and not that of its
//! neighbours on the machine. What they can delay, the news that the client is gone, is measured beside and allowed for; and
//! what is late must be late three times. The full measurement:
//! `SKALD_STOPPING_BINARY=target/release/skald SKALD_STOPPING_SERIES=30000 cargo test --test system stopping -- --nocapture`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::load::{Data, setting};
use crate::process::{Skald, now_ms, wait_for};

/// The promise, and how much slower code without optimisation is.
const PROMISE: Duration = Duration::from_millis(50);
const SLOWER_IN_DEBUG: u32 = 12;
/// CPU time of a thread that runs is told by the system every 4 ms.
const GRANULARITY: Duration = Duration::from_millis(8);
/// CPU time by which a request is in the middle of its work.
const IN_THE_MIDDLE: Duration = Duration::from_millis(60);
/// Deadline of a query that has one.
const TIMEOUT: Duration = Duration::from_millis(200);
const ATTEMPTS: usize = 3;

const QUERY: &str = "/prometheus/api/v1/query";
const RANGE: &str = "/prometheus/api/v1/query_range";
const SERIES: &str = "/prometheus/api/v1/series";
const LABELS: &str = "/prometheus/api/v1/labels";
const VALUES: &str = "/prometheus/api/v1/label/i/values";

/// Range queries of every kind of operator, each with more to do than a second.
const QUERIES: [&str; 44] = [
    "wide",
    "wide @ end()",
    "-wide",
    "wide * 2 > 1",
    "wide + wide",
    "wide * on (i) group_left () wide",
    "wide == bool on (i) wide",
    "wide and wide",
    "wide or wide * 2",
    "wide unless on (i) lat_bucket",
    "native",
    "native * 2",
    "native + native",
    "sum by (job) (wide)",
    "avg by (i) (wide)",
    "stddev by (job) (wide)",
    "max without (i) (rate(wide[5m]))",
    "sum(native)",
    "avg by (h) (native)",
    "topk(5, wide)",
    "bottomk by (job) (100, wide)",
    "limitk(1000, wide)",
    "limit_ratio(0.5, wide)",
    "quantile by (job) (0.9, wide)",
    r#"count_values("v", wide)"#,
    r#"count_values("v", native)"#,
    "rate(wide[5m])",
    "irate(wide[5m])",
    "deriv(wide[5m])",
    "quantile_over_time(0.5, wide[10m])",
    "mad_over_time(wide[10m])",
    "double_exponential_smoothing(wide[10m], 0.5, 0.5)",
    "rate(native[10m])",
    "max_over_time(wide[10m:1s])",
    "max_over_time(max_over_time(wide[1m:1s])[1m:1s])",
    "histogram_quantile(0.9, lat_bucket)",
    "histogram_quantile(0.9, native)",
    "absent_over_time(wide[10m])",
    r#"label_replace(wide, "x", "$1$1", "i", "(.*)")"#,
    r#"label_join(wide, "x", "-", "i", "job")"#,
    "info(wide)",
    "day_of_year(wide)",
    "clamp(wide, 1, scalar(wide))",
    "timestamp(wide)",
];

/// A request that is to be stopped.
struct Work {
    path: &'static str,
    params: Vec<(&'static str, String)>,
}

impl Work {
    /// A range query of 11,000 points, a second apart.
    fn range(query: impl Into<String>, end: i64) -> Self {
        Self::points(query, end, 11_000)
    }

    fn points(query: impl Into<String>, end: i64, points: i64) -> Self {
        let seconds = |ms: i64| format!("{}", ms as f64 / 1000.0);
        let (start, end) = (seconds(end - (points - 1) * 1000), seconds(end));
        let params = vec![("query", query.into()), ("start", start), ("end", end), ("step", "1".to_owned())];
        Self { path: RANGE, params }
    }

    fn instant(query: impl Into<String>, end: i64) -> Self {
        let time = format!("{}", end as f64 / 1000.0);
        Self { path: QUERY, params: vec![("query", query.into()), ("time", time)] }
    }

    fn matching(path: &'static str, selectors: impl Iterator<Item = String>) -> Self {
        Self { path, params: selectors.map(|selector| ("match[]", selector)).collect() }
    }

    fn name(&self) -> String {
        let short: String = self.params[0].1.chars().take(70).collect();
        let endpoint = self.path.trim_start_matches("/prometheus/api/v1/");
        format!("{endpoint} {short} x{}", self.params.len())
    }

    fn form(&self) -> String {
        form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.params).finish()
    }
}

/// What is asked besides range queries: label questions, long texts, large regexes.
fn others(end: i64) -> Vec<Work> {
    let any = |_| r#"{__name__=~".+"}"#.to_owned();
    let regex = |n: usize| format!(r#"wide{{i=~"(a|b)c{{1,9}}.*|[n]umber-{n}.*"}}"#);
    let large = |n: usize| format!(r#"wide{{i=~"(x{{1,500}}){{1,2}}{n}"}}"#);
    let joined = |parts: Vec<String>, by: &str| parts.join(by);
    vec![
        Work::matching(SERIES, (0..3000).map(any)),
        Work::matching(SERIES, (0..1200).map(regex)),
        Work::matching(LABELS, (0..3000).map(any)),
        Work::matching(VALUES, (0..400).map(any)),
        Work::matching(VALUES, (0..200).map(regex)),
        Work::instant(joined((0..900).map(regex).collect(), " or "), end),
        Work::instant(joined((0..300).map(large).collect(), " or "), end),
        // Not hundreds: they would hold a million label sets, which take a while to free.
        Work::instant(joined((0..20).map(|n| format!("wide * {n}")).collect(), " or "), end),
    ]
}

/// A server and what is known of its threads.
struct Server<'s> {
    skald: &'s Skald,
    pid: u32,
    /// Whether it is a build without optimisation.
    debug: bool,
    noise: Noise,
}

type CpuTimes = BTreeMap<String, Duration>;

impl Server<'_> {
    /// CPU time of each of its threads, without the allocator's, which gives pages back to the system.
    fn cpu(&self) -> CpuTimes {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("its threads");
        let time = |task: std::io::Result<std::fs::DirEntry>| {
            let task = task.ok()?;
            if !std::fs::read_to_string(task.path().join("comm")).ok()?.starts_with("skald") {
                return None;
            }
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanos = stat.split_whitespace().next()?.parse().ok()?;
            Some((task.file_name().to_string_lossy().into_owned(), Duration::from_nanos(nanos)))
        };
        tasks.filter_map(time).collect()
    }

    /// Waits until its threads do nothing; their CPU times by then.
    async fn idle(&self) -> CpuTimes {
        const WINDOW: Duration = Duration::from_millis(10);
        const QUIET: usize = 6;
        let (mut before, mut quiet, begun) = (self.cpu(), 0, Instant::now());
        loop {
            tokio::time::sleep(WINDOW).await;
            let now = self.cpu();
            // A thread that has ended takes its time along.
            let used = total(&now).saturating_sub(total(&before));
            quiet = if used < Duration::from_micros(700) { quiet + 1 } else { 0 };
            if quiet == QUIET {
                return now;
            }
            before = now;
            assert!(begun.elapsed() < Duration::from_secs(30), "the server does not come to rest");
        }
    }

    /// Connects and sends a request, without waiting for the answer.
    async fn send(&self, work: &Work) -> TcpStream {
        let address = self.skald.url("");
        let mut stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
        let (path, form) = (work.path, work.form());
        let mut request = String::new();
        if work.path == VALUES {
            write!(request, "GET {path}?{form} HTTP/1.1\r\nHost: skald\r\n\r\n").unwrap();
        } else {
            let length = form.len();
            write!(
                request,
                "POST {path} HTTP/1.1\r\nHost: skald\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {length}\r\n\r\n{form}"
            )
            .unwrap();
        }
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    fn allowed(&self) -> Duration {
        let promise = if self.debug { PROMISE * SLOWER_IN_DEBUG } else { PROMISE };
        promise + GRANULARITY + self.noise.most()
    }

    /// How much longer the busiest thread works once the client has gone away in the middle; `None` if it was answered
    /// before.
    async fn after_a_disconnect(&self, work: &Work) -> Option<Duration> {
        let before = total(&self.idle().await);
        self.noise.forget();
        let stream = self.send(work).await;
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let mut byte = [0];
            match stream.try_read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => return None,
            }
            let now = self.cpu();
            if total(&now) - before >= IN_THE_MIDDLE {
                drop(stream);
                return Some(longest(&now, &self.idle().await));
            }
        }
    }

    /// When the answer came after the deadline, and how much longer the busiest thread worked; `None` if it was answered
    /// before.
    async fn after_a_deadline(&self, work: &Work, timeout: Duration) -> Option<(Duration, Duration)> {
        self.idle().await;
        self.noise.forget();
        let begun = Instant::now();
        let mut params: Vec<(&str, &str)> = work.params.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let text = format!("{}ms", timeout.as_millis());
        if work.path == QUERY || work.path == RANGE {
            params.push(("timeout", &text));
        }
        let answer = if work.path == VALUES {
            self.skald.get(work.path, &params).await
        } else {
            self.skald.post_form(work.path, &params).await
        };
        let (took, at) = (begun.elapsed(), self.cpu());
        let working = longest(&at, &self.idle().await);
        if answer.status != 503 {
            let known = matches!(answer.status, 200 | 422);
            assert!(known, "{}: {} {}", work.name(), answer.status, &answer.body[..answer.body.len().min(500)]);
            return None;
        }
        let json = answer.json();
        assert_eq!((&json["status"], &json["errorType"]), (&"error".into(), &"timeout".into()), "{json}");
        let expected = match work.path {
            QUERY | RANGE => "query timed out in expression evaluation".to_owned(),
            _ => format!("the request took longer than {timeout:?}"),
        };
        assert_eq!(json["error"], expected, "{}", work.name());
        assert!(took >= timeout, "{}: {took:?}", work.name());
        Some((took - timeout, working))
    }
}

fn total(times: &CpuTimes) -> Duration {
    times.values().sum()
}

/// The CPU time of the thread that used most from one moment to another.
fn longest(from: &CpuTimes, to: &CpuTimes) -> Duration {
    let used = |(thread, now): (&String, &Duration)| *now - from.get(thread).copied().unwrap_or_default();
    to.iter().map(used).max().unwrap_or_default()
}

/// How late a thread with nothing to do wakes up on this machine.
struct Noise {
    most: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Noise {
    fn listen() -> Self {
        let (most, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (note, stop) = (most.clone(), ended.clone());
        std::thread::spawn(move || {
            const NAP: Duration = Duration::from_millis(2);
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                std::thread::sleep(NAP);
                note.fetch_max((begun.elapsed() - NAP).as_micros() as u64, Ordering::Relaxed);
            }
        });
        Self { most, ended }
    }

    fn forget(&self) {
        self.most.store(0, Ordering::Relaxed);
    }

    fn most(&self) -> Duration {
        Duration::from_micros(self.most.load(Ordering::Relaxed))
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// What a kind of stopping took, request by request.
#[derive(Default)]
struct Findings {
    stopped: usize,
    ended: Vec<String>,
    slowest: Vec<(Duration, String)>,
    late: Vec<String>,
}

impl Findings {
    fn note(&mut self, work: &Work, took: Option<(Duration, Duration)>) {
        let Some((took, allowed)) = took else { return self.ended.push(work.name()) };
        self.stopped += 1;
        self.slowest.push((took, work.name()));
        if took > allowed {
            self.late.push(format!("{took:?} of {allowed:?} allowed: {}", work.name()));
        }
    }

    fn tell(mut self, what: &str, least: usize) {
        self.slowest.sort_by_key(|(took, _)| std::cmp::Reverse(*took));
        println!("{what}: {} stopped; answered before: {:?}; the slowest:", self.stopped, self.ended);
        self.slowest.iter().take(6).for_each(|(took, name)| println!("{took:>10.1?} {name}"));
        assert!(self.late.is_empty(), "{what}:\n{}", self.late.join("\n"));
        assert!(self.stopped >= least, "{what}: only {} were still being worked on", self.stopped);
    }
}

/// A server with data, on which queries of every kind have much to do.
async fn loaded(dir: &std::path::Path) -> (Skald, i64, bool) {
    let mut skald = Skald::new(dir, &flags("60s").each_ref().map(String::as_str));
    let release = std::env::var("SKALD_STOPPING_BINARY").ok();
    if let Some(binary) = &release {
        skald.set_binary(binary);
    }
    skald.start_again().await;
    let series = setting("SKALD_STOPPING_SERIES", 2500) as usize;
    let data = Data { series, samples: 40, end: now_ms() / 1000 * 1000 };
    data.push(&skald).await;
    (skald, data.end, release.is_none() && cfg!(debug_assertions))
}

fn flags(query_timeout: &str) -> [String; 4] {
    [
        format!("--query-frontend.query-timeout={query_timeout}"),
        "--querier.max-samples=none".to_owned(),
        "--limits.promql-experimental-functions=true".to_owned(),
        "--limits.max-native-histogram-buckets=none".to_owned(),
    ]
}

/// Tries up to three times until it is in time; the best attempt.
async fn best(mut attempt: impl AsyncFnMut() -> Option<(Duration, Duration)>) -> Option<(Duration, Duration)> {
    let mut best: Option<(Duration, Duration)> = None;
    for _ in 0..ATTEMPTS {
        let (took, allowed) = attempt().await?;
        if best.is_none_or(|(before, _)| took < before) {
            best = Some((took, allowed));
        }
        if took <= allowed {
            break;
        }
    }
    best
}

#[tokio::test(flavor = "multi_thread")]
async fn work_stops_when_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut skald, end, debug) = loaded(dir.path()).await;
    let pid = skald.process().pid();
    let server = Server { skald: &skald, pid, debug, noise: Noise::listen() };
    let queries: Vec<Work> = QUERIES.iter().map(|query| Work::range(*query, end)).collect();
    let others = others(end);

    let (mut disconnects, mut answers, mut deadlines) = (Findings::default(), Findings::default(), Findings::default());
    for work in queries.iter().chain(&others) {
        let took = best(async || Some((server.after_a_disconnect(work).await?, server.allowed()))).await;
        disconnects.note(work, took);
        if work.path != QUERY && work.path != RANGE {
            continue;
        }
        let mut working = Duration::MAX;
        let took = best(async || {
            let (late, worked) = server.after_a_deadline(work, TIMEOUT).await?;
            working = working.min(worked);
            Some((late, server.allowed()))
        })
        .await;
        answers.note(work, took);
        deadlines.note(work, took.map(|(_, allowed)| (working, allowed)));
    }
    disconnects.tell("CPU time after the client went away", 40);
    answers.tell("time from a query's deadline to its answer", 35);
    deadlines.tell("CPU time after the deadline's answer", 35);
    wait_for("no query runs", 5, || async {
        (skald.metric("skald_querier_queries_running").await == 0.0).then_some(())
    })
    .await;

    // The deadline of the settings holds for everything; what is kept is replayed.
    skald.stop();
    let timeout = Duration::from_millis(300);
    skald.set_flags(&flags("300ms").each_ref().map(String::as_str));
    skald.start_again().await;
    let pid = skald.process().pid();
    let server = Server { skald: &skald, pid, debug, noise: Noise::listen() };
    let (mut answers, mut deadlines) = (Findings::default(), Findings::default());
    for work in others.iter().chain(queries.iter().step_by(9)) {
        let mut working = Duration::MAX;
        let took = best(async || {
            let (late, worked) = server.after_a_deadline(work, timeout).await?;
            working = working.min(worked);
            Some((late, server.allowed()))
        })
        .await;
        answers.note(work, took);
        deadlines.note(work, took.map(|(_, allowed)| (working, allowed)));
    }
    answers.tell("time from the deadline of the settings to the answer", 6);
    deadlines.tell("CPU time after that answer", 6);
    skald.stop();
}

/// Reads so much of an answer, slowly if told to.
async fn read_some(stream: &mut TcpStream, bytes: usize, pause: Duration) {
    let mut buffer = vec![0; 64 << 10];
    let mut read = 0;
    while read < bytes {
        let some = stream.read(&mut buffer).await.expect("more of the answer");
        assert!(some > 0, "the answer ended after {read} bytes");
        read += some;
        tokio::time::sleep(pause).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_nobody_reads_costs_nothing_and_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (mut skald, end, debug) = loaded(dir.path()).await;
    // Tens of megabytes of JSON.
    let work = Work::points("wide", end, 3000);
    let pid = skald.process().pid();
    let server = Server { skald: &skald, pid, debug, noise: Noise::listen() };
    server.idle().await;
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    };
    let before = resident(pid);

    // Who reads nothing lets the server rest, and frees the answer by going away.
    let unread = server.send(&work).await;
    wait_for("the answer begins", 60, || async { unread.try_read(&mut [0]).is_ok().then_some(()) }).await;
    let at_rest = server.idle().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let rested = total(&server.cpu()) - total(&at_rest);
    assert!(rested < Duration::from_millis(25), "{rested:?} of work for a client that reads nothing");
    let held = resident(pid).saturating_sub(before);
    drop(unread);
    let freed = || async { (resident(pid) < before + held / 3 + 16).then_some(()) };
    wait_for("the answer's memory is given back", 10, freed).await;

    // Who reads slowly and leaves in the middle of the answer stops its encoding.
    for pause in [Duration::from_millis(5), Duration::ZERO] {
        let mut stream = server.send(&work).await;
        read_some(&mut stream, 4 << 20, pause).await;
        let at = server.cpu();
        drop(stream);
        let took = longest(&at, &server.idle().await);
        println!("in the middle of an answer: {took:?} more; it held {held} MiB");
        assert!(took <= server.allowed(), "{took:?} of {:?}", server.allowed());
    }

    // Who never reads is cut off after the longest time of a query, and cannot take what it gets for the whole.
    skald.stop();
    let patience = Duration::from_secs(if debug { 12 } else { 3 });
    skald.set_flags(&flags(&format!("{}s", patience.as_secs())).each_ref().map(String::as_str));
    skald.start_again().await;
    let pid = skald.process().pid();
    let before = resident(pid);
    let server = Server { skald: &skald, pid, debug, noise: Noise::listen() };
    let mut never = server.send(&work).await;
    wait_for("the answer begins", 60, || async { never.try_read(&mut [0]).is_ok().then_some(()) }).await;
    server.idle().await;
    let held = resident(pid).saturating_sub(before);
    // It is looked every so often whether anything was taken since. What is held may be too little to tell by its going;
    // reading before would let the answer end.
    tokio::time::sleep(2 * patience + Duration::from_secs(1)).await;
    let freed = || async { (resident(pid) < before + held / 3 + 16).then_some(()) };
    wait_for("the answer is given up", 2 * patience.as_secs(), freed).await;
    let mut rest = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(10), never.read_to_end(&mut rest)).await.expect("the connection ends");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "what was cut looks complete");
    skald.stop();
}
