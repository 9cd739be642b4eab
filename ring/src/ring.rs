//! The snapshot in which services look up who holds a series.

use std::fmt;
use std::sync::Arc;

use crate::ranges::Ranges;
use crate::token::{Token, mix};

/// Largest number of groups; a ring of that many keeps 4 MiB of ranges.
pub const MAX_GROUPS: u32 = 1024;

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
    ranges: Ranges,
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
            Arc::new(Division { ranges: Ranges::divide(highest.0 + 1), positions })
        });
        Ok(Self { groups: groups.into(), division })
    }

    /// A ring of one group, which holds everything.
    pub fn single(group: GroupId) -> Self {
        Self { groups: [group].into(), division: None }
    }

    /// The groups, ascending.
    pub fn groups(&self) -> &[GroupId] {
        &self.groups
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
            Some(division) => division.position_of(token, self.groups.len()),
        }
    }
}

impl Division {
    /// A token of a number that no group has is thrown again until it hits one that exists. Since each throw depends on the
    /// token alone, a group that appears catches just the tokens that passed through its number.
    fn position_of(&self, token: Token, groups: usize) -> usize {
        let mut thrown = u64::from(token);
        // With half of the numbers missing, 64 misses in a row have a probability of 2^-64.
        for _ in 0..4096 {
            if let Some(position) = self.positions[self.ranges.owner(thrown as Token) as usize] {
                return position as usize;
            }
            thrown = mix(thrown) >> 32;
        }
        token as usize % groups
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

    /// (max − min) / mean of what the groups hold, by 2^20 tokens.
    fn unevenness(ring: &Ring) -> f64 {
        let mut held = vec![0_u32; ring.groups().len()];
        let step = 1 << 12;
        for token in (0..=u32::MAX).step_by(step) {
            held[ring.position_of(token)] += 1;
        }
        let mean = f64::from(1 << 20) / held.len() as f64;
        f64::from(held.iter().max().unwrap() - held.iter().min().unwrap()) / mean
    }

    #[test]
    fn even_also_when_any_one_group_is_missing() {
        assert!(unevenness(&ring(0..10)) < 0.005);
        for missing in 0..10 {
            let ring = ring((0..10).filter(|group| *group != missing));
            let unevenness = unevenness(&ring);
            assert!(unevenness < 0.05, "without {missing}: {unevenness}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

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
