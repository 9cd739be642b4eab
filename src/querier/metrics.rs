//! What the querier tells of itself.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use skald_promql::eval::QueryStats;

use crate::error::ServiceError;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    /// `success`, or Prometheus' error type.
    outcome: &'static str,
}

/// The querier's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    queries: Family<Outcome, Counter>,
    duration: Histogram,
    /// Queries being evaluated.
    pub(super) running: Gauge,
    /// Queries waiting for their turn.
    pub(super) waiting: Gauge,
    series_read: Counter,
    samples_read: Counter,
    peak_bytes: Histogram,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("skald_querier");
        let metrics = Self {
            queries: Family::default(),
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 18)),
            running: Gauge::default(),
            waiting: Gauge::default(),
            series_read: Counter::default(),
            samples_read: Counter::default(),
            peak_bytes: Histogram::new(exponential_buckets(65_536.0, 4.0, 10)),
        };
        registry.register("queries", "Queries by outcome", metrics.queries.clone());
        registry.register("query_duration_seconds", "Time from a query's arrival to its end", metrics.duration.clone());
        registry.register("queries_running", "Queries being evaluated", metrics.running.clone());
        registry.register("queries_waiting", "Queries waiting for their turn", metrics.waiting.clone());
        registry.register("series_read", "Series decoded by queries", metrics.series_read.clone());
        registry.register("samples_read", "Samples decoded by queries", metrics.samples_read.clone());
        registry.register("query_peak_bytes", "Most bytes a query held at one time", metrics.peak_bytes.clone());
        metrics
    }

    /// Notes the end of a query.
    pub(super) fn ended(&self, took: Duration, outcome: Result<&QueryStats, &ServiceError>) {
        self.duration.observe(took.as_secs_f64());
        let outcome = match outcome {
            Ok(stats) => {
                self.series_read.inc_by(stats.series_read);
                self.samples_read.inc_by(stats.samples_read);
                self.peak_bytes.observe(stats.peak_bytes as f64);
                "success"
            }
            Err(error) => error.kind.prometheus_error_type(),
        };
        self.queries.get_or_create(&Outcome { outcome }).inc();
    }
}

/// Counts in a gauge as long as it lives.
pub(super) struct Counted(Gauge);

impl Counted {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
