//! Which part of a tenant's series a block holds, when merging has split them.

use std::fmt;

use skald_model::Labels;

/// Name of the block label that says it (Mimir's, so that its tools and ours agree).
pub const COMPACTION_SHARD_LABEL: &str = "__compactor_shard_id__";

/// The series whose stable hash, divided by `count`, leaves `index`.
///
/// Written `i_of_n`, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CompactionShard {
    index: u32,
    count: u32,
}

impl CompactionShard {
    /// All series.
    pub const ALL: Self = Self { index: 0, count: 1 };

    /// Part `index` (from zero) of `count`; `None` unless it is one of them.
    pub fn new(index: u32, count: u32) -> Option<Self> {
        (index < count).then_some(Self { index, count })
    }

    /// The shard that a label's value names.
    pub fn parse(label: &str) -> Option<Self> {
        let (ordinal, count) = label.split_once("_of_")?;
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let (ordinal, count): (u32, u32) = (number(ordinal)?, number(count)?);
        Self::new(ordinal.checked_sub(1)?, count)
    }

    /// Whether the series belongs to it.
    pub fn holds(self, labels: &Labels) -> bool {
        labels.stable_hash() % u64::from(self.count) == u64::from(self.index)
    }

    /// Its `parts` parts, which together hold just what it holds; `None` when the numbers get too large.
    pub fn split(self, parts: u32) -> Option<Vec<Self>> {
        let count = self.count.checked_mul(parts)?;
        Some((0..parts).map(|part| Self { index: self.index + part * self.count, count }).collect())
    }

    /// Which of its `parts` parts a series belongs to. One that does not belong to the shard at all goes somewhere, too.
    pub(super) fn part_of(self, parts: u32, labels: &Labels) -> usize {
        if parts == 1 {
            return 0;
        }
        (labels.stable_hash() / u64::from(self.count) % u64::from(parts)) as usize
    }
}

impl fmt::Display for CompactionShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_of_{}", u64::from(self.index) + 1, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_divide_a_shard(index in 0_u32..40, count in 1_u32..40, parts in 1_u32..9, value: String) {
            let Some(shard) = CompactionShard::new(index, count) else { return Ok(()) };
            prop_assert_eq!(CompactionShard::parse(&shard.to_string()), Some(shard));
            let labels = Labels::from_pairs([("a", value)]);
            let divided = shard.split(parts).unwrap();
            let holders: Vec<usize> = (0..divided.len()).filter(|&part| divided[part].holds(&labels)).collect();
            if shard.holds(&labels) {
                prop_assert_eq!(holders, [shard.part_of(parts, &labels)]);
            } else {
                prop_assert!(holders.is_empty());
                prop_assert!(shard.part_of(parts, &labels) < divided.len());
            }
        }
    }

    #[test]
    fn only_numbers_in_range_are_shards() {
        for wrong in ["", "1", "0_of_2", "3_of_2", "1_of_0", "+1_of_2", "1_of_2_of_3", "1 _of_2", "1_of_4294967296"] {
            assert_eq!(CompactionShard::parse(wrong), None, "{wrong}");
        }
        let last = CompactionShard::parse("4294967295_of_4294967295").unwrap();
        assert_eq!((last.to_string().as_str(), last.split(2)), ("4294967295_of_4294967295", None));
    }
}
