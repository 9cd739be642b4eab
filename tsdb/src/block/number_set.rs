//! A set of small numbers that gives each of them its place.

/// Numbers below a bound, one bit each. Filled first, ranked then.
#[derive(Default)]
pub(super) struct NumberSet {
    words: Vec<u64>,
    /// How many numbers stand in the words before each.
    before: Vec<u32>,
    len: u32,
}

impl NumberSet {
    /// An empty set for numbers below `bound`.
    pub(super) fn below(bound: usize) -> Self {
        Self { words: vec![0; bound.div_ceil(64)], before: Vec::new(), len: 0 }
    }

    /// Adds a number below the bound.
    #[inline]
    pub(super) fn insert(&mut self, number: u32) {
        self.words[number as usize / 64] |= 1 << (number % 64);
    }

    /// Counts the numbers, so that [`NumberSet::rank`] and [`NumberSet::len`] tell.
    pub(super) fn ranked(mut self) -> Self {
        self.len = 0;
        self.before.clear();
        for word in &self.words {
            self.before.push(self.len);
            self.len += word.count_ones();
        }
        self
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// How many smaller ones are in the set; `None` if `number` is not itself.
    #[inline]
    pub(super) fn rank(&self, number: u32) -> Option<u32> {
        let (at, bit) = (number as usize / 64, 1 << (number % 64));
        let word = *self.words.get(at)?;
        (word & bit != 0).then(|| self.before[at] + (word & (bit - 1)).count_ones())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranks_are_places_in_order(numbers in proptest::collection::btree_set(0_u32..400, 0..200)) {
            let mut set = NumberSet::below(400);
            numbers.iter().for_each(|&number| set.insert(number));
            let set = set.ranked();
            let ranks: BTreeSet<_> = (0..500).filter_map(|number| Some((set.rank(number)?, number))).collect();
            prop_assert_eq!(set.len() as usize, numbers.len());
            prop_assert_eq!(ranks, numbers.into_iter().enumerate().map(|(at, n)| (at as u32, n)).collect());
        }
    }
}
