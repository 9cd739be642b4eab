//! How the parts of one series from several blocks become one.

use skald_model::{Columns, HistogramSample, HistogramValue, QueryRange};
use skald_tsdb::SeriesChunks;
use skald_tsdb::chunk::histogram::{self, Appended, Float, HistogramAppender, Integer, Kind, ResetHeader};
use skald_tsdb::chunk::xor::{self, XorAppender};
use skald_tsdb::chunk::{Chunk, Encoding, xor2};

use crate::error::ServiceError;

/// Joins the parts of one series: chunks ascending by first sample, those that occur twice once (replicas wrote them).
///
/// A deletion concerns the block it stands in. Where another part has samples in the deleted range, the deletion is
/// carried out here; elsewhere it is handed on.
pub(super) fn join(mut parts: Vec<SeriesChunks>) -> Result<SeriesChunks, ServiceError> {
    if parts.len() > 1 {
        for at in 0..parts.len() {
            if deletion_reaches_another(&parts, at) {
                carry_out(&mut parts[at])?;
            }
        }
    }
    let mut parts = parts.into_iter();
    let Some(mut joined) = parts.next() else {
        return Err(ServiceError::internal("a series without parts"));
    };
    for part in parts {
        joined.chunks.extend(part.chunks);
        joined.deleted.extend(part.deleted);
    }
    let order = |chunk: &Chunk| (chunk.min_time, chunk.max_time);
    if !joined.chunks.is_sorted_by_key(order) {
        joined.chunks.sort_by_key(order);
    }
    joined.chunks.dedup();
    joined.deleted.sort_unstable_by_key(|range| range.min);
    Ok(joined)
}

fn overlaps(chunk: &Chunk, range: &QueryRange) -> bool {
    chunk.min_time <= range.max && range.min <= chunk.max_time
}

/// Whether something is deleted of part `at` where another part may have samples.
fn deletion_reaches_another(parts: &[SeriesChunks], at: usize) -> bool {
    let others = || parts.iter().enumerate().filter(|(other, _)| *other != at).flat_map(|(_, part)| &part.chunks);
    parts[at].deleted.iter().any(|range| others().any(|chunk| overlaps(chunk, range)))
}

/// Takes what is deleted out of the chunks themselves: what stays of a chunk becomes a chunk for each stretch.
fn carry_out(part: &mut SeriesChunks) -> Result<(), ServiceError> {
    let deleted = std::mem::take(&mut part.deleted);
    for chunk in std::mem::take(&mut part.chunks) {
        if !deleted.iter().any(|range| overlaps(&chunk, range)) {
            part.chunks.push(chunk);
            continue;
        }
        for kept in kept_ranges(&chunk, &deleted) {
            let cut = match chunk.encoding {
                Encoding::Xor | Encoding::Xor2 => cut_floats(&chunk, kept, &mut part.chunks),
                Encoding::Histogram | Encoding::FloatHistogram => cut_histograms(&chunk, kept, &mut part.chunks),
            };
            cut.map_err(|why| {
                let message = format!("series {}: a deletion cannot be carried out: {why}", part.labels);
                ServiceError::new(crate::error::ErrorKind::Internal, "block-damaged", message)
            })?;
        }
    }
    Ok(())
}

/// What `deleted` (ascending, disjoint) leaves of a chunk's time.
fn kept_ranges(chunk: &Chunk, deleted: &[QueryRange]) -> Vec<QueryRange> {
    let mut kept = Vec::new();
    let mut from = Some(chunk.min_time);
    for range in deleted.iter().filter(|range| overlaps(chunk, range)) {
        if let (Some(min), Some(max)) = (from, range.min.checked_sub(1)) {
            kept.push(QueryRange { min, max });
        }
        from = range.max.checked_add(1);
    }
    kept.extend(from.map(|min| QueryRange { min, max: chunk.max_time }));
    kept.retain(|range| !range.is_empty());
    kept
}

fn cut_floats(chunk: &Chunk, kept: QueryRange, out: &mut Vec<Chunk>) -> Result<(), String> {
    let mut columns = Columns::default();
    let decode = if chunk.encoding == Encoding::Xor2 { xor2::decode } else { xor::decode };
    decode(&chunk.data, kept, &mut columns).map_err(|e| e.to_string())?;
    let times = &columns.float_timestamps;
    let (Some(&min_time), Some(&max_time)) = (times.first(), times.last()) else { return Ok(()) };
    let mut data = Vec::new();
    let mut appender = XorAppender::new();
    for (&time, &value) in times.iter().zip(&columns.float_values) {
        appender.append(&mut data, time, value).map_err(|e| e.to_string())?;
    }
    out.push(Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() });
    Ok(())
}

fn cut_histograms(chunk: &Chunk, kept: QueryRange, out: &mut Vec<Chunk>) -> Result<(), String> {
    let mut samples: Vec<HistogramSample> = Vec::new();
    histogram::decode_samples(chunk.encoding, &chunk.data, kept, &mut samples).map_err(|e| e.to_string())?;
    let times = samples.iter().map(|sample| sample.timestamp);
    match chunk.encoding {
        Encoding::Histogram => encode_histograms::<Integer>(
            times.zip(samples.iter().filter_map(|sample| match &sample.value {
                HistogramValue::Integer(histogram) => Some(&**histogram),
                HistogramValue::Float(_) => None,
            })),
            out,
        ),
        _ => encode_histograms::<Float>(
            times.zip(samples.iter().filter_map(|sample| match &sample.value {
                HistogramValue::Float(histogram) => Some(&**histogram),
                HistogramValue::Integer(_) => None,
            })),
            out,
        ),
    }
}

fn encode_histograms<'a, K: Kind>(
    samples: impl Iterator<Item = (i64, &'a K::Sample)>,
    out: &mut Vec<Chunk>,
) -> Result<(), String>
where
    K::Sample: 'a,
{
    let finish = |appender: HistogramAppender<K>, out: &mut Vec<Chunk>| {
        let (min_time, max_time) = (appender.min_time(), appender.max_time());
        out.push(Chunk { min_time, max_time, encoding: K::ENCODING, data: appender.into_bytes().into() });
    };
    let mut open: Option<HistogramAppender<K>> = None;
    for (time, sample) in samples {
        let header = match &mut open {
            None => ResetHeader::from_hint(K::parts(sample).hint),
            Some(appender) => match appender.append(time, sample).map_err(|e| e.to_string())? {
                Appended::InPlace | Appended::Recoded => continue,
                Appended::CutNewChunk(header) => header,
            },
        };
        let next = HistogramAppender::start(time, sample, header).map_err(|e| e.to_string())?;
        if let Some(full) = open.replace(next) {
            finish(full, out);
        }
    }
    if let Some(last) = open {
        finish(last, out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use skald_model::{Histogram, Labels, Span};

    fn floats(times: impl Iterator<Item = i64>, value: f64) -> Chunk {
        let (mut data, mut appender) = (Vec::new(), XorAppender::new());
        let times: Vec<i64> = times.collect();
        times.iter().for_each(|&t| appender.append(&mut data, t, value + t as f64).unwrap());
        Chunk { min_time: times[0], max_time: times[times.len() - 1], encoding: Encoding::Xor, data: data.into() }
    }

    fn histograms(times: std::ops::Range<i64>) -> Chunk {
        let sample = |t: i64| Histogram {
            count: t as u64,
            sum: t as f64,
            positive_spans: vec![Span { offset: 0, length: 1 }],
            positive_deltas: vec![t],
            ..Histogram::default()
        };
        let samples: Vec<(i64, Histogram)> = times.map(|t| (t, sample(t))).collect();
        let mut out = Vec::new();
        encode_histograms::<Integer>(samples.iter().map(|(t, sample)| (*t, sample)), &mut out).unwrap();
        assert_eq!(out.len(), 1);
        out.remove(0)
    }

    fn part(chunks: Vec<Chunk>, deleted: &[(i64, i64)]) -> SeriesChunks {
        let deleted = deleted.iter().map(|&(min, max)| QueryRange { min, max }).collect();
        SeriesChunks { labels: Labels::empty(), chunks, deleted }
    }

    /// Times of the samples shown, each with the value's distance to its time.
    fn shown(series: &SeriesChunks) -> Vec<(i64, i64)> {
        let mut out = Vec::new();
        for chunk in &series.chunks {
            let mut columns = Columns::default();
            match chunk.encoding {
                Encoding::Xor => xor::decode(&chunk.data, QueryRange::ALL, &mut columns).unwrap(),
                encoding => histogram::decode(encoding, &chunk.data, QueryRange::ALL, &mut columns).unwrap(),
            }
            assert_eq!(columns.len(), usize::from(chunk.num_samples()));
            let floats = columns.float_timestamps.iter().zip(&columns.float_values).map(|(&t, v)| (t, *v as i64 - t));
            let sums = columns.histogram_timestamps.iter().zip(&columns.histograms);
            let all: Vec<_> = floats.chain(sums.map(|(&t, h)| (t, h.count as i64 - t))).collect();
            assert_eq!((chunk.min_time, chunk.max_time), (all[0].0, all[all.len() - 1].0));
            out.extend(all);
        }
        out.retain(|(t, _)| !series.deleted.iter().any(|range| range.contains(*t)));
        out.sort_unstable();
        out
    }

    #[test]
    fn equal_chunks_count_once_and_stay_in_order() {
        let (early, late) = (floats(0..10, 0.0), floats(20..30, 0.0));
        let parts = vec![part(vec![late.clone()], &[]), part(vec![early.clone(), late.clone()], &[])];
        assert_eq!(join(parts).unwrap(), part(vec![early, late], &[]));
    }

    #[test]
    fn a_deletion_that_concerns_one_part_alone_is_handed_on() {
        let parts = vec![part(vec![floats(0..10, 0.0)], &[(3, 15)]), part(vec![floats(20..30, 0.0)], &[(25, 25)])];
        let joined = join(parts).unwrap();
        assert_eq!(joined.deleted, [QueryRange { min: 3, max: 15 }, QueryRange { min: 25, max: 25 }]);
        assert_eq!(joined.chunks.len(), 2);
    }

    #[test]
    fn a_deletion_spares_what_another_part_has() {
        for (deleted, kept) in [
            (vec![(3, 5)], vec![0, 1, 2, 6, 7, 8, 9]),
            (vec![(i64::MIN, 0), (4, 4), (8, i64::MAX)], vec![1, 2, 3, 5, 6, 7]),
            (vec![(i64::MIN, i64::MAX)], vec![]),
            (vec![(0, 9)], vec![]),
        ] {
            for (chunk, zero) in [(floats(0..10, 0.0), 0), (histograms(0..10), 0)] {
                let mine = part(vec![chunk], &deleted);
                let others = part(vec![floats(0..10, 100.0)], &[]);
                let joined = join(vec![mine, others]).unwrap();
                assert!(joined.deleted.is_empty());
                let mut expected: Vec<(i64, i64)> = (0..10).map(|t| (t, 100)).collect();
                expected.extend(kept.iter().map(|&t| (t, zero)));
                expected.sort_unstable();
                assert_eq!(shown(&joined), expected, "{deleted:?}");
            }
        }
    }

    #[test]
    fn damage_met_while_cutting_is_an_error() {
        let mut chunk = floats(0..10, 0.0);
        chunk.data = chunk.data.slice(..chunk.data.len() - 3);
        let parts = vec![part(vec![chunk], &[(3, 5)]), part(vec![floats(0..10, 1.0)], &[])];
        assert_eq!(join(parts).unwrap_err().reason, "block-damaged");
    }
}
