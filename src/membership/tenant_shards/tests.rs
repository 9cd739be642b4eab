use std::collections::BTreeSet;

use proptest::prelude::*;
use skald_ring::{
    GroupId, GroupMode, GroupRules, Instance, InstanceId, InstanceState, Membership, Now, Observer, Registration,
    Replica, ReplicaGroups, RingState, Version,
};

use super::*;
use crate::runtime::ManualClock;

const SPREAD: Duration = Duration::from_secs(1);
const START_MS: i64 = 1_800_000_000_000;

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn tenant() -> TenantId {
    TenantId::new("t").unwrap()
}

/// One process.
struct Node {
    shards: TenantShards,
    memory: ShardMemory,
}

impl Node {
    fn new(clock: &ManualClock, lookback: Duration) -> Self {
        let store = Replica::alone().open("tenant-shards").unwrap();
        let shards = TenantShards::new(store, SPREAD, lookback, Arc::new(clock.clone()));
        Self { shards, memory: ShardMemory::default() }
    }

    fn write(&mut self, wanted: Option<usize>) -> Option<usize> {
        self.shards.write_size(&tenant(), wanted, &mut self.memory)
    }

    fn read(&self) -> Option<usize> {
        self.shards.read_size(&tenant())
    }

    fn hears(&self, state: &ShardUse) {
        self.shards.store.update(state);
    }
}

#[test]
fn few_sizes_are_told_and_none_is_smaller_than_what_is_in_use() {
    let all: BTreeSet<u16> = (1..=MAX_GROUPS as usize).map(|size| rounded(Some(size))).collect();
    assert!(all.len() <= 36, "{}", all.len());
    for size in 1..=MAX_GROUPS as usize {
        let told = usize::from(rounded(Some(size)));
        assert!((size..=size + size / 4).contains(&told) && rounded(Some(told)) == told as u16, "{size} {told}");
    }
    assert_eq!([rounded(None), rounded(Some(5000)), rounded(Some(0)), rounded(Some(9))], [ALL, ALL, 1, 10]);
}

#[test]
fn a_shard_is_read_once_it_was_told_of_for_the_lookback() {
    let clock = ManualClock::at(START_MS);
    let mut node = Node::new(&clock, minutes(60));
    assert_eq!((node.write(None), node.read()), (None, None));
    assert!(node.shards.store.get().tenants.is_empty(), "tenants without a shard cost nothing");
    assert_eq!((node.write(Some(3)), node.read()), (Some(3), None));
    for _ in 0..79 {
        clock.advance(minutes(1));
        assert_eq!((node.write(Some(3)), node.read()), (Some(3), None), "it is not told for long enough");
    }
    clock.advance(minutes(1));
    assert_eq!((node.write(Some(3)), node.read()), (Some(3), Some(3)));

    // More groups are written to once it is known, and read at once and for the lookback.
    assert_eq!((node.write(Some(6)), node.read()), (Some(3), Some(6)));
    clock.advance(SPREAD);
    assert_eq!(node.write(Some(6)), Some(6));
    assert_eq!(node.write(Some(2)), Some(2), "fewer are at once");
    for _ in 0..79 {
        clock.advance(minutes(1));
        assert_eq!((node.write(Some(2)), node.read()), (Some(2), Some(6)));
    }
    clock.advance(minutes(2));
    assert_eq!((node.write(Some(2)), node.read()), (Some(2), Some(2)));
    // All of them, and back.
    assert_eq!((node.write(None), node.read()), (Some(2), None));
    clock.advance(SPREAD);
    assert_eq!(node.write(None), None);
    for _ in 0..70 {
        clock.advance(minutes(1));
        assert_eq!((node.write(Some(2)), node.read()), (Some(2), None));
    }
    // Who did not write within the lookback is looked for everywhere.
    clock.advance(minutes(1000));
    assert_eq!(node.read(), None);
    assert_eq!((node.write(Some(2)), node.read()), (Some(1), Some(2)), "nor is known what others may have told");
    clock.advance(SPREAD);
    assert_eq!((node.write(Some(2)), node.read()), (Some(2), Some(2)));

    // Another distributor that starts knows what was told before.
    let mut other = Node::new(&clock, minutes(60));
    other.hears(&node.shards.store.get());
    other.shards.remember();
    assert_eq!(other.write(Some(2)), Some(1));
    let mut other = Node::new(&clock, minutes(60));
    other.hears(&node.shards.store.get());
    other.shards.remember();
    clock.advance(SPREAD);
    assert_eq!(other.write(Some(2)), Some(2));
}

#[test]
fn tenants_beyond_the_bound_are_not_told_of() {
    let clock = ManualClock::at(START_MS);
    let mut node = Node::new(&clock, minutes(60));
    let mut many = ShardUse::default();
    for tenant in 0..MAX_TENANTS {
        many.merge(&ShardUse::of(&tenant.to_string(), Told { since_ms: 0, sizes: BTreeMap::from([(3, START_MS)]) }));
    }
    node.hears(&many);
    assert_eq!(node.write(Some(3)), Some(3));
    assert_eq!(node.shards.store.get().tenants.len(), MAX_TENANTS);
    let mut later = (*node.shards.store.get()).clone();
    later.expire(START_MS + ms(RETENTION) + 1);
    assert_eq!(later, ShardUse::default());
}

fn entry() -> impl Strategy<Value = ShardUse> {
    let sizes = prop::collection::btree_map(prop::sample::select(vec![1, 3, 10, ALL]), -2..3_i64, 0..4);
    (0..3_u8, 0..4_i64, sizes)
        .prop_map(|(tenant, since_ms, sizes)| ShardUse::of(&format!("t{tenant}"), Told { since_ms, sizes }))
}

fn merged<'a>(entries: impl IntoIterator<Item = &'a ShardUse>) -> ShardUse {
    let mut all = ShardUse::default();
    for entry in entries {
        let lacked = all.lacks(entry);
        assert_eq!(!all.merge(entry).is_empty(), lacked);
    }
    all
}

/// What happens to a cluster of two distributors and a querier.
#[derive(Debug, Clone)]
enum Event {
    Wait(Duration),
    /// A distributor has another limit from now on.
    Limit(usize, Option<usize>),
    Add,
    Toggle(prop::sample::Index),
    /// Whether anybody writes.
    Idle(bool),
    /// A distributor is replaced by one that has heard of nothing yet.
    Restart(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let wait = prop_oneof![
        4 => (1..1500_u64).prop_map(Duration::from_millis),
        3 => (1..40_u64).prop_map(minutes),
        1 => (40..200_u64).prop_map(minutes),
    ];
    prop_oneof![
        6 => wait.prop_map(Event::Wait),
        4 => (0..2_usize, prop::option::weighted(0.9, 1..6_usize)).prop_map(|(node, size)| Event::Limit(node, size)),
        1 => Just(Event::Add),
        1 => any::<prop::sample::Index>().prop_map(Event::Toggle),
        1 => any::<bool>().prop_map(Event::Idle),
        1 => (0..2_usize).prop_map(Event::Restart),
    ]
}

/// A ring whose groups everybody sees alike.
struct Groups {
    state: RingState,
    observer: Observer,
    rules: GroupRules,
    count: u32,
}

impl Groups {
    fn add(&mut self, now_ms: i64) {
        let group = GroupId(self.count);
        self.count += 1;
        let instance = Instance {
            state: InstanceState::Active,
            membership: Some(Membership { group, index: 0 }),
            registered_at_ms: now_ms,
            group_formed_at_ms: Some(now_ms),
            ..Instance::new(InstanceId::new(&format!("i-{group}")).unwrap())
        };
        let version = Version { incarnation: 1, counter: 1 };
        self.state.merge(&RingState::of_instance(Registration { version, instance }, 1));
    }

    fn view(&mut self, clock: &ManualClock) -> ReplicaGroups {
        let now = Now { monotonic: clock.monotonic(), wall_ms: clock.now_ms() };
        self.observer.observe(&self.state, now.monotonic);
        ReplicaGroups::build(&self.state, &self.rules, &self.observer, Duration::MAX, now, None)
    }
}

proptest! {
    #[test]
    fn merges_in_any_order_and_number(entries in prop::collection::vec(entry(), 0..20), cut: prop::sample::Index) {
        let all = merged(&entries);
        prop_assert_eq!(&merged(entries.iter().rev()), &all);
        let mut halves = merged(&entries[..cut.index(entries.len() + 1)]);
        halves.merge(&all);
        halves.merge(&all);
        prop_assert_eq!(&halves, &all);
    }

    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(entry(), 0..20)) {
        let all = merged(&entries);
        let mut read = ShardUse::default();
        for key in all.entries() {
            let mut bytes = Vec::new();
            prop_assert!(all.encode_entry(&key, &mut bytes));
            let mut reader = Reader::new(&bytes);
            read.merge(&ShardUse::decode_entry(&mut reader).unwrap());
            prop_assert!(reader.is_empty());
        }
        prop_assert_eq!(read, all);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = ShardUse::decode_entry(&mut Reader::new(&bytes));
        let _ = ShardUse::default().encode_entry(&bytes, &mut Vec::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Limits change, at each distributor at another time, groups come and go read-only, news are late: every group that was
    /// written to within the lookback is read.
    #[test]
    fn what_was_written_to_within_the_lookback_is_read(
        events in prop::collection::vec(event(), 1..60),
        lookback in prop::sample::select(vec![minutes(1), minutes(60), minutes(300)]),
        seed: u64,
    ) {
        let clock = ManualClock::at(START_MS);
        let rules = GroupRules { replication_factor: 1, zone_aware: false, spread: Duration::ZERO };
        let (state, observer) = (RingState::default(), Observer::new(Duration::ZERO));
        let mut groups = Groups { state, observer, rules, count: 0 };
        (0..4).for_each(|_| groups.add(clock.now_ms()));
        let mut nodes: Vec<Node> = (0..3).map(|_| Node::new(&clock, lookback)).collect();
        let mut limits = [Some(2), Some(2)];
        let mut idle = false;
        let mut random = seed;
        // On their way: until when, to whom, what.
        let mut news: Vec<(Duration, usize, Arc<ShardUse>)> = Vec::new();
        let mut written: Vec<(i64, GroupId)> = Vec::new();
        for event in events {
            match event {
                Event::Wait(long) => clock.advance(long),
                Event::Limit(node, size) => limits[node] = size,
                Event::Add => groups.add(clock.now_ms()),
                Event::Toggle(index) => {
                    let group = GroupId(index.index(groups.count as usize) as u32);
                    let read_only = groups.state.group(group).is_some_and(|it| it.mode == GroupMode::ReadOnly);
                    let mode = if read_only { GroupMode::ReadWrite } else { GroupMode::ReadOnly };
                    if let Some(change) = groups.state.set_group_mode(group, mode, clock.now_ms()) {
                        groups.state.merge(&change);
                    }
                }
                Event::Idle(now) => idle = now,
                Event::Restart(node) => {
                    // It exchanges everything with another one before it takes writes.
                    let heard = nodes[1 - node].shards.store.get();
                    nodes[node] = Node::new(&clock, lookback);
                    nodes[node].hears(&heard);
                    nodes[node].shards.remember();
                }
            }
            let now = clock.monotonic();
            for (_, to, state) in news.extract_if(.., |(at, ..)| *at <= now) {
                nodes[to].hears(&state);
            }
            let view = groups.view(&clock);
            for (node, limit) in limits.iter().enumerate().filter(|_| !idle) {
                let size = nodes[node].write(*limit);
                if let Some(subring) = view.write_subring("t", size) {
                    written.extend(subring.groups().iter().map(|group| (clock.now_ms(), *group)));
                }
            }
            for (from, to) in [(0, 1), (1, 0), (0, 2), (1, 2)] {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let late = Duration::from_millis((random >> 33) % SPREAD.as_millis() as u64);
                news.push((now + late, to, nodes[from].shards.store.get()));
            }
            let read = view.read_groups("t", nodes[2].read(), lookback);
            let read: BTreeSet<GroupId> = read.iter().map(|group| group.id).collect();
            let from_ms = clock.now_ms() - ms(lookback);
            for (at, group) in written.iter().filter(|(at, _)| *at >= from_ms) {
                prop_assert!(read.contains(group), "group {group}, written to {} ms ago", clock.now_ms() - at);
            }
        }
    }
}
