//! How services reach each other over gRPC: channels, the tenant in the metadata, and the turning of messages.

pub mod channel;
pub mod convert;

use std::sync::Arc;

use tonic::{Request, Status};

pub use channel::channel;

use crate::error::{ErrorKind, ServiceError};
use crate::tenant::{TENANT_HEADER, TenantId};

/// Largest message taken from a peer. Streams send batches far below it; a push is bounded by the distributor's
/// largest request.
pub const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Series an answer's message carries at most, so that label sets alone stay far below [`MAX_MESSAGE_BYTES`].
pub(crate) const SERIES_PER_MESSAGE: usize = 4096;

/// A request on behalf of a tenant.
pub fn request<T>(tenant: &TenantId, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // A checked tenant id is plain ASCII, so this cannot fail; without the entry the peer refuses the request.
    if let Ok(value) = tenant.as_str().parse() {
        request.metadata_mut().insert(TENANT_HEADER, value);
    }
    request
}

/// The tenant a request is made for; services always name one.
pub fn tenant_of<T>(request: &Request<T>) -> Result<TenantId, Status> {
    let missing = || ServiceError::new(ErrorKind::Unauthenticated, "no-tenant-id", "the call names no tenant");
    let value = request.metadata().get(TENANT_HEADER).ok_or_else(missing)?;
    Ok(TenantId::new(value.to_str().map_err(|_| missing())?)?)
}

/// A message that breaks a rule of its own.
pub fn malformed(error: skald_proto::grpc::MalformedMessage) -> ServiceError {
    ServiceError::new(ErrorKind::BadData, "malformed-message", error.to_string())
}

/// Serves the gRPC side of one service: `Arc` of any implementation of its client trait.
pub struct Served<C: ?Sized>(pub Arc<C>);

impl<C: ?Sized> Clone for Served<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
