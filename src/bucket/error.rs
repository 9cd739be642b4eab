//! What can go wrong with a bucket, by what the caller would do.

use std::fmt;
use std::sync::Arc;

use crate::error::{ErrorKind, ServiceError};

/// A failed call on a bucket: which bucket, which operation, which key, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("bucket {bucket}: {operation} {key:?}: {cause}")]
pub struct BucketError {
    /// Name of the bucket.
    pub bucket: Arc<str>,
    /// What was tried.
    pub operation: Operation,
    /// Key or prefix it was tried on.
    pub key: String,
    /// Why it failed.
    pub cause: Cause,
}

/// Why a call failed; the variants differ by what the caller would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// There is no such object.
    #[error("no such object")]
    NotFound,
    /// The condition of a write did not hold: somebody else wrote. Read again and decide anew.
    #[error("the object was changed by someone else")]
    Precondition,
    /// The bucket could not be reached, or was overloaded, for longer than the retries lasted. Try again later.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The bucket refuses: credentials, permissions, a missing bucket, an impossible request. Repeating does not help
    /// until somebody changes the configuration or the bucket.
    #[error("refused: {0}")]
    Refused(String),
    /// The caller's own stream of bytes failed.
    #[error("source failed: {0}")]
    Source(String),
}

/// The operations of a bucket, as errors and metrics name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Writing an object.
    Put,
    /// Writing an object part by part.
    PutStream,
    /// Reading an object.
    Get,
    /// Reading a part of an object.
    GetRange,
    /// Asking for size and age.
    Head,
    /// Listing one level of keys.
    List,
    /// Removing an object.
    Delete,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 7] =
        [Self::Put, Self::PutStream, Self::Get, Self::GetRange, Self::Head, Self::List, Self::Delete];

    /// Name in metrics and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::PutStream => "put_stream",
            Self::Get => "get",
            Self::GetRange => "get_range",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl BucketError {
    /// Whether there is no such object.
    pub fn is_not_found(&self) -> bool {
        self.cause == Cause::NotFound
    }

    /// Whether a write's condition did not hold.
    pub fn is_precondition(&self) -> bool {
        self.cause == Cause::Precondition
    }
}

/// What a service answers when the bucket fails it.
impl From<BucketError> for ServiceError {
    fn from(error: BucketError) -> Self {
        match error.cause {
            Cause::Unavailable(_) => Self::new(ErrorKind::Unavailable, "bucket-unavailable", error.to_string()),
            _ => Self::new(ErrorKind::Internal, "bucket-refused", error.to_string()),
        }
    }
}
