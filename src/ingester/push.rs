//! Stores a batch: head and log.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use skald_model::Labels;
use skald_proto::WriteBatch;
use skald_tsdb::head::{
    AppendError, AppendLimits, Appended, Head, HeadOptions, MetadataLimits, MetadataOutcome, RejectReason,
    RejectedKind as HeadKind, SeriesAppend,
};
use skald_tsdb::wal::{Durability, Lsn, WalError};

use super::client::{KnownReply, PushReply, RejectedKind, Rejection};
use super::series_limits::Allowance;
use super::tenants::Tenant;
use super::{BLOCK_RANGE_MS, Ingester, Limits, SyncPolicy};
use crate::error::{ErrorKind, ServiceError};
use crate::membership::ClockWatch;
use crate::tenant::TenantId;

/// When a sender should try again after a 503.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Metrics, and texts per metric, whose metadata a tenant may have here.
const METADATA_LIMITS: MetadataLimits = MetadataLimits { max_metrics: Some(100_000), max_per_metric: Some(10) };

/// Samples younger than this raise no change counter: the results cache keeps no answers about the newest ten minutes.
pub(super) const FRESH_MS: i64 = 10 * 60 * 1000;

pub(super) fn head_options() -> HeadOptions {
    HeadOptions { block_range_ms: BLOCK_RANGE_MS }
}

/// What tells which series a batch is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identified {
    /// Their labels, and the hash of these.
    ByLabels,
    /// The hash alone.
    ByHash,
}

impl Ingester {
    /// Takes nothing while `watch` says that the wall clock cannot be trusted. Without this it always can.
    pub fn watch_clock(&self, watch: Arc<ClockWatch>) {
        // Only the first call counts; there is one.
        let _ = self.shared.clock_watch.set(watch);
    }

    pub(super) async fn store(
        &self,
        tenant: &TenantId,
        batch: Arc<WriteBatch>,
        identified: Identified,
    ) -> Result<KnownReply, ServiceError> {
        let shared = &self.shared;
        shared.clock_watch.get().map_or(Ok(()), |watch| watch.trusted())?;
        let begun = shared.runtime.clock.monotonic();
        let _room = self.reserve(&batch)?;
        let (ingester, id) = (self.clone(), tenant.clone());
        let outcome = shared.runtime.ingest_pool.run(move || ingester.append(&id, &batch, identified)).await?;
        let (stored, lsn) = outcome.inspect_err(|_| {
            shared.metrics.push_failures.inc();
        })?;
        if shared.config.wal.sync == SyncPolicy::EveryBatch {
            self.wait_durable(lsn).await?;
        }
        shared.metrics.samples.inc_by(stored.reply.samples);
        shared.metrics.exemplars.inc_by(stored.reply.exemplars);
        shared.metrics.push_duration.observe((shared.runtime.clock.monotonic() - begun).as_secs_f64());
        Ok(stored)
    }

    /// Takes a push's bytes out of the budget of pushes under way, until the guard is dropped.
    fn reserve(&self, batch: &WriteBatch) -> Result<tokio::sync::OwnedSemaphorePermit, ServiceError> {
        let bytes = u32::try_from(batch.heap_bytes()).unwrap_or(u32::MAX);
        self.shared.inflight.clone().try_acquire_many_owned(bytes).map_err(|_| {
            let text = format!(
                "a push of {bytes} bytes does not fit beside those under way: limit {} \
                 (ingester.max_inflight_push_bytes)",
                self.shared.config.max_inflight_push_bytes
            );
            ServiceError::new(ErrorKind::Unavailable, "ingester-max-inflight-push-requests-bytes", text)
                .retry_after(RETRY_AFTER)
        })
    }

    /// On the ingest pool: finds the tenant, appends to its head.
    fn append(
        &self,
        id: &TenantId,
        batch: &WriteBatch,
        identified: Identified,
    ) -> Result<(KnownReply, Lsn), ServiceError> {
        let shared = &self.shared;
        loop {
            let tenant = shared.tenants.get_or_insert(id, || self.new_tenant(id)).map_err(wal_error)?;
            let closed = tenant.closed.read();
            if *closed {
                // Somebody removes this idle tenant right now; the next round makes a new one.
                continue;
            }
            tenant.pushed(shared.runtime.clock.monotonic().as_millis() as i64);
            let now = shared.runtime.clock.now_ms();
            let of_tenant = shared.limits.of(id);
            let grace_period = of_tenant.distributor.creation_grace_period;
            let of_tenant = &of_tenant.ingester;
            let shares = shared.series_limits.get();
            let allowance = shares.and_then(|shares| shares.allowance(id, tenant.head.as_ref()));
            let per_metric = of_tenant.max_series_per_metric;
            let limits = AppendLimits {
                max_series: allowance.map_or(of_tenant.max_series_per_tenant, |allowed| Some(allowed.series)),
                max_series_per_metric: per_metric.map(|limit| shares.map_or(limit, |s| s.of_metric(id, limit))),
                max_time: now.saturating_add(grace_period.as_millis() as i64),
                out_of_order_window_ms: of_tenant.out_of_order_time_window.as_millis() as i64,
                max_exemplars: of_tenant.max_exemplars_per_tenant,
                fresh_from: now.saturating_sub(FRESH_MS),
            };
            let series = batch.iter().map(|series| SeriesAppend {
                labels: (identified == Identified::ByLabels).then_some(series.labels),
                hash: series.hash,
                samples: series.samples,
                sample_starts: series.sample_starts,
                histograms: series.histograms,
                histogram_starts: series.histogram_starts,
                exemplars: series.exemplars,
            });
            let appended = tenant.head.append(&shared.wal, series, &limits).map_err(append_error)?;
            let mut lsn = appended.lsn;
            let labels_of = |series: usize| match identified {
                Identified::ByLabels => batch.labels(series).to_labels(),
                Identified::ByHash => tenant.head.labels_by_hash(batch.series[series].hash).unwrap_or_default(),
            };
            let mut reply = reply(&appended, labels_of, &limits, of_tenant, allowance);
            if !batch.metadata.is_empty() {
                let outcome =
                    tenant.head.append_metadata(&shared.wal, &batch.metadata, METADATA_LIMITS).map_err(wal_error)?;
                lsn = lsn.max(outcome.lsn);
                reply.rejections.extend(metadata_rejections(outcome));
            }
            return Ok((KnownReply { reply, unknown: appended.unknown }, lsn));
        }
    }

    pub(super) fn new_tenant(&self, id: &TenantId) -> Result<Tenant, WalError> {
        let shared = &self.shared;
        let head = shared.wal.define_head(id.as_str().as_bytes())?;
        let head = Head::new(head, head_options(), shared.chunk_files.clone());
        let head = head.with_incarnation(shared.runtime.rng.next_u64());
        let now = shared.runtime.clock.monotonic().as_millis() as i64;
        let dir = shared.blocks_dir.join(id.as_str());
        tracing::info!(tenant = %id, "new tenant");
        Ok(Tenant::new(id.clone(), Arc::new(head), dir, Vec::new(), now))
    }

    /// Waits until everything logged up to `lsn` would survive a power cut.
    async fn wait_durable(&self, lsn: Lsn) -> Result<(), ServiceError> {
        let shared = &self.shared;
        let mut synced = shared.synced.subscribe();
        loop {
            match shared.wal.durability(lsn) {
                Durability::Durable => return Ok(()),
                Durability::Failed => {
                    let text = "the write-ahead log could not be synced";
                    return Err(unavailable("wal-sync-failed", text));
                }
                Durability::Pending => {
                    synced.mark_unchanged();
                    shared.sync_wanted.notify_one();
                    // Checked once more: the sync may have ended between the look and the mark.
                    if shared.wal.durability(lsn) == Durability::Pending && synced.changed().await.is_err() {
                        return Err(unavailable("ingester-stopping", "the ingester is stopping"));
                    }
                }
            }
        }
    }
}

fn unavailable(reason: &'static str, text: impl Into<String>) -> ServiceError {
    ServiceError::new(ErrorKind::Unavailable, reason, text).retry_after(RETRY_AFTER)
}

pub(super) fn wal_error(error: WalError) -> ServiceError {
    let reason = match error {
        WalError::Full => "disk-full",
        WalError::Io(_) | WalError::Version { .. } => "wal-unavailable",
    };
    unavailable(reason, error.to_string())
}

pub(super) fn append_error(error: AppendError) -> ServiceError {
    match error {
        AppendError::Wal(error) => wal_error(error),
        AppendError::ChunkBacklog { .. } => {
            let text = format!("{error} (ingester.chunk_files.memory_budget)");
            unavailable("chunk-files-unavailable", text)
        }
        AppendError::Full => unavailable("head-full", error.to_string()),
    }
}

fn reply(
    appended: &Appended,
    labels_of: impl Fn(usize) -> Labels,
    limits: &AppendLimits,
    of_tenant: &Limits,
    allowance: Option<Allowance>,
) -> PushReply {
    let rejection = |rejection: &skald_tsdb::head::Rejection| {
        let (reason, why) = explain(rejection.reason, limits, of_tenant, allowance);
        let labels = labels_of(rejection.series);
        Rejection {
            kind: match rejection.kind {
                HeadKind::Sample => RejectedKind::Sample,
                HeadKind::Exemplar => RejectedKind::Exemplar,
            },
            reason: Cow::Borrowed(reason),
            count: rejection.count,
            message: format!("{why}; series {labels}, timestamp {}", rejection.timestamp),
        }
    };
    PushReply {
        samples: appended.samples + appended.histograms,
        histograms: appended.histograms,
        exemplars: appended.exemplars,
        rejections: appended.rejections.iter().map(rejection).collect(),
    }
}

/// Stable id and text of a refusal.
fn explain(
    reason: RejectReason,
    limits: &AppendLimits,
    of_tenant: &Limits,
    allowance: Option<Allowance>,
) -> (&'static str, String) {
    let limit = |limit: Option<usize>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    match reason {
        RejectReason::OutOfOrder => (
            "sample-out-of-order",
            "the sample is older than its series' newest, and limits.out_of_order_time_window is 0".to_owned(),
        ),
        RejectReason::TooOld => (
            "sample-timestamp-too-old",
            format!(
                "the sample is older than the out-of-order window of {:?} allows (limits.out_of_order_time_window)",
                of_tenant.out_of_order_time_window
            ),
        ),
        RejectReason::DuplicateTimestamp => {
            ("sample-duplicate-timestamp", "another value is stored at that time".to_owned())
        }
        RejectReason::TooFarInFuture => (
            "too-far-in-future",
            format!(
                "the time lies beyond {}, the newest that is accepted (limits.creation_grace_period)",
                limits.max_time
            ),
        ),
        RejectReason::SeriesLimit => (
            "max-series-per-user",
            format!(
                "the tenant has as many series as it may: {} (limits.max_series_per_tenant){}",
                limit(of_tenant.max_series_per_tenant),
                allowance.map_or_else(String::new, |allowed| format!(
                    "; {} are known in all replica groups, {} may be here",
                    allowed.known, allowed.series
                ))
            ),
        ),
        RejectReason::SeriesPerMetricLimit => (
            "max-series-per-metric",
            format!(
                "the metric has as many series as it may: {} (limits.max_series_per_metric)",
                limit(of_tenant.max_series_per_metric)
            ),
        ),
        RejectReason::InvalidHistogram => {
            ("native-histogram-spans-buckets-mismatch", "the histogram's spans do not fit its buckets".to_owned())
        }
        RejectReason::ExemplarSeriesMissing => {
            ("exemplar-series-missing", "the exemplar's series does not exist".to_owned())
        }
        RejectReason::ExemplarOutOfOrder => {
            ("exemplar-out-of-order", "the exemplar is older than its series' newest".to_owned())
        }
    }
}

fn metadata_rejections(outcome: MetadataOutcome) -> impl Iterator<Item = Rejection> {
    let parts = [
        (outcome.over_metrics, "max-metadata-per-user", "the tenant has metadata of as many metrics as it may"),
        (outcome.over_per_metric, "max-metadata-per-metric", "the metric has as many different metadata as it may"),
    ];
    parts.into_iter().filter(|(count, ..)| *count > 0).map(|(count, reason, text)| Rejection {
        kind: RejectedKind::Metadata,
        reason: Cow::Borrowed(reason),
        count,
        message: text.to_owned(),
    })
}
