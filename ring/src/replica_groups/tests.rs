use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::group::Membership;
use crate::instance::{Instance, InstanceState};
use crate::state::{Registration, Version};
use crate::value::Value;

const HOUR_MS: i64 = 3_600_000;
const TIMEOUT: Duration = Duration::from_secs(60);

fn hours(count: u64) -> Duration {
    Duration::from_secs(3600 * count)
}

/// A ring under construction, with one clock.
struct TestRing {
    state: RingState,
    observer: Observer,
    rules: GroupRules,
    now_ms: i64,
    previous: Option<ReplicaGroups>,
}

impl TestRing {
    fn new(zone_aware: bool) -> Self {
        let rules = GroupRules { replication_factor: 3, zone_aware, spread: Duration::ZERO };
        let observer = Observer::new(Duration::ZERO);
        Self { state: RingState::default(), observer, rules, now_ms: 1_000 * HOUR_MS, previous: None }
    }

    fn now(&self) -> Now {
        Now { monotonic: Duration::from_millis(self.now_ms as u64), wall_ms: self.now_ms }
    }

    /// Registers or changes an instance; zone and group come from its name where that has them.
    fn set(&mut self, name: &str, change: impl FnOnce(&mut Instance)) -> &mut Self {
        let id = InstanceId::new(name).unwrap();
        let known = self.state.registration(&id).cloned();
        let version = Version { incarnation: 1, counter: known.as_ref().map_or(1, |entry| entry.version.counter + 1) };
        let mut instance = known.map_or_else(|| Instance::new(id.clone()), |entry| entry.instance);
        if version.counter == 1 {
            instance.state = InstanceState::Active;
            instance.registered_at_ms = self.now_ms;
            instance.membership = Membership::of(&id, None, &self.rules).ok();
            instance.zone = name.split('-').rev().nth(1).unwrap_or_default().to_owned();
        }
        change(&mut instance);
        self.state.merge(&RingState::of_instance(Registration { version, instance }, self.now_ms as u64));
        self
    }

    fn add_group(&mut self, group: u32) -> &mut Self {
        for zone in ["a", "b", "c"] {
            let formed = self.now_ms;
            self.set(&format!("i-{zone}-{group}"), |instance| instance.group_formed_at_ms = Some(formed));
        }
        self
    }

    fn set_mode(&mut self, group: u32, mode: GroupMode) {
        if let Some(change) = self.state.set_group_mode(GroupId(group), mode, self.now_ms) {
            self.state.merge(&change);
        }
    }

    fn view(&mut self) -> ReplicaGroups {
        self.observer.observe(&self.state, self.now().monotonic);
        let previous = self.previous.as_ref();
        let view = ReplicaGroups::build(&self.state, &self.rules, &self.observer, TIMEOUT, self.now(), previous);
        self.previous.insert(view).clone()
    }
}

fn members(group: &GroupView) -> Vec<&str> {
    group.members.iter().map(|member| member.id().as_str()).collect()
}

#[test]
fn a_group_is_active_once_all_its_members_serve_and_stays_so() {
    let mut ring = TestRing::new(true);
    ring.set("i-a-0", |_| {}).set("i-b-0", |_| {});
    let view = ring.view();
    let GroupState::Pending(reason) = &view.groups()[0].state else { panic!("{:?}", view.groups()[0].state) };
    assert_eq!(reason.to_string(), "2 of 3 members serve: a, b");
    assert!(view.ring().is_none() && view.write_subring("t", None).is_none());
    assert!(view.read_groups("t", None, hours(1)).is_empty());

    for change in [|it: &mut Instance| it.state = InstanceState::Joining, |it: &mut Instance| it.repaired = false] {
        let view = ring.set("i-c-0", change).view();
        assert!(matches!(view.groups()[0].state, GroupState::Pending(_)), "it could not answer");
    }
    let view = ring
        .set("i-c-0", |instance| {
            (instance.state, instance.repaired) = (InstanceState::Active, true);
        })
        .view();
    assert_eq!(view.groups()[0].state, GroupState::Active);
    assert!(view.groups()[0].has_write_quorum());

    // A member saw it complete: the group keeps its keys when another one goes.
    let now_ms = ring.now_ms;
    ring.set("i-a-0", |instance| instance.group_formed_at_ms = Some(now_ms));
    let forget = |name: &str, ring: &TestRing| ring.state.forget(&InstanceId::new(name).unwrap(), 0).unwrap();
    let change = forget("i-b-0", &ring);
    ring.state.merge(&change);
    let view = ring.view();
    assert_eq!((&view.groups()[0].state, members(&view.groups()[0])), (&GroupState::Active, vec!["i-a-0", "i-c-0"]));
    assert!(view.groups()[0].has_write_quorum() && view.groups()[0].members.len() == 2);
    assert_eq!(view.read_groups("t", None, hours(1)).len(), 1);
}

#[test]
fn groups_without_zones() {
    let mut ring = TestRing::new(false);
    ring.set("i-0", |_| {}).set("i-1", |_| {}).set("i-2", |_| {}).set("i-4", |_| {});
    let view = ring.view();
    assert_eq!(view.groups()[0].state, GroupState::Active);
    let GroupState::Pending(reason) = &view.groups()[1].state else { panic!() };
    assert_eq!(reason.to_string(), "1 of 3 members serve: member 1");
    assert_eq!(view.owned_share(GroupId(0)), 1.0);
    assert_eq!(view.owned_share(GroupId(1)), 0.0);
}

#[test]
fn who_registered_first_keeps_a_place_that_two_claim() {
    let mut ring = TestRing::new(true);
    ring.add_group(3);
    ring.now_ms += 1;
    ring.set("aaa-a-3", |_| {});
    ring.set("i-d-3", |_| {});
    ring.set("ingester", |_| {});
    let view = ring.view();
    assert_eq!(members(&view.groups()[0]), ["i-a-3", "i-b-3", "i-c-3"]);
    let told: Vec<_> = view.conflicts().iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "aaa-a-3 and i-a-3 are both in group 3 and zone a; i-a-3 stays",
            "i-d-3 is one more than the 3 members of group 3",
        ]
    );
    assert_eq!(view.homeless(), [InstanceId::new("ingester").unwrap()]);
    // Once the holder has left, the other one has the place.
    let view = ring.set("i-a-3", |instance| instance.state = InstanceState::Left).view();
    assert_eq!(members(&view.groups()[0]), ["aaa-a-3", "i-b-3", "i-c-3"]);
}

#[test]
fn quorums_count_members_that_live_and_are_ready_for_it() {
    let mut ring = TestRing::new(true);
    ring.add_group(0).add_group(1);
    ring.set("i-a-0", |instance| instance.repaired = false);
    let quorums = |view: &ReplicaGroups| (view.groups()[0].has_write_quorum(), view.groups()[0].has_read_quorum());
    assert_eq!(quorums(&ring.view()), (true, true));
    // Not repaired it takes writes, but does not count for reads.
    let view = ring.set("i-b-0", |instance| instance.state = InstanceState::Leaving).view();
    assert_eq!(quorums(&view), (true, true));
    let view = ring.set("i-b-0", |instance| instance.state = InstanceState::Joining).view();
    assert_eq!(quorums(&view), (true, false));

    // Without heartbeats all are dead; a group with two living members is usable.
    ring.now_ms += 61_000;
    for name in ["i-a-1", "i-c-1"] {
        ring.set(name, |_| {});
    }
    let view = ring.view();
    assert_eq!(quorums(&view), (false, false));
    let subring = view.write_subring("t", None).unwrap();
    let usable = view.with_write_quorum(&subring);
    assert_eq!((usable.len(), usable.contains(1)), (1, true));
    assert_eq!(subring.position_among(0, &usable), Some(1));
    assert_eq!(view.groups()[1].members[1].heartbeat_age, Duration::from_secs(61));
}

#[test]
fn a_read_only_group_takes_nothing_and_is_read_for_the_lookback() {
    let mut ring = TestRing::new(true);
    (0..4).for_each(|group| {
        ring.add_group(group);
    });
    ring.view();
    ring.now_ms += 100 * HOUR_MS;
    let tenant = "t";
    let before = ring.view().write_subring(tenant, Some(2)).unwrap();
    let gone = before.groups()[0];
    ring.set_mode(gone.0, GroupMode::ReadOnly);
    ring.view();
    ring.now_ms += HOUR_MS;
    let view = ring.view();
    assert_eq!(view.group(gone).unwrap().state, GroupState::ReadOnly);
    assert_eq!(view.owned_share(gone), 0.0);
    let after = view.write_subring(tenant, Some(2)).unwrap();
    assert!(!after.groups().contains(&gone) && after.groups().len() == 2);
    let read = |view: &ReplicaGroups, lookback| -> Vec<_> {
        view.read_groups(tenant, Some(2), lookback).iter().map(|group| group.id).collect()
    };
    let all: BTreeSet<_> = before.groups().iter().chain(after.groups()).copied().collect();
    assert_eq!(read(&view, hours(2)), all.into_iter().collect::<Vec<_>>());
    // Within the lookback and what clocks may differ by, no longer.
    assert_eq!(read(&view, Duration::from_secs(59 * 60)), after.groups());
}

#[test]
fn a_new_group_is_written_to_once_everybody_knows_of_it() {
    let mut ring = TestRing::new(true);
    ring.rules.spread = Duration::from_secs(2);
    let writable = |ring: &mut TestRing| -> Vec<u32> {
        ring.view().write_subring("t", None).map_or_else(Vec::new, |all| all.groups().iter().map(|id| id.0).collect())
    };
    assert_eq!(writable(&mut ring), [0_u32; 0]);
    ring.now_ms += 1000;
    ring.add_group(0);
    assert_eq!(writable(&mut ring), [0], "there is no other");
    ring.now_ms += 1000;
    ring.add_group(1);
    assert_eq!(writable(&mut ring), [0, 1], "none that everybody knows");
    ring.now_ms += 1000;
    assert_eq!(writable(&mut ring), [0]);
    assert_eq!(ring.view().read_groups("t", None, hours(1)).len(), 2, "who reads does not wait");
    ring.now_ms += 1000;
    assert_eq!(writable(&mut ring), [0, 1]);
    ring.set_mode(0, GroupMode::ReadOnly);
    assert_eq!(writable(&mut ring), [1]);
    ring.now_ms += 9000;
    ring.set_mode(0, GroupMode::ReadWrite);
    assert_eq!(writable(&mut ring), [1]);
    ring.now_ms += 2000;
    assert_eq!(writable(&mut ring), [0, 1]);
    // Who starts later was not there, and takes it for old.
    ring.add_group(2);
    let mut observer = Observer::new(Duration::from_secs(60));
    observer.observe(&ring.state, ring.now().monotonic);
    let view = ReplicaGroups::build(&ring.state, &ring.rules, &observer, TIMEOUT, ring.now(), None);
    assert_eq!(view.ring().unwrap().groups().len(), 3);
}

/// Groups come, go read-only and come back over days; tenants change their size. Whatever a tenant's series went to within
/// the lookback, spilled or not, is read.
#[derive(Debug, Clone)]
enum Event {
    Add,
    Toggle(prop::sample::Index),
    Wait(u8),
    Resize(usize),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn reads_ask_every_group_that_was_written_to_within_the_lookback(
        events in prop::collection::vec(
            prop_oneof![
                Just(Event::Add),
                any::<prop::sample::Index>().prop_map(Event::Toggle),
                (1_u8..20).prop_map(Event::Wait),
                (1_usize..6).prop_map(Event::Resize),
            ],
            1..30,
        ),
        tenant in "[a-z]{1,6}",
    ) {
        let mut ring = TestRing::new(true);
        let mut added = 3;
        (0..added).for_each(|group| { ring.add_group(group); });
        let mut size = 2;
        // What was written to and how large the shard was, with times.
        let mut written: Vec<(i64, GroupId)> = Vec::new();
        let mut sizes = Vec::new();
        for event in events {
            match event {
                Event::Add => { ring.add_group(added); added += 1 }
                Event::Wait(count) => ring.now_ms += HOUR_MS * i64::from(count) / 4,
                Event::Resize(to) => size = to,
                Event::Toggle(index) => {
                    let group = index.index(added as usize) as u32;
                    let read_only = ring.state.group(GroupId(group)).is_some_and(|it| it.mode == GroupMode::ReadOnly);
                    ring.set_mode(group, if read_only { GroupMode::ReadWrite } else { GroupMode::ReadOnly });
                }
            }
            let view = ring.view();
            sizes.push((ring.now_ms, size));
            if let Some(subring) = view.write_subring(&tenant, Some(size)) {
                written.extend(subring.groups().iter().map(|group| (ring.now_ms, *group)));
            }
            let from = ring.now_ms - 12 * HOUR_MS;
            // The size that held when the lookback began counts, too.
            let held = sizes.partition_point(|(at, _)| *at < from).saturating_sub(1);
            let largest = sizes[held..].iter().map(|(_, size)| *size).max();
            let read: BTreeSet<_> =
                view.read_groups(&tenant, largest, hours(12)).iter().map(|group| group.id).collect();
            for (at, group) in written.iter().filter(|(at, _)| *at >= from) {
                prop_assert!(read.contains(group), "group {} written {} ms ago", group, ring.now_ms - at);
            }
        }
    }
}
