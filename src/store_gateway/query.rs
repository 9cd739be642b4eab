//! What is measured of one query.

use std::sync::Arc;
use std::time::Duration;

use super::metrics::Metrics;
use super::pages::Usage;
use crate::runtime::Clock;

/// Measures a query from its start until this is dropped: at its end, or when it is given up.
pub(super) struct Query {
    pub(super) usage: Arc<Usage>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    began: Duration,
}

impl Query {
    pub(super) fn begin(metrics: Metrics, clock: Arc<dyn Clock>) -> Self {
        let began = clock.monotonic();
        Self { usage: Arc::default(), metrics, clock, began }
    }

    /// Says that the query ends with an error.
    pub(super) fn failed(&self) {
        self.metrics.query_failures.inc();
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        self.metrics.query_requests.observe(self.usage.requests() as f64);
        self.metrics.query_bytes.observe(self.usage.bytes() as f64);
        self.metrics.query_seconds.observe(self.clock.monotonic().saturating_sub(self.began).as_secs_f64());
    }
}
