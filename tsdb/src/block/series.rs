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

/// Places of chunks beside those of a range ([`SeriesEntry::parse_part`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunksAround {
    /// The series' first chunk.
    pub first: Option<ChunkRef>,
    /// The first chunk behind the range; `None` when the series has none there.
    pub next: Option<ChunkRef>,
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
        let body = match checked_body(series, series_end, bytes)? {
            Ranged::Complete(body) => body,
            Ranged::Short { need } => return Ok(Ranged::Short { need }),
        };
        self.parse_body(body).ok_or_else(|| malformed(series))?;
        Ok(Ranged::Complete(()))
    }

    /// Parses of the entry only the chunks that may hold a sample of `range`, and the labels if `with_labels`; else as
    /// [`SeriesEntry::parse`]. What comes behind the range is not looked at.
    pub fn parse_part(
        &mut self,
        series: SeriesRef,
        series_end: u64,
        bytes: &[u8],
        range: QueryRange,
        with_labels: bool,
    ) -> Result<Ranged<ChunksAround>, BlockError> {
        self.labels.clear();
        self.chunks.clear();
        self.offset = series_offset(series);
        let body = match checked_body(series, series_end, bytes)? {
            Ranged::Complete(body) => body,
            Ranged::Short { need } => return Ok(Ranged::Short { need }),
        };
        let around = self.parse_body_part(body, range, with_labels).ok_or_else(|| malformed(series))?;
        Ok(Ranged::Complete(around))
    }

    fn parse_labels(&mut self, body: &[u8], at: &mut usize) -> Option<()> {
        let labels = varint::get_uvarint(body, at)?;
        // A label takes two bytes at least: no more is reserved than can be there.
        self.labels.reserve((labels as usize).min(body.len() / 2));
        for _ in 0..labels {
            let name = u32::try_from(varint::get_uvarint(body, at)?).ok()?;
            let value = u32::try_from(varint::get_uvarint(body, at)?).ok()?;
            self.labels.push((name, value));
        }
        Some(())
    }

    fn parse_body(&mut self, body: &[u8]) -> Option<()> {
        let mut at = 0;
        self.parse_labels(body, &mut at)?;
        let chunks = varint::get_uvarint(body, &mut at)?;
        // A chunk takes three bytes at least.
        self.chunks.reserve((chunks as usize).min(body.len() / 3));
        let mut previous = None;
        for _ in 0..chunks {
            let chunk = next_chunk(previous, body, &mut at)?;
            self.chunks.push(chunk);
            previous = Some(chunk);
        }
        (at == body.len()).then_some(())
    }

    fn parse_body_part(&mut self, body: &[u8], range: QueryRange, with_labels: bool) -> Option<ChunksAround> {
        let mut at = 0;
        if with_labels {
            self.parse_labels(body, &mut at)?;
        } else {
            let labels = varint::get_uvarint(body, &mut at)?;
            for _ in 0..labels.checked_mul(2)? {
                varint::get_uvarint(body, &mut at)?;
            }
        }
        let chunks = varint::get_uvarint(body, &mut at)?;
        let mut around = ChunksAround::default();
        let mut previous = None;
        for _ in 0..chunks {
            let chunk = next_chunk(previous, body, &mut at)?;
            if previous.is_none() {
                around.first = Some(chunk.reference);
            }
            previous = Some(chunk);
            if chunk.min_time > range.max {
                around.next = Some(chunk.reference);
                return Some(around);
            }
            if chunk.max_time >= range.min {
                self.chunks.push(chunk);
            }
        }
        (at == body.len()).then_some(around)
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

/// The chunk at `*at` of an entry's body, behind `previous`.
#[inline(always)]
fn next_chunk(previous: Option<ChunkMeta>, body: &[u8], at: &mut usize) -> Option<ChunkMeta> {
    let start = varint::get_uvarint(body, at)?;
    let span = varint::get_uvarint(body, at)?;
    let reference = varint::get_uvarint(body, at)?;
    let (min_time, reference) = match previous {
        None => (varint::from_zig_zag(start), reference),
        Some(p) => (
            p.max_time.checked_add_unsigned(start)?,
            p.reference.0.checked_add_signed(varint::from_zig_zag(reference))?,
        ),
    };
    let max_time = min_time.checked_add_unsigned(span)?;
    Some(ChunkMeta { min_time, max_time, reference: ChunkRef(reference) })
}

/// The body of the entry of `series` that starts `bytes`, checksum verified.
fn checked_body(series: SeriesRef, series_end: u64, bytes: &[u8]) -> Result<Ranged<&[u8]>, BlockError> {
    let offset = series_offset(series);
    let damaged = |what| BlockError::damaged(BlockFile::Index, offset, what);
    if offset >= series_end {
        return Err(damaged("series lies outside the series section"));
    }
    let mut at = 0;
    let Some(body_len) = varint::get_uvarint(bytes, &mut at) else {
        return match bytes.len() {
            0..10 => Ok(Ranged::Short { need: (series_end - offset).min(10).max(bytes.len() as u64 + 1) }),
            _ => Err(damaged("length of a series is malformed")),
        };
    };
    let need = body_len.saturating_add(at as u64 + 4);
    if need > series_end - offset {
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
    Ok(Ranged::Complete(body))
}

fn malformed(series: SeriesRef) -> BlockError {
    BlockError::damaged(BlockFile::Index, series_offset(series), "series is malformed")
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
        fn a_part_is_what_the_whole_has_of_it(
            labels in proptest::collection::vec((0_u32..300, 0_u32..3_000_000), 0..9),
            chunks in chunks(),
            min in -1_000_000_i64..1_200_000,
            len in 0_i64..50_000,
            with_labels: bool,
        ) {
            let mut out = Vec::new();
            SeriesEntry::encode(&labels, &chunks, &mut Vec::new(), &mut out);
            let range = QueryRange { min, max: min + len };
            let mut entry = SeriesEntry::default();
            let around = entry.parse_part(3, 1 << 20, &out, range, with_labels).unwrap();
            let behind = chunks.iter().find(|chunk| chunk.min_time > range.max);
            let references = [chunks.first(), behind].map(|chunk| chunk.map(|chunk| chunk.reference));
            prop_assert_eq!(around, Ranged::Complete(ChunksAround { first: references[0], next: references[1] }));
            let inside: Vec<ChunkMeta> = chunks.iter().filter(|chunk| chunk.overlaps(range)).copied().collect();
            prop_assert_eq!(entry.chunks, inside);
            prop_assert_eq!(entry.labels, if with_labels { labels } else { Vec::new() });
        }

        #[test]
        fn bit_flips_are_found(chunks in chunks(), bit: proptest::sample::Index) {
            let mut out = Vec::new();
            SeriesEntry::encode(&[(0, 1), (2, 3)], &chunks, &mut Vec::new(), &mut out);
            let bit = bit.index(out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            let parsed = SeriesEntry::default().parse(3, 1 << 20, &out);
            prop_assert!(!matches!(parsed, Ok(Ranged::Complete(()))));
            let part = SeriesEntry::default().parse_part(3, 1 << 20, &out, QueryRange::ALL, true);
            prop_assert!(!matches!(part, Ok(Ranged::Complete(_))));
        }
    }
}
