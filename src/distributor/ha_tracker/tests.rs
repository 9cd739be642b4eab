use skald_ring::store::simulation::{Faults, Network, Pace};
use skald_ring::{Cluster, Replica};

use super::*;
use crate::runtime::ManualClock;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> HaTrackerConfig {
    HaTrackerConfig::default()
}

fn tenant() -> TenantId {
    TenantId::new("t").unwrap()
}

#[test]
fn one_replica_is_taken_and_another_one_when_it_is_silent() {
    let clock = ManualClock::at(1_800_000_000_000);
    let store = Replica::alone().open("ha").unwrap();
    let tracker = HaTracker::new(config(), store.clone(), Arc::new(clock.clone()));
    let check = |replica: &str| tracker.check(&tenant(), "c", replica, Some(2));
    for _ in 0..10 {
        assert_eq!((check("a"), check("b")), (Verdict::Accept, Verdict::Duplicate));
        clock.advance(15 * SECOND);
    }
    // Silent since 15 s; after 30 s more than its last beat another one takes over.
    assert_eq!(check("b"), Verdict::Duplicate);
    clock.advance(15 * SECOND);
    assert_eq!(check("b"), Verdict::Duplicate);
    clock.advance(SECOND);
    assert_eq!((check("b"), check("a")), (Verdict::Accept, Verdict::Duplicate));
    // A process that has just started adopts that.
    let second = HaTracker::new(config(), store, Arc::new(clock.clone()));
    assert_eq!(second.check(&tenant(), "c", "a", None), Verdict::Duplicate);
    assert_eq!(check("b"), Verdict::Accept);
    assert_eq!(tracker.check(&tenant(), "d", "a", Some(2)), Verdict::Accept);
    assert_eq!(tracker.check(&tenant(), "e", "a", Some(2)), Verdict::TooManyClusters);
    assert_eq!(tracker.check(&TenantId::new("other").unwrap(), "c", "a", Some(1)), Verdict::Accept);
    assert_eq!(tracker.check(&tenant(), &"x".repeat(257), "a", None), Verdict::NameTooLong);
}

/// Four distributors on a network that loses packets and falls in two; two replicas send every 15 s to a distributor of each
/// half. Each half always takes one, but for what a fail-over may cost, and once they hear each other all take the same.
#[test]
fn distributors_agree_after_the_time_news_take() {
    let faults = Faults {
        least_delay: Duration::from_millis(1),
        most_delay: Duration::from_millis(50),
        loss: 0.05,
        duplication: 0.05,
    };
    let (mut longer, mut scrapes, mut doubles) = (0, 0, 0);
    for seed in 0..150 {
        let mut network = Network::new(seed, Pace::default(), faults);
        let rng = crate::runtime::Rng::seeded(seed);
        let chance = |one_in: u64| rng.next_u64().is_multiple_of(one_in);
        let clock = ManualClock::at(1_800_000_000_000);
        let tracker = |_| {
            let node = network.add(Cluster::new("c", None).unwrap());
            let store = network.replica(node).open("ha").unwrap();
            HaTracker::new(config(), store, Arc::new(clock.clone()))
        };
        let trackers: Vec<HaTracker> = (0..4).map(tracker).collect();
        let mut alive = [true, true];
        let mut silent = [0; 2];
        let mut disagreed = 0;
        // Seconds until the halves hear each other again, and since they do.
        let (mut cut, mut whole) = (0, 0);
        for second in 0..600 {
            network.run(SECOND);
            clock.advance(SECOND);
            trackers.iter().for_each(HaTracker::look);
            (cut, whole) = if cut > 0 { (cut - 1, 0) } else { (0, whole + 1) };
            if cut == 0 && chance(120) {
                cut = 60;
            }
            (0..2).for_each(|node| network.set_side(node, u32::from(cut > 0)));
            if second % 15 != 0 {
                continue;
            }
            // One of the two dies or comes back now and then, never both.
            if chance(8) {
                let which = usize::from(chance(2));
                alive = [!alive[which] || which == 1, !alive[which] || which == 0];
            }
            let taken = [0, 1].map(|half| {
                let take = |replica: &usize| {
                    let tracker = &trackers[half * 2 + usize::from(chance(2))];
                    alive[*replica] && tracker.check(&tenant(), "c", ["a", "b"][*replica], None) == Verdict::Accept
                };
                [0, 1].iter().copied().filter(take).collect::<Vec<usize>>()
            });
            for half in 0..2 {
                silent[half] = if taken[half].is_empty() { silent[half] + 15 } else { 0 };
                // The timeout, a scrape, and what news of the last beat take, which in a network that is cut is long.
                assert!(silent[half] <= 90, "seed {seed}: half {half} took nothing for {} s at {second}", silent[half]);
                longer += usize::from(silent[half] > 45);
                scrapes += 1;
            }
            // Only in the scrape in which an election falls, as long as news of it are on their way.
            let agreed = taken[0].len() <= 1 && taken[0] == taken[1];
            disagreed = if agreed || whole <= 30 { 0 } else { disagreed + 1 };
            assert!(disagreed <= 1, "seed {seed}: {taken:?} are taken at {second}, and others before");
            doubles += usize::from(disagreed > 0);
        }
    }
    println!("{scrapes} scrapes by halves: {longer} in a longer gap, {doubles} taken twice");
    assert!(doubles * 50 < scrapes, "in {doubles} of {scrapes} scrapes not all took the same one");
    assert!(
        longer * 100 < scrapes,
        "{longer} of {scrapes} scrapes were in a gap of more than the timeout and a scrape"
    );
}
