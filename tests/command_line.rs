//! The binary as a user starts it: what it refuses, what it says, how it stops.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// The binary with a clean environment of its own.
fn skald(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skald"));
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn refused(arguments: &[&str], expected: &str) {
    let output = skald(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}: {text}");
    assert!(text.contains(expected), "{arguments:?}: {text}");
}

/// A running process, killed when dropped.
struct Running {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    http: String,
}

impl Running {
    fn start(data_dir: &Path, more: &[&str]) -> Running {
        let data_dir = format!("--data-dir={}", data_dir.display());
        let free_ports = ["--server.http-listen-address=127.0.0.1:0", "--server.grpc-listen-address=127.0.0.1:0"];
        let arguments = [&[data_dir.as_str(), "--log.format=json"], free_ports.as_slice(), more].concat();
        let mut child = skald(&arguments).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut running = Running { child, log, http: String::new() };
        let mut before = String::new();
        while running.http.is_empty() {
            let mut line = String::new();
            assert!(running.log.read_line(&mut line).unwrap() > 0, "ended early: {before}");
            let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            if entry["message"] == "serving HTTP" {
                running.http = entry["address"].as_str().unwrap().to_owned();
            }
            before.push_str(&line);
        }
        running
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: skald\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Asks it to stop and waits; returns how it ended and the rest of its log.
    fn stop(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn wrong_settings_end_the_start_with_a_hint() {
    refused(&["--data-dri=x"], "skald: flag --data-dri: there is no such flag, did you mean `--data-dir`?");
    refused(&["--config.file=/nowhere.yaml"], "cannot read the configuration file /nowhere.yaml");
    refused(&["--target=ingestor"], "did you mean `ingester`?");
    refused(&["serve"], "unknown command `serve`");
    let output = skald(&[]).env("SKALD_DATA_DRI", "x").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `SKALD_DATA_DIR`?"));
}

#[test]
fn an_unwritable_data_directory_is_named() {
    refused(&["--data-dir=/proc/skald"], "cannot use the data directory /proc/skald");
    refused(&["--data-dir=/dev/null"], "cannot use the data directory /dev/null");
}

#[test]
fn a_data_directory_has_one_process_and_a_stop_frees_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::start(dir.path(), &["--multitenancy-enabled"]);
    let pid = first.child.id();
    refused(&[&format!("--data-dir={}", dir.path().display())], &format!("is in use by process {pid}"));

    assert!(first.get("/services").starts_with("HTTP/1.1 200 "));
    assert!(first.get("/metrics").contains("\nprocess_resident_memory_bytes "));
    let changed = first.get("/config?mode=diff");
    assert!(changed.contains("\nmultitenancy_enabled: true\n"), "{changed}");

    let (status, log) = first.stop();
    assert!(status.success(), "{status}: {log}");
    assert!(log.contains("\"message\":\"stopped\""), "{log}");
    Running::start(dir.path(), &[]);
}

#[test]
fn an_address_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::start(&dir.path().join("one"), &[]);
    let data_dir = format!("--data-dir={}", dir.path().join("two").display());
    refused(
        &[
            &data_dir,
            &format!("--server.http-listen-address={}", first.http),
            "--server.grpc-listen-address=127.0.0.1:0",
        ],
        &format!("cannot listen on {}", first.http),
    );
}
