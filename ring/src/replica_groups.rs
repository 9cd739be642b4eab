//! The replica groups as one process sees them: members, states, quorums, and where tenants' series go.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::group::GroupRules;
use crate::instance::InstanceId;
use crate::observer::{Member, Now, Observer, members};
use crate::ring::{GroupId, Ring};
use crate::state::{GroupMode, GroupRegister, RingState};
use crate::subring::{Positions, Subring, rank};

/// Why a group takes no series yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooFewMembers {
    /// Members that serve, of distinct zones where zones count.
    pub serving: usize,
    /// Members it needs.
    pub needed: usize,
    /// Zones (or `member <index>`, without zones) of those.
    pub present: Vec<String>,
}

impl fmt::Display for TooFewMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} members serve: {}", self.serving, self.needed, self.present.join(", "))
    }
}

/// What a group is good for. Derived from its members, but for the mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupState {
    /// Never so far have all its members served at one time: it holds nothing and gets nothing.
    Pending(TooFewMembers),
    /// It takes series. Whether it has a quorum just now is another question.
    Active,
    /// It answers and takes nothing new.
    ReadOnly,
    /// It neither takes nor answers anything: what it held is in object storage, or given up.
    Removed,
}

impl fmt::Display for GroupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending(_) => "PENDING",
            Self::Active => "ACTIVE",
            Self::ReadOnly => "READONLY",
            Self::Removed => "REMOVED",
        })
    }
}

/// Ingesters that hold the same series, one in each zone.
#[derive(Debug, Clone)]
pub struct GroupView {
    /// Its number.
    pub id: GroupId,
    /// What it is good for.
    pub state: GroupState,
    /// Its members, at most RF, by zone and index. None while nobody of a group that was complete once has registered since
    /// the cluster was stopped whole.
    pub members: Vec<Arc<Member>>,
    /// What is stored about it.
    pub register: Option<GroupRegister>,
    /// Since it began to take series, as far as is known.
    pub writable_for: Duration,
    /// Since it became read-only, as far as is known; `None` when it is not.
    pub read_only_for: Option<Duration>,
    quorum: usize,
}

impl GroupView {
    /// Whether a majority takes writes.
    pub fn has_write_quorum(&self) -> bool {
        self.members.iter().filter(|member| member.takes_writes()).count() >= self.quorum
    }

    /// Whether a majority has what was acknowledged and answers.
    pub fn has_read_quorum(&self) -> bool {
        self.members.iter().filter(|member| member.counts_for_reads()).count() >= self.quorum
    }

    /// How many members have to agree.
    pub fn quorum(&self) -> usize {
        self.quorum
    }

    /// Whether it may hold series that are needed: it was complete once, and was not removed.
    pub fn may_hold_series(&self) -> bool {
        matches!(self.state, GroupState::Active | GroupState::ReadOnly)
    }
}

/// Instances that claim what is taken: two of a group in one zone, or more than RF in a group. All processes let the same
/// one hold it, the one that registered first; the others get nothing until somebody removes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The group in question.
    pub group: GroupId,
    /// What is claimed twice.
    pub claim: Claim,
    /// Who holds it; of several members beyond RF, the last one that does.
    pub holder: InstanceId,
    /// Who does not.
    pub rejected: InstanceId,
}

/// What two instances of a group cannot both have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The place of a zone.
    Zone(String),
    /// The place of an index, without zones.
    Index(u16),
    /// A place at all.
    Membership {
        /// Members a group has.
        replication_factor: u16,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, holder, rejected, .. } = self;
        match &self.claim {
            Claim::Zone(zone) if zone.is_empty() => {
                write!(f, "{rejected} and {holder} are both in group {group} without a zone; {holder} stays")
            }
            Claim::Zone(zone) => {
                write!(f, "{rejected} and {holder} are both in group {group} and zone {zone}; {holder} stays")
            }
            Claim::Index(index) => {
                write!(f, "{rejected} and {holder} are both member {index} of group {group}; {holder} stays")
            }
            Claim::Membership { replication_factor } => {
                write!(f, "{rejected} is one more than the {replication_factor} members of group {group}")
            }
        }
    }
}

/// An immutable view of all replica groups. Two processes that have heard the same see the same groups, states and
/// conflicts; health is each one's own.
#[derive(Debug, Clone)]
pub struct ReplicaGroups {
    groups: Vec<GroupView>,
    conflicts: Vec<Conflict>,
    /// Instances without a group, which is a fault of their configuration.
    homeless: Vec<InstanceId>,
    /// Of the groups that take series; `None` when none does.
    ring: Option<Ring>,
}

/// What a member's place in a group is told by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Zone(String),
    Index(u16),
}

impl Slot {
    fn of(member: &Member, rules: &GroupRules) -> Self {
        match member.instance.membership {
            Some(membership) if !rules.zone_aware => Self::Index(membership.index),
            _ => Self::Zone(member.instance.zone.clone()),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Zone(zone) if zone.is_empty() => "no zone".into(),
            Self::Zone(zone) => zone.clone(),
            Self::Index(index) => format!("member {index}"),
        }
    }

    fn claim(&self) -> Claim {
        match self {
            Self::Zone(zone) => Claim::Zone(zone.clone()),
            Self::Index(index) => Claim::Index(*index),
        }
    }
}

impl ReplicaGroups {
    /// The groups of a state. An instance without a heartbeat for `heartbeat_timeout` counts for no quorum. With the
    /// `previous` view it is quicker, as long as the same groups take series.
    pub fn build(
        state: &RingState,
        rules: &GroupRules,
        observer: &Observer,
        heartbeat_timeout: Duration,
        now: Now,
        previous: Option<&Self>,
    ) -> Self {
        let mut claimants: BTreeMap<GroupId, Vec<Arc<Member>>> = BTreeMap::new();
        let mut homeless = Vec::new();
        for member in members(state, observer, heartbeat_timeout, now) {
            match member.instance.membership {
                Some(membership) => claimants.entry(membership.group).or_default().push(member),
                None => homeless.push(member.id().clone()),
            }
        }
        // What was complete once may hold series, whoever of it has registered so far.
        for (id, _) in state.groups().filter(|(_, register)| register.mode != GroupMode::Removed) {
            claimants.entry(id).or_default();
        }
        let mut conflicts = Vec::new();
        let mut groups = Vec::new();
        for (id, claimants) in claimants {
            let members = settle(id, claimants, rules, &mut conflicts);
            groups.push(view(id, members, state, rules, observer, now));
        }
        let writable = groups.iter().filter(|group| group.state == GroupState::Active).map(|group| group.id);
        let is_settled = |group: &GroupId| observer.is_settled(*group, rules.spread, now.monotonic);
        let any_settled = writable.clone().any(|group| is_settled(&group));
        let writable = writable.filter(|group| !any_settled || is_settled(group));
        // The only other error is a number too high, which no description has.
        let ring = Ring::like(previous.and_then(|previous| previous.ring.as_ref()), writable).ok();
        Self { groups, conflicts, homeless, ring }
    }

    /// All groups that have a member, or were complete once and not removed, by number.
    pub fn groups(&self) -> &[GroupView] {
        &self.groups
    }

    /// One group.
    pub fn group(&self, id: GroupId) -> Option<&GroupView> {
        let position = self.groups.binary_search_by_key(&id, |group| group.id).ok()?;
        Some(&self.groups[position])
    }

    /// Instances that claim what is taken.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }

    /// Instances that say nothing about their group.
    pub fn homeless(&self) -> &[InstanceId] {
        &self.homeless
    }

    /// The ring of the groups that take series; `None` when none does. One that has just become writable comes into it once
    /// everybody knows of it.
    pub fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    /// The share of all tokens that a group holds, 0 to 1; nothing for one that takes no series.
    pub fn owned_share(&self, group: GroupId) -> f64 {
        self.ring.as_ref().map_or(0.0, |ring| ring.owned_share(group))
    }

    /// The groups a tenant's new series go to: `shard_size` of those that take series, all without one. `None` when no
    /// group takes series.
    pub fn write_subring(&self, tenant: &str, shard_size: Option<usize>) -> Option<Subring> {
        let ring = self.ring.as_ref()?;
        Some(match shard_size {
            None => Subring::whole(ring),
            Some(size) => Subring::shard(ring, tenant, size.max(1)),
        })
    }

    /// The positions of a subring whose groups have a write quorum: what of the others comes goes to these
    /// ([`Subring::position_among`]).
    pub fn with_write_quorum(&self, subring: &Subring) -> Positions {
        let positions = subring.groups().iter().enumerate();
        let usable = positions.filter(|(_, id)| self.group(**id).is_some_and(GroupView::has_write_quorum));
        usable.map(|(position, _)| position).collect()
    }

    /// Every group that may hold series of a tenant that came within `lookback`, which reaches as much further as clocks may
    /// be apart: its shard of the `largest_shard_size` it
    /// had in that time, what had a place in it before a group was added, and what became read-only since. Shards also
    /// reach over what is out of quorum: that is the reader's to find out and to tell.
    pub fn read_groups(&self, tenant: &str, largest_shard_size: Option<usize>, lookback: Duration) -> Vec<&GroupView> {
        let mut ranked: Vec<_> = self.groups.iter().filter(|group| group.may_hold_series()).collect();
        let Some(size) = largest_shard_size else { return ranked };
        ranked.sort_unstable_by_key(|group| rank(tenant, group.id));
        let mut chosen = Vec::new();
        let mut counted = 0;
        for group in ranked {
            if counted == size.max(1) {
                break;
            }
            match group.read_only_for {
                Some(since) if since > lookback => continue,
                Some(_) => {}
                // One that was not there all the time took the place of another.
                None => counted += usize::from(group.writable_for > lookback),
            }
            chosen.push(group);
        }
        chosen.sort_unstable_by_key(|group| group.id);
        chosen
    }
}

/// Lets the first to register have each place; who is left, at most RF, by place.
fn settle(
    group: GroupId,
    mut claimants: Vec<Arc<Member>>,
    rules: &GroupRules,
    conflicts: &mut Vec<Conflict>,
) -> Vec<Arc<Member>> {
    claimants.sort_by(|a, b| (a.instance.registered_at_ms, a.id()).cmp(&(b.instance.registered_at_ms, b.id())));
    let mut places: BTreeMap<Slot, Arc<Member>> = BTreeMap::new();
    let mut last = None;
    for member in claimants {
        let slot = Slot::of(&member, rules);
        let taken = places.get(&slot).map(|holder| (slot.claim(), holder.id().clone()));
        let full = places.len() >= usize::from(rules.replication_factor.max(1));
        let membership = Claim::Membership { replication_factor: rules.replication_factor };
        match taken.or_else(|| Some((membership, last.clone().filter(|_| full)?))) {
            Some((claim, holder)) => {
                conflicts.push(Conflict { group, claim, holder, rejected: member.id().clone() });
            }
            None => {
                last = Some(member.id().clone());
                places.insert(slot, member);
            }
        }
    }
    places.into_values().collect()
}

fn view(
    id: GroupId,
    members: Vec<Arc<Member>>,
    state: &RingState,
    rules: &GroupRules,
    observer: &Observer,
    now: Now,
) -> GroupView {
    let register = state.group(id);
    let needed = usize::from(rules.replication_factor.max(1));
    // Who reads asks it from then on: it must be able to answer.
    let serving: Vec<_> = members.iter().filter(|member| member.instance.is_whole()).collect();
    let complete = serving.len() >= needed;
    let formed_at_ms = members.iter().filter_map(|member| member.instance.group_formed_at_ms).max();
    let mode = register.map(|register| register.mode);
    let known_at_ms = register.filter(|register| register.mode != GroupMode::Removed).map(|register| register.since_ms);
    let formed_at_ms = formed_at_ms.or(known_at_ms);
    let group_state = if mode == Some(GroupMode::Removed) {
        GroupState::Removed
    } else if !complete && formed_at_ms.is_none() {
        let present = serving.iter().map(|member| Slot::of(member, rules).describe()).collect();
        GroupState::Pending(TooFewMembers { serving: serving.len(), needed, present })
    } else if mode == Some(GroupMode::ReadOnly) {
        GroupState::ReadOnly
    } else {
        GroupState::Active
    };
    // One that is complete and whose members have not said so yet has been so for no time.
    let formed_at_ms = formed_at_ms.unwrap_or(now.wall_ms);
    let since_ms = register.map_or(formed_at_ms, |register| register.since_ms.max(formed_at_ms));
    let writable_for = observer.change_age(id, since_ms, now);
    let read_only_for = register.filter(|_| group_state == GroupState::ReadOnly);
    let read_only_for = read_only_for.map(|register| observer.change_age(id, register.since_ms, now));
    GroupView { id, state: group_state, members, register, writable_for, read_only_for, quorum: rules.quorum() }
}

#[cfg(test)]
mod tests;
