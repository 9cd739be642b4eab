//! A view of a ring with a client to each of its members.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use skald_ring::{
    GroupId, GroupRules, Instance, InstanceId, InstanceRing, InstanceState, Member, Membership, Now, Observer,
    Operation, Registration, ReplicaGroups, RingState, Token, Value, Version, key_token,
};
use ulid::Ulid;

use super::keeper::{Keeper, View};
use crate::ingester::client::IngesterClient;
use crate::ingester::repair;
use crate::store_gateway::client::StoreGatewayClient;
use crate::tenant::TenantId;

/// The ingesters in their replica groups.
pub type Ingesters = Peers<ReplicaGroups, dyn IngesterClient>;
/// The store-gateways.
pub type StoreGateways = Peers<InstanceRing, dyn StoreGatewayClient>;

/// An immutable view of a ring with a client to each of its members.
pub struct Peers<V, C: ?Sized> {
    ring: Arc<V>,
    clients: HashMap<InstanceId, Client<C>>,
}

struct Client<C: ?Sized> {
    /// What the client was made for.
    address: String,
    client: Arc<C>,
}

impl<C: ?Sized> Clone for Client<C> {
    fn clone(&self) -> Self {
        Self { address: self.address.clone(), client: self.client.clone() }
    }
}

impl<V: View, C: ?Sized + Send + Sync + 'static> Peers<V, C> {
    /// The view.
    pub fn ring(&self) -> &V {
        &self.ring
    }

    /// The client to a member; `None` for one whose address makes no sense.
    pub fn client(&self, id: &InstanceId) -> Option<&Arc<C>> {
        self.clients.get(id).map(|known| &known.client)
    }

    /// The view of a ring with clients made by `connect`; those of `previous` are kept while addresses stay.
    fn build(ring: &Arc<V>, previous: Option<&Self>, connect: &dyn Fn(&Instance) -> Option<Arc<C>>) -> Self {
        let client = |member: &Arc<Member>| {
            let instance = &member.instance;
            let kept = previous.and_then(|previous| previous.clients.get(&instance.id));
            let client = match kept.filter(|known| known.address == instance.grpc_address) {
                Some(known) => known.clone(),
                None => Client { address: instance.grpc_address.clone(), client: connect(instance)? },
            };
            Some((instance.id.clone(), client))
        };
        Self { ring: ring.clone(), clients: ring.members().iter().filter_map(client).collect() }
    }

    /// The peers of a ring, now and after every change of it.
    pub fn follow(
        keeper: &Keeper<V>,
        connect: impl Fn(&Instance) -> Option<Arc<C>> + Send + 'static,
    ) -> Arc<ArcSwap<Self>> {
        let peers = Arc::new(ArcSwap::from_pointee(Self::build(&keeper.view(), None, &connect)));
        let followed = peers.clone();
        keeper.listen(move |view| {
            followed.store(Arc::new(Self::build(view, Some(&followed.load()), &connect)));
        });
        peers
    }
}

impl Ingesters {
    /// The other members of an ingester's group.
    pub fn others_of_group(&self, own: &InstanceId) -> Vec<repair::Peer> {
        let is_own = |member: &Arc<Member>| member.instance.id == *own;
        let group = self.ring.groups().iter().find(|group| group.members.iter().any(is_own));
        let others = group.into_iter().flat_map(|group| &group.members).filter(|member| !is_own(member));
        let peer = |member: &Arc<Member>| {
            let id = member.instance.id.as_str().to_owned();
            Some(repair::Peer { id, healthy: member.healthy, client: self.client(member.id())?.clone() })
        };
        others.filter_map(peer).collect()
    }

    /// Groups that never change, of ingesters that always live: for tests and benches. The first group's size is the
    /// replication factor.
    pub fn fixed(groups: Vec<Vec<Arc<dyn IngesterClient>>>) -> Self {
        let replication_factor = groups.first().map_or(1, Vec::len) as u16;
        let rules = GroupRules { replication_factor, zone_aware: false, spread: Duration::ZERO };
        let mut state = RingState::default();
        let mut clients = HashMap::new();
        for (group, members) in groups.into_iter().enumerate() {
            for (index, client) in members.into_iter().enumerate() {
                let Ok(id) = InstanceId::new(&format!("ingester-{group}-{index}")) else { continue };
                let membership = Membership { group: GroupId(group as u32), index: index as u16 };
                let instance = Instance {
                    state: InstanceState::Active,
                    membership: Some(membership),
                    group_formed_at_ms: Some(0),
                    ..Instance::new(id.clone())
                };
                let version = Version { incarnation: 1, counter: 1 };
                state.merge(&RingState::of_instance(Registration { version, instance }, 1));
                clients.insert(id, Client { address: String::new(), client });
            }
        }
        let mut observer = Observer::new(Duration::ZERO);
        observer.observe(&state, Duration::ZERO);
        let now = Now { monotonic: Duration::ZERO, wall_ms: 0 };
        let ring = ReplicaGroups::build(&state, &rules, &observer, Duration::MAX, now, None);
        Self { ring: Arc::new(ring), clients }
    }
}

impl StoreGateways {
    /// The token of a block.
    pub fn token(tenant: &TenantId, block: Ulid) -> Token {
        key_token(&[tenant.as_str(), &block.to_string()])
    }

    /// Those that serve a block, in the order of the ring.
    pub fn owners(&self, tenant: &TenantId, block: Ulid) -> Vec<(Arc<Member>, Arc<dyn StoreGatewayClient>)> {
        let set = self.ring.replicas(Self::token(tenant, block), Operation::ASK);
        set.members.into_iter().filter_map(|member| Some((member.clone(), self.client(member.id())?.clone()))).collect()
    }

    /// Nobody, which is enough where nothing is in object storage.
    #[cfg(test)]
    pub fn none() -> Self {
        let rules = skald_ring::InstanceRingRules { replication_factor: 1, zone_aware: false, tokens: 1 };
        let (state, observer) = (RingState::default(), Observer::new(Duration::ZERO));
        let now = Now { monotonic: Duration::ZERO, wall_ms: 0 };
        let ring = InstanceRing::build(&state, rules, &observer, Duration::MAX, now, None);
        Self { ring: Arc::new(ring), clients: HashMap::new() }
    }
}
