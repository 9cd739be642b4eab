//! Errors as answers.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use crate::error::ServiceError;

/// The error behind an answer, an extension of the response: the frame logs it when the fault is ours.
#[derive(Debug, Clone)]
pub struct Failure(pub ServiceError);

/// The error in the shape in which Prometheus answers it: `{"status":"error","errorType":…,"error":…}`
/// with the status of the error's kind, and `Retry-After` where it has one.
pub fn prometheus_error(error: &ServiceError) -> Response {
    let body = serde_json::json!({
        "status": "error",
        "errorType": error.kind.prometheus_error_type(),
        "error": error.message,
    });
    let mut response = (error.kind.http_status(), body.to_string()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(after) = error.retry_after {
        // Whole seconds, and never 0: that would mean at once.
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000).max(1) as u64));
    }
    response.extensions_mut().insert(Failure(error.clone()));
    response
}
