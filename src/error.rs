//! The one error that crosses service boundaries, and its two faces: HTTP and gRPC.

use std::borrow::Cow;
use std::time::Duration;

/// What the caller should make of an error. Each kind has one HTTP status and one gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong; repeating it cannot succeed. 400.
    BadData,
    /// No tenant was named. 401.
    Unauthenticated,
    /// Nothing is there. 404.
    NotFound,
    /// The method does not fit the path. 405.
    MethodNotAllowed,
    /// The body is larger than allowed. 413.
    TooLarge,
    /// The content type or encoding is not understood. 415.
    UnsupportedMedia,
    /// The request is well formed but its evaluation fails, by its content or by a limit. 422.
    Unprocessable,
    /// The tenant is beyond a rate limit; repeat later. 429.
    TooManyRequests,
    /// The client went away. 499.
    Canceled,
    /// A fault of ours. 500.
    Internal,
    /// This instance is not made for it. 501.
    Unimplemented,
    /// Not now: overload, a lost quorum, a full disk; repeat later. 503.
    Unavailable,
    /// The deadline passed. 503, as Prometheus answers it.
    Timeout,
}

/// Kind, HTTP status, gRPC code. The gRPC codes are distinct, so that a kind survives the wire.
const FACES: [(ErrorKind, u16, tonic::Code); 13] = [
    (ErrorKind::BadData, 400, tonic::Code::InvalidArgument),
    (ErrorKind::Unauthenticated, 401, tonic::Code::Unauthenticated),
    (ErrorKind::NotFound, 404, tonic::Code::NotFound),
    (ErrorKind::MethodNotAllowed, 405, tonic::Code::PermissionDenied),
    (ErrorKind::TooLarge, 413, tonic::Code::OutOfRange),
    (ErrorKind::UnsupportedMedia, 415, tonic::Code::AlreadyExists),
    (ErrorKind::Unprocessable, 422, tonic::Code::FailedPrecondition),
    (ErrorKind::TooManyRequests, 429, tonic::Code::ResourceExhausted),
    (ErrorKind::Canceled, 499, tonic::Code::Cancelled),
    (ErrorKind::Internal, 500, tonic::Code::Internal),
    (ErrorKind::Unimplemented, 501, tonic::Code::Unimplemented),
    (ErrorKind::Unavailable, 503, tonic::Code::Unavailable),
    (ErrorKind::Timeout, 503, tonic::Code::DeadlineExceeded),
];

impl ErrorKind {
    /// The HTTP status.
    pub fn http_status(self) -> http::StatusCode {
        let status = FACES.iter().find(|f| f.0 == self).map_or(500, |f| f.1);
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The gRPC code.
    pub fn grpc_code(self) -> tonic::Code {
        FACES.iter().find(|f| f.0 == self).map_or(tonic::Code::Internal, |f| f.2)
    }

    /// The kind behind a gRPC code; codes we never send become [`ErrorKind::Internal`].
    pub fn from_grpc_code(code: tonic::Code) -> Self {
        FACES.iter().find(|f| f.2 == code).map_or(Self::Internal, |f| f.0)
    }

    /// The `errorType` of Prometheus' HTTP API.
    pub fn prometheus_error_type(self) -> &'static str {
        match self {
            Self::BadData
            | Self::Unauthenticated
            | Self::TooLarge
            | Self::UnsupportedMedia
            | Self::MethodNotAllowed => "bad_data",
            Self::NotFound => "not_found",
            Self::Unprocessable => "execution",
            Self::TooManyRequests => "too_many_requests",
            Self::Canceled => "canceled",
            Self::Internal | Self::Unimplemented => "internal",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
        }
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::TooManyRequests | Self::Internal | Self::Unavailable | Self::Timeout)
    }
}

/// An error a service answers with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ServiceError {
    /// What the caller should make of it.
    pub kind: ErrorKind,
    /// Stable id of the cause: a public contract, used alike in answers, metric labels and the docs.
    pub reason: Cow<'static, str>,
    /// For people: names the value and the limit.
    pub message: String,
    /// When to try again, for the kinds where that makes sense.
    pub retry_after: Option<Duration>,
}

impl ServiceError {
    /// Builds an error.
    pub fn new(kind: ErrorKind, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), message: message.into(), retry_after: None }
    }

    /// A fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, "internal", message)
    }

    /// Says when to try again.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The message with its stable id behind it, as write requests are answered.
    pub fn message_with_id(&self) -> String {
        format!("{} (err-skald-{})", self.message, self.reason)
    }
}

impl From<crate::runtime::pool::TaskLost> for ServiceError {
    fn from(lost: crate::runtime::pool::TaskLost) -> Self {
        Self::internal(lost.to_string())
    }
}

/// gRPC metadata key of [`ServiceError::reason`].
const REASON_KEY: &str = "skald-reason";
/// gRPC metadata key of [`ServiceError::retry_after`], milliseconds.
const RETRY_AFTER_KEY: &str = "skald-retry-after-ms";

impl From<ServiceError> for tonic::Status {
    fn from(error: ServiceError) -> Self {
        let mut status = tonic::Status::new(error.kind.grpc_code(), error.message);
        if let Ok(reason) = error.reason.parse() {
            status.metadata_mut().insert(REASON_KEY, reason);
        }
        if let Some(after) = error.retry_after {
            status.metadata_mut().insert(RETRY_AFTER_KEY, (after.as_millis() as u64).into());
        }
        status
    }
}

impl From<tonic::Status> for ServiceError {
    fn from(status: tonic::Status) -> Self {
        let text = |key: &str| status.metadata().get(key).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let reason = text(REASON_KEY);
        let retry_after = text(RETRY_AFTER_KEY).and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        let kind = match (&reason, status.code()) {
            (Some(_), code) => ErrorKind::from_grpc_code(code),
            // Without our reason the transport itself failed: only its meaning for the caller counts.
            (None, tonic::Code::Cancelled) => ErrorKind::Canceled,
            (None, tonic::Code::DeadlineExceeded) => ErrorKind::Timeout,
            (None, tonic::Code::OutOfRange | tonic::Code::ResourceExhausted) => ErrorKind::TooLarge,
            (None, tonic::Code::Unimplemented) => ErrorKind::Unimplemented,
            (None, _) => ErrorKind::Unavailable,
        };
        let reason = reason.map_or(Cow::Borrowed("grpc-transport"), Cow::Owned);
        Self { kind, reason, message: status.message().to_owned(), retry_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        for (kind, ..) in FACES {
            let error = ServiceError::new(kind, "some-reason", "text").retry_after(Duration::from_millis(1500));
            let back = ServiceError::from(tonic::Status::from(error.clone()));
            assert_eq!(back, error);
        }
    }
}
