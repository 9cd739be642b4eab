use std::time::Duration;

use super::*;
use crate::group::Membership;
use crate::ring::MAX_GROUPS;

const BEAT: Duration = Duration::from_secs(15);

fn now(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(seconds), wall_ms: 1_000_000 + seconds as i64 * 1000 }
}

fn rules() -> GroupRules {
    GroupRules { replication_factor: 3, zone_aware: true, spread: Duration::ZERO }
}

fn instance(name: &str, process: u64) -> Instance {
    let id = InstanceId::new(name).unwrap();
    let mut instance = Instance::new(id.clone());
    instance.zone = name.split('-').nth(1).unwrap_or_default().to_owned();
    instance.membership = Membership::of(&id, None, &rules()).ok();
    instance.process = process;
    instance.grpc_address = format!("host-{process}:1");
    instance
}

fn start(state: &mut RingState, name: &str, process: u64, at: u64) -> Lifecycle {
    let (machine, change) = Lifecycle::register(instance(name, process), state, Some(rules()), BEAT, now(at)).unwrap();
    state.merge(&change);
    machine
}

/// The same, at work.
fn serve(state: &mut RingState, name: &str, process: u64, at: u64) -> Lifecycle {
    let mut machine = start(state, name, process, at);
    state.merge(&machine.set_state(InstanceState::Active).unwrap());
    machine
}

/// A tick whose change is merged at once; its events.
fn tick(machine: &mut Lifecycle, state: &mut RingState, at: u64) -> Vec<LifecycleEvent> {
    let step = machine.tick(state, now(at));
    step.change.iter().for_each(|change| {
        state.merge(change);
    });
    step.events
}

fn registered<'a>(state: &'a RingState, name: &str) -> &'a Registration {
    state.registration(&InstanceId::new(name).unwrap()).unwrap()
}

#[test]
fn an_instance_joins_beats_and_leaves() {
    let mut state = RingState::default();
    let mut machine = start(&mut state, "i-a-0", 1, 0);
    assert_eq!(registered(&state, "i-a-0").instance.state, InstanceState::Pending);
    for to in [InstanceState::Joining, InstanceState::Active] {
        let change = machine.set_state(to).unwrap();
        state.merge(&change);
        assert_eq!(registered(&state, "i-a-0").instance.state, to);
    }
    let beats = |state: &RingState| state.heartbeat(&InstanceId::new("i-a-0").unwrap()).count;
    assert!(machine.tick(&state, now(14)).change.is_none());
    assert_eq!(tick(&mut machine, &mut state, 15), []);
    assert_eq!(beats(&state), 2);
    tick(&mut machine, &mut state, 16);
    assert_eq!(beats(&state), 2);
    tick(&mut machine, &mut state, 31);
    assert_eq!(beats(&state), 3);

    state.merge(&machine.set_state(InstanceState::Leaving).unwrap());
    state.merge(&machine.unregister());
    assert_eq!(registered(&state, "i-a-0").instance.state, InstanceState::Left);
    assert!(machine.tick(&state, now(100)).change.is_none());
    let refused = machine.set_state(InstanceState::Active).unwrap_err();
    assert_eq!(refused.to_string(), "an instance does not go from LEFT to ACTIVE");
}

#[test]
fn a_restart_is_a_new_incarnation_with_the_old_times() {
    let mut state = RingState::default();
    let mut first = start(&mut state, "i-a-0", 1, 0);
    state.merge(&first.set_state(InstanceState::Active).unwrap());
    let second = start(&mut state, "i-a-0", 2, 500);
    assert_eq!((first.incarnation(), second.incarnation()), (1, 2));
    let registration = registered(&state, "i-a-0");
    assert_eq!((registration.instance.process, registration.instance.state), (2, InstanceState::Pending));
    assert_eq!(registration.instance.registered_at_ms, now(0).wall_ms);
}

/// One that heard nothing when it started, as in a partition, corrects itself.
#[test]
fn who_started_blind_registers_again_once_it_hears_of_its_past() {
    let mut ring = RingState::default();
    for process in 1..=3 {
        start(&mut ring, "i-a-0", process, 0);
    }
    let mut blind = RingState::default();
    let mut machine = start(&mut blind, "i-a-0", 9, 100);
    ring.merge(&blind);
    assert_eq!(registered(&ring, "i-a-0").instance.process, 3);
    let events = tick(&mut machine, &mut ring, 101);
    assert_eq!(events, [LifecycleEvent::Contested { grpc_address: "host-3:1".into(), times: 1 }]);
    assert_eq!((registered(&ring, "i-a-0").instance.process, machine.incarnation()), (9, 4));
    assert_eq!(tick(&mut machine, &mut ring, 102), []);
}

#[test]
fn two_processes_with_one_id_notice() {
    let mut ring = RingState::default();
    let mut one = start(&mut ring, "i-a-0", 1, 0);
    let mut other = start(&mut ring, "i-a-0", 2, 0);
    let mut times = 0;
    for at in 1..5 {
        for machine in [&mut one, &mut other] {
            if let Some(LifecycleEvent::Contested { times: seen, .. }) = tick(machine, &mut ring, at).pop() {
                times = times.max(seen);
            }
        }
    }
    assert!(times >= 3, "{times}");
}

#[test]
fn the_forgotten_come_back_if_they_live() {
    let mut state = RingState::default();
    let mut machine = start(&mut state, "i-a-0", 1, 0);
    let id = machine.instance().id.clone();
    state.merge(&state.forget(&id, 5).unwrap());
    assert!(state.registration(&id).is_none());
    assert_eq!(tick(&mut machine, &mut state, 1), [LifecycleEvent::Forgotten]);
    assert_eq!(
        (registered(&state, "i-a-0").version, machine.incarnation()),
        (Version { incarnation: 2, counter: 1 }, 2)
    );
    // A store that lost everything, or all but the heartbeat, is told again.
    let beat = Heartbeat { incarnation: 2, count: 1, at_ms: 0 };
    for mut lost in [RingState::default(), RingState::of_heartbeat(id.clone(), beat)] {
        assert_eq!(tick(&mut machine, &mut lost, 2), []);
        assert_eq!(lost.registration(&id).unwrap().version, Version { incarnation: 2, counter: 1 });
    }
}

#[test]
fn members_remember_that_their_group_was_complete() {
    let mut state = RingState::default();
    let mut a = serve(&mut state, "i-a-0", 1, 0);
    let mut b = serve(&mut state, "i-b-0", 2, 1);
    assert_eq!(tick(&mut a, &mut state, 2), []);
    let mut c = start(&mut state, "i-c-0", 3, 3);
    assert_eq!(tick(&mut a, &mut state, 3), [], "it could not answer");
    state.merge(&c.set_state(InstanceState::Active).unwrap());
    state.merge(&c.set_repaired(false).unwrap());
    assert_eq!(tick(&mut a, &mut state, 3), []);
    state.merge(&c.set_repaired(true).unwrap());
    assert_eq!(tick(&mut a, &mut state, 4), [LifecycleEvent::GroupFormed(GroupId(0))]);
    assert_eq!(tick(&mut b, &mut state, 8), [LifecycleEvent::GroupFormed(GroupId(0))]);
    assert_eq!(registered(&state, "i-b-0").instance.group_formed_at_ms, Some(now(4).wall_ms));
    assert_eq!(tick(&mut a, &mut state, 9), []);
    // A blank member that takes a place over learns it from the others, even when one of them is gone.
    state.merge(&state.forget(&InstanceId::new("i-a-0").unwrap(), 0).unwrap());
    state.merge(&c.unregister());
    state.merge(&state.forget(&InstanceId::new("i-c-0").unwrap(), 0).unwrap());
    let c = serve(&mut state.clone(), "i-c-0", 4, 10);
    assert_eq!(c.instance().group_formed_at_ms, Some(now(4).wall_ms), "it is registered");
    // Without a register, as builds that have none leave it.
    let mut older = RingState::default();
    for registration in state.registrations() {
        older.merge(&RingState::of_instance(registration.clone(), 1));
    }
    let mut state = older;
    let mut c = serve(&mut state, "i-c-0", 4, 10);
    assert_eq!(c.instance().group_formed_at_ms, None);
    assert_eq!(tick(&mut c, &mut state, 11), [LifecycleEvent::GroupFormed(GroupId(0))]);
    assert_eq!(c.instance().group_formed_at_ms, Some(now(4).wall_ms));
}

#[test]
fn the_dead_are_forgotten_unless_most_seem_to_be() {
    let mut state = RingState::default();
    let mut observer = Observer::new(Duration::ZERO);
    let mut machines: Vec<_> = ["d-0", "d-1", "d-2", "d-3"].iter().map(|name| start(&mut state, name, 1, 0)).collect();
    let forget = AutoForget { unhealthy_after: Some(Duration::from_secs(100)), left_after: Duration::from_secs(50) };
    let mut due = |state: &mut RingState, alive: &mut [Lifecycle], at| {
        for machine in alive {
            tick(machine, state, at);
        }
        observer.observe(state, now(at).monotonic);
        let change = forget.due(state, &observer, now(at));
        change.iter().for_each(|change| {
            state.merge(change);
        });
        state.registrations().count()
    };
    assert_eq!(due(&mut state, &mut machines, 0), 4);
    // Three of four silent: cut off.
    assert_eq!(due(&mut state, &mut machines[..1], 101), 4);
    assert_eq!(due(&mut state, &mut machines[..2], 120), 2);
    // One that left is shown for a while.
    let left = machines[1].unregister();
    state.merge(&left);
    assert_eq!(due(&mut state, &mut machines[..1], 170), 2);
    assert_eq!(due(&mut state, &mut machines[..1], 171), 1);
    let keep = AutoForget { unhealthy_after: None, ..forget };
    assert_eq!(keep.due(&state, &observer, now(10_000)), None);
}

#[test]
fn a_group_is_scaled_in() {
    let mut state = RingState::default();
    let mut observer = Observer::new(Duration::ZERO);
    let mut machines = Vec::new();
    for name in ["i-a-0", "i-b-0", "i-c-0", "i-a-1", "i-b-1", "i-c-1"] {
        machines.push(serve(&mut state, name, 1, 0));
    }
    let lookback = Duration::from_secs(3600);
    // Formed before the observer begins.
    for machine in &mut machines {
        tick(machine, &mut state, 0);
    }
    let mut view = |state: &RingState, at| {
        observer.observe(state, now(at).monotonic);
        ReplicaGroups::build(state, &rules(), &observer, Duration::from_secs(60), now(at), None)
    };
    let groups = view(&state, 1);
    let beyond = GroupId(MAX_GROUPS);
    assert_eq!(prepare_scale_in(&state, &groups, beyond, now(1)), Err(ScaleInError::NoSuchGroup(beyond)));
    let progress = |groups: &ReplicaGroups| scale_in_progress(groups.group(GroupId(1)).unwrap(), lookback);
    assert_eq!(progress(&groups), ScaleIn::NotPrepared);
    let change = prepare_scale_in(&state, &groups, GroupId(1), now(1)).unwrap().unwrap();
    state.merge(&change);
    let groups = view(&state, 11);
    assert_eq!(prepare_scale_in(&state, &groups, GroupId(1), now(11)), Ok(None));
    assert_eq!(prepare_scale_in(&state, &groups, GroupId(0), now(11)), Err(ScaleInError::LastGroup(GroupId(0))));
    assert_eq!(progress(&groups), ScaleIn::Draining(lookback));
    let remove = |state: &RingState, groups: &ReplicaGroups, at| {
        remove_group(state, groups, GroupId(1), lookback, now(at)).map_err(|error| error.to_string())
    };
    let told = "replica group 1 may not be removed: reads need it for another 3600 s";
    assert_eq!(remove(&state, &groups, 11), Err(told.to_owned()));

    // What a majority of those that lack nothing has shipped is in object storage.
    let groups = view(&state, 11 + 3601);
    let told = "replica group 1 may not be removed: what these hold is not all in object storage, as far as is known: \
                i-a-1, i-b-1, i-c-1";
    assert_eq!(remove(&state, &groups, 4000), Err(told.to_owned()));
    for machine in &mut machines[3..5] {
        state.merge(&machine.set_shipped(true).unwrap());
        assert_eq!(machine.set_shipped(true), None);
    }
    let unrepaired = machines[3].set_repaired(false).unwrap();
    let mut blank = state.clone();
    blank.merge(&unrepaired);
    let unshipped = ["i-a-1", "i-c-1"].map(|name| InstanceId::new(name).unwrap()).to_vec();
    assert_eq!(progress(&view(&blank, 4001)), ScaleIn::Unshipped(unshipped));
    let groups = view(&state, 4002);
    assert_eq!(progress(&groups), ScaleIn::Removable);
    let change = remove(&state, &groups, 4002).unwrap().unwrap();
    state.merge(&change);
    let groups = view(&state, 4003);
    assert_eq!(groups.group(GroupId(1)).unwrap().state, GroupState::Removed);
    assert_eq!((remove(&state, &groups, 4003), progress(&groups)), (Ok(None), ScaleIn::Done));
    let read: Vec<_> = groups.read_groups("t", None, lookback).iter().map(|group| group.id.0).collect();
    assert_eq!(read, [0]);
    assert_eq!(
        prepare_scale_in(&state, &groups, GroupId(1), now(4003)).unwrap_err().to_string(),
        "replica group 1 is REMOVED: it holds nothing"
    );

    // Its members may go; others that come under its number form it anew.
    for machine in &mut machines[3..] {
        assert_eq!(tick(machine, &mut state, 4004), []);
        state.merge(&machine.unregister());
    }
    assert!(view(&state, 5001).group(GroupId(1)).is_none());
    let mut later = ["i-a-1", "i-b-1", "i-c-1"].map(|name| serve(&mut state, name, 2, 6000));
    assert_eq!(tick(&mut later[0], &mut state, 6001), [LifecycleEvent::GroupFormed(GroupId(1))]);
    assert_eq!(tick(&mut later[1], &mut state, 6001), [LifecycleEvent::GroupFormed(GroupId(1))]);
    let register = state.group(GroupId(1)).unwrap();
    assert_eq!((register.mode, register.version, register.since_ms), (GroupMode::ReadWrite, 4, now(6001).wall_ms));
}

/// A cluster that was stopped whole, of which one instance comes back with what it has written down.
#[test]
fn a_group_nobody_of_which_has_come_back_is_missed() {
    let mut state = RingState::default();
    let names = ["i-a-0", "i-b-0", "i-c-0", "i-a-1", "i-b-1", "i-c-1", "i-a-2", "i-b-2", "i-c-2"];
    let mut machines: Vec<_> = names.iter().map(|name| serve(&mut state, name, 1, 0)).collect();
    for machine in &mut machines {
        tick(machine, &mut state, 1);
    }
    let built = |state: &RingState, at| {
        let mut observer = Observer::new(Duration::from_secs(60));
        observer.observe(state, now(at).monotonic);
        ReplicaGroups::build(state, &rules(), &observer, Duration::from_secs(60), now(at), None)
    };
    let early = state.only_groups();
    assert_eq!((early.registrations().count(), early.groups().count()), (0, 3));
    // Group 2 is made read-only, and given up when its members are gone for good.
    let change = prepare_scale_in(&state, &built(&state, 2), GroupId(2), now(2)).unwrap().unwrap();
    state.merge(&change);
    assert!(remove_group(&state, &built(&state, 3), GroupId(2), Duration::from_secs(60), now(3)).is_err());
    for name in &names[6..] {
        let forgotten = state.forget(&InstanceId::new(name).unwrap(), now(3).wall_ms).unwrap();
        state.merge(&forgotten);
    }
    let groups = built(&state, 4);
    let read: Vec<_> = groups.read_groups("t", None, Duration::ZERO).iter().map(|group| group.id.0).collect();
    assert_eq!(read, [0, 1, 2], "forgetting its members does not forget it");
    let change = remove_group(&state, &groups, GroupId(2), Duration::from_secs(60), now(4)).unwrap().unwrap();
    state.merge(&change);
    let late = state.only_groups();

    let mut cold = late;
    let mut first = start(&mut cold, "i-a-0", 9, 1000);
    assert!(first.instance().group_formed_at_ms.is_some());
    assert_eq!(tick(&mut first, &mut cold, 1001), []);
    let groups = built(&cold, 1002);
    let read = groups.read_groups("t", None, Duration::ZERO);
    let counts: Vec<_> = read.iter().map(|group| (group.id.0, group.members.len(), group.has_read_quorum())).collect();
    assert_eq!(counts, [(0, 1, false), (1, 0, false)]);
    // An old note of another one changes nothing.
    cold.merge(&early);
    assert_eq!(cold.group(GroupId(2)).unwrap().mode, GroupMode::Removed);
    assert!(built(&cold, 1003).group(GroupId(2)).is_none());
    // Its keys go to others, as while it was there and had no quorum.
    assert_eq!(groups.ring().unwrap().groups(), [GroupId(0), GroupId(1)]);
}

/// Of a state from before there were registers, or one that was lost, members register their group again.
#[test]
fn a_group_that_is_not_registered_is_registered_by_its_members() {
    let mut state = RingState::default();
    let mut machines = ["i-a-0", "i-b-0", "i-c-0"].map(|name| serve(&mut state, name, 1, 0));
    for machine in &mut machines {
        tick(machine, &mut state, 1);
    }
    assert_eq!(state.groups().count(), 1);
    let mut without = RingState::default();
    for registration in state.registrations() {
        without.merge(&RingState::of_instance(registration.clone(), 1));
    }
    assert_eq!(tick(&mut machines[2], &mut without, 5), []);
    assert_eq!(without.group(GroupId(0)), state.group(GroupId(0)));
}
