//! What every request passes through: measured, its panics caught, its answer compressed, unknown paths refused.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use futures::FutureExt;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

use super::answer::{Failure, prometheus_error};
use super::linger::linger;
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::CallBounds;
use crate::logging::{LogLimit, LogTurn};
use crate::runtime::Clock;

/// Signals of the servers.
#[derive(Clone)]
pub struct FrameMetrics {
    duration: Family<RequestLabels, Histogram, fn() -> Histogram>,
    in_flight: Family<TransportLabels, Gauge>,
    panics: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    /// The pattern the path matched, never the path: clients choose paths.
    route: String,
    status_code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabels {
    transport: &'static str,
}

fn duration_histogram() -> Histogram {
    // From a push of a few samples to a query at its deadline.
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0])
}

impl FrameMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> FrameMetrics {
        let metrics = FrameMetrics {
            duration: Family::new_with_constructor(duration_histogram),
            in_flight: Family::default(),
            panics: Counter::default(),
        };
        registry.register(
            "skald_request_duration_seconds",
            "Time from a request's headers to its answer's, by route and status (499: the client went away)",
            metrics.duration.clone(),
        );
        registry.register("skald_requests_in_flight", "Requests being answered", metrics.in_flight.clone());
        registry.register("skald_request_panics", "Requests whose handler panicked", metrics.panics.clone());
        metrics
    }
}

/// Failed requests told in the log each second; an overload fails thousands.
const FAILURES_LOGGED_PER_SECOND: u64 = 5;

/// Puts routes into the frame.
#[derive(Clone)]
pub struct Frame {
    clock: Arc<dyn Clock>,
    metrics: FrameMetrics,
    failures: Arc<LogLimit>,
}

impl Frame {
    /// A frame that measures with `metrics`.
    pub fn new(clock: Arc<dyn Clock>, metrics: FrameMetrics) -> Frame {
        Frame { clock, metrics, failures: Arc::new(LogLimit::new(FAILURES_LOGGED_PER_SECOND)) }
    }

    /// Frames HTTP routes. An unknown path is a 404 and a wrong method a 405 in Prometheus' error shape.
    pub fn http(&self, routes: Router) -> Router {
        let measure = Measure { frame: self.clone(), transport: "http" };
        routes
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            // The fastest level: within a few percent of the default's size on JSON, at a fraction of its CPU.
            .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
            .layer(from_fn_with_state(measure, answer))
    }

    /// Frames gRPC routes. Only gRPC is answered in gRPC's way: the router of tonic answers everything with 200 and a
    /// gRPC status, so that a lost HTTP client (a health check, a scrape) would believe that all is well.
    pub fn grpc(&self, routes: tonic::service::Routes, bounds: CallBounds) -> Router {
        let measure = Measure { frame: self.clone(), transport: "grpc" };
        let routes = bounds.around(routes.into_axum_router().fallback(unknown_call));
        routes.layer(from_fn_with_state(measure, answer))
    }
}

impl Frame {
    /// Tells of a request that failed by our fault, a few times a second.
    fn log_failure(&self, under_way: &UnderWay<'_>, failure: Option<&Failure>) {
        let LogTurn::Write { suppressed } = self.failures.ask(self.clock.monotonic()) else { return };
        tracing::warn!(
            method = under_way.method,
            route = under_way.route,
            status = under_way.status_code,
            reason = failure.map(|Failure(error)| error.reason.as_ref()),
            error = failure.map(|Failure(error)| error.message.as_str()),
            suppressed,
            "request failed"
        );
    }
}

async fn not_found(request: Request) -> Response {
    let message = format!("there is nothing at {}", request.uri().path());
    prometheus_error(&ServiceError::new(ErrorKind::NotFound, "not-found", message))
}

async fn method_not_allowed(request: Request) -> Response {
    let message = format!("{} is not answered at {}", request.method(), request.uri().path());
    prometheus_error(&ServiceError::new(ErrorKind::MethodNotAllowed, "method-not-allowed", message))
}

async fn unknown_call(request: Request) -> Response {
    if !is_grpc(request.headers()) {
        let message = "this address answers gRPC only; HTTP is at server.http_listen_address";
        return prometheus_error(&ServiceError::new(ErrorKind::NotFound, "not-found", message));
    }
    tonic::Status::unimplemented("this process does not serve that call").into_http()
}

fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[derive(Clone)]
struct Measure {
    frame: Frame,
    transport: &'static str,
}

async fn answer(State(measure): State<Measure>, request: Request, next: Next) -> Response {
    let is_grpc = is_grpc(request.headers());
    let route = match request.extensions().get::<MatchedPath>() {
        // A gRPC service is one route, its calls are the paths below; one that does not exist is renamed below.
        Some(_) if is_grpc => request.uri().path().to_owned(),
        Some(path) => path.as_str().to_owned(),
        None => UNKNOWN_ROUTE.to_owned(),
    };
    let mut under_way = UnderWay::begin(&measure, method_name(request.method()), route);
    let request = if is_grpc { request } else { linger(request, &measure.frame.clock) };
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = match answered {
        Ok(response) => response,
        Err(_) => {
            // The panic hook has logged what and where.
            measure.frame.metrics.panics.inc();
            if is_grpc {
                tonic::Status::internal("the handler panicked").into_http()
            } else {
                prometheus_error(&ServiceError::internal("the handler panicked; the log has the details"))
            }
        }
    };
    under_way.status_code = status_code(&response, is_grpc);
    if under_way.status_code == "Unimplemented" {
        under_way.route = UNKNOWN_ROUTE.to_owned();
    }
    if response.status().is_server_error() {
        measure.frame.log_failure(&under_way, response.extensions().get::<Failure>());
    }
    response
}

/// The `route` of requests that match none.
const UNKNOWN_ROUTE: &str = "unknown";

/// The HTTP status, or of a gRPC answer without a body its gRPC status (an answer that streams counts as begun well).
fn status_code(response: &Response, is_grpc: bool) -> String {
    if is_grpc && response.status() == StatusCode::OK {
        let status = response.headers().get("grpc-status").map(HeaderValue::as_bytes);
        return format!("{:?}", status.map_or(tonic::Code::Ok, tonic::Code::from_bytes));
    }
    response.status().as_str().to_owned()
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// A request being answered; counted when dropped, also when that is because the client went away.
struct UnderWay<'m> {
    measure: &'m Measure,
    in_flight: Gauge,
    begun: Duration,
    method: &'static str,
    route: String,
    status_code: String,
}

impl<'m> UnderWay<'m> {
    fn begin(measure: &'m Measure, method: &'static str, route: String) -> Self {
        let labels = TransportLabels { transport: measure.transport };
        let in_flight = measure.frame.metrics.in_flight.get_or_create_owned(&labels);
        in_flight.inc();
        let begun = measure.frame.clock.monotonic();
        UnderWay { measure, in_flight, begun, method, route, status_code: "499".to_owned() }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.in_flight.dec();
        let took = self.measure.frame.clock.monotonic().saturating_sub(self.begun);
        tracing::debug!(
            method = self.method,
            route = self.route,
            status = self.status_code,
            duration_ms = took.as_millis() as u64,
            "request answered"
        );
        let labels = RequestLabels {
            method: self.method,
            route: std::mem::take(&mut self.route),
            status_code: std::mem::take(&mut self.status_code),
        };
        self.measure.frame.metrics.duration.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
