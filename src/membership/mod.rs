//! Who else is there: this process' place in the cluster, and the rings of all roles as it sees them.
//!
//! [`Rings`] holds one replica of the gossiped state, and for each ring a [`keeper`]: it listens to the state, judges who
//! lives, keeps this process' own [`registration`] alive, and publishes an immutable view. [`peers`] puts a client to each
//! member beside such a view: that is what distributors and queriers work with. [`identity`] is what this process tells
//! the others of itself, [`joining`] how it meets them, [`clock_watch`] whether its clock agrees with theirs, [`notes`] what
//! an ingester remembers of the groups while it does not run, [`tenant_shards`] which shards tenants' series were written to,
//! [`pages`] what people see.
//!
//! A process without `memberlist.bind_address` is alone: the same rings, with itself in them.
//!
//! Absent on purpose: how state merges, what a group or a subring is (`skald-ring`).

mod clock_watch;
mod identity;
mod joining;
mod keeper;
mod metrics;
mod notes;
mod pages;
pub mod peers;
mod registration;
mod settings;
mod tenant_shards;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use skald_ring::instance_ring::DEFAULT_TOKENS;
use skald_ring::store::OpenError;
use skald_ring::{
    AutoForget, GroupRules, GroupState, Instance, InstanceRing, InstanceRingRules, InstanceState, Operation, Replica,
    ReplicaGroups, key_token, remove_group,
};
use tokio::sync::watch;
use ulid::Ulid;

use crate::config::{Config, Role};
use crate::runtime::gossip::Participation;
use crate::runtime::{Clock, Runtime};
use crate::tenant::TenantId;
pub use clock_watch::{ClockFault, ClockWatch};
use identity::Identity;
pub use keeper::{Keeper, View};
pub use metrics::Metrics;
use notes::Notes;
pub use pages::routes;
pub use peers::{Ingesters, Peers, StoreGateways};
pub use registration::Registration;
pub use settings::{GossipSettings, InstanceSettings, RingSettings};
pub use tenant_shards::{ShardMemory, ShardUse, TenantShards};

/// How long one that has left is still shown.
const LEFT_SHOWN: Duration = Duration::from_secs(300);

/// How often an ingester looks whether all it holds is in object storage.
const SHIPPED_EVERY: Duration = Duration::from_secs(1);

/// See [`Rings::lookback`].
fn lookback(config: &Config) -> Duration {
    let held = config.ingester.local_retention.max(config.querier.query_ingesters_within.unwrap_or_default());
    held.saturating_add(config.ring.clock_tolerance)
}

/// The rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RingRole {
    /// Ingesters, in replica groups.
    Ingester,
    /// Distributors: how many share a tenant's rate.
    Distributor,
    /// Store-gateways: who serves which block.
    StoreGateway,
    /// Compactors: who works for which tenant.
    Compactor,
    /// Query-schedulers: where frontends and queriers find them.
    QueryScheduler,
}

impl RingRole {
    /// The rings whose members stand for themselves, not in groups.
    const OF_INSTANCES: [Self; 4] = [Self::Distributor, Self::StoreGateway, Self::Compactor, Self::QueryScheduler];

    /// Its name, as in paths and in the names of gossiped values.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingester => "ingester",
            Self::Distributor => "distributor",
            Self::StoreGateway => "store-gateway",
            Self::Compactor => "compactor",
            Self::QueryScheduler => "query-scheduler",
        }
    }
}

impl fmt::Display for RingRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rings of all roles, as this process sees them, and its own places in them.
pub struct Rings {
    identity: Identity,
    replica: Arc<Replica>,
    gossip: Option<Box<dyn Participation>>,
    settings: GossipSettings,
    ingesters: Arc<Keeper<ReplicaGroups>>,
    instances: Vec<Arc<Keeper<InstanceRing>>>,
    registrations: Mutex<Vec<Registration>>,
    activated: watch::Sender<bool>,
    /// Of a process with an ingester that is not alone.
    notes: Option<Notes>,
    shards: Arc<TenantShards>,
    /// See [`Rings::lookback`].
    lookback: Duration,
    leaves_for_good: AtomicBool,
    clock: Arc<dyn Clock>,
    clock_watch: Arc<ClockWatch>,
    metrics: Metrics,
}

impl Rings {
    /// Opens the rings, starts gossip if there is any, and meets the others. `open_more` opens what else is gossiped: every
    /// process has to, since those that do not know a value pass nothing of it on.
    pub async fn open<T>(
        config: &Config,
        runtime: &Runtime,
        metrics: Metrics,
        open_more: impl FnOnce(&Replica) -> Result<T, OpenError>,
    ) -> Result<(Self, T), String> {
        let identity = Identity::of(config, runtime.rng.next_u64())?;
        let (replica, gossip) = joining::start(&config.memberlist, &identity, runtime).await?;
        let more = open_more(&replica).map_err(|error| error.to_string())?;
        let alone = gossip.is_none();
        let rules = GroupRules {
            replication_factor: if alone { 1 } else { config.ring.replication_factor },
            zone_aware: !alone && config.ring.zone_awareness_enabled,
            spread: if alone { Duration::ZERO } else { config.memberlist.announce_delay },
        };
        let settings = &config.ring;
        let store = |role: RingRole| replica.open(&format!("ring/{role}")).map_err(|error| error.to_string());
        let never = AutoForget { unhealthy_after: None, left_after: LEFT_SHOWN };
        let shards = replica.open::<ShardUse>("tenant-shards").map_err(|error| error.to_string())?;
        let shards = Arc::new(TenantShards::new(shards, rules.spread, lookback(config), runtime.clock.clone()));
        let ingesters = store(RingRole::Ingester)?;
        let mut notes = None;
        if !alone && config.target.includes(Role::Ingester) {
            let (opened, known) = Notes::open(runtime, &config.data_dir, replica.cluster().name());
            // Before anybody is met: the first who hears of this process hears of all groups.
            ingesters.update(&known);
            notes = Some(opened);
        }
        let ingesters = Keeper::new(RingRole::Ingester, ingesters, rules, settings, never, &runtime.clock);
        let forget = AutoForget { unhealthy_after: settings.auto_forget_after, ..never };
        let mut instances = Vec::new();
        for role in RingRole::OF_INSTANCES {
            let replication_factor =
                if role == RingRole::StoreGateway { settings.store_gateway_replication_factor } else { 1 };
            let zone_aware = role == RingRole::StoreGateway && rules.zone_aware;
            let rules = InstanceRingRules { replication_factor, zone_aware, tokens: DEFAULT_TOKENS };
            instances.push(Arc::new(Keeper::new(role, store(role)?, rules, settings, forget, &runtime.clock)));
        }
        let rings = Self {
            identity,
            replica,
            gossip,
            settings: config.memberlist.clone(),
            ingesters: Arc::new(ingesters),
            instances,
            registrations: Mutex::default(),
            activated: watch::Sender::new(false),
            notes,
            shards,
            lookback: lookback(config),
            leaves_for_good: AtomicBool::new(false),
            clock: runtime.clock.clone(),
            clock_watch: Arc::default(),
            metrics,
        };
        rings.join_first().await;
        rings.shards.remember();
        rings.refresh();
        Ok((rings, more))
    }

    /// How far back reads look for what ingesters may hold, and so much further as clocks may be apart: older samples are in
    /// object storage.
    pub fn lookback(&self) -> Duration {
        self.lookback
    }

    /// Which shards tenants' series are and were written to.
    pub fn tenant_shards(&self) -> &Arc<TenantShards> {
        &self.shards
    }

    /// Whether nobody else can be there.
    pub fn is_alone(&self) -> bool {
        self.gossip.is_none()
    }

    /// The zone of this process; empty without zones.
    pub fn zone(&self) -> &str {
        &self.identity.zone
    }

    /// Whether this process' wall clock can be trusted.
    pub fn clock_watch(&self) -> &Arc<ClockWatch> {
        &self.clock_watch
    }

    /// The ingesters.
    pub fn ingesters(&self) -> &Arc<Keeper<ReplicaGroups>> {
        &self.ingesters
    }

    /// The ring of another role.
    ///
    /// # Panics
    /// For the ingesters', which has [`Rings::ingesters`]: a mistake in the program.
    pub fn instances(&self, role: RingRole) -> &Arc<Keeper<InstanceRing>> {
        let found = self.instances.iter().find(|keeper| keeper.role() == role);
        found.unwrap_or_else(|| unreachable!("ingesters are in groups"))
    }

    /// Registers this process in a ring, as Joining: it owns its part, and is not asked for anything yet.
    pub fn register(&self, role: RingRole) -> Result<Registration, String> {
        let registration = match role {
            RingRole::Ingester => {
                let instance = self.identity.ingester(self.ingesters.rules(), self.is_alone())?;
                self.ingesters.register(instance, Some(*self.ingesters.rules()))?
            }
            role => self.instances(role).register(self.identity.instance(), None)?,
        };
        self.registrations.lock().push(registration.clone());
        self.refresh();
        Ok(registration)
    }

    /// Whether an instance is this process.
    pub fn is_own(&self, instance: &Instance) -> bool {
        self.identity.is_own(instance)
    }

    /// Whether this process does the compactor's work for a tenant.
    pub fn is_compactor_of(&self, tenant: &TenantId) -> bool {
        let owner = self.instances(RingRole::Compactor).view().owner(key_token(&[tenant.as_str()]));
        owner.is_some_and(|owner| self.is_own(&owner.instance))
    }

    /// Whether this process serves a block.
    pub fn serves_block(&self, tenant: &TenantId, block: Ulid) -> bool {
        let token = StoreGateways::token(tenant, block);
        self.instances(RingRole::StoreGateway).view().owns(&self.identity.id, token, Operation::OWN)
    }

    /// Says that this process serves: from now on it is asked. Completes when that is known, so that whoever restarts one
    /// process after the other never has two away.
    pub async fn activate(&self) {
        self.set_state(InstanceState::Active);
        self.activated.send_replace(true);
        self.let_it_spread().await;
    }

    /// Says that this process' ingester counts for reads, and completes when that is known, for the same reason.
    pub async fn announce_repaired(&self, registration: &Registration) {
        if registration.set_repaired(true) {
            self.refresh();
            self.let_it_spread().await;
        }
    }

    /// Completes once this process serves.
    pub async fn activated(&self) {
        // The sender lives as long as this.
        let _ = self.activated.subscribe().wait_for(|activated| *activated).await;
    }

    /// Says that this process is about to stop, and completes when that is known: nothing new is sent to it then. One that
    /// is alone finishes what it has without telling anybody.
    pub async fn announce_stop(&self) {
        if !self.is_alone() {
            self.set_state(InstanceState::Leaving);
            self.let_it_spread().await;
        }
    }

    async fn let_it_spread(&self) {
        if !self.is_alone() {
            self.clock.sleep(self.settings.announce_delay).await;
        }
    }

    fn set_state(&self, state: InstanceState) {
        for registration in &*self.registrations.lock() {
            registration.set_state(state);
        }
        self.refresh();
    }

    /// Brings every view up to date now, rather than in a moment.
    fn refresh(&self) {
        // Twice: what is noticed about the own group the first time is known the second time.
        for _ in 0..2 {
            self.ingesters.step();
            self.instances.iter().for_each(|keeper| keeper.step());
        }
    }

    /// Keeps the rings and this process' places in them, until dropped.
    pub async fn run(&self) {
        let keepers = self.instances.iter().map(|keeper| keeper.run());
        let noting = async {
            if let Some(notes) = &self.notes {
                notes.keep(self.ingesters.store()).await;
            }
        };
        futures::join!(
            self.ingesters.run(),
            futures::future::join_all(keepers),
            self.rejoin(),
            self.measure(),
            self.watch_clock(),
            noting
        );
    }

    /// Tells, until dropped, whether the ingester of this process has all it holds in object storage, as far as that matters:
    /// once its group takes nothing new.
    pub async fn tell_shipped(&self, registration: &Registration, is_shipped: impl Fn() -> bool) {
        loop {
            let view = self.ingesters.view();
            let group = registration.group().and_then(|group| view.group(group));
            let takes_nothing = group.is_some_and(|group| group.state == GroupState::ReadOnly);
            registration.set_shipped(takes_nothing && is_shipped());
            self.clock.sleep(SHIPPED_EVERY).await;
        }
    }

    /// The ingester of this process goes for good: all it held is in object storage.
    pub fn leave_for_good(&self) {
        self.leaves_for_good.store(true, Ordering::Relaxed);
    }

    /// Whether an ingester that stops will not come back: because somebody said so, or because its group was removed. A group
    /// that may be removed is, when the first of its members goes for good.
    fn gives_up_its_place(&self, registration: &Registration) -> bool {
        let Some(group) = registration.group() else { return false };
        let (view, state) = (self.ingesters.view(), self.ingesters.store().get());
        let removed = view.group(group).is_some_and(|group| group.state == GroupState::Removed);
        let for_good = self.leaves_for_good.load(Ordering::Relaxed);
        let now = keeper::now(self.clock.as_ref());
        if for_good && let Ok(Some(change)) = remove_group(&state, &view, group, self.lookback, now) {
            self.ingesters.store().update(&change);
            tracing::info!(%group, "the replica group is removed: all it held is in object storage");
        }
        for_good || removed
    }

    /// Leaves the rings and the cluster, when nothing is served any more.
    pub async fn leave(&self) {
        let registrations = self.registrations.lock().clone();
        let mut gone = false;
        for registration in registrations {
            if registration.role() != RingRole::Ingester {
                registration.leave();
            } else if self.gives_up_its_place(&registration) {
                registration.leave();
                gone = true;
            }
        }
        if gone {
            self.refresh();
            self.let_it_spread().await;
        }
        self.stop_gossip().await;
    }
}
