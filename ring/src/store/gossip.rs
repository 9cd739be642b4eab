//! Gossip over sockets: a [`Replica`] whose messages `memberlist` carries.
//!
//! Every 200 ms a node sends what has changed to three random others by UDP, every ten seconds it exchanges everything with
//! one by TCP; who is there is found out by the same library (SWIM). Its messages bear the cluster's name as a label, and a
//! node shows a [proof](super::message::Cluster) that it belongs here: so members of another cluster that reused an address
//! are turned away when they join, when they are heard of, and message by message.
//!
//! A key keeps who does not have it from states and from the list of members. It does not sign the library's own messages
//! about who lives, so somebody on the network can still have nodes suspected; what an instance is worth is judged by its
//! heartbeat, never by that list.
//!
//! `memberlist` 0.8.5 is the last of its line, and its use is confined to this file. It opens sockets, tells the time and
//! draws random numbers by itself, so simulations use [`super::simulation`] instead.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use memberlist::bytes::Bytes;
use memberlist::delegate::{AliveDelegate, CompositeDelegate, MergeDelegate, NodeDelegate, VoidDelegate};
use memberlist::net::NetTransportOptions;
use memberlist::proto::{ChecksumAlgorithm, CompressAlgorithm, Label, MaybeResolvedAddress, Meta, NodeState};
use memberlist::tokio::{TokioSocketAddrResolver, TokioTcpMemberlist};
use smol_str::SmolStr;

use super::message::MessageError;
use super::replica::Replica;

/// Times an entry is told, · log₁₀ (members + 1).
const RETRANSMIT_MULTIPLIER: u32 = 4;
/// What a user message needs around it in a packet.
const MESSAGE_OVERHEAD: usize = 16;

/// How a process takes part.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// Name among the nodes, unique for every start of a process: a name that comes back from another address is refused
    /// for a while. An instance's id with its random process number will do.
    pub node: String,
    /// Where to listen, by UDP and TCP. Port 0 takes a free one.
    pub bind_address: SocketAddr,
    /// Where others reach this process; where it listens, if `None`.
    pub advertise_address: Option<SocketAddr>,
    /// Between packets of changes. Shorter spreads faster and sends more.
    pub gossip_interval: Duration,
    /// Nodes that get each.
    pub gossip_nodes: usize,
    /// Between exchanges of everything with one other node: repairs what packets have lost.
    pub push_pull_interval: Duration,
}

impl GossipConfig {
    /// The usual pace.
    pub fn new(node: String, bind_address: SocketAddr) -> Self {
        Self {
            node,
            bind_address,
            advertise_address: None,
            gossip_interval: Duration::from_millis(200),
            gossip_nodes: 3,
            push_pull_interval: Duration::from_secs(10),
        }
    }
}

/// What went wrong with sockets or peers.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// It could not listen, or has a name nobody can send. Starting again will not help.
    #[error("cannot start gossip as {node} on {address}: {reason}")]
    Start {
        /// Name of the node.
        node: String,
        /// Where it was to listen.
        address: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// A peer does not answer, or is of another cluster. Trying again may help.
    #[error("cannot join {address}: {reason}")]
    Join {
        /// Whose answer was missing.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The others may take this node for dead rather than gone.
    #[error("cannot take leave: {0}")]
    Leave(String),
}

/// Another process, as gossip knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its node's name.
    pub node: String,
    /// Where it is reached.
    pub address: SocketAddr,
}

type Delegate = CompositeDelegate<
    SmolStr,
    SocketAddr,
    Arc<Courier>,
    VoidDelegate<SmolStr, SocketAddr>,
    VoidDelegate<SmolStr, SocketAddr>,
    Arc<Courier>,
    Arc<Courier>,
>;

/// A replica that takes part in its cluster's gossip.
pub struct Gossip {
    memberlist: TokioTcpMemberlist<SmolStr, TokioSocketAddrResolver, Delegate>,
    courier: Arc<Courier>,
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip").field("node", &self.courier.node).finish_non_exhaustive()
    }
}

impl Gossip {
    /// Begins to listen, alone until it has joined somebody or somebody has joined it. `now_ms` is wall time, Unix
    /// milliseconds. Belongs to the runtime it is started in.
    pub async fn start(
        config: GossipConfig,
        replica: Arc<Replica>,
        now_ms: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, GossipError> {
        let (node, address) = (config.node.clone(), config.bind_address);
        let failed = |reason: String| GossipError::Start { node: node.clone(), address, reason };
        let label = Label::try_from(replica.cluster().name()).map_err(|error| failed(error.to_string()))?;
        let proof = Meta::try_from(replica.cluster().proof(&config.node)).map_err(|error| failed(error.to_string()))?;
        let name = SmolStr::from(config.node.as_str());
        let courier = Arc::new(Courier {
            node: config.node,
            replica,
            proof,
            members: AtomicUsize::new(1),
            now_ms: Box::new(now_ms),
        });
        let mut transport = NetTransportOptions::new(name);
        transport.add_bind_address(config.bind_address);
        if let Some(address) = config.advertise_address {
            transport = transport.with_advertise_address(address);
        }
        let options = memberlist::Options::lan()
            .with_label(label)
            .with_gossip_interval(config.gossip_interval)
            .with_gossip_nodes(config.gossip_nodes)
            .with_push_pull_interval(config.push_pull_interval)
            .with_checksum_algo(ChecksumAlgorithm::Crc32)
            .with_compress_algo(CompressAlgorithm::Snappy);
        let delegate = CompositeDelegate::new()
            .with_alive_delegate(courier.clone())
            .with_merge_delegate(courier.clone())
            .with_node_delegate(courier.clone());
        let memberlist = TokioTcpMemberlist::with_delegate(delegate, transport, options).await;
        Ok(Self { memberlist: memberlist.map_err(|error| failed(error.to_string()))?, courier })
    }

    /// Where others reach this process.
    pub fn address(&self) -> SocketAddr {
        *self.memberlist.advertise_address()
    }

    /// The replica it carries messages for.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.courier.replica
    }

    /// Joins the cluster of a peer: exchanges everything with it, and is known to the others soon after. Doing so again
    /// from time to time brings together what a long partition has separated.
    pub async fn join(&self, address: SocketAddr) -> Result<(), GossipError> {
        let joined = self.memberlist.join(MaybeResolvedAddress::resolved(address)).await;
        self.count_members().await;
        joined.map(|_| ()).map_err(|error| GossipError::Join { address, reason: error.to_string() })
    }

    /// All that are thought to live, this process included, by name.
    pub async fn members(&self) -> Vec<Peer> {
        let members = self.memberlist.online_members().await;
        self.courier.members.store(members.len().max(1), Ordering::Relaxed);
        let peer = |member: &Arc<NodeState<SmolStr, SocketAddr>>| Peer {
            node: member.id().to_string(),
            address: *member.address(),
        };
        let mut members: Vec<_> = members.iter().map(peer).collect();
        members.sort();
        members
    }

    /// How often something has to be told follows from this; call it every few seconds.
    pub async fn count_members(&self) -> usize {
        let count = self.memberlist.num_online_members().await.max(1);
        self.courier.members.store(count, Ordering::Relaxed);
        count
    }

    /// Takes leave of the others, for at most `timeout`, and closes the sockets. What waits to be told is lost to those who
    /// have not heard it, so tell of the end of instances a few gossip intervals before.
    pub async fn stop(&self, timeout: Duration) -> Result<(), GossipError> {
        let left = self.memberlist.leave(timeout).await;
        let shut = self.memberlist.shutdown().await;
        left.map_err(|error| GossipError::Leave(error.to_string()))?;
        shut.map_err(|error| GossipError::Leave(error.to_string()))
    }
}

/// What `memberlist` calls.
struct Courier {
    node: String,
    replica: Arc<Replica>,
    proof: Meta,
    members: AtomicUsize,
    now_ms: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl Courier {
    /// Counted in the replica; there is nobody to answer to.
    fn receive(&self, message: &[u8]) {
        let _ = self.replica.receive(message, (self.now_ms)());
    }
}

impl NodeDelegate for Courier {
    async fn node_meta(&self, _limit: usize) -> Meta {
        self.proof.clone()
    }

    async fn notify_message(&self, message: Cow<'_, [u8]>) {
        self.receive(&message);
    }

    async fn broadcast_messages<F>(&self, limit: usize, _encoded_len: F) -> impl Iterator<Item = Bytes> + Send
    where
        F: Fn(Bytes) -> (usize, Bytes) + Send + Sync + 'static,
    {
        let members = self.members.load(Ordering::Relaxed);
        let limit = limit.saturating_sub(MESSAGE_OVERHEAD);
        self.replica.next_message(limit, RETRANSMIT_MULTIPLIER, members).map(Bytes::from).into_iter()
    }

    async fn local_state(&self, _join: bool) -> Bytes {
        self.replica.full_state().into()
    }

    async fn merge_remote_state(&self, state: &[u8], _join: bool) {
        self.receive(state);
    }
}

impl AliveDelegate for Courier {
    type Id = SmolStr;
    type Address = SocketAddr;
    type Error = MessageError;

    async fn notify_alive(&self, peer: Arc<NodeState<SmolStr, SocketAddr>>) -> Result<(), MessageError> {
        self.replica.cluster().accepts(peer.id(), peer.meta())
    }
}

impl MergeDelegate for Courier {
    type Id = SmolStr;
    type Address = SocketAddr;
    type Error = MessageError;

    async fn notify_merge(&self, peers: Arc<[NodeState<SmolStr, SocketAddr>]>) -> Result<(), MessageError> {
        peers.iter().try_for_each(|peer| self.replica.cluster().accepts(peer.id(), peer.meta()))
    }
}

#[cfg(test)]
mod tests;
