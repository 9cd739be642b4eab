//! One ring as this process sees it: listens to its state, judges who lives, publishes a view.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::{Either, select};
use parking_lot::Mutex;
use skald_ring::{
    AutoForget, GroupRules, Instance, InstanceId, InstanceRing, InstanceRingRules, Member, Now, Observer,
    ReplicaGroups, RingState, Store,
};

use super::RingRole;
use super::registration::Registration;
use super::settings::RingSettings;
use crate::runtime::Clock;

/// How often a ring is looked at when nobody says anything: the dead are told by their silence.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Least time between two looks, so that a burst of gossip costs one.
const LEAST_PAUSE: Duration = Duration::from_millis(20);

/// What is made of a ring's state: immutable, shared by all who read it.
pub trait View: Sized + Send + Sync + 'static {
    /// What makes it, besides the state.
    type Rules: Clone + Send + Sync + 'static;
    /// The view of a state; `previous` makes it quicker.
    fn build(
        state: &RingState,
        rules: &Self::Rules,
        observer: &Observer,
        timeout: Duration,
        now: Now,
        previous: Option<&Self>,
    ) -> Self;
    /// Everyone in it.
    fn members(&self) -> Vec<Arc<Member>>;
}

impl View for ReplicaGroups {
    type Rules = GroupRules;

    fn build(
        state: &RingState,
        rules: &GroupRules,
        observer: &Observer,
        timeout: Duration,
        now: Now,
        previous: Option<&Self>,
    ) -> Self {
        Self::build(state, rules, observer, timeout, now, previous)
    }

    fn members(&self) -> Vec<Arc<Member>> {
        self.groups().iter().flat_map(|group| group.members.iter().cloned()).collect()
    }
}

impl View for InstanceRing {
    type Rules = InstanceRingRules;

    fn build(
        state: &RingState,
        rules: &InstanceRingRules,
        observer: &Observer,
        timeout: Duration,
        now: Now,
        previous: Option<&Self>,
    ) -> Self {
        Self::build(state, *rules, observer, timeout, now, previous)
    }

    fn members(&self) -> Vec<Arc<Member>> {
        InstanceRing::members(self).to_vec()
    }
}

type Listener<V> = Box<dyn Fn(&Arc<V>) + Send>;

/// One ring as this process sees it.
pub struct Keeper<V: View> {
    role: RingRole,
    store: Arc<dyn Store<RingState>>,
    rules: V::Rules,
    settings: RingSettings,
    forget: AutoForget,
    clock: Arc<dyn Clock>,
    registration: OnceLock<Registration>,
    /// Held for the length of a step: views are published in the order in which they were made.
    steps: Mutex<Steps<V>>,
    view: ArcSwap<V>,
}

struct Steps<V> {
    observer: Observer,
    listeners: Vec<Listener<V>>,
}

/// Both clocks.
pub(super) fn now(clock: &dyn Clock) -> Now {
    Now { monotonic: clock.monotonic(), wall_ms: clock.now_ms() }
}

impl<V: View> Keeper<V> {
    pub(super) fn new(
        role: RingRole,
        store: Arc<dyn Store<RingState>>,
        rules: V::Rules,
        settings: &RingSettings,
        forget: AutoForget,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let observer = Observer::new(settings.heartbeat_timeout);
        let timeout = settings.heartbeat_timeout;
        let view = V::build(&store.get(), &rules, &observer, timeout, now(clock.as_ref()), None);
        Self {
            role,
            store,
            rules,
            settings: settings.clone(),
            forget,
            clock: clock.clone(),
            registration: OnceLock::new(),
            steps: Mutex::new(Steps { observer, listeners: Vec::new() }),
            view: ArcSwap::from_pointee(view),
        }
    }

    /// Whose ring it is.
    pub fn role(&self) -> RingRole {
        self.role
    }

    /// What makes its views.
    pub(super) fn rules(&self) -> &V::Rules {
        &self.rules
    }

    /// The present view.
    pub fn view(&self) -> Arc<V> {
        self.view.load_full()
    }

    /// The state behind it, for pages.
    pub(super) fn store(&self) -> &Arc<dyn Store<RingState>> {
        &self.store
    }

    /// Calls `listener` with the present view and with every later one.
    pub fn listen(&self, listener: impl Fn(&Arc<V>) + Send + 'static) {
        let mut steps = self.steps.lock();
        listener(&self.view.load());
        steps.listeners.push(Box::new(listener));
    }

    /// Registers this process in the ring.
    pub(super) fn register(&self, instance: Instance, rules: Option<GroupRules>) -> Result<Registration, String> {
        let now = now(self.clock.as_ref());
        let registration = Registration::new(self.role, instance, self.store.clone(), &self.settings, rules, now)?;
        Ok(self.registration.get_or_init(|| registration).clone())
    }

    /// How far others' clocks are ahead of the own one.
    pub(super) fn clock_offsets_ms(&self, own: &InstanceId, now: Now) -> BTreeMap<InstanceId, i64> {
        let steps = self.steps.lock();
        let offsets = steps.observer.clock_offsets_ms(own, skald_ring::clock::RECENT, now);
        offsets.map(|(id, ms)| (id.clone(), ms)).collect()
    }

    /// Looks at the ring: beats, forgets who is due, publishes what has become of it.
    pub fn step(&self) {
        let mut steps = self.steps.lock();
        let now = now(self.clock.as_ref());
        if let Some(registration) = self.registration.get() {
            registration.tick(&self.store.get(), now);
        }
        let mut state = self.store.get();
        steps.observer.observe(&state, now.monotonic);
        if let Some(change) = self.forget.due(&state, &steps.observer, now) {
            tracing::info!(ring = %self.role, "instances that have left or died are forgotten");
            self.store.update(&change);
            state = self.store.get();
            steps.observer.observe(&state, now.monotonic);
        }
        let timeout = self.settings.heartbeat_timeout;
        let previous = self.view.load();
        let view = Arc::new(V::build(&state, &self.rules, &steps.observer, timeout, now, Some(&previous)));
        self.view.store(view.clone());
        for listener in &steps.listeners {
            listener(&view);
        }
    }

    /// Looks at the ring after each change and every second, until dropped.
    pub(super) async fn run(&self) {
        let mut changes = self.store.watch();
        loop {
            changes.borrow_and_update();
            self.step();
            self.clock.sleep(LEAST_PAUSE).await;
            let changed = std::pin::pin!(changes.changed());
            // The sender lives as long as the store.
            if let Either::Left((Err(_), _)) = select(changed, self.clock.sleep(LOOK_EVERY)).await {
                self.clock.sleep(LOOK_EVERY).await;
            }
        }
    }
}
