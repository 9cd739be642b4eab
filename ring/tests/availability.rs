//! How often writes and reads go through while instances are dead: replica groups beside a classic ring.
//!
//! Prints the table of `ARCHITECTURE.md` and fails when it is another one there:
//! `cargo test -p skald-ring --test availability -- --nocapture`.
//!
//! The model: three zones of equal size, replication factor 3, 1 to 6 instances dead at random, all others well, nothing
//! restarted or forgotten yet. A write has 2,000 series, the most that Prometheus sends at once, and goes through when each
//! finds a quorum. A read needs everything the tenant wrote.
//!
//! - Classic ring, as dskit has it: 512 random tokens for each instance, a series is on the next instance of each zone
//!   ("no extension", as Mimir uses it), a write needs two of the three for every series, a read two zones in which every
//!   instance of the tenant is well.
//! - Replica groups: one instance of each zone, a write needs one group of the tenant with two living members (series of
//!   other groups spill there), a read two living members in every group of the tenant.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test that reads the repository")]

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use skald_ring::instance_ring::{DEFAULT_TOKENS, instance_tokens};
use skald_ring::{
    GroupId, GroupRules, Heartbeat, Instance, InstanceId, InstanceState, Membership, Now, Observer, Registration,
    ReplicaGroups, RingState, Value, Version,
};

const SEED: u64 = 42;
const TRIALS: usize = 50_000;
const SERIES_OF_A_WRITE: i32 = 2_000;
const ZONES: usize = 3;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    /// `count` different instances of `instances`. Instance i is in zone i mod 3 and, in groups, in group i / 3.
    fn dead(&mut self, instances: usize, count: usize) -> Vec<usize> {
        let mut dead = Vec::new();
        while dead.len() < count {
            let instance = self.below(instances);
            if !dead.contains(&instance) {
                dead.push(instance);
            }
        }
        dead.sort_unstable();
        dead
    }
}

/// Which share of the series two or three instances have in common, on a classic ring of `instances`.
struct Classic {
    pairs: HashMap<(usize, usize), f64>,
    triples: HashMap<(usize, usize, usize), f64>,
}

impl Classic {
    fn new(instances: usize) -> Self {
        let ids = (0..instances).map(|i| InstanceId::new(&format!("ingester-{}-{}", i % ZONES, i / ZONES)).unwrap());
        let mut tokens: Vec<_> = ids
            .enumerate()
            .flat_map(|(instance, id)| instance_tokens(&id, DEFAULT_TOKENS).map(move |token| (token, instance)))
            .collect();
        tokens.sort_unstable();
        // Downwards, each zone's owner is the last one met; the first round only finds who owns the end.
        let mut owners = [0; ZONES];
        tokens.iter().rev().for_each(|(_, instance)| owners[instance % ZONES] = *instance);
        let (mut pairs, mut triples) = (HashMap::new(), HashMap::new());
        for (position, (token, instance)) in tokens.iter().enumerate().rev() {
            owners[instance % ZONES] = *instance;
            let before = if position == 0 { tokens[tokens.len() - 1].0 } else { tokens[position - 1].0 };
            let share = f64::from(token.wrapping_sub(before)) / 2_f64.powi(32);
            let mut of = owners;
            of.sort_unstable();
            for (a, b) in [(of[0], of[1]), (of[0], of[2]), (of[1], of[2])] {
                *pairs.entry((a, b)).or_insert(0.0) += share;
            }
            *triples.entry((of[0], of[1], of[2])).or_insert(0.0) += share;
        }
        Self { pairs, triples }
    }

    /// The share of the series of which two copies are dead, by inclusion and exclusion.
    fn without_quorum(&self, dead: &[usize]) -> f64 {
        let mut share = 0.0;
        for (i, a) in dead.iter().enumerate() {
            for (j, b) in dead.iter().enumerate().skip(i + 1) {
                share += self.pairs.get(&(*a, *b)).unwrap_or(&0.0);
                for c in &dead[j + 1..] {
                    share -= 2.0 * self.triples.get(&(*a, *b, *c)).unwrap_or(&0.0);
                }
            }
        }
        share
    }

    fn write(&self, dead: &[usize]) -> f64 {
        (1.0 - self.without_quorum(dead)).max(0.0).powi(SERIES_OF_A_WRITE)
    }

    fn read(dead: &[usize]) -> bool {
        dead.iter().all(|instance| instance % ZONES == dead[0] % ZONES)
    }
}

/// Of groups 0 to `groups - 1`: whether any has a quorum, and whether all have.
fn groups(groups: usize, dead: &[usize]) -> (bool, bool) {
    let mut dead_of = vec![0; groups];
    dead.iter().for_each(|instance| dead_of[instance / ZONES] += 1);
    (dead_of.iter().any(|dead| *dead < 2), dead_of.iter().all(|dead| *dead < 2))
}

/// Shares of 1 of classic write, groups' write, classic read, groups' read.
fn availability(instances: usize, shard: usize, failures: usize) -> [f64; 4] {
    let classic = Classic::new(shard);
    let mut random = Random(SEED);
    let mut sums = [0.0; 4];
    for _ in 0..TRIALS {
        // The tenant has the first instances; who is dead is random anyway.
        let mut dead = random.dead(instances, failures);
        dead.retain(|instance| *instance < shard);
        let (any, all) = groups(shard / ZONES, &dead);
        sums[0] += classic.write(&dead);
        sums[1] += f64::from(u8::from(any));
        sums[2] += f64::from(u8::from(Classic::read(&dead)));
        sums[3] += f64::from(u8::from(all));
    }
    sums.map(|sum| sum / TRIALS as f64)
}

/// In percent: 100 only when nothing failed, otherwise one digit, rounded down.
fn percent(share: f64) -> String {
    if share == 1.0 { "100".into() } else { format!("{:.1}", (share * 1000.0).floor() / 10.0) }
}

fn table() -> String {
    let mut table =
        "| ingesters | tenant's | dead | writes, classic | writes, groups | reads, classic | reads, groups |\n\
                     |--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    for (instances, shard) in [(6, 6), (30, 30), (300, 300), (300, 12)] {
        for failures in 1..=6 {
            let [write_classic, write_groups, read_classic, read_groups] =
                availability(instances, shard, failures).map(percent);
            let row = [write_classic, write_groups, read_classic, read_groups].join(" | ");
            writeln!(table, "| {instances} | {shard} | {failures} | {row} |").unwrap();
        }
    }
    table
}

#[test]
fn the_table_in_the_architecture_page_is_fresh() {
    let table = table();
    println!("{table}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../ARCHITECTURE.md")).unwrap();
    assert!(page.contains(&table), "ARCHITECTURE.md has another table of availability than this:\n{table}");
}

/// The model of groups against the code that services use.
#[test]
fn groups_are_as_available_as_the_model_says() {
    const INSTANCES: usize = 12;
    let rules = GroupRules { replication_factor: ZONES as u16, zone_aware: true, spread: Duration::ZERO };
    let timeout = Duration::from_secs(60);
    let id = |instance: usize| InstanceId::new(&format!("ingester-{}-{}", instance % ZONES, instance / ZONES)).unwrap();
    let mut alive = RingState::default();
    for instance in 0..INSTANCES {
        let mut entry = Instance::new(id(instance));
        entry.state = InstanceState::Active;
        entry.zone = (instance % ZONES).to_string();
        entry.membership = Some(Membership::of(&entry.id, None, &rules).unwrap());
        let version = Version { incarnation: 1, counter: 1 };
        alive.merge(&RingState::of_instance(Registration { version, instance: entry }, 1));
    }
    let mut random = Random(SEED);
    let mut lost_reads = 0;
    for trial in 0..400 {
        let dead = random.dead(INSTANCES, 1 + trial % 8);
        let mut state = alive.clone();
        let mut observer = Observer::new(Duration::ZERO);
        observer.observe(&state, Duration::ZERO);
        for instance in (0..INSTANCES).filter(|instance| !dead.contains(instance)) {
            state.merge(&RingState::of_heartbeat(id(instance), Heartbeat { incarnation: 1, count: 2, at_ms: 0 }));
        }
        let now = Now { monotonic: Duration::from_secs(90), wall_ms: 0 };
        observer.observe(&state, now.monotonic);
        let view = ReplicaGroups::build(&state, &rules, &observer, timeout, now, None);
        let subring = view.write_subring("tenant", None).unwrap();
        let usable = view.with_write_quorum(&subring);
        let written = (0..200).all(|series| {
            let group = subring.position_among(series * 21_474_836, &usable);
            group.is_some_and(|position| {
                let group: GroupId = subring.groups()[position];
                view.group(group).unwrap().has_write_quorum()
            })
        });
        let read = view.read_groups("tenant", None, timeout).iter().all(|group| group.has_read_quorum());
        assert_eq!((written, read), groups(INSTANCES / ZONES, &dead), "{dead:?}");
        lost_reads += u32::from(!read);
    }
    assert!((100..350).contains(&lost_reads), "{lost_reads}");
}
