//! What every section of an index has in common: big-endian numbers, a length in front, a checksum behind.

use skald_model::varint;

use super::{BlockError, BlockFile};

/// Bytes of a section around its body: the length in front, the checksum behind.
pub(super) const FRAME_LEN: u64 = 8;

/// What came of parsing bytes whose length was a guess.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranged<T> {
    /// The bytes held all of it.
    Complete(T),
    /// The structure is longer than the bytes given: fetch this many from the same offset and parse again.
    Short {
        /// Length to fetch, from the start of the structure.
        need: u64,
    },
}

impl<T> Ranged<T> {
    /// The value, when the bytes reached to the end of what the file holds, so that short means damaged.
    pub fn or_truncated(self, file: BlockFile, offset: u64) -> Result<T, BlockError> {
        match self {
            Self::Complete(value) => Ok(value),
            Self::Short { .. } => Err(BlockError::damaged(file, offset, "ends before its contents do")),
        }
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_be_bytes(bytes.get(at..end)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let end = at.checked_add(8)?;
    Some(u64::from_be_bytes(bytes.get(at..end)?.try_into().ok()?))
}

/// The string behind a varint length at `*at`.
pub(super) fn str_at<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a str> {
    std::str::from_utf8(varint::get_slice(bytes, at)?).ok()
}

/// Body of the section `length u32 | body | crc32c(body) u32` that starts `bytes`, checksum verified.
///
/// `offset` is where `bytes` starts in `file`, `limit` where the section must have ended at the latest.
pub(super) fn section_body(
    file: BlockFile,
    offset: u64,
    limit: u64,
    bytes: &[u8],
) -> Result<Ranged<&[u8]>, BlockError> {
    let Some(len) = u32_at(bytes, 0) else {
        return Ok(Ranged::Short { need: FRAME_LEN });
    };
    let need = u64::from(len) + FRAME_LEN;
    if need > limit.saturating_sub(offset) {
        return Err(BlockError::damaged(file, offset, "length reaches past its section"));
    }
    let body_end = 4 + len as usize;
    match (bytes.get(4..body_end), u32_at(bytes, body_end)) {
        (Some(body), Some(crc)) if crc32c::crc32c(body) == crc => Ok(Ranged::Complete(body)),
        (Some(_), Some(_)) => Err(BlockError::damaged(file, offset, "checksum does not match")),
        _ => Ok(Ranged::Short { need }),
    }
}
