use std::collections::BTreeMap;
use std::fmt::Debug;

use proptest::prelude::*;
use skald_model::histogram::CUSTOM_BUCKETS_SCHEMA;
use skald_model::{Columns, HistogramSample, QueryRange, STALE_NAN_BITS, TimestampMs};

use super::*;
use crate::chunk::ChunkError;

/// What a sample means, however its spans are cut.
#[derive(Debug, Clone, PartialEq)]
struct Meaning<C, B> {
    schema: i32,
    zero_threshold: u64,
    counts: (C, C),
    sum: u64,
    positive: BTreeMap<i32, B>,
    negative: BTreeMap<i32, B>,
    custom_values: Vec<u64>,
}

type MeaningOf<K> = Meaning<CountOf<K>, BucketOf<K>>;

fn meaning<K: Kind>(sample: &K::Sample) -> MeaningOf<K> {
    let parts = K::parts(sample);
    if skald_model::is_stale_nan(parts.sum) {
        let (counts, sum) = (Default::default(), STALE_NAN_BITS);
        let (positive, negative) = (BTreeMap::new(), BTreeMap::new());
        return Meaning { schema: 0, zero_threshold: 0, counts, sum, positive, negative, custom_values: Vec::new() };
    }
    let buckets = |buckets: Buckets<'_, BucketOf<K>>| {
        let mut absolute = BucketOf::<K>::default();
        let all = layout::indexes(buckets.spans).zip(buckets.values).map(|(i, &value)| {
            absolute = K::absolute(absolute, value);
            (i, absolute)
        });
        all.filter(|bucket| bucket.1 != Default::default()).collect()
    };
    Meaning {
        schema: parts.schema,
        // The format stores -0.0 as 0.0.
        zero_threshold: (parts.zero_threshold + 0.0).to_bits(),
        counts: (parts.count, parts.zero_count),
        sum: parts.sum.to_bits(),
        positive: buckets(parts.positive),
        negative: buckets(parts.negative),
        // Bounds that compare equal are one list: the first sample of a chunk says which zero it is.
        custom_values: parts.custom_values.iter().map(|v| (v + 0.0).to_bits()).collect(),
    }
}

/// One finished chunk of a test.
struct Finished {
    bytes: Vec<u8>,
    header: ResetHeader,
}

/// Appends all samples, cutting only where the appender demands it.
fn encode<K: Kind>(samples: &[(TimestampMs, K::Sample)]) -> Vec<Finished> {
    let mut chunks = Vec::new();
    let mut open: Option<HistogramAppender<K>> = None;
    let mut finish = |open: HistogramAppender<K>| {
        chunks.push(Finished { header: open.header(), bytes: open.into_bytes() });
    };
    for (time, sample) in samples {
        let header = match &mut open {
            None => ResetHeader::from_hint(K::parts(sample).hint),
            Some(appender) => match appender.append(*time, sample).unwrap() {
                Appended::InPlace | Appended::Recoded => continue,
                Appended::CutNewChunk(header) => header,
            },
        };
        if let Some(full) = open.replace(HistogramAppender::start(*time, sample, header).unwrap()) {
            finish(full);
        }
    }
    open.map(&mut finish);
    chunks
}

fn read<K: Kind>(bytes: &[u8], range: QueryRange) -> Result<Vec<HistogramSample>, ChunkError> {
    let mut out = Vec::new();
    decode_samples(K::ENCODING, bytes, range, &mut out)?;
    Ok(out)
}

trait TestKind: Kind {
    fn from_value(value: &HistogramValue) -> &Self::Sample;
}

impl TestKind for Integer {
    fn from_value(value: &HistogramValue) -> &Histogram {
        match value {
            HistogramValue::Integer(histogram) => histogram,
            HistogramValue::Float(_) => panic!("float histogram in an integer chunk"),
        }
    }
}

impl TestKind for Float {
    fn from_value(value: &HistogramValue) -> &FloatHistogram {
        match value {
            HistogramValue::Float(histogram) => histogram,
            HistogramValue::Integer(_) => panic!("integer histogram in a float chunk"),
        }
    }
}

/// The buckets of one sign of a random sample: absolute counts by index.
fn bucket_map() -> impl Strategy<Value = BTreeMap<i32, u64>> {
    proptest::collection::btree_map(-12i32..12, prop_oneof![0u64..3, 0u64..1_000_000, 0u64..1 << 50], 0..8)
}

fn spans_of(indexes: impl Iterator<Item = i32>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut end = 0;
    for index in indexes {
        match spans.last_mut() {
            Some(last) if index == end => last.length += 1,
            _ => spans.push(Span { offset: index - end, length: 1 }),
        }
        end = index + 1;
    }
    spans
}

fn deltas_of(counts: impl Iterator<Item = u64>) -> Vec<i64> {
    let mut before = 0;
    counts.map(|count| count as i64 - std::mem::replace(&mut before, count as i64)).collect()
}

fn integer(positive: &BTreeMap<i32, u64>, negative: &BTreeMap<i32, u64>, zero_count: u64, sum: f64) -> Histogram {
    Histogram {
        reset_hint: ResetHint::Unknown,
        schema: 1,
        zero_threshold: 0.25,
        zero_count,
        count: zero_count + positive.values().chain(negative.values()).sum::<u64>(),
        sum,
        positive_spans: spans_of(positive.keys().copied()),
        negative_spans: spans_of(negative.keys().copied()),
        positive_deltas: deltas_of(positive.values().copied()),
        negative_deltas: deltas_of(negative.values().copied()),
        custom_values: Arc::from([]),
    }
}

fn float(of: &Histogram, noise: f64) -> FloatHistogram {
    let absolute = |deltas: &[i64]| {
        let mut sum = 0;
        let add = |delta: &i64| {
            sum += delta;
            sum as f64 * noise
        };
        deltas.iter().map(add).collect::<Vec<f64>>()
    };
    FloatHistogram {
        reset_hint: of.reset_hint,
        schema: of.schema,
        zero_threshold: of.zero_threshold,
        zero_count: of.zero_count as f64 * noise,
        count: of.count as f64 * noise,
        sum: of.sum,
        positive_spans: of.positive_spans.clone(),
        negative_spans: of.negative_spans.clone(),
        positive_buckets: absolute(&of.positive_deltas),
        negative_buckets: absolute(&of.negative_deltas),
        custom_values: of.custom_values.clone(),
    }
}

/// A series as senders produce it: mostly growing, sometimes new buckets, dropped empty buckets, resets, another
/// schema or threshold, custom bounds, gauges, stale markers.
fn series() -> impl Strategy<Value = Vec<(TimestampMs, Histogram)>> {
    let step = (0u8..40, bucket_map(), bucket_map(), any::<u32>(), any::<f64>(), 1i64..1 << 40);
    (any::<i32>(), proptest::collection::vec(step, 1..60)).prop_map(|(start, steps)| {
        let mut time = i64::from(start);
        let (mut positive, mut negative, mut zero) = (BTreeMap::new(), BTreeMap::new(), 0u64);
        let mut samples = Vec::new();
        for (kind, more_positive, more_negative, more_zero, sum, gap) in steps {
            time += if gap % 3 == 0 { gap } else { 15_000 };
            let mut hint = ResetHint::Unknown;
            let (mut schema, mut threshold, mut custom) = (1, 0.25, Arc::from([]));
            match kind {
                0 => (positive, negative, zero) = (more_positive, more_negative, u64::from(more_zero)),
                1 => {
                    positive.retain(|_, count| *count > 0);
                    negative.retain(|_, count| *count > 0);
                }
                2 => hint = ResetHint::Reset,
                3 => schema = 2,
                4 => threshold = sum,
                5 => {
                    samples.push((time, Integer::stale()));
                    continue;
                }
                6..=9 => hint = ResetHint::Gauge,
                10 => (schema, custom) = (CUSTOM_BUCKETS_SCHEMA, Arc::from([0.005, 1.0, sum])),
                11..=20 => {
                    more_positive.iter().for_each(|(&i, n)| *positive.entry(i).or_insert(0) += n);
                    more_negative.iter().for_each(|(&i, n)| *negative.entry(i).or_insert(0) += n);
                }
                _ => {
                    let both = positive.values_mut().chain(negative.values_mut());
                    both.zip(more_positive.values()).for_each(|(count, n)| *count += n);
                    zero += u64::from(more_zero);
                }
            }
            let mut sample = integer(&positive, &negative, zero, sum);
            (sample.reset_hint, sample.schema, sample.zero_threshold) = (hint, schema, threshold);
            sample.custom_values = custom;
            samples.push((time, sample));
        }
        samples
    })
}

/// Whether a counter fell from one sample to the next.
fn fell<K: Kind>(before: &MeaningOf<K>, now: &MeaningOf<K>) -> bool {
    let bucket_fell = |before: &BTreeMap<i32, BucketOf<K>>, now: &BTreeMap<i32, BucketOf<K>>| {
        before.iter().any(|(i, n)| now.get(i).is_none_or(|m| m < n))
    };
    now.counts.0 < before.counts.0
        || now.counts.1 < before.counts.1
        || bucket_fell(&before.positive, &now.positive)
        || bucket_fell(&before.negative, &now.negative)
}

fn check_series<K: TestKind>(samples: &[(TimestampMs, K::Sample)]) -> Result<(), TestCaseError>
where
    MeaningOf<K>: Debug + PartialEq,
{
    let chunks = encode::<K>(samples);
    let mut expected = samples.iter();
    for chunk in &chunks {
        let read = read::<K>(&chunk.bytes, QueryRange::ALL).unwrap();
        prop_assert!(!read.is_empty());
        let mut columns = Columns::default();
        decode(K::ENCODING, &chunk.bytes, QueryRange::ALL, &mut columns).unwrap();
        prop_assert_eq!(columns.histograms.len(), read.len());
        let mut before: Option<MeaningOf<K>> = None;
        for (index, got) in read.iter().enumerate() {
            let (time, sample) = expected.next().unwrap();
            let got_sample = K::from_value(&got.value);
            let now = meaning::<K>(got_sample);
            prop_assert_eq!((got.timestamp, &now), (*time, &meaning::<K>(sample)));
            let stale = now.sum == STALE_NAN_BITS;
            if !stale {
                prop_assert_eq!(K::parts(got_sample).hint, chunk.header.hint(index as u16));
                let gauge = K::parts(sample).hint == ResetHint::Gauge;
                prop_assert_eq!(gauge, chunk.header == ResetHeader::Gauge);
                if let Some(before) = before.filter(|_| !gauge) {
                    prop_assert!(before.sum != STALE_NAN_BITS && !fell::<K>(&before, &now));
                }
            }
            let as_float = &columns.histograms[index];
            prop_assert_eq!(columns.histogram_timestamps[index], *time);
            prop_assert_eq!(as_float.count.to_bits(), K::to_f64(now.counts.0).to_bits());
            let parts = K::parts(got_sample);
            let mut absolute = BucketOf::<K>::default();
            let floats = parts.positive.values.iter().map(|&value| {
                absolute = K::absolute(absolute, value);
                K::bucket_to_f64(absolute)
            });
            prop_assert_eq!(&as_float.positive_buckets, &floats.collect::<Vec<f64>>());
            before = Some(now);
        }
        let again = HistogramAppender::<K>::resume(chunk.bytes.clone()).unwrap();
        prop_assert_eq!(usize::from(again.num_samples()), read.len());
        prop_assert!(again.last_equals(K::from_value(&read[read.len() - 1].value)));
    }
    prop_assert!(expected.next().is_none());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn integer_series_round_trip(samples in series()) {
        check_series::<Integer>(&samples)?;
    }

    #[test]
    fn float_series_round_trip(samples in series(), noise in 0.1f64..10.0) {
        let samples: Vec<_> = samples.iter().map(|(t, h)| (*t, float(h, noise))).collect();
        check_series::<Float>(&samples)?;
    }

    #[test]
    fn resumed_appender_writes_the_same_bytes(samples in series(), split in any::<prop::sample::Index>()) {
        let split = 1 + split.index(samples.len());
        let mut chunks = encode::<Integer>(&samples[..split]);
        let last = chunks.pop().unwrap();
        let mut resumed = HistogramAppender::<Integer>::resume(last.bytes.clone()).unwrap();
        prop_assert_eq!(resumed.bytes(), &last.bytes[..]);
        for (time, sample) in &samples[split..] {
            if let Appended::CutNewChunk(_) = resumed.append(*time, sample).unwrap() {
                break;
            }
        }
        let whole = encode::<Integer>(&samples);
        prop_assert_eq!(resumed.bytes(), &whole[chunks.len()].bytes[..]);
    }

    #[test]
    fn range_is_closed(samples in series(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let range = QueryRange { min: a.get(&samples).0, max: b.get(&samples).0 };
        for chunk in encode::<Integer>(&samples) {
            let all = read::<Integer>(&chunk.bytes, QueryRange::ALL).unwrap();
            let expected: Vec<_> = all.into_iter().filter(|s| range.contains(s.timestamp)).map(|s| s.timestamp).collect();
            let got: Vec<_> = read::<Integer>(&chunk.bytes, range).unwrap().iter().map(|s| s.timestamp).collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn flipped_bits_never_panic(samples in series(), flips in proptest::collection::vec(any::<prop::sample::Index>(), 1..4), cut in any::<prop::sample::Index>()) {
        for mut chunk in encode::<Integer>(&samples) {
            for flip in &flips {
                let bit = flip.index(chunk.bytes.len() * 8);
                chunk.bytes[bit / 8] ^= 1 << (bit % 8);
            }
            for bytes in [&chunk.bytes[..], &chunk.bytes[..cut.index(chunk.bytes.len())]] {
                check_damaged(bytes);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        check_damaged(&bytes);
    }
}

/// Reads as both kinds; whatever comes out is in order.
fn check_damaged(bytes: &[u8]) {
    let both = [read::<Integer>(bytes, QueryRange::ALL), read::<Float>(bytes, QueryRange::ALL)];
    for samples in both.iter().flatten() {
        assert!(samples.windows(2).all(|w| w[0].timestamp < w[1].timestamp));
    }
    let mut columns = Columns::default();
    let _ = decode(Encoding::Histogram, bytes, QueryRange::ALL, &mut columns);
    let _ = decode(Encoding::FloatHistogram, bytes, QueryRange::ALL, &mut columns);
    let _ = HistogramAppender::<Integer>::resume(bytes.to_vec());
    let _ = HistogramAppender::<Float>::resume(bytes.to_vec());
}

fn counter(buckets: &[(i32, u64)]) -> Histogram {
    integer(&buckets.iter().copied().collect(), &BTreeMap::new(), 0, 1.0)
}

#[track_caller]
fn check_append(first: &Histogram, second: &Histogram, expected: Appended) {
    let mut appender = HistogramAppender::<Integer>::start(0, first, ResetHeader::from_hint(first.reset_hint)).unwrap();
    assert_eq!(appender.append(1, second).unwrap(), expected);
    let as_float = (float(first, 1.0), float(second, 1.0));
    let header = ResetHeader::from_hint(first.reset_hint);
    let mut appender = HistogramAppender::<Float>::start(0, &as_float.0, header).unwrap();
    assert_eq!(appender.append(1, &as_float.1).unwrap(), expected);
}

#[test]
fn what_a_sample_does_to_its_chunk() {
    let base = counter(&[(0, 5), (1, 0), (3, 2)]);
    check_append(&base, &counter(&[(0, 5), (1, 0), (3, 2)]), Appended::InPlace);
    check_append(&base, &counter(&[(0, 6), (3, 2)]), Appended::InPlace);
    check_append(&base, &counter(&[(0, 6), (1, 1), (2, 0), (3, 2)]), Appended::Recoded);
    check_append(&base, &counter(&[(0, 6), (2, 4), (3, 2)]), Appended::Recoded);
    check_append(&base, &counter(&[(-4, 1), (0, 6), (3, 2)]), Appended::Recoded);
    check_append(&base, &counter(&[(0, 4), (1, 9), (3, 2)]), Appended::CutNewChunk(ResetHeader::Reset));
    check_append(&base, &counter(&[(0, 50), (1, 1)]), Appended::CutNewChunk(ResetHeader::Reset));
    check_append(&base, &Integer::stale(), Appended::InPlace);
    check_append(&Integer::stale(), &Integer::stale(), Appended::InPlace);
    check_append(&Integer::stale(), &base, Appended::CutNewChunk(ResetHeader::Unknown));

    let with = |change: fn(&mut Histogram)| {
        let mut sample = base.clone();
        change(&mut sample);
        sample
    };
    check_append(&base, &with(|h| h.count -= 1), Appended::CutNewChunk(ResetHeader::Reset));
    check_append(&base, &with(|h| h.schema = 2), Appended::CutNewChunk(ResetHeader::Unknown));
    check_append(&base, &with(|h| h.zero_threshold = 0.5), Appended::CutNewChunk(ResetHeader::Unknown));
    check_append(&base, &with(|h| h.reset_hint = ResetHint::Reset), Appended::CutNewChunk(ResetHeader::Reset));
    check_append(&base, &with(|h| h.reset_hint = ResetHint::NotReset), Appended::InPlace);

    let gauge = with(|h| h.reset_hint = ResetHint::Gauge);
    check_append(&base, &gauge, Appended::CutNewChunk(ResetHeader::Gauge));
    check_append(&gauge, &base, Appended::CutNewChunk(ResetHeader::Unknown));
    let mut fallen = counter(&[(0, 1), (7, 1)]);
    fallen.reset_hint = ResetHint::Gauge;
    check_append(&gauge, &fallen, Appended::Recoded);
    check_append(&gauge, &with(|h| (h.reset_hint, h.count) = (ResetHint::Gauge, 1)), Appended::InPlace);

    let custom = |bound: f64| {
        let mut sample = counter(&[(0, 1)]);
        (sample.schema, sample.custom_values) = (CUSTOM_BUCKETS_SCHEMA, Arc::from([bound]));
        sample
    };
    check_append(&custom(1.0), &custom(1.0), Appended::InPlace);
    check_append(&custom(1.0), &custom(2.0), Appended::CutNewChunk(ResetHeader::Reset));
}

#[test]
fn header_of_a_chunk_cut_for_its_size() {
    let base = counter(&[(0, 5)]);
    let appender = HistogramAppender::<Integer>::start(0, &base, ResetHeader::Unknown).unwrap();
    assert_eq!(appender.header_of_next(&counter(&[(0, 6)])), ResetHeader::NotReset);
    assert_eq!(appender.header_of_next(&counter(&[(0, 4)])), ResetHeader::Reset);
}

#[test]
fn spans_that_lie_are_refused() {
    let mut sample = counter(&[(0, 5)]);
    sample.positive_spans[0].length = 2;
    assert!(HistogramAppender::<Integer>::start(0, &sample, ResetHeader::Unknown).is_err());
    sample.positive_spans = vec![Span { offset: i32::MAX, length: 1 }];
    assert!(HistogramAppender::<Integer>::start(0, &sample, ResetHeader::Unknown).is_err());
    sample.positive_spans = vec![Span { offset: 3, length: 1 }, Span { offset: -1, length: 0 }];
    assert!(HistogramAppender::<Integer>::start(0, &sample, ResetHeader::Unknown).is_err());
}

#[test]
fn a_count_of_buckets_without_bytes_is_refused() {
    // Threshold 0, schema 0, one positive span of 2^24 buckets, and nothing after it.
    let mut bytes = vec![0, 1, 0];
    let mut out = crate::chunk::bits::BitWriter::new(&mut bytes);
    out.put(0, 8);
    crate::chunk::varbit::put_int(&mut out, 0);
    crate::chunk::varbit::put_uint(&mut out, 1);
    crate::chunk::varbit::put_uint(&mut out, 1 << 24);
    crate::chunk::varbit::put_int(&mut out, 0);
    crate::chunk::varbit::put_uint(&mut out, 0);
    out.finish();
    assert_eq!(read::<Integer>(&bytes, QueryRange::ALL), Err(ChunkError::Truncated));
}

#[test]
fn layout_fields_round_trip() {
    for threshold in [0.0, 1.0, 0.5, 2f64.powi(-243), 2f64.powi(10), 2f64.powi(-244), 2048.0, 1e-128, 0.3, -1.0] {
        for schema in [-4, 0, 8, CUSTOM_BUCKETS_SCHEMA] {
            let custom_values: Arc<[f64]> = match schema {
                CUSTOM_BUCKETS_SCHEMA => {
                    Arc::from([-1.0, -0.0, 0.0, 0.001, 0.1, 33554.43, 33554.431, 1e300, 0.1 + 0.2])
                }
                _ => Arc::from([]),
            };
            let written = Layout {
                schema,
                zero_threshold: threshold,
                positive_spans: vec![Span { offset: -3, length: 0 }],
                negative_spans: Vec::new(),
                custom_values,
            };
            let mut bytes = Vec::new();
            let mut out = crate::chunk::bits::BitWriter::new(&mut bytes);
            written.put(&mut out);
            out.finish();
            let read = Layout::take(&mut crate::chunk::bits::BitReader::new(&bytes)).unwrap();
            assert_eq!(read, written);
            let bits = |bounds: &[f64]| bounds.iter().map(|b| b.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&read.custom_values), bits(&written.custom_values));
        }
    }
}

#[test]
fn reserved_schemas_are_read_at_the_finest_known_one() {
    let mut fine = counter(&[(1, 1), (2, 1), (3, 4)]);
    fine.schema = 9;
    let chunk = encode::<Integer>(&[(5, fine)]).remove(0).bytes;
    let expected = Histogram { schema: 8, ..counter(&[(1, 2), (2, 4)]) };
    let samples = read::<Integer>(&chunk, QueryRange::ALL).unwrap();
    assert_eq!(Integer::from_value(&samples[0].value), &expected);
    let mut columns = Columns::default();
    decode(Encoding::Histogram, &chunk, QueryRange::ALL, &mut columns).unwrap();
    assert_eq!(*columns.histograms[0], expected.to_float());

    let mut unknown = counter(&[(1, 1)]);
    unknown.schema = 53;
    let chunk = encode::<Integer>(&[(5, unknown)]).remove(0).bytes;
    assert_eq!(read::<Integer>(&chunk, QueryRange::ALL), Err(ChunkError::Malformed("schema")));
}
