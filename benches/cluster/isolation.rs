//! Whether one tenant's flood slows another tenant's writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::argument;
use crate::load::Error;
use crate::load::pods::pod_labels;
use crate::load::send::Senders;
use crate::processes::Cluster;

/// What the flooding tenant may write, and what it sends, in samples a second.
const LIMIT: u64 = 10_000;
const FLOOD: u64 = 200_000;
/// The other tenant's requests, and the series of each.
const REQUESTS_PER_SECOND: u64 = 50;
const SERIES: usize = 1_000;
/// Prometheus' default.
const FLOOD_SERIES: usize = 2_000;

pub async fn run(words: &[String]) -> Result<(), Error> {
    let pairs: usize = argument(words, "--pairs", 5)?;
    let seconds: u64 = argument(words, "--seconds", 10)?;
    let single: String = argument(words, "--single", "no".to_owned())?;
    let dir = tempfile::tempdir()?;
    let overrides = dir.path().join("overrides.yaml");
    let limits = format!("{{ingestion_rate: {LIMIT}, ingestion_burst_size: {}}}", 2 * LIMIT);
    std::fs::write(&overrides, format!("overrides:\n  flood: {limits}\n"))?;
    let flags = vec![format!("--runtime-config.file={}", overrides.display())];
    let cluster = match single.as_str() {
        "yes" => Cluster::start_single(&dir.path().join("single"), &flags).await?,
        _ => Cluster::start(&dir.path().join("cluster"), &flags)?,
    };
    println!(
        "{} processes; one tenant writes {REQUESTS_PER_SECOND} x {SERIES} samples a second, the other may write {LIMIT} \
         and sends {FLOOD}; {pairs} pairs of {seconds} s",
        cluster.processes.len()
    );
    let urls = cluster.push_urls();
    let client = reqwest::Client::builder().no_proxy().build()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let first = now - 3_600_000;
    let series = Senders::new(SERIES, first, |i| pod_labels(i, 0));
    let mut writer = Writer { series, next: first, client: client.clone() };
    let mut flood = Senders::new(FLOOD_SERIES, first, |i| pod_labels(i, 1));
    let flood = Flood { body: flood.bodies(first)?.swap_remove(0), client };
    // What is new is slower, and once.
    writer.write(&urls, Duration::from_secs(2)).await?;
    let (mut ratios, mut within) = (Vec::new(), 0);
    for pair in 1..=pairs {
        let quiet = writer.write(&urls, Duration::from_secs(seconds)).await?;
        let flooding = flood.begin(&urls);
        let loud = writer.write(&urls, Duration::from_secs(seconds)).await?;
        let (accepted, refused) = flooding.end().await?;
        let (quiet, loud) = (p99(quiet), p99(loud));
        let bound = (quiet * 1.5).max(quiet + 10.0);
        within += usize::from(loud <= bound);
        ratios.push(loud / quiet);
        println!(
            "pair {pair}: p99 {quiet:.1} ms quiet, {loud:.1} ms in the flood (bound {bound:.1}); of the flood {accepted} \
             requests were taken, {refused} answered with 429"
        );
    }
    ratios.sort_by(f64::total_cmp);
    println!("{within} of {pairs} pairs within the bound; median {:.2} times quiet", ratios[ratios.len() / 2]);
    if within * 2 > pairs { Ok(()) } else { Err("the median pair is beyond the bound".into()) }
}

/// Milliseconds.
fn p99(mut took: Vec<Duration>) -> f64 {
    took.sort();
    took[(took.len() - 1) * 99 / 100].as_secs_f64() * 1000.0
}

/// The tenant that is measured.
struct Writer {
    series: Senders,
    /// Time of the next samples.
    next: i64,
    client: reqwest::Client,
}

impl Writer {
    /// Writes at a fixed pace, whether or not answers come, and says how long each write took from when it was due.
    async fn write(&mut self, urls: &[String], time: Duration) -> Result<Vec<Duration>, Error> {
        let begun = Instant::now();
        let mut pending = Vec::new();
        for number in 0..time.as_secs() * REQUESTS_PER_SECOND {
            let body = self.series.bodies(self.next)?.swap_remove(0);
            // An hour has room for all of them.
            self.next += 500;
            let due = begun + Duration::from_secs(number) / REQUESTS_PER_SECOND as u32;
            tokio::time::sleep_until(due.into()).await;
            let request = post(&self.client, &urls[number as usize % urls.len()], "quiet", body);
            pending.push(tokio::spawn(async move {
                let response = request.send().await?;
                let took = due.elapsed();
                match response.status().is_success() {
                    true => Ok::<_, Error>(took),
                    false => Err(format!("{}: {}", response.status(), response.text().await?).into()),
                }
            }));
        }
        let mut all = Vec::with_capacity(pending.len());
        for answer in pending {
            all.push(answer.await??);
        }
        Ok(all)
    }
}

fn post(client: &reqwest::Client, url: &str, tenant: &str, body: Vec<u8>) -> reqwest::RequestBuilder {
    let request = client.post(url).header("X-Scope-OrgID", tenant).header("Content-Encoding", "snappy");
    request.header("Content-Type", "application/x-protobuf").body(body)
}

/// The tenant that sends too much: the same samples again and again, since most are refused before anybody looks.
struct Flood {
    body: Vec<u8>,
    client: reqwest::Client,
}

struct Flooding {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<(u64, u64), Error>>,
}

impl Flood {
    fn begin(&self, urls: &[String]) -> Flooding {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, body, client, urls) = (stop.clone(), self.body.clone(), self.client.clone(), urls.to_vec());
        let task = tokio::spawn(async move {
            let (accepted, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let begun = Instant::now();
            let mut pending = Vec::new();
            let per_second = (FLOOD / FLOOD_SERIES as u64) as u32;
            for number in 0_u32.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                tokio::time::sleep_until((begun + Duration::from_secs(u64::from(number)) / per_second).into()).await;
                let request = post(&client, &urls[number as usize % urls.len()], "flood", body.clone());
                let (accepted, refused) = (accepted.clone(), refused.clone());
                pending.push(tokio::spawn(async move {
                    match request.send().await?.status().as_u16() {
                        200 => accepted.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        other => return Err(format!("the flood got {other}").into()),
                    };
                    Ok::<_, Error>(())
                }));
            }
            for answer in pending {
                answer.await??;
            }
            Ok((accepted.load(Ordering::Relaxed), refused.load(Ordering::Relaxed)))
        });
        Flooding { stop, task }
    }
}

impl Flooding {
    /// Requests that were taken, and that were refused.
    async fn end(self) -> Result<(u64, u64), Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}
