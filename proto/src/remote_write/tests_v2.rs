//! remote_write 2.0: labels by reference, start timestamps, and that both versions say the same.

use std::collections::HashMap;

use proptest::prelude::*;
use skald_model::{HistogramValue, MetricType};

use super::tests::{Message, Outcome, label, try_decode_as};
use super::*;

/// A request's symbols as they come to be needed.
struct Symbols {
    table: Vec<Vec<u8>>,
    known: HashMap<Vec<u8>, u32>,
}

impl Default for Symbols {
    fn default() -> Self {
        Self { table: vec![Vec::new()], known: HashMap::from([(Vec::new(), 0)]) }
    }
}

impl Symbols {
    fn of(&mut self, text: impl AsRef<[u8]>) -> u32 {
        let text = text.as_ref().to_vec();
        *self.known.entry(text.clone()).or_insert_with(|| {
            self.table.push(text);
            self.table.len() as u32 - 1
        })
    }

    fn refs<N: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, labels: &[(N, V)]) -> Vec<u32> {
        labels.iter().flat_map(|(name, value)| [self.of(name), self.of(value)]).collect()
    }

    fn series<N: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, labels: &[(N, V)]) -> Message {
        let refs = self.refs(labels);
        packed(Message::default(), 1, &refs)
    }

    fn request(&self, series: impl IntoIterator<Item = Message>) -> Message {
        let request = self.table.iter().fold(Message::default(), |request, symbol| request.bytes(4, symbol));
        series.into_iter().fold(request, |request, series| request.msg(5, series))
    }
}

fn packed(message: Message, field: u32, refs: &[u32]) -> Message {
    let mut bytes = Vec::new();
    refs.iter().for_each(|at| skald_model::varint::put_uvarint(&mut bytes, u64::from(*at)));
    message.bytes(field, bytes)
}

fn sample(timestamp: i64, value: f64, start: i64) -> Message {
    let message = Message::default().double(1, value).varint(2, timestamp as u64);
    if start == 0 { message } else { message.varint(3, start as u64) }
}

#[track_caller]
fn decode(request: Message) -> Outcome {
    try_decode_as(Version::V2, request).unwrap()
}

/// The one series of a batch whose labels are these.
#[track_caller]
fn check_labels(labels: &[(&str, &str)], expected: &str) {
    let mut symbols = Symbols::default();
    let series = symbols.series(labels).msg(2, sample(1, 2.0, 0));
    let outcome = decode(symbols.request([series]));
    assert_eq!(outcome.rejected, []);
    assert_eq!(outcome.received.batch.labels(0).to_labels().to_string(), expected);
}

#[test]
fn labels_become_those_of_a_1_0_sender() {
    check_labels(&[("__name__", "m"), ("a", "ä"), ("b", "x")], r#"{__name__="m", a="ä", b="x"}"#);
    check_labels(&[("b", "x"), ("__name__", "m")], r#"{__name__="m", b="x"}"#);
    check_labels(&[("a", "1"), ("b", ""), ("c", "1")], r#"{a="1", c="1"}"#);
    let long = "x".repeat(300);
    check_labels(&[("a", &long)], &format!("{{a={long:?}}}"));
}

/// What neighbours share is copied: it must be theirs, and end where they differ.
#[test]
fn neighbours_do_not_lend_wrong_labels() {
    let all: &[&[(&str, &str)]] = &[
        &[("a", "1"), ("b", "1"), ("c", "1")],
        &[("a", "1"), ("b", "2"), ("c", "1")],
        &[("a", "1"), ("b", "22"), ("c", "1"), ("d", "1")],
        &[("a", "1"), ("b", "22")],
        &[("a", "1"), ("b", "22"), ("c", "1")],
        &[("a", "1"), ("bb", "22"), ("c", "1")],
        &[("c", "1"), ("a", "1")],
        &[("a", "1"), ("bb", "22"), ("c", "1")],
        &[("bb", "22"), ("c", "1")],
        &[("a", "12"), ("bb", "22"), ("c", "1")],
        &[("a", "12"), ("bb", "22"), ("c", "1")],
        &[("a", "12"), ("a", "22"), ("c", "1")],
        &[("a", "12"), ("bb", "22"), ("c", "1")],
    ];
    let mut symbols = Symbols::default();
    let series: Vec<_> = all.iter().map(|labels| symbols.series(labels).msg(2, sample(1, 1.0, 0))).collect();
    // A series without samples between leaves nothing behind.
    let empty = symbols.series(&[("a", "1"), ("b", "3")]);
    let series = series.into_iter().flat_map(|series| [empty.clone(), series]);
    let batch = decode(symbols.request(series)).received.batch;
    let expected = all.iter().filter(|labels| labels.get(1).is_none_or(|label| *label != ("a", "22")));
    let expected: Vec<_> = expected.map(|labels| skald_model::Labels::from_pairs(labels.iter().copied())).collect();
    assert_eq!(batch.iter().map(|series| series.labels.to_labels()).collect::<Vec<_>>(), expected);
}

#[test]
fn unpacked_references_and_symbols_behind_their_series() {
    let series = Message::default().varint(1, 1).varint(1, 2).msg(2, sample(1, 1.0, 0));
    let request = ["", "a", "b"].iter().fold(Message::default().msg(5, series), |m, symbol| m.bytes(4, symbol));
    assert_eq!(decode(request).received.batch.labels(0).to_labels().to_string(), r#"{a="b"}"#);
}

#[test]
fn starts_stay_with_their_samples() {
    let histogram = |timestamp: u64, start: u64| {
        let histogram = Message::default().varint(1, 3).varint(15, timestamp);
        if start == 0 { histogram } else { histogram.varint(17, start) }
    };
    let mut symbols = Symbols::default();
    let none = symbols.series(&[("a", "1")]).msg(2, sample(10, 1.0, 0));
    let some = symbols.series(&[("a", "2")]).msg(2, sample(10, 1.0, 5)).msg(2, sample(20, 2.0, 20));
    let some = some.msg(2, sample(30, 3.0, 31)).msg(2, sample(40, 3.0, -7)).msg(2, sample(50, 3.0, 0));
    let refused = symbols.series(&[("", "2")]).msg(2, sample(10, 1.0, 9)).msg(3, histogram(1, 1));
    let last = symbols.series(&[("a", "3")]).msg(2, sample(10, 1.0, 0)).msg(2, sample(11, 1.0, 8));
    let histograms = symbols.series(&[("h", "1")]).msg(3, histogram(5, 0)).msg(3, histogram(6, 2));
    let batch = decode(symbols.request([none, some, refused, last, histograms])).received.batch;
    let starts: Vec<_> = batch.iter().map(|series| series.sample_starts.to_vec()).collect();
    assert_eq!(starts, [vec![0], vec![5, 20, 0, -7, 0], vec![0, 8], vec![]]);
    assert_eq!(batch.iter().last().unwrap().histogram_starts, [0, 2]);
    assert_eq!(batch.samples.len(), 8);

    let parts = batch.split(2, |series| usize::from(series.samples.len() == 2), |_| 0);
    assert_eq!(parts[1].iter().next().unwrap().sample_starts, [0, 8]);
    assert_eq!(parts[0].iter().nth(1).unwrap().sample_starts, [5, 20, 0, -7, 0]);
    assert_eq!(parts[0].iter().nth(2).unwrap().histogram_starts, [0, 2]);
}

#[test]
fn what_is_wrong_costs_its_series_only() {
    let mut symbols = Symbols::default();
    let good = symbols.series(&[("__name__", "good")]).msg(2, sample(1, 2.0, 0));
    let refs = symbols.refs(&[("a", "1"), ("b", "2")]);
    let bad_text = symbols.of([0xFF]);
    let unknown = symbols.table.len() as u32;
    let of = |refs: &[u32]| packed(Message::default(), 1, refs).msg(2, sample(1, 2.0, 0)).msg(2, sample(2, 2.0, 0));
    let exemplar = packed(Message::default(), 1, &refs).varint(3, 9);
    let cases = [
        (of(&[refs[0], unknown]), Defect::LabelReference),
        (of(&[u32::MAX, refs[1]]), Defect::LabelReference),
        (of(&refs[..3]), Defect::LabelReference),
        (of(&[]), Defect::NoLabels),
        (of(&[refs[0], 0]), Defect::NoLabels),
        (of(&[0, refs[1]]), Defect::EmptyLabelName),
        (of(&[refs[0], refs[1], refs[0], refs[3]]), Defect::DuplicateLabelName),
        (of(&[bad_text, refs[1]]), Defect::LabelNameNotUtf8),
        (of(&[refs[0], bad_text]), Defect::LabelValueNotUtf8),
        (packed(Message::default(), 1, &refs), Defect::NoSamples),
        (packed(Message::default(), 1, &refs).msg(4, exemplar), Defect::NoSamples),
    ];
    for (series, defect) in cases {
        let outcome = decode(symbols.request([good.clone(), series, good.clone()]));
        assert_eq!(outcome.rejected.iter().map(|r| r.0).collect::<Vec<_>>(), [defect]);
        assert_eq!(outcome.rejected[0].2, if defect == Defect::NoSamples { 0 } else { 2 });
        let batch = &outcome.received.batch;
        assert_eq!((batch.series.len(), batch.samples.len(), batch.exemplars.len()), (2, 2, 0), "{defect:?}");
        assert_eq!(batch.labels(1).to_labels().to_string(), r#"{__name__="good"}"#);
    }
}

#[test]
fn exemplars_refer_to_symbols() {
    let mut symbols = Symbols::default();
    let series = symbols.series(&[("a", "1")]).msg(2, sample(1, 2.0, 0));
    let trace = symbols.refs(&[("trace", "x"), ("span", "y")]);
    let exemplar = |refs: &[u32]| packed(Message::default(), 1, refs).double(2, 4.5).varint(3, 9);
    let series = [&trace[..], &trace[..1], &[9999, 9999], &[]].iter().fold(series, |s, refs| s.msg(4, exemplar(refs)));
    let outcome = decode(symbols.request([series]));
    let [exemplar] = outcome.received.batch.exemplars(0) else { panic!("one exemplar") };
    assert_eq!(exemplar.labels.to_string(), r#"{span="y", trace="x"}"#);
    assert_eq!((exemplar.value, exemplar.timestamp), (4.5, 9));
    let defects: Vec<_> = outcome.rejected.iter().map(|r| (r.0, r.3)).collect();
    let (invalid, without) = (Defect::ExemplarLabelsInvalid, Defect::ExemplarWithoutLabels);
    assert_eq!(defects, [(invalid, 1), (invalid, 1), (without, 1)]);
}

#[test]
fn what_series_say_of_their_metric_is_taken_once() {
    let mut symbols = Symbols::default();
    let (help, unit) = (symbols.of("what it is"), symbols.of("s"));
    let mut series = |labels: &[(&str, &str)], metric_type: u64, help: u32, unit: u32| {
        let metadata = Message::default().varint(1, metric_type).varint(3, help.into()).varint(4, unit.into());
        symbols.series(labels).msg(2, sample(1, 2.0, 0)).msg(5, metadata)
    };
    let all = [
        series(&[("__name__", "a_total")], 1, help, 0),
        series(&[("__name__", "a_total"), ("x", "1")], 1, help, 0),
        series(&[("__name__", "b_bucket"), ("le", "1")], 3, help, unit),
        series(&[("__name__", "c_sum")], 5, 0, 0),
        series(&[("__name__", "a_total")], 1, help, 0),
        series(&[("__name__", "nothing")], 0, 0, 0),
        series(&[("a", "no name")], 2, help, 0),
        series(&[("__name__", "d")], 2, 9999, 0),
    ];
    let outcome = decode(symbols.request(all));
    assert_eq!(outcome.rejected.iter().map(|r| (r.0, r.3)).collect::<Vec<_>>(), [(Defect::MetadataReference, 1)]);
    let found: Vec<_> = outcome.received.batch.metadata.iter().map(|m| (&*m.metric, m.metric_type, &*m.unit)).collect();
    let expected =
        [("a_total", MetricType::Counter, ""), ("b", MetricType::Histogram, "s"), ("c", MetricType::Summary, "")];
    assert_eq!(found, expected);
    assert_eq!(outcome.received.batch.metadata[0].help, "what it is");
    assert_eq!(outcome.received.batch.series.len(), 8);
}

/// A request without either version's fields: what the other version's receiver makes of it.
#[test]
fn the_other_version_s_messages_are_empty() {
    let mut symbols = Symbols::default();
    let series = symbols.series(&[("a", "1")]).msg(2, sample(1, 2.0, 0));
    let v2 = symbols.request([series]);
    assert!(try_decode_as(Version::V1, v2).unwrap().received.batch.is_empty());
    let v1 = Message::default().msg(1, Message::default().msg(1, label("a", "1")).msg(2, sample(1, 2.0, 0)));
    assert!(decode(v1).received.batch.is_empty());
}

#[test]
fn small_bodies_stay_small() {
    let symbol = vec![b'x'; 1 << 20];
    let text = |n: usize| format!("n{n:05}");
    // A large value that many series, or many labels of one series or exemplar, refer to.
    let names: Vec<_> = (0..2000).map(text).collect();
    let labels: Vec<_> = names.iter().map(|name| (name.as_bytes(), &symbol[..])).collect();
    let mut symbols = Symbols::default();
    let refs = symbols.refs(&labels);
    let series = |refs: &[u32]| packed(Message::default(), 1, refs).msg(2, sample(1, 2.0, 0));
    let reversed: Vec<u32> = refs.chunks(2).rev().flatten().copied().collect();
    let exemplar = series(&refs[..2]).msg(4, packed(Message::default(), 1, &refs));
    for request in [
        symbols.request((0..2000).map(|_| series(&refs[..2]))),
        symbols.request([series(&refs)]),
        symbols.request([series(&reversed)]),
        symbols.request([exemplar]),
    ] {
        let mut received = Received::default();
        let error = received.decode_message(Version::V2, request.0.into(), &mut |_| ()).unwrap_err();
        assert!(matches!(error, DecodeError::TooWide { .. }), "{error}");
        assert!(received.heap_bytes() < 160 << 20, "{}", received.heap_bytes());
    }
    let request = symbols.request([series(&refs[..2]), series(&refs[2..4])]);
    let compressed = snap::raw::Encoder::new().compress_vec(&request.0).unwrap();
    let mut received = Received::default();
    received.decode(Version::V2, &compressed, 3 << 20, &mut |_| ()).unwrap();
    // Labels written out are bounded as bodies are.
    let error = received.decode(Version::V2, &compressed, (3 << 19) + (1 << 18), &mut |_| ()).unwrap_err();
    assert!(matches!(error, DecodeError::TooWide { .. }), "{error}");
    // Nothing but empty symbols, or empty series.
    for part in [Message::default().bytes(4, []), Message::default().bytes(5, [])] {
        let message = part.0.repeat(1 << 20);
        let mut received = Received::default();
        received.decode_message(Version::V2, message.into(), &mut |_| ()).unwrap();
        assert!(received.heap_bytes() < 3 << 20);
    }
}

type Meant = (Vec<(String, String)>, Vec<(i64, u64)>, Vec<(i64, u16)>, Vec<(i64, String)>);

fn any_series() -> impl Strategy<Value = Meant> {
    let name = || prop_oneof![Just("__name__".to_owned()), "[a-c]{1,2}", "\\PC{1,3}"];
    let value = prop_oneof!["[a-z]{0,4}", "\\PC{0,3}", "[x]{120,140}"];
    let samples = proptest::collection::vec((any::<i64>(), any::<u64>()), 1..4);
    let histograms = proptest::collection::vec((0i64..1000, any::<u16>()), 0..3);
    let exemplars = proptest::collection::vec((0i64..1000, "[a-z]{0,3}"), 0..3);
    let few = (prop_oneof![Just("a"), Just("b"), Just("c")], prop_oneof![Just("1"), Just("2")]);
    let few = proptest::collection::btree_map(few.0, few.1, 1..4)
        .prop_map(|labels| labels.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect());
    let labels = prop_oneof![proptest::collection::vec((name(), value), 0..5), few];
    (labels, samples, histograms, exemplars)
}

proptest! {
    /// The same data in both versions gives the same batch, and the same refusals.
    #[test]
    fn both_versions_give_the_same_batch(all in proptest::collection::vec(any_series(), 0..6)) {
        let (mut v1, mut symbols, mut v2) = (Message::default(), Symbols::default(), Vec::new());
        for (labels, samples, histograms, exemplars) in &all {
            let mut old = labels.iter().fold(Message::default(), |m, (name, value)| m.msg(1, label(name, value)));
            let mut new = symbols.series(labels);
            for (time, bits) in samples {
                old = old.msg(2, sample(*time, f64::from_bits(*bits), 0));
                new = new.msg(2, sample(*time, f64::from_bits(*bits), 0));
            }
            for (time, trace) in exemplars {
                let rest = |m: Message| m.double(2, 1.5).varint(3, *time as u64);
                old = old.msg(3, rest(Message::default().msg(1, label("trace", trace))));
                new = new.msg(4, rest(packed(Message::default(), 1, &symbols.refs(&[("trace", trace)]))));
            }
            for (time, count) in histograms {
                // Custom buckets: schema -53.
                let bounds = [1.0f64.to_le_bytes(), 2.0f64.to_le_bytes()].concat();
                let histogram = Message::default().varint(1, u64::from(*count)).varint(4, 105).varint(15, *time as u64);
                let span = Message::default().varint(1, 0).varint(2, 2);
                let histogram = histogram.msg(11, span).bytes(12, [2, 1]).bytes(16, bounds);
                old = old.msg(4, histogram.clone());
                new = new.msg(3, histogram);
            }
            v1 = v1.msg(1, old);
            v2.push(new);
        }
        let old = try_decode_as(Version::V1, v1).unwrap();
        let new = try_decode_as(Version::V2, symbols.request(v2)).unwrap();
        prop_assert_eq!(&new.received.shapes, &old.received.shapes);
        let mut rejections = [old.rejected, new.rejected];
        rejections.iter_mut().for_each(|rejected| rejected.sort_by_key(|r| format!("{r:?}")));
        let [old_rejected, new_rejected] = rejections;
        // 2.0 learns of a series' defect before it looks at the exemplars.
        let of_series = |rejected: Vec<(Defect, String, usize, usize)>| -> Vec<_> {
            rejected.into_iter().filter(|r| r.2 > 0).map(|r| (r.0, r.1, r.2)).collect()
        };
        prop_assert_eq!(of_series(new_rejected), of_series(old_rejected));
        prop_assert_eq!(new.received.batch.series.len(), old.received.batch.series.len());
        for (new, old) in new.received.batch.iter().zip(old.received.batch.iter()) {
            prop_assert_eq!((new.hash, new.labels.as_bytes()), (old.hash, old.labels.as_bytes()));
            let bits = |samples: &[skald_model::FloatSample]| -> Vec<_> {
                samples.iter().map(|s| (s.timestamp, s.value.to_bits())).collect()
            };
            prop_assert_eq!(bits(new.samples), bits(old.samples));
            prop_assert_eq!(new.histograms, old.histograms);
            prop_assert!(new.histograms.iter().all(|h| matches!(&h.value, HistogramValue::Integer(h) if h.schema == -53)));
            prop_assert_eq!(new.exemplars, old.exemplars);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = try_decode_as(Version::V2, Message(bytes.clone()));
        // Behind a table of symbols.
        let _ = try_decode_as(Version::V2, Symbols::default().request([]).bytes(4, "a").bytes(4, "b").bytes(5, bytes));
    }
}
