//! Interned label names and values with reference counts that really free.

use std::hash::BuildHasher;

use hashbrown::HashTable;

/// A label name or value of one head. Ids of freed symbols are used again.
pub(super) type Symbol = u32;

/// Bytes of one text block; a longer text gets a block of its own.
const BLOCK_BYTES: usize = 64 << 10;
/// Entries per page of the entry table, which grows by pages so that it is never copied.
const PAGE_ENTRIES: usize = 4096;
/// Dead text below which compaction is not worth its while.
const MIN_DEAD_BYTES: usize = 64 << 10;

/// The symbols of one head: text to id and back.
pub(super) struct SymbolTable {
    /// Id and 32 bits of the text's hash, so that growing the table does not touch the texts.
    ids: HashTable<(Symbol, u32)>,
    hasher: foldhash::fast::RandomState,
    entries: Vec<Vec<Entry>>,
    len: usize,
    free: Vec<Symbol>,
    blocks: Vec<Vec<u8>>,
    live_bytes: usize,
    dead_bytes: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    block: u32,
    offset: u32,
    len: u32,
    /// Series that use the symbol, counted once per use; 0 when the id is free.
    references: u32,
}

impl Default for SymbolTable {
    fn default() -> Self {
        Self {
            ids: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            entries: Vec::new(),
            len: 0,
            free: Vec::new(),
            blocks: Vec::new(),
            live_bytes: 0,
            dead_bytes: 0,
        }
    }
}

/// The table's hash function sees 32 bits: the low ones choose the bucket, the high ones the tag.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl SymbolTable {
    /// The id of `text`, if a series uses it.
    pub(super) fn get(&self, text: &str) -> Option<Symbol> {
        let hash = self.hasher.hash_one(text) as u32;
        self.ids.find(spread(hash), |(id, h)| *h == hash && self.text(*id) == text).map(|(id, _)| *id)
    }

    /// The id of `text`, with one more reference; `None` when four billion symbols are taken.
    pub(super) fn intern(&mut self, text: &str) -> Option<Symbol> {
        let hash = self.hasher.hash_one(text) as u32;
        if let Some((id, _)) = self.ids.find(spread(hash), |(id, h)| *h == hash && self.text(*id) == text) {
            let id = *id;
            let entry = self.entry_mut(id)?;
            entry.references = entry.references.checked_add(1)?;
            return Some(id);
        }
        let (block, offset) = self.store(text.as_bytes())?;
        let entry = Entry { block, offset, len: u32::try_from(text.len()).ok()?, references: 1 };
        let id = match self.free.pop() {
            Some(id) => {
                *self.entry_mut(id)? = entry;
                id
            }
            None => {
                let id = u32::try_from(self.len).ok()?;
                match self.entries.last_mut() {
                    Some(page) if page.len() < PAGE_ENTRIES => page.push(entry),
                    _ => self.entries.push(vec![entry]),
                }
                self.len += 1;
                id
            }
        };
        self.ids.insert_unique(spread(hash), (id, hash), |(_, h)| spread(*h));
        Some(id)
    }

    /// Takes one reference away and frees the symbol with the last one.
    pub(super) fn release(&mut self, id: Symbol) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.references = entry.references.saturating_sub(1);
        if entry.references > 0 {
            return;
        }
        let len = entry.len as usize;
        let hash = self.hasher.hash_one(self.text(id)) as u32;
        if let Ok(found) = self.ids.find_entry(spread(hash), |(other, _)| *other == id) {
            found.remove();
            self.free.push(id);
            self.live_bytes -= len;
            self.dead_bytes += len;
        }
    }

    /// The text of a symbol in use; empty for an id that is not.
    #[inline]
    pub(super) fn text(&self, id: Symbol) -> &str {
        let entry = self.entries.get(id as usize / PAGE_ENTRIES).and_then(|page| page.get(id as usize % PAGE_ENTRIES));
        let bytes = entry.and_then(|entry| {
            self.blocks.get(entry.block as usize)?.get(entry.offset as usize..(entry.offset + entry.len) as usize)
        });
        #[expect(unsafe_code, reason = "checking UTF-8 again took a fifth of a select's time")]
        // SAFETY: entries are made in `intern` and moved in `compact` only, and always span exactly the bytes of a `&str`
        // that was stored there; blocks are never written elsewhere. Entries of freed ids keep their old span, and once
        // `compact` has replaced the blocks they are set to span nothing.
        unsafe {
            std::str::from_utf8_unchecked(bytes.unwrap_or_default())
        }
    }

    fn entry_mut(&mut self, id: Symbol) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize / PAGE_ENTRIES)?.get_mut(id as usize % PAGE_ENTRIES)
    }

    fn store(&mut self, bytes: &[u8]) -> Option<(u32, u32)> {
        let fits = self.blocks.last().is_some_and(|block| block.len() + bytes.len() <= BLOCK_BYTES);
        if !fits {
            self.blocks.push(Vec::new());
        }
        let index = self.blocks.len() - 1;
        let block = self.blocks.last_mut()?;
        let offset = block.len();
        block.extend_from_slice(bytes);
        self.live_bytes += bytes.len();
        Some((u32::try_from(index).ok()?, u32::try_from(offset).ok()?))
    }

    /// Gives memory of freed symbols back once it is more than that of living ones.
    pub(super) fn compact(&mut self) {
        self.drop_free_pages();
        if self.dead_bytes < MIN_DEAD_BYTES || self.dead_bytes < self.live_bytes {
            return;
        }
        let old = std::mem::take(&mut self.blocks);
        (self.live_bytes, self.dead_bytes) = (0, 0);
        for page in 0..self.entries.len() {
            for index in 0..self.entries[page].len() {
                let entry = self.entries[page][index];
                if entry.references == 0 {
                    self.entries[page][index] = Entry { block: 0, offset: 0, len: 0, references: 0 };
                    continue;
                }
                let bytes = &old[entry.block as usize][entry.offset as usize..(entry.offset + entry.len) as usize];
                // There is room for fewer symbols than there was for all; were there not, the text would be empty.
                let (block, offset, len) =
                    self.store(bytes).map_or((0, 0, 0), |(block, offset)| (block, offset, entry.len));
                self.entries[page][index] = Entry { block, offset, len, ..entry };
            }
        }
        self.ids.shrink_to_fit(|(_, hash)| spread(*hash));
        self.free.shrink_to_fit();
    }

    /// All ids are below this.
    pub(super) fn bound(&self) -> usize {
        self.len
    }

    /// Gives back the entries behind the last one in use: churn takes ids from the end, and those that stay are old.
    fn drop_free_pages(&mut self) {
        let pages = self.entries.len();
        while self.entries.last().is_some_and(|page| page.iter().all(|entry| entry.references == 0)) {
            self.len -= self.entries.pop().map_or(0, |page| page.len());
        }
        if self.entries.len() < pages {
            let len = self.len;
            self.free.retain(|id| (*id as usize) < len);
            self.free.shrink_to_fit();
        }
    }

    /// Symbols in use.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.blocks.iter().map(Vec::capacity).sum::<usize>()
            + self.entries.iter().map(|page| page.capacity() * size_of::<Entry>()).sum::<usize>()
            + self.ids.allocation_size()
            + self.free.capacity() * size_of::<Symbol>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_counting_map(steps in proptest::collection::vec((0..12_u8, any::<bool>()), 0..200)) {
            let mut table = SymbolTable::default();
            let mut model: BTreeMap<String, (Symbol, u32)> = BTreeMap::new();
            for (at, (text, take)) in steps.into_iter().enumerate() {
                let text = "x".repeat(text as usize);
                if at % 16 == 15 {
                    table.compact();
                }
                if take {
                    let id = table.intern(&text).unwrap();
                    let known = model.entry(text.clone()).or_insert((id, 0));
                    prop_assert_eq!(known.0, id);
                    known.1 += 1;
                } else if let Some((id, count)) = model.get_mut(&text) {
                    table.release(*id);
                    *count -= 1;
                    if *count == 0 {
                        model.remove(&text);
                    }
                }
                for (text, (id, _)) in &model {
                    prop_assert_eq!(table.text(*id), text);
                }
                prop_assert_eq!((table.get(&text), table.len()), (model.get(&text).map(|m| m.0), model.len()));
            }
        }
    }

    #[test]
    fn memory_of_freed_symbols_comes_back() {
        let mut table = SymbolTable::default();
        let text = |round: u32, i: u32| format!("{round}-{i}-{}", "y".repeat(80));
        let mut sizes = Vec::new();
        for round in 0..6 {
            let ids: Vec<_> = (0..20_000).map(|i| table.intern(&text(round, i)).unwrap()).collect();
            sizes.push(table.heap_bytes());
            ids.iter().for_each(|id| table.release(*id));
            table.compact();
        }
        assert_eq!(table.len(), 0);
        assert!(table.heap_bytes() < 64 << 10 && sizes[5] < sizes[0] * 5 / 4, "{sizes:?} {}", table.heap_bytes());
    }
}
