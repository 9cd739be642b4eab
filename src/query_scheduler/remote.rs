//! The schedulers of a cluster as one: query-frontends ask them in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use tokio::sync::watch;

use super::client::{Ask, SchedulerClient, Turn};
use super::grpc::GrpcSchedulerClient;
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::{Channels, may_succeed_elsewhere};
use crate::tenant::TenantId;

/// Addresses that may change while a process runs.
pub type Addresses = Arc<ArcSwap<Vec<String>>>;

/// Schedulers behind gRPC.
pub struct Schedulers {
    addresses: Addresses,
    channels: Channels,
    turn: AtomicUsize,
}

impl Schedulers {
    /// Those at `addresses`, whatever they are at the time.
    pub fn new(addresses: Addresses, channels: Channels) -> Self {
        Self { addresses, channels, turn: AtomicUsize::new(0) }
    }

    /// All of them, beginning with the one whose turn it is; those that did not answer of late come last.
    fn in_turn(&self) -> Vec<String> {
        let mut addresses = self.addresses.load().to_vec();
        if !addresses.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
            addresses.rotate_left(turn);
        }
        addresses.sort_by_key(|address| !self.channels.healthy(address));
        addresses
    }
}

#[async_trait]
impl SchedulerClient for Schedulers {
    async fn turn(&self, tenant: &TenantId, ask: Ask) -> Result<Turn, ServiceError> {
        let none = || ServiceError::new(ErrorKind::Unavailable, "no-query-scheduler", "no query-scheduler is known");
        let mut outcome = Err(none());
        for address in self.in_turn() {
            let peer = self.channels.to(&address).map_err(|e| ServiceError::internal(e.to_string()))?;
            outcome = GrpcSchedulerClient::new(peer).turn(tenant, ask.clone()).await;
            match &outcome {
                Err(error) if may_succeed_elsewhere(error) => continue,
                _ => break,
            }
        }
        outcome
    }

    async fn offer(&self, _: &str, _: watch::Receiver<u32>) -> Result<(), ServiceError> {
        Err(ServiceError::internal("slots are offered to each scheduler by itself"))
    }
}
