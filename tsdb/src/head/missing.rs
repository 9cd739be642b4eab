//! What one member of a replica group lacks of another's samples of a series.

use skald_model::{Columns, QueryRange};

use super::recode;
use super::sample::TimedSample;
use crate::chunk::{Chunk, ChunkError};
use crate::decode::decode_series;

/// Samples that are there and not here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// They, encoded; ascending, without overlap.
    pub chunks: Vec<Chunk>,
    /// How many.
    pub samples: u64,
    /// Samples at whose time there is another value here.
    pub conflicts: u64,
}

/// The samples of `range` that `theirs` has at times where `ours` has none. Ours may be damaged: a chunk that does not
/// decode has nothing. Theirs must decode, to samples within each chunk's own times.
pub fn missing(ours: &[Chunk], theirs: &[Chunk], range: QueryRange, range_ms: i64) -> Result<Missing, ChunkError> {
    let is_float = |chunk: &Chunk| chunk.encoding.is_float();
    if ours.iter().chain(theirs).all(is_float)
        && let Some(nothing_or_few) = missing_floats(ours, theirs, range, range_ms)?
    {
        return Ok(nothing_or_few);
    }
    let mut held: Vec<TimedSample> = Vec::new();
    for chunk in ours {
        // What is decoded of a damaged chunk is taken back.
        let _ = recode::decode(chunk.encoding, &chunk.data, range, &mut held);
    }
    held.sort_by_key(|sample| sample.time);
    let mut offered: Vec<TimedSample> = Vec::new();
    for chunk in theirs {
        let from = offered.len();
        recode::decode(chunk.encoding, &chunk.data, range, &mut offered)?;
        let times = &offered[from..];
        if times.iter().any(|sample| sample.time < chunk.min_time || sample.time > chunk.max_time) {
            return Err(ChunkError::Malformed("time"));
        }
        if !times.is_sorted_by(|a, b| a.time < b.time) {
            return Err(ChunkError::OutOfOrder);
        }
    }
    offered.sort_by_key(|sample| sample.time);
    offered.dedup_by_key(|sample| sample.time);
    let mut conflicts = 0;
    offered.retain(|sample| {
        let at = held.partition_point(|own| own.time < sample.time);
        let mut same_time = held[at..].iter().take_while(|own| own.time == sample.time).peekable();
        let is_free = same_time.peek().is_none();
        if !is_free && !same_time.any(|own| own.value.is_same(&sample.value)) {
            conflicts += 1;
        }
        is_free
    });
    let chunks = recode::encode(&offered, range_ms);
    Ok(Missing { chunks, samples: offered.len() as u64, conflicts })
}

/// The same of floats alone; `None` when ours is damaged.
fn missing_floats(
    ours: &[Chunk],
    theirs: &[Chunk],
    range: QueryRange,
    range_ms: i64,
) -> Result<Option<Missing>, ChunkError> {
    let (mut held, mut offered) = (Columns::default(), Columns::default());
    if decode_series(ours, range, &mut held).is_err() {
        return Ok(None);
    }
    decode_series(theirs, range, &mut offered)?;
    let mut found = Missing::default();
    let mut samples: Vec<TimedSample> = Vec::new();
    let mut own = held.float_timestamps.iter().zip(&held.float_values).peekable();
    for (at, (&time, &value)) in offered.float_timestamps.iter().zip(&offered.float_values).enumerate() {
        while own.next_if(|(own, _)| **own < time).is_some() {}
        match own.peek() {
            Some((own, here)) if **own == time => found.conflicts += u64::from(here.to_bits() != value.to_bits()),
            _ => {
                let start = offered.float_starts.get(at).copied().unwrap_or(0);
                samples.push(TimedSample { time, value: super::sample::SampleValue::Float(value), start });
            }
        }
    }
    found.samples = samples.len() as u64;
    found.chunks = recode::encode(&samples, range_ms);
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::encode::ChunkEncoder;
    use proptest::prelude::*;
    use skald_model::{Histogram, HistogramValue, STALE_NAN_BITS};

    /// A sample of each kind by a small number; stale markers among them.
    fn push(encoder: &mut ChunkEncoder, time: i64, kind: u8) {
        match kind {
            0..=5 => encoder.push_started_float(time, f64::from(kind % 2), i64::from(kind / 2)),
            6 => encoder.push_float(time, f64::from_bits(STALE_NAN_BITS)),
            _ => {
                let value = Histogram { count: u64::from(kind), zero_count: u64::from(kind), ..Histogram::default() };
                encoder.push_histogram(time, &HistogramValue::Integer(Arc::new(value))).unwrap();
            }
        }
    }

    fn chunks(samples: &std::collections::BTreeMap<i64, u8>, split: i64) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        for part in [i64::MIN..split, split..i64::MAX] {
            let mut encoder = ChunkEncoder::default();
            samples.range(part).for_each(|(time, kind)| push(&mut encoder, *time, *kind));
            chunks.extend(encoder.finish());
        }
        chunks
    }

    fn all(chunks: &[Chunk], range: QueryRange) -> Vec<TimedSample> {
        let mut samples = Vec::new();
        chunks.iter().for_each(|c| recode::decode(c.encoding, &c.data, range, &mut samples).unwrap());
        samples
    }

    proptest! {
        #[test]
        fn it_is_what_they_have_at_times_where_we_have_nothing(
            ours in proptest::collection::btree_map(0_i64..60, 0_u8..10, 0..40),
            theirs in proptest::collection::btree_map(0_i64..60, 0_u8..10, 0..40),
            floats: bool, split in 0_i64..60, bounds in (0_i64..60, 0_i64..60),
        ) {
            let only = |all: std::collections::BTreeMap<i64, u8>| -> std::collections::BTreeMap<i64, u8> {
                all.into_iter().map(|(time, kind)| (time, if floats { kind % 7 } else { kind })).collect()
            };
            let (ours, theirs) = (only(ours), only(theirs));
            let range = QueryRange { min: bounds.0.min(bounds.1), max: bounds.0.max(bounds.1) };
            let (held, offered) = (chunks(&ours, split), chunks(&theirs, 60 - split));
            let found = missing(&held, &offered, range, 50).unwrap();
            let expected: Vec<TimedSample> =
                all(&offered, range).into_iter().filter(|sample| !ours.contains_key(&sample.time)).collect();
            let got = all(&found.chunks, QueryRange::ALL);
            prop_assert_eq!(found.samples as usize, expected.len());
            prop_assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(&expected) {
                prop_assert!(got.time == expected.time && got.value.is_same(&expected.value));
                prop_assert_eq!(got.start, expected.start);
            }
            let same = |a: u8, b: u8| a == b || (a < 6 && b < 6 && a % 2 == b % 2);
            let differ = theirs.iter().filter(|(time, kind)| {
                range.contains(**time) && ours.get(*time).is_some_and(|own| !same(*own, **kind))
            });
            prop_assert_eq!(found.conflicts as usize, differ.count());
        }
    }

    #[test]
    fn theirs_must_decode_and_ours_need_not() {
        let good = chunks(&(0..10).map(|time| (time, 1)).collect(), 100);
        let bad = |chunk: &Chunk| vec![Chunk { data: chunk.data.slice(..4), ..chunk.clone() }];
        assert!(missing(&good, &bad(&good[0]), QueryRange::ALL, 50).is_err());
        assert!(missing(&[], &bad(&good[0]), QueryRange::ALL, 50).is_err());
        assert_eq!(missing(&bad(&good[0]), &good, QueryRange::ALL, 50).unwrap().samples, 10);
        let lying = vec![Chunk { max_time: 5, ..good[0].clone() }];
        assert!(missing(&[], &lying, QueryRange::ALL, 50).is_err());
    }
}
