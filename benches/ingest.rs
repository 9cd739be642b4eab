//! What does a sample cost on its way in, and a new series?
//!
//! Sends `series` series (10 labels, about 270 label bytes; counters, gauges and constants) for `rounds` rounds of one
//! sample each, 15 s apart, over HTTP as fast as they are accepted: to Skald, and in the same run to Debian's `prometheus`
//! and `victoria-metrics` where they are installed. Prints new series/s and server CPU-microseconds per new series (the
//! first round, whose requests are made beforehand), samples/s and server CPU-seconds per million samples of the other
//! rounds, resident bytes per series, bytes written per sample, and when each server syncs. Values are drawn with a fixed
//! seed.
//!
//! ```text
//! cargo bench --bench ingest -- [--series 200000] [--rounds 240] [--only skald,prometheus,victoria-metrics]
//!     [--more 240] [--after read,flush,churn] [--restart yes]
//! ```
//!
//! `--more` goes on with Skald for so many rounds. Times are such that a range is due when they begin: it is cut into a
//! block, which is uploaded, under this load. Prints when that happened.
//!
//! `--after` goes on with Skald, and prints its memory after each step: `read` selects every series once, `flush` cuts
//! everything into blocks, `churn` replaces all series twice over, half the rounds each, and flushes.
//!
//! `--restart yes` then kills Skald (`kill -9`), starts it again on what it left, and prints when it is ready, its peak
//! memory by then, and how many series it has; once more after a bit of the newest snapshot has flipped.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures the real machine")]

mod load;
#[path = "load/pods.rs"]
mod pods;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::load::Error;
use self::load::send::{CONNECTIONS, SERIES_PER_REQUEST, STEP_MS, Senders};
use self::load::server::{Running, Server};
use self::pods::pod_labels;

/// Ranges that heads are cut by, and how long after its end one is due.
const RANGE_MS: i64 = 2 * 3600 * 1000;
const DUE_AFTER_MS: i64 = RANGE_MS / 2;

struct Arguments {
    series: usize,
    rounds: usize,
    more: usize,
    only: Vec<String>,
    after: Vec<String>,
    restart: bool,
}

fn arguments() -> Result<Arguments, Error> {
    let mut arguments =
        Arguments { series: 200_000, rounds: 240, more: 0, only: Vec::new(), after: Vec::new(), restart: false };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--series" => arguments.series = value.parse()?,
            "--rounds" => arguments.rounds = value.parse()?,
            "--more" => arguments.more = value.parse()?,
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
        "{:<17} {:>11} {:>10} {:>11} {:>13} {:>13} {:>13} {:>13}  sync",
        "server", "new/s", "CPU-us/new", "samples/s", "CPU-s/M", "RSS/series", "peak/series", "written/sample"
    );
    for name in ["skald", "prometheus", "victoria-metrics"] {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == name) {
            continue;
        }
        match Server::named(name, dir.path())?.start() {
            Ok(running) => measure(running, &arguments).await?,
            Err(error) => println!("{name:<17} not measured: {error}"),
        }
    }
    Ok(())
}

/// What a stretch of the load cost.
struct Cost {
    took: Duration,
    cpu: Duration,
}

/// Sends rounds, and measures the server meanwhile.
async fn load(
    running: &Running,
    client: &reqwest::Client,
    senders: &mut Senders,
    rounds: usize,
) -> Result<Cost, Error> {
    let (cpu, begun) = (running.cpu()?, Instant::now());
    senders.send(client, &[running.server.push_url()], rounds).await?;
    Ok(Cost { took: begun.elapsed(), cpu: running.cpu()?.saturating_sub(cpu) })
}

/// When the first round is: everything that is sent ends now; with `--more`, at the last time before at which a range is
/// due after the first rounds.
fn first_time(arguments: &Arguments, churn_rounds: usize) -> Result<i64, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let last_of_first = now - (arguments.more + 2 * churn_rounds) as i64 * STEP_MS;
    let end = if arguments.more > 0 {
        (last_of_first - DUE_AFTER_MS).div_euclid(RANGE_MS) * RANGE_MS + DUE_AFTER_MS
    } else {
        last_of_first
    };
    Ok(end - arguments.rounds as i64 * STEP_MS)
}

async fn measure(mut running: Running, arguments: &Arguments) -> Result<(), Error> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(CONNECTIONS).no_proxy().build()?;
    let base = format!("http://127.0.0.1:{}", running.server.port);
    let api = format!("{base}{}", running.server.api_path);
    running.ready(&client, Duration::from_secs(30)).await?;
    let is_skald = running.server.name == "skald";
    // Churn comes behind, and is to end now, too.
    let churn = is_skald && arguments.after.iter().any(|step| step == "churn");
    let churn_rounds = if churn { arguments.rounds / 2 } else { 0 };
    let first = first_time(arguments, churn_rounds)?;
    let mut senders = Senders::new(arguments.series, first, |i| pod_labels(i, 0));
    senders.prepare()?;
    let written_before = running.number("io", "write_bytes:")?;
    let new = load(&running, &client, &mut senders, 1).await?;
    let existing = load(&running, &client, &mut senders, arguments.rounds - 1).await?;
    // Written bytes reach the counter when pages are made dirty; what a server holds back in memory is flushed soon.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let written = running.number("io", "write_bytes:")? - written_before;
    let (series, samples) = (arguments.series as f64, (arguments.series * (arguments.rounds - 1)) as f64);
    println!(
        "{:<17} {:>11.0} {:>10.2} {:>11.0} {:>13.3} {:>13.0} {:>13.0} {:>13.2}  {}",
        running.server.name,
        series / new.took.as_secs_f64(),
        new.cpu.as_secs_f64() / series * 1e6,
        samples / existing.took.as_secs_f64(),
        existing.cpu.as_secs_f64() / samples * 1e6,
        per_series(&running, "VmRSS:", arguments)?,
        per_series(&running, "VmHWM:", arguments)?,
        written as f64 / (samples + series),
        running.server.sync,
    );
    if !is_skald {
        return Ok(());
    }
    if arguments.more > 0 {
        flush_under_load(&running, &client, &mut senders, arguments).await?;
    }
    drop(senders);
    let sent = arguments.rounds + arguments.more;
    if arguments.restart {
        let last = first + (sent as i64 - 1) * STEP_MS;
        restart(&mut running, &client, last, "killed").await?;
        restart(&mut running, &client, last, "killed, newest snapshot damaged").await?;
    }
    for step in &arguments.after {
        match step.as_str() {
            "read" => {
                let last = first + (sent as i64 - 1) * STEP_MS;
                let time = format!("{}.{:03}", last / 1000, last % 1000);
                let query = [("query", "count({__name__=~\".+\"})"), ("time", time.as_str())];
                let url = reqwest::Url::parse_with_params(&format!("{api}/query"), query)?;
                let answer = client.get(url).send().await?.text().await?;
                println!("  {}", answer.chars().take(200).collect::<String>());
            }
            "flush" => flush(&client, &base).await?,
            "churn" => {
                for generation in 1..=2 {
                    let from = sent + (generation - 1) * churn_rounds;
                    let first = first + from as i64 * STEP_MS;
                    let mut senders = Senders::new(arguments.series, first, |i| pod_labels(i, generation));
                    load(&running, &client, &mut senders, churn_rounds).await?;
                }
                flush(&client, &base).await?;
            }
            _ => return Err(format!("unknown step {step}").into()),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        print_memory(&running, &format!("after {step}"), arguments)?;
    }
    Ok(())
}

/// A figure of memory, in bytes per series.
fn per_series(running: &Running, key: &str, arguments: &Arguments) -> Result<f64, Error> {
    Ok(running.number("status", key)? as f64 * 1024.0 / arguments.series as f64)
}

fn print_memory(running: &Running, when: &str, arguments: &Arguments) -> Result<(), Error> {
    let (now, peak) = (per_series(running, "VmRSS:", arguments)?, per_series(running, "VmHWM:", arguments)?);
    println!("  {when:<76} {now:>13.0} {peak:>13.0}");
    Ok(())
}

/// Goes on with the load while a range is cut into a block and uploaded, and says when that was.
async fn flush_under_load(
    running: &Running,
    client: &reqwest::Client,
    senders: &mut Senders,
    arguments: &Arguments,
) -> Result<(), Error> {
    let url = format!("http://127.0.0.1:{}/metrics", running.server.port);
    let begun = Instant::now();
    let watch = async {
        // Blocks written and uploaded, and the highest memory by then.
        let mut seen = Vec::new();
        for metric in ["skald_ingester_blocks_written_total", "skald_ingester_block_uploads_total"] {
            while begun.elapsed() < Duration::from_secs(900) {
                let text = client.get(&url).send().await?.text().await?;
                let value = text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse::<f64>().ok());
                if value.is_some_and(|value| value > 0.0) {
                    let peak = per_series(running, "VmHWM:", arguments)?;
                    seen.push(format!("{metric} after {:.0} s (peak {peak:.0})", begun.elapsed().as_secs_f64()));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        Ok::<_, Error>(seen)
    };
    let sending = async {
        let cost = load(running, client, senders, arguments.more).await?;
        Ok::<_, Error>((cost, begun.elapsed()))
    };
    let (seen, (cost, ended)) = tokio::try_join!(watch, sending)?;
    let samples = (arguments.series * arguments.more) as f64;
    println!(
        "  {} more rounds: {:.0} samples/s, {:.3} CPU-s/M; ended after {:.0} s; {}",
        arguments.more,
        samples / cost.took.as_secs_f64(),
        cost.cpu.as_secs_f64() / samples * 1e6,
        ended.as_secs_f64(),
        seen.join(", "),
    );
    print_memory(running, "under load, flush included", arguments)
}

/// Cuts everything into blocks.
async fn flush(client: &reqwest::Client, base: &str) -> Result<(), Error> {
    let answer = client.post(format!("{base}/ingester/flush")).send().await?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("flush: {}", answer.text().await?).into()) }
}

/// Kills the server as `kill -9` does and starts it on what it left.
fn kill_and_start(running: &mut Running, before: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    running.child.kill()?;
    running.child.wait()?;
    before(&running.server.data)?;
    running.child = running.server.spawn()?;
    Ok(())
}

async fn restart(running: &mut Running, client: &reqwest::Client, last: i64, what: &str) -> Result<(), Error> {
    let peak_before = running.number("status", "VmHWM:")?;
    let damaged = what.contains("damaged");
    kill_and_start(running, |data| if damaged { damage_snapshot(&data.join("wal")) } else { Ok(()) })?;
    let ready = running.ready(client, Duration::from_secs(600)).await?;
    let (cpu, peak) = (running.cpu()?, running.number("status", "VmHWM:")?);
    let time = format!("{}.{:03}", last / 1000, last % 1000);
    let query = format!("query=count(%7Bjob%3D~%22.%2B%22%7D)&time={time}");
    let url = format!("http://127.0.0.1:{}{}/query?{query}", running.server.port, running.server.api_path);
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
