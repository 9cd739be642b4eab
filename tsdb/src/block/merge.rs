//! Merging streams of series, each in label order, into one.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use skald_model::Labels;

use super::tombstones::normalize;
use crate::SeriesChunks;
use crate::chunk::{Chunk, ChunkError};

/// A merge had to stop.
#[derive(Debug, thiserror::Error)]
pub enum MergeError<E> {
    /// A source failed.
    #[error(transparent)]
    Source(E),
    /// A chunk from which deleted samples had to be cut is damaged.
    #[error("chunk of series {labels}: {source}")]
    Chunk {
        /// Which series.
        labels: Labels,
        /// What is wrong.
        source: ChunkError,
    },
    /// A source does not give its series in ascending order.
    #[error("series {labels} does not come after the one before it")]
    OutOfOrder {
        /// The later series.
        labels: Labels,
    },
}

/// Merges sources whose series ascend by labels; equal series become one, with the chunks of all of them.
///
/// They are joined as [`join_parts`] says: samples that one source has deleted stay visible where another has them. After
/// an error the stream ends.
pub fn merge_series<I, E>(sources: Vec<I>) -> MergedSeries<I>
where
    I: Iterator<Item = Result<SeriesChunks, E>>,
{
    let unread = (0..sources.len()).collect();
    MergedSeries { sources, heads: BinaryHeap::new(), unread, failed: false }
}

/// What [`merge_series`] gives.
pub struct MergedSeries<I> {
    sources: Vec<I>,
    heads: BinaryHeap<Reverse<SourceHead>>,
    /// Sources whose next series is not among `heads`.
    unread: Vec<usize>,
    failed: bool,
}

/// A source's next series; ordered by labels, then by source.
struct SourceHead {
    series: SeriesChunks,
    source: usize,
}

impl SourceHead {
    fn key(&self) -> (&Labels, usize) {
        (&self.series.labels, self.source)
    }
}

impl PartialEq for SourceHead {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for SourceHead {}

impl PartialOrd for SourceHead {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SourceHead {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<I, E> MergedSeries<I>
where
    I: Iterator<Item = Result<SeriesChunks, E>>,
{
    /// Reads the next series of every unread source; `previous` is the one they gave last, if any.
    fn refill(&mut self, previous: Option<&Labels>) -> Result<(), MergeError<E>> {
        for source in self.unread.drain(..) {
            let Some(series) = self.sources[source].next().transpose().map_err(MergeError::Source)? else { continue };
            if previous.is_some_and(|previous| *previous >= series.labels) {
                return Err(MergeError::OutOfOrder { labels: series.labels });
            }
            self.heads.push(Reverse(SourceHead { series, source }));
        }
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<SeriesChunks>, MergeError<E>> {
        if self.heads.is_empty() {
            self.refill(None)?;
        }
        let Some(Reverse(first)) = self.heads.pop() else { return Ok(None) };
        self.unread.push(first.source);
        let labels = first.series.labels.clone();
        let mut parts = vec![first.series];
        while self.heads.peek().is_some_and(|Reverse(next)| next.series.labels == labels) {
            if let Some(Reverse(next)) = self.heads.pop() {
                self.unread.push(next.source);
                parts.push(next.series);
            }
        }
        self.refill(Some(&labels))?;
        if parts.len() == 1 {
            return Ok(parts.pop());
        }
        join_parts(parts).map_err(|source| MergeError::Chunk { labels, source })
    }
}

impl<I, E> Iterator for MergedSeries<I>
where
    I: Iterator<Item = Result<SeriesChunks, E>>,
{
    type Item = Result<SeriesChunks, MergeError<E>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.try_next();
        self.failed = next.is_err();
        next.transpose()
    }
}

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
    use std::collections::{BTreeMap, BTreeSet};
    use std::convert::Infallible;

    use super::*;
    use crate::chunk::Encoding;
    use crate::chunk::xor::XorAppender;
    use crate::decode::decode_series;
    use proptest::prelude::*;
    use skald_model::{Columns, QueryRange};

    fn chunk(times: &BTreeSet<i64>) -> Chunk {
        let (mut appender, mut data) = (XorAppender::new(), Vec::new());
        times.iter().for_each(|&t| appender.append(&mut data, t, 1.0).unwrap());
        let (min_time, max_time) = (*times.first().unwrap(), *times.last().unwrap());
        Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() }
    }

    fn series(name: &str, chunks: Vec<Chunk>, deleted: Vec<QueryRange>) -> SeriesChunks {
        SeriesChunks { labels: Labels::from_pairs([("n", name)]), chunks, deleted }
    }

    type Source = BTreeMap<String, (Vec<BTreeSet<i64>>, Option<(i64, i64)>)>;

    fn source() -> impl Strategy<Value = Source> {
        let chunk = proptest::collection::btree_set(0_i64..20, 1..4);
        let chunks = proptest::collection::vec(chunk, 1..4);
        proptest::collection::btree_map("[a-d]", (chunks, proptest::option::of((0_i64..20, 0_i64..5))), 0..4)
    }

    proptest! {
        #[test]
        fn every_visible_sample_survives_once(sources in proptest::collection::vec(source(), 0..4)) {
            let mut expected: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
            let streams: Vec<Vec<SeriesChunks>> = sources.iter().map(|source| {
                source.iter().map(|(name, (chunks, deleted))| {
                    let deleted: Vec<_> = deleted.map(|(min, len)| QueryRange { min, max: min + len }).into_iter().collect();
                    let visible = chunks.iter().flatten().filter(|t| !deleted.iter().any(|d| d.contains(**t)));
                    expected.entry(name.clone()).or_default().extend(visible);
                    series(name, chunks.iter().map(chunk).collect(), deleted)
                }).collect()
            }).collect();
            let sources = streams.iter().map(|s| s.iter().cloned().map(Ok::<_, Infallible>)).collect();
            let merged: Vec<SeriesChunks> = merge_series(sources).map(Result::unwrap).collect();
            let names: Vec<&str> = merged.iter().map(|s| s.labels.get("n").unwrap()).collect();
            prop_assert_eq!(names, expected.keys().map(String::as_str).collect::<Vec<_>>());
            for (series, times) in merged.iter().zip(expected.values()) {
                let mut columns = Columns::default();
                decode_series(&series.chunks, QueryRange::ALL, &mut columns).unwrap();
                crate::block::cut_columns(&mut columns, &series.deleted);
                prop_assert_eq!(&columns.float_timestamps, &times.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn identical_chunks_appear_once_and_in_time_order() {
        let times = |t: &[i64]| chunk(&t.iter().copied().collect());
        let a = series("a", vec![times(&[1, 5]), times(&[6, 9])], Vec::new());
        let b = series("a", vec![times(&[1, 5]), times(&[6, 8, 9])], Vec::new());
        let sources = [&a, &b, &a].map(|s| std::iter::once(Ok::<_, Infallible>(s.clone()))).into();
        let merged: Vec<_> = merge_series(sources).map(Result::unwrap).collect();
        assert_eq!(merged, [series("a", vec![times(&[1, 5]), times(&[6, 9]), times(&[6, 8, 9])], Vec::new())]);
    }

    #[test]
    fn errors_end_the_stream() {
        let ok = |name| Ok(series(name, vec![chunk(&[1].into())], Vec::new()));
        let unsorted = merge_series(vec![vec![ok("b"), ok("a")].into_iter(), vec![ok("c")].into_iter()]);
        let results: Vec<Result<_, MergeError<&str>>> = unsorted.collect();
        assert!(matches!(results.as_slice(), [Err(MergeError::OutOfOrder { .. })]));
        let broken: Vec<_> = merge_series(vec![vec![ok("a"), Err("gone"), ok("c")].into_iter()]).collect();
        assert!(matches!(broken.as_slice(), [Err(MergeError::Source("gone"))]));
    }
}
