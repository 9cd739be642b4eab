//! How large the index of a block will be, told before any of it is written.

use hashbrown::HashSet;
use skald_model::Labels;

use super::series::SERIES_ALIGN;

/// What the index of a block may hold.
///
/// The format's own limits are bytes behind 32 bit lengths and series behind 32 bit references; the defaults leave a
/// sixteenth of them for what a forecast cannot know, such as chunks that are encoded anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexLimits {
    /// Bytes of the symbol table, and of the postings offset table.
    pub table_bytes: u64,
    /// Bytes of the entries of all series.
    pub series_bytes: u64,
    /// Series.
    pub series: u64,
}

impl Default for IndexLimits {
    fn default() -> Self {
        let most = |limit: u64| limit / 16 * 15;
        // A postings list has four bytes for each series and four for their number; the list of all is the longest.
        let all_postings = u64::from(u32::MAX) / 4 - 1;
        Self {
            table_bytes: most(u64::from(u32::MAX)),
            series_bytes: most((u64::from(u32::MAX) + 1) * SERIES_ALIGN),
            series: most(all_postings),
        }
    }
}

/// Most bytes that an entry takes beside its labels and chunks: length, two counts, checksum, padding.
const ENTRY_BYTES: u64 = 5 + 5 + 5 + 4 + SERIES_ALIGN;
/// The same for a chunk: two times and a reference, as differences; first ones are longer.
const CHUNK_BYTES: u64 = 3 * 10;
/// The same for a label: two symbol numbers.
const LABEL_BYTES: u64 = 2 * 5;
/// The same for an entry of the postings offset table beside its texts: a number, two lengths, an offset.
const OFFSET_BYTES: u64 = 1 + 5 + 5 + 10;

/// What is known of a block to be written. Costs some ten bytes per label pair, if those are counted.
pub(super) struct Forecast {
    /// Label pairs by symbol; `None` if they fit in any case.
    pairs: Option<HashSet<(u32, u32), foldhash::fast::FixedState>>,
    series: u64,
    series_bytes: u64,
    offset_bytes: u64,
}

/// Which part of a block would be larger than its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) what: &'static str,
    pub(super) len: u64,
    pub(super) limit: u64,
}

impl Forecast {
    /// Of a block whose label pairs are among those of others, whose postings offset tables have so many bytes in all.
    pub(super) fn among(offset_bytes: u64, limits: &IndexLimits) -> Self {
        let pairs = (offset_bytes > limits.table_bytes).then(HashSet::default);
        Self { pairs, series: 0, series_bytes: 0, offset_bytes: 0 }
    }

    /// Takes in a series with so many chunks; an error once no block within the limits can hold what was taken in.
    pub(super) fn add<'a>(
        &mut self,
        labels: &[(u32, u32)],
        symbol: impl Fn(u32) -> &'a [u8],
        chunks: usize,
        limits: &IndexLimits,
    ) -> Result<(), Excess> {
        self.series += 1;
        self.series_bytes += ENTRY_BYTES + CHUNK_BYTES * chunks as u64 + LABEL_BYTES * labels.len() as u64;
        if let Some(pairs) = &mut self.pairs {
            for &(name, value) in labels {
                if pairs.insert((name, value)) {
                    self.offset_bytes += OFFSET_BYTES + (symbol(name).len() + symbol(value).len()) as u64;
                }
            }
        }
        self.check(limits)
    }

    /// The same of a series that has no label pair in common with others.
    pub(super) fn add_apart(&mut self, labels: &Labels, chunks: usize, limits: &IndexLimits) -> Result<(), Excess> {
        self.series += 1;
        self.series_bytes += ENTRY_BYTES + CHUNK_BYTES * chunks as u64;
        for (name, value) in labels {
            self.series_bytes += LABEL_BYTES;
            self.offset_bytes += OFFSET_BYTES + (name.len() + value.len()) as u64;
        }
        self.check(limits)
    }

    fn check(&self, limits: &IndexLimits) -> Result<(), Excess> {
        // Each symbol stands in a pair with fewer bytes around it: the symbol table is never the larger one.
        let parts = [
            ("the postings offset table", self.offset_bytes, limits.table_bytes),
            ("the series section", self.series_bytes, limits.series_bytes),
            ("the list of all series", self.series, limits.series),
        ];
        match parts.into_iter().find(|(_, len, limit)| len > limit) {
            Some((what, len, limit)) => Err(Excess { what, len, limit }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many series fit that have one label of their own and one in common.
    fn fits(limits: IndexLimits) -> (u32, Option<&'static str>) {
        let mut forecast = Forecast::among(u64::MAX, &limits);
        let symbol = |number| if number == 1 { [b'y'; 40].as_slice() } else { b"nn" };
        for number in 0..100 {
            if let Err(excess) = forecast.add(&[(2, number + 3), (0, 1)], symbol, 2, &limits) {
                assert!(excess.len > excess.limit);
                return (number, Some(excess.what));
            }
        }
        (100, None)
    }

    #[test]
    fn each_limit_is_seen() {
        let limits = IndexLimits::default();
        assert_eq!(fits(limits), (100, None));
        assert_eq!(fits(IndexLimits { series: 30, ..limits }), (30, Some("the list of all series")));
        let (series, what) = fits(IndexLimits { series_bytes: 1150, ..limits });
        assert_eq!((series, what), (10, Some("the series section")));
        let (series, what) = fits(IndexLimits { table_bytes: 700, ..limits });
        assert!((20..30).contains(&series) && what == Some("the postings offset table"), "{series} {what:?}");
        // What is among pairs that fit is not counted.
        let mut forecast = Forecast::among(700, &IndexLimits { table_bytes: 700, ..limits });
        (0..100).for_each(|n| forecast.add(&[(0, n)], |_| b"nn", 1, &limits).unwrap());
        assert_eq!(forecast.offset_bytes, 0);
    }
}
