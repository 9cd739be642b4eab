//! Queries in parts and shards, against queriers made for the test: who is asked, and who is let go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use http::Request;
use prometheus_client::registry::Registry;
use skald_model::{Columns, Labels, MetricMetadata};
use skald_promql::eval::{Annotations, FragmentOutput, QueryStats, Series, Value};
use tower::ServiceExt;

use super::queriers::Queriers;
use super::{Config, PromqlConfig, QueryFrontend};
use crate::error::ServiceError;
use crate::limits::TenantLimits;
use crate::querier::client::{FragmentReply, QuerierClient, QueryReply, QueryRequest};
use crate::query_scheduler::{Metrics, Scheduler};
use crate::runtime::{MemNet, Pool, Rng, Runtime, SystemClock};
use crate::select::{LabelRequest, SeriesExemplars};
use crate::settings::ByteSize;
use crate::tenant::TenantId;

/// Answers every part with one series of its steps, or never.
#[derive(Default)]
struct Fake {
    hangs: bool,
    /// Calls under way, and all calls.
    open: AtomicUsize,
    asked: AtomicUsize,
}

struct Open<'a>(&'a AtomicUsize);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    async fn ask(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        let _open = Open(&self.open);
        if self.hangs {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl QuerierClient for Fake {
    async fn query(&self, _: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError> {
        self.ask().await;
        let grid = request.plan.ready()?.root().grid;
        let mut samples = Columns::default();
        (0..grid.count).for_each(|step| samples.push_float(grid.time(step), step as f64));
        Ok(QueryReply {
            value: Value::Matrix(vec![Series { labels: Labels::from_pairs([("a", "1")]), samples }]),
            annotations: Annotations::default(),
            warnings: vec!["part".to_owned()],
            stats: QueryStats { samples_read: 3, ..QueryStats::default() },
            explain: None,
            charge: None,
        })
    }

    async fn fragment(&self, _: &TenantId, _: QueryRequest) -> Result<FragmentReply, ServiceError> {
        self.ask().await;
        Ok(FragmentReply { output: FragmentOutput::default(), warnings: Vec::new() })
    }

    async fn label_names(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
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

fn scheduler_metrics() -> Metrics {
    Metrics::new(&mut Registry::default())
}

fn frontend(config: Config, queriers: &[Arc<Fake>]) -> Arc<QueryFrontend> {
    let runtime = Runtime {
        clock: Arc::new(SystemClock::default()),
        rng: Arc::new(Rng::seeded(1)),
        disk: Arc::new(skald_tsdb::disk::MemDisk::default()),
        net: Arc::new(MemNet::default()),
        gossip: Arc::new(crate::runtime::SocketGossip),
        bucket: None,
        ingest_pool: Pool::inline(),
        query_pool: Pool::new("test-query", 1).unwrap(),
        background_pool: Pool::inline(),
    };
    let scheduler = Scheduler::new(&Default::default(), runtime.clock.clone(), scheduler_metrics());
    for (i, _) in queriers.iter().enumerate() {
        // For as long as the test.
        std::mem::forget(scheduler.offered(&i.to_string(), 100));
    }
    let queriers = queriers.to_vec();
    let querier_at =
        move |address: &str| Ok(queriers[address.parse::<usize>().unwrap()].clone() as Arc<dyn QuerierClient>);
    let recent = Duration::from_secs(3600);
    let registry = &mut Registry::default();
    let queriers = Queriers::new(Arc::new(scheduler), Arc::new(querier_at), recent, runtime.clock.clone(), registry);
    let queriers = Arc::new(queriers);
    Arc::new(QueryFrontend::new(config, PromqlConfig::default(), TenantLimits::default(), false, queriers, runtime))
}

/// 301 steps, which lie between the multiples of a minute in 11 parts of 30 and a last one.
const RANGE: &str = "start=0&end=600&step=2";

async fn ask(frontend: &Arc<QueryFrontend>, query: &str, more: &str) -> (u16, serde_json::Value) {
    let uri = format!("/api/v1/query_range?query={query}&{RANGE}{more}");
    let request = Request::get(uri).body(Body::empty()).unwrap();
    let response = frontend.clone().router().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn parts_go_to_queriers_in_turn_and_come_back_as_one() {
    let fakes = [Arc::new(Fake::default()), Arc::new(Fake::default())];
    let split = Config { split_interval: Some(Duration::from_secs(60)), ..Config::default() };
    let (status, answer) = ask(&frontend(split.clone(), &fakes), "m", "&stats=true").await;
    assert_eq!(status, 200, "{answer}");
    let data = &answer["data"];
    assert_eq!(data["result"].as_array().map(Vec::len), Some(1));
    let times: Vec<i64> =
        data["result"][0]["values"].as_array().unwrap().iter().map(|pair| pair[0].as_i64().unwrap()).collect();
    assert_eq!(times, (0..301).map(|step| step * 2).collect::<Vec<_>>());
    assert_eq!(
        (&answer["warnings"], &data["stats"]["samples"]["samplesRead"]),
        (&serde_json::json!(["part"]), &serde_json::json!(33))
    );
    let asked = fakes.each_ref().map(|fake| fake.asked.load(Ordering::SeqCst));
    assert!(asked == [6, 5] || asked == [5, 6], "{asked:?}");

    // All parts together have one budget.
    let narrow = Config { query_memory_limit: Some(ByteSize::bytes(3000)), ..split };
    let (status, answer) = ask(&frontend(narrow, &fakes), "m", "").await;
    assert_eq!(status, 422, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("memory limit of 3000 bytes"), "{answer}");

    // Without settings nothing is cut.
    let alone = [Arc::new(Fake::default())];
    assert_eq!(ask(&frontend(Config::default(), &alone), "sum(m)", "").await.0, 200);
    assert_eq!(alone[0].asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_deadline_and_a_client_that_leaves_end_every_part() {
    let config = Config { query_shards: 4, split_interval: Some(Duration::from_secs(60)), ..Config::default() };
    for query in ["m", "sum(m)"] {
        let fake = Arc::new(Fake { hangs: true, ..Fake::default() });
        let frontend = frontend(config.clone(), std::slice::from_ref(&fake));
        let all_gone = async || {
            while fake.open.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        };
        let (status, answer) = ask(&frontend, query, "&timeout=0.2").await;
        assert_eq!((status, answer["errorType"].as_str()), (503, Some("timeout")), "{answer}");
        let at_once = fake.asked.swap(0, Ordering::SeqCst);
        assert!((11..=16).contains(&at_once), "{query}: {at_once} calls at once");
        tokio::time::timeout(Duration::from_secs(10), all_gone()).await.expect("parts end with their deadline");

        let leaves = tokio::time::timeout(Duration::from_millis(200), ask(&frontend, query, "")).await;
        assert!(leaves.is_err() && fake.asked.load(Ordering::SeqCst) >= 11);
        tokio::time::timeout(Duration::from_secs(10), all_gone()).await.expect("parts end with their client");
    }
}
