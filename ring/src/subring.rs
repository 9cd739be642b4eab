//! Where a tenant's series go: a choice of replica groups, and a lookup of tokens among them.

use std::sync::Arc;

use crate::ring::{GroupId, MAX_GROUPS, Ring};
use crate::token::{Token, fnv1a, mix};

/// Up to this shard size each group's claim to a token is compared; beyond, and without shuffle sharding, tokens are
/// looked up in the division of the token space: comparing costs about as many multiplications as there are groups.
pub const MAX_COMPARED: usize = 64;

/// How much a tenant prefers a group: the shard of size k is the k groups with the lowest ranks. It depends on tenant and
/// number alone, so a group that comes or goes changes one member of any shard, and small shards lie within larger ones.
pub(crate) fn rank(tenant: &str, group: GroupId) -> (u64, GroupId) {
    (mix(fnv1a(tenant.as_bytes()) ^ mix(u64::from(group.0))), group)
}

/// The groups a tenant's series are spread over; immutable and cheap to clone.
#[derive(Debug, Clone)]
pub struct Subring {
    groups: Arc<[GroupId]>,
    placement: Placement,
}

#[derive(Debug, Clone)]
enum Placement {
    /// By the division of the token space; a token of a group that is not among these is thrown again.
    Divided(Ring),
    /// The group with the highest claim to a token holds it. A number for each group that makes its claims its own.
    Compared(Arc<[u64]>),
}

impl Subring {
    /// All groups of a ring.
    pub(crate) fn whole(ring: &Ring) -> Self {
        Self { groups: ring.groups().into(), placement: Placement::Divided(ring.clone()) }
    }

    /// A tenant's shard of `ring`. How its tokens are placed follows from the configured `size`, not from how many groups
    /// there are, so that growing a ring never places a tenant's series anew.
    ///
    /// Up to [`MAX_COMPARED`] a change of the members moves the keys of the changed one only. Beyond, a new group that is not
    /// in the shard may move one key in k + 1 as well.
    pub(crate) fn shard(ring: &Ring, tenant: &str, size: usize) -> Self {
        let mut ranked: Vec<_> = ring.groups().iter().map(|group| rank(tenant, *group)).collect();
        if size < ranked.len() {
            ranked.select_nth_unstable(size);
            ranked.truncate(size);
        }
        let mut groups: Vec<_> = ranked.into_iter().map(|(_, group)| group).collect();
        groups.sort_unstable();
        let placement = if size <= MAX_COMPARED {
            Placement::Compared(groups.iter().map(|group| mix(!u64::from(group.0))).collect())
        } else if groups.len() == ring.groups().len() {
            Placement::Divided(ring.clone())
        } else {
            Placement::Divided(ring.only(&groups))
        };
        Self { groups: groups.into(), placement }
    }

    /// The groups, ascending.
    pub fn groups(&self) -> &[GroupId] {
        &self.groups
    }

    /// Position in [`Subring::groups`] of the group that holds `token`. Allocates nothing.
    #[inline]
    pub fn position_of(&self, token: Token) -> usize {
        match &self.placement {
            Placement::Divided(ring) => ring.position_of(token),
            Placement::Compared(seeds) => highest_claim(seeds, token, |_| true).unwrap_or(0),
        }
    }

    /// Position of the group that takes `token` when only some can: the one that holds it, or else the next that is usable.
    /// What one group cannot take is spread evenly over the others. `None` when none is usable.
    #[inline]
    pub fn position_among(&self, token: Token, usable: &Positions) -> Option<usize> {
        match &self.placement {
            Placement::Divided(ring) => ring.position_where(token, |position| usable.contains(position)),
            Placement::Compared(seeds) => highest_claim(seeds, token, |position| usable.contains(position)),
        }
    }

    /// All positions.
    pub fn positions(&self) -> Positions {
        (0..self.groups.len()).collect()
    }
}

#[inline]
fn highest_claim(seeds: &[u64], token: Token, usable: impl Fn(usize) -> bool) -> Option<usize> {
    // A loop without branches, which an iterator's maximum of pairs is not.
    let (mut highest, mut position) = (0, None);
    for (at, seed) in seeds.iter().enumerate() {
        let claim = claim(*seed, token);
        if claim >= highest && usable(at) {
            (highest, position) = (claim, Some(at));
        }
    }
    position
}

/// A group's claim to a token: as good as random, at half the price of [`mix`].
#[inline]
fn claim(seed: u64, token: Token) -> u64 {
    let z = (seed ^ u64::from(token)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z ^ (z >> 32)).wrapping_mul(0x94D0_49BB_1331_11EB)
}

/// A set of positions in a subring, which fits two cache lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    words: [u64; MAX_GROUPS as usize / 64],
}

impl Positions {
    /// Whether `position` is among them.
    #[inline]
    pub fn contains(&self, position: usize) -> bool {
        self.words[position / 64] >> (position % 64) & 1 != 0
    }

    /// Adds one.
    pub fn insert(&mut self, position: usize) {
        self.words[position / 64] |= 1 << (position % 64);
    }

    /// Takes one out.
    pub fn remove(&mut self, position: usize) {
        self.words[position / 64] &= !(1 << (position % 64));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

impl FromIterator<usize> for Positions {
    fn from_iter<I: IntoIterator<Item = usize>>(positions: I) -> Self {
        let mut set = Self::default();
        positions.into_iter().for_each(|position| set.insert(position));
        set
    }
}

#[cfg(test)]
mod tests;
