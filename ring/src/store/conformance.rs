//! What every store promises, tried with each of them.

use std::sync::Arc;
use std::time::Duration;

use super::simulation::{Faults, Network, Pace};
use super::{Cluster, Replica, Store};
use crate::instance::{Instance, InstanceId, InstanceState};
use crate::ring::GroupId;
use crate::state::{GroupMode, Heartbeat, Registration, RingState, Version};

type Ring = Arc<dyn Store<RingState>>;

/// A cluster of processes under one kind of store.
pub(super) trait Processes {
    /// Another process, which joins those that are there; its store.
    async fn start(&mut self) -> Ring;

    /// Waits until `done` holds; panics after a time in which it surely should.
    async fn until(&mut self, what: &str, done: impl Fn() -> bool);
}

fn id(name: &str) -> InstanceId {
    InstanceId::new(name).unwrap()
}

pub(super) fn registered(name: &str, incarnation: u64, counter: u64) -> RingState {
    let mut instance = Instance::new(id(name));
    instance.state = InstanceState::Active;
    instance.grpc_address = format!("{name}.ingester-headless.skald.svc.cluster.local:9095");
    instance.http_address = format!("{name}.ingester-headless.skald.svc.cluster.local:8080");
    RingState::of_instance(Registration { version: Version { incarnation, counter }, instance }, counter)
}

/// The suite.
pub(super) async fn conforms(processes: &mut impl Processes) {
    let (a, b, c) = (processes.start().await, processes.start().await, processes.start().await);
    updates_are_seen_everywhere(processes, [&a, &b, &c]).await;
    watchers_wake_for_news_only(processes, [&a, &b]).await;
    concurrent_updates_merge(processes, [&a, &b, &c]).await;
    the_forgotten_stay_forgotten(processes, [&a, &b, &c]).await;
    more_than_packets_hold_arrives_and_late_joiners_hear_all(processes, [&a, &b, &c]).await;
}

async fn updates_are_seen_everywhere(processes: &mut impl Processes, [a, b, c]: [&Ring; 3]) {
    assert_eq!(*a.get(), RingState::default());
    assert!(a.update(&registered("i-0", 1, 1)));
    assert!(a.get().registration(&id("i-0")).is_some(), "an update is seen at once where it is made");
    processes.until("an update is heard", || b.get() == a.get() && c.get() == a.get()).await;
    b.update(&RingState::of_heartbeat(id("i-0"), Heartbeat { incarnation: 1, count: 77, at_ms: 5 }));
    processes.until("a heartbeat is heard", || a.get().heartbeat(&id("i-0")).count == 77).await;
}

async fn watchers_wake_for_news_only(processes: &mut impl Processes, [a, b]: [&Ring; 2]) {
    let mut watched = b.watch();
    watched.mark_unchanged();
    assert!(!a.update(&registered("i-0", 1, 1)), "nothing new");
    assert!(!b.update(&RingState::default()));
    assert!(!watched.has_changed().unwrap());
    assert!(a.update(&registered("i-0", 1, 2)));
    processes.until("a watcher wakes", || watched.has_changed().unwrap()).await;
    let seen = watched.borrow_and_update().clone();
    assert_eq!(seen.registration(&id("i-0")).unwrap().version.counter, 2);
    processes.until("both agree", || a.get() == b.get()).await;
}

async fn concurrent_updates_merge(processes: &mut impl Processes, stores: [&Ring; 3]) {
    for (number, store) in stores.iter().enumerate() {
        store.update(&registered(&format!("own-{number}"), 1, 1));
        if let Some(change) = store.get().set_group_mode(GroupId(5), GroupMode::ReadOnly, number as i64) {
            store.update(&change);
        }
    }
    let agree = || stores.iter().all(|store| store.get() == stores[0].get());
    processes.until("all agree", || agree() && stores[0].get().registrations().count() == 4).await;
    assert_eq!(stores[2].get().group(GroupId(5)).unwrap().mode, GroupMode::ReadOnly);
}

async fn the_forgotten_stay_forgotten(processes: &mut impl Processes, [a, b, c]: [&Ring; 3]) {
    let change = b.get().forget(&id("own-0"), 1).unwrap();
    assert!(b.update(&change));
    processes.until("it is forgotten", || a.get().registration(&id("own-0")).is_none()).await;
    processes.until("everywhere", || c.get().registration(&id("own-0")).is_none()).await;
    assert!(!c.update(&registered("own-0", 1, 9)), "what is late changes nothing");
    assert!(c.update(&registered("own-0", 2, 1)), "a new incarnation does");
    processes.until("it is back", || a.get().registration(&id("own-0")).is_some()).await;
}

async fn more_than_packets_hold_arrives_and_late_joiners_hear_all(
    processes: &mut impl Processes,
    [a, b, c]: [&Ring; 3],
) {
    for number in 0..300 {
        a.update(&registered(&format!("ingester-zone-a-{number}"), 1, 1));
    }
    processes.until("all of many arrive", || b.get() == a.get() && c.get() == a.get()).await;
    let late = processes.start().await;
    processes.until("a late joiner hears all", || late.get() == a.get()).await;
    late.update(&registered("late-0", 1, 1));
    processes.until("and is heard", || a.get().registration(&id("late-0")).is_some()).await;
}

/// One process with many handles: what `--target=all` uses.
struct InOneProcess(Replica);

impl Processes for InOneProcess {
    async fn start(&mut self) -> Ring {
        self.0.open("ring").unwrap()
    }

    async fn until(&mut self, what: &str, done: impl Fn() -> bool) {
        assert!(done(), "{what}");
    }
}

struct Simulated(Network);

impl Processes for Simulated {
    async fn start(&mut self) -> Ring {
        let node = self.0.add(Cluster::new("test", None).unwrap());
        let ring = self.0.replica(node).open("ring").unwrap();
        if node > 0 {
            self.0.join(node, 0);
        }
        ring
    }

    async fn until(&mut self, what: &str, done: impl Fn() -> bool) {
        assert!(self.0.run_until(Duration::from_secs(120), |_| done()).is_some(), "{what}");
    }
}

#[tokio::test]
async fn a_replica_alone_conforms() {
    conforms(&mut InOneProcess(Replica::alone())).await;
}

#[tokio::test]
async fn a_simulated_network_conforms() {
    conforms(&mut Simulated(Network::new(1, Pace::default(), Faults::NONE))).await;
    let slow = Faults { most_delay: Duration::from_secs(2), loss: 0.2, duplication: 0.2, ..Faults::NONE };
    for seed in 2..7 {
        conforms(&mut Simulated(Network::new(seed, Pace::default(), slow))).await;
    }
}
