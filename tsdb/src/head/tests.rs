//! The head's tests, by subject. [`rig`] has what they share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use skald_model::{
    BlockRange, Columns, Exemplar, FloatSample, Histogram, HistogramSample, HistogramValue, LabelBytes, Labels,
    Matcher, MetricMetadata, MetricType, QueryRange, Span, TimestampMs,
};

use super::recode;
use super::sample::{SampleValue, TimedSample};
use super::*;
use crate::chunk::Chunk;
use crate::disk::{Disk, MemDisk};
use crate::wal::{HeadState, Keep, Missed, RecoveryReport, Replay, Replayed, Wal, WalOptions};
use crate::{Alone, Workers};

mod acceptance;
mod chunks;
mod cuts;
mod damage;
mod labels;
mod model;
mod reads;
mod repair;
mod rig;
mod samples;
mod starts;

pub(super) use self::model::batch;
use self::rig::{Opened, open};
pub(super) use self::rig::{Rig, open_chunk_files};
pub(super) use self::samples::{Contents, append, contents, float, histogram, labels, started};
use self::samples::{add, check_block_chunks, full_text, reasons};

const RANGE: i64 = 1000;
pub(super) const OPTIONS: HeadOptions = HeadOptions { block_range_ms: RANGE };
const WINDOW: i64 = 1500;

/// What requests are bounded by.
pub(super) fn limits() -> AppendLimits {
    AppendLimits { out_of_order_window_ms: WINDOW, ..AppendLimits::default() }
}
