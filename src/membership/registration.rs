//! This process' own entry in one ring.

use std::sync::Arc;

use parking_lot::Mutex;
use skald_ring::{GroupId, Instance, InstanceId, InstanceState, Lifecycle, LifecycleEvent, Now, RingState, Store};

use super::RingRole;
use super::settings::RingSettings;

/// This process' own entry in one ring. Clones are the same.
#[derive(Clone)]
pub struct Registration {
    role: RingRole,
    store: Arc<dyn Store<RingState>>,
    lifecycle: Arc<Mutex<Lifecycle>>,
}

impl Registration {
    /// Registers `instance`, as Joining.
    pub(super) fn new(
        role: RingRole,
        instance: Instance,
        store: Arc<dyn Store<RingState>>,
        settings: &RingSettings,
        rules: Option<skald_ring::GroupRules>,
        now: Now,
    ) -> Result<Self, String> {
        let known = store.get();
        let (mut lifecycle, change) = Lifecycle::register(instance, &known, rules, settings.heartbeat_period, now)
            .map_err(|error| format!("cannot register in the {role} ring: {error}"))?;
        store.update(&change);
        if let Ok(change) = lifecycle.set_state(InstanceState::Joining) {
            store.update(&change);
        }
        Ok(Self { role, store, lifecycle: Arc::new(Mutex::new(lifecycle)) })
    }

    /// Its name in the ring.
    pub fn id(&self) -> InstanceId {
        self.lifecycle.lock().instance().id.clone()
    }

    /// Goes to another state, if that makes sense from where it is.
    pub fn set_state(&self, state: InstanceState) {
        // The lock is held over the update: changes reach the store in the order of their versions.
        let mut lifecycle = self.lifecycle.lock();
        match lifecycle.set_state(state) {
            Ok(change) => {
                self.store.update(&change);
                tracing::info!(ring = %self.role, %state, "state in the ring");
            }
            Err(error) => tracing::debug!(ring = %self.role, %error, "state in the ring stays"),
        }
    }

    /// Says whether it has all its group has acknowledged, and so counts for reads; whether that is new.
    pub fn set_repaired(&self, repaired: bool) -> bool {
        let mut lifecycle = self.lifecycle.lock();
        let change = lifecycle.set_repaired(repaired);
        if let Some(change) = &change {
            self.store.update(change);
            tracing::info!(ring = %self.role, repaired, "counts for reads");
        }
        change.is_some()
    }

    /// Says whether all it holds is in object storage.
    pub(super) fn set_shipped(&self, shipped: bool) {
        let mut lifecycle = self.lifecycle.lock();
        if let Some(change) = lifecycle.set_shipped(shipped) {
            self.store.update(&change);
            tracing::info!(ring = %self.role, shipped, "whether all it holds is in object storage");
        }
    }

    /// The replica group it belongs to.
    pub(super) fn group(&self) -> Option<GroupId> {
        self.lifecycle.lock().instance().membership.map(|place| place.group)
    }

    /// Beats, and defends the entry.
    pub(super) fn tick(&self, state: &RingState, now: Now) {
        let mut lifecycle = self.lifecycle.lock();
        let step = lifecycle.tick(state, now);
        if let Some(change) = &step.change {
            self.store.update(change);
        }
        drop(lifecycle);
        for event in step.events {
            match event {
                LifecycleEvent::Forgotten => {
                    tracing::warn!(ring = %self.role, "this instance was forgotten; it has registered again");
                }
                LifecycleEvent::Contested { grpc_address, times } => tracing::error!(
                    ring = %self.role, other = grpc_address, times,
                    "another process registered under the id of this one; if this goes on, two have one `instance.id`"
                ),
                LifecycleEvent::GroupFormed(group) => {
                    tracing::info!(ring = %self.role, %group, "the replica group is complete");
                }
            }
        }
    }

    /// Leaves the ring for good. Whoever is to come back under its place stays registered as one that is away.
    pub(super) fn leave(&self) {
        let change = self.lifecycle.lock().unregister();
        self.store.update(&change);
    }

    /// Whose ring it is.
    pub(super) fn role(&self) -> RingRole {
        self.role
    }
}
