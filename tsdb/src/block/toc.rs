//! The table of contents: the last 52 bytes of an index.

use std::ops::Range;

use super::framing::{u32_at, u64_at};
use super::{BlockError, BlockFile};

/// Length of the table of contents.
pub const TOC_LEN: u64 = 52;
/// Length of an index's header: magic and version.
pub(super) const INDEX_HEADER_LEN: u64 = 5;
const INDEX_MAGIC: u32 = 0xBAAA_D700;
const INDEX_VERSION: u8 = 2;

/// Where the sections of an index lie.
///
/// Layout, big-endian: `symbols u64 | series u64 | label_indices u64 | label_offset_table u64 | postings u64 |
/// postings_table u64 | crc32c(all before) u32`. Label indices and their table were given up by writers; the entries
/// then repeat the end of the series and the postings table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Toc {
    /// Start of the symbol table; always 5.
    pub symbols: u64,
    /// End of the symbol table; the first series starts at the next multiple of 16.
    pub series: u64,
    /// End of the series.
    pub label_indices: u64,
    /// Start of the label offset table, in old blocks.
    pub label_offset_table: u64,
    /// Start of the postings, up to three bytes of padding before the first list.
    pub postings: u64,
    /// Start of the postings offset table, which ends at the table of contents.
    pub postings_table: u64,
    /// Size of the whole index.
    pub index_len: u64,
}

impl Toc {
    /// The bytes of an index of `index_len` bytes that hold the table of contents.
    pub fn range(index_len: u64) -> Result<Range<u64>, BlockError> {
        if index_len < INDEX_HEADER_LEN + TOC_LEN {
            return Err(BlockError::damaged(BlockFile::Index, 0, "shorter than a header and a table of contents"));
        }
        Ok(index_len - TOC_LEN..index_len)
    }

    /// Parses the end of an index; of `tail`, the last 52 bytes are read.
    pub fn parse(index_len: u64, tail: &[u8]) -> Result<Self, BlockError> {
        let range = Self::range(index_len)?;
        let damaged = |what| BlockError::damaged(BlockFile::Index, range.start, what);
        let start = tail.len().checked_sub(TOC_LEN as usize).ok_or_else(|| damaged("table of contents cut short"))?;
        let bytes = &tail[start..];
        let crc = u32_at(bytes, 48).unwrap_or_default();
        if crc32c::crc32c(&bytes[..48]) != crc {
            return Err(damaged("checksum of the table of contents does not match"));
        }
        let entry = |i: usize| u64_at(bytes, i * 8).unwrap_or_default();
        let toc = Self {
            symbols: entry(0),
            series: entry(1),
            label_indices: entry(2),
            label_offset_table: entry(3),
            postings: entry(4),
            postings_table: entry(5),
            index_len,
        };
        let ordered = toc.symbols == INDEX_HEADER_LEN
            && toc.symbols < toc.series
            && toc.series <= toc.postings
            && toc.postings < toc.postings_table
            && toc.postings_table < range.start;
        if !ordered {
            return Err(damaged("sections are not in order"));
        }
        Ok(toc)
    }

    /// The table of contents as the file ends with it.
    pub fn encode(&self) -> [u8; TOC_LEN as usize] {
        let mut out = [0; TOC_LEN as usize];
        let entries = [
            self.symbols,
            self.series,
            self.label_indices,
            self.label_offset_table,
            self.postings,
            self.postings_table,
        ];
        for (slot, entry) in out.chunks_exact_mut(8).zip(entries) {
            slot.copy_from_slice(&entry.to_be_bytes());
        }
        let crc = crc32c::crc32c(&out[..48]);
        out[48..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Where the entries of series end.
    pub fn series_end(&self) -> u64 {
        let labels = self.label_indices;
        if (self.series..self.postings).contains(&labels) { labels } else { self.postings }
    }

    /// Where the last postings list ends.
    pub fn postings_end(&self) -> u64 {
        let labels = self.label_offset_table;
        if (self.postings + 1..self.postings_table).contains(&labels) { labels } else { self.postings_table }
    }
}

/// The five bytes every index starts with.
pub(super) fn index_magic() -> [u8; INDEX_HEADER_LEN as usize] {
    let [a, b, c, d] = INDEX_MAGIC.to_be_bytes();
    [a, b, c, d, INDEX_VERSION]
}

/// Checks the first bytes of an index.
pub(super) fn check_index_magic(bytes: &[u8]) -> Result<(), BlockError> {
    match (u32_at(bytes, 0), bytes.get(4)) {
        (Some(INDEX_MAGIC), Some(&INDEX_VERSION)) => Ok(()),
        (Some(INDEX_MAGIC), Some(&version)) => {
            Err(BlockError::Unsupported { file: BlockFile::Index, what: "index version", found: u64::from(version) })
        }
        _ => Err(BlockError::damaged(BlockFile::Index, 0, "not an index")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toc() -> Toc {
        Toc {
            symbols: 5,
            series: 100,
            label_indices: 180,
            label_offset_table: 300,
            postings: 180,
            postings_table: 300,
            index_len: 452,
        }
    }

    #[test]
    fn round_trips_and_is_checked() {
        let toc = toc();
        assert_eq!(Toc::parse(452, &toc.encode()).unwrap(), toc);
        assert_eq!((toc.series_end(), toc.postings_end()), (180, 300));
        for bit in 0..TOC_LEN as usize * 8 {
            let mut bytes = toc.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Toc::parse(452, &bytes).is_err());
        }
        assert!(Toc::parse(452, &toc.encode()[1..]).is_err());
        assert!(Toc::parse(50, &toc.encode()).is_err());
        assert!(Toc::parse(452, &Toc { postings: 300, ..toc }.encode()).is_err());
    }
}
