//! The postings of a block being written, gathered series by series.

use hashbrown::HashMap;
use skald_model::varint;

use crate::postings::SeriesRef;

/// Postings by label pair, coded as differences: one or two bytes per series and label, some 40 per pair.
#[derive(Default)]
pub(super) struct GatheredPostings {
    pairs: HashMap<(u32, u32), Coded, foldhash::fast::FixedState>,
    all: Coded,
}

/// An ascending list of series.
#[derive(Default)]
struct Coded {
    count: u32,
    last: SeriesRef,
    /// `first uvarint | difference uvarint …`
    differences: Vec<u8>,
}

impl Coded {
    fn push(&mut self, series: SeriesRef) {
        varint::put_uvarint(&mut self.differences, u64::from(series - self.last));
        self.last = series;
        self.count += 1;
    }

    fn list(&self, pair: Option<(u32, u32)>) -> PostingsList<'_> {
        PostingsList { pair, count: self.count, differences: &self.differences }
    }
}

/// All lists, that of all series first, the others ascending by pair.
pub(super) struct SortedPostings {
    all: Coded,
    pairs: Vec<((u32, u32), Coded)>,
}

/// One list.
pub(super) struct PostingsList<'a> {
    /// Symbols of name and value; `None` for the list of all series.
    pub(super) pair: Option<(u32, u32)>,
    /// Number of series.
    pub(super) count: u32,
    differences: &'a [u8],
}

impl GatheredPostings {
    /// Notes that `series`, larger than all before, has these labels.
    pub(super) fn add(&mut self, series: SeriesRef, labels: &[(u32, u32)]) {
        self.all.push(series);
        for &pair in labels {
            self.pairs.entry(pair).or_default().push(series);
        }
    }

    /// Puts the lists in the order of the file: symbols ascend like their strings.
    pub(super) fn sort(self) -> SortedPostings {
        let mut pairs: Vec<_> = self.pairs.into_iter().collect();
        pairs.sort_unstable_by_key(|(pair, _)| *pair);
        SortedPostings { all: self.all, pairs }
    }
}

impl SortedPostings {
    /// Number of lists.
    pub(super) fn len(&self) -> usize {
        1 + self.pairs.len()
    }

    pub(super) fn lists(&self) -> impl Iterator<Item = PostingsList<'_>> {
        let pairs = self.pairs.iter().map(|(pair, coded)| coded.list(Some(*pair)));
        std::iter::once(self.all.list(None)).chain(pairs)
    }
}

impl PostingsList<'_> {
    /// The series, ascending.
    pub(super) fn series(&self) -> impl Iterator<Item = SeriesRef> {
        let (mut at, mut last) = (0, 0);
        std::iter::from_fn(move || {
            last += varint::get_uvarint(self.differences, &mut at)? as SeriesRef;
            Some(last)
        })
    }
}
