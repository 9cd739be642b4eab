//! Clients and servers over a network in memory: bounds, deadlines, health, compression, TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use prometheus_client::registry::Registry;
use skald_model::{Labels, QueryRange};
use skald_tsdb::SeriesChunks;
use skald_tsdb::disk::{Disk, MemDisk};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::task::AbortOnDropHandle;
use ulid::Ulid;

use super::peer::PeerMetrics;
use super::*;
use crate::http::{self, Frame, FrameMetrics};
use crate::runtime::{BoxIo, Clock, Listener, ManualClock, MemNet, Net, SystemClock};
use crate::select::{LabelRequest, SelectRequest};
use crate::settings::ByteSize;
use crate::store_gateway::client::{BlocksBatch, BlocksStream, FromBlocks, StoreGatewayClient};
use crate::store_gateway::grpc::{GrpcStoreGatewayClient, server};
use crate::tls::tests::{self as certificates, Authority};
use crate::tls::{ClientTls, ServerTls};

/// What the gateway of these tests is asked for, by the label.
const HANG: &str = "hang";
const LARGE: &str = "large";

/// A store-gateway that hangs, or answers much.
#[derive(Default)]
struct Fake {
    working: Arc<AtomicUsize>,
    asked: AtomicUsize,
}

struct Working(Arc<AtomicUsize>);

impl Working {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl StoreGatewayClient for Fake {
    async fn select(&self, _: &TenantId, _: Vec<Ulid>, _: SelectRequest) -> Result<BlocksStream, ServiceError> {
        let working = Working::begin(&self.working);
        let series = SeriesChunks { labels: Labels::from_pairs([("a", "1")]), chunks: Vec::new(), deleted: Vec::new() };
        let first = futures::stream::once(async { Ok(BlocksBatch::Series(vec![series])) });
        let hangs = futures::stream::once(async move {
            let _working = working;
            std::future::pending().await
        });
        Ok(first.chain(hangs).boxed())
    }

    async fn label_names(
        &self,
        _: &TenantId,
        _: Vec<Ulid>,
        _: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError> {
        Ok(FromBlocks { value: vec!["name".to_owned()], served: Vec::new() })
    }

    async fn label_values(
        &self,
        _: &TenantId,
        _: Vec<Ulid>,
        name: &str,
        _: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _working = Working::begin(&self.working);
        if name == HANG {
            std::future::pending::<()>().await;
        }
        let value = (0..10_000).map(|i| format!("a value that is much like the others, {i:05}")).collect();
        Ok(FromBlocks { value, served: Vec::new() })
    }

    async fn series(
        &self,
        _: &TenantId,
        _: Vec<Ulid>,
        _: LabelRequest,
    ) -> Result<FromBlocks<Vec<Labels>>, ServiceError> {
        Ok(FromBlocks { value: Vec::new(), served: Vec::new() })
    }
}

/// A network in memory that counts what goes to those who connect.
#[derive(Clone, Default)]
struct CountingNet {
    net: MemNet,
    received: Arc<AtomicUsize>,
}

struct Counting(BoxIo, Arc<AtomicUsize>);

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(cx, buf);
        self.1.fetch_add(buf.filled().len() - before, Ordering::SeqCst);
        polled
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Net for CountingNet {
    fn listen(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Listener>>> {
        self.net.listen(address)
    }
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let (connecting, received) = (self.net.connect(address), self.received.clone());
        Box::pin(async move { Ok(Box::new(Counting(connecting.await?, received)) as BoxIo) })
    }
}

const ADDRESS: &str = "localhost:9095";

/// A server and what clients need.
#[derive(Clone, Default)]
struct Bench {
    net: CountingNet,
    fake: Arc<Fake>,
    tls: Option<Arc<ServerTls>>,
    per_connection: Option<usize>,
}

impl Bench {
    /// Serves until the handle is dropped.
    async fn serve(&self) -> AbortOnDropHandle<()> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let listener = self.net.listen(ADDRESS).await.unwrap();
        let frame = Frame::new(clock.clone(), FrameMetrics::new(&mut Registry::default()));
        let bounds = CallBounds::new(clock.clone(), self.per_connection.unwrap_or(100));
        let router = frame.grpc(tonic::service::Routes::new(server(self.fake.clone())), bounds);
        let tls = self.tls.clone();
        let serving = async move {
            let config = http::Config::default();
            http::serve(listener, tls, move || router.clone(), &config, clock, std::future::pending()).await;
        };
        AbortOnDropHandle::new(tokio::spawn(serving))
    }

    fn channels(&self, config: Config, tls: Option<Arc<ClientTls>>, clock: Arc<dyn Clock>) -> Channels {
        let metrics = PeerMetrics::new(&mut Registry::default());
        Channels::with(config, Arc::new(self.net.clone()), clock, tls, metrics)
    }

    fn client(&self, config: Config, tls: Option<Arc<ClientTls>>) -> GrpcStoreGatewayClient {
        let channels = self.channels(config, tls, Arc::new(SystemClock::default()));
        GrpcStoreGatewayClient::new(channels.to(ADDRESS).unwrap())
    }
}

async fn values(client: &GrpcStoreGatewayClient, name: &str) -> Result<usize, ServiceError> {
    let request = LabelRequest::new(Vec::new(), QueryRange::ALL);
    Ok(client.label_values(&TenantId::anonymous(), Vec::new(), name, request).await?.value.len())
}

async fn select(client: &GrpcStoreGatewayClient) -> Result<BlocksStream, ServiceError> {
    client.select(&TenantId::anonymous(), Vec::new(), SelectRequest::new(Vec::new(), QueryRange::ALL)).await
}

#[track_caller]
fn is<T: std::fmt::Debug>(outcome: Result<T, ServiceError>, kind: ErrorKind, reason: &str) -> String {
    let error = outcome.unwrap_err();
    assert_eq!((error.kind, &*error.reason), (kind, reason), "{error}");
    error.message
}

/// Waits until nothing works on the server.
async fn all_gone(fake: &Fake) {
    let gone = async {
        while fake.working.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the server stops its work");
}

#[tokio::test]
async fn one_deadline_ends_the_call_on_both_sides() {
    let bench = Bench::default();
    let _server = bench.serve().await;
    let hasty = Config { read_timeout: Duration::from_millis(100), ..Config::default() };
    let client = bench.client(hasty, None);
    is(values(&client, HANG).await, ErrorKind::Timeout, "call-deadline");
    all_gone(&bench.fake).await;
    // A stream that has begun ends, too, and says why.
    let mut stream = select(&client).await.unwrap();
    assert!(matches!(stream.try_next().await, Ok(Some(_))));
    let end = stream.try_next().await.map(|batch| batch.is_some());
    is(end, ErrorKind::Timeout, "call-deadline");
    all_gone(&bench.fake).await;

    // The server keeps the time even of a client that does not.
    let patient = bench.client(Config::default(), None);
    let mut raw = client_of!(
        skald_proto::grpc::store_gateway_client::StoreGatewayClient<Peer>,
        bench.channels(Config::default(), None, Arc::new(ManualClock::at(0))).to(ADDRESS).unwrap()
    );
    let mut request = request(&TenantId::anonymous(), skald_proto::grpc::SelectRequest::default());
    request.set_timeout(Duration::from_millis(100));
    let mut stream = raw.select(request).await.unwrap().into_inner();
    assert!(matches!(stream.message().await, Ok(Some(_))));
    let end = stream.message().await.map(|message| message.is_some()).map_err(ServiceError::from);
    is(end, ErrorKind::Timeout, "call-deadline");
    all_gone(&bench.fake).await;
    assert_eq!(values(&patient, LARGE).await.unwrap(), 10_000);
}

#[tokio::test]
async fn a_callers_own_deadline_outweighs_that_of_the_kind_and_arrives() {
    let bench = Bench::default();
    let _server = bench.serve().await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let client = |config| {
        let channels = bench.channels(config, None, clock.clone());
        GrpcStoreGatewayClient::new(channels.to(ADDRESS).unwrap())
    };
    let ask = async |client: &GrpcStoreGatewayClient, name: &str, within: Duration| {
        let request = LabelRequest::new(Vec::new(), QueryRange::ALL).until(Some(clock.monotonic() + within));
        client.label_values(&TenantId::anonymous(), Vec::new(), name, request).await.map(|answer| answer.value.len())
    };
    let text = is(
        ask(&client(Config::default()), HANG, Duration::from_millis(100)).await,
        ErrorKind::Timeout,
        "call-deadline",
    );
    assert!(text.contains("longer than"), "{text}");
    all_gone(&bench.fake).await;
    is(ask(&client(Config::default()), HANG, Duration::ZERO).await, ErrorKind::Timeout, "call-deadline");
    let hasty = Config { read_timeout: Duration::from_millis(10), ..Config::default() };
    let answered = ask(&client(hasty), LARGE, Duration::from_secs(60)).await;
    assert_eq!(answered.unwrap(), 10_000, "it may be later, too");

    // What is asked because of a call ends with it.
    let seen: axum::routing::MethodRouter = axum::routing::any(async |request: axum::extract::Request| {
        let left = deadline_of(&tonic::Request::from_http(request));
        left.map_or("none".to_owned(), |left| left.as_secs().to_string())
    });
    let fixed: Arc<dyn Clock> = Arc::new(ManualClock::at(0));
    let served = CallBounds::new(fixed, 1).around(axum::Router::new().route("/", seen));
    for (timeout, expected) in [(Some("60S"), "60"), (None, "none")] {
        let mut request = ::http::Request::post("/");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(served.clone(), request).await.unwrap();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn both_ends_bound_the_calls_under_way() {
    let bench = Bench { per_connection: Some(2), ..Bench::default() };
    let _server = bench.serve().await;
    let client = bench.client(Config { max_in_flight_calls: 3, ..Config::default() }, None);
    let first = select(&client).await.unwrap();
    let second = select(&client).await.unwrap();
    let text = is(values(&client, LARGE).await, ErrorKind::Unavailable, "grpc-in-flight-limit");
    assert!(text.contains("2 calls") && text.contains("server.grpc_max_in_flight_calls"), "{text}");
    let near = bench.client(Config { max_in_flight_calls: 1, ..Config::default() }, None);
    let third = select(&near).await.unwrap();
    let text = is(values(&near, LARGE).await, ErrorKind::Unavailable, "peer-in-flight-limit");
    assert!(text.contains(ADDRESS) && text.contains("grpc_client.max_in_flight_calls"), "{text}");
    drop((first, second, third));
    all_gone(&bench.fake).await;
    assert_eq!(values(&near, LARGE).await.unwrap(), 10_000);
    assert_eq!(values(&client, LARGE).await.unwrap(), 10_000);
}

#[tokio::test]
async fn compressed_answers_are_the_same_and_smaller() {
    let bench = Bench::default();
    let _server = bench.serve().await;
    let mut received = Vec::new();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let before = bench.net.received.load(Ordering::SeqCst);
        let client = bench.client(Config { compression, ..Config::default() }, None);
        assert_eq!(values(&client, LARGE).await.unwrap(), 10_000);
        received.push(bench.net.received.load(Ordering::SeqCst) - before);
    }
    assert!(received[0] > 400_000 && received[1] < received[0] / 4 && received[2] < received[0] / 4, "{received:?}");
}

#[tokio::test]
async fn messages_are_bounded() {
    let bench = Bench::default();
    let _server = bench.serve().await;
    let client = bench.client(Config { max_recv_msg_size: ByteSize::kib(64), ..Config::default() }, None);
    is(values(&client, LARGE).await, ErrorKind::TooLarge, "grpc-transport");
    let client = bench.client(Config { max_send_msg_size: ByteSize::kib(64), ..Config::default() }, None);
    is(values(&client, &"x".repeat(100_000)).await, ErrorKind::TooLarge, "grpc-transport");
    assert_eq!(bench.fake.asked.load(Ordering::SeqCst), 1, "what is too large is not sent");
}

#[tokio::test]
async fn a_dead_peer_is_unhealthy_until_it_answers_again() {
    let bench = Bench::default();
    let clock = ManualClock::at(0);
    let channels = bench.channels(Config::default(), None, Arc::new(clock.clone()));
    assert!(channels.healthy(ADDRESS));
    let peer = channels.to(ADDRESS).unwrap();
    let client = GrpcStoreGatewayClient::new(peer.clone());
    for _ in 0..3 {
        assert!(channels.healthy(ADDRESS));
        let text = is(values(&client, LARGE).await, ErrorKind::Unavailable, "peer-unreachable");
        assert!(text.starts_with("cannot reach localhost:9095: ") && text.contains("refused"), "{text}");
    }
    assert!(!channels.healthy(ADDRESS) && !peer.is_healthy());
    let server = bench.serve().await;
    assert_eq!(values(&client, LARGE).await.unwrap(), 10_000);
    assert!(channels.healthy(ADDRESS));

    // A connection that breaks is made anew.
    drop(server);
    while values(&client, LARGE).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let _server = bench.serve().await;
    assert_eq!(values(&client, LARGE).await.unwrap(), 10_000);
}

#[tokio::test]
async fn connections_are_kept_by_address_and_let_go() {
    let bench = Bench::default();
    let clock = ManualClock::at(0);
    let channels = bench.channels(Config::default(), None, Arc::new(clock.clone()));
    for wrong in ["", "host", "host:port", "a b:1"] {
        assert_eq!(channels.to(wrong).err().map(|e| e.kind()), Some(io::ErrorKind::InvalidInput), "{wrong}");
    }
    let _server = bench.serve().await;
    let held = channels.to(ADDRESS).unwrap();
    for other in ["a:1", "b:1", "a:1"] {
        channels.to(other).unwrap();
    }
    assert_eq!(channels.kept(), 3);
    clock.advance(Duration::from_secs(599));
    channels.to("b:1").unwrap();
    assert_eq!(channels.kept(), 3);
    clock.advance(Duration::from_secs(61));
    channels.to("b:1").unwrap();
    assert_eq!(channels.kept(), 2, "one is held, one was asked for");
    assert_eq!(held.address(), ADDRESS);
}

#[tokio::test]
async fn calls_go_through_tls_or_tell_what_to_mend() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::default());
    let ours = Authority::new(disk.clone(), "ours");
    Authority::new(disk.clone(), "theirs");
    ours.sign("server", "localhost");
    ours.sign("client", "someone");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let tls = Some(certificates::server(&disk, clock, "server", Some("ours")));
    let bench = Bench { tls, ..Bench::default() };
    let _server = bench.serve().await;
    let client = |tls| bench.client(Config::default(), tls);
    let known = client(Some(certificates::client(&disk, "ours", Some("client"), None)));
    assert_eq!(values(&known, LARGE).await.unwrap(), 10_000);
    for (tls, expected) in [
        (certificates::client(&disk, "theirs", Some("client"), None), "tls_ca_path must hold the authority"),
        (certificates::client(&disk, "ours", None, None), "set grpc_client.tls.tls_cert_path"),
    ] {
        let text = is(values(&client(Some(tls)), LARGE).await, ErrorKind::Unavailable, "peer-unreachable");
        assert!(text.contains(expected), "{text}");
    }
    is(values(&client(None), LARGE).await, ErrorKind::Unavailable, "peer-unreachable");

    let plain = Bench::default();
    let _server = plain.serve().await;
    let client = plain.client(Config::default(), Some(certificates::client(&disk, "ours", None, None)));
    let text = is(values(&client, LARGE).await, ErrorKind::Unavailable, "peer-unreachable");
    assert!(text.contains("the server speaks no TLS"), "{text}");
}
