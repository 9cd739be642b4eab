//! How fast and at what price does a ring's state spread among 6, 60 and 600 instances?
//!
//! In virtual time, by the same replicas as over sockets: every instance is a node, beats every 15 s, packets of 1,400 bytes go
//! to three others every 200 ms, everything to one every 10 s; 1 to 5 ms on the way, 1 % of packets lost. After a minute an
//! instance changes its state; when half of the others know, all but one in a hundred, and all? Bytes are messages' own,
//! without headers of UDP and TCP, and without what finding each other costs (memberlist's probes: some 300 bytes/s).
//!
//! `cargo run --release -p skald-ring --example gossip` prints a Markdown table. Seeds are fixed.
#![expect(clippy::unwrap_used, reason = "a measurement that fails by panicking")]
#![expect(clippy::print_stdout, reason = "its output")]

use std::sync::Arc;
use std::time::Duration;

use skald_ring::store::simulation::{Faults, Network, Pace};
use skald_ring::{
    Cluster, GroupRules, Instance, InstanceId, InstanceState, Lifecycle, Membership, Now, RingState, Store, Value,
};

const HEARTBEAT: Duration = Duration::from_secs(15);
const SECOND: Duration = Duration::from_secs(1);
const FAULTS: Faults = Faults {
    least_delay: Duration::from_millis(1),
    most_delay: Duration::from_millis(5),
    loss: 0.01,
    duplication: 0.0,
};

struct Member {
    lifecycle: Lifecycle,
    store: Arc<dyn Store<RingState>>,
}

fn now(network: &Network) -> Now {
    Now { monotonic: network.now(), wall_ms: network.now().as_millis() as i64 }
}

fn start(network: &mut Network, number: usize) -> Member {
    let rules = GroupRules { replication_factor: 3, zone_aware: true, spread: Duration::ZERO };
    let zone = ["a", "b", "c"][number % 3];
    let node = network.add(Cluster::new("production", None).unwrap());
    let store: Arc<dyn Store<RingState>> = network.replica(node).open("ring/ingester").unwrap();
    let mut instance = Instance::new(InstanceId::new(&format!("ingester-zone-{zone}-{}", number / 3)).unwrap());
    instance.grpc_address = format!("10.20.{}.{}:9095", number / 256, number % 256);
    instance.http_address = format!("10.20.{}.{}:8080", number / 256, number % 256);
    instance.zone = format!("zone-{zone}");
    instance.membership = Some(Membership::of(&instance.id, None, &rules).unwrap());
    instance.process = number as u64 * 0x9E37_79B9_7F4A_7C15;
    instance.build.name = "skald 0.1.0 (f2ef461)".to_owned();
    let (mut lifecycle, mut change) =
        Lifecycle::register(instance, &store.get(), Some(rules), HEARTBEAT, now(network)).unwrap();
    change.merge(&lifecycle.set_state(InstanceState::Active).unwrap());
    store.update(&change);
    Member { lifecycle, store }
}

/// Lets virtual time pass; instances look at the ring every second.
fn live(network: &mut Network, members: &mut [Member], seconds: u32) {
    for _ in 0..seconds {
        network.run(SECOND);
        for member in &mut *members {
            let step = member.lifecycle.tick(&member.store.get(), now(network));
            step.change.iter().for_each(|change| {
                member.store.update(change);
            });
        }
    }
}

fn total(network: &Network, count: impl Fn(&Network, usize) -> u64, members: usize) -> f64 {
    (0..members).map(|node| count(network, node)).sum::<u64>() as f64
}

fn main() {
    println!("| instances | half know | 99 % know | all know | bytes/s sent by each | packets/s | whole state |");
    println!("|--:|--:|--:|--:|--:|--:|--:|");
    for count in [6, 60, 600] {
        let mut network = Network::new(1, Pace::default(), FAULTS);
        let mut members: Vec<_> = (0..count).map(|number| start(&mut network, number)).collect();
        // They begin together, but do not beat together: registering takes each its own time.
        live(&mut network, &mut members, 30);
        let registered = |member: &Member| member.store.get().registrations().count();
        assert!(members.iter().all(|member| registered(member) == count), "all know all after half a minute");

        let before = [Network::sent_bytes, Network::sent_packets].map(|what| total(&network, what, count));
        live(&mut network, &mut members, 30);
        let after = [Network::sent_bytes, Network::sent_packets].map(|what| total(&network, what, count));
        let [bytes, packets] = [0, 1].map(|i| (after[i] - before[i]) / 30.0 / count as f64);

        let change = members[0].lifecycle.set_state(InstanceState::Leaving).unwrap();
        let id = members[0].lifecycle.instance().id.clone();
        members[0].store.update(&change);
        let know = |share: f64| {
            let needed = (share * count as f64).ceil() as usize;
            let members = &members;
            let id = &id;
            move |_: &Network| {
                let knows = |member: &&Member| {
                    let state = member.store.get();
                    state.registration(id).is_some_and(|entry| entry.instance.state == InstanceState::Leaving)
                };
                members.iter().filter(knows).count() >= needed
            }
        };
        let mut took = Duration::ZERO;
        let times = [0.5, 0.99, 1.0].map(|share| {
            took += network.run_until(Duration::from_secs(60), know(share)).unwrap();
            format!("{:.2} s", took.as_secs_f64())
        });
        let state = network.replica(0).full_state().len();
        println!("| {count} | {} | {bytes:.0} | {packets:.1} | {state} bytes |", times.join(" | "));
    }
}
