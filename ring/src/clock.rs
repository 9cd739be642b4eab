//! Whether a process may trust its wall clock, by what its peers' clocks say.
//!
//! Timestamps that a clock decides about (too old, too far in the future) must not be refused for good because of one machine's
//! clock: an instance that is off takes no writes, and says so.

use std::time::Duration;

use crate::observer::Now;

/// How far a clock may be off.
pub const CLOCK_LIMIT: Duration = Duration::from_secs(60);
/// Fewer peers than this cannot say whose clock is wrong.
const MIN_PEERS: usize = 2;
/// Heartbeats that are older say nothing about the present.
pub const RECENT: Duration = Duration::from_secs(120);
/// A clock that stands for so long after a jump is taken for right where nobody can say otherwise.
pub const SETTLED_AFTER: Duration = Duration::from_secs(300);

/// What is known about the own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockState {
    /// Nothing speaks against it.
    Sound,
    /// It is off the median of the peers' clocks.
    Off {
        /// How far the peers are ahead of it, milliseconds.
        peers_ahead_ms: i64,
        /// How many were asked.
        peers: usize,
    },
    /// It jumped against the monotonic clock, and there are too few peers to say whether that put it right.
    Jumped {
        /// How far it went ahead, milliseconds.
        by_ms: i64,
    },
}

/// Judges the own clock; one for each process.
#[derive(Debug, Default)]
pub struct ClockCheck {
    began: Option<Duration>,
    /// Wall time at monotonic zero as it was when the clock was last found sound. Follows what NTP corrects step by step.
    sound_base_ms: Option<i64>,
    /// Where the clock jumped to, and when.
    jumped: Option<(i64, Duration)>,
}

impl ClockCheck {
    /// Judges the clock that says `now`, by how far peers' clocks are ahead of it where there are enough of them
    /// ([`Observer::clock_offsets_ms`]), otherwise by itself. Call every second or so.
    ///
    /// The median is that of all clocks, the own one among them: of three with one that is wrong it is a right one's. Without
    /// enough peers a jump in the first [`SETTLED_AFTER`] is taken for what puts a clock right after a machine's start, and a
    /// later one too, once the clock has stood there for as long.
    ///
    /// [`Observer::clock_offsets_ms`]: crate::Observer::clock_offsets_ms
    pub fn judge(&mut self, peers_ahead_ms: &[i64], now: Now) -> ClockState {
        let limit_ms = CLOCK_LIMIT.as_millis() as u64;
        let base_ms = now.wall_ms.saturating_sub(now.monotonic.as_millis() as i64);
        let began = *self.began.get_or_insert(now.monotonic);
        let peers = peers_ahead_ms.len();
        if peers >= MIN_PEERS {
            let mut offsets = peers_ahead_ms.to_vec();
            offsets.push(0);
            offsets.sort_unstable();
            let (lower, upper) = (offsets[peers / 2], offsets[offsets.len() / 2]);
            let peers_ahead_ms = if lower.unsigned_abs() < upper.unsigned_abs() { lower } else { upper };
            if peers_ahead_ms.unsigned_abs() > limit_ms {
                return ClockState::Off { peers_ahead_ms, peers };
            }
        } else if let Some(sound_base_ms) = self.sound_base_ms {
            let by_ms = base_ms.saturating_sub(sound_base_ms);
            if by_ms.unsigned_abs() > limit_ms {
                let stands = |(to_ms, _): &(i64, Duration)| base_ms.saturating_sub(*to_ms).unsigned_abs() <= limit_ms;
                let (_, since) = *self.jumped.take_if(|jumped| stands(jumped)).get_or_insert((base_ms, now.monotonic));
                let settled = |since: Duration| now.monotonic.saturating_sub(since) >= SETTLED_AFTER;
                if settled(began) && !settled(since) {
                    self.jumped = Some((base_ms, since));
                    return ClockState::Jumped { by_ms };
                }
            }
        }
        self.jumped = None;
        self.sound_base_ms = Some(base_ms);
        ClockState::Sound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Instance, InstanceId};
    use crate::observer::Observer;
    use crate::state::{Heartbeat, Registration, RingState, Version};
    use crate::value::Value;

    fn id(number: usize) -> InstanceId {
        InstanceId::new(&format!("i-{number}")).unwrap()
    }

    /// Instance 0 and peers that each have a clock ahead by so much.
    struct Peers {
        state: RingState,
        observer: Observer,
        ahead_ms: Vec<i64>,
        check: ClockCheck,
        beats: u64,
    }

    impl Peers {
        fn new(ahead_ms: &[i64]) -> Self {
            let mut state = RingState::default();
            for number in 0..=ahead_ms.len() {
                let version = Version { incarnation: 1, counter: 1 };
                state.merge(&RingState::of_instance(Registration { version, instance: Instance::new(id(number)) }, 1));
            }
            let observer = Observer::new(Duration::ZERO);
            Self { state, observer, ahead_ms: ahead_ms.to_vec(), check: ClockCheck::default(), beats: 1 }
        }

        /// Everyone beats at `seconds`, then instance 0 looks at its clock, which is ahead by so much.
        fn judge(&mut self, seconds: u64, own_ahead_ms: i64) -> ClockState {
            let true_ms = 1_000_000_000 + seconds as i64 * 1000;
            let now = Now { monotonic: Duration::from_secs(seconds), wall_ms: true_ms + own_ahead_ms };
            self.observer.observe(&self.state, now.monotonic);
            self.beats += 1;
            for (number, ahead_ms) in self.ahead_ms.iter().enumerate() {
                let heartbeat = Heartbeat { incarnation: 1, count: self.beats, at_ms: true_ms + ahead_ms };
                self.state.merge(&RingState::of_heartbeat(id(number + 1), heartbeat));
            }
            self.observer.observe(&self.state, now.monotonic);
            self.look(now)
        }

        fn look(&mut self, now: Now) -> ClockState {
            let offsets: Vec<i64> = self.observer.clock_offsets_ms(&id(0), RECENT, now).map(|(_, ms)| ms).collect();
            self.check.judge(&offsets, now)
        }
    }

    #[test]
    fn the_median_of_the_peers_decides() {
        let mut peers = Peers::new(&[0, 500, -900, 7_200_000]);
        assert_eq!(peers.judge(0, 0), ClockState::Sound);
        // One peer that is wrong does not matter, and the own clock may differ a little.
        assert_eq!(peers.judge(15, -59_000), ClockState::Sound);
        assert_eq!(peers.judge(30, 3_600_000), ClockState::Off { peers_ahead_ms: -3_599_500, peers: 4 });
        assert_eq!(peers.judge(45, 0), ClockState::Sound);
    }

    #[test]
    fn a_jump_is_seen_before_the_next_heartbeat() {
        let mut peers = Peers::new(&[0, 0, 0]);
        peers.judge(0, 0);
        let jumped = Now { monotonic: Duration::from_secs(5), wall_ms: 1_000_005_000 + 600_000 };
        let state = peers.look(jumped);
        assert_eq!(state, ClockState::Off { peers_ahead_ms: -600_000, peers: 3 });
    }

    #[test]
    fn alone_a_jump_decides_and_slow_corrections_do_not() {
        let mut peers = Peers::new(&[9_999_999]);
        for step in 0..20 {
            assert_eq!(peers.judge(step * 15, step as i64 * 10_000), ClockState::Sound);
        }
        assert_eq!(peers.judge(300, 190_000 + 61_000), ClockState::Jumped { by_ms: 61_000 });
        assert_eq!(peers.judge(315, 190_000), ClockState::Sound);
    }

    #[test]
    fn peers_that_are_silent_say_nothing() {
        let mut peers = Peers::new(&[0, 0, 0]);
        peers.judge(0, 0);
        peers.ahead_ms.clear();
        assert_eq!(peers.judge(430, 500_000), ClockState::Jumped { by_ms: 500_000 });
    }

    #[test]
    fn of_three_the_one_that_is_wrong_is_told() {
        for wrong in [3_600_000, -3_600_000] {
            assert_eq!(Peers::new(&[0, wrong]).judge(0, 0), ClockState::Sound);
            assert_eq!(Peers::new(&[0, 0]).judge(0, wrong), ClockState::Off { peers_ahead_ms: -wrong, peers: 2 });
            // Two against two: nobody knows.
            assert_eq!(Peers::new(&[0, wrong, wrong]).judge(0, 0), ClockState::Sound);
        }
    }

    #[test]
    fn a_jump_at_the_start_or_one_that_stays_is_a_correction() {
        let mut alone = Peers::new(&[]);
        alone.judge(0, 0);
        assert_eq!(alone.judge(60, 7_200_000), ClockState::Sound, "NTP after the machine started");
        assert_eq!(alone.judge(400, 0), ClockState::Jumped { by_ms: -7_200_000 });
        // Another jump begins to count anew.
        assert_eq!(alone.judge(600, 90_000), ClockState::Jumped { by_ms: -7_110_000 });
        assert_eq!(alone.judge(899, 90_000), ClockState::Jumped { by_ms: -7_110_000 });
        assert_eq!(alone.judge(900, 90_000), ClockState::Sound);
        assert_eq!(alone.judge(901, 90_000), ClockState::Sound);
    }
}
