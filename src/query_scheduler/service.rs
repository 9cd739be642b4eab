//! The scheduler of a process: the queue, and those who wait in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Config;
use super::client::{Ask, Reads, SchedulerClient, Turn, stopping};
use super::queue::{Item, OfferId, Queue, RequestId};
use crate::error::{ErrorKind, ServiceError};
use crate::runtime::Clock;
use crate::tenant::TenantId;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    /// `recent` or `store`.
    reads: &'static str,
}

/// Signals of the scheduler.
#[derive(Clone)]
pub struct Metrics {
    waiting: Family<Lane, Gauge>,
    waited: Histogram,
    refused: Counter,
    queriers: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("skald_query_scheduler");
        let metrics = Self {
            waiting: Family::default(),
            waited: Histogram::new(exponential_buckets(0.0005, 2.0, 18)),
            refused: Counter::default(),
            queriers: Gauge::default(),
        };
        registry.register("queue_length", "Requests waiting for a querier, by what they read", metrics.waiting.clone());
        registry.register(
            "queue_duration_seconds",
            "Time from a request's arrival until it got a querier",
            metrics.waited.clone(),
        );
        registry.register(
            "refused_requests",
            "Requests refused because their tenant had max_outstanding_requests_per_tenant waiting",
            metrics.refused.clone(),
        );
        registry.register("connected_queriers", "Queriers that offer slots", metrics.queriers.clone());
        metrics
    }
}

/// Who waits, and since when.
struct Waiter {
    sender: oneshot::Sender<Turn>,
    since: Duration,
}

/// The scheduler of a process. Clones are the same.
#[derive(Clone)]
pub struct Scheduler {
    shared: Arc<Shared>,
}

struct Shared {
    most_waiting: usize,
    /// Never held while somebody is told of a turn: dropping one comes back here.
    queue: Mutex<Queue<Waiter>>,
    ids: AtomicU64,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    stopping: CancellationToken,
}

impl Scheduler {
    /// A scheduler nobody has asked yet.
    pub fn new(config: &Config, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let most_waiting = config.max_outstanding_requests_per_tenant;
        let shared = Shared {
            most_waiting,
            queue: Mutex::new(Queue::new(most_waiting)),
            ids: AtomicU64::new(0),
            clock,
            metrics,
            stopping: CancellationToken::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Sends everybody away: those who wait ask another scheduler, what runs goes on.
    pub fn stop(&self) {
        self.shared.stopping.cancel();
    }

    /// Completes once it stops.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.shared.stopping.clone().cancelled_owned()
    }

    /// Offers slots of a querier until the offer is dropped.
    pub fn offered(&self, querier: &str, slots: u32) -> Offered {
        let id = self.shared.ids.fetch_add(1, Ordering::Relaxed);
        let offered = Offered { shared: self.shared.clone(), id, querier: querier.into() };
        offered.set(slots);
        offered
    }
}

#[cfg(test)]
impl Scheduler {
    pub(super) fn waiting(&self) -> usize {
        let queue = self.shared.queue.lock();
        queue.waiting(Reads::Recent) + queue.waiting(Reads::Store)
    }

    pub(super) fn running(&self) -> usize {
        self.shared.queue.lock().running()
    }

    pub(super) fn used(&self) -> Vec<(u32, u32)> {
        self.shared.queue.lock().used()
    }
}

/// A querier's offer while it stands.
pub struct Offered {
    shared: Arc<Shared>,
    id: OfferId,
    querier: Arc<str>,
}

impl Offered {
    /// Changes the number of slots; 0 is nothing new.
    pub fn set(&self, slots: u32) {
        self.shared.queue.lock().offer(self.id, &self.querier, slots);
        self.shared.settle();
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.shared.queue.lock().withdraw(self.id);
        self.shared.settle();
    }
}

/// Gives a slot back.
struct Lease {
    shared: Arc<Shared>,
    id: RequestId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.queue.lock().release(self.id);
        self.shared.settle();
    }
}

/// Takes a request out of the queue.
struct Waiting<'s> {
    shared: &'s Shared,
    id: RequestId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.queue.lock().cancel(self.id);
        self.shared.observe();
    }
}

impl Shared {
    /// Hands out what slots there are.
    fn settle(self: &Arc<Self>) {
        loop {
            let assigned = self.queue.lock().assign();
            let Some(assigned) = assigned else { break };
            let Waiter { sender, since } = assigned.payload;
            self.metrics.waited.observe(self.clock.monotonic().saturating_sub(since).as_secs_f64());
            let lease = Lease { shared: self.clone(), id: assigned.id };
            // One who has gone meanwhile gives it back at once.
            let _ = sender.send(Turn { querier: assigned.querier, lease: Box::new(lease) });
        }
        self.observe();
    }

    fn observe(&self) {
        let (recent, store, offers) = {
            let queue = self.queue.lock();
            (queue.waiting(Reads::Recent), queue.waiting(Reads::Store), queue.offers())
        };
        self.metrics.waiting.get_or_create(&Lane { reads: "recent" }).set(recent as i64);
        self.metrics.waiting.get_or_create(&Lane { reads: "store" }).set(store as i64);
        self.metrics.queriers.set(offers as i64);
    }
}

#[async_trait]
impl SchedulerClient for Scheduler {
    async fn turn(&self, tenant: &TenantId, ask: Ask) -> Result<Turn, ServiceError> {
        let shared = &self.shared;
        if shared.stopping.is_cancelled() {
            return Err(stopping());
        }
        let id = shared.ids.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let payload = Waiter { sender, since: shared.clock.monotonic() };
        let enqueued = shared.queue.lock().enqueue(tenant, ask.reads, Item { id, not: ask.not, payload });
        if enqueued.is_err() {
            shared.metrics.refused.inc();
            let text = format!(
                "{} requests of the tenant are waiting for queriers, the most allowed \
                 (query_scheduler.max_outstanding_requests_per_tenant)",
                shared.most_waiting
            );
            return Err(ServiceError::new(ErrorKind::TooManyRequests, "too-many-outstanding-requests", text));
        }
        let _waiting = Waiting { shared, id };
        shared.settle();
        tokio::select! {
            biased;
            turn = receiver => turn.map_err(|_| stopping()),
            () = shared.stopping.cancelled() => Err(stopping()),
        }
    }

    async fn offer(&self, address: &str, mut slots: watch::Receiver<u32>) -> Result<(), ServiceError> {
        let offered = self.offered(address, *slots.borrow_and_update());
        let change = async {
            while slots.changed().await.is_ok() {
                offered.set(*slots.borrow_and_update());
            }
        };
        tokio::select! {
            () = change => Ok(()),
            () = self.shared.stopping.cancelled() => Err(stopping()),
        }
    }
}
