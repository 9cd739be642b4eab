//! Chunk segments: the files `chunks/NNNNNN` that hold a block's chunks one after the other.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use skald_model::varint;

use super::buffered::BufferedFile;
use super::framing::{Ranged, u32_at};
use super::{BlockError, BlockFile, ChunkMeta, ChunkRef};
use crate::chunk::{Chunk, Encoding};
use crate::disk::Disk;

/// Directory of the segments inside a block.
pub const CHUNKS_DIR: &str = "chunks";
/// Size after which a segment is closed.
pub const SEGMENT_LEN: u64 = 512 << 20;
pub(super) const SEGMENT_HEADER_LEN: u64 = 8;
const SEGMENT_MAGIC: u32 = 0x85BD_40DD;
const SEGMENT_VERSION: u8 = 1;
/// No chunk comes near; a longer one is damage, not data.
const MAX_CHUNK_LEN: u64 = 128 << 20;

/// Path of a segment inside its block's directory.
pub fn segment_path(block: &Path, segment: u32) -> PathBuf {
    block.join(CHUNKS_DIR).join(format!("{:06}", u64::from(segment) + 1))
}

/// Checks the first 8 bytes of a segment.
pub fn check_segment_header(segment: u32, bytes: &[u8]) -> Result<(), BlockError> {
    let file = BlockFile::Segment(segment);
    match (u32_at(bytes, 0), bytes.get(4)) {
        (Some(SEGMENT_MAGIC), Some(&SEGMENT_VERSION)) => Ok(()),
        (Some(SEGMENT_MAGIC), Some(&version)) => {
            Err(BlockError::Unsupported { file, what: "segment version", found: u64::from(version) })
        }
        _ => Err(BlockError::damaged(file, 0, "not a chunk segment")),
    }
}

/// The chunk whose bytes start `bytes`, checksum verified; its data shares `bytes`' memory.
pub fn parse_chunk(meta: &ChunkMeta, bytes: &Bytes) -> Result<Ranged<Chunk>, BlockError> {
    Ok(match find_chunk(meta, bytes)? {
        Ranged::Complete(FoundChunk { encoding, data }) => {
            let (min_time, max_time, data) = (meta.min_time, meta.max_time, bytes.slice(data));
            Ranged::Complete(Chunk { min_time, max_time, encoding, data })
        }
        Ranged::Short { need } => Ranged::Short { need },
    })
}

/// Where in the bytes it was parsed from a chunk has its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundChunk {
    /// How the data is coded.
    pub encoding: Encoding,
    /// The data.
    pub data: Range<usize>,
}

/// The place of the data of the chunk whose bytes start `bytes`, checksum verified.
///
/// Layout: `len uvarint | encoding u8 | data | crc32c(encoding, data) u32`.
pub fn find_chunk(meta: &ChunkMeta, bytes: &[u8]) -> Result<Ranged<FoundChunk>, BlockError> {
    let file = BlockFile::Segment(meta.reference.segment());
    let damaged = |what| BlockError::damaged(file, u64::from(meta.reference.offset()), what);
    let mut at = 0;
    let Some(len) = varint::get_uvarint(bytes, &mut at) else {
        return match bytes.len() {
            0..5 => Ok(Ranged::Short { need: 10 }),
            _ => Err(damaged("length of a chunk is malformed")),
        };
    };
    if len > MAX_CHUNK_LEN {
        return Err(damaged("chunk is longer than any chunk"));
    }
    let data_end = at + 1 + len as usize;
    let Some(crc) = u32_at(bytes, data_end) else {
        return Ok(Ranged::Short { need: data_end as u64 + 4 });
    };
    if crc32c::crc32c(&bytes[at..data_end]) != crc {
        return Err(damaged("checksum of a chunk does not match"));
    }
    let encoding = Encoding::from_byte(bytes[at]).ok_or(BlockError::Unsupported {
        file,
        what: "chunk encoding",
        found: u64::from(bytes[at]),
    })?;
    Ok(Ranged::Complete(FoundChunk { encoding, data: at + 1..data_end }))
}

/// Appends chunks to segments, opening new ones as they fill up.
pub(super) struct SegmentWriter {
    disk: Arc<dyn Disk>,
    block: PathBuf,
    segment_len: u64,
    current: Option<BufferedFile>,
    /// Number of segments opened so far.
    opened: u32,
    /// Sizes of the finished segments.
    finished: Vec<u64>,
    /// Longest chunk with its framing.
    longest: u64,
    /// Bytes before a chunk's data.
    head: Vec<u8>,
}

/// Bytes a chunk of this data takes in a segment.
fn framed_len(chunk: &Chunk) -> u64 {
    let len = chunk.data.len() as u64;
    let varint = u64::from((64 - (len | 1).leading_zeros()).div_ceil(7));
    varint + 1 + len + 4
}

impl SegmentWriter {
    pub(super) fn new(disk: Arc<dyn Disk>, block: PathBuf, segment_len: u64) -> Self {
        Self { disk, block, segment_len, current: None, opened: 0, finished: Vec::new(), longest: 0, head: Vec::new() }
    }

    /// Appends the chunks of one series, in one segment if they fit one at all; adds their places to `metas`.
    pub(super) fn append(&mut self, chunks: &[Chunk], metas: &mut Vec<ChunkMeta>) -> Result<(), BlockError> {
        let together: u64 = chunks.iter().map(framed_len).sum();
        let fits_one = SEGMENT_HEADER_LEN + together <= self.segment_len;
        for (i, chunk) in chunks.iter().enumerate() {
            let len = framed_len(chunk);
            if len > MAX_CHUNK_LEN {
                return Err(BlockError::TooLarge { what: "a chunk", len, limit: MAX_CHUNK_LEN });
            }
            let wanted = if i == 0 && fits_one { together } else { len };
            if self.current.as_ref().is_none_or(|file| file.position() + wanted > self.segment_len) {
                self.open_next()?;
            }
            let Some(file) = &mut self.current else { continue };
            let reference = ChunkRef::new(self.opened - 1, file.position() as u32);
            self.head.clear();
            varint::put_uvarint(&mut self.head, chunk.data.len() as u64);
            self.head.push(chunk.encoding as u8);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&[chunk.encoding as u8]), &chunk.data);
            file.put(&self.head)?;
            file.put(&chunk.data)?;
            file.put(&crc.to_be_bytes())?;
            self.longest = self.longest.max(len);
            metas.push(ChunkMeta { min_time: chunk.min_time, max_time: chunk.max_time, reference });
        }
        Ok(())
    }

    fn open_next(&mut self) -> Result<(), BlockError> {
        self.close_current()?;
        let path = segment_path(&self.block, self.opened);
        let mut file = BufferedFile::create(&*self.disk, &path, BlockFile::Segment(self.opened))?;
        self.opened += 1;
        file.put(&SEGMENT_MAGIC.to_be_bytes())?;
        file.put(&[SEGMENT_VERSION, 0, 0, 0])?;
        self.current = Some(file);
        Ok(())
    }

    fn close_current(&mut self) -> Result<(), BlockError> {
        if let Some(mut file) = self.current.take() {
            file.sync()?;
            self.finished.push(file.position());
        }
        Ok(())
    }

    /// Syncs everything; answers with the segments' sizes and the longest chunk.
    pub(super) fn finish(mut self) -> Result<(Vec<u64>, u64), BlockError> {
        self.close_current()?;
        Ok((self.finished, self.longest))
    }
}
