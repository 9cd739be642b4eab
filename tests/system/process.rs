//! A running `skald`, and other servers, as child processes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A port nobody listens on. Another process could take it before its user does; tests on one machine do not.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map(|a| a.port()).expect("a free port")
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
        let child = Command::new(program)
            .args(arguments)
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
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("terminate");
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The exit code once the process has ended by itself.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("wait").code()
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

/// A `skald` with `--target=all`, its directory and its flags.
pub struct Skald {
    pub dir: PathBuf,
    flags: Vec<String>,
    http_port: u16,
    grpc_port: u16,
    process: Option<Process>,
    client: reqwest::Client,
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
        // The client wants to know who would do TLS, which nobody does here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut skald = Skald {
            dir: dir.to_owned(),
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            http_port: free_port(),
            grpc_port: free_port(),
            process: None,
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
        };
        skald.start_again().await;
        skald
    }

    /// Starts the binary on the same directory, ports and flags, and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.spawn();
        self.wait_ready().await;
    }

    /// Starts the binary without waiting.
    pub fn spawn(&mut self) {
        let mut arguments = vec![
            format!("--data-dir={}", self.dir.join("data").display()),
            format!("--server.http-listen-address=127.0.0.1:{}", self.http_port),
            format!("--server.grpc-listen-address=127.0.0.1:{}", self.grpc_port),
        ];
        arguments.extend(self.flags.iter().cloned());
        self.process = Some(Process::start(env!("CARGO_BIN_EXE_skald"), &arguments, &self.dir.join("skald.log")));
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

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http_port)
    }

    /// The HTTP client, for requests of another shape.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Sends a snappy-compressed remote_write body.
    pub async fn push(&self, body: Vec<u8>) -> reqwest::Result<Answer> {
        let response = self
            .client
            .post(self.url("/api/v1/push"))
            .header("Content-Encoding", "snappy")
            .header("Content-Type", "application/x-protobuf")
            .header("X-Prometheus-Remote-Write-Version", "0.1.0")
            .body(body)
            .send()
            .await?;
        Ok(Answer { status: response.status().as_u16(), body: response.text().await? })
    }

    /// GETs a path with parameters.
    pub async fn get(&self, path: &str, params: &[(&str, &str)]) -> Answer {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        let response = self.client.get(self.url(&format!("{path}?{query}"))).send().await.expect("an answer");
        Answer { status: response.status().as_u16(), body: response.text().await.expect("a body") }
    }

    /// POSTs nothing to a path.
    pub async fn post(&self, path: &str) -> Answer {
        let response = self.client.post(self.url(path)).send().await.expect("an answer");
        Answer { status: response.status().as_u16(), body: response.text().await.expect("a body") }
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
}
