//! One series of several sources.

use super::tombstones::normalize;
use crate::SeriesChunks;
use crate::chunk::{Chunk, ChunkError};

/// Joins the parts of one series that several sources hold, earlier sources first. The labels are the first part's.
///
/// Chunks ascend by first sample; identical ones appear once. A deletion concerns its own part only: where it reaches
/// chunks of another, its samples are cut out of the part's chunks; elsewhere it is handed on.
pub fn join_parts(mut parts: Vec<SeriesChunks>) -> Result<Option<SeriesChunks>, ChunkError> {
    let agree = parts.windows(2).all(|pair| pair[0].deleted == pair[1].deleted);
    if !agree {
        for at in 0..parts.len() {
            if deletion_reaches_another(&parts, at) {
                parts[at].cut_deleted()?;
            }
        }
    }
    let mut parts = parts.into_iter();
    let Some(mut joined) = parts.next() else { return Ok(None) };
    for part in parts {
        joined.chunks.extend(part.chunks);
        joined.deleted.extend(part.deleted);
    }
    joined.chunks.sort_by_key(|chunk| (chunk.min_time, chunk.max_time));
    remove_duplicates(&mut joined.chunks);
    normalize(&mut joined.deleted);
    Ok(Some(joined))
}

/// Whether part `at` deletes where another part may have samples.
fn deletion_reaches_another(parts: &[SeriesChunks], at: usize) -> bool {
    let others = || parts.iter().enumerate().filter(|(other, _)| *other != at).flat_map(|(_, part)| &part.chunks);
    parts[at].deleted.iter().any(|range| others().any(|c| c.min_time <= range.max && range.min <= c.max_time))
}

/// Of identical chunks, keeps the first. Sorted by time, so that identical ones share a run of equal times.
fn remove_duplicates(chunks: &mut Vec<Chunk>) {
    let mut kept = 0;
    for i in 0..chunks.len() {
        let times = |chunk: &Chunk| (chunk.min_time, chunk.max_time);
        let mut run = chunks[..kept].iter().rev().take_while(|earlier| times(earlier) == times(&chunks[i]));
        if run.all(|earlier| *earlier != chunks[i]) {
            chunks.swap(kept, i);
            kept += 1;
        }
    }
    chunks.truncate(kept);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::chunk::Encoding;
    use crate::chunk::xor::XorAppender;
    use crate::decode::decode_series;
    use proptest::prelude::*;
    use skald_model::{Columns, Labels, QueryRange};

    fn chunk(times: &BTreeSet<i64>) -> Chunk {
        let (mut appender, mut data) = (XorAppender::new(), Vec::new());
        times.iter().for_each(|&t| appender.append(&mut data, t, 1.0).unwrap());
        let (min_time, max_time) = (*times.first().unwrap(), *times.last().unwrap());
        Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() }
    }

    fn part(chunks: Vec<Chunk>, deleted: Vec<QueryRange>) -> SeriesChunks {
        SeriesChunks { labels: Labels::from_pairs([("n", "a")]), chunks, deleted }
    }

    prop_compose! {
        fn drawn()(
            chunks in proptest::collection::vec(proptest::collection::btree_set(0_i64..20, 1..4), 1..4),
            deleted in proptest::option::of((0_i64..20, 0_i64..5)),
        ) -> (Vec<BTreeSet<i64>>, Vec<QueryRange>) {
            (chunks, deleted.map(|(min, len)| QueryRange { min, max: min + len }).into_iter().collect())
        }
    }

    proptest! {
        #[test]
        fn every_visible_sample_survives_once(parts in proptest::collection::vec(drawn(), 1..4)) {
            let mut expected = BTreeSet::new();
            let parts: Vec<SeriesChunks> = parts.iter().map(|(chunks, deleted)| {
                let visible = chunks.iter().flatten().filter(|t| !deleted.iter().any(|d| d.contains(**t)));
                expected.extend(visible.copied());
                part(chunks.iter().map(chunk).collect(), deleted.clone())
            }).collect();
            let joined = join_parts(parts).unwrap().unwrap();
            let mut columns = Columns::default();
            decode_series(&joined.chunks, QueryRange::ALL, &mut columns).unwrap();
            crate::block::cut_columns(&mut columns, &joined.deleted);
            prop_assert_eq!(&columns.float_timestamps, &expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn identical_chunks_appear_once_and_in_time_order() {
        let times = |t: &[i64]| chunk(&t.iter().copied().collect());
        let a = part(vec![times(&[1, 5]), times(&[6, 9])], Vec::new());
        let b = part(vec![times(&[1, 5]), times(&[6, 8, 9])], Vec::new());
        let joined = join_parts(vec![a.clone(), b, a]).unwrap().unwrap();
        assert_eq!(joined, part(vec![times(&[1, 5]), times(&[6, 9]), times(&[6, 8, 9])], Vec::new()));
        assert_eq!(join_parts(Vec::new()).unwrap(), None);
    }
}
