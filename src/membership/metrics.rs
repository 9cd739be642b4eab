//! What gossip tells of itself.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use skald_ring::store::Counts;

#[derive(Debug, Clone, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// What gossip tells of itself.
#[derive(Debug)]
pub struct Metrics {
    members: Gauge,
    waiting: Gauge,
    messages: Family<OutcomeLabels, Gauge>,
    clock_offset: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            members: Gauge::default(),
            waiting: Gauge::default(),
            messages: Family::default(),
            clock_offset: Gauge::default(),
        };
        registry.register(
            "skald_clock_offset_seconds",
            "How far the wall clock of this process is ahead of where it should be, by its peers' clocks or since it jumped; \
             0 while it is trusted",
            metrics.clock_offset.clone(),
        );
        registry.register(
            "skald_memberlist_members",
            "Processes that gossip with each other, this one included, as it sees them",
            metrics.members.clone(),
        );
        registry.register(
            "skald_memberlist_changes_waiting",
            "Changes that are still to be sent on",
            metrics.waiting.clone(),
        );
        registry.register(
            "skald_memberlist_messages",
            "Messages that came since the start, by what became of them; only `received` ones were taken in whole",
            metrics.messages.clone(),
        );
        metrics
    }

    pub(super) fn set_clock_offset(&self, ahead_ms: i64) {
        self.clock_offset.set(ahead_ms as f64 / 1000.0);
    }

    pub(super) fn update(&self, members: usize, counts: &Counts, waiting: usize) {
        self.members.set(members as i64);
        self.waiting.set(waiting as i64);
        for (outcome, count) in [
            ("received", counts.received),
            ("other_cluster", counts.other_cluster),
            ("signature", counts.signature),
            ("newer_version", counts.newer_version),
            ("malformed", counts.malformed),
            ("unknown_slot", counts.unknown_slot),
        ] {
            self.messages.get_or_create(&OutcomeLabels { outcome }).set(count as i64);
        }
    }
}
