//! How many blocks a set of series takes, told before any is written.

use skald_model::Labels;

use super::compaction_shard::CompactionShard;
use super::forecast::{Excess, Forecast, IndexLimits};
use super::number_set::NumberSet;
use super::symbols::{SortedSymbols, SymbolSet};
use super::{BlockError, MAX_PARTS};

/// The blocks for a set of series: one, or several by series where one index could not hold them all.
pub struct BlockSplit {
    symbols: Vec<SortedSymbols>,
}

impl BlockSplit {
    /// Splits the series that `walk` hands, each with its number of chunks, to what it is given. It is called once, and again
    /// only where one block may be too small. In memory are the symbols, and then all label pairs.
    pub fn foresee<E: From<BlockError>>(
        limits: &IndexLimits,
        mut walk: impl FnMut(&mut dyn FnMut(&Labels, usize) -> Result<(), BlockError>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut set = SymbolSet::default();
        let mut whole = Forecast::among(0, limits);
        let mut fits = true;
        walk(&mut |labels, chunks| {
            for (name, value) in labels {
                set.place(name)?;
                set.place(value)?;
            }
            // As if no two series had a label pair in common: mostly that is little enough.
            fits &= whole.add_apart(labels, chunks, limits).is_ok();
            Ok(())
        })?;
        let symbols = set.sort();
        if fits {
            return Ok(Self { symbols: vec![symbols] });
        }
        let mut parts = 1;
        loop {
            let excess = match Self::into_parts(&symbols, parts, limits, &mut walk)? {
                Ok(split) => return Ok(split),
                Err(excess) => excess,
            };
            if parts >= MAX_PARTS {
                let Excess { what, len, limit } = excess;
                return Err(BlockError::TooLarge { what, len, limit }.into());
            }
            parts *= 2;
        }
    }

    fn into_parts<E: From<BlockError>>(
        symbols: &SortedSymbols,
        parts: u32,
        limits: &IndexLimits,
        walk: &mut impl FnMut(&mut dyn FnMut(&Labels, usize) -> Result<(), BlockError>) -> Result<(), E>,
    ) -> Result<Result<Self, Excess>, E> {
        let part = |_| (Forecast::among(u64::MAX, limits), NumberSet::below(symbols.shared_len()));
        let mut forecasts: Vec<_> = (0..parts).map(part).collect();
        let mut excess = None;
        let mut numbers = Vec::new();
        walk(&mut |labels, chunks| {
            if excess.is_some() {
                return Ok(());
            }
            numbers.clear();
            for (name, value) in labels {
                let number =
                    |text| symbols.number(text).ok_or_else(|| BlockError::Input(format!("new label: {labels}")));
                numbers.push((number(name)?, number(value)?));
            }
            let (forecast, used) = &mut forecasts[CompactionShard::ALL.part_of(parts, labels)];
            numbers.iter().for_each(|&(name, value)| {
                used.insert(name);
                used.insert(value);
            });
            excess = forecast.add(&numbers, |number| symbols.symbol(number), chunks, limits).err();
            Ok(())
        })?;
        Ok(match excess {
            Some(excess) => Err(excess),
            None => Ok(Self { symbols: forecasts.into_iter().map(|(_, used)| symbols.only(used)).collect() }),
        })
    }

    /// The symbols of each block.
    pub fn symbols(&self) -> impl Iterator<Item = SortedSymbols> {
        self.symbols.iter().cloned()
    }

    /// Which of the blocks a series belongs to.
    pub fn part_of(&self, labels: &Labels) -> usize {
        CompactionShard::ALL.part_of(self.symbols.len() as u32, labels)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn labels(number: u32) -> Labels {
        Labels::from_pairs([("job", "a".to_owned()), ("series", format!("{number:0100}"))])
    }

    /// How many series each block gets; their symbols are checked.
    fn split(limits: IndexLimits) -> Result<Vec<usize>, BlockError> {
        let series: Vec<Labels> = (0..100).map(labels).collect();
        let split = BlockSplit::foresee(&limits, |each| series.iter().try_for_each(|labels| each(labels, 3)))?;
        let mut parts = Vec::new();
        for (part, symbols) in split.symbols().enumerate() {
            let mine: Vec<&Labels> = series.iter().filter(|labels| split.part_of(labels) == part).collect();
            let texts: BTreeSet<&[u8]> =
                mine.iter().flat_map(|labels| labels.iter()).flat_map(|(n, v)| [n.as_bytes(), v.as_bytes()]).collect();
            assert_eq!(symbols.iter().collect::<Vec<_>>(), texts.into_iter().collect::<Vec<_>>());
            parts.push(mine.len());
        }
        assert_eq!(parts.iter().sum::<usize>(), 100);
        Ok(parts)
    }

    #[test]
    fn one_block_takes_what_fits() {
        let limits = IndexLimits::default();
        assert_eq!(split(limits).unwrap(), [100]);
        // Counted apart the pairs are too many, counted together they are not.
        assert_eq!(split(IndexLimits { table_bytes: 13_000, ..limits }).unwrap(), [100]);
    }

    #[test]
    fn what_does_not_fit_is_split_by_series() {
        let limits = IndexLimits::default();
        let parts = split(IndexLimits { series: 40, ..limits }).unwrap();
        assert!(parts.len() == 4 && parts.iter().all(|series| *series <= 40), "{parts:?}");
        assert!(split(IndexLimits { table_bytes: 4_000, ..limits }).unwrap().len() >= 4);
        assert!(split(IndexLimits { series_bytes: 9_000, ..limits }).unwrap().len() >= 2);
        let refused = split(IndexLimits { table_bytes: 100, ..limits });
        assert!(matches!(refused, Err(BlockError::TooLarge { what: "the postings offset table", .. })), "{refused:?}");
    }
}
