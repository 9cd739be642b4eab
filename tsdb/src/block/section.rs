//! One framed section of an index, held in memory or read piece by piece from a local file.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::framing::{FRAME_LEN, u32_at};
use super::{BlockError, BlockFile};
use crate::disk::DiskFile;

/// How much of a file is read first when walking it, which is enough for a lookup, and how much at once later on.
const FIRST_WINDOW: u64 = 4 << 10;
const WINDOW: u64 = 64 << 10;
/// How much of a file is read at once when checking its checksum.
const CHECK_WINDOW: usize = 256 << 10;

/// A section's body. Positions are relative to the body's start; it never holds more than `u32::MAX` bytes.
#[derive(Clone)]
pub(super) struct Section {
    source: Source,
    /// Length of the body.
    len: u64,
    /// The file errors name.
    file: BlockFile,
    /// Where the body starts in `file`.
    offset: u64,
}

#[derive(Clone)]
enum Source {
    /// Exactly the body.
    Memory(Bytes),
    /// A file that holds the body from this offset on.
    File(Arc<dyn DiskFile>, u64),
}

impl Section {
    /// Takes the section at `offset` of the index; `bytes` may be longer than the section. Verifies the checksum.
    pub(super) fn from_bytes(offset: u64, bytes: &Bytes) -> Result<Self, BlockError> {
        let file = BlockFile::Index;
        let limit = offset + bytes.len() as u64;
        let body = super::framing::section_body(file, offset, limit, bytes)?.or_truncated(file, offset)?;
        let (len, source) = (body.len() as u64, Source::Memory(bytes.slice_ref(body)));
        Ok(Self { source, len, file, offset: offset + 4 })
    }

    /// Takes the section which lies in `range` of a local file, verifying its checksum in one bounded pass.
    pub(super) fn from_file(kind: BlockFile, file: &Arc<dyn DiskFile>, range: Range<u64>) -> Result<Self, BlockError> {
        let damaged = |what| BlockError::damaged(kind, range.start, what);
        let mut number = [0; 4];
        file.read_exact_at(&mut number, range.start).map_err(BlockError::io(kind))?;
        let len = u64::from(u32::from_be_bytes(number));
        if len + FRAME_LEN > range.end.saturating_sub(range.start) {
            return Err(damaged("length reaches past its section"));
        }
        let body = range.start + 4;
        let mut buffer = vec![0; CHECK_WINDOW.min(len as usize)];
        let (mut at, mut crc) = (0, 0);
        while at < len {
            let n = buffer.len().min((len - at) as usize);
            file.read_exact_at(&mut buffer[..n], body + at).map_err(BlockError::io(kind))?;
            crc = crc32c::crc32c_append(crc, &buffer[..n]);
            at += n as u64;
        }
        file.read_exact_at(&mut number, body + len).map_err(BlockError::io(kind))?;
        if u32::from_be_bytes(number) != crc {
            return Err(damaged("checksum does not match"));
        }
        Ok(Self { source: Source::File(file.clone(), body), len, file: kind, offset: body })
    }

    /// Length of the body.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes this section keeps in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        match &self.source {
            Source::Memory(bytes) => bytes.len(),
            Source::File(..) => 0,
        }
    }

    /// The error for something wrong at `at`.
    pub(super) fn damaged(&self, at: u64, what: &'static str) -> BlockError {
        BlockError::damaged(self.file, self.offset.saturating_add(at), what)
    }

    /// The big-endian number the body starts with.
    pub(super) fn count(&self) -> Result<u32, BlockError> {
        let mut count = None;
        self.walk(0..self.len.min(4), |_, bytes| {
            count = u32_at(bytes, 0);
            Ok(count.map(|_| 4))
        })?;
        count.ok_or_else(|| self.damaged(0, "no count"))
    }

    /// Visits the entries that fill `range` one by one.
    ///
    /// `entry` gets a position and the bytes from there on, and answers how long the entry is, or `None` when the bytes
    /// end before it does. Stops early when `entry` answers 0.
    pub(super) fn walk(
        &self,
        range: Range<u64>,
        mut entry: impl FnMut(u64, &[u8]) -> Result<Option<usize>, BlockError>,
    ) -> Result<(), BlockError> {
        if range.start > range.end || range.end > self.len {
            return Err(self.damaged(range.start, "entries reach past their section"));
        }
        let mut at = range.start;
        let mut buffer = Vec::new();
        let mut want = FIRST_WINDOW;
        while at < range.end {
            let window = match &self.source {
                Source::Memory(bytes) => &bytes[at as usize..range.end as usize],
                Source::File(file, start) => {
                    let n = want.min(range.end - at) as usize;
                    buffer.resize(n, 0);
                    file.read_exact_at(&mut buffer, start + at).map_err(BlockError::io(self.file))?;
                    buffer.as_slice()
                }
            };
            let mut used = 0;
            let next = want.saturating_mul(4).clamp(FIRST_WINDOW, WINDOW);
            while used < window.len() {
                match entry(at + used as u64, &window[used..])? {
                    Some(0) => return Ok(()),
                    Some(n) => used += n,
                    None => break,
                }
            }
            let complete = at + window.len() as u64 == range.end;
            match used {
                0 if complete => return Err(self.damaged(at, "an entry is cut short")),
                // One entry is longer than the window.
                0 => want = want.saturating_mul(2),
                n if n < window.len() && complete => {
                    return Err(self.damaged(at + n as u64, "an entry is cut short"));
                }
                n => {
                    at += n as u64;
                    want = next;
                }
            }
        }
        Ok(())
    }
}
