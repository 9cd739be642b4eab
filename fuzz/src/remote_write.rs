//! Any bytes, as a compressed body and as a message of either version: what decodes keeps every promise of a batch.

use skald_model::LabelBytes;
use skald_proto::remote_write::{LabelShape, Received, Version};

/// A request in both forms, and one of 2.0.
pub fn seeds() -> Vec<Vec<u8>> {
    // timeseries { labels {__name__ a} labels {b c} samples {1.5 1000} }, metadata { gauge a help }
    let label = |name: &str, value: &str| field(1, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat());
    let sample = [&[0x09][..], &1.5_f64.to_le_bytes(), &[0x10, 0xE8, 0x07]].concat();
    let series = [label("__name__", "a"), label("b", "c"), field(2, &sample)].concat();
    let histogram = [&[0x08, 3][..], &[0x19], &4.5_f64.to_le_bytes(), &[0x20, 6, 0x30, 1, 0x78, 0xE8, 0x07]].concat();
    let spans = field(11, &[0x08, 2, 0x10, 2]);
    let with_histogram = [label("__name__", "h"), field(4, &[&histogram[..], &spans, &field(12, &[4, 2])].concat())];
    let metadata = [&[0x08, 2][..], &field(2, b"a"), &field(4, b"help")].concat();
    let message = [field(1, &series), field(1, &with_histogram.concat()), field(3, &metadata)].concat();
    let compressed = snap::raw::Encoder::new().compress_vec(&message).expect("small");
    vec![message, compressed, request_v2()]
}

fn request_v2() -> Vec<u8> {
    let symbols = ["", "__name__", "a", "b", "c", "help"].map(|symbol| field(4, symbol.as_bytes())).concat();
    let sample = [&[0x09][..], &1.5_f64.to_le_bytes(), &[0x10, 0xE8, 0x07, 0x18, 5]].concat();
    let exemplar = [&field(1, &[3, 4])[..], &[0x11], &1.5_f64.to_le_bytes(), &[0x18, 9]].concat();
    let metadata = [0x08, 1, 0x18, 5, 0x20, 0];
    let labels = field(1, &[1, 2, 3, 4]);
    let floats = [labels, field(2, &sample), field(4, &exemplar), field(5, &metadata)].concat();
    let unsorted = field(1, &[3, 4, 1, 2]);
    let histogram = [&[0x08, 3, 0x20, 6, 0x78, 0xE8, 0x07, 0x88, 1, 7][..], &field(11, &[0x08, 2, 0x10, 2])].concat();
    let histograms = [unsorted, field(3, &[&histogram[..], &field(12, &[4, 2])].concat())].concat();
    [symbols, field(5, &floats), field(5, &histograms)].concat()
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
}

/// Decodes the bytes.
pub fn check(bytes: &[u8]) {
    let mut received = Received::default();
    for version in [Version::V1, Version::V2] {
        if received.decode(version, bytes, 1 << 20, &mut |_| ()).is_ok() {
            check_batch(&received);
        }
        if received.decode_message(version, bytes.to_vec().into(), &mut |_| ()).is_ok() {
            check_batch(&received);
        }
    }
}

fn check_batch(received: &Received) {
    assert_eq!(received.batch.series.len(), received.shapes.len());
    assert!(received.batch.sample_starts.len() <= received.batch.samples.len());
    assert!(received.batch.histogram_starts.len() <= received.batch.histograms.len());
    for (series, shape) in received.batch.iter().zip(&received.shapes) {
        let labels = LabelBytes::check(series.labels.as_bytes()).expect("labels of a batch are canonical");
        assert_eq!(series.hash, labels.hash());
        assert_eq!(*shape, LabelShape::of(labels));
    }
}
