//! What a query-scheduler does for query-frontends and queriers.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::error::{ErrorKind, ServiceError};
use crate::tenant::TenantId;

/// What a request will read: those that read the store are slower, and wait by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Recent samples only.
    Recent = 0,
    /// Older ones, too.
    Store = 1,
}

/// Asks for a querier's slot.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What will be read.
    pub reads: Reads,
    /// Queriers that have failed the request: others are better.
    pub not: Vec<Arc<str>>,
}

/// A querier's slot, until it is dropped.
pub struct Turn {
    /// The address of the querier.
    pub querier: Arc<str>,
    /// Gives the slot back when it is dropped.
    pub lease: Box<dyn Send + Sync>,
}

/// A query-scheduler as its neighbours see it, in this process or behind gRPC. Dropping a call takes the request out of the
/// queue, or withdraws the offer.
#[async_trait]
pub trait SchedulerClient: Send + Sync + 'static {
    /// Waits until a querier has a slot for the tenant's request.
    async fn turn(&self, tenant: &TenantId, ask: Ask) -> Result<Turn, ServiceError>;
    /// Offers so many slots of the querier at `address`; the number may change. Ends only when the scheduler does.
    async fn offer(&self, address: &str, slots: watch::Receiver<u32>) -> Result<(), ServiceError>;
}

/// What a scheduler that stops answers; another one may be asked at once.
pub fn stopping() -> ServiceError {
    ServiceError::new(ErrorKind::Unavailable, "query-scheduler-stopping", "the query-scheduler stops")
}
