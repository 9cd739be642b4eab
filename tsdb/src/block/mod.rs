//! Blocks: immutable directories of series in Prometheus' own format (index version 2).
//!
//! ```text
//! <ULID>/meta.json        BlockMeta        what the block says about itself
//! <ULID>/index            Toc, IndexHeader, SeriesEntry, parse_postings
//! <ULID>/chunks/000001    parse_chunk
//! <ULID>/tombstones       Tombstones       what is deleted
//! ```
//!
//! Readers name the byte ranges they need and parse what the caller brings, so that one decoder serves local files and
//! object storage: a [`Toc`] tells the [`HeaderRanges`], an [`IndexHeader`] the ranges of postings, postings those of
//! series entries ([`series_range`]), entries those of chunks ([`chunk_range`]). Where a length is a guess, the answer is
//! [`Ranged`]. Everything is checked against its checksum and bounds; damage is a [`BlockError`] that names file and place.

#[allow(dead_code, reason = "the block writer, which writes through it, has not landed yet")]
mod buffered;
mod chunk_ref;
mod error;
mod fetch;
#[allow(dead_code, reason = "the block writer has not landed yet")]
mod framing;
mod header;
mod meta;
mod postings_table;
mod section;
#[allow(dead_code, reason = "the block writer has not landed yet")]
mod segment;
#[allow(dead_code, reason = "the block writer has not landed yet")]
mod series;
#[allow(dead_code, reason = "the block writer has not landed yet")]
mod symbols;
#[allow(dead_code, reason = "the block writer has not landed yet")]
mod toc;
mod tombstones;

pub use chunk_ref::ChunkRef;
pub use error::{BlockError, BlockFile};
pub use fetch::{Coalesce, Fetch, chunk_range};
pub use framing::Ranged;
pub use header::{HeaderRanges, IndexHeader};
pub use meta::{
    BlockMeta, BlockStats, Compaction, Downsample, FileSize, IndexStats, META_FILE, ParentBlock, ThanosMeta,
};
pub use postings_table::parse_postings;
pub use segment::{CHUNKS_DIR, SEGMENT_LEN, check_segment_header, parse_chunk, sample_count, segment_path};
pub use series::{ChunkMeta, SeriesEntry, series_offset, series_range};
pub use symbols::{LabelsReader, SortedSymbols, SymbolSet};
pub use toc::{TOC_LEN, Toc};
pub use tombstones::{TOMBSTONES_FILE, Tombstones, cut_columns};

/// Name of a block's index.
pub const INDEX_FILE: &str = "index";
