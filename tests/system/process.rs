//! A running `skald`, and other servers, as child processes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// A port nobody listens on, given out once. It lies below the range from which the system gives out ports by itself, so
/// that no outgoing connection takes it while its server is down.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id() % u32::from(PORTS)) as u16;
    loop {
        let port = FIRST + begin.wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Whether a program is installed; tests that need it say so and end.
pub fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()));
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// A child process that does not outlive the test.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program; its output goes to `log`.
    pub fn start(program: &str, arguments: &[String], log: &Path) -> Process {
        let log = std::fs::File::options().create(true).append(true).open(log).expect("a log file");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
        Process { child }
    }

    /// The process' pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// `kill -TERM`, and waits for the end; the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.ask_to_stop();
        self.wait()
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to stop, without waiting.
    pub fn ask_to_stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("terminate");
    }

    /// A line of `/proc/<pid>/status` in KiB, such as `VmRSS` or `VmHWM` (its greatest value so far).
    pub fn memory_kib(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status of the process");
        let found = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
        found.and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_else(|| panic!("no {line}: {status}"))
    }

    /// CPU time it has used so far.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("stat of the process");
        // Behind the name in parentheses, `utime` and `stime` are the 12th and 13th, in ticks of 10 ms.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `skald`, its directory and its flags.
pub struct Skald {
    pub dir: PathBuf,
    flags: Vec<String>,
    binary: String,
    http_port: u16,
    grpc_port: u16,
    gossip_port: u16,
    /// Flags that put it into a cluster.
    gossip: Vec<String>,
    process: Option<Process>,
    client: reqwest::Client,
    tenant: Option<String>,
}

/// An HTTP client that asks no proxy and, so that every answer is as it was sent, follows nothing.
pub fn http_client() -> reqwest::Client {
    // Every client wants to know how it would speak TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client")
}

/// What a request was answered with.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("not JSON: {e}: {}", self.body))
    }
}

impl Skald {
    /// Starts on a data directory with further flags and waits until it is ready.
    pub async fn start(dir: &Path, flags: &[&str]) -> Skald {
        let mut skald = Skald::new(dir, flags);
        skald.start_again().await;
        skald
    }

    /// One that does not run yet.
    pub fn new(dir: &Path, flags: &[&str]) -> Skald {
        std::fs::create_dir_all(dir).expect("a directory");
        Skald {
            dir: dir.to_owned(),
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            binary: env!("CARGO_BIN_EXE_skald").to_owned(),
            http_port: free_port(),
            grpc_port: free_port(),
            gossip_port: free_port(),
            gossip: Vec::new(),
            process: None,
            client: http_client(),
            tenant: None,
        }
    }

    /// Names the tenant of every request from now on.
    pub fn set_tenant(&mut self, tenant: Option<&str>) {
        self.tenant = tenant.map(str::to_owned);
    }

    /// Replaces the flags of the next start.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|f| (*f).to_owned()).collect();
    }

    /// Runs another build of the program from the next start on.
    pub fn set_binary(&mut self, binary: &str) {
        binary.clone_into(&mut self.binary);
    }

    /// Puts it into a cluster from the next start on, under this id; `join` is whom it meets first, if anybody.
    pub fn set_cluster(&mut self, id: &str, join: Option<&Skald>) {
        self.gossip =
            vec![format!("--memberlist.bind-address={}", self.gossip_address()), format!("--instance.id={id}")];
        self.gossip.extend(join.map(|join| format!("--memberlist.join-members={}", join.gossip_address())));
    }

    /// Where other processes gossip with it.
    pub fn gossip_address(&self) -> String {
        format!("127.0.0.1:{}", self.gossip_port)
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Starts the binary on the same directory, ports and flags, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.spawn();
        self.wait_ready().await;
    }

    /// Starts the binary without waiting.
    pub fn spawn(&mut self) {
        let mut arguments = vec![
            format!("--data-dir={}", self.data_dir().display()),
            format!("--server.http-listen-address=127.0.0.1:{}", self.http_port),
            format!("--server.grpc-listen-address=127.0.0.1:{}", self.grpc_port),
        ];
        arguments.extend(self.gossip.iter().chain(&self.flags).cloned());
        self.process = Some(Process::start(&self.binary, &arguments, &self.dir.join("skald.log")));
    }

    /// Waits for `/ready`.
    pub async fn wait_ready(&mut self) {
        let begun = Instant::now();
        loop {
            if let Ok(response) = self.client.get(self.url("/ready")).send().await
                && response.status().is_success()
            {
                return;
            }
            let running = self.process.as_mut().is_some_and(Process::is_running);
            let log = || std::fs::read_to_string(self.dir.join("skald.log")).unwrap_or_default();
            assert!(running, "skald ended: {}", log());
            assert!(begun.elapsed() < Duration::from_secs(30), "skald is not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("skald runs")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process().kill();
        self.process = None;
    }

    /// Asks it to stop; it must end with code 0.
    pub fn stop(&mut self) {
        assert_eq!(self.process().terminate(), Some(0));
        self.process = None;
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("skald.log")).unwrap_or_default()
    }

    /// Where it serves HTTP, `host:port`.
    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http_address())
    }

    /// The HTTP client, for requests of another shape.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// The request of this method to a path, as this tenant.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, self.url(path));
        match &self.tenant {
            Some(tenant) => request.header("X-Scope-OrgID", tenant),
            None => request,
        }
    }

    /// A remote_write request with Prometheus' headers.
    pub fn push_request(&self, body: Vec<u8>) -> reqwest::RequestBuilder {
        self.request(reqwest::Method::POST, "/api/v1/push")
            .header("Content-Encoding", "snappy")
            .header("Content-Type", "application/x-protobuf")
            .header("X-Prometheus-Remote-Write-Version", "0.1.0")
            .body(body)
    }

    /// Sends a snappy-compressed remote_write body.
    pub async fn push(&self, body: Vec<u8>) -> reqwest::Result<Answer> {
        answer_of(self.push_request(body)).await
    }

    /// GETs a path with parameters.
    pub async fn get(&self, path: &str, params: &[(&str, &str)]) -> Answer {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let separator = if query.is_empty() { "" } else { "?" };
        let request = self.request(reqwest::Method::GET, &format!("{path}{separator}{query}"));
        answer_of(request).await.expect("an answer")
    }

    /// POSTs nothing to a path.
    pub async fn post(&self, path: &str) -> Answer {
        answer_of(self.request(reqwest::Method::POST, path)).await.expect("an answer")
    }

    /// POSTs parameters as a form.
    pub async fn post_form(&self, path: &str, params: &[(&str, &str)]) -> Answer {
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let request = self.request(reqwest::Method::POST, path).body(form);
        answer_of(request.header("Content-Type", "application/x-www-form-urlencoded")).await.expect("an answer")
    }

    /// The data of a successful query API request.
    #[track_caller]
    pub fn data(answer: Answer) -> Value {
        assert_eq!(answer.status, 200, "{}", answer.body);
        let mut json = answer.json();
        assert_eq!(json["status"], "success", "{json}");
        json["data"].take()
    }

    /// The data of an instant query at `time` (seconds).
    pub async fn query(&self, query: &str, time: f64) -> Value {
        let time = time.to_string();
        Self::data(self.get("/prometheus/api/v1/query", &[("query", query), ("time", &time)]).await)
    }

    /// The sum of a metric of its `/metrics` over all its series.
    pub async fn metric(&self, name: &str) -> f64 {
        metric_sum(&self.get("/metrics", &[]).await.body, name)
    }
}

/// Sends a request and reads its answer.
pub async fn answer_of(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    Ok(Answer { status: response.status().as_u16(), body: response.text().await? })
}

/// The sum of all series of the metric `name` in a text exposition.
pub fn metric_sum(exposition: &str, name: &str) -> f64 {
    let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(f64::NAN);
    exposition.lines().filter(of_metric).map(value).sum()
}

/// Asks until `check` gives something; fails with `what` after `seconds`.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(what: &str, seconds: u64, mut check: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Unix time in milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}
