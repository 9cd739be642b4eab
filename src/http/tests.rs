//! The frame and the server over an in-memory network, spoken to in plain HTTP/1.1.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;
use crate::runtime::{BoxIo, Clock, ManualClock, MemNet, Net, SystemClock};
use crate::services::Services;
use crate::settings::Secret;

crate::settings::settings! {
    /// Settings of a test.
    struct TestConfig {
        /// A number.
        pub number: u32 = 5,
        /// A password.
        pub password: Secret = Secret::default(),
    }
}

struct Server {
    net: MemNet,
    registry: Arc<RwLock<Registry>>,
    services: Services,
    stop: Arc<Notify>,
    served: tokio::task::JoinHandle<()>,
}

/// Reaches every route the tests use; `slow` answers once it is notified.
async fn server(slow: Arc<Notify>, clock: Arc<dyn Clock>) -> Server {
    let net = MemNet::default();
    let mut registry = Registry::default();
    ProcessMetrics::register(&mut registry, clock.as_ref());
    let metrics = FrameMetrics::new(&mut registry);
    let registry = Arc::new(RwLock::new(registry));
    let services = Services::new(clock.clone(), &["ingester"]);
    let config = TestConfig { number: 7, password: Secret::new("hunter2") };
    let link = Link { path: "/ring", title: "The ring" };
    let pages = Pages::new(services.clone(), registry.clone(), &config, &[link]);
    let routes = Router::new()
        .route("/panic", get(async || -> &'static str { panic!("on purpose") }))
        .route("/long/{name}", get(async || "long ".repeat(1000)))
        .route("/echo", post(async |body: String| body))
        .route(
            "/slow",
            get(async move || {
                slow.notified().await;
                "done"
            }),
        )
        .merge(pages.routes());
    let router = Frame::new(clock.clone(), metrics).http(routes);
    let listener = net.listen("skald:9009").await.unwrap();
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let config = Config {
        graceful_shutdown_timeout: Duration::from_secs(5),
        http_max_header_size: crate::settings::ByteSize::kib(8),
        ..Config::default()
    };
    let served = tokio::spawn(async move {
        serve(listener, None, move || router.clone(), &config, clock, async move { stopped.notified().await }).await;
    });
    Server { net, registry, services, stop, served }
}

async fn quick_server() -> Server {
    server(Arc::new(Notify::new()), Arc::new(SystemClock::default())).await
}

impl Server {
    async fn connect(&self) -> BoxIo {
        self.net.connect("skald:9009").await.unwrap()
    }

    /// One request on a connection of its own: the whole answer as text.
    async fn ask(&self, request: &str) -> String {
        let mut io = self.connect().await;
        // The server may answer and leave before it has read everything.
        let _ = io.write_all(request.as_bytes()).await;
        read_all(&mut io).await
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: skald\r\nconnection: close\r\n\r\n")).await
    }

    fn metric(&self, sample: &str) -> Option<f64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.read()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
    }
}

async fn read_all(io: &mut BoxIo) -> String {
    let mut bytes = Vec::new();
    // A cut connection is an error or an end.
    let _ = io.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[track_caller]
fn check(answer: &str, status: u16, body: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert_eq!(answer.split_once("\r\n\r\n").map(|(_, body)| body), Some(body));
}

#[tokio::test]
async fn ready_names_what_is_missing() {
    let server = quick_server().await;
    server.services.progress("ingester", "its turn comes after the bucket");
    check(&server.get("/ready").await, 503, "not ready\ningester: New (its turn comes after the bucket)\n");
    server.services.start("ingester", async { Ok::<_, String>(()) }).await.unwrap();
    check(&server.get("/ready").await, 200, "ready\n");
    check(&server.get("/services").await, 200, "ingester: Running\n");
}

#[tokio::test]
async fn pages_show_settings_and_links() {
    let server = quick_server().await;
    check(&server.get("/config").await, 200, "number: 7\npassword: \"********\"\n");
    check(&server.get("/config?mode=diff").await, 200, "number: 7\npassword: \"********\"\n");
    check(&server.get("/config?mode=defaults").await, 200, "number: 5\npassword: \"\"\n");
    assert!(server.get("/config?mode=x").await.starts_with("HTTP/1.1 400 "));
    let index = server.get("/").await;
    for path in ["/ready", "/services", "/metrics", "/config", "/ring"] {
        assert!(index.contains(&format!("<a href=\"{path}\">")), "{index}");
    }
    let metrics = server.get("/metrics").await;
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("process_resident_memory_bytes "), "{metrics}");
    assert!(metrics.contains("skald_build_info{version="), "{metrics}");
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_prometheus_shape() {
    let server = quick_server().await;
    let answer = server.get("/nowhere").await;
    check(&answer, 404, r#"{"error":"there is nothing at /nowhere","errorType":"not_found","status":"error"}"#);
    assert!(answer.contains("content-type: application/json\r\n"));
    let answer = server.get("/echo").await;
    check(&answer, 405, r#"{"error":"GET is not answered at /echo","errorType":"bad_data","status":"error"}"#);
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_server_lives() {
    let server = quick_server().await;
    let answer = server.get("/panic").await;
    let expected =
        r#"{"error":"the handler panicked; the log has the details","errorType":"internal","status":"error"}"#;
    check(&answer, 500, expected);
    assert_eq!(server.metric("skald_request_panics_total"), Some(1.0));
    assert!(server.get("/config").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn requests_are_measured_by_route() {
    let server = quick_server().await;
    server.get("/long/one").await;
    server.get("/long/two").await;
    server.get("/nowhere/one").await;
    server.ask("FROB /nowhere/two HTTP/1.1\r\nhost: skald\r\nconnection: close\r\n\r\n").await;
    let count = |method: &str, route: &str, status: u16| {
        let labels = format!("method=\"{method}\",route=\"{route}\",status_code=\"{status}\"");
        server.metric(&format!("skald_request_duration_seconds_count{{{labels}}}"))
    };
    assert_eq!(count("GET", "/long/{name}", 200), Some(2.0));
    assert_eq!(count("GET", "unknown", 404), Some(1.0));
    assert_eq!(count("other", "unknown", 404), Some(1.0));
    assert_eq!(server.metric("skald_requests_in_flight{transport=\"http\"}"), Some(0.0));
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_read_it() {
    let server = quick_server().await;
    let request = "GET /long/x HTTP/1.1\r\nhost: skald\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n";
    let answer = server.ask(request).await;
    assert!(answer.contains("content-encoding: gzip\r\n") && answer.len() < 1000, "{answer}");
    let plain = server.get("/long/x").await;
    assert!(!plain.contains("content-encoding") && plain.len() > 5000);
}

#[tokio::test]
async fn oversize_headers_are_refused() {
    let server = quick_server().await;
    let answer = server.get(&format!("/{}", "x".repeat(70_000))).await;
    assert!(answer.starts_with("HTTP/1.1 414 ") || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let padding = "x".repeat(20_000);
    let answer = server.ask(&format!("GET / HTTP/1.1\r\nhost: skald\r\nx: {padding}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(server.ask("garbage\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_stop_lets_requests_finish() {
    let slow = Arc::new(Notify::new());
    let server = server(slow.clone(), Arc::new(SystemClock::default())).await;
    let mut io = server.connect().await;
    let mut idle = server.connect().await;
    io.write_all(b"GET /slow HTTP/1.1\r\nhost: skald\r\n\r\n").await.unwrap();
    while server.metric("skald_requests_in_flight{transport=\"http\"}") != Some(1.0) {
        tokio::task::yield_now().await;
    }
    server.stop.notify_one();
    // The idle connection ends first: the server takes no more requests.
    assert_eq!(read_all(&mut idle).await, "");
    slow.notify_one();
    let answer = read_all(&mut io).await;
    check(&answer, 200, "done");
    server.served.await.unwrap();
    assert!(server.net.connect("skald:9009").await.is_err());
}

#[tokio::test]
async fn a_stop_cuts_what_does_not_finish() {
    let clock = ManualClock::at(0);
    let mut server = server(Arc::new(Notify::new()), Arc::new(clock.clone())).await;
    let mut io = server.connect().await;
    io.write_all(b"GET /slow HTTP/1.1\r\nhost: skald\r\n\r\n").await.unwrap();
    let in_flight = "skald_requests_in_flight{transport=\"http\"}";
    while server.metric(in_flight) != Some(1.0) {
        tokio::task::yield_now().await;
    }
    server.stop.notify_one();
    while server.net.connect("skald:9009").await.is_ok() {
        tokio::task::yield_now().await;
    }
    clock.advance(Duration::from_secs(6));
    (&mut server.served).await.unwrap();
    assert_eq!(read_all(&mut io).await, "");
    assert_eq!(server.registry_count_499(), Some(1.0));
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let server = quick_server().await;
    let mut io = server.connect().await;
    io.write_all(b"GET /slow HTTP/1.1\r\nhost: skald\r\n\r\n").await.unwrap();
    let in_flight = "skald_requests_in_flight{transport=\"http\"}";
    while server.metric(in_flight) != Some(1.0) {
        tokio::task::yield_now().await;
    }
    drop(io);
    while server.metric(in_flight) != Some(0.0) {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.registry_count_499(), Some(1.0));
}

#[tokio::test]
async fn a_silent_client_is_cut() {
    let clock = ManualClock::at(0);
    let server = server(Arc::new(Notify::new()), Arc::new(clock.clone())).await;
    for beginning in ["", "P"] {
        let mut io = server.connect().await;
        io.write_all(beginning.as_bytes()).await.unwrap();
        let mut advance = std::pin::pin!(async {
            loop {
                clock.advance(Duration::from_secs(300));
                tokio::task::yield_now().await;
            }
        });
        tokio::select! {
            rest = read_all(&mut io) => assert_eq!(rest, ""),
            () = &mut advance => {}
        }
    }
}

impl Server {
    fn registry_count_499(&self) -> Option<f64> {
        self.metric(r#"skald_request_duration_seconds_count{method="GET",route="/slow",status_code="499"}"#)
    }
}

#[tokio::test]
async fn the_grpc_port_does_not_answer_http_with_success() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let frame = Frame::new(clock.clone(), FrameMetrics::new(&mut Registry::default()));
    let router = frame.grpc(tonic::service::Routes::default(), crate::grpc::CallBounds::new(clock, 1));
    let ask = async |content_type: &str| {
        let request = http::Request::post("/skald.Nothing/Call").header("content-type", content_type);
        let request = request.body(axum::body::Body::empty()).unwrap();
        tower::ServiceExt::oneshot(router.clone(), request).await.unwrap()
    };
    let http = ask("text/plain").await;
    assert_eq!(http.status(), 404);
    assert!(http.extensions().get::<Failure>().is_some());
    let grpc = ask("application/grpc").await;
    assert_eq!((grpc.status().as_u16(), grpc.headers()["grpc-status"].as_bytes()), (200, &b"12"[..]));
}
