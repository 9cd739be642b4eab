//! The envelope around every answer.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

use super::json::{put_list, put_str};
use crate::error::ServiceError;
use crate::http::prometheus_error;

/// What may stand around an answer's data.
#[derive(Debug, Default)]
pub struct Notes {
    /// Warnings.
    pub warnings: Vec<String>,
    /// Infos.
    pub infos: Vec<String>,
}

impl Notes {
    /// Adds the warning of an answer cut to a limit.
    pub fn truncated(&mut self) {
        self.warnings.push("results truncated due to limit".to_owned());
    }
}

/// Writes a success; `put_data` appends the value of `data`.
pub fn success_body(notes: &Notes, put_data: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.extend_from_slice(b"{\"status\":\"success\",\"data\":");
    put_data(&mut out);
    for (name, texts) in [("warnings", &notes.warnings), ("infos", &notes.infos)] {
        if !texts.is_empty() {
            out.push(b',');
            put_str(&mut out, name);
            out.push(b':');
            put_list(&mut out, texts, |out, text| put_str(out, text));
        }
    }
    out.push(b'}');
    out
}

/// A JSON answer.
pub fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The response of a handler.
pub fn respond(outcome: Result<Vec<u8>, ServiceError>) -> Response {
    match outcome {
        Ok(body) => json_response(StatusCode::OK, body),
        Err(error) => prometheus_error(&error),
    }
}
