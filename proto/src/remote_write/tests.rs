#![expect(clippy::disallowed_methods, reason = "golden files are read where they are")]

use std::path::PathBuf;

use proptest::prelude::*;
use skald_model::{FloatSample, HistogramValue, LabelBytes, Labels, MetricType, ResetHint, Span, is_stale_nan, varint};

use super::*;

/// Writes protobuf with every liberty the format allows.
#[derive(Default, Clone)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn varint(mut self, field: u32, value: u64) -> Self {
        varint::put_uvarint(&mut self.0, u64::from(field << 3));
        varint::put_uvarint(&mut self.0, value);
        self
    }

    pub(super) fn double(mut self, field: u32, value: f64) -> Self {
        varint::put_uvarint(&mut self.0, u64::from(field << 3 | 1));
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        varint::put_uvarint(&mut self.0, u64::from(field << 3 | 2));
        varint::put_uvarint(&mut self.0, value.as_ref().len() as u64);
        self.0.extend_from_slice(value.as_ref());
        self
    }

    /// Length as a needlessly long varint.
    fn long_bytes(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        varint::put_uvarint(&mut self.0, u64::from(field << 3 | 2));
        let len = value.as_ref().len();
        self.0.extend_from_slice(&[len as u8 | 0x80, (len >> 7) as u8 | 0x80, (len >> 14) as u8 | 0x80, 0]);
        self.0.extend_from_slice(value.as_ref());
        self
    }

    pub(super) fn msg(self, field: u32, value: Message) -> Self {
        self.bytes(field, value.0)
    }
}

pub(super) fn label(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Message {
    Message::default().bytes(1, name).bytes(2, value)
}

fn series(labels: &[(&str, &str)]) -> Message {
    labels.iter().fold(Message::default(), |series, (name, value)| series.msg(1, label(name, value)))
}

fn sample(timestamp: i64, value: f64) -> Message {
    Message::default().double(1, value).varint(2, timestamp as u64)
}

#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) received: Received,
    pub(super) rejected: Vec<(Defect, String, usize, usize)>,
}

fn try_decode(request: Message) -> Result<Outcome, DecodeError> {
    try_decode_as(Version::V1, request)
}

pub(super) fn try_decode_as(version: Version, request: Message) -> Result<Outcome, DecodeError> {
    let mut outcome = Outcome::default();
    let compressed = snap::raw::Encoder::new().compress_vec(&request.0).unwrap();
    outcome.received.decode(version, &compressed, 1 << 27, &mut |r| {
        outcome.rejected.push((r.defect, r.labels.to_string(), r.samples, r.exemplars + r.metadata));
    })?;
    let Received { batch, shapes } = &outcome.received;
    assert_eq!(batch.series.len(), shapes.len());
    assert!(batch.sample_starts.len() <= batch.samples.len());
    assert!(batch.histogram_starts.len() <= batch.histograms.len());
    for (view, shape) in batch.iter().zip(shapes) {
        let labels = LabelBytes::check(view.labels.as_bytes()).expect("labels of a batch are canonical");
        assert_eq!(view.hash, labels.hash());
        assert_eq!(*shape, LabelShape::of(labels));
        assert!(view.samples.len() + view.histograms.len() + view.exemplars.len() > 0);
    }
    Ok(outcome)
}

#[track_caller]
fn decode(request: Message) -> Outcome {
    try_decode(request).unwrap()
}

#[track_caller]
fn check_labels(series: Message, expected: &str) {
    let outcome = decode(Message::default().msg(1, series.msg(2, sample(1, 2.0))));
    assert_eq!(outcome.rejected, []);
    assert_eq!(outcome.received.batch.labels(0).to_labels().to_string(), expected);
}

#[track_caller]
fn check_defect(series: Message, defect: Defect) {
    let series = series.msg(2, sample(1, 2.0)).msg(2, sample(2, 2.0));
    let good = self::series(&[("__name__", "good")]).msg(2, sample(1, 2.0));
    let outcome = decode(Message::default().msg(1, good.clone()).msg(1, series).msg(1, good));
    assert_eq!(outcome.rejected.len(), 1);
    assert_eq!((outcome.rejected[0].0, outcome.rejected[0].2), (defect, 2));
    assert_eq!((outcome.received.batch.series.len(), outcome.received.batch.samples.len()), (2, 2));
}

#[test]
fn canonical_labels_stay_in_the_body() {
    let long = "x".repeat(300);
    let labels = [("__name__", "m"), ("a", &*long), ("b", "ä"), (&*long, "y")];
    let outcome = decode(Message::default().msg(1, series(&labels).msg(2, sample(5, 1.5))));
    let batch = &outcome.received.batch;
    assert!(batch.rebuilt.is_empty());
    assert_eq!(batch.labels(0).to_labels(), Labels::from_pairs(labels));
    assert_eq!((batch.samples(0)[0].timestamp, batch.samples(0)[0].value), (5, 1.5));
    let shape = outcome.received.shapes[0];
    assert_eq!((shape.count, shape.longest_name, shape.longest_value), (4, 300, 300));
    assert!(shape.has_metric_name && shape.legacy_names);
}

#[test]
fn other_encodings_of_labels_are_made_canonical() {
    check_labels(series(&[("b", "1"), ("a", "2")]), r#"{a="2", b="1"}"#);
    check_labels(series(&[("a", "1"), ("e", ""), ("f", "2")]), r#"{a="1", f="2"}"#);
    let value_first = Message::default().bytes(2, "v").bytes(1, "n");
    check_labels(Message::default().msg(1, value_first), r#"{n="v"}"#);
    let unknown = label("n", "v").varint(9, 7).bytes(20, "zzz").double(21, 1.0);
    check_labels(Message::default().msg(1, unknown), r#"{n="v"}"#);
    check_labels(Message::default().long_bytes(1, label("n", "v").0), r#"{n="v"}"#);
    let last_wins = label("n", "v").bytes(1, "m");
    check_labels(Message::default().msg(1, last_wins), r#"{m="v"}"#);
    let behind = series(&[("a", "1")]).msg(2, sample(0, 0.0)).msg(1, label("b", "2"));
    let outcome = decode(Message::default().msg(1, behind));
    assert_eq!(outcome.received.batch.labels(0).to_labels().to_string(), r#"{a="1", b="2"}"#);
}

#[test]
fn equal_labels_have_equal_bytes_however_sent() {
    let sorted = series(&[("a", "1"), ("b", "2")]).msg(2, sample(1, 1.0));
    let unsorted = series(&[("b", "2"), ("c", ""), ("a", "1")]).msg(2, sample(1, 1.0));
    let batch = decode(Message::default().msg(1, sorted).msg(1, unsorted)).received.batch;
    assert_eq!(batch.labels(0), batch.labels(1));
    assert_eq!(batch.series[0].hash, batch.series[1].hash);
}

#[test]
fn impossible_labels_cost_their_series_only() {
    check_defect(Message::default(), Defect::NoLabels);
    check_defect(series(&[("a", "")]), Defect::NoLabels);
    check_defect(series(&[("", "x")]), Defect::EmptyLabelName);
    check_defect(series(&[("a", "1"), ("a", "2")]), Defect::DuplicateLabelName);
    check_defect(series(&[("a", "1"), ("b", "2"), ("a", "1")]), Defect::DuplicateLabelName);
    check_defect(Message::default().msg(1, label([b'a', 0xFF], "x")), Defect::LabelNameNotUtf8);
    check_defect(Message::default().msg(1, label("a", [0xC3])), Defect::LabelValueNotUtf8);
    // Halves of one sequence in two texts.
    check_defect(
        Message::default().msg(1, label("a", [0xE2, 0x82])).msg(1, label("b", [0xAC])),
        Defect::LabelValueNotUtf8,
    );
}

/// What is remembered of one series' or exemplar's names must not decide about the next one's.
#[test]
fn the_memo_of_an_order_does_not_outlive_a_defect() {
    let exemplar = |names: &[&str]| names.iter().fold(Message::default(), |e, name| e.msg(1, label(name, "x")));
    let exemplars = [&["b", "a"][..], &["c", "", "d"], &[], &["b", "a"], &["b", "b"], &[], &["a", "b"], &["b", "a"]];
    let series = exemplars.iter().fold(series(&[("b", "1"), ("a", "2")]), |s, names| s.msg(3, exemplar(names)));
    let outcome = decode(Message::default().msg(1, series));
    let batch = &outcome.received.batch;
    let kept: Vec<_> = batch.exemplars(0).iter().map(|exemplar| exemplar.labels.to_string()).collect();
    assert_eq!(kept, [r#"{a="x", b="x"}"#; 4]);
    let defects: Vec<_> = outcome.rejected.iter().map(|rejected| rejected.0).collect();
    let (invalid, without) = (Defect::ExemplarLabelsInvalid, Defect::ExemplarWithoutLabels);
    assert_eq!(defects, [invalid, without, invalid, without]);
}

#[test]
fn legacy_names_are_told_apart() {
    let legacy = |labels: &[(&str, &str)]| {
        decode(Message::default().msg(1, series(labels).msg(2, sample(1, 1.0)))).received.shapes[0].legacy_names
    };
    assert!(legacy(&[("Aa_9", "x"), ("__name__", "a:b")]));
    assert!(!legacy(&[("a.b", "x")]));
    assert!(!legacy(&[("9a", "x")]));
    assert!(!legacy(&[("a:b", "x")]));
    assert!(!legacy(&[("__name__", "a-b")]));
    assert!(!legacy(&[("__name__", "ä")]));
}

#[test]
fn the_memo_of_names_does_not_leak_order() {
    // Each series shares a prefix of names with its neighbour; the middle one is not in order.
    let request = [
        &[("a", "1"), ("b", "1"), ("c", "1")][..],
        &[("a", "1"), ("c", "1")][..],
        &[("a", "1"), ("c", "1"), ("b", "1")][..],
        &[("a", "1"), ("b", "1"), ("c", "1")][..],
        &[("b", "1")][..],
        &[("b", "1"), ("a", "1")][..],
    ];
    let message = request.iter().fold(Message::default(), |m, labels| m.msg(1, series(labels).msg(2, sample(1, 1.0))));
    let outcome = decode(message);
    for (view, labels) in outcome.received.batch.iter().zip(request) {
        assert_eq!(view.labels.to_labels(), Labels::from_pairs(labels.iter().copied()));
    }
}

#[test]
fn omitted_scalars_are_zero_and_bits_are_kept() {
    let stale = f64::from_bits(skald_model::STALE_NAN_BITS);
    let nan = f64::from_bits(0x7FF8_0000_0000_1234);
    let series = series(&[("a", "1")])
        .msg(2, Message::default())
        .msg(2, Message::default().double(1, -0.0))
        .msg(2, sample(-5, stale))
        .msg(2, sample(i64::MAX, nan));
    let batch = decode(Message::default().msg(1, series)).received.batch;
    let bits: Vec<_> = batch.samples(0).iter().map(|s| (s.timestamp, s.value.to_bits())).collect();
    let expected = [(0, 0), (0, 1 << 63), (-5, stale.to_bits()), (i64::MAX, nan.to_bits())];
    assert_eq!(bits, expected);
}

#[test]
fn histograms_of_both_kinds() {
    let span =
        |offset: i64, length| Message::default().varint(1, ((offset << 1) ^ (offset >> 63)) as u64).varint(2, length);
    let integer = Message::default()
        .varint(1, 10)
        .double(3, 12.5)
        .varint(4, 1) // -1
        .double(5, 0.001)
        .varint(6, 2)
        .msg(11, span(-3, 2))
        .bytes(12, [4, 1]) // 2, -1 packed
        .varint(12, 6) // 3 unpacked
        .msg(8, span(1, 1))
        .varint(9, 8)
        .varint(14, 3)
        .varint(15, 77)
        .varint(30, 1);
    let float = Message::default()
        .double(2, 0.0)
        .varint(4, 105) // -53
        .bytes(13, [1.5f64.to_le_bytes(), 2.5f64.to_le_bytes()].concat())
        .double(13, 3.5)
        .msg(11, span(0, 3))
        .bytes(16, [0.1f64.to_le_bytes(), 0.2f64.to_le_bytes()].concat());
    let series = series(&[("a", "1")]).msg(4, integer).msg(4, float);
    let batch = decode(Message::default().msg(1, series)).received.batch;
    let [first, second] = batch.histograms(0) else { panic!("two histograms") };
    let HistogramValue::Integer(h) = &first.value else { panic!("integer") };
    assert_eq!((first.timestamp, h.count, h.zero_count, h.schema, h.sum), (77, 10, 2, -1, 12.5));
    assert_eq!(h.reset_hint, ResetHint::Gauge);
    assert_eq!(h.positive_spans, [Span { offset: -3, length: 2 }]);
    assert_eq!((&*h.positive_deltas, &*h.negative_deltas), (&[2, -1, 3][..], &[4][..]));
    let HistogramValue::Float(h) = &second.value else { panic!("count_float 0 makes a float histogram") };
    assert_eq!((h.schema, &*h.positive_buckets, &*h.custom_values), (-53, &[1.5, 2.5, 3.5][..], &[0.1, 0.2][..]));
}

#[test]
fn exemplars_and_metadata() {
    let exemplar = |labels: Message| labels.double(2, 4.5).varint(3, 9);
    let good = exemplar(Message::default().msg(1, label("trace", "x")).msg(1, label("span", "y")));
    let twice = exemplar(Message::default().msg(1, label("a", "x")).msg(1, label("a", "y")));
    let series = series(&[("a", "1")]).msg(3, good).msg(3, exemplar(Message::default())).msg(3, twice);
    let meta = |name: &[u8]| Message::default().varint(1, 3).bytes(2, name).bytes(4, "help").bytes(5, "s");
    let request = Message::default().msg(1, series).msg(3, meta(b"m")).msg(3, meta(b"")).msg(3, meta(&[0xFF]));
    let outcome = decode(request);
    let batch = &outcome.received.batch;
    let [exemplar] = batch.exemplars(0) else { panic!("one exemplar") };
    assert_eq!(exemplar.labels.to_string(), r#"{span="y", trace="x"}"#);
    assert_eq!((exemplar.value, exemplar.timestamp), (4.5, 9));
    let [metadata] = &*batch.metadata else { panic!("one entry") };
    assert_eq!((&*metadata.metric, metadata.metric_type, &*metadata.unit), ("m", MetricType::Histogram, "s"));
    let defects: Vec<_> = outcome.rejected.iter().map(|r| (r.0, r.3)).collect();
    let expected = [
        Defect::ExemplarWithoutLabels,
        Defect::ExemplarLabelsInvalid,
        Defect::MetadataWithoutName,
        Defect::MetadataNotUtf8,
    ];
    assert_eq!(defects, expected.map(|defect| (defect, 1)));
}

#[track_caller]
fn check_malformed(request: impl Into<Vec<u8>>, what: &str) {
    let error = try_decode(Message(request.into())).unwrap_err();
    assert!(error.to_string().contains(what), "{error}");
}

#[test]
fn malformed_protobuf_is_refused() {
    check_malformed([0x0A], "varint");
    check_malformed([0x0A, 5, 1], "length reaches beyond");
    check_malformed([0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01], "length reaches beyond");
    check_malformed([0xFF; 11], "varint");
    check_malformed([0x00, 0x00], "field number");
    check_malformed([0x0B, 0x0C], "known field"); // a group
    check_malformed([0x53, 0x54], "unsupported wire type");
    check_malformed([0x08, 0x01], "known field");
    check_malformed([0x39, 0x01], "cut off");
    // The label's length reaches beyond its series, but not beyond the request.
    check_malformed([0x0A, 2, 0x0A, 4, 0x0A, 4, 1, 1], "length reaches beyond");
    check_malformed(Message::default().msg(1, series(&[("a", "b")]).bytes(2, [0x09, 1, 2])).0, "cut off");
    // An unknown field, but its label is none.
    check_malformed(
        Message::default().msg(1, Message::default().bytes(1, [0x0A, 9, 1]).msg(2, sample(1, 1.0))).0,
        "length",
    );
}

#[test]
fn lying_snappy_lengths_allocate_nothing() {
    let mut received = Received::default();
    let mut decode = |body: &[u8], max| received.decode(Version::V1, body, max, &mut |_| ()).unwrap_err();
    let mut gigabytes = Vec::new();
    varint::put_uvarint(&mut gigabytes, 2 << 30);
    gigabytes.extend_from_slice(&[0; 50]);
    assert!(matches!(
        decode(&gigabytes, 100 << 20),
        DecodeError::TooLarge { declared: 0x8000_0000, limit: 0x640_0000 }
    ));
    assert!(matches!(decode(&gigabytes, usize::MAX), DecodeError::TooLarge { .. }));
    let mut megabytes = Vec::new();
    varint::put_uvarint(&mut megabytes, 50 << 20);
    megabytes.extend_from_slice(&[0; 50]);
    assert!(decode(&megabytes, 100 << 20).to_string().contains("cannot hold more than"));
    assert!(matches!(decode(&[], 100), DecodeError::Snappy(_)));
    assert!(matches!(decode(&[0xFF; 20], 100), DecodeError::Snappy(_)));
    assert!(matches!(decode(b"not snappy at all", 1000), DecodeError::Snappy(_)));
    assert!(received.heap_bytes() < 10_000);
}

#[test]
fn densest_snappy_is_accepted() {
    let body = Message::default().bytes(15, vec![0; 1 << 20]);
    let compressed = snap::raw::Encoder::new().compress_vec(&body.0).unwrap();
    Received::default().decode(Version::V1, &compressed, 1 << 21, &mut |_| ()).unwrap();
}

#[test]
fn truncated_bodies_are_refused() {
    let request = (0..50).fold(Message::default(), |m, i| {
        m.msg(1, series(&[("__name__", "m"), ("i", &i.to_string())]).msg(2, sample(1, 1.0)))
    });
    let compressed = snap::raw::Encoder::new().compress_vec(&request.0).unwrap();
    for len in 0..compressed.len() {
        let error = Received::default().decode(Version::V1, &compressed[..len], 1 << 20, &mut |_| ()).unwrap_err();
        assert!(matches!(error, DecodeError::Snappy(_)), "{len}: {error}");
    }
}

/// What a hostile body of `size` bytes costs, at most, in bytes held.
fn cost_of(part: Message, size: usize) -> Result<usize, DecodeError> {
    let message = part.0.repeat(size / part.0.len());
    let mut received = Received::default();
    received.decode_message(Version::V1, message.into(), &mut |_| ()).map(|()| received.heap_bytes())
}

#[test]
fn bodies_full_of_nothing_cost_little() {
    let size = 8 << 20;
    let request = Message::default;
    let empty = Message::default;
    // Series, series with an empty label, with an empty sample: nothing is retained but the body.
    assert!(cost_of(request().msg(1, empty()), size).unwrap() <= size);
    assert!(cost_of(request().msg(1, empty().msg(1, empty())), size).unwrap() <= size);
    assert!(cost_of(request().msg(1, empty().msg(2, empty())), size).unwrap() <= size + 4096);
    assert!(cost_of(request().msg(3, empty()), size).unwrap() <= size);
    assert!(cost_of(request().msg(1, empty().msg(3, empty())), size).unwrap() <= size);
    // The smallest series that can be stored, and the smallest sample.
    let smallest = series(&[("a", "b")]).msg(2, empty());
    assert!(cost_of(request().msg(1, smallest), size).unwrap() <= 20 * size);
    let samples = empty().msg(2, empty()).0.repeat(size / 2);
    let one_series = request().msg(1, Message([series(&[("a", "b")]).0, samples].concat()));
    assert!(cost_of(one_series, size + 20).unwrap() <= 20 * size);
    // Empty histograms would take a hundred times their size.
    let histograms = request().msg(1, series(&[("a", "b")]).msg(4, empty()));
    assert!(matches!(cost_of(histograms, size), Err(DecodeError::TooWide { .. })));
}

#[test]
fn allocations_are_reused() {
    let request = (0..100).fold(Message::default(), |m, i| {
        m.msg(1, series(&[("__name__", "m"), ("i", &i.to_string())]).msg(2, sample(1, 1.0)))
    });
    let compressed = snap::raw::Encoder::new().compress_vec(&request.0).unwrap();
    let mut received = Received::default();
    received.decode(Version::V1, &compressed, 1 << 20, &mut |_| ()).unwrap();
    let before = (received.batch.body.as_ptr(), received.batch.samples.as_ptr(), received.batch.series.as_ptr());
    received.decode(Version::V1, &compressed, 1 << 20, &mut |_| ()).unwrap();
    let after = (received.batch.body.as_ptr(), received.batch.samples.as_ptr(), received.batch.series.as_ptr());
    assert_eq!(before, after);
}

fn golden() -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/remote-write");
    let there = folder.is_dir();
    if !there {
        println!("skipped: {} is not here", folder.display());
    }
    there.then_some(folder)
}

/// Bodies a real sender made: counts and a hash over labels and samples as an independent decoder saw them.
#[test]
fn golden_bodies() {
    let Some(folder) = golden() else { return };
    let expected = std::fs::read_to_string(folder.join("expected.jsonl")).unwrap();
    let mut received = Received::default();
    for line in expected.lines() {
        let expected: serde_json::Value = serde_json::from_str(line).unwrap();
        let file = expected["file"].as_str().unwrap();
        let body = std::fs::read(folder.join(file)).unwrap();
        received.decode(Version::V1, &body, 32 << 20, &mut |r| panic!("{file}: {r:?}")).unwrap();
        let batch = &received.batch;
        assert!(batch.rebuilt.is_empty(), "{file}: labels were not recognised as canonical");
        let integer = batch.histograms.iter().filter(|h| matches!(h.value, HistogramValue::Integer(_))).count();
        let counts = [
            ("decoded_bytes", batch.body.len()),
            ("timeseries", batch.series.len()),
            ("samples", batch.samples.len()),
            ("stale_markers", batch.samples.iter().filter(|s| is_stale_nan(s.value)).count()),
            ("exemplars", batch.exemplars.len()),
            ("histograms_int", integer),
            ("histograms_float", batch.histograms.len() - integer),
            ("metadata", batch.metadata.len()),
        ];
        for (key, count) in counts {
            assert_eq!(expected[key].as_u64(), Some(count as u64), "{file}: {key}");
        }
        let types = expected["metadata_types"].as_object();
        for (number, count) in types.into_iter().flatten() {
            let wanted = MetricType::from_number(number.parse().unwrap());
            let found = batch.metadata.iter().filter(|m| m.metric_type == wanted).count();
            assert_eq!(count.as_u64(), Some(found as u64), "{file}: type {number}");
        }
        assert_eq!(expected["sha256"], sha256_of(batch), "{file}");
    }
}

/// As the golden folder's README defines it.
fn sha256_of(batch: &WriteBatch) -> String {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    for series in batch.iter() {
        for (name, value) in series.labels.iter() {
            digest.update(&[name.as_bytes(), &[0xFF], value.as_bytes(), &[0xFF]].concat());
        }
        for FloatSample { timestamp, value } in series.samples {
            digest.update(&timestamp.to_le_bytes());
            digest.update(&value.to_bits().to_le_bytes());
        }
    }
    digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Labels, and samples as timestamp and bits, as a sender might mean them.
type MeantSeries = (Vec<(String, String)>, Vec<(i64, u64)>);

fn any_series() -> impl Strategy<Value = MeantSeries> {
    let name = prop_oneof![Just("__name__".to_owned()), "[a-c]{1,2}", "\\PC{1,3}"];
    let value = prop_oneof!["[a-z]{0,4}", "\\PC{0,3}", "[x]{120,140}"];
    let labels = proptest::collection::vec((name, value), 0..5);
    let samples = proptest::collection::vec((any::<i64>(), any::<u64>()), 0..4);
    (labels, samples)
}

proptest! {
    /// Against a naive model: what is sent is what comes out, canonical, in order.
    #[test]
    fn agrees_with_a_naive_decoder(request in proptest::collection::vec((any_series(), any::<u8>()), 0..6)) {
        let mut message = Message::default();
        let mut expected = Vec::new();
        let mut defects = 0;
        for ((labels, samples), liberty) in &request {
            let mut series = Message::default();
            for (name, value) in labels {
                let label = match liberty % 4 {
                    0 => label(name, value).varint(7, 3),
                    1 => Message::default().long_bytes(1, name).bytes(2, value),
                    _ => label(name, value),
                };
                series = series.msg(1, label);
            }
            for (timestamp, bits) in samples {
                series = series.msg(2, sample(*timestamp, f64::from_bits(*bits)));
            }
            message = message.msg(1, series);
            if samples.is_empty() {
                continue;
            }
            let mut kept: Vec<_> = labels.iter().filter(|(_, value)| !value.is_empty()).collect();
            kept.sort();
            if kept.is_empty() || kept.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                defects += 1;
                continue;
            }
            expected.push((Labels::from_pairs(kept.iter().map(|(n, v)| (n, v))), samples.clone()));
        }
        let outcome = try_decode(message).unwrap();
        prop_assert_eq!(outcome.rejected.len(), defects);
        let decoded: Vec<_> = outcome.received.batch.iter().map(|view| {
            let samples: Vec<_> = view.samples.iter().map(|s| (s.timestamp, s.value.to_bits())).collect();
            (view.labels.to_labels(), samples)
        }).collect();
        prop_assert_eq!(decoded, expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = try_decode(Message(bytes.clone()));
        let _ = Received::default().decode(Version::V1, &bytes, 1 << 20, &mut |_| ());
    }
}

/// Damages a valid request at a few places; whatever still decodes must keep every promise of a batch.
#[test]
fn damaged_requests_never_break_a_promise() {
    let exemplar = Message::default().msg(1, label("trace", "x")).double(2, 1.0).varint(3, 5);
    let histogram = Message::default()
        .varint(1, 3)
        .msg(11, Message::default().varint(1, 2).varint(2, 2))
        .bytes(12, [2, 1])
        .bytes(13, 1.5f64.to_le_bytes())
        .varint(15, 9);
    let full = series(&[("__name__", "metric"), ("a", "ä"), ("b", "value")])
        .msg(2, sample(1, 1.0))
        .msg(3, exemplar)
        .msg(4, histogram);
    let metadata = Message::default().varint(1, 1).bytes(2, "metric").bytes(4, "help");
    let exemplars = [&[("b", "1"), ("a", "2")][..], &[("b", "1")], &[("b", "3"), ("a", "4")]];
    let unsorted = series(&[("job", "x"), ("__name__", "metric"), ("a", "ä")]).msg(2, sample(1, 1.0));
    let unsorted = exemplars.iter().fold(unsorted, |s, labels| s.msg(3, series(labels)));
    let valid = Message::default().msg(1, full.clone()).msg(1, unsorted.clone()).msg(3, metadata);
    let valid = valid.msg(1, unsorted).msg(1, full);
    let config = ProptestConfig::with_cases(2000);
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
    let damage = proptest::collection::vec((0..valid.0.len(), any::<u8>(), 0..4u8), 1..4);
    let decoded = std::cell::Cell::new(0);
    runner
        .run(&damage, |damage| {
            let mut bytes = valid.0.clone();
            for (at, byte, how) in damage {
                let at = at.min(bytes.len() - 1);
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes[at] ^= 1 << (byte % 8),
                    2 => bytes.insert(at, byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            if try_decode(Message(bytes)).is_ok() {
                decoded.set(decoded.get() + 1);
            }
            Ok(())
        })
        .unwrap();
    assert!(decoded.get() > 0, "some damage is harmless, for example inside a value");
}
