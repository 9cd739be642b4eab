//! What does a sample cost on its way in?
//!
//! Sends `series` series (10 labels, about 270 label bytes; counters, gauges and constants) for `rounds` rounds of one
//! sample each, 15 s apart, over HTTP as fast as they are accepted: to Skald, and in the same run to Debian's `prometheus`
//! and `victoria-metrics` where they are installed. Prints samples/s, server CPU-seconds per million samples, resident
//! bytes per series, bytes written per sample, and when each server syncs. Values are drawn with a fixed seed.
//!
//! ```text
//! cargo bench --bench ingest -- [--series 200000] [--rounds 240] [--only skald,prometheus,victoria-metrics]
//!     [--after read,flush,churn] [--restart yes]
//! ```
//!
//! `--after` goes on with Skald, and prints its memory after each step: `read` selects every series once, `flush` cuts
//! everything into blocks, `churn` replaces all series twice over, half the rounds each, and flushes.
//!
//! `--restart yes` then kills Skald (`kill -9`), starts it again on what it left, and prints when it is ready, its peak
//! memory by then, and how many series it has; once more after a bit of the newest snapshot has flipped.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures the real machine")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Series of one request: what Prometheus sends by default.
const SERIES_PER_REQUEST: usize = 2000;
const CONNECTIONS: usize = 4;
const STEP_MS: i64 = 15_000;

struct Arguments {
    series: usize,
    rounds: usize,
    only: Vec<String>,
    after: Vec<String>,
    restart: bool,
}

fn arguments() -> Result<Arguments, Error> {
    let mut arguments = Arguments { series: 200_000, rounds: 240, only: Vec::new(), after: Vec::new(), restart: false };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--series" => arguments.series = value.parse()?,
            "--rounds" => arguments.rounds = value.parse()?,
            "--only" => arguments.only = value.split(',').map(str::to_owned).collect(),
            "--after" => arguments.after = value.split(',').map(str::to_owned).collect(),
            "--restart" => arguments.restart = value == "yes",
            _ => return Err(format!("unknown argument {word}").into()),
        }
    }
    Ok(arguments)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let dir = tempfile::tempdir()?;
    // The client wants to know who would do TLS, which nobody does here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    println!(
        "{} series x {} rounds, {SERIES_PER_REQUEST} series a request, {CONNECTIONS} connections",
        arguments.series, arguments.rounds
    );
    println!(
        "{:<17} {:>11} {:>13} {:>13} {:>13} {:>13}  sync",
        "server", "samples/s", "CPU-s/M", "RSS/series", "peak/series", "written/sample"
    );
    for server in [Server::skald(dir.path()), Server::prometheus(dir.path()), Server::victoria_metrics(dir.path())] {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|name| name == server.name) {
            continue;
        }
        let name = server.name;
        match server.start() {
            Ok(running) => measure(running, &arguments).await?,
            Err(error) => println!("{name:<17} not measured: {error}"),
        }
    }
    Ok(())
}

struct Server {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    data: PathBuf,
    port: u16,
    push_path: &'static str,
    ready_path: &'static str,
    sync: &'static str,
}

impl Server {
    fn skald(dir: &Path) -> Self {
        let data = dir.join("skald");
        Self {
            name: "skald",
            program: env!("CARGO_BIN_EXE_skald").into(),
            arguments: vec![
                format!("--data-dir={}", data.display()),
                "--server.http-listen-address=127.0.0.1:19409".into(),
                "--server.grpc-listen-address=127.0.0.1:19495".into(),
            ],
            data,
            port: 19409,
            push_path: "/api/v1/push",
            ready_path: "/ready",
            sync: "log written before the answer, fsync within 100 ms",
        }
    }

    fn prometheus(dir: &Path) -> Self {
        let data = dir.join("prometheus");
        let config = dir.join("prometheus.yml");
        let _ = fs::write(&config, "global: {}\n");
        Self {
            name: "prometheus",
            program: "prometheus".into(),
            arguments: vec![
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", data.display()),
                "--web.listen-address=127.0.0.1:19410".into(),
                "--web.enable-remote-write-receiver".into(),
            ],
            data,
            port: 19410,
            push_path: "/api/v1/write",
            ready_path: "/-/ready",
            sync: "log written before the answer, fsync per 128 MiB segment",
        }
    }

    fn victoria_metrics(dir: &Path) -> Self {
        let data = dir.join("victoria-metrics");
        Self {
            name: "victoria-metrics",
            program: "victoria-metrics".into(),
            arguments: vec![
                format!("-storageDataPath={}", data.display()),
                "-httpListenAddr=127.0.0.1:19411".into(),
                "-retentionPeriod=10y".into(),
            ],
            data,
            port: 19411,
            push_path: "/api/v1/write",
            ready_path: "/health",
            sync: "no log; in memory up to 1 s (5 s when idle)",
        }
    }

    fn start(self) -> Result<Running, Error> {
        fs::create_dir_all(&self.data)?;
        let child = self.spawn()?;
        Ok(Running { server: self, child })
    }

    fn spawn(&self) -> Result<Child, Error> {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(&self.data)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ok(child.map_err(|e| format!("cannot start {}: {e}", self.program.display()))?)
    }
}

struct Running {
    server: Server,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.server.data);
    }
}

impl Running {
    /// Kills the server as `kill -9` does and starts it on what it left.
    fn restart(&mut self, before: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
        self.child.kill()?;
        self.child.wait()?;
        before(&self.server.data)?;
        self.child = self.server.spawn()?;
        Ok(())
    }

    /// Waits until the server says that it is ready; returns how long that took.
    async fn ready(&self, client: &reqwest::Client, patience: Duration) -> Result<Duration, Error> {
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

    /// CPU time of the process so far, user and system.
    fn cpu(&self) -> Result<Duration, Error> {
        let stat = self.proc("stat")?;
        // The name in parentheses may hold anything; fields are counted behind it. 14 and 15 are utime and stime in ticks.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    fn number(&self, file: &str, key: &str) -> Result<u64, Error> {
        let text = self.proc(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or_else(|| format!("no {key} in {file}"))?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
    }
}

/// xorshift64*: fast, and the same values in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The encoded labels of series `i`: 10 labels, about 270 bytes of names and values. Another generation has other pods.
fn labels(i: usize, generation: usize) -> Vec<u8> {
    let pod = i / 100;
    let pairs = [
        ("__name__", format!("container_network_receive_packets_{:02}_total", i % 100)),
        ("cluster", "production-eu-west-1".to_owned()),
        ("container", format!("application-container-{}", pod % 40)),
        ("endpoint", "https-metrics".to_owned()),
        ("instance", format!("10.{}.{}.{}:10250", pod >> 16, (pod >> 8) & 255, pod & 255)),
        ("job", "kubernetes/kubelet-cadvisor".to_owned()),
        ("namespace", format!("team-namespace-{}", pod % 25)),
        ("node", format!("ip-10-0-{}-{}.eu-west-1.compute.internal", pod / 64 % 256, pod % 64)),
        (
            "pod",
            format!("application-deployment-{:08x}-{pod:05}", (pod + generation * 77) * 2_654_435_761 % 0xFFFF_FFFF),
        ),
        ("service", "prometheus-kubelet".to_owned()),
    ];
    let mut out = Vec::with_capacity(400);
    for (name, value) in pairs {
        let mut label = Vec::with_capacity(100);
        put_bytes(&mut label, 0x0A, name.as_bytes());
        put_bytes(&mut label, 0x12, value.as_bytes());
        put_bytes(&mut out, 0x0A, &label);
    }
    out
}

/// Series of one request with their current values.
struct Batch {
    labels: Vec<Vec<u8>>,
    values: Vec<f64>,
    first: usize,
    random: Random,
}

impl Batch {
    fn new(series: std::ops::Range<usize>, generation: usize) -> Self {
        let mut random = Random(0x5EED ^ (series.start as u64 + 1));
        Self {
            values: series.clone().map(|_| (random.next() % 1_000_000) as f64).collect(),
            labels: series.clone().map(|i| labels(i, generation)).collect(),
            first: series.start,
            random,
        }
    }

    /// The body of one round, every series one sample.
    fn body(&mut self, timestamp: i64) -> Result<Vec<u8>, Error> {
        let mut request = Vec::with_capacity(self.labels.len() * 420);
        let mut series = Vec::with_capacity(420);
        for (i, value) in self.values.iter_mut().enumerate() {
            let random = self.random.next();
            match (self.first + i) % 10 {
                // Six counters of ten, two of them mostly idle.
                0..=3 => *value += (random % 500) as f64,
                4 | 5 if random.is_multiple_of(8) => *value += 1.0,
                4 | 5 => {}
                // Two gauges with decimals, one with whole numbers.
                6 | 7 => *value = (*value + (random % 2001) as f64 / 100.0 - 10.0).max(0.0),
                8 => *value = (random % 4096) as f64,
                _ => {}
            }
            let mut sample = [0_u8; 9];
            sample[0] = 0x09;
            sample[1..].copy_from_slice(&value.to_le_bytes());
            series.clear();
            series.extend_from_slice(&self.labels[i]);
            let mut encoded = sample.to_vec();
            encoded.push(0x10);
            put_uvarint(&mut encoded, timestamp as u64);
            put_bytes(&mut series, 0x12, &encoded);
            put_bytes(&mut request, 0x0A, &series);
        }
        Ok(snap::raw::Encoder::new().compress_vec(&request)?)
    }
}

async fn measure(mut running: Running, arguments: &Arguments) -> Result<(), Error> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(CONNECTIONS).no_proxy().build()?;
    let base = format!("http://127.0.0.1:{}", running.server.port);
    running.ready(&client, Duration::from_secs(30)).await?;
    let url = format!("{base}{}", running.server.push_path);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    // Churn comes behind, and is to end now, too.
    let churn = running.server.name == "skald" && arguments.after.iter().any(|step| step == "churn");
    let churn_rounds = if churn { arguments.rounds / 2 } else { 0 };
    let first = now - (arguments.rounds + 2 * churn_rounds) as i64 * STEP_MS;
    let cpu_before = running.cpu()?;
    let written_before = running.number("io", "write_bytes:")?;
    let begun = Instant::now();
    send(&client, &url, arguments.series, 0, first, arguments.rounds).await?;
    let took = begun.elapsed();
    let cpu = running.cpu()? - cpu_before;
    // Written bytes reach the counter when pages are made dirty; what a server holds back in memory is flushed soon.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let written = running.number("io", "write_bytes:")? - written_before;
    let samples = (arguments.series * arguments.rounds) as f64;
    let per_series = |kib: u64| kib as f64 * 1024.0 / arguments.series as f64;
    println!(
        "{:<17} {:>11.0} {:>13.3} {:>13.0} {:>13.0} {:>13.2}  {}",
        running.server.name,
        samples / took.as_secs_f64(),
        cpu.as_secs_f64() / samples * 1e6,
        per_series(running.number("status", "VmRSS:")?),
        per_series(running.number("status", "VmHWM:")?),
        written as f64 / samples,
        running.server.sync,
    );
    if running.server.name != "skald" {
        return Ok(());
    }
    if arguments.restart {
        let last = first + (arguments.rounds as i64 - 1) * STEP_MS;
        restart(&mut running, &client, last, "killed").await?;
        restart(&mut running, &client, last, "killed, newest snapshot damaged").await?;
    }
    for step in &arguments.after {
        match step.as_str() {
            "read" => {
                let query = [("query", "count(count_over_time({__name__=~\".+\"}[3h]))")];
                let url = reqwest::Url::parse_with_params(&format!("{base}/prometheus/api/v1/query"), query)?;
                let answer = client.get(url).send().await?.text().await?;
                println!("  {}", answer.chars().take(200).collect::<String>());
            }
            "flush" => flush(&client, &base).await?,
            "churn" => {
                for generation in 1..=2 {
                    let from = arguments.rounds + (generation - 1) * churn_rounds;
                    let first = first + from as i64 * STEP_MS;
                    send(&client, &url, arguments.series, generation, first, churn_rounds).await?;
                }
                flush(&client, &base).await?;
            }
            _ => return Err(format!("unknown step {step}").into()),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let rss = per_series(running.number("status", "VmRSS:")?);
        println!("  after {step:<9} {:>59} {rss:>13.0} {:>13.0}", "", per_series(running.number("status", "VmHWM:")?));
    }
    Ok(())
}

/// Cuts everything into blocks.
async fn flush(client: &reqwest::Client, base: &str) -> Result<(), Error> {
    let answer = client.post(format!("{base}/ingester/flush")).send().await?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("flush: {}", answer.text().await?).into()) }
}

/// Sends rounds of one sample per series.
async fn send(
    client: &reqwest::Client,
    url: &str,
    series: usize,
    generation: usize,
    first: i64,
    rounds: usize,
) -> Result<(), Error> {
    let starts: Vec<usize> = (0..series).step_by(SERIES_PER_REQUEST).collect();
    // Each connection owns a share of the series, so that every series' samples arrive in order.
    let senders = (0..CONNECTIONS).map(|connection| {
        let mut batches: Vec<Batch> = starts
            .iter()
            .skip(connection)
            .step_by(CONNECTIONS)
            .map(|&start| Batch::new(start..(start + SERIES_PER_REQUEST).min(series), generation))
            .collect();
        let (client, url) = (client.clone(), url.to_owned());
        tokio::spawn(async move {
            for round in 0..rounds {
                for batch in &mut batches {
                    let body = batch.body(first + round as i64 * STEP_MS)?;
                    let response = client
                        .post(&url)
                        .header("Content-Encoding", "snappy")
                        .header("Content-Type", "application/x-protobuf")
                        .header("X-Prometheus-Remote-Write-Version", "0.1.0")
                        .body(body)
                        .send()
                        .await?;
                    if !response.status().is_success() {
                        let status = response.status();
                        return Err(format!("{status}: {}", response.text().await?).into());
                    }
                }
            }
            Ok::<_, Error>(())
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await??;
    }
    Ok(())
}

async fn restart(running: &mut Running, client: &reqwest::Client, last: i64, what: &str) -> Result<(), Error> {
    let peak_before = running.number("status", "VmHWM:")?;
    let damaged = what.contains("damaged");
    running.restart(|data| if damaged { damage_snapshot(&data.join("wal")) } else { Ok(()) })?;
    let ready = running.ready(client, Duration::from_secs(600)).await?;
    let (cpu, peak) = (running.cpu()?, running.number("status", "VmHWM:")?);
    let time = format!("{}.{:03}", last / 1000, last % 1000);
    let query = format!("query=count(%7Bjob%3D~%22.%2B%22%7D)&time={time}");
    let url = format!("http://127.0.0.1:{}/prometheus/api/v1/query?{query}", running.server.port);
    let count = client.get(url).send().await?.text().await?;
    let count = count.rsplit("\"value\":[").next().unwrap_or_default().trim_end_matches(['}', ']']);
    println!(
        "{what}: ready after {:.2} s ({:.2} CPU-s), peak {} MiB, {:.2} times that before; series at the last round: {count}",
        ready.as_secs_f64(),
        cpu.as_secs_f64(),
        peak >> 10,
        peak as f64 / peak_before as f64,
    );
    Ok(())
}

/// Flips a bit in the middle of the newest snapshot.
fn damage_snapshot(wal: &Path) -> Result<(), Error> {
    let mut snapshots: Vec<PathBuf> =
        fs::read_dir(wal)?.map(|entry| Ok(entry?.path())).collect::<Result<_, Error>>()?;
    snapshots.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("snapshot-")));
    snapshots.sort();
    let Some(newest) = snapshots.last() else {
        println!("there is no snapshot");
        return Ok(());
    };
    let mut bytes = fs::read(newest)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs::write(newest, bytes)?)
}
