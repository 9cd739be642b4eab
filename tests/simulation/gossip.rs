//! Gossip between the processes: `ring`'s network in virtual time, with the real replicas of the processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use skald::runtime::gossip::{Gossiping, Joined, Member, Participant, Participation};
use skald::settings::HostPort;
use skald_ring::Replica;
use skald_ring::store::simulation::{Faults, Network, Pace};

use crate::clock::START_MS;
use crate::network::Life;

/// What befalls packets all the time.
const FAULTS: Faults = Faults {
    least_delay: Duration::from_millis(1),
    most_delay: Duration::from_millis(20),
    loss: 0.02,
    duplication: 0.01,
};

/// How often messages move.
pub const TICK: Duration = Duration::from_millis(50);

/// The gossip of all processes.
pub struct Gossip {
    state: Mutex<State>,
}

struct State {
    network: Network,
    /// Node by address.
    nodes: BTreeMap<String, (usize, Arc<Life>)>,
    /// Which side of a partition each host is on, if not 0.
    sides: BTreeMap<usize, u32>,
}

impl Gossip {
    pub fn new(seed: u64) -> Arc<Self> {
        let mut network = Network::new(seed, Pace::default(), FAULTS);
        network.set_wall_start(START_MS);
        Arc::new(Self { state: Mutex::new(State { network, nodes: BTreeMap::new(), sides: BTreeMap::new() }) })
    }

    /// Lets time pass: messages arrive, nodes talk.
    pub fn pass(&self, time: Duration) {
        let mut state = self.state.lock();
        let dead: Vec<String> =
            state.nodes.iter().filter(|(_, (_, life))| life.is_dead()).map(|(address, _)| address.clone()).collect();
        for address in dead {
            if let Some((node, _)) = state.nodes.remove(&address) {
                state.network.remove(node);
            }
        }
        state.network.run(time);
    }

    /// Puts a host on a side; hosts on different sides do not hear each other.
    pub fn set_side(&self, host: usize, side: u32) {
        let mut state = self.state.lock();
        state.sides.insert(host, side);
        let node = state.nodes.values().find(|(_, life)| life.host == host).map(|(node, _)| *node);
        if let Some(node) = node {
            state.network.set_side(node, side);
        }
    }
}

/// Gossip as one process starts it.
pub struct HostGossip {
    pub gossip: Arc<Gossip>,
    pub life: Arc<Life>,
}

impl Gossiping for HostGossip {
    fn start(&self, participant: Participant) -> BoxFuture<'static, Result<Box<dyn Participation>, String>> {
        let (gossip, life) = (self.gossip.clone(), self.life.clone());
        Box::pin(async move {
            let mut state = gossip.state.lock();
            let node = state.network.add_replica(participant.replica.clone());
            let side = state.sides.get(&life.host).copied().unwrap_or(0);
            state.network.set_side(node, side);
            let address = participant.advertised.to_string();
            if let Some((former, _)) = state.nodes.insert(address.clone(), (node, life)) {
                state.network.remove(former);
            }
            drop(state);
            Ok(Box::new(Node { gossip, node, address, replica: participant.replica }) as Box<dyn Participation>)
        })
    }
}

struct Node {
    gossip: Arc<Gossip>,
    node: usize,
    address: String,
    replica: Arc<Replica>,
}

impl Participation for Node {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn join<'a>(&'a self, members: &'a [HostPort]) -> BoxFuture<'a, Joined> {
        Box::pin(async move {
            let mut joined = Joined::default();
            let heard = self.replica.counts().received;
            {
                let mut state = self.gossip.state.lock();
                for member in members.iter().map(HostPort::to_string).filter(|member| *member != self.address) {
                    let other = state.nodes.get(&member).map(|(node, _)| *node);
                    match other.filter(|other| state.network.reaches(self.node, *other)) {
                        Some(other) => {
                            state.network.join(self.node, other);
                            joined.met += 1;
                        }
                        None => joined.failures.push(format!("{member} does not answer")),
                    }
                }
            }
            // Those that were met have told everything before a join is over.
            for _ in 0..if joined.met > 0 { 10 } else { 1 } {
                tokio::time::sleep(TICK).await;
                if self.replica.counts().received > heard {
                    return joined;
                }
            }
            if joined.met > 0 {
                joined.met = 0;
                joined.failures.push("the answer was lost".to_owned());
            }
            joined
        })
    }

    fn members(&self) -> BoxFuture<'_, Vec<Member>> {
        Box::pin(async move {
            let state = self.gossip.state.lock();
            state.nodes.keys().map(|address| Member { node: address.clone(), address: address.clone() }).collect()
        })
    }

    fn count_members(&self) -> BoxFuture<'_, usize> {
        Box::pin(async move { self.gossip.state.lock().network.count() })
    }

    fn stop(&self, _: Duration) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let mut state = self.gossip.state.lock();
            if state.nodes.get(&self.address).is_some_and(|(node, _)| *node == self.node) {
                state.nodes.remove(&self.address);
                state.network.remove(self.node);
            }
            Ok(())
        })
    }
}
