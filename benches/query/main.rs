//! How long does a query take from HTTP request to the answer's last byte, and what does it cost?
//!
//! The same blocks are queried in Skald and in Debian's `prometheus`; `victoria-metrics` gets the same float samples over
//! remote_write for the aggregations it answers alike. Data, with a fixed seed: counters `a_X`, `b_X`, classic histograms
//! `h_X` and native histograms `nh_X` of X = 1, 100 and 2,000 series, a sample every 10 s, in blocks of a day; and
//! 100,000 counters of 240 samples. Each workload is warmed up, then asked in turns, server after server; printed are
//! medians of wall time (ms) and server CPU time (ms), the largest rise of resident memory (MiB) in any run, and ratios.
//! Each section begins with servers just started, and a server rests before another one is asked. Ratios are
//! Prometheus' over Skald's: above 1 Skald is better. Slower than Prometheus means by more than 15 %, or below 2 ms by
//! more than 0.5 ms. A workload that Prometheus does not answer within `--patience` seconds is not compared.
//!
//! ```text
//! cargo bench --bench query -- [--rounds 5] [--servers skald,prometheus,victoria-metrics] [--only "sum,topk 100 1000"]
//!     [--patience 20] [--data DIR: keep the blocks there] [--quick yes]
//! ```
//! `--only` takes patterns with commas between: each the beginning of `NAME SERIES STEPS`.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures the real machine")]

mod client;
mod data;
mod server;
mod workload;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::data::{Times, write_blocks};
use self::server::{Cost, Server};
use self::workload::{Section, Workload, workloads};

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Arguments {
    rounds: usize,
    servers: Vec<String>,
    only: Vec<String>,
    patience: Duration,
    data: Option<PathBuf>,
    quick: bool,
}

fn arguments() -> Result<Arguments, Error> {
    let mut arguments = Arguments {
        rounds: 5,
        servers: vec!["skald".into(), "prometheus".into(), "victoria-metrics".into()],
        only: Vec::new(),
        patience: Duration::from_secs(20),
        data: None,
        quick: false,
    };
    let words = |value: &str| value.split(',').map(|word| word.trim_start().to_owned()).collect();
    let mut all = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = all.next() {
        let value = all.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--rounds" => arguments.rounds = value.parse()?,
            "--servers" => arguments.servers = words(&value),
            "--only" => arguments.only = words(&value),
            "--patience" => arguments.patience = Duration::from_secs(value.parse()?),
            "--data" => arguments.data = Some(value.into()),
            "--quick" => arguments.quick = value == "yes",
            _ => return Err(format!("unknown argument {word}").into()),
        }
    }
    Ok(arguments)
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let scratch = match &arguments.data {
        // Hard links do not leave a file system.
        Some(data) => std::fs::create_dir_all(data).and_then(|()| tempfile::tempdir_in(data))?,
        None => tempfile::tempdir()?,
    };
    let times = Times::before(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64);
    let begun = Instant::now();
    let blocks = arguments.data.clone().unwrap_or_else(|| scratch.path().to_owned()).join("blocks");
    let blocks = write_blocks(&blocks, times)?;
    println!("{} blocks made in {:.0?}", blocks.len(), begun.elapsed());

    let mut servers = Vec::new();
    for name in &arguments.servers {
        let server = match name.as_str() {
            "skald" => server::skald(scratch.path(), &blocks, "a_1", times.end - data::INTERVAL),
            "prometheus" => server::prometheus(scratch.path(), &blocks),
            "victoria-metrics" => server::victoria_metrics(scratch.path(), times),
            _ => return Err(format!("no server is called {name}").into()),
        };
        match server {
            Ok(server) => servers.push(server),
            Err(error) => println!("{name} is left out: {error}"),
        }
    }
    floors(&mut servers)?;
    let mut table = Table::default();
    table.header();
    let mut section = Section::Family;
    for workload in workloads(times, arguments.quick) {
        let label = format!("{} {} {}", workload.name, workload.series, workload.steps);
        if arguments.only.is_empty() || arguments.only.iter().any(|only| label.starts_with(only)) {
            if workload.section != section {
                section = workload.section;
                // What earlier queries have left of memory would hide what these need.
                servers.iter_mut().try_for_each(Server::restart)?;
            }
            let row = measure(&mut servers, &workload, &arguments);
            table.add(&workload, &label, row);
        }
    }
    table.summary();
    Ok(())
}

/// What a server's runs of a workload came to.
type Outcome = Result<Cost, String>;

/// One workload, by server.
#[derive(Default)]
struct Row {
    skald: Option<Outcome>,
    prometheus: Option<Outcome>,
    victoria_metrics: Option<Outcome>,
}

/// Prints what an answer that takes no work costs in each server: what a query costs at least.
fn floors(servers: &mut [Server]) -> Result<(), Error> {
    for server in servers {
        let costs = (0..51).map(|_| server.ask_ready()).collect::<Result<Vec<_>, _>>()?;
        let floor = typical(&costs);
        println!(
            "{}: asking whether it is ready takes {:.3} ms, {:.3} ms CPU",
            server.name,
            ms(floor.wall),
            ms(floor.cpu)
        );
    }
    Ok(())
}

fn measure(servers: &mut [Server], workload: &Workload, arguments: &Arguments) -> Row {
    let mut runs: Vec<(&mut Server, Result<Vec<Cost>, String>)> = Vec::new();
    for server in servers.iter_mut().filter(|server| workload.common || server.name != "victoria-metrics") {
        let first = server.ask(&workload.query, arguments.patience, true);
        settle(server);
        runs.push((server, first.map(|cost| vec![cost]).map_err(|e| e.to_string())));
    }
    // A tiny query is asked often, so that a median means something.
    let slowest = runs.iter().filter_map(|(_, run)| run.as_ref().ok()).map(|costs| costs[0].wall).max();
    let times = if slowest.unwrap_or_default() < Duration::from_millis(20) { 10 } else { 1 };
    for _ in 0..arguments.rounds {
        for (server, run) in &mut runs {
            for _ in 0..times {
                let Ok(costs) = run else { break };
                match server.ask(&workload.query, 2 * arguments.patience, false) {
                    Ok(cost) => costs.push(cost),
                    Err(error) => *run = Err(error.to_string()),
                }
            }
            if times == 1 {
                settle(server);
            }
        }
    }
    let mut row = Row::default();
    for (server, run) in runs {
        let outcome = Some(run.map(|costs| typical(&costs)));
        match server.name {
            "skald" => row.skald = outcome,
            "prometheus" => row.prometheus = outcome,
            _ => row.victoria_metrics = outcome,
        }
    }
    row
}

/// Lets the server end what a query has left to it, a collection of garbage say, before another one is measured.
fn settle(server: &Server) {
    if let Err(error) = server.settle() {
        println!("{}: {error}", server.name);
    }
}

/// Medians of the times, the largest memory; the first run only warmed up, and counted the series.
fn typical(costs: &[Cost]) -> Cost {
    let median = |of: fn(&Cost) -> Duration| {
        let mut all: Vec<Duration> = costs.iter().skip(1).map(of).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    Cost {
        wall: median(|cost| cost.wall),
        cpu: median(|cost| cost.cpu),
        memory: costs.iter().map(|cost| cost.memory).max().unwrap_or_default(),
        ..costs[0]
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Prometheus' cost over Skald's; what cannot be told from nothing counts as `least`.
fn ratio(prometheus: f64, skald: f64, least: f64) -> f64 {
    prometheus.max(least) / skald.max(least)
}

/// By more than 15 %, or below 2 ms by more than half a millisecond.
fn is_slower(skald: Duration, than: Duration) -> bool {
    let allowed = if than < Duration::from_millis(2) { than + Duration::from_micros(500) } else { than.mul_f64(1.15) };
    skald > allowed
}

#[derive(Default)]
struct Table {
    /// Wall ratios of the family's workloads.
    ratios: Vec<f64>,
    slower: Vec<String>,
    skipped: Vec<String>,
    different: Vec<String>,
    many: Vec<String>,
}

impl Table {
    fn header(&self) {
        println!(
            "{:<36} {:>9} {:>9} {:>7} {:>9} {:>9} {:>7} {:>8} {:>8} {:>7} {:>9}",
            "workload series steps",
            "wall",
            "prom",
            "ratio",
            "CPU",
            "prom",
            "ratio",
            "memory",
            "prom",
            "ratio",
            "vm wall"
        );
    }

    fn add(&mut self, workload: &Workload, label: &str, row: Row) {
        let (skald, prometheus) = match (row.skald, row.prometheus) {
            (Some(Ok(skald)), Some(Ok(prometheus))) => (skald, prometheus),
            (skald, prometheus) => return self.add_incomplete(workload, label, skald, prometheus),
        };
        let wall = ratio(ms(prometheus.wall), ms(skald.wall), 1e-3);
        let memory = ratio(mib(prometheus.memory), mib(skald.memory), 1.0);
        let mut line = format!(
            "{label:<36} {:>9.3} {:>9.3} {wall:>7.2} {:>9.3} {:>9.3} {:>7.2} {:>8.1} {:>8.1} {memory:>7.2}",
            ms(skald.wall),
            ms(prometheus.wall),
            ms(skald.cpu),
            ms(prometheus.cpu),
            ratio(ms(prometheus.cpu), ms(skald.cpu), 1e-3),
            mib(skald.memory),
            mib(prometheus.memory),
        );
        if let Some(outcome) = row.victoria_metrics {
            line += &outcome.map_or_else(|e| format!("  {e}"), |cost| format!(" {:>9.2}", ms(cost.wall)));
        }
        if is_slower(skald.wall, prometheus.wall) {
            line += "  SLOWER";
            if workload.section != Section::Many {
                self.slower.push(label.to_owned());
            }
        }
        if skald.series != prometheus.series {
            line += &format!("  DIFFERENT: {} and {} series", skald.series, prometheus.series);
            self.different.push(label.to_owned());
        }
        println!("{line}");
        match workload.section {
            Section::Family => self.ratios.push(wall),
            Section::Many => self.many.push(line),
            Section::Regex => {}
        }
    }

    fn add_incomplete(&mut self, workload: &Workload, label: &str, skald: Option<Outcome>, other: Option<Outcome>) {
        let show = |outcome: &Option<Outcome>| match outcome {
            None => "not asked".to_owned(),
            Some(Err(error)) => error.chars().take(60).collect(),
            Some(Ok(cost)) => {
                format!("{:.2} ms, {:.2} ms CPU, {:.1} MiB", ms(cost.wall), ms(cost.cpu), mib(cost.memory))
            }
        };
        println!("{label:<36} skald: {}; prometheus: {}", show(&skald), show(&other));
        if matches!((&skald, &other), (Some(Err(_)), Some(Ok(_)))) && workload.section == Section::Family {
            self.slower.push(label.to_owned());
        } else {
            self.skipped.push(label.to_owned());
        }
    }

    fn summary(&self) {
        let mean = (self.ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / self.ratios.len().max(1) as f64).exp();
        println!("\n{} workloads of the family; geometric mean of the wall ratio: {mean:.2}", self.ratios.len());
        println!("slower than Prometheus: {} {:?}", self.slower.len(), self.slower);
        println!("not compared: {} {:?}", self.skipped.len(), self.skipped);
        println!("different numbers of series: {} {:?}", self.different.len(), self.different);
        println!("100,000 series:");
        self.many.iter().for_each(|line| println!("{line}"));
    }
}
