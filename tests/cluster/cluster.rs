//! A cluster of real processes, what befalls it, and how it is asked.
//!
//! `CLUSTER_TEST_SECONDS` is how long whole rounds of misfortune are repeated: one round by default. The cluster starts with the
//! binary `CLUSTER_TEST_FROM`, and whatever is started again is `CLUSTER_TEST_TO`, where these are set: so two builds are shown to
//! work together while one takes the place of the other.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{answer_of, now_ms};

/// Processes, and three ports for each, of one cluster.
const PORTS: u16 = 3 * 20;

/// A process as the script tells of it.
#[derive(Debug, Clone)]
pub struct Member {
    pub name: String,
    role: String,
    zone: String,
    pub http: String,
}

/// A cluster that does not outlive the test.
pub struct Cluster {
    dir: PathBuf,
    members: Vec<Member>,
}

/// The binary that a command of the script starts.
fn binary(command: &str) -> std::ffi::OsString {
    let variable = if command == "up" { "CLUSTER_TEST_FROM" } else { "CLUSTER_TEST_TO" };
    std::env::var_os(variable).unwrap_or_else(|| env!("CARGO_BIN_EXE_skald").into())
}

fn script(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/cluster");
    let mut command = Command::new(script);
    let (verb, rest) = arguments.split_first().expect("a command");
    command.arg(verb).arg("--dir").arg(dir).args(rest).env("SKALD_BIN", binary(verb));
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
    pub fn up(dir: &Path, more: &[&str]) -> Cluster {
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

    pub fn of_role(&self, role: &str) -> Vec<Member> {
        let members: Vec<Member> = self.members.iter().filter(|member| member.role == role).cloned().collect();
        assert!(!members.is_empty(), "no {role}");
        members
    }

    fn run(&self, arguments: &[&str]) {
        println!("{} ms: {}", now_ms(), arguments.join(" "));
        script(&self.dir, arguments).unwrap_or_else(|why| panic!("{arguments:?}: {why}"));
    }

    /// Rounds of misfortune on a thread of their own, since the script waits for processes, for `CLUSTER_TEST_SECONDS`; one
    /// round at least.
    pub fn cause_chaos(self: Arc<Self>, chaos: Chaos) -> std::thread::JoinHandle<()> {
        let seconds = std::env::var("CLUSTER_TEST_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
        std::thread::spawn(move || {
            let begun = Instant::now();
            let mut round = 0;
            while round == 0 || begun.elapsed() < Duration::from_secs(seconds) {
                self.cause_round(chaos, round);
                round += 1;
            }
            println!("{round} rounds in {:.0} s", begun.elapsed().as_secs_f64());
        })
    }

    fn cause_round(&self, chaos: Chaos, round: usize) {
        let ingesters = self.of_role("ingester");
        // Members of different groups and zones one after the other, then a whole zone at once.
        let every = ingesters.len() / chaos.of_ingesters;
        for ingester in ingesters.iter().skip(round % every).step_by(every) {
            self.run(&["kill", &ingester.name]);
            std::thread::sleep(Duration::from_secs(1));
            self.run(&["start", &ingester.name]);
        }
        let zone = ["zone-b", "zone-c", "zone-a"][round % 3];
        let zone: Vec<_> = ingesters.iter().filter(|ingester| ingester.zone == zone).collect();
        zone.iter().for_each(|ingester| self.run(&["kill", &ingester.name]));
        std::thread::sleep(chaos.zone_down);
        zone.iter().for_each(|ingester| self.run(&["start", &ingester.name]));
        for role in ROLLED {
            for member in self.of_role(role) {
                self.run(&["stop", &member.name]);
                self.run(&["start", &member.name]);
            }
        }
        if let Some(away) = chaos.store_away {
            println!("{} ms: the object store goes", now_ms());
            let (bucket, aside) = (self.dir.join("bucket"), self.dir.join("bucket-aside"));
            std::fs::create_dir_all(&bucket).unwrap();
            std::fs::rename(&bucket, &aside).unwrap();
            // In its place something no path leads through.
            std::fs::write(&bucket, "").unwrap();
            std::thread::sleep(away);
            std::fs::remove_file(&bucket).unwrap();
            std::fs::rename(&aside, &bucket).unwrap();
            println!("{} ms: the object store is back", now_ms());
        }
    }
}

/// What happens in a round besides every role being rolled, process by process.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    /// How many ingesters are killed and started, one after the other; they take turns.
    pub of_ingesters: usize,
    /// How long a whole zone of them is down.
    pub zone_down: Duration,
    /// How long there is no object store.
    pub store_away: Option<Duration>,
}

/// Roles in the order in which they are rolled.
const ROLLED: [&str; 7] =
    ["ingester", "query-frontend", "query-scheduler", "querier", "store-gateway", "distributor", "compactor"];

/// Held by each test: a cluster needs the machine for itself.
pub static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &self.members {
            let _ = script(&self.dir, &["kill", &member.name]);
        }
    }
}

/// Asks the frontends in turn; another one when one is away, as any balancer before them does.
pub async fn ask(
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
