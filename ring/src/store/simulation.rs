//! A network in virtual time for replicas: gossip that is late, lost, doubled or cut off, the same for the same seed.
//!
//! Every node tells some random others of what has changed at an interval, and exchanges everything with one at a longer one,
//! as `memberlist` does. Left out: finding each other (everyone knows everyone), and packets' headers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use super::message::Cluster;
use super::replica::Replica;
use crate::token::mix;

/// How often nodes talk, and how much.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between packets of changes.
    pub gossip_interval: Duration,
    /// Nodes that get each.
    pub gossip_nodes: usize,
    /// Longest packet in bytes.
    pub packet_length: usize,
    /// See [`Replica::next_message`].
    pub retransmit_multiplier: u32,
    /// Between exchanges of everything with one other node.
    pub push_pull_interval: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            gossip_interval: Duration::from_millis(200),
            gossip_nodes: 3,
            packet_length: 1400,
            retransmit_multiplier: 4,
            push_pull_interval: Duration::from_secs(10),
        }
    }
}

/// What befalls messages.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Shortest time on the way.
    pub least_delay: Duration,
    /// Longest time on the way.
    pub most_delay: Duration,
    /// Share of packets that never arrive, 0 to 1. Exchanges of everything are connections: they fail as a whole.
    pub loss: f64,
    /// Share of packets that arrive twice.
    pub duplication: f64,
}

impl Faults {
    /// A quiet network: a millisecond, and nothing is lost.
    pub const NONE: Self = Self {
        least_delay: Duration::from_millis(1),
        most_delay: Duration::from_millis(1),
        loss: 0.0,
        duplication: 0.0,
    };
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Gossip(usize),
    PushPull(usize),
    Arrival { from: usize, to: usize, message: Vec<u8>, wants_answer: bool },
}

#[derive(Debug)]
struct Node {
    replica: Arc<Replica>,
    /// Nodes on different sides do not reach each other.
    side: u32,
    down: bool,
    /// It never comes back, and nobody knows of it any more.
    gone: bool,
    sent_bytes: u64,
    sent_packets: u64,
}

/// Replicas and what is on the way between them.
#[derive(Debug)]
pub struct Network {
    pace: Pace,
    faults: Faults,
    nodes: Vec<Node>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    now: Duration,
    /// Wall time at virtual time zero, Unix milliseconds.
    wall_start_ms: i64,
    scheduled: u64,
    random: u64,
}

impl Network {
    /// An empty network.
    pub fn new(seed: u64, pace: Pace, faults: Faults) -> Self {
        let events = BinaryHeap::new();
        let (nodes, now, random) = (Vec::new(), Duration::ZERO, mix(seed));
        Self { pace, faults, nodes, events, now, wall_start_ms: 0, scheduled: 0, random }
    }

    /// Sets the wall time at virtual time zero, which is that of all nodes.
    pub fn set_wall_start(&mut self, ms: i64) {
        self.wall_start_ms = ms;
    }

    /// Connects a new, empty replica; its number.
    pub fn add(&mut self, cluster: Cluster) -> usize {
        self.add_replica(Arc::new(Replica::new(cluster)))
    }

    /// Connects a replica; its number.
    pub fn add_replica(&mut self, replica: Arc<Replica>) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node { replica, side: 0, down: false, gone: false, sent_bytes: 0, sent_packets: 0 });
        // Nobody ticks in step.
        let gossip = self.duration_below(self.pace.gossip_interval);
        let push_pull = self.duration_below(self.pace.push_pull_interval);
        self.schedule(gossip, Event::Gossip(node));
        self.schedule(push_pull, Event::PushPull(node));
        node
    }

    /// A node exchanges everything with another at once, as when it joins.
    pub fn join(&mut self, node: usize, other: usize) {
        self.push_pull(node, other);
    }

    /// The replica of a node.
    pub fn replica(&self, node: usize) -> &Arc<Replica> {
        &self.nodes[node].replica
    }

    /// Virtual time since the start, which is also the wall clock of all nodes.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Bytes a node has sent so far.
    pub fn sent_bytes(&self, node: usize) -> u64 {
        self.nodes[node].sent_bytes
    }

    /// Packets a node has sent so far, exchanges included.
    pub fn sent_packets(&self, node: usize) -> u64 {
        self.nodes[node].sent_packets
    }

    /// Other faults from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Puts a node on a side; all begin on side 0. What is under way between sides is lost.
    pub fn set_side(&mut self, node: usize, side: u32) {
        self.nodes[node].side = side;
    }

    /// Stops a node, or lets it go on with what it knew.
    pub fn set_down(&mut self, node: usize, down: bool) {
        self.nodes[node].down = down;
    }

    /// Takes a node out for good, as when its process ends: another start is another node.
    pub fn remove(&mut self, node: usize) {
        self.nodes[node].down = true;
        self.nodes[node].gone = true;
    }

    /// Nodes that were not taken out.
    pub fn count(&self) -> usize {
        self.nodes.iter().filter(|node| !node.gone).count()
    }

    /// Whether messages of one get to the other now.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        !from.down && !to.down && from.side == to.side
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.random)
    }

    fn chance(&mut self, share: f64) -> bool {
        (self.random() >> 11) as f64 / (1_u64 << 53) as f64 <= share && share > 0.0
    }

    fn duration_below(&mut self, limit: Duration) -> Duration {
        let nanos = limit.as_nanos().max(1) as u64;
        Duration::from_nanos(self.random() % nanos)
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((self.now + after, self.scheduled, event)));
    }

    /// Lets `time` pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(Reverse((at, ..))) = self.events.peek()
            && *at <= end
            && let Some(Reverse((at, _, event))) = self.events.pop()
        {
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    /// Lets time pass until `done`, looking at every gossip interval; how long that took, or `None` after `limit`.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        while !done(self) {
            if self.now >= start + limit {
                return None;
            }
            self.run(self.pace.gossip_interval / 4);
        }
        Some(self.now - start)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Gossip(node) | Event::PushPull(node) if self.nodes[node].gone => {}
            Event::Gossip(node) => {
                self.schedule(self.pace.gossip_interval, Event::Gossip(node));
                if !self.nodes[node].down {
                    self.gossip(node);
                }
            }
            Event::PushPull(node) => {
                self.schedule(self.pace.push_pull_interval, Event::PushPull(node));
                if let Some(other) = self.other_than(node).filter(|_| !self.nodes[node].down) {
                    self.push_pull(node, other);
                }
            }
            Event::Arrival { from, to, message, wants_answer } => {
                if !self.reaches(from, to) {
                    return;
                }
                let now_ms = self.wall_start_ms + self.now.as_millis() as i64;
                // Whoever gets a message of another cluster hangs up.
                let taken = self.nodes[to].replica.receive(&message, now_ms);
                if wants_answer && taken.is_ok() {
                    let answer = self.nodes[to].replica.full_state();
                    self.send(to, from, answer, false);
                }
            }
        }
    }

    fn other_than(&mut self, node: usize) -> Option<usize> {
        let others = self.count().checked_sub(1).filter(|others| *others > 0)?;
        let other = (self.random() % others as u64) as usize;
        let mut there = (0..self.nodes.len()).filter(|other| *other != node && !self.nodes[*other].gone);
        there.nth(other)
    }

    fn gossip(&mut self, node: usize) {
        let members = self.count();
        for _ in 0..self.pace.gossip_nodes.min(members - 1) {
            let Some(other) = self.other_than(node) else { return };
            let pace = self.pace;
            let replica = &self.nodes[node].replica;
            let Some(message) = replica.next_message(pace.packet_length, pace.retransmit_multiplier, members) else {
                return;
            };
            if self.chance(self.faults.duplication) {
                self.send(node, other, message.clone(), false);
            }
            if self.chance(self.faults.loss) {
                self.note_sent(node, &message);
            } else {
                self.send(node, other, message, false);
            }
        }
    }

    fn push_pull(&mut self, node: usize, other: usize) {
        if self.reaches(node, other) && !self.chance(self.faults.loss) {
            let state = self.nodes[node].replica.full_state();
            self.send(node, other, state, true);
        }
    }

    fn note_sent(&mut self, node: usize, message: &[u8]) {
        self.nodes[node].sent_bytes += message.len() as u64;
        self.nodes[node].sent_packets += 1;
    }

    fn send(&mut self, from: usize, to: usize, message: Vec<u8>, wants_answer: bool) {
        self.note_sent(from, &message);
        let spread = self.faults.most_delay.saturating_sub(self.faults.least_delay);
        let delay = self.faults.least_delay + self.duration_below(spread);
        self.schedule(delay, Event::Arrival { from, to, message, wants_answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{Instance, InstanceId, InstanceState};
    use crate::state::{Registration, RingState, Version};
    use crate::store::Store;

    const STORMY: Faults = Faults {
        least_delay: Duration::from_millis(1),
        most_delay: Duration::from_millis(900),
        loss: 0.3,
        duplication: 0.2,
    };

    fn cluster() -> Cluster {
        Cluster::new("test", None).unwrap()
    }

    fn registered(name: &str, counter: u64) -> RingState {
        let mut instance = Instance::new(InstanceId::new(name).unwrap());
        instance.state = InstanceState::Active;
        RingState::of_instance(Registration { version: Version { incarnation: 1, counter }, instance }, counter)
    }

    fn network(seed: u64, nodes: usize, faults: Faults) -> (Network, Vec<Arc<dyn Store<RingState>>>) {
        let mut network = Network::new(seed, Pace::default(), faults);
        let stores = (0..nodes).map(|_| {
            let node = network.add(cluster());
            network.replica(node).open("ring").unwrap()
        });
        let stores = stores.collect();
        (network, stores)
    }

    fn all_equal(stores: &[Arc<dyn Store<RingState>>]) -> bool {
        stores.iter().all(|store| store.get() == stores[0].get())
    }

    #[test]
    fn replicas_converge_whatever_befalls_messages() {
        for seed in 0..20 {
            let (mut network, stores) = network(seed, 12, STORMY);
            for (node, store) in stores.iter().enumerate() {
                store.update(&registered(&format!("i-{node}"), 1));
            }
            for beat in 2..6 {
                network.run(Duration::from_millis(700));
                stores.iter().enumerate().for_each(|(node, store)| {
                    store.update(&registered(&format!("i-{node}"), beat));
                });
            }
            let took = network.run_until(Duration::from_secs(60), |_| all_equal(&stores));
            assert!(took.is_some(), "seed {seed}");
            assert_eq!(stores[0].get().registrations().count(), 12);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let run = |seed| {
            let (mut network, stores) = network(seed, 8, STORMY);
            stores[3].update(&registered("a-0", 1));
            let took = network.run_until(Duration::from_secs(60), |_| all_equal(&stores));
            (took, (0..8).map(|node| network.sent_bytes(node)).collect::<Vec<_>>())
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    /// Both sides go on, one of them forgets somebody; afterwards all agree and nobody is resurrected.
    #[test]
    fn a_partition_heals_without_resurrection() {
        let (mut network, stores) = network(5, 9, Faults::NONE);
        for (node, store) in stores.iter().enumerate() {
            store.update(&registered(&format!("i-{node}"), 1));
        }
        network.run_until(Duration::from_secs(20), |_| all_equal(&stores)).unwrap();
        (0..4).for_each(|node| network.set_side(node, 1));
        let gone = InstanceId::new("i-8").unwrap();
        stores[0].update(&stores[0].get().forget(&gone, 0).unwrap());
        stores[5].update(&registered("late", 1));
        // The others still hear of it.
        stores[8].update(&registered("i-8", 2));
        network.run(Duration::from_secs(30));
        assert!(stores[3].get().registration(&gone).is_none() && stores[3].get().registrations().count() == 8);
        assert!(stores[6].get().registration(&gone).is_some() && stores[6].get().registrations().count() == 10);
        (0..4).for_each(|node| network.set_side(node, 0));
        network.run_until(Duration::from_secs(60), |_| all_equal(&stores)).unwrap();
        assert!(stores[0].get().registration(&gone).is_none());
        assert_eq!(stores[0].get().registrations().count(), 9);
    }

    /// An address that belonged to one cluster is one of another's now: they talk, and nothing comes of it.
    #[test]
    fn two_clusters_on_one_network_never_merge() {
        let (mut network, stores) = network(11, 4, Faults::NONE);
        let others: Vec<_> = ["other", "test"]
            .into_iter()
            .map(|name| {
                let node = network.add(Cluster::new(name, Some(b"key")).unwrap());
                network.replica(node).open::<RingState>("ring").unwrap()
            })
            .collect();
        stores[0].update(&registered("a-0", 1));
        others.iter().for_each(|store| {
            store.update(&registered("b-0", 1));
        });
        network.run(Duration::from_secs(60));
        assert!(all_equal(&stores) && *stores[0].get() == registered("a-0", 1));
        assert!(others.iter().all(|store| *store.get() == registered("b-0", 1)));
        let counts = network.replica(0).counts();
        assert!(counts.other_cluster > 0 && counts.signature > 0, "{counts:?}");
    }
}
