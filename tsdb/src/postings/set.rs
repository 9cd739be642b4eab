//! Set operations on strictly ascending lists of series.

use super::SeriesRef;

/// From this ratio of lengths on, searching the longer list beats walking it.
const GALLOP_RATIO: usize = 16;
/// A union is done in a bitmap when its span is at most this many times its number of entries.
const BITMAP_SPARSITY: usize = 64;

/// First index at or after `from` whose entry is at least `target`; doubling steps, then bisection.
#[inline]
fn gallop(list: &[SeriesRef], from: usize, target: SeriesRef) -> usize {
    let rest = &list[from..];
    let mut step = 1;
    while step < rest.len() && rest[step] < target {
        step *= 2;
    }
    let (low, high) = (step / 2, (step + 1).min(rest.len()));
    from + low + rest[low..high].partition_point(|&r| r < target)
}

/// Keeps in `list` what `other` holds too.
pub fn intersect(list: &mut Vec<SeriesRef>, other: &[SeriesRef]) {
    if list.len() > other.len().saturating_mul(GALLOP_RATIO) {
        let mut at = 0;
        let mut kept = 0;
        for &wanted in other {
            at = gallop(list, at, wanted);
            match list.get(at) {
                Some(&found) if found == wanted => {
                    list[kept] = found;
                    kept += 1;
                    at += 1;
                }
                Some(_) => {}
                None => break,
            }
        }
        list.truncate(kept);
    } else {
        let mut cursor = Cursor::new(other, list.len());
        list.retain(|&r| cursor.holds(r));
    }
}

/// Removes from `list` what `other` holds.
pub fn subtract(list: &mut Vec<SeriesRef>, other: &[SeriesRef]) {
    let mut cursor = Cursor::new(other, list.len());
    list.retain(|&r| !cursor.holds(r));
}

/// Answers ascending membership questions about a list.
struct Cursor<'a> {
    list: &'a [SeriesRef],
    at: usize,
    gallop: bool,
}

impl<'a> Cursor<'a> {
    fn new(list: &'a [SeriesRef], questions: usize) -> Self {
        Self { list, at: 0, gallop: list.len() > questions.saturating_mul(GALLOP_RATIO) }
    }

    #[inline]
    fn holds(&mut self, wanted: SeriesRef) -> bool {
        if self.gallop {
            self.at = gallop(self.list, self.at, wanted);
        } else {
            while self.list.get(self.at).is_some_and(|&r| r < wanted) {
                self.at += 1;
            }
        }
        self.list.get(self.at) == Some(&wanted)
    }
}

/// Everything any of the lists holds.
///
/// Many lists that lie close together are united in a bitmap, else by merging neighbours in rounds.
pub fn union<L: AsRef<[SeriesRef]>>(lists: &[L]) -> Vec<SeriesRef> {
    let lists: Vec<&[SeriesRef]> = lists.iter().map(AsRef::as_ref).filter(|l| !l.is_empty()).collect();
    match lists.as_slice() {
        [] => return Vec::new(),
        [only] => return only.to_vec(),
        [a, b] => return merge(a, b),
        _ => {}
    }
    let total: usize = lists.iter().map(|l| l.len()).sum();
    let min = lists.iter().filter_map(|l| l.first()).min().copied().unwrap_or_default();
    let max = lists.iter().filter_map(|l| l.last()).max().copied().unwrap_or_default();
    if (max - min) as usize / BITMAP_SPARSITY <= total {
        return bitmap_union(&lists, min, max, total);
    }
    let mut round: Vec<Vec<SeriesRef>> = lists.chunks(2).map(merge_pair).collect();
    while round.len() > 1 {
        round = round.chunks(2).map(merge_pair).collect();
    }
    round.pop().unwrap_or_default()
}

fn merge_pair<L: AsRef<[SeriesRef]>>(pair: &[L]) -> Vec<SeriesRef> {
    match pair {
        [a, b] => merge(a.as_ref(), b.as_ref()),
        _ => pair.first().map_or_else(Vec::new, |l| l.as_ref().to_vec()),
    }
}

fn merge(a: &[SeriesRef], b: &[SeriesRef]) -> Vec<SeriesRef> {
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while let (Some(&x), Some(&y)) = (a.get(i), b.get(j)) {
        out.push(x.min(y));
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    out.extend_from_slice(&a[i..]);
    out.extend_from_slice(&b[j..]);
    out
}

fn bitmap_union(lists: &[&[SeriesRef]], min: SeriesRef, max: SeriesRef, total: usize) -> Vec<SeriesRef> {
    let mut bits = vec![0_u64; (max - min) as usize / 64 + 1];
    for list in lists {
        for &r in *list {
            bits[(r - min) as usize / 64] |= 1 << ((r - min) % 64);
        }
    }
    let mut out = Vec::with_capacity(total.min((max - min) as usize + 1));
    for (word, &bits) in bits.iter().enumerate() {
        let mut left = bits;
        while left != 0 {
            out.push(min + (word as u32) * 64 + left.trailing_zeros());
            left &= left - 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn list(span: u32) -> impl Strategy<Value = Vec<SeriesRef>> {
        proptest::collection::btree_set(0..span, 0..200).prop_map(|s| s.into_iter().collect())
    }

    fn any_list() -> impl Strategy<Value = Vec<SeriesRef>> {
        prop_oneof![list(5), list(300), list(u32::MAX), Just(Vec::new())]
    }

    proptest! {
        #[test]
        fn operations_agree_with_sets(a in any_list(), b in any_list()) {
            let (sa, sb): (BTreeSet<_>, BTreeSet<_>) = (a.iter().copied().collect(), b.iter().copied().collect());
            let mut both = a.clone();
            intersect(&mut both, &b);
            prop_assert_eq!(both, sa.intersection(&sb).copied().collect::<Vec<_>>());
            let mut without = a.clone();
            subtract(&mut without, &b);
            prop_assert_eq!(without, sa.difference(&sb).copied().collect::<Vec<_>>());
        }

        #[test]
        fn union_agrees_with_sets(lists in proptest::collection::vec(any_list(), 0..9)) {
            let expected: BTreeSet<_> = lists.iter().flatten().copied().collect();
            prop_assert_eq!(union(&lists), expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn extremes_unite() {
        assert_eq!(union(&[vec![0, u32::MAX], vec![1], vec![u32::MAX]]), [0, 1, u32::MAX]);
    }
}
