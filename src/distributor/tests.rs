//! Whole requests against the distributor's routes, with ingesters in memory.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use skald_model::{Labels, MetricMetadata, varint};
use skald_proto::WriteBatch;
use tower::ServiceExt;

use super::*;
use crate::error::{ErrorKind, ServiceError};
use crate::http::{Frame, FrameMetrics};
use crate::ingester::client::{IngesterClient, PushReply, RejectedKind, Rejection};
use crate::limits::TenantLimits;
use crate::membership::{Ingesters, TenantShards};
use crate::runtime::{ManualClock, MemNet, Pool, Rng, Runtime};
use crate::select::{LabelRequest, SelectRequest, SeriesExemplars, SeriesStream};
use crate::settings::ByteSize;
use crate::tenant::TenantId;

mod relabel;

const NOW: i64 = 1_800_000_000_000;

/// An ingester that remembers what it was sent and answers as told.
#[derive(Default)]
struct FakeIngester {
    stored: Mutex<Vec<(TenantId, Arc<WriteBatch>)>>,
    answer: Mutex<Option<Result<PushReply, ServiceError>>>,
    hangs: bool,
    /// Could not be reached of late.
    unhealthy: bool,
}

impl FakeIngester {
    fn answering(answer: Result<PushReply, ServiceError>) -> Arc<Self> {
        Arc::new(Self { answer: Mutex::new(Some(answer)), ..Self::default() })
    }

    fn hanging() -> Arc<Self> {
        Arc::new(Self { hangs: true, ..Self::default() })
    }

    /// Labels of the series stored, with the times of their samples.
    fn series(&self) -> Vec<(String, Vec<i64>)> {
        let stored = self.stored.lock();
        let series = stored.iter().flat_map(|(_, batch)| {
            batch.iter().map(|s| (s.labels.to_labels().to_string(), s.samples.iter().map(|s| s.timestamp).collect()))
        });
        series.collect()
    }
}

fn unused<T>() -> Result<T, ServiceError> {
    Err(ServiceError::new(ErrorKind::Unimplemented, "unused", "distributors only push"))
}

#[async_trait]
impl IngesterClient for FakeIngester {
    fn is_healthy(&self) -> bool {
        !self.unhealthy
    }

    async fn push(&self, tenant: &TenantId, batch: Arc<WriteBatch>) -> Result<PushReply, ServiceError> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let reply = PushReply {
            samples: batch.sample_count() as u64,
            histograms: batch.iter().map(|series| series.histograms.len() as u64).sum(),
            exemplars: batch.exemplar_count() as u64,
            rejections: Vec::new(),
        };
        let answer = self.answer.lock().clone().unwrap_or(Ok(reply));
        if answer.is_ok() {
            self.stored.lock().push((tenant.clone(), batch));
        }
        answer
    }

    async fn select(&self, _: &TenantId, _: SelectRequest) -> Result<SeriesStream, ServiceError> {
        unused()
    }

    async fn label_names(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
        unused()
    }

    async fn label_values(&self, _: &TenantId, _: &str, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
        unused()
    }

    async fn series(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        unused()
    }

    async fn exemplars(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        unused()
    }

    async fn metadata(&self, _: &TenantId, _: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        unused()
    }
}

/// A distributor with one ingester, unless told otherwise.
struct Setup {
    config: Config,
    limits: Limits,
    multitenancy_enabled: bool,
    groups: Vec<Vec<Arc<FakeIngester>>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: Config::default(),
            limits: Limits::default(),
            multitenancy_enabled: false,
            groups: vec![vec![Arc::default()]],
        }
    }
}

struct Running {
    routes: Router,
    registry: Registry,
    clock: ManualClock,
    groups: Vec<Vec<Arc<FakeIngester>>>,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Setup {
    fn start(self) -> Running {
        let clock = ManualClock::at(NOW);
        let runtime = Runtime {
            clock: Arc::new(clock.clone()),
            rng: Arc::new(Rng::seeded(1)),
            disk: Arc::new(skald_tsdb::disk::MemDisk::default()),
            net: Arc::new(MemNet::default()),
            gossip: Arc::new(crate::runtime::SocketGossip),
            bucket: None,
            ingest_pool: Pool::inline(),
            query_pool: Pool::inline(),
            background_pool: Pool::inline(),
        };
        let members = |replicas: &Vec<Arc<FakeIngester>>| {
            replicas.iter().map(|replica| replica.clone() as Arc<dyn IngesterClient>).collect()
        };
        let ingesters = Ingesters::fixed(self.groups.iter().map(members).collect());
        let elections = skald_ring::Replica::alone().open("ha-tracker").unwrap();
        let ha_tracker = HaTracker::new(self.config.ha_tracker.clone(), elections, runtime.clock.clone());
        let ha_tracker = Arc::new(ha_tracker);
        let shards = skald_ring::Replica::alone().open("tenant-shards").unwrap();
        let shards =
            Arc::new(TenantShards::new(shards, Duration::ZERO, Duration::from_secs(3600), runtime.clock.clone()));
        let mut registry = Registry::default();
        let frame = Frame::new(runtime.clock.clone(), FrameMetrics::new(&mut registry));
        let ingesters = Arc::new(ArcSwap::from_pointee(ingesters));
        let limits = TenantLimits::new(crate::limits::Limits { distributor: self.limits, ..Default::default() });
        let distributor = Distributor::new(
            self.config,
            limits,
            ingesters,
            Arc::new(|| 1),
            shards,
            ha_tracker,
            &runtime,
            &mut registry,
        );
        let routes = frame.http(routes(Arc::new(distributor), self.multitenancy_enabled));
        Running { routes, registry, clock, groups: self.groups }
    }
}

impl Running {
    fn ingester(&self) -> &FakeIngester {
        &self.groups[0][0]
    }

    async fn send(&self, request: http::request::Builder, body: impl Into<Body>) -> Answer {
        let response =
            self.routes.clone().oneshot(request.uri("/api/v1/push").body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    async fn post(&self, body: impl Into<Body>) -> Answer {
        self.send(Request::post("/"), body).await
    }

    fn metric(&self, line: &str) -> Option<u64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '))?;
        value.parse().ok()
    }

    fn discarded(&self, reason: &str) -> Option<u64> {
        self.metric(&format!(r#"skald_discarded_samples_total{{reason="{reason}",tenant="anonymous"}}"#))
    }
}

/// A protobuf field of bytes.
fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    varint::put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn labels(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut series = Vec::new();
    for (name, value) in pairs {
        let mut label = Vec::new();
        field(&mut label, 0x0A, name);
        field(&mut label, 0x12, value);
        field(&mut series, 0x0A, &label);
    }
    series
}

fn add_sample(series: &mut Vec<u8>, timestamp: i64) {
    let mut sample = vec![0x09];
    sample.extend_from_slice(&1.5f64.to_le_bytes());
    sample.push(0x10);
    varint::put_uvarint(&mut sample, timestamp as u64);
    field(series, 0x12, &sample);
}

/// One series with samples at these times, as a request's field.
fn raw_series(pairs: &[(&[u8], &[u8])], times: &[i64]) -> Vec<u8> {
    let mut series = labels(pairs);
    times.iter().for_each(|time| add_sample(&mut series, *time));
    let mut request = Vec::new();
    field(&mut request, 0x0A, &series);
    request
}

fn series(pairs: &[(&str, &str)], times: &[i64]) -> Vec<u8> {
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    raw_series(&pairs, times)
}

fn good() -> Vec<u8> {
    series(&[("__name__", "good"), ("job", "a")], &[NOW])
}

fn compress(message: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(message).unwrap()
}

#[tokio::test]
async fn a_good_write_is_stored() {
    let running = Setup::default().start();
    let answer = running.post(compress(&[good(), good()].concat())).await;
    assert_eq!((answer.status, &*answer.text), (200, ""));
    assert_eq!(answer.headers["x-prometheus-remote-write-samples-written"], "2");
    let expected = (r#"{__name__="good", job="a"}"#.to_owned(), vec![NOW]);
    assert_eq!(running.ingester().series(), [expected.clone(), expected]);
    assert_eq!(running.ingester().stored.lock()[0].0, TenantId::anonymous());
    assert_eq!(running.metric(r#"skald_distributor_received_samples_total{tenant="anonymous"}"#), Some(2));
    assert_eq!(running.metric("skald_distributor_inflight_push_requests_bytes"), Some(0));
}

#[tokio::test]
async fn an_empty_write_is_fine() {
    let running = Setup::default().start();
    assert_eq!(running.post(compress(&[])).await.status, 200);
    assert!(running.ingester().stored.lock().is_empty());
}

#[tokio::test]
async fn a_body_may_come_in_pieces() {
    let running = Setup::default().start();
    let body = compress(&(0..100).flat_map(|i| series(&[("__name__", &format!("m{i}"))], &[NOW])).collect::<Vec<_>>());
    let pieces: Vec<_> = body.chunks(7).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let answer = running.post(Body::from_stream(futures::stream::iter(pieces))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(running.ingester().series().len(), 100);
}

#[tokio::test]
async fn headers_decide_before_the_body() {
    let running = Setup::default().start();
    let v1 = "application/x-protobuf";
    for (content_type, encoding, status) in [
        (Some(v1), Some("snappy"), 200),
        (Some("application/x-protobuf;proto=prometheus.WriteRequest"), Some("Snappy"), 200),
        (Some("Application/X-Protobuf ; proto = prometheus.WriteRequest"), None, 200),
        (None, None, 200),
        (Some("application/x-protobuf;proto=io.prometheus.write.v2.Request"), Some("snappy"), 200),
        (Some("application/x-protobuf;proto=io.prometheus.write.v3.Request"), Some("snappy"), 415),
        (Some("application/x-protobuf;proto=other"), Some("snappy"), 415),
        (Some("application/x-protobuf;broken"), Some("snappy"), 415),
        (Some("application/json"), Some("snappy"), 415),
        (Some(""), Some("snappy"), 415),
        (Some(v1), Some("gzip"), 415),
        (Some(v1), Some("identity"), 415),
    ] {
        let mut request = Request::post("/");
        request = content_type.into_iter().fold(request, |request, value| request.header("content-type", value));
        request = encoding.into_iter().fold(request, |request, value| request.header("content-encoding", value));
        let answer = running.send(request, compress(&good())).await;
        assert_eq!(answer.status, status, "{content_type:?} {encoding:?}: {}", answer.text);
        if status == 415 {
            assert!(answer.text.ends_with("(err-skald-unsupported-media-type)"), "{}", answer.text);
        }
    }
    assert_eq!(running.send(Request::get("/"), "").await.status, 405);
    assert_eq!(running.metric(r#"skald_distributor_refused_requests_total{reason="unsupported_media_type"}"#), Some(7));
}

#[tokio::test]
async fn tenants_are_checked() {
    let running = Setup { multitenancy_enabled: true, ..Setup::default() }.start();
    let too_long = "x".repeat(151);
    for (tenant, status) in [
        (None, 401),
        (Some("team-1"), 200),
        (Some("a/b"), 400),
        (Some(""), 400),
        (Some("ä"), 400),
        (Some(&*too_long), 400),
    ] {
        let request = Request::post("/");
        let request = tenant.into_iter().fold(request, |request, id| request.header("x-scope-orgid", id));
        let answer = running.send(request, compress(&good())).await;
        assert_eq!(answer.status, status, "{tenant:?}: {}", answer.text);
    }
    assert_eq!(running.ingester().stored.lock()[0].0.as_str(), "team-1");
    assert_eq!(running.metric(r#"skald_distributor_refused_requests_total{reason="no_tenant_id"}"#), Some(1));
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, id: &str) {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert!(answer.text.ends_with(&format!("(err-skald-{id})")), "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(answer.headers.contains_key("retry-after"), status == 429 || status >= 500, "{}", answer.text);
}

#[tokio::test]
async fn damaged_bodies_are_400_and_the_next_write_works() {
    let running = Setup::default().start();
    let whole = compress(&good());
    assert_refused(&running.post("").await, 400, "malformed-snappy");
    assert_refused(&running.post("garbage, not snappy").await, 400, "malformed-snappy");
    assert_refused(&running.post(whole[..whole.len() - 3].to_vec()).await, 400, "malformed-snappy");
    let mut bomb = Vec::new();
    varint::put_uvarint(&mut bomb, 90 << 20);
    bomb.extend_from_slice(b"small");
    assert_refused(&running.post(bomb).await, 400, "malformed-snappy");
    let mut gigabytes = Vec::new();
    varint::put_uvarint(&mut gigabytes, 4 << 30);
    assert_refused(&running.post(gigabytes).await, 413, "distributor-max-write-message-size");
    assert_refused(&running.post(compress(&[0xFF; 30])).await, 400, "malformed-protobuf");
    assert_refused(&running.post(compress(&[0x0A, 200, 1])).await, 400, "malformed-protobuf");
    let histograms = [labels(&[(b"__name__", b"m")]), [0x22, 0].repeat(1 << 20)].concat();
    let mut wide = Vec::new();
    field(&mut wide, 0x0A, &histograms);
    assert_refused(&running.post(compress(&wide)).await, 400, "write-message-too-wide");
    assert!(running.ingester().stored.lock().is_empty());
    assert_eq!(running.post(whole).await.status, 200);
    assert_eq!(running.metric("skald_distributor_inflight_push_requests_bytes"), Some(0));
}

#[tokio::test]
async fn oversize_bodies_are_413() {
    let config = Config { max_recv_msg_size: ByteSize::kib(2), ..Config::default() };
    let running = Setup { config, ..Setup::default() }.start();
    let id = "distributor-max-write-message-size";
    let noise: Vec<u8> = (0..3000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let declared = Request::post("/").header("content-length", "3000");
    assert_refused(&running.send(declared, noise.clone()).await, 413, id);
    let pieces: Vec<_> = noise.chunks(100).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    assert_refused(&running.post(Body::from_stream(futures::stream::iter(pieces))).await, 413, id);
    assert_refused(&running.post(compress(&[0; 3000])).await, 413, id);
}

#[tokio::test]
async fn eight_megabytes_of_empty_series_are_cheap() {
    let running = Setup::default().start();
    let answer = running.post(compress(&[0x0A, 0].repeat(4 << 20))).await;
    assert_eq!(answer.status, 200);
    let empty_samples = compress(&[0x0A, 2, 0x12, 0].repeat(2 << 20));
    assert_refused(&running.post(empty_samples).await, 400, "missing-metric-name");
    assert_eq!(running.discarded("missing_metric_name"), Some(2 << 20));
    assert!(running.ingester().stored.lock().is_empty());
}

/// A bad series among good ones: the good ones are written, the bad one is named and counted.
async fn check_series(limits: Limits, bad: Vec<u8>, samples: u64, id: &str, names: &str) {
    let running = Setup { limits, ..Setup::default() }.start();
    let answer = running.post(compress(&[good(), bad, good()].concat())).await;
    assert_refused(&answer, 400, id);
    assert!(answer.text.contains(names), "{}", answer.text);
    assert_eq!(answer.headers["x-prometheus-remote-write-samples-written"], "2");
    assert_eq!(running.ingester().series().len(), 2);
    assert_eq!(running.discarded(&id.replace('-', "_")), Some(samples));
    assert_eq!(running.metric(r#"skald_distributor_received_samples_total{tenant="anonymous"}"#), Some(2));
}

#[tokio::test]
async fn bad_labels() {
    let check = async |bad: Vec<u8>, id: &str, names: &str| check_series(Limits::default(), bad, 1, id, names).await;
    check(series(&[("job", "a")], &[NOW]), "missing-metric-name", r#"{job="a"}"#).await;
    check(series(&[], &[NOW]), "missing-metric-name", "no labels").await;
    check(series(&[("__name__", "a-b")], &[NOW]), "metric-name-invalid", "a-b").await;
    check(series(&[("__name__", "a"), ("b.c", "1")], &[NOW]), "label-invalid", "b.c").await;
    check(series(&[("__name__", "a"), ("", "1")], &[NOW]), "label-invalid", "empty").await;
    check(series(&[("__name__", "a"), ("b", "1"), ("b", "2")], &[NOW]), "duplicate-label-names", r#"b="1""#).await;
    check(raw_series(&[(b"__name__", b"a"), (b"b", &[0xC3, 0x28])], &[NOW]), "label-value-invalid", "UTF-8").await;
    check(raw_series(&[(b"__name__", b"a"), (&[0xFF], b"b")], &[NOW]), "label-invalid", "UTF-8").await;
    let long = "x".repeat(2049);
    check(series(&[("__name__", "a"), ("b", &long)], &[NOW]), "label-value-too-long", "2049 bytes, the limit is 2048")
        .await;
    check(series(&[("__name__", "a"), (&long[..1025], "b")], &[NOW]), "label-name-too-long", "1025").await;
    let many: Vec<_> = (0..30).map(|i| (format!("l{i:02}"), "v")).collect();
    let mut pairs = vec![("__name__", "a")];
    pairs.extend(many.iter().map(|(name, value)| (&**name, *value)));
    check(series(&pairs, &[NOW]), "max-label-names-per-series", "31 labels, the limit is 30").await;
}

#[tokio::test]
async fn labels_at_their_limits_pass() {
    let running = Setup::default().start();
    let names: Vec<_> = (0..79).map(|i| format!("l{i:02}")).collect();
    let mut info = vec![("__name__", "build_info")];
    info.extend(names.iter().map(|name| (&**name, "v")));
    let (name, value) = ("n".repeat(1024), "v".repeat(2048));
    let full = &info[1..30];
    let mut thirty = vec![("__name__", "m")];
    thirty.extend(full);
    let request = [
        series(&info, &[NOW]),
        series(&thirty, &[NOW]),
        series(&[("__name__", "a"), (&name, "b"), ("v", &value)], &[NOW]),
        series(&[("job", "unsorted"), ("__name__", "a:b"), ("gone", "")], &[NOW]),
    ];
    let answer = running.post(compress(&request.concat())).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(running.ingester().series()[3].0, r#"{__name__="a:b", job="unsorted"}"#);
}

#[tokio::test]
async fn any_utf8_is_valid_when_asked_for() {
    let limits = Limits { name_validation_scheme: NameValidation::Utf8, ..Limits::default() };
    let running = Setup { limits, ..Setup::default() }.start();
    let answer = running.post(compress(&series(&[("__name__", "größe.m"), ("a-b", "c")], &[NOW]))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[tokio::test]
async fn times_out_of_bounds_cost_their_samples_only() {
    let limits = Limits { past_grace_period: Some(Duration::from_secs(3600)), ..Limits::default() };
    let (newest, oldest) = (NOW + 600_000, NOW - 3_600_000);
    let times = [newest + 1, oldest, i64::MAX, NOW, newest, i64::MIN, oldest - 1];
    let running = Setup { limits, ..Setup::default() }.start();
    let answer = running.post(compress(&[series(&[("__name__", "m")], &times), good()].concat())).await;
    assert_refused(&answer, 400, "too-far-in-future");
    assert!(answer.text.contains(&(newest + 1).to_string()), "{}", answer.text);
    assert_eq!(running.ingester().series()[0].1, [oldest, NOW, newest]);
    assert_eq!(running.ingester().series().len(), 2);
    assert_eq!((running.discarded("too_far_in_future"), running.discarded("too_far_in_past")), (Some(2), Some(2)));
}

/// A native histogram of schema 8 with one observation in each of `buckets` buckets, as a series' field.
fn histogram(schema: i8, count: u64, buckets: u8, sum: f64) -> Vec<u8> {
    let mut histogram = vec![0x08];
    varint::put_uvarint(&mut histogram, count);
    histogram.push(0x19);
    histogram.extend_from_slice(&sum.to_le_bytes());
    histogram.extend_from_slice(&[0x20, (schema as u8) << 1]);
    field(&mut histogram, 0x5A, &[0x08, 0, 0x10, buckets]);
    let mut deltas = vec![0; buckets as usize];
    deltas[0] = 2;
    field(&mut histogram, 0x62, &deltas);
    histogram.push(0x78);
    varint::put_uvarint(&mut histogram, NOW as u64);
    let mut series = labels(&[(b"__name__", b"h")]);
    field(&mut series, 0x22, &histogram);
    let mut request = Vec::new();
    field(&mut request, 0x0A, &series);
    request
}

#[tokio::test]
async fn native_histograms_are_checked_and_brought_into_form() {
    let stored = async |limits: &Limits, body: Vec<u8>| -> Result<(i32, usize), String> {
        let running = Setup { limits: limits.clone(), ..Setup::default() }.start();
        let answer = running.post(compress(&[good(), body].concat())).await;
        if answer.status != 200 {
            return Err(answer.text);
        }
        let stored = running.ingester().stored.lock();
        let histogram = stored[0].1.iter().find_map(|series| series.histograms.first()).ok_or("none")?;
        Ok((histogram.value.schema(), histogram.value.num_buckets()))
    };
    let mut limits = Limits::default();
    assert_eq!(stored(&limits, histogram(3, 8, 8, 1.0)).await, Ok((3, 8)));
    // Finer than can be stored: reduced, two schemas down.
    assert_eq!(stored(&limits, histogram(10, 8, 8, 1.0)).await, Ok((8, 3)));
    let error = stored(&limits, histogram(3, 9, 8, 1.0)).await.unwrap_err();
    assert!(error.ends_with("(err-skald-native-histogram-count-mismatch)"), "{error}");
    let error = stored(&limits, histogram(60, 8, 8, 1.0)).await.unwrap_err();
    assert!(error.ends_with("(err-skald-invalid-native-histogram-schema)"), "{error}");
    // A stale marker has no buckets, whatever its sender says.
    assert_eq!(stored(&limits, histogram(60, 9, 8, skald_model::stale_nan())).await, Ok((0, 0)));
    limits.max_native_histogram_buckets = Some(4);
    assert_eq!(stored(&limits, histogram(3, 8, 8, 1.0)).await, Ok((1, 3)));
    limits.reduce_native_histogram_over_max_buckets = false;
    let error = stored(&limits, histogram(3, 8, 8, 1.0)).await.unwrap_err();
    assert!(error.ends_with("(err-skald-max-native-histogram-buckets)"), "{error}");
    limits.native_histograms_ingestion_enabled = false;
    assert_eq!(stored(&limits, histogram(3, 8, 8, 1.0)).await, Err("none".to_owned()));
}

#[tokio::test]
async fn exemplars_and_metadata_are_dropped_without_failing_the_write() {
    let running = Setup::default().start();
    let exemplar = |trace: &str, timestamp: i64| {
        let mut exemplar = labels(&[(b"trace", trace.as_bytes())]);
        exemplar.push(0x18);
        varint::put_uvarint(&mut exemplar, timestamp as u64);
        exemplar
    };
    let mut series = labels(&[(b"__name__", b"m")]);
    for exemplar in
        [exemplar("ok", NOW), exemplar(&"ä".repeat(124), NOW), exemplar("no time", 0), exemplar(&"ä".repeat(123), NOW)]
    {
        field(&mut series, 0x1A, &exemplar);
    }
    let metadata = |name: &str, help: &str| {
        let mut metadata = Vec::new();
        field(&mut metadata, 0x12, name.as_bytes());
        field(&mut metadata, 0x22, help.as_bytes());
        metadata
    };
    let mut request = Vec::new();
    field(&mut request, 0x0A, &series);
    field(&mut request, 0x1A, &metadata("m", &"ä".repeat(1000)));
    field(&mut request, 0x1A, &metadata(&"m".repeat(1025), ""));
    let answer = running.post(compress(&request)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.headers["x-prometheus-remote-write-exemplars-written"], "2");
    let stored = running.ingester().stored.lock();
    assert_eq!(stored[0].1.exemplars(0).len(), 2);
    assert_eq!((stored[0].1.metadata.len(), stored[0].1.metadata[0].help.len()), (1, 1024));
    for (what, reason) in [
        ("exemplars", "exemplar_labels_too_long"),
        ("exemplars", "exemplar_timestamp_invalid"),
        ("metadata", "metadata_metric_name_too_long"),
    ] {
        let line = format!(r#"skald_discarded_{what}_total{{reason="{reason}",tenant="anonymous"}}"#);
        assert_eq!(running.metric(&line), Some(1), "{line}");
    }
}

#[tokio::test]
async fn what_ingesters_refuse_is_told_and_counted() {
    let rejection = |kind, reason: &'static str, count| Rejection {
        kind,
        reason: reason.into(),
        count,
        message: format!("told by {reason}"),
    };
    let reply = PushReply {
        samples: 5,
        histograms: 0,
        exemplars: 0,
        rejections: vec![
            rejection(RejectedKind::Exemplar, "exemplar-out-of-order", 1),
            rejection(RejectedKind::Sample, "sample-out-of-order", 3),
        ],
    };
    let ingester = FakeIngester::answering(Ok(reply));
    let running = Setup { groups: vec![vec![ingester]], ..Setup::default() }.start();
    let answer = running.post(compress(&good())).await;
    assert_refused(&answer, 400, "sample-out-of-order");
    assert_eq!(answer.text, "told by sample-out-of-order (err-skald-sample-out-of-order)");
    assert_eq!(answer.headers["x-prometheus-remote-write-samples-written"], "5");
    assert_eq!(running.discarded("sample_out_of_order"), Some(3));
    // What this distributor refused comes first.
    let answer = running.post(compress(&[good(), series(&[("a", "b")], &[NOW])].concat())).await;
    assert_refused(&answer, 400, "missing-metric-name");
}

#[tokio::test]
async fn trouble_of_an_ingester_is_never_the_senders_fault() {
    for (kind, status) in [
        (ErrorKind::Unavailable, 503),
        (ErrorKind::Internal, 500),
        (ErrorKind::Timeout, 503),
        (ErrorKind::BadData, 500),
        (ErrorKind::NotFound, 500),
        (ErrorKind::Unauthenticated, 500),
        (ErrorKind::Canceled, 503),
        (ErrorKind::TooManyRequests, 429),
        (ErrorKind::TooLarge, 413),
    ] {
        let ingester = FakeIngester::answering(Err(ServiceError::new(kind, "some-trouble", "trouble")));
        let running = Setup { groups: vec![vec![ingester]], ..Setup::default() }.start();
        assert_refused(&running.post(compress(&good())).await, status, "some-trouble");
    }
}

#[tokio::test]
async fn an_ingester_that_hangs_is_given_up() {
    let running = Setup { groups: vec![vec![FakeIngester::hanging()]], ..Setup::default() }.start();
    let advance = async {
        tokio::task::yield_now().await;
        running.clock.advance(Duration::from_secs(11));
    };
    let (answer, ()) = tokio::join!(running.post(compress(&good())), advance);
    assert_refused(&answer, 503, "ingester-timeout");
}

#[tokio::test]
async fn retry_after_grows_with_the_attempts_and_is_spread() {
    let unavailable = || FakeIngester::answering(Err(ServiceError::new(ErrorKind::Unavailable, "down", "down")));
    let running = Setup { groups: vec![vec![unavailable()]], ..Setup::default() }.start();
    for (attempt, expected) in [("0", 3..=9), ("1", 3..=9), ("3", 12..=36), ("40", 48..=144), ("x", 3..=9)] {
        let mut seen = HashSet::new();
        for _ in 0..20 {
            let answer = running.send(Request::post("/").header("retry-attempt", attempt), compress(&good())).await;
            let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!(expected.contains(&seconds), "attempt {attempt}: {seconds}");
            seen.insert(seconds);
        }
        assert!(seen.len() > 1);
    }
}

#[tokio::test]
async fn rates_of_a_tenant() {
    let limits = Limits { ingestion_rate: Some(1.0), ingestion_burst_size: 3, ..Limits::default() };
    let running = Setup { limits, ..Setup::default() }.start();
    let two = compress(&[good(), good()].concat());
    assert_eq!(running.post(two.clone()).await.status, 200);
    let answer = running.post(two.clone()).await;
    assert_refused(&answer, 429, "tenant-max-ingestion-rate");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(running.discarded("rate_limited"), Some(2));
    let other = Request::post("/").header("x-scope-orgid", "other");
    assert_eq!(running.send(other, two.clone()).await.status, 200);
    running.clock.advance(Duration::from_secs(1));
    assert_eq!(running.post(two).await.status, 200);

    let limits = Limits { request_rate: Some(0.1), request_burst_size: 1, ..Limits::default() };
    let running = Setup { limits, ..Setup::default() }.start();
    assert_eq!(running.post(compress(&good())).await.status, 200);
    assert_refused(&running.post(compress(&good())).await, 429, "tenant-max-request-rate");
}

#[tokio::test]
async fn the_instance_bounds_what_is_in_flight() {
    let bytes = ByteSize::mib(1);
    let instance_limits =
        InstanceLimits { max_inflight_push_requests: Some(1), max_inflight_push_requests_bytes: Some(bytes) };
    let config = Config { instance_limits, ..Config::default() };
    let running = Setup { config, groups: vec![vec![FakeIngester::hanging()]], ..Setup::default() }.start();
    let large = compress(&vec![0; 2 << 20]);
    assert_refused(&running.post(large).await, 413, "distributor-max-inflight-push-requests-bytes");
    let hanging = tokio::spawn({
        let routes = running.routes.clone();
        routes.oneshot(Request::post("/api/v1/push").body(Body::from(compress(&good()))).unwrap())
    });
    tokio::task::yield_now().await;
    assert_eq!(running.metric("skald_distributor_inflight_push_requests"), Some(1));
    assert_refused(&running.post(compress(&good())).await, 503, "distributor-max-inflight-push-requests");
    hanging.abort();
    assert!(hanging.await.is_err());
    assert_eq!(running.metric("skald_distributor_inflight_push_requests"), Some(0));
    assert_eq!(running.metric("skald_distributor_inflight_push_requests_bytes"), Some(0));
}

const V2: &str = "application/x-protobuf;proto=io.prometheus.write.v2.Request";

/// A 2.0 request with the symbols `"", __name__, good, job, a`.
fn request_v2(series: &[Vec<u8>]) -> Vec<u8> {
    let mut request = Vec::new();
    ["", "__name__", "good", "job", "a"].iter().for_each(|symbol| field(&mut request, 0x22, symbol.as_bytes()));
    series.iter().for_each(|series| field(&mut request, 0x2A, series));
    request
}

fn series_v2(refs: &[u8], samples: &[(i64, i64)]) -> Vec<u8> {
    let mut series = Vec::new();
    field(&mut series, 0x0A, refs);
    for (time, start) in samples {
        let mut sample = vec![0x09];
        sample.extend_from_slice(&1.5f64.to_le_bytes());
        for (tag, number) in [(0x10, time), (0x18, start)] {
            sample.push(tag);
            varint::put_uvarint(&mut sample, *number as u64);
        }
        field(&mut series, 0x12, &sample);
    }
    series
}

fn written(answer: &Answer) -> [Option<&str>; 3] {
    ["samples", "histograms", "exemplars"].map(|what| {
        answer.headers.get(format!("x-prometheus-remote-write-{what}-written")).map(|count| count.to_str().unwrap())
    })
}

#[tokio::test]
async fn remote_write_2_0_is_taken_and_counted() {
    let running = Setup::default().start();
    let send = async |series: &[Vec<u8>]| {
        running.send(Request::post("/").header("content-type", V2), compress(&request_v2(series))).await
    };
    let far = NOW + 100_000_000;
    let good = series_v2(&[1, 2, 3, 4], &[(NOW, NOW - 7), (far, NOW - 1), (NOW + 1, 0), (NOW + 2, NOW - 5)]);
    // Two equal series of which one sample is too new: the starts of the others stay with them.
    let answer = send(&[good.clone(), good]).await;
    assert_refused(&answer, 400, "too-far-in-future");
    assert_eq!(written(&answer), [Some("6"), Some("0"), Some("0")]);
    let expected = (r#"{__name__="good", job="a"}"#.to_owned(), vec![NOW, NOW + 1, NOW + 2]);
    assert_eq!(running.ingester().series(), [expected.clone(), expected]);
    {
        let stored = running.ingester().stored.lock();
        for series in stored[0].1.iter() {
            assert_eq!(series.sample_starts, [NOW - 7, 0, NOW - 5]);
        }
    }
    let mut with_histogram = labels(&[]);
    field(&mut with_histogram, 0x0A, &[1, 2]);
    let mut stale = vec![0x19];
    stale.extend_from_slice(&skald_model::stale_nan().to_le_bytes());
    stale.push(0x78);
    varint::put_uvarint(&mut stale, NOW as u64);
    field(&mut with_histogram, 0x1A, &stale);
    let mut exemplar = vec![0x0A, 2, 3, 4, 0x18];
    varint::put_uvarint(&mut exemplar, NOW as u64);
    field(&mut with_histogram, 0x22, &exemplar);
    let answer = send(&[with_histogram, series_v2(&[1, 2], &[(NOW, 0)])]).await;
    assert_eq!((answer.status, written(&answer)), (200, [Some("1"), Some("1"), Some("1")]), "{}", answer.text);

    let answer = send(&[series_v2(&[1, 9], &[(NOW, 0)]), series_v2(&[1, 2], &[(NOW, 0)])]).await;
    assert_refused(&answer, 400, "label-reference-invalid");
    assert_eq!(written(&answer)[0], Some("1"));
    assert_refused(&send(&[series_v2(&[1, 2], &[])]).await, 400, "series-without-samples");
    // Whatever is wrong, a 2.0 sender is told that nothing was stored.
    let answer = running.send(Request::post("/").header("content-type", V2), "not snappy").await;
    assert_refused(&answer, 400, "malformed-snappy");
    assert_eq!(written(&answer), [Some("0"); 3]);
    let answer = running.post(compress(&self::good())).await;
    assert_eq!(written(&answer), [Some("1"), None, Some("0")]);
}

fn down() -> Arc<FakeIngester> {
    FakeIngester::answering(Err(ServiceError::new(ErrorKind::Unavailable, "down", "down")))
}

fn refusing(samples: u64) -> Arc<FakeIngester> {
    let rejection = Rejection {
        kind: RejectedKind::Sample,
        reason: "sample-out-of-order".into(),
        count: samples,
        message: "older".to_owned(),
    };
    FakeIngester::answering(Ok(PushReply { rejections: vec![rejection], ..PushReply::default() }))
}

async fn write_to_group(replicas: Vec<Arc<FakeIngester>>) -> Answer {
    let running = Setup { groups: vec![replicas], ..Setup::default() }.start();
    running.post(compress(&good())).await
}

#[tokio::test]
async fn a_group_answers_with_its_quorum() {
    let up = Arc::<FakeIngester>::default;
    let hanging = FakeIngester::hanging;
    assert_eq!(write_to_group(vec![up(), up(), up()]).await.status, 200);
    // Neither a dead, nor a hanging, nor a refusing member holds a write up.
    assert_eq!(write_to_group(vec![down(), up(), up()]).await.status, 200);
    assert_eq!(write_to_group(vec![up(), hanging(), up()]).await.status, 200);
    assert_eq!(write_to_group(vec![refusing(1), up(), up()]).await.status, 200);
    assert_refused(&write_to_group(vec![down(), up(), down()]).await, 503, "ingester-quorum-lost");
    assert_refused(&write_to_group(vec![refusing(1), up(), refusing(1)]).await, 400, "sample-out-of-order");
    // With one member down, what another refuses has no quorum.
    assert_refused(&write_to_group(vec![refusing(1), up(), down()]).await, 400, "sample-out-of-order");
    assert_refused(&write_to_group(vec![]).await, 503, "no-replica-group");
}

#[tokio::test]
async fn series_are_spread_over_groups_and_each_comes_whole() {
    let groups: Vec<Vec<Arc<FakeIngester>>> = (0..4).map(|_| vec![Arc::default()]).collect();
    let running = Setup { groups, ..Setup::default() }.start();
    let request: Vec<u8> = (0..400).flat_map(|i| series(&[("__name__", &format!("m{i}"))], &[NOW, NOW + 1])).collect();
    for _ in 0..2 {
        let answer = running.post(compress(&request)).await;
        assert_eq!((answer.status, &*answer.text), (StatusCode::OK.as_u16(), ""));
    }
    let mut all = HashSet::new();
    for group in &running.groups {
        let stored = group[0].series();
        assert!((120..280).contains(&stored.len()), "{}", stored.len());
        assert_eq!(stored[..stored.len() / 2], stored[stored.len() / 2..], "the same series go to the same group");
        for (labels, times) in &stored[..stored.len() / 2] {
            assert_eq!(*times, [NOW, NOW + 1]);
            assert!(all.insert(labels.clone()));
        }
    }
    assert_eq!(all.len(), 400);
}

/// What one group cannot take goes to the others, each part once; only when there is no other the write fails.
#[tokio::test]
async fn a_group_without_quorum_is_made_up_for_by_the_others() {
    let request: Vec<u8> = (0..60).flat_map(|i| series(&[("__name__", &format!("m{i}"))], &[NOW])).collect();
    let broken = || vec![down(), down(), Arc::default()];
    let whole = || vec![Arc::default(), Arc::default(), Arc::default()];
    let running = Setup { groups: vec![whole(), broken(), whole(), broken()], ..Setup::default() }.start();
    let answer = running.post(compress(&request)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    for member in 0..3 {
        let held = |group: usize| running.groups[group][member].series().len();
        assert_eq!(held(0) + held(2), 60);
        assert!(held(0) > 15 && held(2) > 15, "what two groups could not take went to one");
    }
    let running = Setup { groups: vec![broken(), broken()], ..Setup::default() }.start();
    assert_refused(&running.post(compress(&request)).await, 503, "ingester-quorum-lost");
    // What every group would refuse goes nowhere else.
    let refused = || FakeIngester::answering(Err(ServiceError::new(ErrorKind::TooManyRequests, "busy", "busy")));
    let running = Setup { groups: vec![vec![refused()], vec![Arc::default()]], ..Setup::default() }.start();
    assert_refused(&running.post(compress(&request)).await, 429, "busy");
    assert!(running.groups[1][0].series().len() < 60);
}

/// Who could not be reached of late is sent its part, and not waited for while somebody else may take it.
#[tokio::test]
async fn who_could_not_be_reached_of_late_holds_nothing_up() {
    let request: Vec<u8> = (0..60).flat_map(|i| series(&[("__name__", &format!("m{i}"))], &[NOW])).collect();
    let up = Arc::<FakeIngester>::default;
    // The clock stands still, so that none of them ever times out.
    let lost = || Arc::new(FakeIngester { hangs: true, unhealthy: true, ..FakeIngester::default() });
    let doubted = || Arc::new(FakeIngester { unhealthy: true, ..FakeIngester::default() });
    let held = |running: &Running, group: usize| running.groups[group][0].series().len();

    let running = Setup { groups: vec![vec![up(), lost(), lost()], vec![up(), up(), up()]], ..Setup::default() };
    let running = running.start();
    assert_eq!(running.post(compress(&request)).await.status, 200);
    assert_eq!((held(&running, 0), held(&running, 1)), (0, 60), "such a group is left out");

    let running = Setup { groups: vec![vec![up(), down(), lost()], vec![up(), up(), up()]], ..Setup::default() };
    let running = running.start();
    assert_eq!(running.post(compress(&request)).await.status, 200);
    assert_eq!(held(&running, 1), 60, "a quorum that takes the lost one is not waited for");

    let groups = vec![vec![up(), doubted(), doubted()], vec![up(), down(), down()]];
    let running = Setup { groups, ..Setup::default() }.start();
    assert_eq!(running.post(compress(&request)).await.status, 200);
    assert_eq!(held(&running, 0), 60, "when nobody else is left they are tried");
    // And waited for.
    assert_eq!(write_to_group(vec![doubted(), doubted(), down()]).await.status, 200);
}

/// Bodies as a real sender made them, long ago by this clock.
#[tokio::test]
async fn golden_bodies_are_taken() {
    #![expect(clippy::disallowed_methods, reason = "golden files are read where they are")]
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden/remote-write");
    let Ok(index) = std::fs::read_to_string(folder.join("expected.jsonl")) else {
        println!("skipped: {} is not here", folder.display());
        return;
    };
    let running = Setup::default().start();
    let mut samples = 0;
    for line in index.lines() {
        let expected: serde_json::Value = serde_json::from_str(line).unwrap();
        let body = std::fs::read(folder.join(expected["file"].as_str().unwrap())).unwrap();
        let answer = running.post(body).await;
        assert_eq!((answer.status, &*answer.text), (200, ""), "{}", expected["file"]);
        for key in ["samples", "histograms_int", "histograms_float"] {
            samples += expected[key].as_u64().unwrap();
        }
    }
    assert_eq!(running.metric(r#"skald_distributor_received_samples_total{tenant="anonymous"}"#), Some(samples));
}

/// Every series is judged by its own labels; what is taken has lost the replica's.
#[tokio::test]
async fn of_a_pair_of_senders_one_is_taken() {
    let limits = Limits { accept_ha_samples: true, ha_max_clusters: Some(2), ..Limits::default() };
    let running = Setup { limits, ..Setup::default() }.start();
    let of = |cluster: &str, replica: &str| {
        series(&[("__name__", "m"), ("__replica__", replica), ("cluster", cluster)], &[NOW])
    };
    assert_eq!(running.post(compress(&of("c", "a"))).await.status, 200);
    let refused = running.post(compress(&of("c", "b"))).await;
    assert_eq!(
        (refused.status, refused.headers["x-prometheus-remote-write-samples-written"].to_str().ok()),
        (202, Some("1"))
    );
    // A write of many senders, and a series of none of them.
    let mixed = [of("c", "b"), of("d", "b"), of("c", "a"), series(&[("__name__", "own")], &[NOW])].concat();
    assert_eq!(running.post(compress(&mixed)).await.status, 200);
    let stored: Vec<String> = running.ingester().series().into_iter().map(|(labels, _)| labels).collect();
    let expected =
        [r#"{__name__="m", cluster="c"}"#, r#"{__name__="m", cluster="d"}"#, r#"{__name__="m", cluster="c"}"#];
    assert_eq!(stored[1..3], expected[1..3]);
    assert_eq!(stored.len(), 4);
    assert_eq!(running.metric(r#"skald_distributor_deduped_samples_total{tenant="anonymous"}"#), Some(2));
    assert_refused(&running.post(compress(&of("e", "a"))).await, 400, "tenant-too-many-ha-clusters");
    for (path, shown) in [("ha_tracker", r#""replica":"a""#), ("all_user_stats", r#""deduped_samples":2"#)] {
        let request = Request::get(format!("/distributor/{path}")).header("Accept", "application/json");
        let response = running.routes.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(text.contains(shown), "{path}: {text}");
    }
    running.clock.advance(Duration::from_secs(31));
    assert_eq!(running.post(compress(&of("c", "b"))).await.status, 200);
    assert_eq!(running.post(compress(&of("c", "a"))).await.status, 202);
}
