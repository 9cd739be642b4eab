//! `POST /api/v1/push`: remote_write 1.0 and 2.0 over HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http_body_util::BodyExt;
use skald_proto::remote_write::Version;

use super::in_flight::Reservation;
use super::push::{Distributor, Outcome};
use crate::error::{ErrorKind, ServiceError};
use crate::http::Failure;
use crate::tenant::TenantId;

/// Most that is allocated for a body because it declares its size; larger ones grow as they arrive.
const FIRST_ALLOCATION: u64 = 1 << 20;
/// Retry-After of a sender's first attempt; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(6);
const LONGEST_RETRY: Duration = Duration::from_secs(96);

#[derive(Clone)]
struct Push {
    distributor: Arc<Distributor>,
    multitenancy_enabled: bool,
}

/// The distributor's HTTP routes.
pub fn routes(distributor: Arc<Distributor>, multitenancy_enabled: bool) -> Router {
    Router::new()
        .route("/api/v1/push", post(push))
        .route("/distributor/ha_tracker", get(ha_tracker))
        .route("/distributor/all_user_stats", get(all_user_stats))
        .with_state(Push { distributor, multitenancy_enabled })
}

async fn ha_tracker(State(push): State<Push>, headers: HeaderMap) -> Response {
    push.distributor.ha_tracker.page(&headers)
}

async fn all_user_stats(State(push): State<Push>, headers: HeaderMap) -> Response {
    let distributor = &push.distributor;
    distributor.tenants.page(distributor.clock.monotonic()).answer(&headers)
}

async fn push(State(push): State<Push>, request: Request) -> Response {
    let attempt = header_number(request.headers(), "retry-attempt").unwrap_or(0);
    let distributor = &push.distributor;
    let version = version(request.headers());
    let knows_counts = version == Ok(Version::V2);
    let outcome = match version {
        Ok(version) => push.carry_out(request, version).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(outcome) => {
            let mut response = match outcome.refusal {
                None if outcome.only_duplicates => {
                    let text = "another replica of this cluster is elected: these samples are duplicates\n";
                    (StatusCode::ACCEPTED, text).into_response()
                }
                None => Response::new(Body::empty()),
                Some(error) => distributor.answer_error(error, attempt),
            };
            // Senders of 1.0 take these, too; they count histograms among the samples.
            let samples =
                if knows_counts { outcome.samples.saturating_sub(outcome.histograms) } else { outcome.samples };
            written(&mut response, samples, knows_counts.then_some(outcome.histograms), outcome.exemplars);
            response
        }
        Err(error) => {
            distributor.metrics.refuse_request(&error.reason);
            let mut response = distributor.answer_error(error, attempt);
            if knows_counts {
                written(&mut response, 0, Some(0), 0);
            }
            response
        }
    }
}

/// Tells what was stored. A sender of 2.0 that is not told takes everything for lost.
fn written(response: &mut Response, samples: u64, histograms: Option<u64>, exemplars: u64) {
    let headers = response.headers_mut();
    headers.insert("x-prometheus-remote-write-samples-written", samples.into());
    if let Some(histograms) = histograms {
        headers.insert("x-prometheus-remote-write-histograms-written", histograms.into());
    }
    headers.insert("x-prometheus-remote-write-exemplars-written", exemplars.into());
}

impl Push {
    async fn carry_out(&self, request: Request, version: Version) -> Result<Outcome, ServiceError> {
        let distributor = &*self.distributor;
        check_encoding(request.headers())?;
        let tenant = TenantId::of_request(request.headers(), self.multitenancy_enabled)?;
        let mut reservation = distributor.in_flight.begin()?;
        let limit = distributor.config.max_recv_msg_size.as_usize();
        let (parts, body) = request.into_parts();
        let body = read_body(&parts.headers, body, limit, &mut reservation).await?;
        distributor.push(&tenant, version, body, &mut reservation).await
    }
}

impl Distributor {
    /// An error as senders get it: its message with the stable id, as plain text.
    fn answer_error(&self, error: ServiceError, attempt: u64) -> Response {
        let mut response = (error.kind.http_status(), error.message_with_id()).into_response();
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        if error.kind.is_retryable() {
            let wait = error.retry_after.unwrap_or_else(|| self.retry_after(attempt));
            let seconds = wait.as_millis().div_ceil(1000).max(1) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(Failure(error));
        response
    }

    /// Grows with each attempt; spread by half, so that senders turned away together do not come back together.
    fn retry_after(&self, attempt: u64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(16) as u32;
        let wait = FIRST_RETRY.saturating_mul(1 << doublings).min(LONGEST_RETRY);
        let spread = 0.5 + (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        wait.mul_f64(spread)
    }
}

fn check_encoding(headers: &HeaderMap) -> Result<(), ServiceError> {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(()),
        (Some(encoding), None) if encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"snappy") => Ok(()),
        (Some(encoding), _) => Err(unsupported(format!(
            "content encoding {:?} is not supported, remote_write is sent with snappy (block format)",
            String::from_utf8_lossy(encoding.as_bytes())
        ))),
    }
}

/// Which version the content type says the body is of; without a message's name it is 1.0.
fn version(headers: &HeaderMap) -> Result<Version, ServiceError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Version::V1) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let refuse = |why: &str| {
        Err(unsupported(format!("content type {text:?} is not supported, {why}; use application/x-protobuf")))
    };
    let mut parts = text.split(';').map(str::trim);
    if !parts.next().unwrap_or_default().eq_ignore_ascii_case("application/x-protobuf") {
        return refuse("remote_write is protobuf");
    }
    let mut version = Version::V1;
    for parameter in parts {
        let Some((name, value)) = parameter.split_once('=') else {
            return refuse("a parameter has no value");
        };
        if name.trim().eq_ignore_ascii_case("proto") {
            version = match value.trim().trim_matches('"') {
                "prometheus.WriteRequest" => Version::V1,
                "io.prometheus.write.v2.Request" => Version::V2,
                _ => return refuse("its message is unknown"),
            };
        }
    }
    Ok(version)
}

fn unsupported(message: String) -> ServiceError {
    ServiceError::new(ErrorKind::UnsupportedMedia, "unsupported-media-type", message)
}

/// Reads a body as it arrives. The declared size only spares a body that is too large from being sent: what is reserved
/// and allocated is what has come.
async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    reservation: &mut Reservation,
) -> Result<Bytes, ServiceError> {
    let declared = header_number(headers, CONTENT_LENGTH.as_str());
    if let Some(declared) = declared.filter(|declared| *declared > limit as u64) {
        return Err(too_large(declared, limit));
    }
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // The sender went away, or broke the HTTP it speaks.
        let frame = frame.map_err(|error| {
            ServiceError::new(ErrorKind::BadData, "malformed-body", format!("the body could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let have = first.len() + rest.len() + data.len();
        if have > limit {
            return Err(too_large(have as u64, limit));
        }
        reservation.grow_to(have)?;
        match (first.is_empty() && rest.is_empty(), rest.is_empty()) {
            (true, _) => first = data,
            (false, true) => {
                rest.reserve(have.max(declared.unwrap_or(0).min(FIRST_ALLOCATION) as usize));
                rest.extend_from_slice(&std::mem::take(&mut first));
                rest.extend_from_slice(&data);
            }
            (false, false) => rest.extend_from_slice(&data),
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

fn too_large(size: u64, limit: usize) -> ServiceError {
    ServiceError::new(
        ErrorKind::TooLarge,
        "distributor-max-write-message-size",
        format!("the write request has {size} bytes or more, the limit is {limit}"),
    )
}

fn header_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}
