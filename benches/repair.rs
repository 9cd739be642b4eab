//! How long does a member of a replica group take to get what it missed, and what does a comparison of equal members cost?
//!
//! Two ingesters, each a process of its own, reached by gRPC on loopback. Both get `series` series (10 labels) of `rounds`
//! samples, 15 s apart; one is killed (`kill -9`); the other gets `missed` rounds more. Then the first one starts again and
//! repairs itself. Prints how long that took from the end of its replay, CPU seconds of both processes meanwhile, what was fetched,
//! how much memory it took; then the same of a comparison in which nothing differs. Ends with an error if they differ in the end.
//!
//! ```text
//! cargo bench --bench repair -- [--series 200000] [--rounds 120] [--missed 4] [--blank yes]
//! ```
//!
//! With `--blank yes` its directory is gone, too. Values are decided by series and round.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark measures the real machine")]

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use prometheus_client::registry::Registry;
use skald::bucket::MemBucket;
use skald::bucket::index_cache::{BucketIndexConfig, IndexCache};
use skald::grpc::Channels;
use skald::ingester::client::IngesterClient;
use skald::ingester::grpc::{GrpcIngesterClient, server};
use skald::ingester::repair::{Group, Peer, Repaired};
use skald::ingester::{Config, Ingester, Metrics, Surroundings};
use skald::limits::TenantLimits;
use skald::runtime::{Pool, Rng, Runtime, SystemClock, TcpNet};
use skald::tenant::TenantId;
use skald_proto::{WriteBatch, WriteBatchBuilder};

type Error = Box<dyn std::error::Error + Send + Sync>;

const STEP_MS: i64 = 15_000;
const SERIES_PER_PUSH: usize = 2000;

fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match words.first().map(String::as_str) {
        Some("member") => runtime.block_on(member(&words[1..])),
        _ => runtime.block_on(measure(&words)),
    }
}

fn surroundings() -> Result<Runtime, Error> {
    Ok(Runtime {
        clock: Arc::new(SystemClock::default()),
        rng: Arc::new(Rng::from_os()),
        disk: Arc::new(skald_tsdb::disk::RealDisk),
        net: Arc::new(TcpNet),
        gossip: Arc::new(skald::runtime::SocketGossip),
        bucket: None,
        ingest_pool: Pool::new("ingest", 2)?,
        query_pool: Pool::new("query", 2)?,
        background_pool: Pool::new("background", 2)?,
    })
}

fn client(runtime: &Runtime, address: &str) -> Result<GrpcIngesterClient, Error> {
    let channels = Channels::new(skald::grpc::Config::default(), runtime, &mut Registry::default())?;
    Ok(GrpcIngesterClient::new(channels.to(address)?))
}

/// `member NAME DIRECTORY ADDRESS [PEER PEER_ADDRESS]`: an ingester, until killed.
async fn member(words: &[String]) -> Result<(), Error> {
    let [name, dir, address, peer @ ..] = words else { return Err("name, directory and address are needed".into()) };
    let runtime = surroundings()?;
    let (bucket, clock) = (Arc::new(MemBucket::default()), runtime.clock.clone());
    let mut registry = Registry::default();
    let parts = Surroundings {
        bucket: bucket.clone(),
        indexes: Arc::new(IndexCache::new(bucket, clock.clone(), BucketIndexConfig::default())),
        index_refresh_interval: Duration::from_secs(60),
        limits: TenantLimits::default(),
        runtime: runtime.clone(),
        metrics: Metrics::new(&mut registry),
    };
    let config = Config { repair_interval: Duration::from_secs(1), ..Config::default() };
    let ingester = Ingester::open(config, Path::new(dir), parts, |_| {}).await?;
    let listener = runtime.net.listen(address).await?;
    let router = tonic::service::Routes::new(server(Arc::new(ingester.clone()))).into_axum_router();
    let serving_clock = clock.clone();
    tokio::spawn(async move {
        let config = skald::http::Config::default();
        skald::http::serve(listener, None, move || router.clone(), &config, serving_clock, std::future::pending())
            .await;
    });
    let running = ingester.clone();
    tokio::spawn(async move { running.run().await });
    say("open");
    let group = match peer {
        [id, address] => {
            let client = Arc::new(client(&runtime, address)?);
            Group { others: 1, peers: vec![Peer { id: id.clone(), healthy: true, client }] }
        }
        _ => Group::default(),
    };
    let mut repaired = ingester.repaired();
    let (repairing, name) = (ingester.clone(), name.clone());
    let begun = Instant::now();
    tokio::spawn(async move { repairing.repair_forever(&name, || group.clone()).await });
    while *repaired.borrow_and_update() != Repaired::Yes {
        repaired.changed().await?;
    }
    say(&format!("repaired {}", begun.elapsed().as_secs_f64()));
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        let of_repair = text.lines().filter_map(|line| line.strip_prefix("skald_ingester_repair_"));
        say(&of_repair.collect::<Vec<_>>().join(" "));
    }
}

fn say(text: &str) {
    println!("{text}");
    let _ = std::io::stdout().flush();
}

/// A member's process; killed when dropped.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(name: &str, dir: &Path, address: &str, peer: &[&str]) -> Result<Self, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["member", name]).arg(dir).arg(address).args(peer).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut running = Self { child, lines };
        running.wait_for("open")?;
        Ok(running)
    }

    /// The next line that begins so.
    fn wait_for(&mut self, begin: &str) -> Result<String, Error> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line)? == 0 {
                return Err("a member has ended".into());
            }
            if let Some(rest) = line.strip_prefix(begin) {
                return Ok(rest.trim().to_owned());
            }
        }
    }

    /// CPU seconds so far, and resident and peak MiB.
    fn cost(&self) -> Result<(f64, f64, f64), Error> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kib = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        Ok((ticks / 100.0, kib("VmRSS") / 1024.0, kib("VmHWM") / 1024.0))
    }
}

fn batch(series: std::ops::Range<usize>, times: &[i64]) -> WriteBatch {
    let mut batch = WriteBatchBuilder::default();
    for number in series {
        let (pod, node, id) = (format!("pod-{}", number / 20), format!("node-{}", number / 500), number.to_string());
        batch.series([
            ("__name__", "http_requests_total"),
            ("cluster", "production-eu-west-1"),
            ("container", "server"),
            ("id", &*id),
            ("instance", &*node),
            ("job", "kubernetes-pods"),
            ("method", "GET"),
            ("namespace", "default"),
            ("pod", &*pod),
            ("status", "200"),
        ]);
        for time in times {
            batch.sample(*time, (number as i64 % 97 * (time / STEP_MS)) as f64);
        }
    }
    batch.build()
}

async fn send(clients: &[&GrpcIngesterClient], series: usize, times: &[i64]) -> Result<(), Error> {
    let tenant = TenantId::new("bench")?;
    for some in times.chunks(10) {
        for first in (0..series).step_by(SERIES_PER_PUSH) {
            let batch = Arc::new(batch(first..series.min(first + SERIES_PER_PUSH), some));
            for client in clients {
                let reply = client.push(&tenant, batch.clone()).await?;
                if !reply.rejections.is_empty() {
                    return Err(format!("{:?}", reply.rejections[0]).into());
                }
            }
        }
    }
    Ok(())
}

async fn free_address() -> Result<String, Error> {
    Ok(tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?.to_string())
}

async fn measure(words: &[String]) -> Result<(), Error> {
    let (mut series, mut rounds, mut missed, mut blank) = (200_000_usize, 120_i64, 4_i64, false);
    for pair in words.chunks(2) {
        let [word, value] = pair else { return Err(format!("{pair:?}: a value is missing").into()) };
        match word.as_str() {
            "--series" => series = value.parse()?,
            "--rounds" => rounds = value.parse()?,
            "--missed" => missed = value.parse()?,
            "--blank" => blank = value == "yes",
            _ => return Err(format!("unknown: {word}").into()),
        }
    }
    let root = tempfile::tempdir()?;
    let dirs: Vec<PathBuf> = ["a", "b"].iter().map(|name| root.path().join(name)).collect();
    let (address_a, address_b) = (free_address().await?, free_address().await?);
    let runtime = surroundings()?;
    let mut a = Running::start("a", &dirs[0], &address_a, &[])?;
    a.wait_for("repaired")?;
    let mut b = Running::start("b", &dirs[1], &address_b, &[])?;
    b.wait_for("repaired")?;
    let clients = (client(&runtime, &address_a)?, client(&runtime, &address_b)?);
    // Old enough that the comparison of equal members has all of them.
    let last = runtime.clock.now_ms() - 65_000;
    let times: Vec<i64> = (0..rounds + missed).map(|round| last - (rounds + missed - 1 - round) * STEP_MS).collect();
    send(&[&clients.0, &clients.1], series, &times[..rounds as usize]).await?;
    drop(b);
    if blank {
        std::fs::remove_dir_all(&dirs[1])?;
    }
    send(&[&clients.0], series, &times[rounds as usize..]).await?;
    println!("{series} series of {rounds} samples on both, {missed} rounds missed, blank: {blank}");
    let before = a.cost()?;
    let mut b = Running::start("b", &dirs[1], &address_b, &["a", &address_a])?;
    let begun = b.cost()?;
    let took = b.wait_for("repaired")?;
    let (after, peer) = (b.cost()?, a.cost()?);
    let found = b.wait_for("passes_total")?;
    println!(
        "repaired in {took} s; CPU {:.2} s here, {:.2} s there; resident {:.0} MiB before, {:.0} after, peak {:.0}; there peak {:.0}",
        after.0 - begun.0,
        peer.0 - before.0,
        begun.1,
        after.1,
        after.2,
        peer.2
    );
    println!("  passes {found}");
    // Two more: one of them began after everything was equal.
    let before = b.cost()?;
    let passes = |line: &str| line.split_whitespace().next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    let mut later = found.clone();
    while passes(&later) < passes(&found) + 2 {
        later = b.wait_for("passes_total")?;
    }
    println!("two passes more: CPU {:.2} s here\n  passes {later}", b.cost()?.0 - before.0);
    let (one, other) = (overview(&clients.0).await?, overview(&clients.1).await?);
    if one != other {
        return Err("the members differ".into());
    }
    println!("equal: {one:?}");
    Ok(())
}

/// Samples, and the sum of all checksums.
async fn overview(client: &GrpcIngesterClient) -> Result<(u64, u64), Error> {
    let parts: Vec<_> = client.repair_overview(i64::MAX).await?.try_collect().await?;
    let ranges = parts.iter().flat_map(|part| &part.tenants).flat_map(|tenant| &tenant.ranges);
    Ok(ranges.fold((0, 0), |(samples, sum), (_, range)| {
        (samples + range.digest.samples, sum.wrapping_add(range.digest.checksum))
    }))
}
