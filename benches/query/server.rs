//! The servers: how each is started on the data, asked, and measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Error;
use crate::client::Client;
use crate::data::{Times, remote_write};

/// A server that runs and can be asked.
pub struct Server {
    pub name: &'static str,
    child: Child,
    launch: Launch,
    dir: PathBuf,
    /// A query that has an answer as soon as the server knows its data.
    probe: Option<Query>,
    client: Client,
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
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is started, and where it answers.
#[derive(Clone)]
struct Launch {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    port: u16,
    ready_path: &'static str,
    query_path: &'static str,
    /// What every query says besides itself.
    extra: &'static str,
}

impl Launch {
    fn spawn(&self, dir: &Path) -> Result<Child, Error> {
        fs::create_dir_all(dir)?;
        let log = fs::File::create(dir.join("log"))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", self.program.display()))?;
        Ok(child)
    }

    fn start(self, dir: &Path, probe: Option<Query>) -> Result<Server, Error> {
        let (name, child, client) = (self.name, self.spawn(dir)?, Client::new(self.port));
        let mut server = Server { name, child, launch: self, dir: dir.to_owned(), probe, client };
        server.wait_until_ready()?;
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
pub fn skald(dir: &Path, blocks: &[PathBuf], expr: &str, at: i64) -> Result<Server, Error> {
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
    launch.start(&dir, Some(Query { expr: expr.to_owned(), start: at, end: at, step: 1000 }))
}

/// Prometheus with the blocks in its data directory; it may neither drop nor merge them.
pub fn prometheus(dir: &Path, blocks: &[PathBuf]) -> Result<Server, Error> {
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
    launch.start(&dir, None)
}

/// VictoriaMetrics, which gets the same float samples over remote_write.
pub fn victoria_metrics(dir: &Path, times: Times) -> Result<Server, Error> {
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
    let mut server = launch.start(&dir, None)?;
    let (begun, patience) = (Instant::now(), Duration::from_secs(60));
    let samples = remote_write(times, |body| {
        let answer = server.client.post("/api/v1/write", "content-encoding: snappy\r\n", &body, patience)?;
        if !(200..300).contains(&answer.status) {
            return Err(format!("{}: {}", answer.status, answer.text()).into());
        }
        Ok(())
    })?;
    // What was written last becomes visible, and parts on disk are merged meanwhile.
    server.client.get("/internal/force_flush", patience)?;
    println!("victoria-metrics: loaded {:.0} million samples in {:.0?}", samples as f64 / 1e6, begun.elapsed());
    Ok(server)
}

impl Server {
    /// Ends the server and starts it again on the same data.
    pub fn restart(&mut self) -> Result<(), Error> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        self.child = self.launch.spawn(&self.dir)?;
        self.client = Client::new(self.launch.port);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        let ready_path = self.launch.ready_path;
        while !self.client.get(ready_path, Duration::from_secs(10)).is_ok_and(|answer| answer.status == 200) {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(format!("{} did not become ready", self.name).into());
            }
            sleep(Duration::from_millis(50));
        }
        // Skald sees its blocks once the first bucket index is written and read.
        let Some(probe) = self.probe.clone() else { return Ok(()) };
        while !self.ask(&probe, Duration::from_secs(30), true).is_ok_and(|cost| cost.series > 0) {
            if begun.elapsed() > Duration::from_secs(150) {
                return Err(format!("{} did not find the blocks", self.name).into());
            }
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Sends the query and reads the whole answer. Without `count` the series of the answer are not counted.
    pub fn ask(&mut self, query: &Query, patience: Duration, count: bool) -> Result<Cost, Error> {
        let form: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", &query.expr)
            .append_pair("start", &format!("{:.3}", query.start as f64 / 1e3))
            .append_pair("end", &format!("{:.3}", query.end as f64 / 1e3))
            .append_pair("step", &format!("{:.3}", query.step as f64 / 1e3))
            .finish();
        self.measure(&format!("{}?{form}{}", self.launch.query_path, self.launch.extra), patience, count)
    }

    /// What an answer costs that takes no work: the floor under every figure.
    pub fn ask_ready(&mut self) -> Result<Cost, Error> {
        self.measure(self.launch.ready_path, Duration::from_secs(10), false)
    }

    fn measure(&mut self, path: &str, patience: Duration, count: bool) -> Result<Cost, Error> {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5")?;
        let before = self.memory("VmRSS:")?;
        let cpu = cpu_of(self.child.id())?;
        let pid = self.child.id();
        let answer = self.client.get(path, patience)?;
        let cpu = cpu_of(pid)?.saturating_sub(cpu);
        if answer.status != 200 {
            return Err(format!("{}: {}", answer.status, answer.text()).into());
        }
        let mut counter = SeriesCounter::default();
        answer.parts.iter().filter(|_| count).for_each(|part| counter.feed(part));
        let wall = answer.wall;
        let memory = self.memory("VmHWM:")?.saturating_sub(before);
        Ok(Cost { wall, cpu, memory, series: counter.series })
    }

    /// Waits until the server does nothing any more: what was given up or left behind is not to slow what comes next.
    pub fn settle(&self) -> Result<(), Error> {
        let pause = Duration::from_millis(200);
        let begun = Instant::now();
        loop {
            let before = cpu_of(self.child.id())?;
            sleep(pause);
            if cpu_of(self.child.id())?.saturating_sub(before) < pause / 20 || begun.elapsed() > Duration::from_secs(60)
            {
                return Ok(());
            }
        }
    }

    fn proc(&self, file: &str) -> Result<String, Error> {
        Ok(fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))?)
    }

    fn memory(&self, key: &str) -> Result<u64, Error> {
        let text = self.proc("status")?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or_else(|| format!("no {key}"))?;
        Ok(line.split_whitespace().next().unwrap_or_default().parse::<u64>()? * 1024)
    }
}

/// CPU time of all threads of a process that live, to the nanosecond: those of the servers measured here do not end.
fn cpu_of(pid: u32) -> Result<Duration, Error> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split_whitespace().next().map_or(Ok(0), str::parse::<u64>)?;
    }
    Ok(Duration::from_nanos(nanos))
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
