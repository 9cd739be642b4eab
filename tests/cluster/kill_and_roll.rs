//! A whole cluster as `deploy/local/cluster` starts it, while its processes are killed and rolled: nothing acknowledged is
//! lost, no query fails, none answers short.
//!
//! `CLUSTER_TEST_SECONDS` is how long whole rounds of that are repeated: one round by default.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Answer, answer_of, http_client, now_ms};
use crate::sender::Request;

/// Series written with every batch.
const SERIES: usize = 100;
/// Processes, and three ports for each, of one cluster.
const PORTS: u16 = 3 * 20;

/// A process as the script tells of it.
#[derive(Debug, Clone)]
struct Member {
    name: String,
    role: String,
    zone: String,
    http: String,
}

/// A cluster that does not outlive the test.
struct Cluster {
    dir: PathBuf,
    members: Vec<Member>,
}

fn script(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/cluster");
    let mut command = Command::new(script);
    let (verb, rest) = arguments.split_first().expect("a command");
    command.arg(verb).arg("--dir").arg(dir).args(rest).env("SKALD_BIN", env!("CARGO_BIN_EXE_skald"));
    let output = command.output().expect("the script runs");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

/// The first of so many free ports in a row, below those the system gives out by itself.
fn free_ports() -> u16 {
    let mut first = 12_000 + (std::process::id() % 200) as u16 * 90;
    while !(first..first + PORTS).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()) {
        first = if first > 30_000 { 12_000 } else { first + PORTS };
    }
    first
}

impl Cluster {
    fn up(dir: &Path, more: &[&str]) -> Cluster {
        let first = free_ports();
        let port = first.to_string();
        let mut arguments = vec!["up", "--base-port", &port];
        arguments.extend(more);
        let mut cluster = Cluster { dir: dir.to_owned(), members: Vec::new() };
        let lines = script(dir, &arguments).unwrap_or_else(|why| panic!("the cluster does not start: {why}"));
        let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        let member = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            Member {
                name: text(&line, "name"),
                role: text(&line, "role"),
                zone: text(&line, "zone"),
                http: text(&line, "http"),
            }
        };
        cluster.members = lines.lines().map(member).collect();
        cluster
    }

    fn of_role(&self, role: &str) -> Vec<Member> {
        let members: Vec<Member> = self.members.iter().filter(|member| member.role == role).cloned().collect();
        assert!(!members.is_empty(), "no {role}");
        members
    }

    fn run(&self, arguments: &[&str]) {
        script(&self.dir, arguments).unwrap_or_else(|why| panic!("{arguments:?}: {why}"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &self.members {
            let _ = script(&self.dir, &["kill", &member.name]);
        }
    }
}

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

/// Asks the frontends in turn; another one when one is away, as any balancer before them does.
async fn ask(
    client: &reqwest::Client,
    frontends: &[Member],
    turn: usize,
    query: &str,
    time: i64,
) -> Result<Value, String> {
    let mut last = String::new();
    for at in 0..frontends.len() {
        let frontend = &frontends[(turn + at) % frontends.len()];
        let time = (time as f64 / 1000.0).to_string();
        let url = format!("http://{}/prometheus/api/v1/query", frontend.http);
        let form =
            form_urlencoded::Serializer::new(String::new()).extend_pairs([("query", query), ("time", &time)]).finish();
        let request = client.post(url).header("Content-Type", "application/x-www-form-urlencoded").body(form);
        match answer_of(request.timeout(Duration::from_secs(30))).await {
            Ok(answer) if answer.status == 200 => return Ok(answer.json()["data"]["result"].clone()),
            // A balancer asks `/ready` first, and goes elsewhere.
            Ok(answer) if answer.status == 503 && answer.body.contains("this process is starting") => {
                last = format!("{}: {}", frontend.name, answer.body);
            }
            Ok(answer) => return Err(format!("{} of {}: {}", answer.status, frontend.name, answer.body)),
            Err(error) => last = format!("{}: {error}", frontend.name),
        }
    }
    Err(last)
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
    let seconds = std::env::var("CLUSTER_TEST_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
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
    let chaos = {
        let cluster = cluster.clone();
        // The script waits for processes.
        std::thread::spawn(move || {
            let begun = Instant::now();
            let step = |what: &[&str]| {
                println!("{} ms: {}", now_ms(), what.join(" "));
                cluster.run(what);
            };
            loop {
                let ingesters = cluster.of_role("ingester");
                // Members of different groups and zones one after the other, then a whole zone at once.
                for ingester in ingesters.iter().step_by(2) {
                    step(&["kill", &ingester.name]);
                    std::thread::sleep(Duration::from_secs(1));
                    step(&["start", &ingester.name]);
                }
                let zone: Vec<_> = ingesters.iter().filter(|ingester| ingester.zone == "zone-b").collect();
                zone.iter().for_each(|ingester| step(&["kill", &ingester.name]));
                std::thread::sleep(Duration::from_secs(2));
                zone.iter().for_each(|ingester| step(&["start", &ingester.name]));
                let roles = [
                    "ingester",
                    "query-frontend",
                    "query-scheduler",
                    "querier",
                    "store-gateway",
                    "distributor",
                    "compactor",
                ];
                for role in roles {
                    for member in cluster.of_role(role) {
                        step(&["stop", &member.name]);
                        step(&["start", &member.name]);
                    }
                }
                if begun.elapsed() >= Duration::from_secs(seconds) {
                    break;
                }
            }
        })
    };
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
