//! Signals of the distributor.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::ingester::client::RejectedKind;

/// All of them.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) received_samples: Family<TenantLabels, Counter>,
    pub(super) received_exemplars: Family<TenantLabels, Counter>,
    pub(super) received_metadata: Family<TenantLabels, Counter>,
    pub(super) deduped_samples: Family<TenantLabels, Counter>,
    discarded_samples: Family<DiscardLabels, Counter>,
    discarded_exemplars: Family<DiscardLabels, Counter>,
    discarded_metadata: Family<DiscardLabels, Counter>,
    pub(super) refused_requests: Family<ReasonLabels, Counter>,
    pub(super) received_bytes: Counter,
    pub(super) decompressed_bytes: Counter,
    pub(super) push_duration: Histogram,
    pub(super) in_flight_requests: Gauge,
    pub(super) in_flight_bytes: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TenantLabels {
    pub(super) tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DiscardLabels {
    /// A stable id, its words joined by `_`.
    pub(super) reason: String,
    pub(super) tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    pub(super) reason: String,
}

/// A reason id as metrics write it.
pub(super) fn reason_label(id: &str) -> String {
    id.replace('-', "_")
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        // From a request of a few series to one that waits for a slow disk.
        let seconds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let metrics = Self {
            received_samples: Family::default(),
            received_exemplars: Family::default(),
            received_metadata: Family::default(),
            deduped_samples: Family::default(),
            discarded_samples: Family::default(),
            discarded_exemplars: Family::default(),
            discarded_metadata: Family::default(),
            refused_requests: Family::default(),
            received_bytes: Counter::default(),
            decompressed_bytes: Counter::default(),
            push_duration: Histogram::new(seconds),
            in_flight_requests: Gauge::default(),
            in_flight_bytes: Gauge::default(),
        };
        registry.register(
            "skald_distributor_received_samples",
            "Float and histogram samples that passed the distributor's checks",
            metrics.received_samples.clone(),
        );
        registry.register(
            "skald_distributor_received_exemplars",
            "Exemplars that passed the distributor's checks",
            metrics.received_exemplars.clone(),
        );
        registry.register(
            "skald_distributor_received_metadata",
            "Metadata entries that passed the distributor's checks",
            metrics.received_metadata.clone(),
        );
        registry.register(
            "skald_distributor_deduped_samples",
            "Float and histogram samples of replicas of a pair of Prometheus that are not elected",
            metrics.deduped_samples.clone(),
        );
        registry.register(
            "skald_discarded_samples",
            "Float and histogram samples refused by distributor or ingester and told to the sender, or left out by relabelling",
            metrics.discarded_samples.clone(),
        );
        registry.register("skald_discarded_exemplars", "Exemplars refused", metrics.discarded_exemplars.clone());
        registry.register("skald_discarded_metadata", "Metadata entries refused", metrics.discarded_metadata.clone());
        registry.register(
            "skald_distributor_refused_requests",
            "Write requests of which nothing was stored, by reason",
            metrics.refused_requests.clone(),
        );
        registry.register(
            "skald_distributor_received_bytes",
            "Bytes of write requests as they arrived",
            metrics.received_bytes.clone(),
        );
        registry.register(
            "skald_distributor_decompressed_bytes",
            "Bytes of write requests decompressed",
            metrics.decompressed_bytes.clone(),
        );
        registry.register(
            "skald_distributor_push_duration_seconds",
            "Time from a write's complete body to its outcome",
            metrics.push_duration.clone(),
        );
        registry.register(
            "skald_distributor_inflight_push_requests",
            "Write requests being answered",
            metrics.in_flight_requests.clone(),
        );
        registry.register(
            "skald_distributor_inflight_push_requests_bytes",
            "Memory of the write requests being answered",
            metrics.in_flight_bytes.clone(),
        );
        metrics
    }

    pub(super) fn discarded(&self, kind: RejectedKind) -> &Family<DiscardLabels, Counter> {
        match kind {
            RejectedKind::Sample => &self.discarded_samples,
            RejectedKind::Exemplar => &self.discarded_exemplars,
            RejectedKind::Metadata => &self.discarded_metadata,
        }
    }

    /// Counts a request of which nothing was stored.
    pub(super) fn refuse_request(&self, reason: &str) {
        self.refused_requests.get_or_create(&ReasonLabels { reason: reason_label(reason) }).inc();
    }
}
