//! How long does a question about labels take among a million series, and what does it cost?
//!
//! Loads `series` series of 10 labels (metric name, job, instance, pod, path, a container id that no other series has …),
//! three rounds of samples each, over remote_write into Skald and into Debian's `victoria-metrics`, and asks both the same
//! questions in turns, over HTTP: label names, label values, series, and instant queries that select by every kind of matcher.
//! Printed are p50 and p99 of the time from the request's first byte to the answer's last (ms), the server's CPU time per
//! request (ms), the length of the answers, and ratios (victoria-metrics' over Skald's: above 1 Skald is better). "Above"
//! means slower than victoria-metrics in p50 or p99 by more than 15 %, or below 2 ms by more than 0.5 ms.
//!
//! Where a question has something to vary it is another one each time, so that caches of answers and of series found are of
//! no use to either; and `nocache=1` keeps victoria-metrics from keeping results of instant queries. Its limits are raised
//! so that it answers about a million series and values. Data goes to disk and is merged before the first question.
//!
//! ```text
//! cargo bench --bench labels -- [--series 1000000] [--repeat 100] [--seconds 10] [--servers skald,victoria-metrics (or prometheus)]
//!     [--only PATTERN: questions whose name has it] [--hold yes: waits at the end, to look at the servers]
//! ```
//! `--seconds` bounds what one question takes: slow ones are asked less often, ten times at least.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures the real machine")]

#[path = "query/client.rs"]
mod client;
mod load;

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::client::Client;
use self::load::Error;
use self::load::send::{CONNECTIONS, STEP_MS, Senders, encode_labels};
use self::load::server::{Running, Server};

const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);
const LEAST_REPEATS: usize = 10;

struct Arguments {
    series: usize,
    repeat: usize,
    budget: Duration,
    servers: Vec<String>,
    only: String,
    hold: bool,
}

fn arguments() -> Result<Arguments, Error> {
    let mut arguments = Arguments {
        series: 1_000_000,
        repeat: 100,
        budget: Duration::from_secs(10),
        servers: vec!["skald".into(), "victoria-metrics".into()],
        only: String::new(),
        hold: false,
    };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--series" => arguments.series = value.parse()?,
            "--repeat" => arguments.repeat = value.parse()?,
            "--seconds" => arguments.budget = Duration::from_secs(value.parse()?),
            "--servers" => arguments.servers = value.split(',').map(str::to_owned).collect(),
            "--only" => arguments.only = value,
            "--hold" => arguments.hold = value == "yes",
            _ => return Err(format!("unknown argument {word}").into()),
        }
    }
    Ok(arguments)
}

/// The encoded labels of series `i`: 100 metrics and 20 jobs on every 10th pod, 10,000 instances and 100,000 pods among
/// a million series, and an id that only this series has.
fn labels(i: usize) -> Vec<u8> {
    let (pod, instance) = (i / 10, i / 100);
    encode_labels(&[
        ("__name__", format!("container_network_receive_packets_{:02}_total", i % 100)),
        ("cluster", format!("production-eu-west-{}", instance % 4)),
        ("id", format!("/kubepods/burstable/{:08x}/{i:07}", i * 2_654_435_761 % 0xFFFF_FFFF)),
        ("instance", format!("10.{}.{}.{}:10250", instance >> 16, (instance >> 8) & 255, instance & 255)),
        ("job", format!("kubernetes/team-{:02}", instance % 20)),
        ("namespace", format!("team-namespace-{}", pod % 250)),
        ("node", format!("ip-10-0-{}-{}.eu-west-1.compute.internal", instance / 64 % 16, instance % 64)),
        ("path", format!("/api/v1/resource-{:03}", pod % 500)),
        ("pod", format!("application-{:08x}-{pod:05}", pod * 2_654_435_761 % 0xFFFF_FFFF)),
        ("service", "prometheus-kubelet".to_owned()),
    ])
}

/// A question: its path below the API, and its parameters. In their values `NN` is a number of two digits, `NNN` one of
/// three and so on, another one each time.
struct Question {
    name: &'static str,
    path: &'static str,
    parameters: &'static [(&'static str, &'static str)],
}

const fn question(
    name: &'static str,
    path: &'static str,
    parameters: &'static [(&'static str, &'static str)],
) -> Question {
    Question { name, path, parameters }
}

const QUESTIONS: &[Question] = &[
    question("names", "labels", &[]),
    question("names by prefix", "labels", &[("match[]", r#"{pod=~"application-NN.*"}"#)]),
    question("names by metric", "labels", &[("match[]", "container_network_receive_packets_NN_total")]),
    question("values, 4", "label/cluster/values", &[]),
    question("values, 100", "label/__name__/values", &[]),
    question("values, 500", "label/path/values", &[]),
    question("values, 10,000", "label/instance/values", &[]),
    question("values, 1,000,000", "label/id/values", &[]),
    question("values, 10,000, limit 100", "label/instance/values", &[("limit", "100")]),
    question("values, 1,000,000, limit 100", "label/id/values", &[("limit", "100")]),
    question("values by equality", "label/pod/values", &[("match[]", r#"{path="/api/v1/resource-NNN"}"#)]),
    question("values by metric", "label/instance/values", &[("match[]", "container_network_receive_packets_NN_total")]),
    question("values by prefix", "label/pod/values", &[("match[]", r#"{pod=~"application-NN.*"}"#)]),
    question("values by infix", "label/id/values", &[("match[]", r#"{id=~".*NNNNN.*"}"#)]),
    question("values by infix, limit 100", "label/id/values", &[("match[]", r#"{id=~".*NNN.*"}"#), ("limit", "100")]),
    question("series, 10 by glob", "series", &[("match[]", r#"{pod=~"application-.*-NNNNN"}"#)]),
    question("series, 1 by suffix", "series", &[("match[]", r#"{id=~".+/0NNNNNN"}"#)]),
    question(
        "series, 1,000 by prefixes",
        "series",
        &[("match[]", r#"{pod=~"application-1NN.*|application-2NN.*|application-3NN.*|application-4NN.*"}"#)],
    ),
    question("series, 1,000 by infix", "series", &[("match[]", r#"{id=~".*/0NNN.*"}"#)]),
    question("series, 10,000 by glob", "series", &[("match[]", r#"{__name__=~"container_.+_NN_.+"}"#)]),
    question(
        "series, 10,000, limit 100",
        "series",
        &[("match[]", r#"{__name__=~"container_.+_NN_.+"}"#), ("limit", "100")],
    ),
    question("count, metric", "query", &[("query", "count by (job) (container_network_receive_packets_NN_total)")]),
    question("count, equality", "query", &[("query", r#"count by (job) ({path="/api/v1/resource-NNN"})"#)]),
    question("count, prefix", "query", &[("query", r#"count by (job) ({pod=~"application-NN.*"})"#)]),
    question("count, suffix", "query", &[("query", r#"count by (job) ({pod=~".*NNN"})"#)]),
    question("count, infix", "query", &[("query", r#"count by (job) ({id=~".*NNNN.*"})"#)]),
    question("count, classes", "query", &[("query", r#"count by (job) ({id=~".+/[0-9a-f]+/0NN[0-9]+"})"#)]),
    question(
        "count, negative",
        "query",
        &[(
            "query",
            r#"count by (job) ({__name__="container_network_receive_packets_NN_total",job!="kubernetes/team-07"})"#,
        )],
    ),
    question(
        "count, negative regex",
        "query",
        &[(
            "query",
            r#"count by (job) ({__name__="container_network_receive_packets_NN_total",pod!~".*7.*",id!~".*00.*"})"#,
        )],
    ),
    question("count of 50,000", "query", &[("query", r#"count by (job) ({job="kubernetes/team-NN"})"#)]),
    question("count of all", "query", &[("query", r#"count({__name__=~".+"})"#)]),
    question("count of all by name", "query", &[("query", r#"count by (__name__) ({__name__=~".+"})"#)]),
];

/// xorshift64*
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    }
}

/// Text with every run of `N` replaced by a number of so many digits. Jobs have numbers below 20, paths below
/// 500.
fn vary(text: &str, random: &mut Random) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("NN") {
        let digits = rest[at..].bytes().take_while(|b| *b == b'N').count();
        out.push_str(&rest[..at]);
        let below = match digits {
            2 if out.ends_with("team-") => 20,
            2 => 100,
            3 if out.ends_with("resource-") => 500,
            _ => 10_u64.pow(digits as u32),
        };
        let number = random.next() % below;
        out.push_str(&format!("{number:0digits$}"));
        rest = &rest[at + digits..];
    }
    out + rest
}

/// A server that has the series.
struct Asked {
    running: Running,
    client: Client,
    /// What every question says besides itself.
    extra: &'static [(&'static str, &'static str)],
}

/// What was measured of one question.
#[derive(Default)]
struct Figures {
    walls: Vec<Duration>,
    cpu: Duration,
    bytes: usize,
    /// What went wrong, if it did.
    failed: Option<String>,
}

impl Figures {
    fn percentile(&self, of_100: usize) -> Duration {
        let mut walls = self.walls.clone();
        walls.sort_unstable();
        // The least of the times that so many of a hundred do not exceed.
        let rank = (walls.len() * of_100).div_ceil(100).max(1);
        walls.get(rank - 1).copied().unwrap_or_default()
    }

    fn cpu(&self) -> Duration {
        self.cpu / self.walls.len().max(1) as u32
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let dir = tempfile::tempdir()?;
    // The client wants to know who would do TLS, which nobody does here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let first = now - ROUNDS as i64 * STEP_MS;
    let mut servers = Vec::new();
    for name in &arguments.servers {
        match start(name, dir.path(), &arguments, first).await {
            Ok(server) => servers.push(server),
            Err(error) => println!("{name} not measured: {error}"),
        }
    }
    let last = first + (ROUNDS as i64 - 1) * STEP_MS;
    println!(
        "\n{:<30} {:>5} | {:>8} {:>8} {:>8} {:>9} | {:>8} {:>8} {:>8} {:>9} | {:>6} {:>6} {:>6}",
        "question",
        "times",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "bytes",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "bytes",
        "p50",
        "p99",
        "CPU"
    );
    let mut above = 0;
    for question in QUESTIONS.iter().filter(|question| question.name.contains(&arguments.only)) {
        let figures = tokio::task::block_in_place(|| measure(&mut servers, question, &arguments, last));
        above += usize::from(print(question, &figures));
    }
    println!("{above} above");
    if arguments.hold {
        for server in &servers {
            println!(
                "{} has pid {} and port {}",
                server.running.server.name,
                server.running.child.id(),
                server.running.server.port
            );
        }
        std::io::stdin().read_line(&mut String::new())?;
    }
    Ok(())
}

/// Starts a server and sends it the series.
async fn start(name: &str, dir: &std::path::Path, arguments: &Arguments, first: i64) -> Result<Asked, Error> {
    let mut server = Server::named(name, dir)?;
    let is_victoria_metrics = name == "victoria-metrics";
    if is_victoria_metrics {
        for limit in ["maxTagValues", "maxSeries", "maxUniqueTimeseries"] {
            server.arguments.push(format!("-search.{limit}=10000000"));
        }
    }
    let client = reqwest::Client::builder().pool_max_idle_per_host(CONNECTIONS).no_proxy().build()?;
    let running = server.start()?;
    running.ready(&client, Duration::from_secs(30)).await?;
    let mut senders = Senders::new(arguments.series, first, labels);
    senders.prepare()?;
    let begun = Instant::now();
    senders.send(&client, &[running.server.push_url()], ROUNDS).await?;
    let took = begun.elapsed();
    let mut asked = Asked {
        client: Client::new(running.server.port),
        running,
        extra: if is_victoria_metrics { &[("nocache", "1")] } else { &[] },
    };
    if is_victoria_metrics {
        // What was written last becomes visible.
        asked.client.post("/internal/force_flush", "", &[], PATIENCE)?;
    }
    asked.settle().await?;
    println!(
        "{name}: {} series x {ROUNDS} in {:.1} s, {:.1} CPU-s, {} MiB resident; {}",
        arguments.series,
        took.as_secs_f64(),
        asked.running.cpu()?.as_secs_f64(),
        asked.running.number("status", "VmRSS:")? >> 10,
        asked.running.server.sync,
    );
    Ok(asked)
}

impl Asked {
    /// Waits until the server does nothing any more: merges and snapshots are not to slow what is measured.
    async fn settle(&self) -> Result<(), Error> {
        let pause = Duration::from_secs(1);
        let begun = Instant::now();
        loop {
            let before = self.cpu_of_threads()?;
            tokio::time::sleep(pause).await;
            if self.cpu_of_threads()?.saturating_sub(before) < pause / 20 || begun.elapsed() > PATIENCE {
                return Ok(());
            }
        }
    }

    /// CPU time of all threads that live, to the nanosecond: those of the servers measured here do not end.
    fn cpu_of_threads(&self) -> Result<Duration, Error> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.running.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanos += text.split_whitespace().next().map_or(Ok(0), str::parse::<u64>)?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    fn ask(&mut self, path: &str, parameters: &[(&str, String)], figures: &mut Figures) -> Result<(), Error> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(parameters).extend_pairs(self.extra);
        let path = format!("{}/{path}?{}", self.running.server.api_path, form.finish());
        let before = self.cpu_of_threads()?;
        let answer = self.client.get(&path, PATIENCE)?;
        if answer.status != 200 {
            return Err(answer.text().chars().take(120).collect::<String>().into());
        }
        let (wall, bytes) = (answer.wall, answer.parts.iter().map(|part| part.len()).sum());
        figures.cpu += self.cpu_of_threads()?.saturating_sub(before);
        figures.walls.push(wall);
        figures.bytes = bytes;
        Ok(())
    }
}

/// Asks the servers in turns, the same each time.
fn measure(servers: &mut [Asked], question: &Question, arguments: &Arguments, last: i64) -> Vec<Figures> {
    let mut figures: Vec<Figures> = servers.iter().map(|_| Figures::default()).collect();
    let mut random = Random(0x5EED);
    let begun = Instant::now();
    // The first one is asked for nothing: what it compiles or opens is there afterwards.
    for round in 0..=arguments.repeat {
        if round > LEAST_REPEATS && begun.elapsed() > arguments.budget {
            break;
        }
        let mut parameters: Vec<(&str, String)> =
            question.parameters.iter().map(|(name, text)| (*name, vary(text, &mut random))).collect();
        let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
        if question.path == "query" {
            parameters.push(("time", seconds(last)));
        } else {
            parameters.extend([("start", seconds(last - 300_000)), ("end", seconds(last))]);
        }
        for (server, figures) in servers.iter_mut().zip(&mut figures) {
            if figures.failed.is_none()
                && let Err(error) = server.ask(question.path, &parameters, figures)
            {
                figures.failed = Some(error.to_string());
            }
        }
        if round == 0 {
            for figures in &mut figures {
                *figures = Figures { failed: figures.failed.take(), ..Figures::default() };
            }
        }
    }
    figures
}

/// Prints a line; whether the bar is missed.
fn print(question: &Question, figures: &[Figures]) -> bool {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut line = format!("{:<30} {:>5}", question.name, figures.iter().map(|f| f.walls.len()).max().unwrap_or(0));
    for one in figures {
        let (p50, p99, cpu) = (ms(one.percentile(50)), ms(one.percentile(99)), ms(one.cpu()));
        line += &format!(" | {p50:>8.2} {p99:>8.2} {cpu:>8.2} {:>9}", one.bytes);
    }
    let mut is_above = false;
    if let [ours, theirs] = figures {
        let ratio = |ours: Duration, theirs: Duration| theirs.as_secs_f64() / ours.as_secs_f64();
        is_above = [50, 99].iter().any(|of_100| {
            let (ours, theirs) = (ms(ours.percentile(*of_100)), ms(theirs.percentile(*of_100)));
            ours > if theirs < 2.0 { theirs + 0.5 } else { theirs * 1.15 }
        });
        line += &format!(
            " | {:>6.2} {:>6.2} {:>6.2} {}",
            ratio(ours.percentile(50), theirs.percentile(50)),
            ratio(ours.percentile(99), theirs.percentile(99)),
            ratio(ours.cpu(), theirs.cpu()),
            if is_above { "above" } else { "" },
        );
    }
    for failed in figures.iter().filter_map(|one| one.failed.as_ref()) {
        line += &format!(" failed: {failed}");
    }
    println!("{line}");
    is_above
}
