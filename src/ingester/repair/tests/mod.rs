//! Members of a group that repair each other, in one process.

mod convergence;
mod exchange;
mod faults;
mod lives;
mod simulation;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use prometheus_client::registry::Registry;
use skald_model::{Columns, Histogram, HistogramValue, MatchOp, Matcher, QueryRange, STALE_NAN_BITS};
use skald_proto::WriteBatchBuilder;
use skald_tsdb::decode::decode_series;
use skald_tsdb::disk::MemDisk;

use super::super::client::IngesterClient;
use super::super::{Config, Ingester, Limits, Metrics, Surroundings};
use super::exchange::Member;
use super::pass::{Found, Pass, Settled};
use super::{Group, Peer, Repaired};
use crate::bucket::index_cache::{BucketIndexConfig, IndexCache};
use crate::bucket::{Bucket, MemBucket};
use crate::error::ServiceError;
use crate::limits::TenantLimits;
use crate::runtime::{Clock, ManualClock, MemNet, Pool, Rng, Runtime};
use crate::select::SelectRequest;
use crate::tenant::TenantId;

/// Half an hour into a range of two hours.
const NOW: i64 = 1_800_001_800_000;
const MINUTE: i64 = 60_000;

/// What a member is made of, apart from its process.
struct Place {
    id: String,
    disk: MemDisk,
    bucket: Arc<dyn Bucket>,
    clock: ManualClock,
    rng: Arc<Rng>,
}

/// Members of one group.
fn places(count: usize) -> Vec<Place> {
    let (bucket, clock): (Arc<dyn Bucket>, _) = (Arc::new(MemBucket::default()), ManualClock::at(NOW));
    let place = |number: usize| Place {
        id: format!("m{number}"),
        disk: MemDisk::default(),
        bucket: bucket.clone(),
        clock: clock.clone(),
        rng: Arc::new(Rng::seeded(number as u64)),
    };
    (0..count).map(place).collect()
}

impl Place {
    async fn open(&self) -> Ingester {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let runtime = Runtime {
            clock: clock.clone(),
            rng: self.rng.clone(),
            disk: Arc::new(self.disk.clone()),
            net: Arc::new(MemNet::default()),
            gossip: Arc::new(crate::runtime::SocketGossip),
            bucket: None,
            ingest_pool: Pool::inline(),
            query_pool: Pool::inline(),
            background_pool: Pool::inline(),
        };
        let limits = Limits { out_of_order_time_window: Duration::from_secs(24 * 3600), ..Limits::default() };
        let surroundings = Surroundings {
            bucket: self.bucket.clone(),
            indexes: Arc::new(IndexCache::new(self.bucket.clone(), clock, BucketIndexConfig::default())),
            index_refresh_interval: Duration::from_secs(60),
            limits: TenantLimits::new(crate::limits::Limits { ingester: limits, ..crate::limits::Limits::default() }),
            runtime,
            metrics: Metrics::new(&mut Registry::default()),
        };
        let ingester = Ingester::open(Config::default(), Path::new("/data"), surroundings, |_| {}).await.unwrap();
        self.id.clone_into(&mut ingester.shared.repair.instance.lock());
        ingester
    }
}

async fn open_all(places: &[Place]) -> Vec<Ingester> {
    let mut all = Vec::new();
    for place in places {
        all.push(place.open().await);
    }
    all
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// A value that time and series decide: floats, stale markers, histograms.
fn push_value(batch: &mut WriteBatchBuilder, series: u32, time: i64) {
    let number = (time / 1000 + i64::from(series)).rem_euclid(11);
    match number {
        0 => _ = batch.sample(time, f64::from_bits(STALE_NAN_BITS)),
        1 => {
            let count = (time / 1000).rem_euclid(1000) as u64;
            let histogram = Histogram { count, zero_count: count, sum: 1.5, ..Histogram::default() };
            batch.histogram(time, HistogramValue::Integer(Arc::new(histogram)));
        }
        _ => _ = batch.sample(time, number as f64 + f64::from(series)),
    }
}

async fn push(ingester: &Ingester, tenant: &TenantId, series: u32, times: &[i64]) {
    let mut batch = WriteBatchBuilder::default();
    batch.series([("__name__", "m"), ("series", &*series.to_string())]);
    times.iter().for_each(|time| push_value(&mut batch, series, *time));
    let reply = ingester.push(tenant, Arc::new(batch.build())).await.unwrap();
    assert_eq!((reply.samples as usize, reply.rejections.len()), (times.len(), 0), "{:?}", reply.rejections);
}

/// Many series with one sample each.
async fn push_many(ingester: &Ingester, tenant: &TenantId, series: std::ops::Range<u32>, time: i64) {
    let mut batch = WriteBatchBuilder::default();
    for number in series {
        batch.series([("__name__", "many"), ("series", &*number.to_string())]).sample(time, f64::from(number));
    }
    assert_eq!(ingester.push(tenant, Arc::new(batch.build())).await.unwrap().rejections, []);
}

type Samples = BTreeMap<(String, i64), String>;

/// All samples of a tenant, by series and time.
async fn samples(client: &dyn IngesterClient, tenant: &TenantId) -> Samples {
    let any = Matcher::new(MatchOp::Regex, "__name__", ".+").unwrap();
    let request = SelectRequest::new(vec![any], QueryRange::ALL);
    let batches: Vec<_> = client.select(tenant, request).await.unwrap().try_collect().await.unwrap();
    let (mut all, mut columns) = (Samples::new(), Columns::default());
    for series in batches.iter().flatten() {
        decode_series(&series.chunks, QueryRange::ALL, &mut columns).unwrap();
        let labels = series.labels.to_string();
        for (time, value) in columns.float_timestamps.iter().zip(&columns.float_values) {
            all.insert((labels.clone(), *time), format!("{:x}", value.to_bits()));
        }
        for (time, value) in columns.histogram_timestamps.iter().zip(&columns.histograms) {
            all.insert((labels.clone(), *time), format!("histogram {} {}", value.count, value.sum));
        }
    }
    all
}

fn peer(id: &str, client: impl IngesterClient) -> Peer {
    Peer { id: id.to_owned(), healthy: true, client: Arc::new(client) }
}

/// One comparison of everything.
async fn compare(ingester: &Ingester, with: &Peer) -> (Found, Result<Member, ServiceError>) {
    Pass::new(ingester, with, i64::MAX, &Settled::default()).run().await
}

/// The same between members, which has to work.
async fn repair_from(ingester: &Ingester, place: &Place, other: &Ingester) -> Found {
    let (found, compared) = compare(ingester, &peer(&place.id, other.clone())).await;
    compared.unwrap();
    found
}

/// Lets tasks go on that wait for nothing but each other.
async fn settle() {
    for _ in 0..2000 {
        tokio::task::yield_now().await;
    }
}

/// Waits until a member is repaired, moving time on a little.
async fn wait_repaired(ingester: &Ingester, clock: &ManualClock) {
    let repaired = ingester.repaired();
    for _ in 0..60 {
        settle().await;
        if *repaired.borrow() == Repaired::Yes {
            return;
        }
        clock.advance(Duration::from_secs(1));
    }
    panic!("{:?}", *repaired.borrow());
}

/// Lets a member repair itself from others, until dropped.
fn begin_repair(ingester: &Ingester, place: &Place, group: Group) -> tokio::task::JoinHandle<()> {
    let (ingester, id) = (ingester.clone(), place.id.clone());
    tokio::spawn(async move { ingester.repair_forever(&id, || group.clone()).await })
}
