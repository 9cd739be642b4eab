//! Show 5: two hundred queries made to blow up. Skald must answer each, a limit's error being an answer, and grow by no
//! more than the memory limit of a query and a fifth of it.
//!
//! Without optimisation most of them are stopped by their deadline before they have grown; some get the time they need. The
//! full measurement runs a release binary over more data:
//! `SKALD_HOSTILE_BINARY=target/release/skald SKALD_HOSTILE_SERIES=20000 SKALD_HOSTILE_TIMEOUT_MS=300 cargo test --test
//! system hostile -- --nocapture`

mod attacks;

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;

use crate::load::{Data, setting};
use crate::process::{Skald, now_ms, wait_for};
use attacks::{Hostile, hostile_queries};

/// How a request ended.
struct Outcome {
    what: String,
    bytes: usize,
    took: Duration,
}

/// Sends a request; the answer is read and thrown away but for its ends, by which it is judged.
async fn send(skald: &Skald, hostile: &Hostile, timeout: Duration) -> Outcome {
    let begun = Instant::now();
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(&hostile.params);
    if hostile.path.starts_with("query") {
        form.append_pair("timeout", &format!("{}ms", timeout.as_millis()));
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

/// Queries that reach three eighths of the limit over 2,500 series when they get the time, in a build without optimisation,
/// too.
const THIRSTY: [&str; 8] = [
    "wide",
    r#"sort_by_label(wide, "i")"#,
    "timestamp(wide)",
    "limitk(1e9, wide)",
    "last_over_time(wide[1d])",
    "native + native",
    "native",
    "sum by (i) (wide)",
];
const TIME_FOR_THE_THIRSTY: Duration = Duration::from_secs(30);
/// Requests that are sent at the same time in the end.
const AT_ONCE: u64 = 4;

/// What a request made the process grow by, KiB: over what was resident before all of them, and right before it.
struct Measured<'a> {
    over_all: u64,
    own: u64,
    outcome: Outcome,
    attack: &'a Hostile,
}

impl Measured<'_> {
    fn line(&self) -> String {
        let Outcome { what, bytes, took } = &self.outcome;
        let (own, over_all) = (self.own >> 10, self.over_all >> 10);
        format!("{own:>6} {over_all:>6} {took:>7.0?} {what} ({bytes} bytes)  {}", self.attack.name())
    }
}

/// Waits until freed memory is given back, as far as it will be; what is resident then, KiB.
async fn settled(skald: &mut Skald, baseline: u64) -> u64 {
    let mut before = u64::MAX;
    for _ in 0..10 {
        let resident = skald.process().memory_kib("VmRSS");
        // The allocator takes 200 ms, more on a machine that others use.
        if resident < baseline + 16_384 || resident + 1024 > before {
            return resident;
        }
        before = resident;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    before
}

async fn measured<'a>(skald: &mut Skald, attack: &'a Hostile, baseline: u64, timeout: Duration) -> Measured<'a> {
    let before = settled(skald, baseline).await;
    let pid = skald.process().pid();
    forget_peak(pid);
    let outcome = send(skald, attack, timeout).await;
    assert!(skald.process().is_running(), "it ended at {}: {}", attack.name(), skald.log());
    let peak = skald.process().memory_kib("VmHWM");
    Measured { over_all: peak.saturating_sub(baseline), own: peak.saturating_sub(before), outcome, attack }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_queries_stay_within_their_budget() {
    let limit_mib = setting("SKALD_HOSTILE_LIMIT_MIB", 128);
    let timeout = Duration::from_millis(setting("SKALD_HOSTILE_TIMEOUT_MS", 80));
    let series = setting("SKALD_HOSTILE_SERIES", 2500) as usize;
    let samples = setting("SKALD_HOSTILE_SAMPLES", 40) as i64;
    let dir = tempfile::tempdir().unwrap();
    let limit = |mib: u64| format!("--querier.query-memory-limit={mib}MiB");
    let thirsty_mib = limit_mib * 3 / 8;
    // What has no parameter of its own for it, too.
    let short = format!("--query-frontend.query-timeout={}ms", timeout.as_millis());
    let long = format!("--query-frontend.query-timeout={}s", TIME_FOR_THE_THIRSTY.as_secs());
    let others = [
        "--querier.max-samples=none",
        "--limits.promql-experimental-functions=true",
        "--limits.max-native-histogram-buckets=none",
    ];
    let mut skald = Skald::new(dir.path(), &[&others[..], &[&limit(thirsty_mib), &long]].concat());
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

    // Those that need the time to reach the limit.
    let baseline = warm(&mut skald, &data).await;
    let mut all = Vec::new();
    let thirsty = |attack: &&Hostile| attack.path == "query_range" && THIRSTY.contains(&attack.params[0].1.as_str());
    for attack in attacks.iter().filter(thirsty) {
        let one = measured(&mut skald, attack, baseline, TIME_FOR_THE_THIRSTY).await;
        println!("{}", one.line());
        all.push(one);
    }
    let reached = all.iter().filter(|one| one.outcome.what.contains("memory limit")).count();
    assert!(reached >= THIRSTY.len() - 2, "only {reached} reached the limit");
    let most = all.iter().map(|one| one.own).max().unwrap_or_default();
    assert!(most <= thirsty_mib * 1024 * 6 / 5, "one grew by {most} KiB, its limit being {thirsty_mib} MiB");
    skald.stop();

    // All of them.
    skald.set_flags(&[&others[..], &[&limit(limit_mib), &short]].concat());
    skald.start_again().await;
    let baseline = warm(&mut skald, &data).await;
    for attack in &attacks {
        let one = measured(&mut skald, attack, baseline, timeout).await;
        println!("{}", one.line());
        all.push(one);
    }
    let rss_after = settled(&mut skald, baseline).await;
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    all.iter().for_each(|one| *outcomes.entry(&one.outcome.what).or_default() += 1);
    println!(
        "{} hostile queries, {limit_mib} MiB each, {series} series of {samples} samples: {outcomes:?}; resident {} MiB \
         before, {} MiB after",
        attacks.len(),
        baseline >> 10,
        rss_after >> 10
    );
    println!("growth over what was resident right before and before all, MiB; time; answer; query");
    all.sort_by_key(|one| std::cmp::Reverse(one.own));
    all.iter().take(15).for_each(|one| println!("{}", one.line()));
    println!("the slowest");
    all.sort_by_key(|one| std::cmp::Reverse(one.outcome.took));
    all.iter().take(8).for_each(|one| println!("{}", one.line()));

    // Some at once: each has a budget of its own.
    let before = settled(&mut skald, baseline).await;
    forget_peak(skald.process().pid());
    let some = attacks.iter().step_by(7).take(28);
    let ended = stream::iter(some).map(|attack| send(&skald, attack, timeout)).buffer_unordered(AT_ONCE as usize);
    let ended = ended.count().await;
    let peak = skald.process().memory_kib("VmHWM").saturating_sub(before);
    println!("{ended} of them, {AT_ONCE} at once: {} MiB", peak >> 10);
    let time = format!("{}", data.end as f64 / 1000.0);
    let expected = series.to_string();
    let ordinary = || async {
        let answer = skald.post_form("/prometheus/api/v1/query", &[("query", "count(wide)"), ("time", &time)]).await;
        (answer.status == 200).then(|| answer.json()["data"]["result"][0]["value"][1] == expected.as_str())
    };
    assert!(wait_for("an ordinary query is answered", 10, ordinary).await);

    let allowed = limit_mib * 1024 * 6 / 5;
    let beyond: Vec<_> = all.iter().filter(|one| one.own > allowed).map(Measured::line).collect();
    assert!(beyond.is_empty(), "{} queries grew by more than {allowed} KiB:\n{}", beyond.len(), beyond.join("\n"));
    assert!(peak <= allowed * AT_ONCE, "{AT_ONCE} at once grew by {peak} KiB");
    let kept = rss_after.saturating_sub(baseline);
    assert!(kept <= allowed / 2, "{kept} KiB stay resident after all of them");
    skald.stop();
}

/// Threads, caches and code that any query needs are not what a query costs. What is resident after that, KiB.
async fn warm(skald: &mut Skald, data: &Data) -> u64 {
    for query in ["count(wide)", "sum(rate(native[5m]))", r#"{i="number-000001"}"#] {
        let time = format!("{}", data.end as f64 / 1000.0);
        let answer = skald.post_form("/prometheus/api/v1/query", &[("query", query), ("time", &time)]).await;
        assert!(matches!(answer.status, 200 | 503), "{}", answer.body);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    skald.process().memory_kib("VmRSS")
}
