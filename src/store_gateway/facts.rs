//! What is kept on this machine of a block besides its index header, so that it can be opened again without a request.
//!
//! One file, `facts`, big-endian: `"SKBF" | version u32 | json_len u32 | json | tombstones (a whole tombstones file) |
//! crc32c(all before) u32`. It is a cache: an unknown version counts as damaged, and damaged ones are made anew.

use serde::{Deserialize, Serialize};
use skald_model::TimestampMs;

const MAGIC: &[u8; 4] = b"SKBF";
const VERSION: u32 = 1;
const FIXED_LEN: usize = 12;

/// Sizes and times of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) min_time: TimestampMs,
    pub(super) max_time: TimestampMs,
    /// Size of the index.
    pub(super) index_len: u64,
    /// Sizes of the chunk segments by number, from 0.
    pub(super) segment_lens: Vec<u64>,
    /// Longest series entry; 0 when unknown.
    pub(super) series_max_size: u64,
    /// Longest chunk; 0 when unknown.
    pub(super) chunk_max_size: u64,
}

impl Facts {
    /// The file's content.
    pub(super) fn encode(&self, tombstones: &[u8]) -> Vec<u8> {
        // Numbers only: there is nothing that could fail.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let mut out = Vec::with_capacity(FIXED_LEN + json.len() + tombstones.len() + 4);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&(json.len() as u32).to_be_bytes());
        out.extend_from_slice(&json);
        out.extend_from_slice(tombstones);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    /// The facts and the tombstones file in a file's content; `None` when it is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_be_bytes(*crc) != crc32c::crc32c(bytes) {
            return None;
        }
        let (fixed, rest) = bytes.split_at_checked(FIXED_LEN)?;
        let number = |at: usize| fixed.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        if !fixed.starts_with(MAGIC) || number(4)? != VERSION {
            return None;
        }
        let (json, tombstones) = rest.split_at_checked(number(8)? as usize)?;
        Some((serde_json::from_slice(json).ok()?, tombstones))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts() -> Facts {
        Facts {
            min_time: -5,
            max_time: 7,
            index_len: 1 << 40,
            segment_lens: vec![512 << 20, 9],
            series_max_size: 3,
            chunk_max_size: 0,
        }
    }

    #[test]
    fn round_trips() {
        let bytes = facts().encode(b"stones");
        assert_eq!(Facts::decode(&bytes), Some((facts(), &b"stones"[..])));
    }

    proptest! {
        #[test]
        fn damage_is_found(bit: proptest::sample::Index, cut: proptest::sample::Index) {
            let mut bytes = facts().encode(b"stones");
            prop_assert_eq!(Facts::decode(&bytes[..cut.index(bytes.len())]), None);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Facts::decode(&bytes), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Facts::decode(&bytes);
        }
    }
}
