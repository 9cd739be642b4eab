//! One write from its body to its outcome.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use skald_proto::remote_write::{DecodeError, Received, Version, declared_bytes};

use super::config::Config;
use super::ha_tracker::{HaTracker, dedupe};
use super::in_flight::{InFlight, Reservation};
use super::metrics::Metrics;
use super::rejections::{LeftOut, Rejections};
use super::relabel::{self, relabel};
use super::replicate::{Sending, replicate};
use super::tenants::{Tenant, Tenants};
use super::validate::{reject_undecodable, validate};
use crate::error::{ErrorKind, ServiceError};
use crate::ingester::client::RejectedKind;
use crate::limits::{Limits, TenantLimits};
use crate::membership::{ClockWatch, Ingesters, TenantShards};
use crate::runtime::{Clock, Pool, Rng, Runtime};
use crate::tenant::TenantId;

/// Writes that decompress to more are decoded on the ingest pool: they would hold a thread that serves connections for
/// more than about half a millisecond.
const INLINE_BYTES: u64 = 1 << 20;
/// Decoders kept for the next writes, and the memory each may keep.
const SPARE_DECODERS: usize = 32;
const SPARE_BYTES: usize = 8 << 20;

/// How many distributors live, at least 1: a tenant's rate is shared evenly among them.
pub type LiveDistributors = Arc<dyn Fn() -> usize + Send + Sync>;

/// Takes writes, checks them, and sends each series to the ingesters that hold it.
pub struct Distributor {
    pub(super) config: Config,
    limits: TenantLimits,
    ingesters: Arc<ArcSwap<Ingesters>>,
    distributors: LiveDistributors,
    shards: Arc<TenantShards>,
    pub(super) ha_tracker: Arc<HaTracker>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) rng: Arc<Rng>,
    pool: Pool,
    pub(super) metrics: Arc<Metrics>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) tenants: Tenants,
    clock_watch: Arc<ClockWatch>,
    /// Allocations of earlier writes.
    spare: Mutex<Vec<Received>>,
}

/// What became of a write that was carried out.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Float and histogram samples stored.
    pub(super) samples: u64,
    /// Histograms among them.
    pub(super) histograms: u64,
    /// Exemplars stored.
    pub(super) exemplars: u64,
    /// The first bad part's error, when there were any; everything else is stored.
    pub(super) refusal: Option<ServiceError>,
    /// Whether samples were left out because another replica is elected, and nothing else was there.
    pub(super) only_duplicates: bool,
}

/// A decoded and validated write.
struct Admitted {
    received: Received,
    rejections: Rejections,
    /// Of replicas that are not elected.
    deduped: LeftOut,
    /// By the tenant's relabelling rules.
    relabelled: LeftOut,
    decoded: Result<(), DecodeError>,
}

impl Distributor {
    /// A distributor that writes to what `ingesters` holds at the time of each write, and shares tenants' rates with the
    /// other `distributors`. Which shards it writes to it tells in `shards`.
    pub fn new(
        config: Config,
        limits: TenantLimits,
        ingesters: Arc<ArcSwap<Ingesters>>,
        distributors: LiveDistributors,
        shards: Arc<TenantShards>,
        ha_tracker: Arc<HaTracker>,
        runtime: &Runtime,
        registry: &mut Registry,
    ) -> Self {
        let metrics = Arc::new(Metrics::new(registry));
        let in_flight =
            InFlight::new(&config.instance_limits, metrics.in_flight_requests.clone(), metrics.in_flight_bytes.clone());
        Self {
            config,
            limits,
            ingesters,
            distributors,
            shards,
            ha_tracker,
            clock: runtime.clock.clone(),
            rng: runtime.rng.clone(),
            pool: runtime.ingest_pool.clone(),
            tenants: Tenants::new(metrics.clone()),
            clock_watch: Arc::default(),
            metrics,
            in_flight,
            spare: Mutex::default(),
        }
    }

    /// Takes nothing while `watch` says that the wall clock cannot be trusted. Without this it always can.
    pub fn with_clock_watch(mut self, watch: Arc<ClockWatch>) -> Self {
        self.clock_watch = watch;
        self
    }

    /// Carries out a write: a snappy-compressed remote_write body. After an error nothing is acknowledged.
    pub(super) async fn push(
        &self,
        tenant: &TenantId,
        version: Version,
        body: Bytes,
        reservation: &mut Reservation,
    ) -> Result<Outcome, ServiceError> {
        self.clock_watch.trusted()?;
        let begun = self.clock.monotonic();
        let state = self.tenants.get(tenant, begun);
        let outcome = self.push_admitted(tenant, &state, (version, body), reservation, begun).await;
        self.metrics.push_duration.observe(self.clock.monotonic().saturating_sub(begun).as_secs_f64());
        outcome
    }

    async fn push_admitted(
        &self,
        tenant: &TenantId,
        state: &Tenant,
        body: (Version, Bytes),
        reservation: &mut Reservation,
        now: Duration,
    ) -> Result<Outcome, ServiceError> {
        let limits = self.limits.of(tenant);
        state.admit_request(&limits.distributor, &self.distributors, now)?;
        let admitted = self.admit(tenant, body, limits.clone(), reservation).await?;
        let Admitted { mut received, mut rejections, deduped, relabelled, decoded } = admitted;
        decoded.map_err(decode_error)?;
        reservation.grow_to(received.heap_bytes())?;
        let batch = std::mem::take(&mut received.batch);
        let (samples, exemplars) = (batch.sample_count() as u64, batch.exemplar_count() as u64);
        let metadata = batch.metadata.len() as u64;
        if let Err(error) =
            state.admit_items(samples + exemplars + metadata, &limits.distributor, &self.distributors, now)
        {
            for (kind, count) in [
                (RejectedKind::Sample, samples),
                (RejectedKind::Exemplar, exemplars),
                (RejectedKind::Metadata, metadata),
            ] {
                state.count_discarded(kind, "rate-limited", count, &self.metrics);
            }
            return Err(error);
        }
        let batch = Arc::new(batch);
        // What is dropped on purpose counts as stored: its sender has nothing to repair.
        let dropped = rejections.dropped_histograms;
        let mut outcome = Outcome {
            samples: dropped + deduped.samples + relabelled.samples,
            histograms: dropped + deduped.histograms + relabelled.histograms,
            exemplars: deduped.exemplars + relabelled.exemplars,
            ..Outcome::default()
        };
        if !deduped.is_empty() {
            state.count_deduped(deduped.samples);
            outcome.only_duplicates = batch.is_empty() && relabelled.is_empty();
        }
        for (kind, count) in
            [(RejectedKind::Sample, relabelled.samples), (RejectedKind::Exemplar, relabelled.exemplars)]
        {
            state.count_discarded(kind, "relabel-configuration", count, &self.metrics);
        }
        if !batch.is_empty() {
            state.count_received(samples, exemplars, metadata);
            let ingesters = self.ingesters.load_full();
            let sending = Sending {
                ingesters: &ingesters,
                tenant,
                shard_size: state.shard_size(&self.shards, tenant, limits.distributor.ingestion_tenant_shard_size),
                timeout: self.config.remote_timeout,
                clock: &self.clock,
            };
            let replies = replicate(&sending, batch.clone()).await?;
            for reply in replies {
                outcome.samples += reply.samples;
                outcome.histograms += reply.histograms;
                outcome.exemplars += reply.exemplars;
                rejections.extend(reply.rejections);
            }
        }
        // Whoever still sends the batch to a slow replica keeps it.
        received.batch = Arc::into_inner(batch).unwrap_or_default();
        self.keep(received);
        state.count_rejections(&rejections, &self.metrics);
        outcome.refusal = rejections.error();
        Ok(outcome)
    }

    /// Decodes and validates, here or on the pool.
    async fn admit(
        &self,
        tenant: &TenantId,
        (version, body): (Version, Bytes),
        limits: Arc<Limits>,
        reservation: &mut Reservation,
    ) -> Result<Admitted, ServiceError> {
        let max_bytes = self.config.max_recv_msg_size.as_usize();
        self.metrics.received_bytes.inc_by(body.len() as u64);
        // What is declared beyond the limit is never allocated; the decoder refuses it.
        let declared = declared_bytes(&body).unwrap_or(0).min(max_bytes as u64);
        self.metrics.decompressed_bytes.inc_by(declared);
        reservation.grow_to(body.len() + declared as usize)?;
        let mut received = self.spare.lock().pop().unwrap_or_default();
        let now = self.clock.now_ms();
        let ha_tracker = limits.distributor.accept_ha_samples.then(|| (self.ha_tracker.clone(), tenant.clone()));
        let relabelling = relabel::is_wanted(&limits.distributor).then(|| tenant.clone());
        let work = move || {
            let mut rejections = Rejections::default();
            let (mut deduped, mut relabelled) = (LeftOut::default(), LeftOut::default());
            let decoded = received
                .decode(version, &body, max_bytes, &mut |rejected| reject_undecodable(rejected, &mut rejections));
            if decoded.is_ok() {
                if let Some((tracker, tenant)) = ha_tracker {
                    deduped = dedupe(&tracker, &tenant, &mut received, &limits.distributor, &mut rejections);
                }
                if let Some(tenant) = relabelling {
                    relabelled = relabel(&tenant, &mut received, &limits.distributor, max_bytes, &mut rejections);
                }
                validate(&mut received, &limits.distributor, now, &mut rejections);
            }
            Admitted { received, rejections, deduped, relabelled, decoded }
        };
        if declared <= INLINE_BYTES { Ok(work()) } else { Ok(self.pool.run(work).await?) }
    }

    /// Keeps allocations for the next write, if they are not unusually large.
    fn keep(&self, mut received: Received) {
        received.batch.clear();
        if received.heap_bytes() <= SPARE_BYTES {
            let mut spare = self.spare.lock();
            if spare.len() < SPARE_DECODERS {
                spare.push(received);
            }
        }
    }
}

fn decode_error(error: DecodeError) -> ServiceError {
    let (kind, reason) = match error {
        DecodeError::TooLarge { .. } => (ErrorKind::TooLarge, "distributor-max-write-message-size"),
        DecodeError::Snappy(_) => (ErrorKind::BadData, "malformed-snappy"),
        DecodeError::Protobuf { .. } => (ErrorKind::BadData, "malformed-protobuf"),
        DecodeError::TooWide { .. } => (ErrorKind::BadData, "write-message-too-wide"),
    };
    ServiceError::new(kind, reason, error.to_string())
}
