//! The symbol table: every label name and value of a block, once, sorted; elsewhere a number stands for each.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_table::HashTable;
use skald_model::{Labels, varint};

use super::framing::str_at;
use super::number_set::NumberSet;
use super::section::Section;
use super::series::SeriesEntry;
use super::{BlockError, BlockFile};

/// Of so many symbols (and postings offsets), one position is kept in memory.
pub(super) const SAMPLE_EVERY: u32 = 32;
/// Memory a [`LabelsReader`] may use to remember symbols before it starts anew.
const REMEMBERED_BYTES: usize = 4 << 20;

/// Reads symbols of an index by their number.
///
/// Body: `count u32 | count × (len uvarint | utf-8 bytes)`, strictly ascending. Every 32nd position is kept.
#[derive(Clone)]
pub(super) struct SymbolTable {
    section: Section,
    count: u32,
    samples: Vec<u32>,
}

impl SymbolTable {
    pub(super) fn open(section: Section) -> Result<Self, BlockError> {
        let count = section.count()?;
        let mut samples = Vec::new();
        let mut seen = 0_u32;
        let mut previous: Vec<u8> = Vec::new();
        section.walk(4..section.len(), |at, bytes| {
            let mut end = 0;
            let Some(symbol) = varint::get_slice(bytes, &mut end) else {
                return Ok(None);
            };
            if seen > 0 && previous.as_slice() >= symbol {
                return Err(section.damaged(at, "symbols are not in order"));
            }
            if seen.is_multiple_of(SAMPLE_EVERY) {
                samples.push(at as u32);
            }
            seen = seen.saturating_add(1);
            previous.clear();
            previous.extend_from_slice(symbol);
            Ok(Some(end))
        })?;
        if seen != count {
            return Err(section.damaged(0, "count of symbols is wrong"));
        }
        samples.shrink_to_fit();
        Ok(Self { section, count, samples })
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.section.memory_bytes() + self.samples.len() * size_of::<u32>()
    }

    /// Hands every symbol to `each`, ascending.
    pub(super) fn for_each(&self, mut each: impl FnMut(&str) -> Result<(), BlockError>) -> Result<(), BlockError> {
        self.section.walk(4..self.section.len(), |at, bytes| {
            let mut end = 0;
            if varint::get_slice(bytes, &mut end).is_none() {
                return Ok(None);
            }
            let symbol = str_at(bytes, &mut 0).ok_or_else(|| self.section.damaged(at, "symbol is not UTF-8"))?;
            each(symbol)?;
            Ok(Some(end))
        })
    }

    /// Hands symbol `number` to `use_it`.
    pub(super) fn get<R>(&self, number: u32, use_it: impl FnOnce(&str) -> R) -> Result<R, BlockError> {
        let missing = || self.section.damaged(0, "a series names a symbol that does not exist");
        if number >= self.count {
            return Err(missing());
        }
        let group = (number / SAMPLE_EVERY) as usize;
        let start = self.samples.get(group).copied().map(u64::from).ok_or_else(missing)?;
        let end = self.samples.get(group + 1).map_or(self.section.len(), |&end| u64::from(end));
        let mut skip = number % SAMPLE_EVERY;
        let mut use_it = Some(use_it);
        let mut found = None;
        self.section.walk(start..end, |at, bytes| {
            let mut end = 0;
            if skip > 0 {
                skip -= 1;
                return Ok(varint::get_slice(bytes, &mut end).map(|_| end));
            }
            if varint::get_slice(bytes, &mut end).is_none() {
                return Ok(None);
            }
            let symbol = str_at(bytes, &mut 0).ok_or_else(|| self.section.damaged(at, "symbol is not UTF-8"))?;
            found = use_it.take().map(|use_it| use_it(symbol));
            Ok(Some(0))
        })?;
        found.ok_or_else(missing)
    }
}

/// Turns series entries into labels, remembering the symbols it has met: neighbours share most of theirs.
pub struct LabelsReader<'a> {
    symbols: &'a SymbolTable,
    /// Symbols as `len uvarint | bytes`, just as [`Labels`] holds them.
    arena: Vec<u8>,
    known: HashMap<u32, (u32, u32), foldhash::fast::FixedState>,
    scratch: Vec<u8>,
}

impl<'a> LabelsReader<'a> {
    pub(super) fn new(symbols: &'a SymbolTable) -> Self {
        let known = HashMap::with_hasher(foldhash::fast::FixedState::default());
        Self { symbols, arena: Vec::new(), known, scratch: Vec::new() }
    }

    /// The labels of a series.
    pub fn labels(&mut self, entry: &SeriesEntry) -> Result<Labels, BlockError> {
        self.labels_of(entry.offset, &entry.labels)
    }

    /// The labels of the series whose entry at `offset` has these symbols.
    pub fn labels_of(&mut self, offset: u64, symbols: &[(u32, u32)]) -> Result<Labels, BlockError> {
        self.scratch.clear();
        for &(name, value) in symbols {
            self.put(name)?;
            self.put(value)?;
        }
        Labels::from_bytes(&self.scratch)
            .map_err(|_| BlockError::damaged(BlockFile::Index, offset, "labels of a series are not in order"))
    }

    fn put(&mut self, number: u32) -> Result<(), BlockError> {
        if let Some(&(start, end)) = self.known.get(&number) {
            self.scratch.extend_from_slice(&self.arena[start as usize..end as usize]);
            return Ok(());
        }
        if self.arena.len() > REMEMBERED_BYTES {
            self.arena.clear();
            self.known.clear();
        }
        let start = self.arena.len();
        let arena = &mut self.arena;
        self.symbols.get(number, |symbol| {
            varint::put_uvarint(arena, symbol.len() as u64);
            arena.extend_from_slice(symbol.as_bytes());
        })?;
        self.scratch.extend_from_slice(&self.arena[start..]);
        // A symbol may be up to 4 GiB long; one that large is not worth remembering.
        match (u32::try_from(start), u32::try_from(self.arena.len())) {
            (Ok(start), Ok(end)) => drop(self.known.insert(number, (start, end))),
            _ => self.arena.truncate(start),
        }
        Ok(())
    }
}

/// The symbols of a block to be written: collected in any order, then sorted and numbered.
///
/// Costs the bytes of the distinct strings plus about 16 bytes each.
#[derive(Default)]
pub struct SymbolSet {
    arena: Vec<u8>,
    /// Where each symbol ends in `arena`, in order of insertion.
    ends: Vec<u64>,
    numbers: HashTable<u32>,
    /// Seeded anew for each set: the strings are senders', who could choose colliding ones.
    hasher: foldhash::fast::RandomState,
}

/// [`SymbolSet`]s in their final order, for one block or for several that have symbols in common.
#[derive(Clone)]
pub struct SortedSymbols {
    all: Arc<AllSymbols>,
    /// Those that the block has; `None` if it has all.
    subset: Option<Arc<NumberSet>>,
}

/// What blocks share.
struct AllSymbols {
    set: SymbolSet,
    /// Insertion index by number, ascending by string.
    order: Vec<u32>,
    /// Number by insertion index.
    rank: Vec<u32>,
}

impl SymbolSet {
    fn slice<'a>(arena: &'a [u8], ends: &[u64], index: u32) -> &'a [u8] {
        let index = index as usize;
        let start = if index == 0 { 0 } else { ends[index - 1] as usize };
        &arena[start..ends[index] as usize]
    }

    /// Adds a symbol, if it is new. Refuses once the table would pass the 4 GiB a section holds.
    pub fn insert(&mut self, symbol: &str) -> Result<(), BlockError> {
        let known = self.ends.len();
        self.place(symbol)?;
        // Five bytes bound each symbol's length prefix.
        let len = self.arena.len() as u64 + 4 + 5 * self.ends.len() as u64;
        if self.ends.len() > known && len > u64::from(u32::MAX) {
            return Err(BlockError::TooLarge { what: "the symbol table", len, limit: u64::from(u32::MAX) });
        }
        Ok(())
    }

    /// A symbol's place in the order of insertion; adds it, if it is new. Several blocks may share more than one can hold.
    pub(super) fn place(&mut self, symbol: &str) -> Result<u32, BlockError> {
        let symbol = symbol.as_bytes();
        if let Some(place) = self.find(symbol) {
            return Ok(place);
        }
        let index = u32::try_from(self.ends.len()).map_err(|_| BlockError::TooLarge {
            what: "the number of symbols",
            len: self.ends.len() as u64,
            limit: u64::from(u32::MAX),
        })?;
        self.arena.extend_from_slice(symbol);
        self.ends.push(self.arena.len() as u64);
        let (arena, ends, hasher) = (&self.arena, &self.ends, &self.hasher);
        let rehash = |&i: &u32| hasher.hash_one(Self::slice(arena, ends, i));
        self.numbers.insert_unique(hasher.hash_one(symbol), index, rehash);
        Ok(index)
    }

    /// A symbol's index in order of insertion.
    fn find(&self, symbol: &[u8]) -> Option<u32> {
        let is_it = |&i: &u32| Self::slice(&self.arena, &self.ends, i) == symbol;
        self.numbers.find(self.hasher.hash_one(symbol), is_it).copied()
    }

    /// Adds every name and value of a label set.
    pub fn insert_labels(&mut self, labels: &Labels) -> Result<(), BlockError> {
        for (name, value) in labels {
            self.insert(name)?;
            self.insert(value)?;
        }
        Ok(())
    }

    /// Sorts and numbers the symbols.
    pub fn sort(self) -> SortedSymbols {
        let mut order: Vec<u32> = (0..self.ends.len() as u32).collect();
        // Not the unstable sort: when blocks are merged the symbols stand in a few sorted runs, which this one sees.
        order.sort_by(|&a, &b| {
            let text = |i| Self::slice(&self.arena, &self.ends, i);
            text(a).cmp(text(b))
        });
        let mut rank = vec![0; order.len()];
        for (number, &index) in order.iter().enumerate() {
            rank[index as usize] = number as u32;
        }
        SortedSymbols { all: Arc::new(AllSymbols { set: self, order, rank }), subset: None }
    }
}

impl SortedSymbols {
    /// How many the block has.
    pub fn len(&self) -> usize {
        self.subset.as_ref().map_or(self.all.order.len(), |subset| subset.len() as usize)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The symbols of the block in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.all.order.len() as u32)
            .filter(|&number| self.place(number).is_some())
            .map(|number| self.symbol(number))
    }

    /// The same symbols for a block that has only `used` of them.
    pub(super) fn only(&self, used: NumberSet) -> Self {
        let used = used.ranked();
        let subset = (used.len() as usize != self.all.order.len()).then(|| Arc::new(used));
        Self { all: self.all.clone(), subset }
    }

    /// How many there are in all blocks that share them: one more than the largest number.
    pub(super) fn shared_len(&self) -> usize {
        self.all.order.len()
    }

    /// The number of the symbol that was inserted in this place.
    pub(super) fn number_at(&self, place: u32) -> u32 {
        self.all.rank[place as usize]
    }

    /// A symbol's number, which all blocks share.
    pub(super) fn number(&self, symbol: &str) -> Option<u32> {
        let number = self.number_at(self.all.set.find(symbol.as_bytes())?);
        self.place(number).map(|_| number)
    }

    /// Where the symbol of a number stands in the block's own table, if it does.
    #[inline]
    pub(super) fn place(&self, number: u32) -> Option<u32> {
        match &self.subset {
            None => ((number as usize) < self.all.order.len()).then_some(number),
            Some(subset) => subset.rank(number),
        }
    }

    /// The symbol of a number this table gave.
    pub(super) fn symbol(&self, number: u32) -> &[u8] {
        SymbolSet::slice(&self.all.set.arena, &self.all.set.ends, self.all.order[number as usize])
    }

    /// The labels of which these are the numbers.
    pub(super) fn labels(&self, numbers: &[(u32, u32)]) -> Labels {
        let mut bytes = Vec::with_capacity(256);
        for number in numbers.iter().flat_map(|&(name, value)| [name, value]) {
            let symbol = self.symbol(number);
            varint::put_uvarint(&mut bytes, symbol.len() as u64);
            bytes.extend_from_slice(symbol);
        }
        Labels::from_bytes(&bytes).unwrap_or_else(|_| Labels::empty())
    }
}
