//! Real sockets on loopback, and real time: what is waited for is a condition, for at most half a minute.

use super::*;
use crate::state::RingState;
use crate::store::conformance::{Processes, conforms, registered};
use crate::store::{Cluster, Store};

type Ring = Arc<dyn Store<RingState>>;

async fn node(name: &str, cluster: Cluster) -> (Gossip, Ring) {
    let replica = Arc::new(Replica::new(cluster));
    let ring = replica.open("ring").unwrap();
    let mut config = GossipConfig::new(name.to_owned(), "127.0.0.1:0".parse().unwrap());
    config.gossip_interval = Duration::from_millis(50);
    config.push_pull_interval = Duration::from_secs(1);
    (Gossip::start(config, replica, || 0).await.unwrap(), ring)
}

fn cluster(name: &str, key: Option<&[u8]>) -> Cluster {
    Cluster::new(name, key).unwrap()
}

async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..1500 {
        if done().await {
            return;
        }
        pause.tick().await;
    }
    panic!("not within 30 s: {what}");
}

#[derive(Default)]
struct Gossiping {
    nodes: Vec<Gossip>,
}

impl Processes for Gossiping {
    async fn start(&mut self) -> Ring {
        let (gossip, ring) = node(&format!("node-{}", self.nodes.len()), cluster("test", Some(b"key"))).await;
        if let Some(first) = self.nodes.first() {
            gossip.join(first.address()).await.unwrap();
        }
        self.nodes.push(gossip);
        ring
    }

    async fn until(&mut self, what: &str, done: impl Fn() -> bool) {
        until(what, async || done()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_conforms() {
    let mut processes = Gossiping::default();
    conforms(&mut processes).await;
    let members = processes.nodes[0].members().await;
    assert_eq!(members.iter().map(|peer| &*peer.node).collect::<Vec<_>>(), ["node-0", "node-1", "node-2", "node-3"]);
    let last = processes.nodes.pop().unwrap();
    last.stop(Duration::from_secs(5)).await.unwrap();
    until("who leaves is gone", async || processes.nodes[0].count_members().await == 3).await;
}

/// A restart under another address, and then one that takes the address of a node that crashed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_come_back() {
    let (first, ring) = node("a-1", cluster("test", None)).await;
    let (second, other) = node("b-1", cluster("test", None)).await;
    second.join(first.address()).await.unwrap();
    other.update(&registered("i-0", 1, 1));
    until("the first hears", async || ring.get() == other.get()).await;
    second.stop(Duration::from_secs(5)).await.unwrap();
    let (second, other) = node("b-2", cluster("test", None)).await;
    second.join(first.address()).await.unwrap();
    until("the second knows what it said before", async || other.get() == ring.get()).await;
    other.update(&registered("i-0", 2, 1));
    until("the first hears again", async || ring.get() == other.get()).await;
}

/// Members of another cluster, of the same without the key, or with another one, are refused both ways, by name as by
/// message, and however often they try.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_never_merge() {
    let (ours, ring) = node("ours", cluster("test", Some(b"key"))).await;
    let (friend, _) = node("friend", cluster("test", Some(b"key"))).await;
    friend.join(ours.address()).await.unwrap();
    ring.update(&registered("ours-0", 1, 1));
    let strangers = [("test", Some(&b"other key"[..])), ("test", None), ("other", Some(b"key")), ("other", None)];
    for (number, (name, key)) in strangers.into_iter().enumerate() {
        let (stranger, theirs) = node(&format!("stranger-{number}"), cluster(name, key)).await;
        theirs.update(&registered("theirs-0", 1, 1));
        for _ in 0..3 {
            let _ = stranger.join(ours.address()).await;
            let _ = ours.join(stranger.address()).await;
        }
        // What is carried to a reused address is told apart without any joining, too.
        let state = stranger.replica().full_state();
        assert!(ours.replica().receive(&state, 0).is_err(), "{name} {key:?}");
        let _ = stranger.memberlist.send(&ours.address(), state.clone().into()).await;
        let _ = stranger.memberlist.send_reliable(&ours.address(), state.into()).await;
        until("friends still talk", async || {
            ring.update(&registered("ours-1", 1, number as u64 + 1));
            ours.members().await.len() == 2
        })
        .await;
        assert_eq!(theirs.get().registrations().count(), 1, "{name} {key:?}");
        assert_eq!(stranger.members().await.len(), 1, "{name} {key:?}");
        assert!(!ours.members().await.iter().any(|peer| peer.node.starts_with("stranger")));
    }
    let ids: Vec<_> = ring.get().registrations().map(|entry| entry.instance.id.to_string()).collect();
    assert_eq!(ids, ["ours-0", "ours-1"]);
}

#[tokio::test]
async fn what_cannot_be_reached_is_told() {
    let (node, _) = node("a", cluster("test", None)).await;
    let error = node.join("127.0.0.1:1".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot join 127.0.0.1:1: "), "{error}");
    let replica = Arc::new(Replica::new(cluster("test", None)));
    let taken = GossipConfig::new("b".into(), node.address());
    let error = Gossip::start(taken, replica, || 0).await.unwrap_err();
    assert!(matches!(error, GossipError::Start { .. }), "{error}");
}
