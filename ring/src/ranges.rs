//! An even division of the token space among numbered groups, which grows without moving anything twice.
//!
//! Group 0 alone owns everything. Group n takes 1/(n+1) of the space when it is added: from each earlier group the same
//! share, cut from the end of that group's longest range. So adding it moves keys to it only, all groups stay equally large
//! (but for rounding), and the division for n groups depends on n alone.
//!
//! One cut per earlier group is enough: group n has at most n ranges (one cut from each predecessor) whose sizes add up to
//! 1/m of the space when group m comes, so that its longest one is at least 1/(m·n) ≥ 1/(m·(m+1)), the share it gives.

use std::collections::BinaryHeap;

use crate::token::Token;

/// Size of the token space.
const SPACE: u64 = 1 << 32;

/// The division among groups 0 to `n - 1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// First token of each range and the group that owns it, ascending; the first begins at 0, each ends where the next
    /// begins.
    starts: Vec<(Token, u32)>,
}

impl Ranges {
    /// Divides the space among `groups` groups.
    ///
    /// # Panics
    /// When `groups` is 0.
    pub fn divide(groups: u32) -> Self {
        assert!(groups > 0, "somebody has to own the tokens");
        // Ranges of each group as (length, start), the longest on top.
        let mut owned: Vec<BinaryHeap<(u64, u64)>> = vec![BinaryHeap::from([(SPACE, 0)])];
        for newcomer in 1..u64::from(groups) {
            let mut taken = BinaryHeap::new();
            for (giver, ranges) in owned.iter_mut().enumerate() {
                let share = share(giver as u64, newcomer) - share(giver as u64, newcomer + 1);
                let Some((length, start)) = ranges.pop() else { continue };
                let cut = share.min(length);
                if cut < length {
                    ranges.push((length - cut, start));
                }
                if cut > 0 {
                    taken.push((cut, start + length - cut));
                }
            }
            owned.push(taken);
        }
        let ranges =
            owned.iter().enumerate().flat_map(|(group, r)| r.iter().map(move |r| (r.1 as Token, group as u32)));
        let mut starts: Vec<_> = ranges.collect();
        starts.sort_unstable();
        Self { starts }
    }

    /// The group that owns `token`.
    #[inline]
    pub fn owner(&self, token: Token) -> u32 {
        let after = self.starts.partition_point(|(start, _)| *start <= token);
        // The first range begins at 0, so that there is always one before.
        self.starts[after - 1].1
    }

    /// Tokens each group owns, by number.
    pub fn owned(&self) -> Vec<u64> {
        let groups = self.starts.iter().map(|(_, group)| *group as usize + 1).max().unwrap_or(0);
        let mut owned = vec![0; groups];
        let ends = self.starts.iter().skip(1).map(|(start, _)| u64::from(*start)).chain([SPACE]);
        for ((start, group), end) in self.starts.iter().zip(ends) {
            owned[*group as usize] += end - u64::from(*start);
        }
        owned
    }
}

/// Tokens `group` owns among `groups`: all the same, but that the remainder goes to the first.
fn share(group: u64, groups: u64) -> u64 {
    SPACE / groups + u64::from(group < SPACE % groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_groups_own_the_same_to_the_last_token() {
        for groups in 1..=100 {
            let owned = Ranges::divide(groups).owned();
            assert_eq!(owned.len(), groups as usize);
            assert_eq!(owned.iter().sum::<u64>(), SPACE);
            let spread = owned.iter().max().unwrap() - owned.iter().min().unwrap();
            assert!(spread <= 1, "{groups} groups: {spread}");
        }
        let owned = Ranges::divide(1000).owned();
        assert!(owned.iter().max().unwrap() - owned.iter().min().unwrap() <= 1);
    }

    /// Compares the divisions exactly, at every border of either.
    #[test]
    fn adding_a_group_moves_tokens_to_it_only() {
        for groups in 1..100 {
            let (before, after) = (Ranges::divide(groups), Ranges::divide(groups + 1));
            for (token, _) in before.starts.iter().chain(&after.starts) {
                let (old, new) = (before.owner(*token), after.owner(*token));
                assert!(old == new || new == groups, "token {token}: {old} → {new} as group {groups} comes");
            }
        }
    }

    #[test]
    fn ranges_stay_few() {
        let ranges = Ranges::divide(100).starts.len();
        assert!(ranges <= 1 + 99 * 100 / 2, "{ranges}");
    }
}
