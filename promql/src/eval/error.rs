//! Why a query has no answer.

use crate::ast::Span;
use crate::source::SourceError;

/// Why a query has no answer. The texts are Prometheus' own where Prometheus has the error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EvalError {
    /// The query asks for what the data or its parameters do not allow.
    #[error("{0}")]
    Execution(String),
    /// The query itself is wrong in a way that shows only with its time range.
    #[error("{0}")]
    BadData(String),
    /// The query's deadline has passed.
    #[error("query timed out in expression evaluation")]
    Timeout,
    /// Nobody waits for the answer any more.
    #[error("query was canceled in expression evaluation")]
    Canceled,
    /// The limit on samples held at one time.
    #[error("query processing would load too many samples into memory in query execution")]
    TooManySamples,
    /// The limit on bytes held at one time.
    #[error("the query exceeded its memory limit of {limit} bytes: {needed} bytes needed{}", in_part(*span))]
    MemoryLimit {
        /// The limit.
        limit: usize,
        /// What would have been held.
        needed: usize,
        /// The part of the query that asked for more; empty if it is not one part alone.
        span: Span,
    },
    /// A source of series failed.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// A broken promise inside the engine or a source.
    #[error("{0}")]
    Internal(String),
}

fn in_part(span: Span) -> String {
    if span.end == 0 { String::new() } else { format!(" in its part at bytes {} to {}", span.start, span.end) }
}

impl EvalError {
    /// Prometheus' `errorType` of the error.
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::BadData(_) => "bad_data",
            Self::Timeout => "timeout",
            Self::Canceled => "canceled",
            Self::Internal(_) | Self::Source(SourceError::Corrupt(_)) => "internal",
            Self::Source(SourceError::Unavailable(_)) => "unavailable",
            Self::Source(SourceError::Interrupted(_)) => "canceled",
            Self::Source(SourceError::Limit(_))
            | Self::Execution(_)
            | Self::TooManySamples
            | Self::MemoryLimit { .. } => "execution",
        }
    }

    pub(crate) fn duplicate_labels() -> Self {
        Self::Execution("vector cannot contain metrics with the same labelset".to_owned())
    }

    pub(crate) fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::Execution(format!("{what} is not supported"))
    }
}
