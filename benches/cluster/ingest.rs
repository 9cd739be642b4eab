//! What a sample costs on its way through all roles.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::argument;
use crate::load::Error;
use crate::load::pods::pod_labels;
use crate::load::send::{CONNECTIONS, SERIES_PER_REQUEST, STEP_MS, Senders};
use crate::processes::Cluster;

pub async fn run(words: &[String]) -> Result<(), Error> {
    let series: usize = argument(words, "--series", 200_000)?;
    let rounds: usize = argument(words, "--rounds", 60)?;
    let compression: String = argument(words, "--compression", "none".to_owned())?;
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(dir.path(), &[format!("--grpc-client.compression={compression}")])?;
    println!(
        "{series} series x {rounds} rounds, {SERIES_PER_REQUEST} series a request, {CONNECTIONS} connections, {} processes, \
         compression {compression}",
        cluster.processes.len()
    );
    let client = reqwest::Client::builder().pool_max_idle_per_host(CONNECTIONS).no_proxy().build()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let mut senders = Senders::new(series, now - rounds as i64 * STEP_MS, |i| pod_labels(i, 0));
    senders.prepare()?;
    load(&cluster, &client, &mut senders, "new series", series, 1).await?;
    load(&cluster, &client, &mut senders, "existing series", series, rounds - 1).await
}

async fn load(
    cluster: &Cluster,
    client: &reqwest::Client,
    senders: &mut Senders,
    what: &str,
    series: usize,
    rounds: usize,
) -> Result<(), Error> {
    const RECEIVED: &str = "skald_distributor_received_bytes_total";
    const SENT: &str = "skald_grpc_client_sent_bytes_total";
    let (cpu, begun) = (cluster.cpu()?, Instant::now());
    let received = cluster.metric(client, "distributor", RECEIVED).await?;
    let sent = cluster.metric(client, "distributor", SENT).await?;
    senders.send(client, &cluster.push_urls(), rounds).await?;
    let took = begun.elapsed().as_secs_f64();
    // What is still under way at the third member of a group belongs to it.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let after = cluster.cpu()?;
    let samples = (series * rounds) as f64;
    println!("{what}: {samples} samples, {:.0} a second; CPU-s per million:", samples / took);
    let mut total = 0.0;
    for (role, seconds) in &after {
        let per_million = (seconds - cpu.get(role).unwrap_or(&0.0)) / samples * 1e6;
        total += per_million;
        println!("  {role:<17} {per_million:>7.3}");
    }
    println!("  {:<17} {total:>7.3}", "total");
    let received = cluster.metric(client, "distributor", RECEIVED).await? - received;
    let sent = cluster.metric(client, "distributor", SENT).await? - sent;
    println!(
        "  bytes a sample: {:.1} from the sender, {:.1} to all three zones, {:.1} of these to the two others",
        received / samples,
        sent / samples,
        sent / samples * 2.0 / 3.0
    );
    Ok(())
}
