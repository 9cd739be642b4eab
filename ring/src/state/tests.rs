use proptest::prelude::*;

use super::*;
use crate::group::Membership;
use crate::instance::{Build, InstanceState};

fn id(name: &str) -> InstanceId {
    InstanceId::new(name).unwrap()
}

fn registration(name: &str, incarnation: u64, counter: u64) -> Registration {
    Registration { version: Version { incarnation, counter }, instance: Instance::new(id(name)) }
}

/// Few ids and small numbers, so that versions meet, also equal ones with different contents.
fn any_state() -> impl Strategy<Value = RingState> {
    let name = prop::sample::select(vec!["a-0", "a-1", "b-0"]);
    let group = (0_u32..3, 0_u16..2).prop_map(|(group, index)| Membership { group: GroupId(group), index });
    let instance = (0_usize..5, prop::option::of(group), any::<bool>(), prop::option::of(0_i64..3), 0_u64..2);
    let registered = (name.clone(), 0_u64..4, 0_u64..3, instance).prop_map(|(name, incarnation, counter, fields)| {
        let (state, membership, zone, formed, process) = fields;
        let mut registration = registration(name, incarnation, counter);
        registration.instance.state = InstanceState::ALL[state];
        registration.instance.membership = membership;
        registration.instance.zone = if zone { "a".into() } else { String::new() };
        registration.instance.group_formed_at_ms = formed;
        registration.instance.process = process;
        registration.instance.repaired = process == 1;
        registration.instance.build = Build { name: "1.0".into(), oldest_protocol: 1, newest_protocol: 2 };
        RingState::of_instance(registration, counter)
    });
    let heartbeat = (name.clone(), 0_u64..4, 0_u64..5).prop_map(|(name, incarnation, count)| {
        RingState::of_heartbeat(id(name), Heartbeat { incarnation, count, at_ms: count as i64 % 2 })
    });
    let forgotten = (name, 0_u64..4, 0_i64..2)
        .prop_map(|(name, incarnation, at_ms)| RingState::of_tombstone(id(name), Tombstone { incarnation, at_ms }));
    let modes = prop::sample::select(vec![GroupMode::Removed, GroupMode::ReadWrite, GroupMode::ReadOnly]);
    let register = (0_u32..3, 0_u64..3, modes, 0_i64..2).prop_map(|(group, version, mode, since_ms)| {
        RingState::of_group(GroupId(group), GroupRegister { version, mode, since_ms })
    });
    let entry = prop_oneof![registered, heartbeat, forgotten, register];
    prop::collection::vec(entry, 0..8).prop_map(|entries| entries.iter().fold(RingState::default(), merged_ref))
}

fn merged(mut a: RingState, b: &RingState) -> RingState {
    a.merge(b);
    a
}

fn merged_ref(a: RingState, b: &RingState) -> RingState {
    merged(a, b)
}

fn encoded(state: &RingState, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(state.encode_entry(key, &mut out));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn merges_are_commutative_associative_and_idempotent(a in any_state(), b in any_state(), c in any_state()) {
        prop_assert_eq!(merged(a.clone(), &b), merged(b.clone(), &a));
        prop_assert_eq!(merged(merged(a.clone(), &b), &c), merged(a.clone(), &merged(b, &c)));
        prop_assert_eq!(merged(a.clone(), &a), a);
    }

    #[test]
    fn a_state_lacks_what_a_merge_would_change(a in any_state(), b in any_state()) {
        let mut after = a.clone();
        after.merge(&b);
        prop_assert_eq!(a.lacks(&b), after != a);
    }

    /// What a merge says has changed is enough to tell others.
    #[test]
    fn changed_entries_carry_the_change(a in any_state(), b in any_state()) {
        let mut told = a.clone();
        let mut after = a.clone();
        for key in after.merge(&b) {
            told.merge(&RingState::decode_entry(&mut Reader::new(&encoded(&after, &key))).unwrap());
        }
        prop_assert_eq!(&told, &after);
        prop_assert_eq!(after.merge(&b), Vec::<EntryKey>::new());
    }

    #[test]
    fn entries_round_trip(state in any_state()) {
        let mut copy = RingState::default();
        for key in state.entries() {
            let bytes = encoded(&state, &key);
            let mut reader = Reader::new(&bytes);
            copy.merge(&RingState::decode_entry(&mut reader).unwrap());
            prop_assert!(reader.is_empty());
        }
        prop_assert_eq!(copy, state);
    }

    /// Deltas of several writers reach three replicas late, twice and in any order; all end up equal.
    #[test]
    fn replicas_converge(deltas in prop::collection::vec(any_state(), 1..12), order in any::<[u64; 3]>()) {
        let mut replicas = Vec::new();
        for seed in order {
            let mut replica = RingState::default();
            let mut shuffled: Vec<_> = deltas.iter().chain(&deltas).enumerate().collect();
            shuffled.sort_by_key(|(place, _)| crate::token::mix(seed ^ *place as u64));
            shuffled.into_iter().for_each(|(_, delta)| { replica.merge(delta); });
            replicas.push(replica);
        }
        prop_assert_eq!(&replicas[0], &replicas[1]);
        prop_assert_eq!(&replicas[0], &replicas[2]);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>, tag in 0_u8..6) {
        let _ = RingState::decode_entry(&mut Reader::new(&bytes));
        let _ = RingState::decode_entry(&mut Reader::new(&[&[tag][..], &bytes].concat()));
    }

    /// Damage anywhere in an entry is refused or gives some other entry, never a panic.
    #[test]
    fn damaged_entries_are_decoded_or_refused(state in any_state(), at: prop::sample::Index, byte: u8, cut: bool) {
        for key in state.entries() {
            let mut bytes = encoded(&state, &key);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            let _ = RingState::decode_entry(&mut Reader::new(&bytes));
        }
    }
}

#[test]
fn late_gossip_does_not_bring_the_forgotten_back() {
    let alive = RingState::of_instance(registration("a-0", 7, 3), 41);
    let forgotten = alive.forget(&id("a-0"), 1000).unwrap();
    let mut state = merged(alive.clone(), &forgotten);
    assert_eq!(state.registrations().count(), 0);
    assert_eq!(state.merge(&alive), Vec::<EntryKey>::new());
    state.merge(&RingState::of_instance(registration("a-0", 7, 99), 99));
    assert_eq!(state.registrations().count(), 0);
    // The instance itself comes back with an incarnation of its own.
    assert_eq!(state.incarnation(&id("a-0")), 7);
    state.merge(&RingState::of_instance(registration("a-0", 8, 1), 1));
    assert_eq!(state.registrations().count(), 1);
    assert_eq!(state.forget(&id("b-0"), 1000), None);
}

#[test]
fn a_heartbeat_of_an_earlier_incarnation_does_not_count() {
    let mut state = RingState::of_instance(registration("a-0", 1, 1), 500);
    assert_eq!(state.heartbeat(&id("a-0")), Heartbeat { incarnation: 1, count: 500, at_ms: 0 });
    let restarted = RingState::decode_entry(&mut Reader::new(&encoded(
        &RingState::of_instance(registration("a-0", 2, 1), 0),
        &instance_key(REGISTRATION, &id("a-0")),
    )));
    state.merge(&restarted.unwrap());
    assert_eq!(state.heartbeat(&id("a-0")), Heartbeat { incarnation: 2, count: 0, at_ms: 0 });
}

#[test]
fn the_mode_of_a_group_is_ordered_by_version_not_by_time() {
    let mut state = RingState::default();
    assert_eq!(state.set_group_mode(GroupId(3), GroupMode::ReadWrite, 9), None);
    let read_only = state.set_group_mode(GroupId(3), GroupMode::ReadOnly, 5000).unwrap();
    state.merge(&read_only);
    assert_eq!(state.set_group_mode(GroupId(3), GroupMode::ReadOnly, 6000), None);
    // A clock far behind does not matter.
    let read_write = state.set_group_mode(GroupId(3), GroupMode::ReadWrite, 1).unwrap();
    state.merge(&read_write);
    state.merge(&read_only);
    let register = state.group(GroupId(3)).unwrap();
    assert_eq!((register.mode, register.version, register.since_ms), (GroupMode::ReadWrite, 2, 1));
    // Removed by one while another one takes it back: it is there.
    let [removed, kept] =
        [GroupMode::Removed, GroupMode::ReadOnly].map(|to| state.set_group_mode(GroupId(3), to, 7).unwrap());
    let both = merged(merged(state.clone(), &removed), &kept);
    assert_eq!(both.group(GroupId(3)).unwrap().mode, GroupMode::ReadOnly);
    // One that was removed is formed anew.
    assert_eq!(state.form_group(GroupId(3), 8), None);
    let state = merged(state, &removed);
    let register = merged(state.clone(), &state.form_group(GroupId(3), 8).unwrap()).group(GroupId(3)).unwrap();
    assert_eq!((register.mode, register.version, register.since_ms), (GroupMode::ReadWrite, 4, 8));
}

#[test]
fn tombstones_expire() {
    let alive = RingState::of_instance(registration("a-0", 7, 3), 41);
    let mut state = merged(alive.clone(), &alive.forget(&id("a-0"), 1000).unwrap());
    state.expire(1000 + TOMBSTONE_RETENTION.as_millis() as i64);
    assert_eq!(state.tombstones().count(), 1);
    state.expire(1001 + TOMBSTONE_RETENTION.as_millis() as i64);
    assert_eq!(state, RingState::default());
}

/// In the middle of a roll, what a newer build appends comes through older ones.
#[test]
fn fields_of_newer_builds_are_passed_on() {
    let state = RingState::of_instance(registration("i-1", 2, 3), 300);
    let key = instance_key(REGISTRATION, &id("i-1"));
    let newer = [encoded(&state, &key), b"\0a new field".to_vec()].concat();
    let heard = RingState::decode_entry(&mut Reader::new(&newer)).unwrap();
    assert_eq!(encoded(&heard, &key), newer);
    let endless = [encoded(&state, &key), vec![0; 130]].concat();
    let refused = RingState::decode_entry(&mut Reader::new(&endless)).unwrap_err();
    assert_eq!(refused.to_string(), "rest of a description is 129, the limit is 128");
}

/// The format is a contract between builds.
#[test]
fn bytes_are_stable() {
    let mut entry = registration("i-1", 2, 3);
    entry.instance.grpc_address = "h:1".into();
    entry.instance.zone = "z".into();
    entry.instance.membership = Some(Membership { group: GroupId(1), index: 0 });
    let state = RingState::of_instance(entry, 300);
    let bytes: Vec<_> = state.entries().iter().map(|key| encoded(&state, key)).collect();
    assert_eq!(bytes[0], b"\x01\x02\x03\x03i-1\0\x03h:1\0\x01z\x02\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bytes[1], b"\x02\x03i-1\x02\xAC\x02\0");
}
