//! Builds remote_write 1.0 bodies.

/// Appends a varint.
pub fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field.
pub fn put_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A request under construction.
#[derive(Default)]
pub struct Request {
    pub bytes: Vec<u8>,
}

impl Request {
    /// Adds a series; labels go out in the given order.
    pub fn series(mut self, labels: &[(&str, &str)], samples: &[(i64, f64)]) -> Self {
        let mut series = Vec::new();
        for (name, value) in labels {
            let mut label = Vec::new();
            put_field(&mut label, 1, name.as_bytes());
            put_field(&mut label, 2, value.as_bytes());
            put_field(&mut series, 1, &label);
        }
        for (timestamp, value) in samples {
            let mut sample = vec![0x09];
            sample.extend_from_slice(&value.to_le_bytes());
            sample.push(0x10);
            put_uvarint(&mut sample, *timestamp as u64);
            put_field(&mut series, 2, &sample);
        }
        put_field(&mut self.bytes, 1, &series);
        self
    }

    /// The body as it is sent.
    pub fn body(self) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(&self.bytes).expect("compresses")
    }
}
