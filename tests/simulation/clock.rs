//! A process' clocks: monotonic time is the simulation's, wall time may be off and jump.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use skald::runtime::Clock;
use tokio::time::Instant;

/// Wall time when a simulation starts: 100 seconds before heads cut off the range that ended an hour ago.
pub const START_MS: i64 = 249_349 * 7_200_000 + 3_600_000 - 100_000;

/// The clocks of a machine. Clones are the same.
#[derive(Debug, Clone)]
pub struct HostClock {
    start: Instant,
    off_by_ms: Arc<AtomicI64>,
}

impl HostClock {
    /// Clocks that are right.
    pub fn new(start: Instant) -> Self {
        Self { start, off_by_ms: Arc::default() }
    }

    /// Puts wall time so far off.
    pub fn set_off_by(&self, ms: i64) {
        self.off_by_ms.store(ms, Ordering::Relaxed);
    }
}

impl Clock for HostClock {
    fn now_ms(&self) -> i64 {
        START_MS + self.monotonic().as_millis() as i64 + self.off_by_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
