//! The querier over ingesters made for the test: the engine's contract, one thread for everything, deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use skald_model::{Columns, Labels, MetricMetadata, QueryRange};
use skald_promql::eval::{EvalParams, QueryContext, Value};
use skald_promql::parse::{ParseOptions, parse_expr};
use skald_promql::plan::Plan;
use skald_promql::source::Queryable;
use skald_promql::testing::source_conformance;
use skald_proto::WriteBatch;
use skald_ring::Replica;
use skald_tsdb::SeriesChunks;
use skald_tsdb::disk::MemDisk;
use skald_tsdb::encode::encode_columns;

use super::blocks::BlockFinder;
use super::client::{QuerierClient, QueryRequest};
use super::select::{ReadingBounds, TenantSeries, Warnings};
use super::{Config, Metrics, Neighbours, Querier};
use crate::bucket::MemBucket;
use crate::bucket::index_cache::{BucketIndexConfig, IndexCache};
use crate::error::{ErrorKind, ServiceError};
use crate::ingester::client::{IngesterClient, PushReply};
use crate::membership::{Ingesters, StoreGateways, TenantShards};
use crate::query_plan::SentPlan;
use crate::read_ahead::Place;
use crate::runtime::{Clock, MemNet, Pool, Rng, Runtime, SystemClock};
use crate::select::{LabelRequest, SelectRequest, SeriesExemplars, SeriesStream};
use crate::tenant::TenantId;

/// Answers selects from a list of series, one series a batch, letting others run in between.
#[derive(Default)]
struct FakeIngester {
    series: Vec<(Labels, Columns)>,
    /// Every select waits for ever behind its first batch.
    hangs: bool,
    /// Selects that are open.
    open: Arc<AtomicUsize>,
    /// Cannot be reached, it seems.
    unhealthy: bool,
    /// The deadlines it was told.
    deadlines: Arc<Mutex<Vec<Option<Duration>>>>,
}

/// Counts a select as open while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl IngesterClient for FakeIngester {
    fn is_healthy(&self) -> bool {
        !self.unhealthy
    }

    async fn push(&self, _: &TenantId, _: Arc<WriteBatch>) -> Result<PushReply, ServiceError> {
        Ok(PushReply::default())
    }

    async fn select(&self, _: &TenantId, request: SelectRequest) -> Result<SeriesStream, ServiceError> {
        let wanted = |labels: &Labels| {
            request.matchers.iter().all(|m| m.matches(labels.get(m.name()).unwrap_or_default()))
                && request.shard.is_none_or(|shard| shard.holds(labels))
        };
        let mut found: Vec<SeriesChunks> = self
            .series
            .iter()
            .filter(|(labels, _)| wanted(labels))
            .map(|(labels, columns)| SeriesChunks {
                labels: labels.clone(),
                chunks: encode_columns(columns).unwrap(),
                deleted: Vec::new(),
            })
            .filter(|series| !series.chunks.is_empty())
            .collect();
        found.sort_by(|a, b| a.labels.cmp(&b.labels));
        self.open.fetch_add(1, Ordering::SeqCst);
        self.deadlines.lock().push(request.bounds.deadline());
        let (open, hangs) = (Open(self.open.clone()), self.hangs);
        let batches = stream::unfold((found.into_iter(), open), move |(mut rest, open)| async move {
            tokio::task::yield_now().await;
            match rest.next() {
                Some(series) => Some((Ok(vec![series]), (rest, open))),
                None if hangs => std::future::pending().await,
                None => None,
            }
        });
        Ok(batches.boxed())
    }

    async fn label_names(&self, _: &TenantId, request: LabelRequest) -> Result<Vec<String>, ServiceError> {
        self.deadlines.lock().push(request.bounds.deadline());
        Ok(Vec::new())
    }

    async fn label_values(&self, _: &TenantId, _: &str, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
        Ok(Vec::new())
    }

    async fn series(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        Ok(Vec::new())
    }

    async fn exemplars(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        Ok(Vec::new())
    }

    async fn metadata(&self, _: &TenantId, _: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        Ok(Vec::new())
    }
}

/// A querier over replicas of one group, with a query pool of one thread and nothing in the bucket.
fn querier(replicas: Vec<FakeIngester>) -> Querier {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let runtime = Runtime {
        clock: clock.clone(),
        rng: Arc::new(Rng::seeded(1)),
        disk: Arc::new(MemDisk::default()),
        net: Arc::new(MemNet::default()),
        gossip: Arc::new(crate::runtime::SocketGossip),
        bucket: None,
        ingest_pool: Pool::inline(),
        query_pool: Pool::new("test-query", 1).unwrap(),
        background_pool: Pool::inline(),
    };
    let bucket = Arc::new(MemBucket::default());
    let indexes = Arc::new(IndexCache::new(bucket, clock.clone(), BucketIndexConfig::default()));
    let members = replicas.into_iter().map(|one| Arc::new(one) as Arc<dyn IngesterClient>).collect();
    Querier::new(
        Config::default(),
        Neighbours {
            ingesters: Arc::new(ArcSwap::from_pointee(Ingesters::fixed(vec![members]))),
            store_gateways: Arc::new(ArcSwap::from_pointee(StoreGateways::none())),
            zone: String::new(),
            lookback: Duration::from_secs(3600),
            shards: Arc::new(TenantShards::new(
                Replica::alone().open("shards").unwrap(),
                Duration::ZERO,
                Duration::from_secs(3600),
                clock.clone(),
            )),
        },
        BlockFinder::new(indexes, clock),
        runtime,
        Metrics::new(&mut Registry::default()),
    )
}

fn gauges(count: usize) -> Vec<(Labels, Columns)> {
    let one = |i: usize| {
        let mut columns = Columns::default();
        (0..200).for_each(|t| columns.push_float(t * 15_000, i as f64));
        (Labels::from_pairs([("__name__", "m".to_owned()), ("i", format!("{i:03}"))]), columns)
    };
    (0..count).map(one).collect()
}

fn instant(query: &str, timeout: Duration) -> QueryRequest {
    let expr = parse_expr(query, &ParseOptions::default()).unwrap();
    let plan = Plan::of(&expr, &EvalParams::instant(2_000_000)).unwrap();
    QueryRequest { query: query.into(), plan: SentPlan::Here(Arc::new(plan)), timeout, explain: false }
}

#[test]
fn a_tenants_series_are_a_source_as_the_engine_wants_it() {
    let io = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for replicas in [1, 3] {
        source_conformance(|series| {
            let fakes = (0..replicas).map(|_| FakeIngester { series: series.clone(), ..FakeIngester::default() });
            let shared = querier(fakes.collect()).shared;
            let bounds = ReadingBounds::new(QueryContext::unlimited(), None, None);
            let place = Place { pool: shared.runtime.query_pool.clone(), io: io.handle().clone() };
            let tenant = TenantId::anonymous();
            Box::new(TenantSeries { shared, tenant, place, warnings: Warnings::default(), bounds, small: None })
                as Box<dyn Queryable>
        });
    }
}

#[tokio::test]
async fn fifty_joins_run_on_one_thread() {
    let querier = querier(vec![FakeIngester { series: gauges(20), ..FakeIngester::default() }]);
    let query = vec!["m"; 51].join(" + on (i) ");
    let tenant = TenantId::anonymous();
    let queries = (0..4).map(|_| querier.query(&tenant, instant(&query, Duration::from_secs(60))));
    for reply in futures::future::join_all(queries).await {
        let Value::Vector(elements) = reply.unwrap().value else { panic!("a vector") };
        assert_eq!(elements.len(), 20);
    }
}

#[tokio::test]
async fn a_query_whose_source_hangs_ends_with_its_deadline_and_lets_go() {
    let open = Arc::new(AtomicUsize::new(0));
    let hanging = FakeIngester { series: gauges(3), hangs: true, open: open.clone(), ..FakeIngester::default() };
    let querier = querier(vec![hanging]);
    let error = querier.query(&TenantId::anonymous(), instant("sum(m)", Duration::from_millis(50))).await.unwrap_err();
    assert_eq!((error.kind, &*error.reason), (ErrorKind::Timeout, "query-timeout"));
    let gone = async {
        while open.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the select is cancelled");
}

#[tokio::test]
async fn a_deadline_goes_along_and_who_could_not_be_reached_is_asked_last() {
    let deadlines: [Arc<Mutex<Vec<Option<Duration>>>>; 3] = Default::default();
    let fake = |i: usize| FakeIngester {
        series: gauges(3),
        unhealthy: i == 1,
        deadlines: deadlines[i].clone(),
        ..FakeIngester::default()
    };
    let querier = querier((0..3).map(fake).collect());
    let before = querier.shared.runtime.clock.monotonic();
    let tenant = TenantId::anonymous();
    // Too few answers for a short hedge delay.
    for _ in 0..14 {
        querier.query(&tenant, instant("m", Duration::from_secs(60))).await.unwrap();
    }
    let until = Duration::from_secs(7);
    let labels = LabelRequest::new(Vec::new(), QueryRange::ALL).until(Some(until));
    querier.label_names(&tenant, labels).await.unwrap();
    let after = querier.shared.runtime.clock.monotonic();
    let [one, unhealthy, other] = deadlines.map(|told| std::mem::take(&mut *told.lock()));
    // On a slow machine it may have been asked as the one more.
    assert!(unhealthy.len() <= 5 && one.len() == 15 && other.len() == 15, "{unhealthy:?}");
    assert_eq!((one.last(), other.last()), (Some(&Some(until)), Some(&Some(until))));
    let minute = Duration::from_secs(60);
    for told in one[..one.len() - 1].iter().chain(&other[..other.len() - 1]) {
        assert!(told.is_some_and(|told| (before + minute..=after + minute).contains(&told)), "{told:?}");
    }
}
