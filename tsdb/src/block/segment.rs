//! Chunk segments: the files `chunks/NNNNNN` that hold a block's chunks one after the other.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use skald_model::varint;

use super::buffered::BufferedFile;
use super::framed_chunks::FramedChunks;
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
pub(super) const MAX_CHUNK_LEN: u64 = 128 << 20;

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
    Ok(match find_frame(meta, bytes)? {
        Ranged::Complete(frame) => {
            Ranged::Complete(FoundChunk { encoding: frame.check(meta, bytes)?, data: frame.data() })
        }
        Ranged::Short { need } => Ranged::Short { need },
    })
}

/// Where the parts of a chunk stand in the bytes that start with it.
pub(super) struct Frame {
    encoding_at: usize,
    data_end: usize,
}

impl Frame {
    /// Bytes of all of it.
    pub(super) fn len(&self) -> usize {
        self.data_end + 4
    }

    pub(super) fn data(&self) -> Range<usize> {
        self.encoding_at + 1..self.data_end
    }

    /// Verifies the checksum; gives the encoding.
    pub(super) fn check(&self, meta: &ChunkMeta, bytes: &[u8]) -> Result<Encoding, BlockError> {
        let file = BlockFile::Segment(meta.reference.segment());
        if u32_at(bytes, self.data_end) != Some(crc32c::crc32c(&bytes[self.encoding_at..self.data_end])) {
            let offset = u64::from(meta.reference.offset());
            return Err(BlockError::damaged(file, offset, "checksum of a chunk does not match"));
        }
        let encoding = bytes[self.encoding_at];
        let found = u64::from(encoding);
        Encoding::from_byte(encoding).filter(|encoding| !encoding.has_column()).ok_or(BlockError::Unsupported {
            file,
            what: "chunk encoding",
            found,
        })
    }
}

/// The extent of the chunk that starts `bytes`, which then hold all of it. Nothing else is looked at.
pub(super) fn find_frame(meta: &ChunkMeta, bytes: &[u8]) -> Result<Ranged<Frame>, BlockError> {
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
    let frame = Frame { encoding_at: at, data_end: at + 1 + len as usize };
    match frame.len() {
        len if len > bytes.len() => Ok(Ranged::Short { need: len as u64 }),
        _ => Ok(Ranged::Complete(frame)),
    }
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
}

impl SegmentWriter {
    pub(super) fn new(disk: Arc<dyn Disk>, block: PathBuf, segment_len: u64) -> Self {
        Self { disk, block, segment_len, current: None, opened: 0, finished: Vec::new(), longest: 0 }
    }

    /// Appends the chunks of one series, in one segment if they fit one at all; adds their places to `metas`.
    pub(super) fn append(&mut self, chunks: &FramedChunks, metas: &mut Vec<ChunkMeta>) -> Result<(), BlockError> {
        let together = chunks.bytes().len() as u64;
        let fits_one = SEGMENT_HEADER_LEN + together <= self.segment_len;
        let start = if fits_one { Some(self.put(chunks.bytes())?) } else { None };
        for chunk in chunks.chunks() {
            let offset = match start {
                Some(start) => start + chunk.range.start as u32,
                None => self.put(&chunks.bytes()[chunk.range.clone()])?,
            };
            self.longest = self.longest.max(chunk.range.len() as u64);
            let reference = ChunkRef::new(self.opened - 1, offset);
            metas.push(ChunkMeta { min_time: chunk.min_time, max_time: chunk.max_time, reference });
        }
        Ok(())
    }

    /// Appends bytes that are to stand in one segment; says where they begin.
    fn put(&mut self, bytes: &[u8]) -> Result<u32, BlockError> {
        let full = |file: &BufferedFile| file.position() + bytes.len() as u64 > self.segment_len;
        if self.current.as_ref().is_none_or(full) {
            self.open_next()?;
        }
        let Some(file) = &mut self.current else { return Ok(0) };
        let offset = file.position() as u32;
        file.put(bytes)?;
        Ok(offset)
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
