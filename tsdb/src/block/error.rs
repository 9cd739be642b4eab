//! What can go wrong with a block, by what its owner would do.

use std::fmt;
use std::io;

/// A file of a block, named as it is in the block's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockFile {
    /// `meta.json`
    Meta,
    /// `index`
    Index,
    /// `tombstones`
    Tombstones,
    /// `chunks/NNNNNN`; the number is zero-based, as in chunk references.
    Segment(u32),
    /// The store-gateway's local copy of an index's symbols and postings offsets.
    IndexHeader,
}

impl fmt::Display for BlockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta => f.write_str("meta.json"),
            Self::Index => f.write_str("index"),
            Self::Tombstones => f.write_str("tombstones"),
            Self::Segment(number) => write!(f, "chunks/{:06}", u64::from(*number) + 1),
            Self::IndexHeader => f.write_str("index-header"),
        }
    }
}

/// A block could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The file system failed: retry, or report.
    #[error("{file}: {source}")]
    Io {
        /// Where.
        file: BlockFile,
        /// What the file system says.
        source: io::Error,
    },
    /// The bytes are not what a writer wrote: quarantine the block; a retry on the same bytes cannot succeed.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where.
        file: BlockFile,
        /// Position in the file of the structure that is wrong.
        offset: u64,
        /// Which rule it breaks.
        what: &'static str,
    },
    /// An intact file of a kind this program does not read: leave the block alone.
    #[error("{file} has unsupported {what} {found}")]
    Unsupported {
        /// Where.
        file: BlockFile,
        /// What is unknown, for example `index version`.
        what: &'static str,
        /// The value found.
        found: u64,
    },
    /// The format cannot hold that much: split the input over several blocks.
    #[error("{what} would reach {len} bytes, the format holds {limit}")]
    TooLarge {
        /// Which part of the block.
        what: &'static str,
        /// Size it would reach.
        len: u64,
        /// Size the format can hold.
        limit: u64,
    },
    /// The caller handed the writer something no block may hold; nothing of it was written.
    #[error("refused by the block writer: {0}")]
    Input(String),
}

impl BlockError {
    pub(super) fn io(file: BlockFile) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { file, source }
    }

    pub(super) fn damaged(file: BlockFile, offset: u64, what: &'static str) -> Self {
        Self::Damaged { file, offset, what }
    }
}
