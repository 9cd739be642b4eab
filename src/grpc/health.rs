//! Whether a peer answers, as far as calls to it have shown.

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
        *self.state.lock() = State::default();
    }

    /// A call did not reach the peer, or broke before anything was answered.
    pub fn missed(&self, now: Duration) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES {
            let doubled = FIRST_PAUSE.saturating_mul(1 << (state.failures - FAILURES).min(4));
            state.unhealthy_until = now + doubled.min(LONGEST_PAUSE);
        }
    }

    /// Whether it may be asked like any other.
    pub fn is_healthy(&self, now: Duration) -> bool {
        now >= self.state.lock().unhealthy_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_left_alone_for_longer_and_longer_until_it_answers() {
        let health = Health::default();
        let at = Duration::from_secs;
        health.missed(at(100));
        health.missed(at(100));
        assert!(health.is_healthy(at(100)));
        health.reached();
        for _ in 0..2 {
            health.missed(at(100));
        }
        assert!(health.is_healthy(at(100)), "an answer in between starts the count anew");
        health.missed(at(100));
        assert!(!health.is_healthy(at(100)));
        assert!(health.is_healthy(at(101)), "it is tried again after a pause");
        for (now, pause) in [(101, 2), (103, 4), (107, 8), (115, 10), (125, 10)] {
            health.missed(at(now));
            assert!(!health.is_healthy(at(now + pause) - Duration::from_millis(1)), "{pause}");
            assert!(health.is_healthy(at(now + pause)), "{pause}");
        }
        health.reached();
        assert!(health.is_healthy(at(125)));
    }
}
