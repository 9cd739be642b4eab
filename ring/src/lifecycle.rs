//! The life of an instance in its ring, as a state machine: what it has to tell the others, given what it hears and when.
//!
//! The owner calls [`Lifecycle::tick`] after every change of the ring's state and every second or so, and merges the change
//! it gets into the store.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::group::GroupRules;
use crate::instance::{Instance, InstanceId, InstanceState, InvalidInstance};
use crate::observer::{Now, Observer};
use crate::replica_groups::{GroupState, GroupView, ReplicaGroups};
use crate::ring::GroupId;
use crate::state::{GroupMode, Heartbeat, Registration, RingState, Version};
use crate::value::Value;

/// What an instance should know about its own registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LifecycleEvent {
    /// Somebody forgot it; it has registered again.
    Forgotten,
    /// Another process registered under the same id after this one had started, and this one has registered again. Once
    /// may be old news; a few times within minutes are two processes with one id, of which one has to go.
    Contested {
        /// Where the other one is reached.
        grpc_address: String,
        /// How often that has happened since the start.
        times: u32,
    },
    /// Its group was seen complete for the first time.
    GroupFormed(GroupId),
}

/// What came of a tick.
#[derive(Debug, Default)]
pub struct Step {
    /// To be merged into the store.
    pub change: Option<RingState>,
    /// To be logged and counted.
    pub events: Vec<LifecycleEvent>,
}

/// A change of state that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance does not go from {from} to {to}")]
pub struct InvalidTransition {
    /// The present state.
    pub from: InstanceState,
    /// The one that was asked for.
    pub to: InstanceState,
}

/// When a group was complete for the first time.
struct Formed {
    at_ms: i64,
    /// Whether nobody has known before.
    is_new: bool,
}

/// What is stored about it.
fn formed_before(state: &RingState, group: GroupId) -> Option<i64> {
    let register = state.group(group).filter(|register| register.mode != GroupMode::Removed);
    register.map(|register| register.since_ms)
}

/// An instance's own registration.
#[derive(Debug)]
pub struct Lifecycle {
    own: Registration,
    heartbeat: u64,
    heartbeat_interval: Duration,
    next_heartbeat: Duration,
    rules: Option<GroupRules>,
    contested: u32,
}

impl Lifecycle {
    /// Registers `instance`, which has a random `process` number, given what is `known` of the ring: the more, the fewer
    /// corrections later. A former registration under the same id lends its times. `rules` are those of replica groups,
    /// for roles that have them. Returns the machine and the change to be merged.
    pub fn register(
        mut instance: Instance,
        known: &RingState,
        rules: Option<GroupRules>,
        heartbeat_interval: Duration,
        now: Now,
    ) -> Result<(Self, RingState), InvalidInstance> {
        instance.validate()?;
        instance.registered_at_ms = now.wall_ms;
        let former = known.registration(&instance.id).map(|former| &former.instance);
        if let Some(former) = former.filter(|former| former.state != InstanceState::Left) {
            instance.registered_at_ms = former.registered_at_ms;
            // In another group it holds nothing yet.
            if former.membership == instance.membership {
                instance.group_formed_at_ms = former.group_formed_at_ms;
            }
        }
        if let (None, Some(place), Some(_)) = (instance.group_formed_at_ms, instance.membership, rules) {
            instance.group_formed_at_ms = formed_before(known, place.group);
        }
        let version = Version { incarnation: known.incarnation(&instance.id) + 1, counter: 1 };
        let next_heartbeat = now.monotonic + heartbeat_interval;
        let own = Registration { version, instance };
        let machine = Self { own, heartbeat: 1, heartbeat_interval, next_heartbeat, rules, contested: 0 };
        let change = machine.whole();
        Ok((machine, change))
    }

    /// What it says about itself.
    pub fn instance(&self) -> &Instance {
        &self.own.instance
    }

    /// Which start of the instance this is, as far as the ring knows.
    pub fn incarnation(&self) -> u64 {
        self.own.version.incarnation
    }

    fn whole(&self) -> RingState {
        RingState::of_instance(self.own.clone(), self.heartbeat)
    }

    fn changed(&mut self) -> RingState {
        self.own.version.counter += 1;
        self.whole()
    }

    /// Looks at the state of the ring: defends the registration, notices that the group is complete, beats when it is time.
    pub fn tick(&mut self, state: &RingState, now: Now) -> Step {
        let mut step = Step::default();
        if self.own.instance.state == InstanceState::Left {
            return step;
        }
        self.defend(state, &mut step);
        if let Some(formed) = self.group_formed(state, now) {
            self.own.instance.group_formed_at_ms = Some(formed.at_ms);
            step.events.extend(self.own.instance.membership.map(|place| LifecycleEvent::GroupFormed(place.group)));
            step.change = Some(self.changed());
            if let Some(place) = self.own.instance.membership.filter(|_| formed.is_new)
                && let Some(register) = state.form_group(place.group, formed.at_ms)
            {
                step.change.get_or_insert_default().merge(&register);
            }
        }
        if let Some(register) = self.unregistered_group(state) {
            step.change.get_or_insert_default().merge(&register);
        }
        if now.monotonic >= self.next_heartbeat {
            self.next_heartbeat = now.monotonic + self.heartbeat_interval;
            self.heartbeat += 1;
            let incarnation = self.own.version.incarnation;
            let heartbeat = Heartbeat { incarnation, count: self.heartbeat, at_ms: now.wall_ms };
            let beat = RingState::of_heartbeat(self.own.instance.id.clone(), heartbeat);
            step.change.get_or_insert_default().merge(&beat);
        }
        step
    }

    /// Registers again under a higher incarnation when the ring knows of anything else that is as new, or says nothing.
    fn defend(&mut self, state: &RingState, step: &mut Step) {
        let id = &self.own.instance.id;
        let known = state.registration(id);
        let highest = state.incarnation(id);
        let own = self.own.version.incarnation;
        let forgotten = state.tombstone(id).is_some_and(|tombstone| tombstone.incarnation >= own);
        let foreign = known.filter(|known| known.instance.process != self.own.instance.process);
        if highest < own || (highest == own && known.is_none() && !forgotten) {
            // A store that has lost what it was told.
            step.change = Some(self.whole());
            return;
        }
        if highest == own && foreign.is_none() && known.is_some() {
            return;
        }
        match foreign {
            Some(other) => {
                self.contested += 1;
                let grpc_address = other.instance.grpc_address.clone();
                step.events.push(LifecycleEvent::Contested { grpc_address, times: self.contested });
            }
            None => step.events.push(LifecycleEvent::Forgotten),
        }
        self.own.version = Version { incarnation: highest + 1, counter: 0 };
        step.change = Some(self.changed());
    }

    /// When its group was complete for the first time, if this instance has not said so and can.
    fn group_formed(&self, state: &RingState, now: Now) -> Option<Formed> {
        let (own, rules) = (&self.own.instance, self.rules.as_ref()?);
        let group = own.membership?.group;
        if own.group_formed_at_ms.is_some() {
            return None;
        }
        let present = state.registrations().map(|entry| &entry.instance);
        let present = present.filter(|instance| instance.state != InstanceState::Left);
        // Those that could answer.
        let mut places = BTreeSet::new();
        let mut formed_at_ms = formed_before(state, group);
        for (instance, place) in present.filter_map(|instance| Some((instance, instance.membership?))) {
            if place.group == group {
                formed_at_ms = formed_at_ms.max(instance.group_formed_at_ms);
                if !instance.is_whole() {
                    continue;
                }
                places.insert(if rules.zone_aware { (&*instance.zone, 0) } else { ("", place.index) });
            }
        }
        let complete = places.len() >= usize::from(rules.replication_factor.max(1));
        let known = formed_at_ms.map(|at_ms| Formed { at_ms, is_new: false });
        known.or(complete.then_some(Formed { at_ms: now.wall_ms, is_new: true }))
    }

    /// Registers the group of one that knows it to be formed when nobody else has: its builds knew of no such registers, or the
    /// state lost it.
    fn unregistered_group(&self, state: &RingState) -> Option<RingState> {
        let own = &self.own.instance;
        let (place, formed_at_ms) = (own.membership?, own.group_formed_at_ms?);
        self.rules?;
        if state.group(place.group).is_some() { None } else { state.form_group(place.group, formed_at_ms) }
    }

    /// Goes to another state; the change to be merged.
    ///
    /// Pending → Joining → Active → Leaving and back to Active; from anywhere to Leaving. For Left see
    /// [`Lifecycle::unregister`].
    pub fn set_state(&mut self, to: InstanceState) -> Result<RingState, InvalidTransition> {
        use InstanceState::{Active, Joining, Leaving, Left, Pending};
        let from = self.own.instance.state;
        match (from, to) {
            (Pending, Joining | Active)
            | (Joining, Active)
            | (Pending | Joining | Active, Leaving)
            | (Leaving, Active) => {
                self.own.instance.state = to;
                Ok(self.changed())
            }
            (Pending | Joining | Active | Leaving | Left, _) => Err(InvalidTransition { from, to }),
        }
    }

    /// Says whether it counts for reads; the change to be merged, if any.
    pub fn set_repaired(&mut self, repaired: bool) -> Option<RingState> {
        let before = std::mem::replace(&mut self.own.instance.repaired, repaired);
        (before != repaired).then(|| self.changed())
    }

    /// Says whether all it holds is in object storage; the change to be merged, if any.
    pub fn set_shipped(&mut self, shipped: bool) -> Option<RingState> {
        let before = std::mem::replace(&mut self.own.instance.shipped, shipped);
        (before != shipped).then(|| self.changed())
    }

    /// Leaves the ring for good; the change to be merged. Who is to come back under its id (a restart, an ingester in
    /// general) stays registered as Leaving instead, and keeps its place. A group whose members have all left is there still,
    /// and cannot be read, until it is removed.
    pub fn unregister(&mut self) -> RingState {
        self.own.instance.state = InstanceState::Left;
        self.changed()
    }
}

/// When instances are forgotten without anybody asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AutoForget {
    /// Without a heartbeat; `None` keeps the dead until somebody forgets them, as it should be where they own data.
    pub unhealthy_after: Option<Duration>,
    /// After they have left, which is how long that is shown.
    pub left_after: Duration,
}

impl AutoForget {
    /// The change that forgets who is due; `None` when nobody is.
    ///
    /// As long as more than half of a ring looks dead, nobody dead is due: then it is likely this process that is cut off.
    pub fn due(&self, state: &RingState, observer: &Observer, now: Now) -> Option<RingState> {
        let age = |id: &InstanceId| observer.heartbeat_age(id, now.monotonic).unwrap_or_default();
        let present = || state.registrations().filter(|entry| entry.instance.state != InstanceState::Left);
        let dead: Vec<_> = self.unhealthy_after.map_or_else(Vec::new, |after| {
            present().map(|entry| &entry.instance.id).filter(|id| age(id) > after).collect()
        });
        let cut_off = dead.len() * 2 > present().count();
        let left = state.registrations().filter(|entry| entry.instance.state == InstanceState::Left);
        let left = left.map(|entry| &entry.instance.id).filter(|id| age(id) > self.left_after);
        let mut change: Option<RingState> = None;
        for id in left.chain(dead.into_iter().filter(|_| !cut_off)) {
            if let Some(forgotten) = state.forget(id, now.wall_ms) {
                change.get_or_insert_default().merge(&forgotten);
            }
        }
        change
    }
}

/// Why a group cannot be made read-only, or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScaleInError {
    /// Nobody has that number.
    #[error("there is no replica group {0}")]
    NoSuchGroup(GroupId),
    /// It takes nothing anyway.
    #[error("replica group {group} is {state}: it holds nothing")]
    Empty {
        /// The group.
        group: GroupId,
        /// Pending or removed.
        state: GroupState,
    },
    /// Writes would have nowhere to go.
    #[error("replica group {0} is the only one that takes series")]
    LastGroup(GroupId),
    /// What it holds may be needed.
    #[error("replica group {group} may not be removed: {progress}")]
    Needed {
        /// The group.
        group: GroupId,
        /// How far it is.
        progress: ScaleIn,
    },
}

/// How far a group is on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScaleIn {
    /// Not on its way: it takes series, or would.
    NotPrepared,
    /// Read-only, and readers still need it for so long.
    Draining(Duration),
    /// Readers need nothing of it but what did not get to object storage: those that may have such.
    Unshipped(Vec<InstanceId>),
    /// All of it is in object storage, for long enough. It may be removed.
    Removable,
    /// Nobody of it is registered: it can be given up.
    Deserted,
    /// It was removed, or was never complete: its members may go.
    Done,
}

impl fmt::Display for ScaleIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPrepared => write!(f, "it takes series"),
            Self::Draining(left) => write!(f, "reads need it for another {} s", left.as_secs()),
            Self::Unshipped(members) => {
                let members: Vec<&str> = members.iter().map(InstanceId::as_str).collect();
                write!(f, "what these hold is not all in object storage, as far as is known: {}", members.join(", "))
            }
            Self::Removable => write!(f, "what it holds is in object storage"),
            Self::Deserted => write!(f, "none of its members is registered; what it holds is lost if it is given up"),
            Self::Done => write!(f, "nothing is read from it"),
        }
    }
}

/// The change that makes a group read-only, to be removed later; `None` when it is so already.
pub fn prepare_scale_in(
    state: &RingState,
    groups: &ReplicaGroups,
    group: GroupId,
    now: Now,
) -> Result<Option<RingState>, ScaleInError> {
    let view = groups.group(group).ok_or(ScaleInError::NoSuchGroup(group))?;
    if !view.may_hold_series() {
        return Err(ScaleInError::Empty { group, state: view.state.clone() });
    }
    let takes = |other: &&GroupView| other.state == GroupState::Active && !other.members.is_empty();
    let others = groups.groups().iter().filter(|other| other.id != group).filter(takes);
    if view.state == GroupState::Active && others.count() == 0 {
        return Err(ScaleInError::LastGroup(group));
    }
    Ok(state.set_group_mode(group, GroupMode::ReadOnly, now.wall_ms))
}

/// How far a group is on its way out, when reads look back `lookback`, which reaches as much further as clocks may be apart.
pub fn scale_in_progress(view: &GroupView, lookback: Duration) -> ScaleIn {
    if !view.may_hold_series() {
        return ScaleIn::Done;
    }
    if view.members.is_empty() {
        return ScaleIn::Deserted;
    }
    let Some(since) = view.read_only_for else { return ScaleIn::NotPrepared };
    if let Some(left) = lookback.checked_sub(since) {
        return ScaleIn::Draining(left);
    }
    // Each sample that was acknowledged is on one member of any majority; one that is not repaired may lack it.
    let (shipped, others): (Vec<_>, Vec<_>) =
        view.members.iter().partition(|member| member.instance.shipped && member.instance.repaired);
    if shipped.len() >= view.quorum() {
        return ScaleIn::Removable;
    }
    ScaleIn::Unshipped(others.into_iter().map(|member| member.id().clone()).collect())
}

/// The change that removes a group, which nothing is read from any more then; `None` when that is so already. Refused while
/// something it holds may be needed. One that nobody is registered of is given up: then its series are lost if they are not
/// in object storage.
pub fn remove_group(
    state: &RingState,
    groups: &ReplicaGroups,
    group: GroupId,
    lookback: Duration,
    now: Now,
) -> Result<Option<RingState>, ScaleInError> {
    let view = groups.group(group).ok_or(ScaleInError::NoSuchGroup(group))?;
    match scale_in_progress(view, lookback) {
        ScaleIn::Removable | ScaleIn::Deserted => Ok(state.set_group_mode(group, GroupMode::Removed, now.wall_ms)),
        ScaleIn::Done if view.state == GroupState::Removed => Ok(None),
        ScaleIn::Done => Err(ScaleInError::Empty { group, state: view.state.clone() }),
        progress => Err(ScaleInError::Needed { group, progress }),
    }
}

#[cfg(test)]
mod tests;
