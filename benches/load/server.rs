//! How each server is started, and what its process has cost so far.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Error;

/// What is started, and where it answers.
pub struct Server {
    pub name: &'static str,
    program: PathBuf,
    pub arguments: Vec<String>,
    pub data: PathBuf,
    pub port: u16,
    push_path: &'static str,
    ready_path: &'static str,
    /// Where the query API is.
    pub api_path: &'static str,
    /// When what is acknowledged is on disk.
    pub sync: &'static str,
}

/// A port that nobody listens at.
fn free_port() -> Result<u16, Error> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Server {
    /// The server of this name, with its data in a directory.
    pub fn named(name: &str, dir: &Path) -> Result<Self, Error> {
        match name {
            "skald" => Self::skald(dir),
            "prometheus" => Self::prometheus(dir),
            "victoria-metrics" => Self::victoria_metrics(dir),
            _ => Err(format!("no server is called {name}").into()),
        }
    }

    fn skald(dir: &Path) -> Result<Self, Error> {
        let data = dir.join("skald");
        let (port, grpc) = (free_port()?, free_port()?);
        Ok(Self {
            name: "skald",
            program: env!("CARGO_BIN_EXE_skald").into(),
            arguments: vec![
                format!("--data-dir={}", data.display()),
                format!("--server.http-listen-address=127.0.0.1:{port}"),
                format!("--server.grpc-listen-address=127.0.0.1:{grpc}"),
            ],
            data,
            port,
            push_path: "/api/v1/push",
            ready_path: "/ready",
            api_path: "/prometheus/api/v1",
            sync: "log written before the answer, fsync within 100 ms",
        })
    }

    fn prometheus(dir: &Path) -> Result<Self, Error> {
        let data = dir.join("prometheus");
        let config = dir.join("prometheus.yml");
        fs::write(&config, "global: {}\n")?;
        let port = free_port()?;
        Ok(Self {
            name: "prometheus",
            program: "prometheus".into(),
            arguments: vec![
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", data.display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
                "--web.enable-remote-write-receiver".into(),
            ],
            data,
            port,
            push_path: "/api/v1/write",
            ready_path: "/-/ready",
            api_path: "/api/v1",
            sync: "log written before the answer, fsync per 128 MiB segment",
        })
    }

    fn victoria_metrics(dir: &Path) -> Result<Self, Error> {
        let data = dir.join("victoria-metrics");
        let port = free_port()?;
        Ok(Self {
            name: "victoria-metrics",
            program: "victoria-metrics".into(),
            arguments: vec![
                format!("-storageDataPath={}", data.display()),
                format!("-httpListenAddr=127.0.0.1:{port}"),
                "-retentionPeriod=10y".into(),
            ],
            data,
            port,
            push_path: "/api/v1/write",
            ready_path: "/health",
            api_path: "/api/v1",
            sync: "no log; in memory up to 1 s (5 s when idle)",
        })
    }

    pub fn start(self) -> Result<Running, Error> {
        fs::create_dir_all(&self.data)?;
        let child = self.spawn()?;
        Ok(Running { server: self, child })
    }

    pub fn spawn(&self) -> Result<Child, Error> {
        // Without a terminal, logs are not read by anyone; in the data directory they go when it goes.
        let log = fs::File::create(self.data.with_extension("log"))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(&self.data)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Ok(child.map_err(|e| format!("cannot start {}: {e}", self.program.display()))?)
    }

    /// Where samples are sent.
    pub fn push_url(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.port, self.push_path)
    }
}

/// A server that runs; it ends, and what it stored goes, when this is dropped.
pub struct Running {
    pub server: Server,
    pub child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.server.data);
    }
}

impl Running {
    /// Waits until the server says that it is ready; returns how long that took.
    pub async fn ready(&self, client: &reqwest::Client, patience: Duration) -> Result<Duration, Error> {
        let begun = Instant::now();
        let url = format!("http://127.0.0.1:{}{}", self.server.port, self.server.ready_path);
        while !client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
            if begun.elapsed() > patience {
                return Err(format!("{} did not become ready", self.server.name).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(begun.elapsed())
    }

    fn proc(&self, file: &str) -> Result<String, Error> {
        Ok(fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?)
    }

    /// CPU time of the process so far, user and system, to 10 ms.
    pub fn cpu(&self) -> Result<Duration, Error> {
        let stat = self.proc("stat")?;
        // The name in parentheses may hold anything; fields are counted behind it. 14 and 15 are utime and stime in ticks.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// A figure of `/proc/PID/status` or `/proc/PID/io`.
    pub fn number(&self, file: &str, key: &str) -> Result<u64, Error> {
        let text = self.proc(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or_else(|| format!("no {key} in {file}"))?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
    }
}
