//! What one process has seen happen, by its own monotonic clock: the only judge of who lives.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::instance::{Instance, InstanceId, InstanceState};
use crate::ring::GroupId;
use crate::state::{GroupMode, Heartbeat, RingState, Version};

/// How far apart the wall clocks of a cluster may be unless it says otherwise; lookbacks reach that much further.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(10 * 60);

/// The present, by both clocks of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since an arbitrary start that never jumps: for every timeout.
    pub monotonic: Duration,
    /// Unix milliseconds: for what is told to people, and for lookbacks.
    pub wall_ms: i64,
}

/// Remembers when heartbeats rose and groups changed.
#[derive(Debug)]
pub struct Observer {
    settling: Duration,
    began: Option<Duration>,
    heartbeats: HashMap<InstanceId, Seen>,
    groups: HashMap<GroupId, SeenGroup>,
}

/// What was last seen of a group.
#[derive(Debug, Clone, Copy)]
struct SeenGroup {
    facts: GroupFacts,
    /// Since when by the own monotonic clock.
    at: Duration,
    /// Whether it was so at the first look.
    first: bool,
    /// Whether it was seen happening, rather than heard of after the start with everything else.
    live: bool,
}

/// The last heartbeat of an instance.
#[derive(Debug, Clone, Copy)]
struct Seen {
    heartbeat: Heartbeat,
    /// By the own monotonic clock.
    risen_at: Duration,
    /// Whether it was seen rising: its time is that of `risen_at`, but for the way.
    live: bool,
}

/// What makes a group writable or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct GroupFacts {
    register_version: u64,
    formed: bool,
}

impl Observer {
    /// An observer that takes changes in the first `settling` for older than itself: a process that starts hears of
    /// everything at once, and much of it is old.
    pub fn new(settling: Duration) -> Self {
        Self { settling, began: None, heartbeats: HashMap::new(), groups: HashMap::new() }
    }

    /// Looks at the state as it is now. Call after every change, or every second or so.
    pub fn observe(&mut self, state: &RingState, now: Duration) {
        let first = self.began.is_none();
        let began = *self.began.get_or_insert(now);
        self.heartbeats.retain(|id, _| state.registration(id).is_some());
        let mut groups: HashMap<_, GroupFacts> = HashMap::new();
        for registration in state.registrations() {
            let instance = &registration.instance;
            let heartbeat = state.heartbeat(&instance.id);
            let first = Seen { heartbeat, risen_at: now, live: false };
            let seen = self.heartbeats.entry(instance.id.clone()).or_insert(first);
            if seen.heartbeat < heartbeat {
                *seen = Seen { live: true, ..first };
            }
            if let Some(membership) = instance.membership {
                groups.entry(membership.group).or_default().formed |= instance.group_formed_at_ms.is_some();
            }
        }
        for (group, register) in state.groups() {
            let facts = groups.entry(group).or_default();
            facts.register_version = register.version;
            facts.formed |= register.mode != GroupMode::Removed;
        }
        let live = now.saturating_sub(began) >= self.settling;
        let seen_now = |facts| SeenGroup { facts, at: now, first, live };
        self.groups.retain(|group, _| groups.contains_key(group));
        for (group, facts) in groups {
            let seen = self.groups.entry(group).or_insert(seen_now(facts));
            if seen.facts != facts {
                *seen = seen_now(facts);
            }
        }
    }

    /// How long ago the heartbeat of an instance last rose. One seen for the first time is as good as new.
    pub fn heartbeat_age(&self, id: &InstanceId, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(self.heartbeats.get(id)?.risen_at))
    }

    /// How far the wall clocks of others are ahead of the own one, milliseconds, by heartbeats of the last `recent`. The time
    /// a heartbeat takes to come here makes a clock seem behind: seconds at most.
    pub fn clock_offsets_ms<'o>(
        &'o self,
        own: &'o InstanceId,
        recent: Duration,
        now: Now,
    ) -> impl Iterator<Item = (&'o InstanceId, i64)> {
        let others =
            self.heartbeats.iter().filter(move |(id, seen)| *id != own && seen.live && seen.heartbeat.at_ms != 0);
        others.filter_map(move |(id, seen)| {
            let age = now.monotonic.saturating_sub(seen.risen_at);
            let present_ms = seen.heartbeat.at_ms.saturating_add(age.as_millis() as i64);
            (age <= recent).then_some((id, present_ms.saturating_sub(now.wall_ms)))
        })
    }

    /// How long ago a group last changed at the most, given what its data says by wall time: the later of that and what
    /// was seen here, so that a clock that is wrong makes a lookback longer and never shorter.
    pub(crate) fn change_age(&self, group: GroupId, since_ms: i64, now: Now) -> Duration {
        let told = Duration::from_millis(now.wall_ms.saturating_sub(since_ms).max(0) as u64);
        let seen = self.groups.get(&group).filter(|seen| seen.live);
        seen.map_or(told, |seen| told.min(now.monotonic.saturating_sub(seen.at)))
    }

    /// Whether a group has been as it is for so long, as far as was seen here.
    pub(crate) fn is_settled(&self, group: GroupId, long: Duration, now: Duration) -> bool {
        let seen = self.groups.get(&group);
        seen.is_none_or(|seen| seen.first || now.saturating_sub(seen.at) >= long)
    }
}

/// A registered instance as one process sees it: a row of a ring page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// What it says about itself.
    pub instance: Instance,
    /// Which description that is.
    pub version: Version,
    /// Since its heartbeat rose as far as was seen here.
    pub heartbeat_age: Duration,
    /// Whether that is within the timeout.
    pub healthy: bool,
}

impl Member {
    /// Its id.
    pub fn id(&self) -> &InstanceId {
        &self.instance.id
    }

    /// Whether it takes writes: Active and alive.
    pub fn takes_writes(&self) -> bool {
        self.healthy && self.instance.state == InstanceState::Active
    }

    /// Whether its answers count: at work or not gone yet, alive, and repaired.
    pub fn counts_for_reads(&self) -> bool {
        self.healthy && self.instance.is_whole()
    }
}

/// Everyone registered and not Left, by id. An instance without a heartbeat for `heartbeat_timeout` is unhealthy.
pub fn members(state: &RingState, observer: &Observer, heartbeat_timeout: Duration, now: Now) -> Vec<Arc<Member>> {
    let present = state.registrations().filter(|entry| entry.instance.state != InstanceState::Left);
    let member = |entry: &crate::state::Registration| {
        let heartbeat_age = observer.heartbeat_age(&entry.instance.id, now.monotonic).unwrap_or_default();
        let healthy = heartbeat_age <= heartbeat_timeout;
        Arc::new(Member { instance: entry.instance.clone(), version: entry.version, heartbeat_age, healthy })
    };
    present.map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{GroupMode, Registration};
    use crate::value::Value;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn beat(incarnation: u64, count: u64) -> RingState {
        let mut instance = Instance::new(InstanceId::new("a-0").unwrap());
        instance.state = InstanceState::Active;
        RingState::of_instance(Registration { version: Version { incarnation, counter: 1 }, instance }, count)
    }

    #[test]
    fn only_a_rising_heartbeat_is_a_sign_of_life() {
        let mut observer = Observer::new(Duration::ZERO);
        let mut state = beat(1, 5);
        let healthy = |observer: &Observer, state: &RingState, now| {
            let now = Now { monotonic: seconds(now), wall_ms: 0 };
            members(state, observer, seconds(60), now).iter().all(|member| member.healthy)
        };
        observer.observe(&state, seconds(100));
        observer.observe(&state, seconds(155));
        assert!(healthy(&observer, &state, 160));
        assert!(!healthy(&observer, &state, 161));
        state.merge(&beat(1, 6));
        observer.observe(&state, seconds(170));
        assert!(healthy(&observer, &state, 170));
        // A restart begins to count anew.
        state.merge(&beat(2, 0));
        observer.observe(&state, seconds(240));
        assert!(healthy(&observer, &state, 300));
        assert!(!healthy(&observer, &state, 301));
    }

    #[test]
    fn a_change_seen_here_outweighs_a_clock_that_says_it_is_long_ago() {
        let mut observer = Observer::new(seconds(60));
        let now = |monotonic| Now { monotonic: seconds(monotonic), wall_ms: 100_000_000 };
        let mut state = RingState::default();
        state.merge(&state.clone().set_group_mode(GroupId(1), GroupMode::ReadOnly, 40_000_000).unwrap());
        observer.observe(&state, seconds(0));
        state.merge(&state.clone().set_group_mode(GroupId(2), GroupMode::ReadOnly, 40_000_000).unwrap());
        observer.observe(&state, seconds(1000));
        // Known from the start: the clock is all there is.
        assert_eq!(observer.change_age(GroupId(1), 40_000_000, now(1500)), seconds(60_000));
        assert_eq!(observer.change_age(GroupId(2), 40_000_000, now(1500)), seconds(500));
        // A clock ahead.
        assert_eq!(observer.change_age(GroupId(1), 140_000_000, now(1500)), Duration::ZERO);
    }
}
