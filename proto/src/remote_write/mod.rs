//! remote_write 1.0 and 2.0: from a request body to a [`WriteBatch`] in one borrowing walk.
//!
//! [`snappy`] bounds and decompresses the body; [`wire`] reads protobuf without copying; [`request`] and [`request_v2`] walk
//! the messages and fill the columns of [`sink`]; [`labels`] recognises labels that are already canonical, or makes them so;
//! [`histogram`] reads native histograms.
//!
//! Absent on purpose: limits of a tenant and anything that needs a clock. What is *refused* here ([`DecodeError`], the
//! whole request) is not protobuf, not snappy, or too large; what is *left out* ([`Rejected`], one series, exemplar or
//! metadata entry) could not be represented, for example labels that are not UTF-8.

mod histogram;
mod labels;
mod request;
mod request_v2;
mod rewrite;
mod sink;
mod snappy;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_v2;
mod wire;

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::WriteBatch;

pub(crate) use histogram::heap_bytes as histogram_heap_bytes;
pub use labels::{LabelShape, is_legacy_label_name, is_legacy_metric_name};
pub use rewrite::{Rewrite, SeriesSize};
pub use snappy::declared_bytes;

/// How a body is encoded. The media type tells, not the body: each version reads the other's messages as empty ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// `prometheus.WriteRequest`: every series with its labels.
    V1,
    /// `io.prometheus.write.v2.Request`: labels are references to symbols; there are start timestamps.
    V2,
}

/// A decoded request, and the allocations to decode the next one with.
#[derive(Debug, Default)]
pub struct Received {
    /// Series, samples and metadata.
    pub batch: WriteBatch,
    /// What the labels of `batch.series` look like, entry by entry.
    pub shapes: Vec<LabelShape>,
}

impl Received {
    /// Decodes a compressed request body into this, replacing what was there.
    ///
    /// `max_bytes` bounds the decompressed size, and labels that had to be written out. What could not be represented is left out and told to `on_reject`.
    /// After an error the content is unspecified, but may be decoded into again.
    pub fn decode(
        &mut self,
        version: Version,
        compressed: &[u8],
        max_bytes: usize,
        on_reject: &mut dyn FnMut(Rejected<'_>),
    ) -> Result<(), DecodeError> {
        let body = snappy::decompress(compressed, max_bytes, self.take_body())?;
        self.decode_body(version, body, max_bytes, on_reject)
    }

    /// Decodes an uncompressed message into this, replacing what was there.
    pub fn decode_message(
        &mut self,
        version: Version,
        message: Bytes,
        on_reject: &mut dyn FnMut(Rejected<'_>),
    ) -> Result<(), DecodeError> {
        self.decode_body(version, message, usize::MAX, on_reject)
    }

    fn decode_body(
        &mut self,
        version: Version,
        message: Bytes,
        max_bytes: usize,
        on_reject: &mut dyn FnMut(Rejected<'_>),
    ) -> Result<(), DecodeError> {
        self.batch.clear();
        self.shapes.clear();
        self.batch.body = Bytes::new();
        match version {
            Version::V1 => request::decode(&message, self, on_reject)?,
            // Offsets into what is written out are 32 bits wide.
            Version::V2 => request_v2::decode(&message, max_bytes.min(u32::MAX as usize / 2), self, on_reject)?,
        }
        self.batch.body = message;
        Ok(())
    }

    /// Bytes of memory this holds, unused capacity included.
    pub fn heap_bytes(&self) -> usize {
        self.batch.heap_bytes() + self.shapes.capacity() * size_of::<LabelShape>()
    }

    /// The last body's buffer, if nobody else still reads it.
    fn take_body(&mut self) -> BytesMut {
        std::mem::take(&mut self.batch.body).try_into_mut().unwrap_or_default()
    }
}

/// Why a request cannot be decoded at all. The sender should not retry it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Larger than the receiver takes.
    #[error("the request declares {declared} bytes decompressed, the limit is {limit} bytes")]
    TooLarge {
        /// The decompressed size in the snappy header.
        declared: u64,
        /// The receiver's limit.
        limit: usize,
    },
    /// Not a snappy block.
    #[error("malformed snappy block: {0}")]
    Snappy(String),
    /// Not a message of its version.
    #[error("malformed protobuf at byte {at}: {what}")]
    Protobuf {
        /// Offset in the decompressed message.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// Protobuf that would take far more memory than its own size; no real sender makes such.
    #[error("a request of {message} bytes decodes to more than {limit} bytes")]
    TooWide {
        /// Size of the decompressed message.
        message: usize,
        /// Bytes that a message of this size may decode to.
        limit: usize,
    },
}

/// A part of a request that was left out.
#[derive(Debug, Clone, Copy)]
pub struct Rejected<'a> {
    /// Why.
    pub defect: Defect,
    /// Labels that have a value, of the series or of the exemplar, as sent; none for metadata.
    pub labels: RawLabels<'a>,
    /// Float and histogram samples left out.
    pub samples: usize,
    /// Exemplars left out.
    pub exemplars: usize,
    /// Metadata entries left out.
    pub metadata: usize,
}

/// What cannot be represented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Defect {
    /// A series has no label at all.
    NoLabels,
    /// A series has neither a float nor a histogram sample; 2.0 does not allow that.
    NoSamples,
    /// A label refers to a symbol that is not there, or has a name only.
    LabelReference,
    /// A label name is empty.
    EmptyLabelName,
    /// A label name is not UTF-8.
    LabelNameNotUtf8,
    /// A label value is not UTF-8.
    LabelValueNotUtf8,
    /// Two labels have one name.
    DuplicateLabelName,
    /// An exemplar has no label with a value.
    ExemplarWithoutLabels,
    /// An exemplar's labels are not UTF-8, not unique, or have an empty name.
    ExemplarLabelsInvalid,
    /// A metadata entry names no metric family.
    MetadataWithoutName,
    /// A metadata entry is not UTF-8.
    MetadataNotUtf8,
    /// A series' metadata refers to a symbol that is not there.
    MetadataReference,
}

/// Labels as a sender gave them, unchecked: for messages.
#[derive(Clone, Copy)]
pub struct RawLabels<'a>(&'a [labels::RawLabel<'a>]);

impl<'a> RawLabels<'a> {
    /// Name and value of each label, as sent.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.0.iter().map(|label| (label.name, label.value))
    }
}

/// As PromQL writes labels; what is not UTF-8 is replaced.
impl fmt::Display for RawLabels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{}={:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for RawLabels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
