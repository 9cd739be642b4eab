//! Groups on a simulated network, with series that come faster than news of them.

use std::sync::atomic::{AtomicUsize, Ordering};

use skald_ring::Cluster;
use skald_ring::store::simulation::{Faults, Network, Pace};

use super::*;
use crate::limits::Limits;
use crate::runtime::ManualClock;

const STEP: Duration = Duration::from_millis(100);
const FAULTS: Faults = Faults {
    least_delay: Duration::from_millis(1),
    most_delay: Duration::from_millis(50),
    loss: 0.05,
    duplication: 0.05,
};

/// Series that are only counted, all where the ring places them.
#[derive(Default)]
struct Fake(AtomicUsize);

impl Series for Fake {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn count_if(&self, _: &dyn Fn(u128) -> bool) -> usize {
        0
    }
}

struct Cell {
    network: Network,
    clock: ManualClock,
    ingesters: Vec<SeriesLimits>,
    /// By ingester and tenant.
    series: Vec<Vec<Fake>>,
    tenants: Vec<TenantId>,
    steps: usize,
}

impl Cell {
    fn new(seed: u64, groups: usize, members: u16, tenants: usize, limit: usize) -> Self {
        let mut network = Network::new(seed, Pace::default(), FAULTS);
        let clock = ManualClock::at(1_800_000_000_000);
        let mut limits = Limits::default();
        limits.ingester.max_series_per_tenant = Some(limit);
        let limits = TenantLimits::new(limits);
        let ring = ring_of_zones(&vec![true; groups], members);
        let mut ingesters = Vec::new();
        for group in 0..groups {
            for index in 0..members {
                let node = network.add(Cluster::new("c", None).unwrap());
                let store = network.replica(node).open("series-counts").unwrap();
                let own = InstanceId::new(&format!("ingester-{group}-{index}")).unwrap();
                let ring = ring.clone();
                let groups: Groups = Arc::new(move || ring.clone());
                let clock = Arc::new(clock.clone());
                ingesters.push(SeriesLimits::new(store, groups, own, node as u64, clock, limits.clone()));
            }
        }
        let series = ingesters.iter().map(|_| (0..tenants).map(|_| Fake::default()).collect()).collect();
        let tenants = (0..tenants).map(|i| TenantId::new(&format!("tenant-{i:04}")).unwrap()).collect();
        Self { network, clock, ingesters, series, tenants, steps: 0 }
    }

    /// A tenth of a second passes; each ingester looks once a second, not all at one time.
    fn step(&mut self) {
        self.network.run(STEP);
        self.clock.advance(STEP);
        self.steps += 1;
        for (at, ingester) in self.ingesters.iter().enumerate() {
            if (self.steps + at * 3).is_multiple_of(10) {
                let looks = self.tenants.iter().zip(&self.series[at]);
                let looks: Vec<_> = looks.map(|(tenant, head)| Look { tenant, head }).collect();
                ingester.look(&looks);
            }
        }
    }

    /// Series of a tenant come to an ingester; how many of them may not.
    fn push(&self, ingester: usize, tenant: usize, series: usize) -> usize {
        let fake = &self.series[ingester][tenant];
        let allowed = self.ingesters[ingester].allowance(&self.tenants[tenant], fake).unwrap().series;
        let taken = series.min(allowed.saturating_sub(fake.count()));
        fake.0.fetch_add(taken, Ordering::Relaxed);
        series - taken
    }

    fn total(&self, tenant: usize) -> usize {
        self.series.iter().map(|series| series[tenant].count()).sum()
    }
}

/// 50,000 new series come each second, so many of a hundred to each group; most series there ever were, how many there were when
/// the first was refused, and how many in the end.
#[track_caller]
fn fill(seed: u64, limit: usize, percent: &[usize], seconds: usize) -> (usize, usize, usize) {
    let mut cell = Cell::new(seed, percent.len(), 1, 1, limit);
    let (mut most, mut first_refused) = (0, None);
    for _ in 0..seconds * 10 {
        cell.step();
        for (group, percent) in percent.iter().enumerate() {
            let refused = cell.push(group, 0, 5000 * percent / 100);
            if refused > 0 && first_refused.is_none() {
                first_refused = Some(cell.total(0));
            }
        }
        most = most.max(cell.total(0));
    }
    (most, first_refused.unwrap_or(usize::MAX), cell.total(0))
}

#[test]
fn the_overshoot_is_small_however_fast_series_come() {
    for seed in 0..2 {
        for (limit, percent) in [
            (1_000_000, &[50, 50][..]),
            (1_000_000, &[34, 33, 33]),
            (1_000_000, &[10; 10]),
            (150_000, &[10; 10]),
            (10_000, &[25; 4]),
            (1_000_000, &[90, 5, 5]),
            (300_000, &[70, 10, 10, 10]),
        ] {
            let (most, _, end) = fill(seed, limit, percent, 90);
            assert!(most <= limit + limit / 20, "{most} of {limit}, {percent:?}, seed {seed}");
            assert!(end >= limit - limit / 50, "{end} of {limit}, {percent:?}, seed {seed}");
        }
    }
}

#[test]
fn nothing_is_refused_far_below_the_limit() {
    for seed in 0..2 {
        for (limit, percent) in
            [(1_000_000, &[50, 50][..]), (1_000_000, &[10; 10]), (1_000_000, &[12, 8, 11, 9, 10, 50])]
        {
            // Each group's part of what is left has to last for the time that news take.
            let even = percent.iter().all(|part| part == &percent[0]);
            let least = if even { limit - limit / 5 } else { limit / 4 };
            let (_, first, _) = fill(seed, limit, percent, 40);
            assert!(first >= least, "refused at {first} of {limit}, {percent:?}, seed {seed}");
        }
    }
}

/// All series of a tenant come to one group of four, slowly enough for any.
#[test]
fn one_group_may_use_the_limit_alone() {
    let mut cell = Cell::new(3, 4, 1, 1, 100_000);
    let mut refused_late = 0;
    for second in 0..200 {
        for _ in 0..10 {
            cell.step();
            let refused = cell.push(2, 0, 100);
            refused_late += if second < 60 { refused } else { 0 };
        }
    }
    assert_eq!(refused_late, 0, "of the first 60,000");
    assert!((99_000..=100_000).contains(&cell.total(0)), "{}", cell.total(0));
}

#[test]
fn small_limits_are_exact() {
    let mut cell = Cell::new(1, 3, 1, 1, 10);
    for _ in 0..300 {
        cell.step();
        (0..3).for_each(|group| {
            cell.push(group, 0, 1);
        });
        assert!(cell.total(0) <= 10);
    }
    assert_eq!(cell.total(0), 10);
}

/// Members of a group have the same series: they count once, whoever of them tells it.
#[test]
fn members_of_a_group_count_once() {
    let mut cell = Cell::new(1, 2, 3, 1, 1000);
    for _ in 0..400 {
        cell.step();
        for ingester in 0..6 {
            cell.push(ingester, 0, 2);
        }
    }
    let of_group = |group: usize| (0..3).map(|index| cell.series[group * 3 + index][0].count()).max().unwrap();
    let total = of_group(0) + of_group(1);
    assert!((990..=1010).contains(&total), "{total}");
    let counts = cell.ingesters[5].store.get();
    assert_eq!(counts.of("tenant-0000").count(), 2, "one for each group");
}

/// What was flushed makes room, and after a while nothing is told any more of who holds little.
#[test]
fn room_comes_back() {
    let mut cell = Cell::new(1, 2, 1, 1, 1000);
    let run = |cell: &mut Cell, seconds: usize, series: usize| {
        for _ in 0..seconds * 10 {
            cell.step();
            (0..2).for_each(|group| {
                cell.push(group, 0, series);
            });
        }
    };
    run(&mut cell, 30, 10);
    assert_eq!(cell.total(0), 1000);
    cell.series.iter().for_each(|series| series[0].0.store(100, Ordering::Relaxed));
    run(&mut cell, 10, 0);
    assert_eq!(cell.push(0, 0, 300), 0);
    run(&mut cell, 30, 10);
    assert_eq!(cell.total(0), 1000);
    cell.series.iter().for_each(|series| series[0].0.store(1, Ordering::Relaxed));
    run(&mut cell, 10, 0);
    let version = |cell: &Cell| cell.ingesters[0].store.get().of("tenant-0000").map(|(_, count)| count.version).max();
    let before = version(&cell);
    run(&mut cell, 2000, 0);
    assert_eq!(version(&cell), before);
}

/// 30 ingesters in 10 groups, all tenants from nothing to their limits: what that costs each of them.
#[test]
fn gossip_stays_small() {
    let tenants = 50;
    let mut cell = Cell::new(1, 10, 3, tenants, 100_000);
    let run = |cell: &mut Cell, seconds: usize, series: usize| {
        let sent = |cell: &Cell| (0..30).map(|node| cell.network.sent_bytes(node)).sum::<u64>();
        let before = sent(cell);
        for _ in 0..seconds {
            for ingester in 0..30 {
                (0..tenants).for_each(|tenant| {
                    cell.push(ingester, tenant, series);
                });
            }
            (0..10).for_each(|_| cell.step());
        }
        (sent(cell) - before) / (30 * seconds as u64)
    };
    let below = run(&mut cell, 20, 100);
    let filling = run(&mut cell, 40, 200);
    let calm = run(&mut cell, 20, 0);
    let slow = run(&mut cell, 20, 1);
    println!("bytes a second and ingester for {tenants} tenants: {below} {filling} {calm} {slow}");
    assert!(below < 500, "{below}: empty messages");
    assert!(calm < 20_000, "{calm}");
    assert_eq!(cell.ingesters[0].store.get().len(), tenants * 10);
}
