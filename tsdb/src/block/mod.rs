//! Blocks: immutable directories of series in Prometheus' TSDB format, byte for byte.
//!
//! A block is a `meta.json` ([`BlockMeta`]), an index (format version 2), chunk segments and [`Tombstones`]. [`BlockWriter`]
//! writes one in one pass over series in label order; [`MergeBlocks`] makes new ones of others. Blocks are read in two ways that share every decoder: the store-gateway fetches byte ranges from object
//! storage, [`LocalBlock`] reads local files. Absent on purpose: network, waiting, tenants, clocks; readers say which
//! ranges they need and parse what they are given.
//!
//! Reading by ranges goes like this; `Short` answers of the parsers mean "fetch that much from the same offset instead":
//!
//! 1. [`Toc::range`] of the index' length, then [`Toc::parse`], then [`HeaderRanges::of`] gives the two ranges of
//!    [`IndexHeader::parse`] (or [`IndexHeader::store`] and later [`IndexHeader::open`]).
//! 2. [`crate::postings::plan`] over the header names the postings lists; [`parse_postings`] and
//!    [`crate::postings::Plan::evaluate`] turn them into series.
//! 3. [`series_range`] of each series, joined by [`Coalesce::join`]; [`SeriesEntry::parse`], then
//!    [`IndexHeader::labels_reader`] gives the labels. Check [`crate::postings::Plan::deferred`] matchers here.
//! 4. [`chunk_range`] of each wanted chunk, joined per segment; [`parse_chunk`].
//!
//! ```text
//! index:   magic, version | symbols | series, aligned to 16 | postings lists, aligned to 4 | postings offset table | toc
//! segment: magic, version | chunks
//! ```

mod analyze;
mod buffered;
mod chunk_ref;
mod compaction_shard;
mod cut;
mod error;
mod fetch;
mod forecast;
mod framed_chunks;
mod framing;
mod gathered_postings;
mod header;
mod join_parts;
mod local;
mod merge_blocks;
mod merge_source;
mod meta;
mod number_set;
mod postings_table;
mod salvage;
mod section;
mod segment;
mod series;
mod split;
mod symbols;
mod toc;
mod tombstones;
mod verify;
mod visible;
mod writer;

pub use analyze::{Analysis, ChunkKind, Counted, analyze_block};
pub use chunk_ref::ChunkRef;
pub use compaction_shard::{COMPACTION_SHARD_LABEL, CompactionShard};
pub use error::{BlockError, BlockFile};
pub use fetch::{Coalesce, Fetch, chunk_range};
pub use forecast::IndexLimits;
pub use framing::Ranged;
pub use header::{HeaderRanges, IndexHeader};
pub use join_parts::join_parts;
pub use local::{LocalBlock, LocalSelect};
pub use merge_blocks::{MergeBlocks, MergeBlocksError};
pub use meta::{
    BlockMeta, BlockStats, Compaction, Downsample, FileSize, IndexStats, META_FILE, ParentBlock, ThanosMeta,
};
pub use postings_table::parse_postings;
pub use salvage::{Loss, SalvageReport, salvage_block};
pub use segment::{CHUNKS_DIR, FoundChunk, SEGMENT_LEN, check_segment_header, find_chunk, parse_chunk, segment_path};
pub use series::{ChunkMeta, ChunksAround, SeriesEntry, series_offset, series_range};
pub use split::BlockSplit;
pub use symbols::{LabelsReader, SortedSymbols, SymbolSet};
pub use toc::{TOC_LEN, Toc};
pub use tombstones::{TOMBSTONES_FILE, Tombstones, cut_columns};
pub use verify::{Problem, VerifyReport, verify_block};
pub use visible::{hidden_ranges, is_hidden};
pub use writer::{BlockWriter, NewBlock};

/// More blocks than that are not made of one set of series: whatever does not fit then is one series' fault.
const MAX_PARTS: u32 = 1 << 16;

/// Name of the index inside a block.
pub const INDEX_FILE: &str = "index";

#[cfg(test)]
mod tests;
