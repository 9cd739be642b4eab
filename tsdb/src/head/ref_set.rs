//! A set of series refs that stays small: one inline, few as a list, many in containers of 65,536.

use crate::postings::SeriesRef;

/// Refs up to which a plain list is kept.
const MAX_LIST: usize = 64;
/// Refs of a container up to which they are listed as `u16`; beyond, a bitmap of 8 KiB is smaller.
const MAX_SPARSE: usize = 4096;
const BITMAP_WORDS: usize = 1024;

/// A sorted set of series refs.
#[derive(Clone)]
pub(super) enum RefSet {
    One(SeriesRef),
    #[expect(clippy::box_collection, reason = "keeps a set at 16 bytes: there is one per label pair")]
    List(Box<Vec<SeriesRef>>),
    /// Ascending by key, none empty.
    #[expect(clippy::box_collection, reason = "likewise")]
    Containers(Box<Vec<Container>>),
}

/// The refs that share their upper 16 bits.
#[derive(Clone)]
pub(super) struct Container {
    key: u16,
    len: u32,
    low: Low,
}

#[derive(Clone)]
enum Low {
    Sparse(Vec<u16>),
    Bitmap(Box<[u64; BITMAP_WORDS]>),
}

impl RefSet {
    /// Adds a ref; adding one that is there changes nothing.
    pub(super) fn insert(&mut self, series: SeriesRef) {
        match self {
            Self::One(only) if *only == series => {}
            Self::One(only) => *self = Self::List(Box::new(vec![series.min(*only), series.max(*only)])),
            Self::List(list) => {
                match list.last() {
                    Some(last) if *last < series => list.push(series),
                    _ => match list.binary_search(&series) {
                        Ok(_) => return,
                        Err(at) => list.insert(at, series),
                    },
                }
                if list.len() > MAX_LIST {
                    let mut containers = Vec::new();
                    list.iter().for_each(|series| insert_into(&mut containers, *series));
                    *self = Self::Containers(Box::new(containers));
                }
            }
            Self::Containers(containers) => insert_into(containers, series),
        }
    }

    /// Removes a ref; `true` when the set is then empty (and must be thrown away).
    #[must_use]
    pub(super) fn remove(&mut self, series: SeriesRef) -> bool {
        match self {
            Self::One(only) => *only == series,
            Self::List(list) => {
                if let Ok(at) = list.binary_search(&series) {
                    list.remove(at);
                    give_back(list);
                }
                list.is_empty()
            }
            Self::Containers(containers) => {
                let Ok(at) = containers.binary_search_by_key(&((series >> 16) as u16), |c| c.key) else {
                    return false;
                };
                containers[at].remove(series as u16);
                if containers[at].len == 0 {
                    containers.remove(at);
                }
                containers.is_empty()
            }
        }
    }

    /// Number of refs.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::List(list) => list.len(),
            Self::Containers(containers) => containers.iter().map(|c| c.len as usize).sum(),
        }
    }

    /// The largest ref.
    pub(super) fn max(&self) -> Option<SeriesRef> {
        match self {
            Self::One(only) => Some(*only),
            Self::List(list) => list.last().copied(),
            Self::Containers(containers) => {
                let last = containers.last()?;
                let low = match &last.low {
                    Low::Sparse(list) => *list.last()?,
                    Low::Bitmap(words) => {
                        let (index, word) = words.iter().enumerate().rfind(|(_, word)| **word != 0)?;
                        (index * 64) as u16 + (63 - word.leading_zeros()) as u16
                    }
                };
                Some(u32::from(last.key) << 16 | u32::from(low))
            }
        }
    }

    /// Appends the refs, ascending.
    pub(super) fn append_to(&self, out: &mut Vec<SeriesRef>) {
        match self {
            Self::One(only) => out.push(*only),
            Self::List(list) => out.extend_from_slice(list),
            Self::Containers(containers) => containers.iter().for_each(|container| container.append_to(out)),
        }
    }

    /// Sets the refs' bits in a bitmap. Refs past its end are left out: series that came after it was made.
    pub(super) fn mark(&self, bits: &mut [u64]) {
        let mut set = |series: SeriesRef| {
            if let Some(word) = bits.get_mut(series as usize / 64) {
                *word |= 1 << (series % 64);
            }
        };
        match self {
            Self::One(only) => set(*only),
            Self::List(list) => list.iter().copied().for_each(set),
            Self::Containers(containers) => containers.iter().for_each(|container| container.mark(bits)),
        }
    }

    /// The refs, ascending.
    pub(super) fn to_vec(&self) -> Vec<SeriesRef> {
        match self {
            Self::One(only) => vec![*only],
            Self::List(list) => list.as_ref().clone(),
            Self::Containers(_) => {
                let mut out = Vec::with_capacity(self.len());
                self.append_to(&mut out);
                out
            }
        }
    }

    /// Heap bytes, beyond the set's own size.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::List(list) => size_of::<Vec<SeriesRef>>() + list.capacity() * size_of::<SeriesRef>(),
            Self::Containers(containers) => {
                let of = |container: &Container| match &container.low {
                    Low::Sparse(list) => list.capacity() * 2,
                    Low::Bitmap(_) => BITMAP_WORDS * 8,
                };
                size_of::<Vec<Container>>()
                    + containers.capacity() * size_of::<Container>()
                    + containers.iter().map(of).sum::<usize>()
            }
        }
    }
}

/// Shrinks a list of which little is left; so rarely that removing all of it stays linear.
fn give_back<T>(list: &mut Vec<T>) {
    if list.capacity() > 16 && list.capacity() > 4 * list.len() {
        list.shrink_to(2 * list.len());
    }
}

fn insert_into(containers: &mut Vec<Container>, series: SeriesRef) {
    let key = (series >> 16) as u16;
    let at = match containers.last() {
        Some(last) if last.key == key => containers.len() - 1,
        _ => match containers.binary_search_by_key(&key, |c| c.key) {
            Ok(at) => at,
            Err(at) => {
                containers.insert(at, Container { key, len: 0, low: Low::Sparse(Vec::new()) });
                at
            }
        },
    };
    containers[at].insert(series as u16);
}

impl Container {
    fn insert(&mut self, low: u16) {
        match &mut self.low {
            Low::Sparse(list) => {
                match list.last() {
                    Some(last) if *last < low => list.push(low),
                    None => list.push(low),
                    _ => match list.binary_search(&low) {
                        Ok(_) => return,
                        Err(at) => list.insert(at, low),
                    },
                }
                if list.len() > MAX_SPARSE {
                    let mut words = Box::new([0; BITMAP_WORDS]);
                    list.iter().for_each(|low| words[usize::from(*low) / 64] |= 1 << (low % 64));
                    self.low = Low::Bitmap(words);
                }
                self.len += 1;
            }
            Low::Bitmap(words) => {
                let word = &mut words[usize::from(low) / 64];
                self.len += u32::from(*word >> (low % 64) & 1 == 0);
                *word |= 1 << (low % 64);
            }
        }
    }

    fn remove(&mut self, low: u16) {
        match &mut self.low {
            Low::Sparse(list) => {
                if let Ok(at) = list.binary_search(&low) {
                    list.remove(at);
                    give_back(list);
                    self.len -= 1;
                }
            }
            Low::Bitmap(words) => {
                let word = &mut words[usize::from(low) / 64];
                self.len -= u32::from(*word >> (low % 64) & 1 == 1);
                *word &= !(1 << (low % 64));
                // Well below the limit, so that a set at the limit does not change its form with every call.
                if (self.len as usize) < MAX_SPARSE / 2 {
                    let mut list = Vec::with_capacity(self.len as usize);
                    for_each_bit(words.as_slice(), |low| list.push(low as u16));
                    self.low = Low::Sparse(list);
                }
            }
        }
    }

    fn append_to(&self, out: &mut Vec<SeriesRef>) {
        let high = u32::from(self.key) << 16;
        match &self.low {
            Low::Sparse(list) => out.extend(list.iter().map(|low| high | u32::from(*low))),
            Low::Bitmap(words) => for_each_bit(words.as_slice(), |low| out.push(high | low)),
        }
    }

    fn mark(&self, bits: &mut [u64]) {
        let Some(bits) = bits.get_mut(usize::from(self.key) * BITMAP_WORDS..) else { return };
        match &self.low {
            Low::Sparse(list) => list.iter().for_each(|low| {
                if let Some(word) = bits.get_mut(usize::from(*low) / 64) {
                    *word |= 1 << (low % 64);
                }
            }),
            Low::Bitmap(words) => bits.iter_mut().zip(words.iter()).for_each(|(to, from)| *to |= from),
        }
    }
}

/// The numbers of the bits that are set, ascending.
pub(super) fn for_each_bit(words: &[u64], mut visit: impl FnMut(u32)) {
    for (index, word) in words.iter().enumerate() {
        let mut left = *word;
        while left != 0 {
            visit((index * 64) as u32 + left.trailing_zeros());
            left &= left - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(
            first in 0_u32..200_000,
            steps in proptest::collection::vec((0_u32..200_000, 1_u32..3000, any::<bool>()), 0..12),
        ) {
            let mut set = RefSet::One(first);
            let mut model = BTreeSet::from([first]);
            for (start, count, add) in steps {
                for series in start..start + count {
                    if add {
                        set.insert(series);
                        model.insert(series);
                    } else if series != first {
                        prop_assert!(!set.remove(series));
                        model.remove(&series);
                    }
                }
                prop_assert_eq!(set.len(), model.len());
            }
            prop_assert_eq!(set.to_vec(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.max(), model.last().copied());
            let mut bits = vec![0; set.max().unwrap() as usize / 64 + 1];
            set.mark(&mut bits);
            let mut marked = Vec::new();
            for_each_bit(&bits, |series| marked.push(series));
            prop_assert_eq!(&marked, &set.to_vec());
            // A bitmap from before the last ones came.
            let mut bits = vec![0; 1 + first as usize / 64];
            set.mark(&mut bits);
            let (mut early, end) = (Vec::new(), 64 * bits.len() as u32);
            for_each_bit(&bits, |series| early.push(series));
            marked.retain(|series| *series < end);
            prop_assert_eq!(early, marked);
            let last = model.last().copied();
            for series in model {
                prop_assert_eq!(set.remove(series), Some(series) == last);
            }
        }
    }

    #[test]
    fn sets_that_shrink_give_their_memory_back() {
        // Every hundredth series stays: the pods of one metric after a day of churn.
        let mut set = RefSet::One(0);
        (1..300_000).for_each(|series| set.insert(series));
        (0..300_000).filter(|series| series % 100 != 0).for_each(|series| assert!(!set.remove(series)));
        let mut fresh = RefSet::One(0);
        (1..3000).for_each(|series| fresh.insert(series * 100));
        assert_eq!(set.to_vec(), fresh.to_vec());
        assert!(set.heap_bytes() <= 2 * fresh.heap_bytes(), "{} {}", set.heap_bytes(), fresh.heap_bytes());
    }

    #[test]
    fn dense_sets_cost_a_bit_per_series() {
        let mut set = RefSet::One(0);
        (1..1_000_000).for_each(|series| set.insert(series));
        assert!(set.heap_bytes() < 140_000, "{}", set.heap_bytes());
    }
}
