//! The snapshot in which services look up who holds a series.

use std::fmt;
use std::sync::Arc;

use crate::ranges::Ranges;
use crate::token::{Token, mix};

/// Largest number of groups; a ring of that many keeps 4 MiB of ranges.
pub const MAX_GROUPS: u32 = 1024;

/// Throws until a token gives up and takes any group; few enough that a ring in which nothing is usable costs little.
const MAX_THROWS: usize = 4096;

/// Number of a replica group: the ingesters, one in each zone, that hold the same series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which group holds which tokens; immutable and cheap to clone.
///
/// A group that joins with the next number, or with a lower one that was missing, takes keys from the others and moves
/// none between them; one that leaves, whatever its number, gives its keys to the others evenly. Numbers that are skipped
/// when a higher one joins count as missing from then on, which does move keys: numbers are meant to be consecutive.
#[derive(Debug, Clone)]
pub struct Ring {
    /// Ascending, not empty.
    groups: Arc<[GroupId]>,
    /// Division among all numbers up to the highest; `None` when there is one group, which holds everything.
    division: Option<Arc<Division>>,
}

#[derive(Debug)]
struct Division {
    ranges: Arc<Ranges>,
    /// Position in `groups` by number; `None` for a number that no group has.
    positions: Vec<Option<u32>>,
}

/// Why there is no such ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Nobody would hold anything.
    #[error("a ring needs at least one group")]
    NoGroups,
    /// A number out of range.
    #[error("replica group {0} is beyond the highest number {max}", max = MAX_GROUPS - 1)]
    NumberTooHigh(GroupId),
}

impl Ring {
    /// A ring of these groups, in any order.
    pub fn new(groups: impl IntoIterator<Item = GroupId>) -> Result<Self, RingError> {
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_unstable();
        groups.dedup();
        let highest = *groups.last().ok_or(RingError::NoGroups)?;
        if highest.0 >= MAX_GROUPS {
            return Err(RingError::NumberTooHigh(highest));
        }
        let division = (groups.len() > 1).then(|| {
            let mut positions = vec![None; highest.0 as usize + 1];
            for (position, group) in groups.iter().enumerate() {
                positions[group.0 as usize] = Some(position as u32);
            }
            Arc::new(Division { ranges: Arc::new(Ranges::divide(highest.0 + 1)), positions })
        });
        Ok(Self { groups: groups.into(), division })
    }

    /// As [`Ring::new`], taking over what it can from a ring of before: dividing the token space among hundreds of groups takes
    /// milliseconds.
    pub(crate) fn like(previous: Option<&Self>, groups: impl IntoIterator<Item = GroupId>) -> Result<Self, RingError> {
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_unstable();
        groups.dedup();
        match (previous, groups.last()) {
            (Some(previous), Some(_)) if *previous.groups == *groups => Ok(previous.clone()),
            // The division follows from the highest number.
            (Some(previous), Some(highest))
                if previous.groups.last() == Some(highest) && previous.division.is_some() =>
            {
                Ok(previous.only(&groups))
            }
            _ => Self::new(groups),
        }
    }

    /// A ring of one group, which holds everything.
    pub fn single(group: GroupId) -> Self {
        Self { groups: [group].into(), division: None }
    }

    /// The ring of these groups, ascending, at least one and none above its highest, by the same division of the token space.
    pub(crate) fn only(&self, groups: &[GroupId]) -> Self {
        let division = self.division.as_ref().filter(|_| groups.len() > 1).map(|division| {
            let mut positions = vec![None; division.positions.len()];
            for (position, group) in groups.iter().enumerate() {
                positions[group.0 as usize] = Some(position as u32);
            }
            Arc::new(Division { ranges: Arc::clone(&division.ranges), positions })
        });
        Self { groups: groups.into(), division }
    }

    /// The groups, ascending.
    pub fn groups(&self) -> &[GroupId] {
        &self.groups
    }

    /// The share of all tokens that a group holds, 0 to 1, to three digits.
    pub fn owned_share(&self, group: GroupId) -> f64 {
        let Ok(position) = self.groups.binary_search(&group) else { return 0.0 };
        let Some(division) = &self.division else { return 1.0 };
        let missing = division.positions.iter().filter(|position| position.is_none()).count() as f64;
        // The numbers divide all evenly. What is thrown again is sampled only as far as it matters.
        let direct = 1.0 / division.positions.len() as f64;
        if missing == 0.0 {
            return direct;
        }
        let samples = 1_u32 << 14;
        let step = u32::MAX / samples;
        let held = (0..samples).filter(|sample| self.position_of(sample * step) == position).count();
        held as f64 / f64::from(samples)
    }

    /// The group that holds `token`.
    pub fn group_of(&self, token: Token) -> GroupId {
        self.groups[self.position_of(token)]
    }

    /// Position in [`Ring::groups`] of the group that holds `token`.
    #[inline]
    pub fn position_of(&self, token: Token) -> usize {
        match &self.division {
            None => 0,
            Some(division) => division.position_where(token, |_| true).unwrap_or(token as usize % self.groups.len()),
        }
    }

    /// Position of the group that holds `token` when only those at usable positions count: the same as in a ring without
    /// the others, so what one of them would hold is spread evenly. `None` when none is usable.
    pub fn position_where(&self, token: Token, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let thrown = self.division.as_ref().and_then(|division| division.position_where(token, &usable));
        let count = self.groups.len();
        thrown.or_else(|| (0..count).map(|next| (token as usize % count + next) % count).find(|at| usable(*at)))
    }
}

impl Division {
    /// A token of a number that no group has is thrown again until it hits one that exists. Since each throw depends on the
    /// token alone, a group that appears catches just the tokens that passed through its number.
    ///
    /// `None` when luck does not come: with half of the numbers missing, 64 misses in a row have a probability of 2^-64.
    #[inline]
    fn position_where(&self, token: Token, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut thrown = u64::from(token);
        for _ in 0..MAX_THROWS {
            if let Some(position) = self.positions[self.ranges.owner(thrown as Token) as usize]
                && usable(position as usize)
            {
                return Some(position as usize);
            }
            thrown = mix(thrown) >> 32;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring(groups: impl IntoIterator<Item = u32>) -> Ring {
        Ring::new(groups.into_iter().map(GroupId)).unwrap()
    }

    fn sample_tokens(count: u32) -> impl Iterator<Item = Token> {
        (0..count).map(|i| (mix(u64::from(i)) >> 32) as Token)
    }

    #[test]
    fn rings_that_cannot_be() {
        assert_eq!(Ring::new([]).unwrap_err(), RingError::NoGroups);
        assert_eq!(
            Ring::new([GroupId(1024)]).unwrap_err().to_string(),
            "replica group 1024 is beyond the highest number 1023"
        );
    }

    #[test]
    fn one_group_holds_everything_whatever_its_number() {
        let ring = ring([7]);
        assert!(sample_tokens(100).all(|token| ring.group_of(token) == GroupId(7)));
    }

    /// (max − min) / mean of what groups hold when one is missing: what that one held goes where `thrown` of its tokens are
    /// found, the rest is known.
    fn unevenness_without(all: &Ring, missing: u32, thrown: &[Token]) -> f64 {
        let others: Vec<_> = all.groups().iter().copied().filter(|group| group.0 != missing).collect();
        let fewer = all.only(&others);
        let mut held = vec![1.0; others.len()];
        thrown.iter().for_each(|token| held[fewer.position_of(*token)] += 1.0 / thrown.len() as f64);
        let mean = held.iter().sum::<f64>() / held.len() as f64;
        (held.iter().copied().fold(0.0, f64::max) - held.iter().copied().fold(f64::MAX, f64::min)) / mean
    }

    /// The figure of the design is 10 %. That a whole ring is even to one token is tested with [`Ranges`].
    #[test]
    fn even_with_every_number_of_groups_when_any_one_is_missing() {
        for groups in 2..=100 {
            let all = ring(0..groups);
            let mut held = vec![Vec::new(); groups as usize];
            sample_tokens(2048 * groups).for_each(|token| held[all.position_of(token)].push(token));
            for (missing, tokens) in held.iter().enumerate() {
                assert!(tokens.len() > 1800);
                let unevenness = unevenness_without(&all, missing as u32, tokens);
                assert!(unevenness <= 0.1, "{groups} groups without {missing}: {unevenness}");
            }
        }
    }

    /// [`Ring`] looks up what [`Ranges`] divides.
    #[test]
    fn whole_rings_are_even_by_lookups_too() {
        for groups in 2..=100 {
            let ring = ring(0..groups);
            let mut held = vec![0_u32; groups as usize];
            let step = u32::MAX / (groups * 1000);
            (0..groups * 1000).for_each(|sample| held[ring.position_of(sample * step)] += 1);
            let spread = f64::from(held.iter().max().unwrap() - held.iter().min().unwrap());
            // Each border of a range may go either way by a sample.
            assert!(spread / 1000.0 <= 0.02 + f64::from(groups) / 1000.0, "{groups} groups: {spread}");
        }
    }

    #[test]
    fn shares_add_up() {
        for groups in [vec![0, 1, 2], vec![0, 2], vec![0, 1, 2, 4, 5]] {
            let ring = ring(groups.iter().copied());
            let sum: f64 = groups.iter().map(|group| ring.owned_share(GroupId(*group))).sum();
            assert!((sum - 1.0).abs() < 1e-3, "{groups:?}: {sum}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_ring_made_from_another_is_the_same_ring(
            before in proptest::collection::btree_set(0_u32..12, 1..12),
            after in proptest::collection::btree_set(0_u32..12, 1..12),
        ) {
            let ids = || after.iter().copied().map(GroupId);
            let (made, new) = (Ring::like(Some(&ring(before)), ids()).unwrap(), Ring::new(ids()).unwrap());
            prop_assert_eq!(made.groups(), new.groups());
            prop_assert!(sample_tokens(500).all(|token| made.group_of(token) == new.group_of(token)));
        }

        #[test]
        fn a_group_that_joins_or_leaves_moves_only_its_own_keys(
            groups in proptest::collection::btree_set(0_u32..40, 2..12),
            newcomer in 0_u32..41,
        ) {
            let newcomer = newcomer.min(groups.last().unwrap() + 1);
            prop_assume!(!groups.contains(&newcomer));
            let before = ring(groups.iter().copied());
            let after = ring(groups.iter().copied().chain([newcomer]));
            for token in sample_tokens(2000) {
                let (old, new) = (before.group_of(token), after.group_of(token));
                prop_assert!(old == new || new == GroupId(newcomer), "{token}: {old} → {new}");
            }
        }
    }
}
