//! A ring of single instances with several tokens each, for roles that own blocks or jobs rather than series.
//!
//! An instance owns the tokens from the previous one up to its own; a key belongs to the first token greater than it. Tokens
//! follow from the instance's id, so none are stored or sent, and a restart owns what it owned.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::instance::{InstanceId, InstanceState};
use crate::observer::{Member, Now, Observer, members};
use crate::state::RingState;
use crate::token::{Token, fnv1a, mix};

/// Tokens of an instance unless said otherwise: instances then own the same within some 5 % (standard deviation).
pub const DEFAULT_TOKENS: u32 = 512;

/// What an instance owns `count` ends of, in no order.
pub fn instance_tokens(id: &InstanceId, count: u32) -> impl Iterator<Item = Token> + use<> {
    let seed = fnv1a(id.as_str().as_bytes());
    (0..count).map(move |index| (mix(seed ^ mix(u64::from(index))) >> 32) as Token)
}

/// The token of a key of several parts, such as tenant and block or job.
pub fn key_token(parts: &[&str]) -> Token {
    let hash = parts.iter().fold(0, |hash, part| mix(hash ^ fnv1a(part.as_bytes())));
    (hash >> 32) as Token
}

/// What makes such a ring, the same in every process of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceRingRules {
    /// Instances that own a key.
    pub replication_factor: usize,
    /// Whether a key's owners are spread over the zones.
    pub zone_aware: bool,
    /// Tokens of each instance.
    pub tokens: u32,
}

/// Who may be among the owners of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// States an instance may be in.
    pub states: &'static [InstanceState],
    /// Whether one that is unhealthy or in another state is replaced by the next on the ring. Otherwise its place stays
    /// empty, and nothing moves while it restarts.
    pub extends: bool,
}

impl Operation {
    /// Who has to have what belongs to a key: also those that are about to serve it, or about to stop.
    pub const OWN: Self =
        Self { states: &[InstanceState::Joining, InstanceState::Active, InstanceState::Leaving], extends: false };
    /// Who is asked for it: those at work, and the next ones in place of others.
    pub const ASK: Self = Self { states: &[InstanceState::Active], extends: true };

    fn admits(&self, member: &Member) -> bool {
        member.healthy && self.states.contains(&member.instance.state)
    }
}

/// The owners of a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaSet {
    /// Those that can be used, in the order of the ring.
    pub members: Vec<Arc<Member>>,
    /// Owners that cannot, because of their state or health.
    pub missing: Vec<Arc<Member>>,
}

/// An immutable view of a ring of instances.
#[derive(Debug, Clone)]
pub struct InstanceRing {
    rules: InstanceRingRules,
    /// By id.
    members: Arc<[Arc<Member>]>,
    /// The zone of each member by number, and how many zones there are.
    zones: Arc<[u32]>,
    zone_count: usize,
    /// Ascending, with positions in `members`. Of equal tokens the lower id owns.
    tokens: Arc<[(Token, u32)]>,
}

impl InstanceRing {
    /// The ring of a state; instances without a heartbeat for `heartbeat_timeout` are unhealthy. Tokens of `previous` are
    /// taken over when the same instances are in it, as they are most of the time.
    pub fn build(
        state: &RingState,
        rules: InstanceRingRules,
        observer: &Observer,
        heartbeat_timeout: Duration,
        now: Now,
        previous: Option<&Self>,
    ) -> Self {
        let members = members(state, observer, heartbeat_timeout, now);
        if let Some(previous) = previous.filter(|previous| previous.rules == rules)
            && previous.members.len() == members.len()
            && previous
                .members
                .iter()
                .zip(&members)
                .all(|(old, new)| old.id() == new.id() && old.instance.zone == new.instance.zone)
        {
            return Self { members: members.into(), ..previous.clone() };
        }
        Self::of(members, rules)
    }

    fn of(members: Vec<Arc<Member>>, rules: InstanceRingRules) -> Self {
        let mut numbers = BTreeMap::new();
        members.iter().for_each(|member| {
            numbers.insert(member.instance.zone.clone(), 0);
        });
        numbers.values_mut().zip(0..).for_each(|(number, next)| *number = next);
        let zones = members.iter().map(|member| numbers[&member.instance.zone]).collect();
        let positions = members.iter().zip(0_u32..);
        let mut tokens: Vec<_> = positions
            .flat_map(|(member, position)| {
                instance_tokens(member.id(), rules.tokens).map(move |token| (token, position))
            })
            .collect();
        tokens.sort_unstable();
        tokens.dedup_by_key(|(token, _)| *token);
        Self { rules, members: members.into(), zones, zone_count: numbers.len(), tokens: tokens.into() }
    }

    /// Everyone in it, by id.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// How many are alive and Active: what a limit for all is divided by. At least 1.
    pub fn active(&self) -> usize {
        self.members.iter().filter(|member| member.takes_writes()).count().max(1)
    }

    /// The owners of a key: the first RF instances after it, of distinct zones as far as there are enough.
    pub fn replicas(&self, key: Token, operation: Operation) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        let factor = self.rules.replication_factor.max(1);
        let per_zone =
            if self.rules.zone_aware && self.zone_count > 0 { factor.div_ceil(self.zone_count) } else { factor };
        let mut taken_in_zone = vec![0_usize; self.zone_count];
        let mut met = vec![false; self.members.len()];
        let mut unseen = self.members.len();
        let first = self.tokens.partition_point(|(token, _)| *token <= key);
        for (_, position) in self.tokens[first..].iter().chain(&self.tokens[..first]) {
            let position = *position as usize;
            if std::mem::replace(&mut met[position], true) {
                continue;
            }
            unseen -= 1;
            let (member, zone) = (&self.members[position], self.zones[position] as usize);
            if taken_in_zone[zone] < per_zone {
                let admitted = operation.admits(member);
                if admitted || !operation.extends {
                    taken_in_zone[zone] += 1;
                }
                if admitted { &mut set.members } else { &mut set.missing }.push(member.clone());
            }
            let owners = set.members.len() + if operation.extends { 0 } else { set.missing.len() };
            if owners == factor || unseen == 0 {
                break;
            }
        }
        set
    }

    /// The one instance that does the job of a key: the first that is alive and Active.
    pub fn owner(&self, key: Token) -> Option<Arc<Member>> {
        let first = self.tokens.partition_point(|(token, _)| *token <= key);
        let positions = self.tokens[first..].iter().chain(&self.tokens[..first]);
        let members = positions.map(|(_, position)| &self.members[*position as usize]);
        members.into_iter().find(|member| Operation::ASK.admits(member)).cloned()
    }

    /// Whether an instance is among the owners of a key.
    pub fn owns(&self, id: &InstanceId, key: Token, operation: Operation) -> bool {
        self.replicas(key, operation).members.iter().any(|member| member.id() == id)
    }

    /// A tenant's share of the ring: `size` instances, the same number in each zone where zones count (rounded up). An
    /// instance that comes or goes changes at most one, as long as the zones stay the same.
    pub fn shard(&self, tenant: &str, size: Option<usize>) -> Self {
        let Some(size) = size.filter(|size| *size < self.members.len()) else { return self.clone() };
        let (zones, per_zone) =
            if self.rules.zone_aware { (self.zone_count, size.div_ceil(self.zone_count)) } else { (1, size) };
        let seed = mix(fnv1a(tenant.as_bytes()));
        let mut ranked: Vec<Vec<_>> = vec![Vec::new(); zones];
        for (position, member) in self.members.iter().enumerate() {
            let zone = if self.rules.zone_aware { self.zones[position] as usize } else { 0 };
            ranked[zone].push((mix(seed ^ fnv1a(member.id().as_str().as_bytes())), position));
        }
        let mut kept = vec![false; self.members.len()];
        for zone in &mut ranked {
            zone.sort_unstable();
            zone.iter().take(per_zone).for_each(|(_, position)| kept[*position] = true);
        }
        let mut renumbered = vec![0; self.members.len()];
        let mut members = Vec::new();
        let mut member_zones = Vec::new();
        for (position, member) in self.members.iter().enumerate().filter(|(position, _)| kept[*position]) {
            renumbered[position] = members.len() as u32;
            members.push(member.clone());
            member_zones.push(self.zones[position]);
        }
        let tokens = self.tokens.iter().filter(|(_, position)| kept[*position as usize]);
        let tokens = tokens.map(|(token, position)| (*token, renumbered[*position as usize])).collect();
        Self { members: members.into(), zones: member_zones.into(), tokens, ..self.clone() }
    }

    /// The share of all keys whose first owner an instance is, 0 to 1, by position in [`InstanceRing::members`].
    pub fn owned_shares(&self) -> Vec<f64> {
        let mut shares = vec![0.0; self.members.len()];
        let Some((last, _)) = self.tokens.last() else { return shares };
        let mut before = *last;
        for (token, position) in &*self.tokens {
            let length = token.wrapping_sub(before);
            // A single token owns everything.
            let length = if self.tokens.len() == 1 { 1 << 32 } else { u64::from(length) };
            shares[*position as usize] += length as f64 / (1_u64 << 32) as f64;
            before = *token;
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::instance::Instance;
    use crate::state::Version;

    fn member(name: &str, state: InstanceState) -> Arc<Member> {
        let mut instance = Instance::new(InstanceId::new(name).unwrap());
        instance.zone = name.split('-').nth(1).unwrap_or_default().to_owned();
        instance.state = state;
        Arc::new(Member { instance, version: Version::default(), heartbeat_age: Duration::ZERO, healthy: true })
    }

    fn zones(per_zone: usize) -> Vec<Arc<Member>> {
        let names = (0..per_zone).flat_map(|i| ["a", "b", "c"].map(|zone| format!("sg-{zone}-{i}")));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names.iter().map(|name| member(name, InstanceState::Active)).collect()
    }

    fn ring(members: Vec<Arc<Member>>, replication_factor: usize, zone_aware: bool) -> InstanceRing {
        InstanceRing::of(members, InstanceRingRules { replication_factor, zone_aware, tokens: DEFAULT_TOKENS })
    }

    fn keys(count: u32) -> impl Iterator<Item = Token> {
        (0..count).map(|i| key_token(&["tenant", &i.to_string()]))
    }

    fn ids(members: &[Arc<Member>]) -> BTreeSet<String> {
        members.iter().map(|member| member.id().to_string()).collect()
    }

    #[test]
    fn a_key_has_an_owner_in_every_zone() {
        let ring = ring(zones(4), 3, true);
        for key in keys(500) {
            let set = ring.replicas(key, Operation::OWN);
            let zones: BTreeSet<_> = set.members.iter().map(|member| member.instance.zone.clone()).collect();
            assert_eq!((set.members.len(), zones.len(), set.missing.len()), (3, 3, 0));
            assert_eq!(ring.owner(key).unwrap(), set.members[0]);
        }
    }

    #[test]
    fn fewer_zones_than_replicas_share_them_out() {
        let members = zones(3).into_iter().filter(|member| member.instance.zone != "c").collect();
        let ring = ring(members, 3, true);
        for key in keys(200) {
            let set = ring.replicas(key, Operation::OWN);
            let in_a = set.members.iter().filter(|member| member.instance.zone == "a").count();
            assert!(set.members.len() == 3 && (1..=2).contains(&in_a));
        }
    }

    /// Who restarts keeps what it owns, and others are asked meanwhile.
    #[test]
    fn one_that_is_not_at_work_keeps_its_place_and_is_replaced_when_asked() {
        let mut members = zones(4);
        members[5] = member("sg-b-1", InstanceState::Joining);
        let dead = Member { healthy: false, ..(*members[2]).clone() };
        members[2] = Arc::new(dead);
        let before = ring(zones(4), 3, true);
        let ring = ring(members, 3, true);
        for key in keys(500) {
            let [was, own, ask] = [
                before.replicas(key, Operation::OWN),
                ring.replicas(key, Operation::OWN),
                ring.replicas(key, Operation::ASK),
            ];
            let all: Vec<_> = own.members.iter().chain(&own.missing).cloned().collect();
            assert_eq!(ids(&was.members), ids(&all));
            assert!(own.missing.iter().all(|member| member.id().as_str() == "sg-a-2"));
            let zones: BTreeSet<_> = ask.members.iter().map(|member| member.instance.zone.clone()).collect();
            assert_eq!((ask.members.len(), zones.len()), (3, 3));
            assert!(!ids(&ask.members).contains("sg-a-2") && !ids(&ask.members).contains("sg-b-1"));
            assert!(ids(&was.members).is_subset(&ids(&ask.members).union(&ids(&ask.missing)).cloned().collect()));
        }
    }

    #[test]
    fn shares_are_about_even_and_add_up() {
        let shares = ring(zones(10), 1, false).owned_shares();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let (least, most) = (shares.iter().copied().fold(1.0, f64::min), shares.iter().copied().fold(0.0, f64::max));
        assert!((most - least) * 30.0 < 0.3, "{least} to {most}");
        assert_eq!(ring(vec![member("a", InstanceState::Active)], 3, false).owned_shares().len(), 1);
    }

    #[test]
    fn an_empty_ring_owns_nothing() {
        let ring = ring(Vec::new(), 3, true);
        assert!(ring.owner(5).is_none() && ring.replicas(5, Operation::ASK).members.is_empty());
        assert_eq!(ring.shard("t", Some(2)).members().len(), 0);
        assert_eq!(ring.active(), 1);
    }

    #[test]
    fn a_newcomer_takes_keys_from_others_and_moves_none_between_them() {
        let before = ring(zones(3), 1, false);
        let after = ring(zones(4), 1, false);
        let moved = keys(2000).filter(|key| {
            let (old, new) = (before.owner(*key).unwrap(), after.owner(*key).unwrap());
            assert!(old.id() == new.id() || new.id().as_str().ends_with("-3"));
            old.id() != new.id()
        });
        assert!((350..650).contains(&moved.count()));
    }

    #[test]
    fn a_tenants_shard_is_spread_over_zones_and_changes_by_one() {
        let whole = ring(zones(8), 3, true);
        for tenant in 0..50 {
            let tenant = format!("t{tenant}");
            let shard = whole.shard(&tenant, Some(6));
            for zone in ["a", "b", "c"] {
                assert_eq!(shard.members().iter().filter(|member| member.instance.zone == zone).count(), 2);
            }
            let set = shard.replicas(77, Operation::OWN);
            assert!(set.members.len() == 3 && ids(&set.members).is_subset(&ids(shard.members())));
            let mut fewer = zones(8);
            fewer.remove(5);
            let after = ring(fewer, 3, true).shard(&tenant, Some(6));
            let changed = ids(shard.members()).difference(&ids(after.members())).count();
            assert!(changed <= 1, "{changed}");
        }
        assert_eq!(whole.shard("t", None).members().len(), 24);
    }

    #[test]
    fn tokens_are_stable() {
        let id = InstanceId::new("store-gateway-zone-a-0").unwrap();
        assert_eq!(instance_tokens(&id, 3).collect::<Vec<_>>(), [2_652_151_661, 3_867_142_079, 1_427_815_721]);
        assert_eq!(key_token(&["t", "01ARZ3NDEKTSV4RRFFQ69G5FAV"]), 1_882_205_719);
    }
}
