//! Time.
#![expect(clippy::disallowed_methods, reason = "this is the one place that reads the system's clocks")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use skald_model::TimestampMs;
use tokio::sync::Notify;

/// Wall time for what is stored, monotonic time for every timeout.
pub trait Clock: Send + Sync + 'static {
    /// Wall time, milliseconds since the epoch.
    fn now_ms(&self) -> TimestampMs;
    /// Monotonic time since an arbitrary start.
    fn monotonic(&self) -> Duration;
    /// Completes once `duration` of monotonic time has passed.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> TimestampMs {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        }
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A clock that moves only when told to.
#[derive(Clone, Default)]
pub struct ManualClock {
    state: Arc<ManualState>,
}

#[derive(Default)]
struct ManualState {
    /// Wall time at monotonic zero, and monotonic time.
    now: Mutex<(TimestampMs, Duration)>,
    moved: Notify,
}

impl ManualClock {
    /// A clock standing at `now_ms`.
    pub fn at(now_ms: TimestampMs) -> Self {
        let clock = Self::default();
        clock.state.now.lock().0 = now_ms;
        clock
    }

    /// Moves wall and monotonic time on and wakes who slept until then.
    pub fn advance(&self, by: Duration) {
        self.state.now.lock().1 += by;
        self.state.moved.notify_waiters();
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> TimestampMs {
        let (start, passed) = *self.state.now.lock();
        start + passed.as_millis() as i64
    }

    fn monotonic(&self) -> Duration {
        self.state.now.lock().1
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let state = self.state.clone();
        let until = self.monotonic() + duration;
        Box::pin(async move {
            loop {
                let moved = state.moved.notified();
                tokio::pin!(moved);
                moved.as_mut().enable();
                if state.now.lock().1 >= until {
                    return;
                }
                moved.await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn manual_sleepers_wake_when_time_moves() {
        let clock = ManualClock::at(1_000);
        let sleeper = tokio::spawn(clock.sleep(Duration::from_secs(2)));
        clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(1));
        sleeper.await.unwrap();
        assert_eq!(clock.now_ms(), 3_000);
    }
}
