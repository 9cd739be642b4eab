//! How services reach each other over gRPC.
//!
//! [`Channels`] has one [`Peer`] per address, which every client calls through: so many calls at a time, each with a deadline
//! that travels along, compressed and encrypted as the settings say, and with the peer's health noted. [`CallBounds`] is the
//! same on the other side. [`convert`] turns messages; the tenant travels in the metadata.

mod channels;
mod config;
pub mod convert;
mod deadline;
mod health;
mod noting;
mod peer;
mod serving;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Status};

pub use channels::Channels;
pub use config::{Compression, Config};
use deadline::Deadline;
pub use peer::{CallKind, Peer};
pub use serving::CallBounds;

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

/// The same, of a caller who waits until `deadline` by this process' monotonic clock, rather than as long as calls of its kind may
/// take.
pub fn request_until<T>(tenant: &TenantId, message: T, deadline: Option<Duration>) -> Request<T> {
    let mut request = request(tenant, message);
    if let Some(deadline) = deadline {
        request.extensions_mut().insert(Deadline(deadline));
    }
    request
}

/// Until when the caller of a request that is served waits, by this process' monotonic clock; `None` if it did not say.
pub fn deadline_of<T>(request: &Request<T>) -> Option<Duration> {
    request.extensions().get::<Deadline>().map(|deadline| deadline.0)
}

/// The tenant a request is made for; services always name one.
pub fn tenant_of<T>(request: &Request<T>) -> Result<TenantId, Status> {
    let missing = || ServiceError::new(ErrorKind::Unauthenticated, "no-tenant-id", "the call names no tenant");
    let mut values = request.metadata().get_all(TENANT_HEADER).iter();
    let value = values.next().ok_or_else(missing)?;
    if values.next().is_some() {
        return Err(ServiceError::new(ErrorKind::BadData, "tenant-id-invalid", "the call names several tenants").into());
    }
    Ok(TenantId::new(value.to_str().map_err(|_| missing())?)?)
}

/// Whether the same request, repeated once at another instance, may succeed: this one was not reached, has no room, stops or
/// starts, or broke off. For requests that may be carried out twice, and whose answer so far was thrown away.
pub fn may_succeed_elsewhere(error: &ServiceError) -> bool {
    const REASONS: [&str; 6] = [
        "peer-unreachable",
        "peer-in-flight-limit",
        "grpc-in-flight-limit",
        "grpc-transport",
        "query-scheduler-stopping",
        "starting",
    ];
    match error.kind {
        ErrorKind::Unavailable => REASONS.contains(&error.reason.as_ref()),
        // A connection that ends may say so of its streams.
        ErrorKind::Canceled => error.reason == "grpc-transport",
        _ => false,
    }
}

/// A message that breaks a rule of its own.
pub fn malformed(error: skald_proto::grpc::MalformedMessage) -> ServiceError {
    ServiceError::new(ErrorKind::BadData, "malformed-message", error.to_string())
}

/// A write on behalf of a tenant.
pub fn write_request<T>(tenant: &TenantId, message: T) -> Request<T> {
    let mut request = request(tenant, message);
    request.extensions_mut().insert(CallKind::Write);
    request
}

/// The generated client of a service that a [`Peer`] has: messages bounded and compressed as the settings say.
macro_rules! client_of {
    ($client:ty, $peer:expr) => {{
        let peer: $crate::grpc::Peer = $peer;
        let ((send, recv), compression) = (peer.message_bounds(), peer.compression());
        let client = <$client>::new(peer).max_encoding_message_size(send).max_decoding_message_size(recv);
        match compression {
            Some(encoding) => client.send_compressed(encoding).accept_compressed(encoding),
            None => client,
        }
    }};
}

/// A generated server that takes every compression, and answers with the one its client asks for.
macro_rules! compressing {
    ($server:expr) => {{
        use tonic::codec::CompressionEncoding::{Gzip, Zstd};
        $server.accept_compressed(Gzip).accept_compressed(Zstd).send_compressed(Gzip).send_compressed(Zstd)
    }};
}

pub(crate) use {client_of, compressing};

/// Serves the gRPC side of one service: `Arc` of any implementation of its client trait.
pub struct Served<C: ?Sized>(pub Arc<C>);

impl<C: ?Sized> Clone for Served<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
