//! A tenant's limit of series compared with what all replica groups hold of it.
//!
//! Every second each ingester looks at its tenants. Where a quarter of a limit is used, one member of each group tells the
//! others what the group holds ([`counts`], gossiped). What a group may then hold is what everybody knows that it holds, and its part of
//! what is left:
//!
//! ```text
//! allowed(own) = told(own) + (limit - sum of told) / groups
//! ```
//!
//! `told(own)` is the least that the group told within the last two seconds: what all others have heard by now. As long as news
//! take no longer, the groups' allowances add up to the limit at most, however fast series come and wherever they go; when news
//! take longer, the overshoot is what came meanwhile. A group that nobody hears of has its part of the whole limit, so the first
//! quarter costs no message.
//!
//! **A series counts once.** Groups count what the ring places with them now. One that went to another group because its own had
//! no quorum is that group's own again once there is one, and so counts where its next sample goes; a group without a write
//! quorum counts nothing for that reason, and what moved away when a group was added does not count where it was.

mod counts;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skald_ring::{GroupId, GroupView, InstanceId, ReplicaGroups, Store, Subring, series_token};
use skald_tsdb::head::Head;

pub use counts::SeriesCounts;
use counts::{Count, RETENTION};

use super::Ingester;
use crate::limits::TenantLimits;
use crate::runtime::Clock;
use crate::tenant::TenantId;

/// How often tenants are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After this long everybody has heard what a group told. Longer forgives slower gossip, and refuses earlier: when the room left is
/// what comes in that time and a second.
const HEARD_AFTER: Duration = Duration::from_secs(2);
/// A small change is told this late; one that matters at once.
const TELL_SMALL_AFTER: Duration = Duration::from_secs(60);
/// What does not change is told again this often, long before it is forgotten.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(RETENTION.as_secs() / 4);
/// How often series are counted by where the ring places them.
const RECOUNT_EVERY: Duration = Duration::from_secs(600);
/// And how soon again when groups come, go or are away.
const RECOUNT_AFTER: Duration = Duration::from_secs(10);
/// Most tenants that an ingester tells of: those nearest to their limits.
const MOST_TOLD: usize = 5000;

/// The ring of ingesters as it is now.
pub type Groups = Arc<dyn Fn() -> Arc<ReplicaGroups> + Send + Sync>;

/// Compares tenants' series with their limits, over all groups.
pub struct SeriesLimits {
    store: Arc<dyn Store<SeriesCounts>>,
    groups: Groups,
    own: InstanceId,
    /// Tells this process' counts from those of other members.
    process: u64,
    clock: Arc<dyn Clock>,
    limits: TenantLimits,
    tenants: Mutex<HashMap<TenantId, Known>>,
}

/// What a tenant may hold here, and what is known of it everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowance {
    /// Most series of this ingester.
    pub(super) series: usize,
    /// Series of all groups, as far as they were told.
    pub(super) known: u64,
}

/// What is remembered of a tenant.
#[derive(Debug)]
struct Known {
    limit: usize,
    allowance: Allowance,
    heard: Heard,
    /// Series here that the ring places elsewhere, and when and among which groups that was counted.
    elsewhere: usize,
    counted: Option<(Duration, Vec<GroupId>)>,
    told_at: Option<Duration>,
}

/// What the own group told lately: the count before, then those that came since, with their times.
#[derive(Debug)]
struct Heard {
    before: u64,
    since: VecDeque<(Duration, u64)>,
}

impl Heard {
    /// Notices what was told last.
    fn notice(&mut self, told: u64, now: Duration) {
        if self.since.back().map_or(self.before, |(_, last)| *last) != told {
            self.since.push_back((now, told));
        }
        while let Some((at, told)) = self.since.front().copied()
            && now.saturating_sub(at) >= HEARD_AFTER
        {
            self.before = told;
            self.since.pop_front();
        }
    }

    /// The least of what somebody may think now.
    fn least(&self) -> u64 {
        self.since.iter().map(|(_, told)| *told).fold(self.before, u64::min)
    }
}

/// The own part of what is left of a limit; parts of all groups, by their `rank`, add up to it.
fn part(left: u64, rank: u64, groups: u64) -> u64 {
    left / groups + u64::from(rank < left % groups)
}

/// The groups a tenant's new series go to.
struct Placement {
    own: GroupId,
    /// Where this group stands among those that take writes now; none when it is not among them.
    rank: u64,
    groups: u64,
    usable: Vec<GroupId>,
    subring: Subring,
}

/// A look at one tenant.
pub(super) struct Look<'t> {
    pub(super) tenant: &'t TenantId,
    pub(super) head: &'t dyn Series,
}

/// A tenant's series in this ingester.
pub(super) trait Series {
    /// How many there are.
    fn count(&self) -> usize;
    /// How many have a hash that `wanted` says yes to.
    fn count_if(&self, wanted: &dyn Fn(u128) -> bool) -> usize;
}

impl Series for Head {
    fn count(&self) -> usize {
        self.series_count()
    }

    fn count_if(&self, wanted: &dyn Fn(u128) -> bool) -> usize {
        self.count_series(wanted)
    }
}

impl SeriesLimits {
    /// For the ingester `own`, which is one of `groups`; `process` is a number of this process.
    pub fn new(
        store: Arc<dyn Store<SeriesCounts>>,
        groups: Groups,
        own: InstanceId,
        process: u64,
        clock: Arc<dyn Clock>,
        limits: TenantLimits,
    ) -> Self {
        Self { store, groups, own, process, clock, limits, tenants: Mutex::default() }
    }

    /// Where a tenant's series go; `None` while this ingester is in no group.
    fn placement(&self, ring: &ReplicaGroups, tenant: &TenantId) -> Option<Placement> {
        let is_own = |group: &&GroupView| group.members.iter().any(|member| *member.id() == self.own);
        let own = ring.groups().iter().find(is_own)?.id;
        let shard_size = self.limits.of(tenant).distributor.ingestion_tenant_shard_size;
        let subring = ring.write_subring(tenant.as_str(), shard_size)?;
        let takes = |id: &GroupId| *id == own || ring.group(*id).is_some_and(GroupView::has_write_quorum);
        let usable: Vec<GroupId> = subring.groups().iter().copied().filter(takes).collect();
        let rank = usable.iter().position(|id| *id == own).unwrap_or(usable.len()) as u64;
        // One that is not in the tenant's shard gets something only while views of the ring differ.
        let groups = (usable.len() as u64).max(rank + 1);
        Some(Placement { own, rank, groups, usable, subring })
    }

    /// Whether this process tells for its group: the first of its members that take writes does.
    fn tells(&self, ring: &ReplicaGroups, own: GroupId) -> bool {
        let members = ring.group(own).into_iter().flat_map(|group| &group.members);
        let teller = members.filter(|member| member.takes_writes()).map(|member| member.id()).min();
        teller.is_none_or(|teller| *teller == self.own)
    }

    /// What a tenant may hold here under its present limit; `None` without one.
    pub(super) fn allowance(&self, tenant: &TenantId, head: &dyn Series) -> Option<Allowance> {
        let limit = self.limits.of(tenant).ingester.max_series_per_tenant?;
        let mut tenants = self.tenants.lock();
        if let Some(known) = tenants.get(tenant).filter(|known| known.limit == limit) {
            return Some(known.allowance);
        }
        let ring = (self.groups)();
        let now = self.clock.monotonic();
        self.look_at(&mut tenants, &self.store.get(), &ring, &Look { tenant, head }, limit, now);
        tenants.get(tenant).map(|known| known.allowance)
    }

    /// How many of a metric's series may be here, of `limit` altogether. Hashes spread them evenly over the groups, but not
    /// exactly: four standard deviations keep chance from refusing any before there are `limit`.
    pub(super) fn of_metric(&self, tenant: &TenantId, limit: usize) -> usize {
        let ring = (self.groups)();
        let Some(placement) = self.placement(&ring, tenant) else { return limit };
        let even = limit as f64 / placement.groups as f64;
        if placement.groups == 1 { limit } else { limit.min((even + 4.0 * even.sqrt()).ceil() as usize) }
    }

    /// Looks at all tenants, and tells the others what they have to know; how many are told of.
    pub(super) fn look(&self, looks: &[Look<'_>]) -> usize {
        let ring = (self.groups)();
        let now = self.clock.monotonic();
        let counts = self.store.get();
        self.recount(looks, &ring, now);
        let mut tenants = self.tenants.lock();
        let mut news = Vec::new();
        for look in looks {
            let Some(limit) = self.limits.of(look.tenant).ingester.max_series_per_tenant else {
                tenants.remove(look.tenant);
                continue;
            };
            news.extend(self.look_at(&mut tenants, &counts, &ring, look, limit, now));
        }
        let here: std::collections::HashSet<&TenantId> = looks.iter().map(|look| look.tenant).collect();
        tenants.retain(|tenant, _| here.contains(tenant));
        news.sort_by(|a, b| b.used.total_cmp(&a.used));
        news.truncate(MOST_TOLD);
        let told = news.len();
        let mut change = SeriesCounts::default();
        for News { tenant, group, series, .. } in news.into_iter().filter(|news| news.due) {
            let version = counts.of(tenant.as_str()).find(|(of, _)| *of == group).map_or(0, |(_, count)| count.version);
            let count = Count { version: version + 1, publisher: self.process, series, at_ms: self.clock.now_ms() };
            change.set(tenant.as_str(), group, count);
            if let Some(known) = tenants.get_mut(&tenant) {
                known.told_at = Some(now);
                known.heard.notice(series, now);
            }
        }
        self.store.update(&change);
        told
    }

    /// Counts series by where the ring places them, of the tenants for which that is due. Takes long: nothing is locked
    /// meanwhile.
    fn recount(&self, looks: &[Look<'_>], ring: &ReplicaGroups, now: Duration) {
        for look in looks {
            let Some(placement) = self.placement(ring, look.tenant) else { continue };
            let wanted = |tenants: &HashMap<TenantId, Known>| {
                tenants.get(look.tenant).is_some_and(|known| known.wants_recount(&placement, now))
            };
            if !wanted(&self.tenants.lock()) {
                continue;
            }
            let elsewhere = count_elsewhere(look, &placement);
            if let Some(known) = self.tenants.lock().get_mut(look.tenant) {
                known.elsewhere = elsewhere;
                known.counted = Some((now, placement.usable));
            }
        }
    }

    /// Brings what is known of a tenant up to date; what others have to be told, or were.
    fn look_at(
        &self,
        tenants: &mut HashMap<TenantId, Known>,
        counts: &SeriesCounts,
        ring: &ReplicaGroups,
        look: &Look<'_>,
        limit: usize,
        now: Duration,
    ) -> Option<News> {
        let tenant = look.tenant;
        let Some(placement) = self.placement(ring, tenant) else {
            tenants.remove(tenant);
            return None;
        };
        let (mut told_own, mut others, mut much_used) = (None, 0, false);
        // A quarter of an even part, so that all have told of theirs long before anybody's is used up. What was told is
        // put right until all are below half of that.
        let much = (limit as u64 / (4 * placement.groups)).max(1);
        for (group, count) in counts.of(tenant.as_str()) {
            if group == placement.own {
                told_own = Some(count);
            } else if placement.usable.contains(&group) {
                others += count.series;
                much_used |= count.series >= much;
            }
        }
        let known = tenants.entry(tenant.clone()).or_insert_with(|| Known {
            limit,
            allowance: Allowance { series: 0, known: 0 },
            // What another member told is known to all for as long as it is here.
            heard: Heard {
                before: told_own.filter(|count| count.publisher != self.process).map_or(0, |count| count.series),
                since: VecDeque::new(),
            },
            elsewhere: 0,
            counted: None,
            told_at: None,
        });
        let all = look.head.count();
        let own = all.saturating_sub(known.elsewhere) as u64;
        known.heard.notice(told_own.map_or(0, |count| count.series), now);
        let heard = known.heard.least();
        let left = (limit as u64).saturating_sub(heard + others);
        let allowed = heard + part(left, placement.rank, placement.groups);
        let series = (allowed as usize).saturating_add(known.elsewhere);
        known.limit = limit;
        known.allowance = Allowance { series, known: own + others };
        // Alone there is nobody to tell.
        if placement.groups == 1 && others == 0 {
            return None;
        }
        let told_before = told_own.is_some();
        // What was told and is not so any more is put right.
        let much_told = told_own.is_some_and(|count| count.series >= much.div_ceil(2));
        let wanted = own >= much || much_used || much_told;
        if !wanted || (own == 0 && !told_before) || !self.tells(ring, placement.own) {
            return None;
        }
        let difference = told_own.map_or(u64::MAX, |count| count.series.abs_diff(own));
        let matters = (limit as u64 / (200 * placement.groups)).max(1);
        let age = known.told_at.map(|at| now.saturating_sub(at));
        let due = difference >= matters
            || (difference > 0 && age.is_none_or(|age| age >= TELL_SMALL_AFTER))
            || age.is_none_or(|age| age >= TELL_AGAIN_AFTER);
        Some(News { tenant: tenant.clone(), group: placement.own, series: own, used: own as f64 / limit as f64, due })
    }
}

impl Known {
    /// Whether series have to be counted by where the ring places them: that may have changed.
    fn wants_recount(&self, placement: &Placement, now: Duration) -> bool {
        let Some((at, usable)) = &self.counted else { return placement.usable.len() > 1 };
        let age = now.saturating_sub(*at);
        let again = if *usable == placement.usable { RECOUNT_EVERY } else { RECOUNT_AFTER };
        age >= again && (placement.usable.len() > 1 || self.elsewhere > 0)
    }
}

/// Series of a head that the ring places in another group.
fn count_elsewhere(look: &Look<'_>, placement: &Placement) -> usize {
    let position = |id: &GroupId| placement.subring.groups().iter().position(|group| group == id);
    let usable = placement.usable.iter().filter_map(position).collect();
    let own = position(&placement.own);
    let tenant = look.tenant.as_str();
    look.head.count_if(&|hash| placement.subring.position_among(series_token(tenant, hash), &usable) != own)
}

/// What others should know.
#[derive(Debug)]
struct News {
    tenant: TenantId,
    group: GroupId,
    series: u64,
    /// Part of the limit.
    used: f64,
    /// Whether it has to be told now.
    due: bool,
}

impl Ingester {
    /// Compares tenants' limits with what all groups hold, from now on. Without this their limits are those of this ingester
    /// alone, as it is when there is no other.
    pub fn share_series_limits(&self, limits: SeriesLimits) {
        // Only the first call counts; there is one.
        let _ = self.shared.series_limits.set(limits);
    }

    /// Looks at tenants again and again, and tells the others. Does not end.
    pub async fn compare_series_limits(&self) {
        let shared = &self.shared;
        loop {
            shared.runtime.clock.sleep(LOOK_EVERY).await;
            let ingester = self.clone();
            // A task that is lost leaves everything for the next round.
            let _ = shared.runtime.background_pool.run(move || ingester.look_at_series_limits()).await;
        }
    }

    pub(super) fn look_at_series_limits(&self) {
        let Some(limits) = self.shared.series_limits.get() else { return };
        let tenants = self.shared.tenants.all();
        let looks: Vec<Look<'_>> =
            tenants.iter().map(|tenant| Look { tenant: &tenant.id, head: tenant.head.as_ref() }).collect();
        self.shared.metrics.counted_tenants.set(limits.look(&looks) as i64);
    }
}

/// A ring of groups of one ingester each, `ingester-<group>-0`, which take writes or not.
#[cfg(test)]
pub(super) fn ring_of(take_writes: &[bool]) -> Arc<ReplicaGroups> {
    ring_of_zones(take_writes, 1)
}

/// The same with so many members each.
#[cfg(test)]
fn ring_of_zones(take_writes: &[bool], members: u16) -> Arc<ReplicaGroups> {
    use skald_ring::{
        GroupRules, Instance, InstanceState, Membership, Now, Observer, Registration, RingState, Value, Version,
    };
    let mut state = RingState::default();
    for (group, takes_writes) in take_writes.iter().enumerate() {
        for index in 0..members {
            let id = InstanceId::new(&format!("ingester-{group}-{index}")).unwrap();
            let instance = Instance {
                state: if *takes_writes { InstanceState::Active } else { InstanceState::Leaving },
                membership: Some(Membership { group: GroupId(group as u32), index }),
                group_formed_at_ms: Some(0),
                ..Instance::new(id)
            };
            let version = Version { incarnation: 1, counter: 1 };
            state.merge(&RingState::of_instance(Registration { version, instance }, 1));
        }
    }
    let mut observer = Observer::new(Duration::ZERO);
    observer.observe(&state, Duration::ZERO);
    let now = Now { monotonic: Duration::ZERO, wall_ms: 0 };
    let rules = GroupRules { replication_factor: members, zone_aware: false, spread: Duration::ZERO };
    Arc::new(ReplicaGroups::build(&state, &rules, &observer, Duration::MAX, now, None))
}
