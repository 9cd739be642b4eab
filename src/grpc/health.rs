//! Whether a peer answers, as far as calls to it have shown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Calls in a row that must fail to reach the peer until it counts as unhealthy: one may be a connection that was about
/// to end.
const FAILURES: u32 = 3;
/// The first pause for an unhealthy peer; it doubles with every further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What calls have shown of a peer. While it is unhealthy, callers who have a choice ask it last; after the pause it is
/// tried like any other, and one success makes it healthy for good.
#[derive(Default)]
pub(super) struct Health {
    /// Whether it became unhealthy since it last answered: what is asked for every write is cheap.
    in_doubt: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    unhealthy_until: Duration,
}

impl Health {
    /// The peer answered something.
    pub fn reached(&self) {
        let mut state = self.state.lock();
        *state = State::default();
        self.in_doubt.store(false, Ordering::Relaxed);
    }

    /// A call did not reach the peer, or broke before anything was answered.
    pub fn missed(&self, now: Duration) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES {
            let doubled = FIRST_PAUSE.saturating_mul(1 << (state.failures - FAILURES).min(4));
            state.unhealthy_until = now + doubled.min(LONGEST_PAUSE);
            self.in_doubt.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it may be asked like any other.
    pub fn is_healthy(&self, now: impl FnOnce() -> Duration) -> bool {
        !self.in_doubt.load(Ordering::Relaxed) || now() >= self.state.lock().unhealthy_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_left_alone_for_longer_and_longer_until_it_answers() {
        let health = Health::default();
        let healthy = |now: Duration| health.is_healthy(|| now);
        let at = Duration::from_secs;
        health.missed(at(100));
        health.missed(at(100));
        assert!(healthy(at(100)));
        health.reached();
        for _ in 0..2 {
            health.missed(at(100));
        }
        assert!(healthy(at(100)), "an answer in between starts the count anew");
        health.missed(at(100));
        assert!(!healthy(at(100)));
        assert!(healthy(at(101)), "it is tried again after a pause");
        for (now, pause) in [(101, 2), (103, 4), (107, 8), (115, 10), (125, 10)] {
            health.missed(at(now));
            assert!(!healthy(at(now + pause) - Duration::from_millis(1)), "{pause}");
            assert!(healthy(at(now + pause)), "{pause}");
        }
        health.reached();
        assert!(healthy(at(125)));
    }
}
