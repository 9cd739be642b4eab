//! The servers: how each is started on the data, asked, and measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::data::{Times, remote_write};

/// A server that runs and can be asked.
pub struct Server {
    pub name: &'static str,
    child: Child,
    base: String,
    query_path: &'static str,
    /// What every query says besides itself.
    extra: &'static str,
    client: reqwest::Client,
}

/// One query.
#[derive(Debug, Clone)]
pub struct Query {
    pub expr: String,
    pub start: i64,
    pub end: i64,
    pub step: i64,
}

/// What one query cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub wall: Duration,
    /// CPU time of the server, all threads.
    pub cpu: Duration,
    /// How far resident memory rose above what it was before, in bytes.
    pub memory: u64,
    /// Series of the answer, if they were counted.
    pub series: u64,
    /// Bytes of the answer.
    pub bytes: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is started, and where it answers.
struct Launch {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    port: u16,
    ready_path: &'static str,
    query_path: &'static str,
    extra: &'static str,
}

impl Launch {
    async fn start(self, dir: &Path) -> Result<Server, Error> {
        fs::create_dir_all(dir)?;
        let log = fs::File::create(dir.join("log"))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", self.program.display()))?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let base = format!("http://127.0.0.1:{}", self.port);
        let server = Server { name: self.name, child, base, query_path: self.query_path, extra: self.extra, client };
        let begun = Instant::now();
        let ready = format!("{}{}", server.base, self.ready_path);
        while !server.client.get(&ready).send().await.is_ok_and(|response| response.status().is_success()) {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(format!("{} did not become ready", server.name).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }
}

/// Puts the blocks into `target` without copying them.
fn link_blocks(blocks: &[PathBuf], target: &Path) -> Result<(), Error> {
    for block in blocks {
        let target = target.join(block.file_name().unwrap_or_default());
        fs::create_dir_all(target.join("chunks"))?;
        let segments =
            fs::read_dir(block.join("chunks"))?.map(|entry| Ok(Path::new("chunks").join(entry?.file_name())));
        let segments = segments.collect::<Result<Vec<_>, std::io::Error>>()?;
        for file in segments.into_iter().chain(["index", "tombstones", "meta.json"].map(PathBuf::from)) {
            fs::hard_link(block.join(&file), target.join(&file))?;
        }
    }
    Ok(())
}

/// Skald with the blocks in its bucket.
pub async fn skald(dir: &Path, blocks: &[PathBuf], expr: &str, at: i64) -> Result<Server, Error> {
    let dir = dir.join("skald");
    link_blocks(blocks, &dir.join("blocks/anonymous"))?;
    let launch = Launch {
        name: "skald",
        program: env!("CARGO_BIN_EXE_skald").into(),
        arguments: vec![
            format!("--data-dir={}", dir.display()),
            "--server.http-listen-address=127.0.0.1:19509".into(),
            "--server.grpc-listen-address=127.0.0.1:19595".into(),
            "--querier.max-samples=none".into(),
            "--querier.query-memory-limit=none".into(),
        ],
        port: 19509,
        ready_path: "/ready",
        query_path: "/prometheus/api/v1/query_range",
        extra: "",
    };
    let server = launch.start(&dir).await?;
    // The blocks are seen once the first bucket index is written and read.
    let begun = Instant::now();
    let query = Query { expr: expr.to_owned(), start: at, end: at, step: 1000 };
    while !server.ask(&query, Duration::from_secs(30), true).await.is_ok_and(|cost| cost.series > 0) {
        if begun.elapsed() > Duration::from_secs(150) {
            return Err("skald did not find the blocks".into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(server)
}

/// Prometheus with the blocks in its data directory; it may neither drop nor merge them.
pub async fn prometheus(dir: &Path, blocks: &[PathBuf]) -> Result<Server, Error> {
    let dir = dir.join("prometheus");
    link_blocks(blocks, &dir.join("data"))?;
    let config = dir.join("prometheus.yml");
    fs::write(&config, "global: {}\n")?;
    let launch = Launch {
        name: "prometheus",
        program: "prometheus".into(),
        arguments: vec![
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            "--storage.tsdb.retention.time=10y".into(),
            "--storage.tsdb.min-block-duration=2h".into(),
            "--storage.tsdb.max-block-duration=2h".into(),
            "--query.max-samples=2000000000".into(),
            "--enable-feature=native-histograms".into(),
            "--web.listen-address=127.0.0.1:19510".into(),
        ],
        port: 19510,
        ready_path: "/-/ready",
        query_path: "/api/v1/query_range",
        extra: "",
    };
    launch.start(&dir).await
}

/// VictoriaMetrics, which gets the same float samples over remote_write.
pub async fn victoria_metrics(dir: &Path, times: Times) -> Result<Server, Error> {
    let dir = dir.join("victoria-metrics");
    let launch = Launch {
        name: "victoria-metrics",
        program: "victoria-metrics".into(),
        arguments: vec![
            format!("-storageDataPath={}", dir.display()),
            "-httpListenAddr=127.0.0.1:19511".into(),
            "-retentionPeriod=10y".into(),
        ],
        port: 19511,
        ready_path: "/health",
        query_path: "/api/v1/query_range",
        // Answers of earlier rounds do not count.
        extra: "&nocache=1",
    };
    let server = launch.start(&dir).await?;
    let begun = Instant::now();
    let url = format!("{}/api/v1/write", server.base);
    let samples = remote_write(times, async |body| {
        let request = server.client.post(&url).header("Content-Encoding", "snappy").body(body);
        let response = request.send().await?;
        if !response.status().is_success() {
            return Err(format!("{}: {}", response.status(), response.text().await?).into());
        }
        Ok(())
    })
    .await?;
    // What was written last becomes visible, and parts on disk are merged meanwhile.
    server.client.get(format!("{}/internal/force_flush", server.base)).send().await?;
    println!("victoria-metrics: loaded {:.0} million samples in {:.0?}", samples as f64 / 1e6, begun.elapsed());
    Ok(server)
}

impl Server {
    /// Sends the query and reads the whole answer. Without `count` the series of the answer are not counted.
    pub async fn ask(&self, query: &Query, patience: Duration, count: bool) -> Result<Cost, Error> {
        let form: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", &query.expr)
            .append_pair("start", &format!("{:.3}", query.start as f64 / 1e3))
            .append_pair("end", &format!("{:.3}", query.end as f64 / 1e3))
            .append_pair("step", &format!("{:.3}", query.step as f64 / 1e3))
            .finish();
        let url = format!("{}{}?{form}{}", self.base, self.query_path, self.extra);
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?;
        let before = self.memory("VmRSS:")?;
        let cpu = self.cpu()?;
        let begun = Instant::now();
        let mut response = self.client.get(url).timeout(patience).send().await?;
        if !response.status().is_success() {
            return Err(format!("{}: {}", response.status(), response.text().await?).into());
        }
        let mut cost = Cost::default();
        let mut counter = SeriesCounter::default();
        while let Some(part) = response.chunk().await? {
            cost.bytes += part.len() as u64;
            if count {
                counter.feed(&part);
            }
        }
        cost.wall = begun.elapsed();
        cost.cpu = self.cpu()?.saturating_sub(cpu);
        cost.memory = self.memory("VmHWM:")?.saturating_sub(before);
        cost.series = counter.series;
        Ok(cost)
    }

    /// Waits until the server does nothing any more: what was given up or left behind is not to slow what comes next.
    pub async fn settle(&self) -> Result<(), Error> {
        let pause = Duration::from_millis(200);
        let begun = Instant::now();
        loop {
            let before = self.cpu()?;
            tokio::time::sleep(pause).await;
            if self.cpu()?.saturating_sub(before) < pause / 20 || begun.elapsed() > Duration::from_secs(60) {
                return Ok(());
            }
        }
    }

    fn proc(&self, file: &str) -> Result<String, Error> {
        Ok(fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?)
    }

    /// CPU time of all threads that live, to the nanosecond: those of the servers measured here do not end.
    fn cpu(&self) -> Result<Duration, Error> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split_whitespace().next().map_or(Ok(0), str::parse::<u64>)?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    fn memory(&self, key: &str) -> Result<u64, Error> {
        let text = self.proc("status")?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or_else(|| format!("no {key}"))?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse::<u64>()? * 1024)
    }
}

/// Counts `"metric"` in an answer that comes in parts; no label of the data is called so.
#[derive(Default)]
struct SeriesCounter {
    matched: usize,
    series: u64,
}

impl SeriesCounter {
    fn feed(&mut self, part: &[u8]) {
        const KEY: &[u8] = b"\"metric\"";
        for &byte in part {
            self.matched = match byte {
                _ if byte == KEY[self.matched] => self.matched + 1,
                b'"' => 1,
                _ => 0,
            };
            if self.matched == KEY.len() {
                self.series += 1;
                self.matched = 0;
            }
        }
    }
}
