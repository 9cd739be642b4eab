//! What does it cost to find the group of a series, and to make a tenant's subring?
//!
//! Lookups are done once a series, subrings once a request. Tokens are random, rings whole or shards of them; with one group
//! out of quorum, too. In ns a lookup, the least of five rounds: `cargo bench -p skald-ring --bench lookup`.
#![expect(clippy::disallowed_methods, reason = "a measurement takes the time")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails by panicking")]
#![expect(clippy::print_stdout, reason = "its output")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use skald_ring::{
    GroupId, GroupRules, Instance, InstanceId, InstanceRing, InstanceRingRules, InstanceState, Membership, Now,
    Observer, Operation, Registration, ReplicaGroups, RingState, Value, Version, metadata_token,
};

const LOOKUPS: usize = 200_000;
const ZONES: usize = 3;

fn least_ns(what: &str, count: usize, mut round: impl FnMut()) {
    let times = (0..5).map(|_| {
        let start = Instant::now();
        round();
        start.elapsed()
    });
    let least = times.min().unwrap_or_default().as_nanos() as f64 / count as f64;
    println!("{what:60} {least:9.1} ns");
}

fn state(groups: usize, rules: &GroupRules) -> RingState {
    let mut state = RingState::default();
    for number in 0..groups * ZONES {
        let zone = number % ZONES;
        let id = InstanceId::new(&format!("ingester-zone-{zone}-{}", number / ZONES)).unwrap();
        let mut instance = Instance::new(id.clone());
        instance.state = InstanceState::Active;
        instance.zone = zone.to_string();
        instance.membership = Some(Membership::of(&id, None, rules).unwrap());
        let version = Version { incarnation: 1, counter: 1 };
        state.merge(&RingState::of_instance(Registration { version, instance }, 1));
    }
    state
}

fn main() {
    let tokens: Vec<_> = (0..LOOKUPS).map(|i| metadata_token("tenant", &i.to_string())).collect();
    let rules = GroupRules { replication_factor: ZONES as u16, zone_aware: true, spread: Duration::ZERO };
    let now = Now { monotonic: Duration::ZERO, wall_ms: 0 };
    let timeout = Duration::from_secs(60);
    for groups in [2, 10, 100, 300] {
        let state = state(groups, &rules);
        let mut observer = Observer::new(Duration::ZERO);
        observer.observe(&state, Duration::ZERO);
        let view = ReplicaGroups::build(&state, &rules, &observer, timeout, now, None);
        for size in [None, Some(4), Some(50), Some(100)].into_iter().filter(|size| size.is_none_or(|it| it <= groups)) {
            let subring = view.write_subring("tenant", size).unwrap();
            let shard = size.map_or("all".to_owned(), |size| size.to_string());
            least_ns(&format!("{groups} groups, shard of {shard}: position_of"), LOOKUPS, || {
                tokens.iter().for_each(|token| {
                    black_box(subring.position_of(*token));
                });
            });
            let mut usable = subring.positions();
            usable.remove(1);
            least_ns(&format!("{groups} groups, shard of {shard}: position_among all but one"), LOOKUPS, || {
                tokens.iter().for_each(|token| {
                    black_box(subring.position_among(*token, &usable));
                });
            });
            least_ns(&format!("{groups} groups, shard of {shard}: the subring itself"), 1000, || {
                (0..1000).for_each(|_| {
                    black_box(view.write_subring("tenant", size));
                });
            });
        }
        least_ns(&format!("{groups} groups: the view of all"), 1, || {
            black_box(ReplicaGroups::build(&state, &rules, &observer, timeout, now, None));
        });
        least_ns(&format!("{groups} groups: the view of all, again"), 1, || {
            black_box(ReplicaGroups::build(&state, &rules, &observer, timeout, now, Some(&view)));
        });
        assert!(view.group(GroupId(0)).is_some());
        let rules = InstanceRingRules { replication_factor: 3, zone_aware: true, tokens: 512 };
        let ring = InstanceRing::build(&state, rules, &observer, timeout, now, None);
        least_ns(&format!("{} instances: replicas", groups * ZONES), 10_000, || {
            tokens[..10_000].iter().for_each(|token| {
                black_box(ring.replicas(*token, Operation::ASK));
            });
        });
    }
}
