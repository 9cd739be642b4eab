//! The processes of a cluster, and what they have cost so far.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::load::Error;

/// Ports that a cluster takes.
const PORTS: u16 = 3 * 20;

/// A process of a cluster.
pub struct Process {
    pub role: String,
    pid: u64,
    pub http: String,
}

/// A cluster that runs; it ends when this is dropped.
pub struct Cluster {
    dir: PathBuf,
    pub processes: Vec<Process>,
    /// Instead of all those: one process that is everything.
    single: Option<Child>,
}

/// CPU seconds by role.
pub type Cpu = BTreeMap<String, f64>;

fn script(command: &str, dir: &Path, arguments: &[String]) -> Result<String, Error> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local/cluster");
    let mut command_line = Command::new(script);
    command_line.arg(command).arg("--dir").arg(dir).args(arguments).env("SKALD_BIN", env!("CARGO_BIN_EXE_skald"));
    let output = command_line.output()?;
    if !output.status.success() {
        return Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The first of so many free ports in a row, below those the system gives out by itself.
fn free_ports() -> u16 {
    let mut first = 12_000 + (std::process::id() % 200) as u16 * 90;
    while !(first..first + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
        first = if first > 30_000 { 12_000 } else { first + PORTS };
    }
    first
}

impl Cluster {
    /// Starts a cluster; `flags` are for every process.
    pub fn start(dir: &Path, flags: &[String]) -> Result<Self, Error> {
        let mut cluster = Self { dir: dir.to_owned(), processes: Vec::new(), single: None };
        let mut arguments = vec!["--base-port".to_owned(), free_ports().to_string(), "--".to_owned()];
        arguments.extend_from_slice(flags);
        for line in script("up", dir, &arguments)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let pid = line["pid"].as_u64().ok_or("a process without pid")?;
            cluster.processes.push(Process { role: text("role"), pid, http: text("http") });
        }
        Ok(cluster)
    }

    /// Starts one process with all roles.
    pub async fn start_single(dir: &Path, flags: &[String]) -> Result<Self, Error> {
        std::fs::create_dir_all(dir)?;
        let first = free_ports();
        let http = format!("127.0.0.1:{first}");
        let child = Command::new(env!("CARGO_BIN_EXE_skald"))
            .arg(format!("--data-dir={}", dir.display()))
            .arg(format!("--server.http-listen-address={http}"))
            .arg(format!("--server.grpc-listen-address=127.0.0.1:{}", first + 1))
            .args(flags)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log"))?)
            .spawn()?;
        let process = Process { role: "all".to_owned(), pid: child.id().into(), http: http.clone() };
        let cluster = Self { dir: dir.to_owned(), processes: vec![process], single: Some(child) };
        let client = reqwest::Client::builder().no_proxy().build()?;
        for _ in 0..1000 {
            let ready = client.get(format!("http://{http}/ready")).send().await;
            if ready.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(cluster);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("skald did not become ready".into())
    }

    /// Where to write: all distributors.
    pub fn push_urls(&self) -> Vec<String> {
        let is_distributor = |process: &&Process| matches!(&*process.role, "distributor" | "all");
        let distributors = self.processes.iter().filter(is_distributor);
        distributors.map(|process| format!("http://{}/api/v1/push", process.http)).collect()
    }

    /// CPU seconds so far, user and system.
    pub fn cpu(&self) -> Result<Cpu, Error> {
        let mut cpu = Cpu::new();
        for process in &self.processes {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid))?;
            // Behind the name in parentheses, `utime` and `stime` are the 12th and 13th, in ticks of 10 ms.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
            *cpu.entry(process.role.clone()).or_default() += ticks / 100.0;
        }
        Ok(cpu)
    }

    /// The sum of a metric over all series of all processes of a role.
    pub async fn metric(&self, client: &reqwest::Client, role: &str, name: &str) -> Result<f64, Error> {
        let mut sum = 0.0;
        for process in self.processes.iter().filter(|process| process.role == role) {
            let text = client.get(format!("http://{}/metrics", process.http)).send().await?.text().await?;
            let values =
                text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<f64>().ok());
            sum += values.sum::<f64>();
        }
        Ok(sum)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(child) = &mut self.single {
            let _ = child.kill();
            let _ = child.wait();
        } else if let Err(error) = script("down", &self.dir, &[]) {
            println!("{error}");
        }
    }
}
