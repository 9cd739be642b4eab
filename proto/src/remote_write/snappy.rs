//! Decompression that allocates only what the compressed bytes can really yield.

use bytes::{Bytes, BytesMut};

use super::DecodeError;

/// No snappy element yields more than 64 bytes from 3 (a copy with a two-byte offset).
const MAX_EXPANSION: u64 = 22;

/// Bytes a snappy block says it holds; `None` when its header is damaged.
pub fn declared_bytes(compressed: &[u8]) -> Option<u64> {
    skald_model::varint::get_uvarint(compressed, &mut 0)
}

/// Decompresses a snappy block of at most `max_bytes` into `buffer`'s allocation.
pub(super) fn decompress(compressed: &[u8], max_bytes: usize, mut buffer: BytesMut) -> Result<Bytes, DecodeError> {
    let declared =
        declared_bytes(compressed).ok_or_else(|| DecodeError::Snappy("the length header is damaged".to_owned()))?;
    // Offsets into the message are 32 bits wide.
    let limit = max_bytes.min(u32::MAX as usize / 2);
    if declared > limit as u64 {
        return Err(DecodeError::TooLarge { declared, limit });
    }
    let possible = (compressed.len() as u64).saturating_mul(MAX_EXPANSION);
    if declared > possible {
        return Err(DecodeError::Snappy(format!(
            "{declared} bytes are declared, {} compressed bytes cannot hold more than {possible}",
            compressed.len()
        )));
    }
    buffer.resize(declared as usize, 0);
    let written = snap::raw::Decoder::new()
        .decompress(compressed, &mut buffer)
        .map_err(|error| DecodeError::Snappy(error.to_string()))?;
    buffer.truncate(written);
    Ok(buffer.freeze())
}
