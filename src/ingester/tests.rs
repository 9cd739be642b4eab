//! What every implementation of the client trait must do, run against the ingester itself and against the same one behind
//! gRPC.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use prometheus_client::registry::Registry;
use skald_model::{Columns, MatchOp, Matcher, MetricMetadata, MetricType, QueryRange};
use skald_promql::plan::SeriesShard;
use skald_proto::WriteBatchBuilder;
use skald_tsdb::block::{BlockError, IndexLimits};
use skald_tsdb::decode::decode_series;
use skald_tsdb::disk::{Disk, MemDisk};
use skald_tsdb::head::Dropped;
use tonic::service::Routes;

use super::client::{IngesterClient, RejectedKind};
use super::flush::{FlushError, FlushExtent};
use super::grpc::{GrpcIngesterClient, server};
use super::{Config, Ingester, Limits, Metrics, Surroundings};
use crate::bucket::index_cache::{BucketIndexConfig, IndexCache};
use crate::bucket::{Bucket, MemBucket};
use crate::error::ErrorKind;
use crate::http;
use crate::limits::TenantLimits;
use crate::runtime::{Clock, ManualClock, MemNet, Net, Pool, Rng, Runtime};
use crate::select::{LabelRequest, SelectRequest};
use crate::tenant::TenantId;

mod series_limits;

const NOW: i64 = 1_800_000_000_000;

struct Rig {
    disk: MemDisk,
    net: MemNet,
    bucket: Arc<dyn Bucket>,
    clock: ManualClock,
    /// One for all its lives: no two draw the same.
    rng: Arc<Rng>,
    limits: TenantLimits,
}

impl Rig {
    fn new() -> Self {
        Self {
            disk: MemDisk::default(),
            net: MemNet::default(),
            bucket: Arc::new(MemBucket::default()),
            clock: ManualClock::at(NOW),
            rng: Arc::new(Rng::seeded(7)),
            limits: TenantLimits::new(crate::limits::Limits {
                ingester: Limits { max_series_per_tenant: Some(1000), ..Limits::default() },
                ..crate::limits::Limits::default()
            }),
        }
    }

    async fn open(&self) -> Ingester {
        self.open_with(Config::default()).await
    }

    async fn open_with(&self, config: Config) -> Ingester {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let runtime = Runtime {
            clock: clock.clone(),
            rng: self.rng.clone(),
            disk: Arc::new(self.disk.clone()),
            net: Arc::new(self.net.clone()),
            gossip: Arc::new(crate::runtime::SocketGossip),
            bucket: None,
            ingest_pool: Pool::inline(),
            query_pool: Pool::inline(),
            background_pool: Pool::inline(),
        };
        let indexes = Arc::new(IndexCache::new(self.bucket.clone(), clock, BucketIndexConfig::default()));
        let surroundings = Surroundings {
            bucket: self.bucket.clone(),
            indexes,
            index_refresh_interval: Duration::from_secs(60),
            limits: self.limits.clone(),
            runtime,
            metrics: Metrics::new(&mut Registry::default()),
        };
        Ingester::open(config, Path::new("/data"), surroundings, |_| {}).await.unwrap()
    }

    /// The ingester behind gRPC, on this rig's network.
    async fn remote(&self, ingester: Ingester) -> GrpcIngesterClient {
        let listener = self.net.listen("ingester:9095").await.unwrap();
        let router = Routes::new(server(Arc::new(ingester))).into_axum_router();
        let clock: Arc<dyn Clock> = Arc::new(crate::runtime::SystemClock::default());
        tokio::spawn(async move {
            http::serve(
                listener,
                None,
                move || router.clone(),
                &http::Config::default(),
                clock,
                std::future::pending(),
            )
            .await;
        });
        GrpcIngesterClient::new(crate::grpc::Channels::plain(Arc::new(self.net.clone())).to("ingester:9095").unwrap())
    }
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn all() -> QueryRange {
    QueryRange::ALL
}

async fn values(client: &dyn IngesterClient, tenant: &TenantId, metric: &str) -> Vec<(i64, f64)> {
    shard_values(client, tenant, metric, None).await
}

async fn shard_values(
    client: &dyn IngesterClient,
    tenant: &TenantId,
    metric: &str,
    shard: Option<SeriesShard>,
) -> Vec<(i64, f64)> {
    let request = SelectRequest { shard, ..SelectRequest::new(vec![Matcher::equal("__name__", metric)], all()) };
    let batches: Vec<_> = client.select(tenant, request).await.unwrap().try_collect().await.unwrap();
    let mut found = Vec::new();
    let mut columns = Columns::default();
    for series in batches.iter().flatten() {
        decode_series(&series.chunks, all(), &mut columns).unwrap();
        found.extend(columns.float_timestamps.iter().copied().zip(columns.float_values.iter().copied()));
    }
    found
}

async fn conformance(client: &dyn IngesterClient, disk: &MemDisk) {
    let (a, b) = (tenant("a"), tenant("b"));
    // A tenant nobody has heard of has nothing.
    assert!(values(client, &a, "m").await.is_empty());

    // What is good is stored, what is bad is told with its stable reason.
    let mut batch = WriteBatchBuilder::default();
    batch.series([("__name__", "m"), ("x", "1")]).sample(NOW - 2, 1.0).sample(NOW - 1, 2.0);
    batch.series([("__name__", "m"), ("x", "2")]).sample(NOW + 3_600_000, 9.0);
    batch.metadata(MetricMetadata {
        metric: "m".into(),
        metric_type: MetricType::Counter,
        help: "h".into(),
        unit: String::new(),
    });
    let batch = Arc::new(batch.build());
    let reply = client.push(&a, batch.clone()).await.unwrap();
    assert_eq!(reply.samples, 2);
    let [rejection] = reply.rejections.as_slice() else { panic!("{reply:?}") };
    assert_eq!((rejection.kind, &*rejection.reason, rejection.count), (RejectedKind::Sample, "too-far-in-future", 1));
    assert!(rejection.message.contains(r#"x="2""#), "{}", rejection.message);

    // Repeating is harmless; another value at the same time is not.
    assert_eq!(client.push(&a, batch).await.unwrap().samples, 2);
    let mut other = WriteBatchBuilder::default();
    other.series([("__name__", "m"), ("x", "1")]).sample(NOW - 1, 7.0);
    let reply = client.push(&a, Arc::new(other.build())).await.unwrap();
    assert_eq!(reply.rejections[0].reason, "sample-duplicate-timestamp");
    assert_eq!(values(client, &a, "m").await, [(NOW - 2, 1.0), (NOW - 1, 2.0)]);

    // Labels, series and metadata, by selectors.
    let any = LabelRequest::new(Vec::new(), all());
    let matcher = Matcher::new(MatchOp::Regex, "x", "1|3").unwrap();
    let some = LabelRequest::new(vec![vec![matcher]], all());
    assert_eq!(client.label_names(&a, any.clone()).await.unwrap(), ["__name__", "x"]);
    assert_eq!(client.label_values(&a, "x", some.clone()).await.unwrap(), ["1"]);
    assert_eq!(client.series(&a, some).await.unwrap().len(), 1);
    assert_eq!(client.metadata(&a, Some("m")).await.unwrap().len(), 1);
    assert!(client.metadata(&a, Some("n")).await.unwrap().is_empty());
    assert!(client.exemplars(&a, any.clone()).await.unwrap().is_empty());

    // Another tenant sees none of it.
    assert!(values(client, &b, "m").await.is_empty());
    assert!(client.label_names(&b, any.clone()).await.unwrap().is_empty());
    assert!(client.series(&b, any).await.unwrap().is_empty());
    assert!(client.metadata(&b, None).await.unwrap().is_empty());

    // More series than one message or batch holds arrive whole and in order.
    let mut many = WriteBatchBuilder::default();
    for i in 0..900 {
        many.series([("__name__", "many"), ("i", &format!("{i:04}"))]).sample(NOW, f64::from(i));
    }
    assert_eq!(client.push(&a, Arc::new(many.build())).await.unwrap().samples, 900);
    // The first of the answer, and one more, are enough where a limit says so.
    let name = || vec![Matcher::equal("__name__", "many")];
    for selectors in [vec![name()], vec![name(), vec![Matcher::equal("i", "0001")]]] {
        let few = LabelRequest::new(selectors, all()).limited(Some(1));
        assert_eq!(client.label_values(&a, "i", few.clone()).await.unwrap(), ["0000", "0001"]);
        let series = client.series(&a, few).await.unwrap();
        assert_eq!(series.iter().filter_map(|labels| labels.get("i")).collect::<Vec<_>>(), ["0000", "0001"]);
    }
    let expected: Vec<_> = (0..900).map(|i| (NOW, f64::from(i))).collect();
    assert_eq!(values(client, &a, "many").await, expected);

    // Shards are disjoint and together everything.
    let mut together = Vec::new();
    for index in 0..4 {
        let part = shard_values(client, &a, "many", Some(SeriesShard { index, count: 4 })).await;
        assert!((150..300).contains(&part.len()), "{}", part.len());
        together.extend(part);
    }
    together.sort_by(|a, b| a.1.total_cmp(&b.1));
    assert_eq!(together, expected);

    // A limit of the tenant refuses new series only.
    let mut over = WriteBatchBuilder::default();
    for i in 0..200 {
        over.series([("__name__", "over"), ("i", &i.to_string())]).sample(NOW, 1.0);
    }
    over.series([("__name__", "m"), ("x", "1")]).sample(NOW, 3.0);
    let reply = client.push(&a, Arc::new(over.build())).await.unwrap();
    assert_eq!((reply.samples, &*reply.rejections[0].reason), (100, "max-series-per-user"));

    // A full disk is an error that a retry can help against; nothing is stored, reads go on, and space heals it.
    let one = |value: f64| {
        let mut batch = WriteBatchBuilder::default();
        batch.series([("__name__", "m"), ("x", "1")]).sample(NOW + 1, value);
        Arc::new(batch.build())
    };
    disk.set_free_bytes(Some(3));
    let error = client.push(&a, one(4.0)).await.unwrap_err();
    assert_eq!((error.kind, &*error.reason), (ErrorKind::Unavailable, "disk-full"));
    assert!(error.retry_after.is_some());
    assert_eq!(values(client, &a, "m").await.last(), Some(&(NOW, 3.0)));
    disk.set_free_bytes(None);
    assert_eq!(client.push(&a, one(4.0)).await.unwrap().samples, 1);
    assert_eq!(values(client, &a, "m").await.last(), Some(&(NOW + 1, 4.0)));
}

#[tokio::test]
async fn the_ingester_itself_conforms() {
    let rig = Rig::new();
    conformance(&rig.open().await, &rig.disk).await;
}

#[tokio::test]
async fn the_ingester_behind_grpc_conforms() {
    let rig = Rig::new();
    let client = rig.remote(rig.open().await).await;
    conformance(&client, &rig.disk).await;
}

/// Series are looked up by their hashes first, and what is not there comes with labels: nobody sees a difference.
#[tokio::test]
async fn series_known_by_hash_are_as_those_with_labels() {
    let rig = Rig::new();
    let local = rig.open().await;
    let remote = rig.remote(local.clone()).await;
    let (mine, other) = (tenant("mine"), tenant("other"));
    let batch = |series: std::ops::Range<usize>, time: i64| {
        let mut batch = WriteBatchBuilder::default();
        series.for_each(|i| _ = batch.series([("__name__", "m"), ("i", &*i.to_string())]).sample(time, i as f64));
        Arc::new(batch.build())
    };
    // All new; some new; none.
    for (series, time) in [(0..5, 1000), (0..40, 2000), (0..40, 3000)] {
        let count = series.len() as u64;
        let reply = remote.push(&mine, batch(series, time)).await.unwrap();
        assert_eq!((reply.samples, reply.rejections), (count, vec![]));
    }
    let sums: Vec<(i64, f64)> = [(1000, 10.0), (2000, 780.0), (3000, 780.0)].to_vec();
    let held = values(&local, &mine, "m").await;
    let sum = |time| held.iter().filter(|(at, _)| *at == time).map(|(_, value)| value).sum::<f64>();
    assert_eq!(sums.iter().map(|(time, _)| (*time, sum(*time))).collect::<Vec<_>>(), sums);
    for client in [&local as &dyn IngesterClient, &remote] {
        let known = client.push_known(&mine, batch(38..42, 4000)).await.unwrap();
        assert_eq!((known.reply.samples, &*known.unknown), (2, &[2, 3][..]));
        // Another tenant's series are no one's.
        let known = client.push_known(&other, batch(0..3, 4000)).await.unwrap();
        assert_eq!((known.reply.samples, &*known.unknown), (0, &[0, 1, 2][..]));
        // What is refused is named, though nobody sent its name.
        let mut again = WriteBatchBuilder::default();
        again.series([("__name__", "m"), ("i", "7")]).sample(3000, -1.0);
        let refused = client.push_known(&mine, Arc::new(again.build())).await.unwrap().reply;
        assert_eq!(refused.rejections[0].reason, "sample-duplicate-timestamp");
        assert!(refused.rejections[0].message.contains(r#"{__name__="m", i="7"}"#), "{:?}", refused.rejections);
    }
    assert_eq!(values(&local, &other, "m").await, []);
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_flushed_or_not() {
    let rig = Rig::new();
    let a = tenant("a");
    let push = |value: i32| {
        let mut batch = WriteBatchBuilder::default();
        batch.series([("__name__", "m")]).sample(NOW + i64::from(value), f64::from(value));
        Arc::new(batch.build())
    };
    let ingester = rig.open().await;
    ingester.push(&a, push(1)).await.unwrap();
    let flushed = ingester.shared.tenants.get(&a).unwrap();
    ingester.flush(&flushed, FlushExtent::Everything).await.unwrap();
    ingester.push(&a, push(2)).await.unwrap();
    assert_eq!(values(&ingester, &a, "m").await, [(NOW + 1, 1.0), (NOW + 2, 2.0)]);
    drop((ingester, flushed));
    let ingester = rig.open().await;
    assert_eq!(values(&ingester, &a, "m").await, [(NOW + 1, 1.0), (NOW + 2, 2.0)]);
    // Uploaded, listed, and old enough: only then the block goes.
    let one = ingester.shared.tenants.get(&a).unwrap();
    assert!(ingester.ship(&one).await);
    assert_eq!(one.blocks().len(), 1);
    rig.clock.advance(Duration::from_secs(14 * 3600));
    assert!(ingester.ship(&one).await);
    assert_eq!(one.blocks().len(), 1, "no bucket index lists it");
    let bucket = crate::bucket::TenantBucket::new(rig.bucket.clone(), a.clone());
    crate::compactor::update_bucket_index(&bucket, rig.clock.now_ms(), 4).await.unwrap();
    rig.clock.advance(Duration::from_secs(61));
    assert!(ingester.ship(&one).await);
    assert_eq!(one.blocks().len(), 1, "the index that lists it is too young");
    rig.clock.advance(Duration::from_secs(60));
    assert!(ingester.ship(&one).await);
    assert_eq!(one.blocks().len(), 0);
    assert_eq!(values(&ingester, &a, "m").await, [(NOW + 2, 2.0)]);
}

#[tokio::test]
async fn series_that_no_index_could_hold_are_flushed_into_several_blocks() {
    let rig = Rig::new();
    let a = tenant("a");
    let mut batch = WriteBatchBuilder::default();
    for pod in 0..50 {
        batch.series([("__name__", "m"), ("pod", &*pod.to_string())]).sample(NOW + pod, pod as f64);
    }
    let ingester = rig.open().await;
    ingester.push(&a, Arc::new(batch.build())).await.unwrap();
    let one = ingester.shared.tenants.get(&a).unwrap();
    let before = values(&ingester, &a, "m").await;
    let cut = one.head.begin_cut(&ingester.shared.wal, NOW + 100).unwrap();
    let mut blocks = Vec::new();
    for range in one.head.cut_ranges(cut) {
        let limits = IndexLimits { series: 20, ..IndexLimits::default() };
        ingester.write_range(&one, cut, range, &limits, &mut blocks).unwrap();
    }
    let series: Vec<u64> = blocks.iter().map(|block| block.meta().stats.num_series).collect();
    assert!(series.len() == 4 && series.iter().all(|count| *count <= 20), "{series:?}");
    blocks.into_iter().for_each(|block| one.add_block(block));
    assert_eq!(one.head.finish_cut(&ingester.shared.wal, cut).unwrap(), Dropped::Done);
    assert_eq!((one.head.series_count(), before.len()), (0, 50));
    assert_eq!(values(&ingester, &a, "m").await, before);
    // One series too large for any block is an error, which leaves nothing behind.
    let mut batch = WriteBatchBuilder::default();
    batch.series([("__name__", "m")]).sample(NOW + 200, 1.0);
    ingester.push(&a, Arc::new(batch.build())).await.unwrap();
    let cut = one.head.begin_cut(&ingester.shared.wal, NOW + 300).unwrap();
    let limits = IndexLimits { series_bytes: 10, ..IndexLimits::default() };
    let mut blocks = Vec::new();
    let files = rig.disk.list(&one.dir).unwrap();
    for range in one.head.cut_ranges(cut) {
        let refused = ingester.write_range(&one, cut, range, &limits, &mut blocks);
        assert!(matches!(refused, Err(FlushError::Block(BlockError::TooLarge { .. }))));
    }
    assert_eq!((blocks.len(), rig.disk.list(&one.dir).unwrap()), (0, files));
}

#[tokio::test]
async fn a_damaged_chunk_fails_its_queries_until_a_restart_or_a_flush() {
    let rig = Rig::new();
    let a = tenant("a");
    let ingester = rig.open().await;
    let mut batch = WriteBatchBuilder::default();
    batch.series([("__name__", "long")]);
    let expected: Vec<(i64, f64)> = (0..300).map(|i| (NOW + (i - 300) * 15_000, i as f64)).collect();
    for (time, value) in &expected {
        batch.sample(*time, *value);
    }
    batch.series([("__name__", "short")]).sample(NOW, 1.0);
    ingester.push(&a, Arc::new(batch.build())).await.unwrap();
    let damage = |ingester: &Ingester| {
        ingester.shared.chunk_files.sync().unwrap();
        let dir = Path::new("/data/chunks");
        let [file] = &rig.disk.list(dir).unwrap()[..] else { panic!("one file") };
        let path = dir.join(&file.name);
        let mut bytes = rig.disk.read(&path).unwrap();
        bytes[100] ^= 1;
        let file = rig.disk.open_writable(&path).unwrap();
        file.truncate(0).unwrap();
        file.append(&bytes).unwrap();
    };
    let select_long = || SelectRequest::new(vec![Matcher::equal("__name__", "long")], all());
    damage(&ingester);
    let selected = ingester.select(&a, select_long()).await.unwrap().try_collect::<Vec<_>>().await;
    let error = selected.unwrap_err();
    assert_eq!(error.reason, "head-chunk-unreadable");
    assert!(error.to_string().contains("long") && error.to_string().contains("samples from"), "{error}");
    assert_eq!(values(&ingester, &a, "short").await, [(NOW, 1.0)]);
    // The log has it still.
    drop(ingester);
    let ingester = rig.open().await;
    assert_eq!(values(&ingester, &a, "long").await, expected);
    damage(&ingester);
    let one = ingester.shared.tenants.get(&a).unwrap();
    ingester.flush(&one, FlushExtent::Everything).await.unwrap();
    let left = values(&ingester, &a, "long").await;
    assert_eq!(left, expected[expected.len() - left.len()..]);
    let lost = (ingester.shared.metrics.chunks_lost.get(), ingester.shared.metrics.samples_lost.get());
    assert_eq!(lost, (1, (expected.len() - left.len()) as u64));
    ingester.shared.chunk_files.upkeep();
    assert_eq!(ingester.shared.chunk_files.stats().files, 0);
}

#[tokio::test]
async fn a_snapshot_takes_the_place_of_the_log() {
    let rig = Rig::new();
    let (a, idle) = (tenant("a"), tenant("idle"));
    let push = |value: i32| {
        let mut batch = WriteBatchBuilder::default();
        batch.series([("__name__", "m")]).sample(NOW + i64::from(value), f64::from(value));
        Arc::new(batch.build())
    };
    let ingester = rig.open().await;
    ingester.push(&idle, push(1)).await.unwrap();
    for value in 0..3 {
        ingester.push(&a, push(value)).await.unwrap();
        ingester.snapshot().await.unwrap();
    }
    ingester.push(&a, push(3)).await.unwrap();
    let stats = ingester.shared.wal.stats();
    assert_eq!((stats.segments, ingester.shared.wal.snapshots().len()), (2, 2), "an idle tenant keeps no log");
    // What fails leaves nothing behind.
    rig.disk.set_free_bytes(Some(10));
    ingester.snapshot().await.unwrap_err();
    rig.disk.set_free_bytes(None);
    let names = rig.disk.list(Path::new("/data/wal")).unwrap();
    assert!(names.iter().all(|entry| !entry.name.ends_with(".tmp")), "{names:?}");
    drop(ingester);
    let ingester = rig.open().await;
    assert_eq!(values(&ingester, &idle, "m").await, [(NOW + 1, 1.0)]);
    assert_eq!(values(&ingester, &a, "m").await, [(NOW, 0.0), (NOW + 1, 1.0), (NOW + 2, 2.0), (NOW + 3, 3.0)]);
}

#[tokio::test]
async fn a_start_tells_what_it_could_not_bring_back() {
    let rig = Rig::new();
    let a = tenant("a");
    let ingester = rig.open().await;
    let mut batch = WriteBatchBuilder::default();
    batch.series([("__name__", "long")]);
    for i in 0..300 {
        batch.sample(NOW + (i - 300) * 15_000, i as f64);
    }
    ingester.push(&a, Arc::new(batch.build())).await.unwrap();
    for _ in 0..2 {
        ingester.snapshot().await.unwrap();
    }
    assert_eq!(ingester.shared.losses, []);
    let before = values(&ingester, &a, "long").await;
    drop(ingester);
    let dir = Path::new("/data/chunks");
    let [file] = &rig.disk.list(dir).unwrap()[..] else { panic!("one file") };
    let path = dir.join(&file.name);
    let mut bytes = rig.disk.read(&path).unwrap();
    bytes[100] ^= 1;
    rig.disk.create(&path).unwrap().append(&bytes).unwrap();
    let ingester = rig.open().await;
    let left = values(&ingester, &a, "long").await;
    let lost: Vec<_> = before.iter().filter(|sample| !left.contains(sample)).collect();
    assert!(!lost.is_empty() && lost.len() < 200, "{} of {}", lost.len(), before.len());
    let [loss] = &ingester.shared.losses[..] else { panic!("{:?}", ingester.shared.losses) };
    let (first, last) = (lost[0].0, lost[lost.len() - 1].0);
    let expected = format!("a\t1 damaged closed chunks\t1\t{}\t{first}\t{last}\t", lost.len());
    assert!(loss.to_string().starts_with(&expected), "{loss}, expected {expected}");
    assert_eq!(ingester.shared.metrics.restart_lost_samples.get(), lost.len() as u64);
}

#[tokio::test]
async fn series_that_ended_leave_memory_early_and_answers_stay() {
    const MINUTE: i64 = 60_000;
    let rig = Rig::new();
    let config = || Config { early_head_compaction_min_in_memory_series: Some(30), ..Config::default() };
    let ingester = rig.open_with(config()).await;
    let a = tenant("a");
    let push = |pods: std::ops::Range<i32>, minutes: std::ops::Range<i64>, value: f64| {
        let mut batch = WriteBatchBuilder::default();
        for pod in pods {
            batch.series([("__name__", &*format!("m{pod}"))]);
            minutes.clone().for_each(|minute| _ = batch.sample(NOW + minute * MINUTE, value + minute as f64));
        }
        Arc::new(batch.build())
    };
    // Ten pods that ended half an hour ago, and nineteen that go on: not enough series.
    assert_eq!(ingester.push(&a, push(0..10, -50..-30, 0.0)).await.unwrap().samples, 200);
    assert_eq!(ingester.push(&a, push(10..29, -50..1, 0.0)).await.unwrap().samples, 19 * 51);
    ingester.flush_early().await;
    let one = ingester.shared.tenants.get(&a).unwrap();
    assert_eq!((one.head.series_count(), one.blocks().len()), (29, 0));
    // One more is. The pods are in a block (two, where the range ended meanwhile), and answers are what they were.
    ingester.push(&a, push(29..30, 0..1, 0.0)).await.unwrap();
    ingester.flush_early().await;
    assert_eq!((one.head.series_count(), ingester.shared.metrics.early_flushes.get()), (20, 1));
    assert!(!one.blocks().is_empty());
    let expected = |minutes: std::ops::Range<i64>, value: f64| -> Vec<(i64, f64)> {
        minutes.map(|minute| (NOW + minute * MINUTE, value + minute as f64)).collect()
    };
    assert_eq!(values(&ingester, &a, "m3").await, expected(-50..-30, 0.0));
    assert_eq!(values(&ingester, &a, "m15").await, expected(-50..1, 0.0));
    ingester.flush_early().await;
    assert_eq!(ingester.shared.metrics.early_flushes.get(), 1, "nothing else has ended");
    // What comes late for the time cut off is taken, within the window: of a series that is gone, and of a new one.
    assert_eq!(ingester.push(&a, push(3..4, -30..-22, 0.0)).await.unwrap().samples, 8);
    assert_eq!(ingester.push(&a, push(40..41, -45..-40, 7.0)).await.unwrap().samples, 5);
    let too_old = ingester.push(&a, push(41..42, -121..-119, 7.0)).await.unwrap();
    assert_eq!((too_old.samples, &*too_old.rejections[0].reason), (1, "sample-timestamp-too-old"));
    drop((one, ingester));
    let ingester = rig.open_with(config()).await;
    for flush in [false, true] {
        assert_eq!(values(&ingester, &a, "m3").await, expected(-50..-22, 0.0));
        assert_eq!(values(&ingester, &a, "m40").await, expected(-45..-40, 7.0));
        assert_eq!(values(&ingester, &a, "m15").await, expected(-50..1, 0.0));
        let one = ingester.shared.tenants.get(&a).unwrap();
        if !flush {
            ingester.flush(&one, FlushExtent::Everything).await.unwrap();
            assert_eq!(one.head.series_count(), 0);
        }
    }
}

#[tokio::test]
async fn a_tenants_own_limits_count_from_the_next_push_on() {
    const MINUTE: i64 = 60_000;
    let rig = Rig::new();
    let ingester = rig.open().await;
    let (a, b) = (tenant("a"), tenant("b"));
    let push = async |tenant: &TenantId, series: i32, minute: i64| {
        let mut batch = WriteBatchBuilder::default();
        batch.series([("__name__", &*format!("m{series}"))]).sample(NOW + minute * MINUTE, 1.0);
        let reply = ingester.push(tenant, Arc::new(batch.build())).await.unwrap();
        reply.rejections.first().map_or(String::new(), |rejection| rejection.reason.to_string())
    };
    for tenant in [&a, &b] {
        assert_eq!(
            (push(tenant, 0, 0).await, push(tenant, 0, -150).await),
            ("".into(), "sample-timestamp-too-old".into())
        );
    }
    let own = Limits {
        out_of_order_time_window: Duration::from_secs(3 * 3600),
        max_series_per_tenant: Some(2),
        ..Limits::default()
    };
    let own = crate::limits::Limits { ingester: own, ..crate::limits::Limits::default() };
    rig.limits.set_overrides(HashMap::from([(a.clone(), Arc::new(own))]));
    assert_eq!((push(&a, 0, -150).await, push(&b, 0, -150).await), ("".into(), "sample-timestamp-too-old".into()));
    assert_eq!((push(&a, 1, 0).await, push(&a, 2, 0).await), ("".into(), "max-series-per-user".into()));
    assert_eq!((push(&b, 1, 0).await, push(&b, 2, 0).await), ("".into(), "".into()));
    rig.limits.set_overrides(HashMap::new());
    assert_eq!((push(&a, 2, 0).await, push(&a, 0, -151).await), ("".into(), "sample-timestamp-too-old".into()));
}

#[tokio::test]
async fn late_samples_change_the_data_version_and_so_does_a_restart() {
    const MINUTE: i64 = 60_000;
    let rig = Rig::new();
    let a = tenant("a");
    let push = |minute: i64, value: f64| {
        let mut batch = WriteBatchBuilder::default();
        batch.series([("__name__", "m")]).sample(NOW + minute * MINUTE, value);
        Arc::new(batch.build())
    };
    let hour = QueryRange { min: NOW - 60 * MINUTE, max: NOW };
    let version = |ingester: &Ingester, range: QueryRange| {
        ingester.shared.tenants.get(&a).unwrap().head.changes(range).version(range)
    };
    let ingester = rig.open().await;
    ingester.push(&a, push(0, 1.0)).await.unwrap();
    let first = version(&ingester, hour);
    ingester.push(&a, push(-9, 1.0)).await.unwrap();
    assert_eq!(version(&ingester, hour), first, "nobody caches the newest ten minutes");
    ingester.push(&a, push(-30, 1.0)).await.unwrap();
    let second = version(&ingester, hour);
    assert_ne!(second, first);
    // What is known, refused, or lies elsewhere changes nothing; a flush changes places only.
    ingester.push(&a, push(-30, 1.0)).await.unwrap();
    assert_eq!(ingester.push(&a, push(-30, 2.0)).await.unwrap().rejections.len(), 1);
    ingester.push(&a, push(-90, 1.0)).await.unwrap();
    assert_eq!(version(&ingester, hour), second);
    let young = QueryRange { min: NOW - 20 * MINUTE, max: NOW };
    assert_eq!(version(&ingester, young), first);
    let one = ingester.shared.tenants.get(&a).unwrap();
    ingester.flush(&one, FlushExtent::Everything).await.unwrap();
    let flushed = version(&ingester, hour);
    ingester.push(&a, push(-31, 1.0)).await.unwrap();
    assert_ne!(version(&ingester, hour), flushed);
    let before = version(&ingester, hour);
    drop((one, ingester));
    let ingester = rig.open().await;
    assert_ne!(version(&ingester, hour).incarnation, before.incarnation);
    assert_ne!(version(&ingester, young), first);
}
