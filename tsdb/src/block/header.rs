//! The part of an index that every read needs: its symbols and where its postings are.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::framing::{u32_at, u64_at};
use super::postings_table::PostingsTable;
use super::section::Section;
use super::symbols::{LabelsReader, SymbolTable};
use super::toc::{INDEX_HEADER_LEN, TOC_LEN, Toc, check_index_magic};
use super::{BlockError, BlockFile};
use crate::bounded::Progress;
use crate::disk::{Disk, DiskFile};
use crate::postings::PostingsSource;

/// First bytes of a stored header: "SKIH" and a version.
const STORED_MAGIC: u32 = 0x534B_4948;
const STORED_VERSION: u32 = 1;
/// `magic u32 | version u32 | index_len u64 | toc`
const STORED_FIXED_LEN: u64 = 16 + TOC_LEN;

/// The ranges of an index an [`IndexHeader`] is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRanges {
    /// Magic, version and symbol table.
    pub symbols: Range<u64>,
    /// The postings offset table.
    pub postings_table: Range<u64>,
}

impl HeaderRanges {
    /// Where an index with this table of contents has them.
    pub fn of(toc: &Toc) -> Self {
        Self { symbols: 0..toc.series, postings_table: toc.postings_table..toc.index_len - TOC_LEN }
    }
}

/// Symbols and postings offsets of an index, ready for lookups.
///
/// Made either of bytes in memory ([`IndexHeader::parse`]) or of a local copy ([`IndexHeader::open`]); the latter keeps
/// one position of 32 in memory and reads the rest when asked. Both have verified checksums, counts and order.
#[derive(Clone)]
pub struct IndexHeader {
    toc: Toc,
    symbols: SymbolTable,
    postings: PostingsTable,
}

impl IndexHeader {
    /// Builds a header from the two [`HeaderRanges`] of an index.
    pub fn parse(toc: Toc, symbols: &Bytes, postings_table: &Bytes) -> Result<Self, BlockError> {
        check_index_magic(symbols)?;
        let after_magic = symbols.slice(symbols.len().min(toc.symbols as usize)..);
        let symbols = SymbolTable::open(Section::from_bytes(toc.symbols, &after_magic)?)?;
        let postings = PostingsTable::open(Section::from_bytes(toc.postings_table, postings_table)?, &toc)?;
        Ok(Self { toc, symbols, postings })
    }

    /// Stores the two [`HeaderRanges`] of an index as a local file for [`IndexHeader::open`], durably and at once.
    ///
    /// Layout, big-endian: `"SKIH" | version u32 | index_len u64 | toc | symbols range | postings_table range`.
    pub fn store(
        disk: &dyn Disk,
        path: &Path,
        toc: &Toc,
        symbols: &[u8],
        postings_table: &[u8],
    ) -> Result<(), BlockError> {
        let io = BlockError::io;
        let mut fixed = Vec::with_capacity(STORED_FIXED_LEN as usize);
        fixed.extend_from_slice(&STORED_MAGIC.to_be_bytes());
        fixed.extend_from_slice(&STORED_VERSION.to_be_bytes());
        fixed.extend_from_slice(&toc.index_len.to_be_bytes());
        fixed.extend_from_slice(&toc.encode());
        let temporary = path.with_extension("tmp");
        let write = || {
            let file = disk.create(&temporary)?;
            for bytes in [&fixed, symbols, postings_table] {
                file.append(bytes)?;
            }
            file.sync()?;
            disk.rename(&temporary, path)?;
            path.parent().map_or(Ok(()), |parent| disk.sync_dir(parent))
        };
        write().inspect_err(|_| drop(disk.remove_file(&temporary))).map_err(io(BlockFile::IndexHeader))
    }

    /// Opens a header that [`IndexHeader::store`] wrote, in one pass of bounded memory.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<Self, BlockError> {
        let kind = BlockFile::IndexHeader;
        let damaged = |what| BlockError::damaged(kind, 0, what);
        let file = disk.open(path).map_err(BlockError::io(kind))?;
        let mut fixed = [0; STORED_FIXED_LEN as usize];
        if file.len().map_err(BlockError::io(kind))? < STORED_FIXED_LEN {
            return Err(damaged("shorter than its fixed part"));
        }
        file.read_exact_at(&mut fixed, 0).map_err(BlockError::io(kind))?;
        if u32_at(&fixed, 0) != Some(STORED_MAGIC) {
            return Err(damaged("not an index header"));
        }
        let version = u32_at(&fixed, 4).unwrap_or_default();
        if version != STORED_VERSION {
            return Err(BlockError::Unsupported { file: kind, what: "header version", found: u64::from(version) });
        }
        let toc = Toc::parse(u64_at(&fixed, 8).unwrap_or_default(), &fixed)?;
        let ranges = HeaderRanges::of(&toc);
        let table_at = STORED_FIXED_LEN + ranges.symbols.end;
        let end = table_at + (ranges.postings_table.end - ranges.postings_table.start);
        if file.len().map_err(BlockError::io(kind))? != end {
            return Err(damaged("length does not match its contents"));
        }
        Self::open_ranges(kind, &file, toc, STORED_FIXED_LEN..table_at, table_at..end)
    }

    /// Opens the header inside a local index, in one pass of bounded memory.
    pub(super) fn open_index(index: &Arc<dyn DiskFile>, toc: Toc) -> Result<Self, BlockError> {
        let HeaderRanges { symbols, postings_table } = HeaderRanges::of(&toc);
        Self::open_ranges(BlockFile::Index, index, toc, symbols, postings_table)
    }

    fn open_ranges(
        kind: BlockFile,
        file: &Arc<dyn DiskFile>,
        toc: Toc,
        symbols: Range<u64>,
        postings_table: Range<u64>,
    ) -> Result<Self, BlockError> {
        let mut magic = [0; INDEX_HEADER_LEN as usize];
        file.read_exact_at(&mut magic, symbols.start).map_err(BlockError::io(kind))?;
        check_index_magic(&magic)?;
        let symbols = Section::from_file(kind, file, symbols.start + INDEX_HEADER_LEN..symbols.end)?;
        let postings = Section::from_file(kind, file, postings_table)?;
        Ok(Self { toc, symbols: SymbolTable::open(symbols)?, postings: PostingsTable::open(postings, &toc)? })
    }

    /// The index's table of contents.
    pub fn toc(&self) -> &Toc {
        &self.toc
    }

    /// Bytes of memory this header holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.symbols.memory_bytes() + self.postings.memory_bytes()
    }

    /// How many symbols the block has.
    pub fn symbol_count(&self) -> u32 {
        self.symbols.count()
    }

    /// Hands the symbol of a number to `use_it`.
    pub fn symbol<R>(&self, number: u32, use_it: impl FnOnce(&str) -> R) -> Result<R, BlockError> {
        self.symbols.get(number, use_it)
    }

    /// Hands every symbol to `each`, ascending.
    pub(super) fn for_each_symbol(&self, each: impl FnMut(&str) -> Result<(), BlockError>) -> Result<(), BlockError> {
        self.symbols.for_each(each)
    }

    /// Most bytes that the pairs of its postings offset table take in another one, where lists may lie further behind.
    pub(super) fn offset_table_bytes(&self) -> u64 {
        const LONGER_OFFSET: u64 = 9;
        let values: u64 = self.postings.names().map(|(_, values)| u64::from(values)).sum();
        self.toc.index_len - TOC_LEN - self.toc.postings_table + LONGER_OFFSET * (values + 1)
    }

    /// Turns series entries of this index into labels.
    pub fn labels_reader(&self) -> LabelsReader<'_> {
        LabelsReader::new(&self.symbols)
    }

    /// Label names of the block, ascending, with the number of values of each.
    pub fn label_names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.postings.names()
    }

    /// Visits the values of a label, ascending.
    pub fn label_values(&self, name: &str, visit: &mut dyn FnMut(&str)) -> Result<(), BlockError> {
        if name.is_empty() {
            return Ok(());
        }
        let mut progress = Progress::default();
        let mut visit = |value: &str| {
            if progress.goes_on(0) {
                visit(value);
            }
            false
        };
        self.postings.scan(name, "", &mut visit, &mut Vec::new())
    }

    /// Where in the index the postings of a pair lie; `("", "")` names those of all series.
    ///
    /// The range may be a little too long (padding), and in odd files too short: [`super::parse_postings`] says so.
    pub fn postings_range(&self, name: &str, value: &str) -> Result<Option<Range<u64>>, BlockError> {
        self.postings.find(name, value)
    }

    /// Where postings lists end, as [`super::parse_postings`] wants it.
    pub fn postings_end(&self) -> u64 {
        self.postings.lists_end()
    }
}

impl PostingsSource for IndexHeader {
    type List = Range<u64>;
    type Error = BlockError;

    fn lookup(&self, name: &str, value: &str) -> Result<Option<Self::List>, BlockError> {
        self.postings.find(name, value)
    }

    fn scan(
        &self,
        name: &str,
        prefix: &str,
        is_wanted: &mut dyn FnMut(&str) -> bool,
        lists: &mut Vec<Self::List>,
    ) -> Result<(), BlockError> {
        self.postings.scan(name, prefix, is_wanted, lists)
    }

    fn all(&self) -> Result<Option<Self::List>, BlockError> {
        self.postings.find("", "")
    }

    fn series_count(&self, list: &Self::List) -> u64 {
        // Length, count and checksum frame the references.
        (list.end - list.start).saturating_sub(12) / 4
    }

    fn value_count(&self, name: &str) -> u64 {
        u64::from(self.postings.value_count(name))
    }
}
