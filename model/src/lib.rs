//! The words every other crate shares: labels, matchers, samples, native histograms, columns of samples, time ranges.
//!
//! Absent on purpose: no I/O, no clock, no tenant, no storage or query logic.
//!
//! Reading order: [`time`] and [`sample`] are plain data; [`varint`] is the one coding they share;
//! [`labels`] is a series' identity inside a query, [`label_bytes`] the same identity as it travels from a sender
//! to a head; [`matcher`] selects labels, by regexes in the syntax of [`re2`]; [`quote`] and
//! [`go_float`] print text and numbers as Go does; [`histogram`] is the native histogram; [`columns`] is what decoders fill and
//! the query engine reads.

pub mod columns;
pub mod go_float;
pub mod histogram;
pub mod label_bytes;
pub mod labels;
pub mod matcher;
pub mod metadata;
pub mod quote;
pub mod re2;
pub mod sample;
pub mod time;
pub mod varint;

pub use columns::Columns;
pub use go_float::GoFloat;
pub use histogram::{FloatHistogram, Histogram, HistogramError, NotReducible, ResetHint, Span};
pub use label_bytes::LabelBytes;
pub use labels::{Labels, LabelsBuilder, METRIC_NAME};
pub use matcher::{MatchOp, Matcher, MatcherError};
pub use metadata::{MetricMetadata, MetricType};
pub use quote::{Quoted, QuotedBytes};
pub use sample::{Exemplar, FloatSample, HistogramSample, HistogramValue, STALE_NAN_BITS, is_stale_nan, stale_nan};
pub use time::{BlockRange, QueryRange, TimestampMs};
