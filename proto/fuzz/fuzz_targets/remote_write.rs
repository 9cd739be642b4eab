//! Any bytes, as a compressed body and as a message: no panic, and what decodes keeps every promise of a batch.
//!
//! Run: `cargo +nightly fuzz run remote_write` in `proto/`. The same promises are checked without libFuzzer, on mutated
//! requests, by the tests of `proto/src/remote_write`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skald_model::LabelBytes;
use skald_proto::remote_write::{LabelShape, Received};

fuzz_target!(|bytes: &[u8]| {
    let mut received = Received::default();
    if received.decode(bytes, 1 << 20, &mut |_| ()).is_ok() {
        check(&received);
    }
    if received.decode_message(bytes.to_vec().into(), &mut |_| ()).is_ok() {
        check(&received);
    }
});

fn check(received: &Received) {
    assert_eq!(received.batch.series.len(), received.shapes.len());
    for (series, shape) in received.batch.iter().zip(&received.shapes) {
        let labels = LabelBytes::check(series.labels.as_bytes()).expect("labels of a batch are canonical");
        assert_eq!(series.hash, labels.hash());
        assert_eq!(*shape, LabelShape::of(labels));
    }
}
