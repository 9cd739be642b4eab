//! A series' entry in the index: its labels as symbols, and where its chunks are.

use std::ops::Range;

use skald_model::{QueryRange, TimestampMs, varint};

use super::framing::{Ranged, u32_at};
use super::{BlockError, BlockFile, ChunkRef};
use crate::postings::SeriesRef;

/// Series entries start at multiples of this; a [`SeriesRef`] counts them.
pub(super) const SERIES_ALIGN: u64 = 16;

/// What the index says of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkMeta {
    /// Time of its first sample.
    pub min_time: TimestampMs,
    /// Time of its last sample, inclusive.
    pub max_time: TimestampMs,
    /// Where its bytes are.
    pub reference: ChunkRef,
}

impl ChunkMeta {
    /// Whether the chunk may hold a sample of `range`.
    pub fn overlaps(&self, range: QueryRange) -> bool {
        self.min_time <= range.max && range.min <= self.max_time
    }
}

/// A series as the index holds it.
///
/// Layout: `body_len uvarint | body | crc32c(body) u32`; body: `labels uvarint | labels × (name uvarint | value
/// uvarint) | chunks uvarint | min varint | max-min uvarint | ref uvarint | further × (min-prev_max uvarint | max-min
/// uvarint | ref-prev_ref varint)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeriesEntry {
    /// Where the entry starts in the index.
    pub offset: u64,
    /// Symbol numbers of names and values, ascending by name.
    pub labels: Vec<(u32, u32)>,
    /// The chunks in time order.
    pub chunks: Vec<ChunkMeta>,
}

/// Where the entry of `series` starts in the index.
pub fn series_offset(series: SeriesRef) -> u64 {
    u64::from(series) * SERIES_ALIGN
}

/// The bytes to fetch for the entry of `series`, whose length is not known: `estimate` of them, cut at `series_end`
/// ([`super::Toc::series_end`]).
pub fn series_range(series: SeriesRef, estimate: u64, series_end: u64) -> Range<u64> {
    let start = series_offset(series);
    start..start.saturating_add(estimate.max(1)).min(series_end).max(start)
}

impl SeriesEntry {
    /// Parses the entry of `series` from bytes that start where it does, reusing this entry's memory.
    ///
    /// `series_end` bounds how long an entry may claim to be.
    pub fn parse(&mut self, series: SeriesRef, series_end: u64, bytes: &[u8]) -> Result<Ranged<()>, BlockError> {
        self.labels.clear();
        self.chunks.clear();
        self.offset = series_offset(series);
        let damaged = |what| BlockError::damaged(BlockFile::Index, series_offset(series), what);
        if self.offset >= series_end {
            return Err(damaged("series lies outside the series section"));
        }
        let mut at = 0;
        let Some(body_len) = varint::get_uvarint(bytes, &mut at) else {
            return match bytes.len() {
                0..10 => Ok(Ranged::Short { need: (series_end - self.offset).min(10).max(bytes.len() as u64 + 1) }),
                _ => Err(damaged("length of a series is malformed")),
            };
        };
        let need = body_len.saturating_add(at as u64 + 4);
        if need > series_end - self.offset {
            return Err(damaged("series reaches past the series section"));
        }
        if need > bytes.len() as u64 {
            return Ok(Ranged::Short { need });
        }
        let end = at + body_len as usize;
        let body = &bytes[at..end];
        if u32_at(bytes, end) != Some(crc32c::crc32c(body)) {
            return Err(damaged("checksum of a series does not match"));
        }
        self.parse_body(body).ok_or_else(|| damaged("series is malformed"))?;
        Ok(Ranged::Complete(()))
    }

    fn parse_body(&mut self, body: &[u8]) -> Option<()> {
        let mut at = 0;
        let labels = varint::get_uvarint(body, &mut at)?;
        // A label takes two bytes at least, a further chunk three: no more is reserved than can be there.
        self.labels.reserve((labels as usize).min(body.len() / 2));
        for _ in 0..labels {
            let name = u32::try_from(varint::get_uvarint(body, &mut at)?).ok()?;
            let value = u32::try_from(varint::get_uvarint(body, &mut at)?).ok()?;
            self.labels.push((name, value));
        }
        let chunks = varint::get_uvarint(body, &mut at)?;
        self.chunks.reserve((chunks as usize).min(body.len() / 3));
        let mut previous: Option<ChunkMeta> = None;
        for _ in 0..chunks {
            let min_time = match previous {
                None => varint::get_varint(body, &mut at)?,
                Some(p) => p.max_time.checked_add_unsigned(varint::get_uvarint(body, &mut at)?)?,
            };
            let max_time = min_time.checked_add_unsigned(varint::get_uvarint(body, &mut at)?)?;
            let reference = match previous {
                None => varint::get_uvarint(body, &mut at)?,
                Some(p) => p.reference.0.checked_add_signed(varint::get_varint(body, &mut at)?)?,
            };
            let chunk = ChunkMeta { min_time, max_time, reference: ChunkRef(reference) };
            self.chunks.push(chunk);
            previous = Some(chunk);
        }
        (at == body.len()).then_some(())
    }

    /// Appends the entry with its length and checksum; `body` is scratch.
    pub(super) fn encode(labels: &[(u32, u32)], chunks: &[ChunkMeta], body: &mut Vec<u8>, out: &mut Vec<u8>) {
        body.clear();
        varint::put_uvarint(body, labels.len() as u64);
        for &(name, value) in labels {
            varint::put_uvarint(body, u64::from(name));
            varint::put_uvarint(body, u64::from(value));
        }
        varint::put_uvarint(body, chunks.len() as u64);
        let mut previous: Option<&ChunkMeta> = None;
        for chunk in chunks {
            match previous {
                None => varint::put_varint(body, chunk.min_time),
                Some(p) => varint::put_uvarint(body, chunk.min_time.wrapping_sub(p.max_time) as u64),
            }
            varint::put_uvarint(body, chunk.max_time.wrapping_sub(chunk.min_time) as u64);
            match previous {
                None => varint::put_uvarint(body, chunk.reference.0),
                Some(p) => varint::put_varint(body, chunk.reference.0.wrapping_sub(p.reference.0) as i64),
            }
            previous = Some(chunk);
        }
        varint::put_uvarint(out, body.len() as u64);
        out.extend_from_slice(body);
        out.extend_from_slice(&crc32c::crc32c(body).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn chunks()(start in -1_000_000_i64..1_000_000, steps in proptest::collection::vec((1_u32..9999, 0_u32..9999, 1_u32..900), 0..20))
            -> Vec<ChunkMeta>
        {
            let (mut time, mut at) = (start, 8_u64);
            steps.into_iter().map(|(gap, span, len)| {
                let min_time = time + i64::from(gap);
                time = min_time + i64::from(span);
                at += u64::from(len);
                ChunkMeta { min_time, max_time: time, reference: ChunkRef(at) }
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn round_trips(labels: Vec<(u32, u32)>, chunks in chunks(), cut in 0.0..1.0) {
            let mut out = Vec::new();
            SeriesEntry::encode(&labels, &chunks, &mut Vec::new(), &mut out);
            let mut entry = SeriesEntry::default();
            prop_assert_eq!(entry.parse(3, 1 << 20, &out).unwrap(), Ranged::Complete(()));
            prop_assert_eq!((&entry.labels, &entry.chunks, entry.offset), (&labels, &chunks, 48));
            // Cut anywhere it asks for more, and what it asks for is enough in the end.
            let mut given = (out.len() as f64 * cut) as usize;
            while let Ranged::Short { need } = entry.parse(3, 1 << 20, &out[..given.min(out.len())]).unwrap() {
                prop_assert!(need as usize > given);
                given = need as usize;
            }
            prop_assert_eq!(&entry.chunks, &chunks);
        }

        #[test]
        fn bit_flips_are_found(chunks in chunks(), bit: proptest::sample::Index) {
            let mut out = Vec::new();
            SeriesEntry::encode(&[(0, 1), (2, 3)], &chunks, &mut Vec::new(), &mut out);
            let bit = bit.index(out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            let parsed = SeriesEntry::default().parse(3, 1 << 20, &out);
            prop_assert!(!matches!(parsed, Ok(Ranged::Complete(()))));
        }
    }
}
