//! Tombstones: time ranges deleted from series of a block, without rewriting it.

use std::collections::BTreeMap;

use skald_model::{Columns, QueryRange, varint};

use super::framing::u32_at;
use super::{BlockError, BlockFile};
use crate::postings::SeriesRef;

/// Name of the file.
pub const TOMBSTONES_FILE: &str = "tombstones";
const TOMBSTONES_MAGIC: u32 = 0x0130_BA30;
const TOMBSTONES_VERSION: u8 = 1;
const HEADER_LEN: usize = 5;

/// Deleted ranges by series, each list ascending and without ranges that touch.
///
/// Layout of the file: `magic u32 | version u8 | stones × (series uvarint | min varint | max varint) | crc32c(stones) u32`,
/// both ends inclusive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tombstones {
    deleted: BTreeMap<SeriesRef, Vec<QueryRange>>,
}

impl Tombstones {
    /// Parses a tombstones file.
    pub fn parse(bytes: &[u8]) -> Result<Self, BlockError> {
        let damaged = |offset, what| BlockError::damaged(BlockFile::Tombstones, offset, what);
        let stones_end = bytes.len().checked_sub(4).filter(|&end| end >= HEADER_LEN);
        let stones_end = stones_end.ok_or_else(|| damaged(0, "shorter than a header and a checksum"))?;
        if u32_at(bytes, 0) != Some(TOMBSTONES_MAGIC) {
            return Err(damaged(0, "not a tombstones file"));
        }
        if bytes[4] != TOMBSTONES_VERSION {
            let (file, found) = (BlockFile::Tombstones, u64::from(bytes[4]));
            return Err(BlockError::Unsupported { file, what: "tombstones version", found });
        }
        let stones = &bytes[HEADER_LEN..stones_end];
        if u32_at(bytes, stones_end) != Some(crc32c::crc32c(stones)) {
            return Err(damaged(HEADER_LEN as u64, "checksum does not match"));
        }
        let mut tombstones = Self::default();
        let mut at = 0;
        while at < stones.len() {
            let start = (HEADER_LEN + at) as u64;
            let stone = (|| {
                let series = SeriesRef::try_from(varint::get_uvarint(stones, &mut at)?).ok()?;
                let min = varint::get_varint(stones, &mut at)?;
                let max = varint::get_varint(stones, &mut at)?;
                Some((series, QueryRange { min, max }))
            })();
            let (series, range) = stone.ok_or_else(|| damaged(start, "a stone is malformed"))?;
            tombstones.deleted.entry(series).or_default().push(range);
        }
        for ranges in tombstones.deleted.values_mut() {
            normalize(ranges);
        }
        tombstones.deleted.retain(|_, ranges| !ranges.is_empty());
        Ok(tombstones)
    }

    /// The file's contents.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = TOMBSTONES_MAGIC.to_be_bytes().to_vec();
        out.push(TOMBSTONES_VERSION);
        for (&series, ranges) in &self.deleted {
            for range in ranges {
                varint::put_uvarint(&mut out, u64::from(series));
                varint::put_varint(&mut out, range.min);
                varint::put_varint(&mut out, range.max);
            }
        }
        let crc = crc32c::crc32c(&out[HEADER_LEN..]);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    /// Marks a range of a series as deleted.
    pub fn delete(&mut self, series: SeriesRef, range: QueryRange) {
        if !range.is_empty() {
            let ranges = self.deleted.entry(series).or_default();
            ranges.push(range);
            normalize(ranges);
        }
    }

    /// What is deleted of a series, ascending.
    pub fn of(&self, series: SeriesRef) -> &[QueryRange] {
        self.deleted.get(&series).map_or(&[], Vec::as_slice)
    }

    /// Number of deleted ranges.
    pub fn len(&self) -> usize {
        self.deleted.values().map(Vec::len).sum()
    }

    /// Whether nothing is deleted.
    pub fn is_empty(&self) -> bool {
        self.deleted.is_empty()
    }
}

/// Sorts ranges, drops empty ones, joins those that overlap or touch.
pub(super) fn normalize(ranges: &mut Vec<QueryRange>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.min);
    ranges.dedup_by(|next, kept| {
        let touches = next.min <= kept.max.saturating_add(1);
        if touches {
            kept.max = kept.max.max(next.max);
        }
        touches
    });
}

/// Removes the samples that lie in `deleted` (ascending, disjoint) from columns.
pub fn cut_columns(columns: &mut Columns, deleted: &[QueryRange]) {
    if deleted.is_empty() {
        return;
    }
    cut(&mut columns.float_timestamps, &mut columns.float_values, deleted);
    cut(&mut columns.histogram_timestamps, &mut columns.histograms, deleted);
}

fn cut<T>(timestamps: &mut Vec<i64>, values: &mut Vec<T>, deleted: &[QueryRange]) {
    for range in deleted {
        let start = timestamps.partition_point(|&t| t < range.min);
        let end = timestamps.partition_point(|&t| t <= range.max);
        timestamps.drain(start..end);
        values.drain(start..end.min(values.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<(u32, i64, i64)>> {
        proptest::collection::vec((0_u32..4, -50_i64..50, -50_i64..50), 0..12)
    }

    proptest! {
        #[test]
        fn round_trips_and_merges(stones in ranges(), probe in -60_i64..60) {
            let mut tombstones = Tombstones::default();
            for &(series, min, max) in &stones {
                tombstones.delete(series, QueryRange { min, max });
            }
            let parsed = Tombstones::parse(&tombstones.encode()).unwrap();
            prop_assert_eq!(&parsed, &tombstones);
            for series in 0..4 {
                let expected = stones.iter().any(|&(s, min, max)| s == series && min <= probe && probe <= max);
                prop_assert_eq!(parsed.of(series).iter().any(|r| r.contains(probe)), expected);
                prop_assert!(parsed.of(series).windows(2).all(|w| w[0].max + 1 < w[1].min));
                let mut columns = Columns::default();
                (-60..60).for_each(|t| columns.push_float(t, t as f64));
                cut_columns(&mut columns, parsed.of(series));
                prop_assert_eq!(columns.float_timestamps.contains(&probe), !expected);
                prop_assert_eq!(columns.float_values.contains(&(probe as f64)), !expected);
            }
        }

        #[test]
        fn damage_is_an_error(stones in ranges(), bit: proptest::sample::Index) {
            let mut tombstones = Tombstones::default();
            stones.iter().for_each(|&(series, min, max)| tombstones.delete(series, QueryRange { min, max }));
            let mut bytes = tombstones.encode();
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Tombstones::parse(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Tombstones::parse(&bytes);
        }
    }

    #[test]
    fn an_empty_file_is_nine_bytes() {
        assert_eq!(Tombstones::default().encode(), [0x01, 0x30, 0xBA, 0x30, 1, 0, 0, 0, 0]);
    }
}
