//! Bytes of files and records; `FORMAT.md` has the layouts.

use bytes::Bytes;

use super::StoredChunk;
use crate::wal::HeadId;

/// Bytes before a file's first record.
pub(super) const FILE_HEADER_LEN: usize = 16;
/// Bytes of a record before its data.
pub(super) const RECORD_HEADER_LEN: usize = 32;

const MAGIC: [u8; 4] = *b"SKCH";
const VERSION: u8 = 1;

/// What a file starts with.
pub(super) fn file_header(file: u32) -> [u8; FILE_HEADER_LEN] {
    let mut header = [0; FILE_HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[8..12].copy_from_slice(&file.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Whether a file starts as one of a version that is not known here. Damage is not that: records say for themselves whether
/// they are in order.
pub(super) fn is_of_unknown_version(bytes: &[u8]) -> bool {
    let Some((header, crc)) = bytes.split_last_chunk::<4>() else { return false };
    header.starts_with(&MAGIC) && header.get(4) != Some(&VERSION) && *crc == crc32c::crc32c(header).to_le_bytes()
}

/// The header of a record, but its CRC.
fn fields(head: HeadId, chunk: &StoredChunk) -> [u8; RECORD_HEADER_LEN] {
    let mut header = [0; RECORD_HEADER_LEN];
    header[4..8].copy_from_slice(&chunk.address.len.to_le_bytes());
    header[8..12].copy_from_slice(&head.0.to_le_bytes());
    header[12] = chunk.encoding as u8;
    header[16..24].copy_from_slice(&chunk.min_time.to_le_bytes());
    header[24..].copy_from_slice(&chunk.max_time.to_le_bytes());
    header
}

fn crc(data_crc: u32, header: &[u8; RECORD_HEADER_LEN], chunk: &StoredChunk) -> u32 {
    let crc = crc32c::crc32c_append(data_crc, &header[4..]);
    let crc = crc32c::crc32c_append(crc, &chunk.address.file.to_le_bytes());
    crc32c::crc32c_append(crc, &chunk.address.offset.to_le_bytes())
}

/// Appends a record; `data_crc` is that of `data`. Returns the record's own checksum.
pub(super) fn put_record(out: &mut Vec<u8>, head: HeadId, chunk: &StoredChunk, data_crc: u32, data: &[u8]) -> u32 {
    let mut header = fields(head, chunk);
    let crc = crc(data_crc, &header, chunk);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    crc
}

/// The data of a record, if these bytes are that record. What the record says of itself is not asked.
pub(super) fn check_record(record: &Bytes, head: HeadId, chunk: &StoredChunk) -> Option<Bytes> {
    let data = record.get(RECORD_HEADER_LEN..)?;
    let intact =
        data.len() == chunk.address.len as usize && chunk.crc == crc(crc32c::crc32c(data), &fields(head, chunk), chunk);
    intact.then(|| record.slice(RECORD_HEADER_LEN..))
}
