//! Any bytes, as a compressed body and as a message: what decodes keeps every promise of a batch.

use skald_model::LabelBytes;
use skald_proto::remote_write::{LabelShape, Received};

/// A request in both forms.
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
    vec![message, compressed]
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
}

/// Decodes the bytes.
pub fn check(bytes: &[u8]) {
    let mut received = Received::default();
    if received.decode(bytes, 1 << 20, &mut |_| ()).is_ok() {
        check_batch(&received);
    }
    if received.decode_message(bytes.to_vec().into(), &mut |_| ()).is_ok() {
        check_batch(&received);
    }
}

fn check_batch(received: &Received) {
    assert_eq!(received.batch.series.len(), received.shapes.len());
    for (series, shape) in received.batch.iter().zip(&received.shapes) {
        let labels = LabelBytes::check(series.labels.as_bytes()).expect("labels of a batch are canonical");
        assert_eq!(series.hash, labels.hash());
        assert_eq!(*shape, LabelShape::of(labels));
    }
}
