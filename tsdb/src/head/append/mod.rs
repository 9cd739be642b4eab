//! Appending: resolve and validate ([`judge`]), log, store.
//!
//! One lock per head, `appender`, is held over all three steps. So the order of a series' samples in the log is the order
//! in which memory takes them, replay repeats it exactly, and a failed log write leaves nothing to undo but series that
//! were created for it. Several requests of one tenant take turns for what is about a third of their cost (decoding,
//! validation of labels and hashing happen before); requests of other tenants do not meet this lock, and the log
//! gathers all of them into groups. Readers take the pages' locks, not this one.

mod import;
mod judge;

pub use import::{ImportError, ImportLimits, Imported, SeriesImport};

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::{ArcRwLockWriteGuard, RawRwLock};
use skald_model::{Exemplar, FloatSample, HistogramSample, HistogramValue, LabelBytes, TimestampMs};

use super::changes::ChangedBuckets;
use super::chunk_files::ChunkAddress;
use super::page::{Page, Rules};
use super::sample::{SampleValue, TimedSample};
use super::slots::short;
use super::{Appender, Head, locate};
use crate::postings::SeriesRef;
use crate::wal::{CommitError, Lsn, SegmentId, Wal, WalBatch, WalError};

/// One series of a request with its samples.
#[derive(Debug, Clone, Copy)]
pub struct SeriesAppend<'a> {
    /// Its labels: sorted, valid. `None` of one that the sender thinks is here: it is found by its hash alone, and if it is
    /// not here, [`Appended::unknown`] says so.
    pub labels: Option<LabelBytes<'a>>,
    /// Their hash, as [`LabelBytes::hash`] gives it.
    pub hash: u128,
    /// Float samples.
    pub samples: &'a [FloatSample],
    /// Start timestamps of `samples` from the first on; 0 is none, as is what is missing at the end.
    pub sample_starts: &'a [TimestampMs],
    /// Native histograms.
    pub histograms: &'a [HistogramSample],
    /// Start timestamps of `histograms` likewise.
    pub histogram_starts: &'a [TimestampMs],
    /// Exemplars.
    pub exemplars: &'a [Exemplar],
}

/// Limits of one request, the tenant's at that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendLimits {
    /// Most series the head may hold.
    pub max_series: Option<usize>,
    /// Most series of one metric name.
    pub max_series_per_metric: Option<usize>,
    /// Newest timestamp that is accepted.
    pub max_time: TimestampMs,
    /// How much older than the head's newest sample an out-of-order sample may be; 0 refuses them. Default 2 h.
    pub out_of_order_window_ms: i64,
    /// Exemplars the head keeps; 0 keeps none.
    pub max_exemplars: usize,
    /// Samples from here on are fresh: nobody caches answers about such times, so they change no data version.
    pub fresh_from: TimestampMs,
}

impl Default for AppendLimits {
    fn default() -> Self {
        Self {
            max_series: None,
            max_series_per_metric: None,
            max_time: TimestampMs::MAX,
            out_of_order_window_ms: 2 * 3600 * 1000,
            max_exemplars: 100_000,
            fresh_from: TimestampMs::MIN,
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Floats that are stored, those that were there already included.
    pub samples: u64,
    /// Histograms likewise.
    pub histograms: u64,
    /// Exemplars likewise.
    pub exemplars: u64,
    /// What was refused, one entry per kind and reason, in the order of first occurrence.
    pub rejections: Vec<Rejection>,
    /// Numbers of the series given without labels that are not here, ascending: nothing of these is stored or refused.
    pub unknown: Vec<u32>,
    /// The request is durable when the log is, up to here.
    pub lsn: Lsn,
}

/// Parts of a request refused for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    /// What was refused.
    pub kind: RejectedKind,
    /// Why.
    pub reason: RejectReason,
    /// How many.
    pub count: u64,
    /// Number of the first one's series within the request.
    pub series: usize,
    /// The first one's timestamp.
    pub timestamp: TimestampMs,
}

/// What a [`Rejection`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectedKind {
    /// Float and histogram samples.
    Sample,
    /// Exemplars.
    Exemplar,
}

/// Why a sample or exemplar is refused. Sending it again cannot succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Older than the series' newest sample, and out-of-order samples are not accepted.
    OutOfOrder,
    /// Out of order by more than the window allows.
    TooOld,
    /// Another value is stored at that time.
    DuplicateTimestamp,
    /// Beyond [`AppendLimits::max_time`].
    TooFarInFuture,
    /// The head has as many series as it may.
    SeriesLimit,
    /// The metric has as many series as it may.
    SeriesPerMetricLimit,
    /// A histogram whose spans do not fit its buckets, or with thousands of them.
    InvalidHistogram,
    /// An exemplar of a series that does not exist.
    ExemplarSeriesMissing,
    /// An exemplar older than the series' newest one.
    ExemplarOutOfOrder,
}

/// Why nothing of a request was stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The request is not in the log; it may be repeated.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Closed chunks cannot be written, and as many wait in memory as may; nothing is stored until that works again.
    #[error("closed chunks cannot be written to disk, and {pending_bytes} bytes of them wait in memory")]
    ChunkBacklog {
        /// Bytes that wait.
        pending_bytes: u64,
    },
    /// The head cannot address more series or symbols; it takes no new ones until a flush.
    #[error("head is full")]
    Full,
}

/// A sample that passed validation.
struct Accepted<V> {
    slot: SeriesRef,
    /// Number among all samples of the request, of both kinds: the order in which they are stored.
    order: u32,
    time: TimestampMs,
    value: V,
    /// Out of order: to be kept beside the chunks.
    beside: bool,
}

/// A series of the request, once per series.
struct Touched<'a> {
    slot: SeriesRef,
    labels: Option<LabelBytes<'a>>,
    defined_in: u32,
    /// The newest sample as it will be once the request is stored.
    newest: Newest,
    created: bool,
}

#[derive(Clone)]
enum Newest {
    Nothing,
    Float(TimestampMs, u64),
    /// `None`: the one in the open chunk.
    Histogram(TimestampMs, Option<HistogramValue>),
}

type PageGuard = ArcRwLockWriteGuard<RawRwLock, Page>;

/// The request while it is validated.
struct Request<'a, 'h> {
    head: &'h Head,
    limits: &'h AppendLimits,
    segment: SegmentId,
    touched: Vec<Touched<'a>>,
    floats: Vec<Accepted<f64>>,
    histograms: Vec<Accepted<HistogramValue>>,
    exemplars: Vec<(SeriesRef, &'a Exemplar)>,
    /// Start timestamps by the samples' order; 0 is none, as is what is missing at the end.
    starts: Vec<TimestampMs>,
    /// The accepted samples by series and time, once some sample is not newer than one of the same request.
    by_time: Option<HashMap<(SeriesRef, TimestampMs), SampleValue, foldhash::fast::FixedState>>,
    /// Senders repeat their series in one order, and slots were given in that order: as long as that holds, the next slot
    /// is tried before the table.
    in_order: bool,
    /// The page looked at last stays locked: neighbours in a request are neighbours in memory.
    page: Option<(usize, PageGuard)>,
    /// The closed chunk read last: a request that repeats old samples brings several of one chunk.
    chunk_read: Option<(ChunkAddress, Option<Bytes>)>,
    outcome: Appended,
}

thread_local! {
    /// The encoder's buffers, kept between the requests of a thread.
    static BATCH: RefCell<WalBatch> = RefCell::default();
}

impl Head {
    /// Stores a request's samples. On success what is counted as stored is in the log and readable.
    pub fn append<'a>(
        &self,
        wal: &Wal,
        series: impl IntoIterator<Item = SeriesAppend<'a>>,
        limits: &AppendLimits,
    ) -> Result<Appended, AppendError> {
        if self.chunk_files.is_over_budget() {
            return Err(AppendError::ChunkBacklog { pending_bytes: self.chunk_files.stats().pending_bytes });
        }
        let outcome = self.append_locked(&mut self.appender.lock(), wal, series, limits);
        // After the lock: others append meanwhile.
        self.chunk_files.write_batches();
        outcome
    }

    fn append_locked<'a>(
        &self,
        appender: &mut Appender,
        wal: &Wal,
        series: impl IntoIterator<Item = SeriesAppend<'a>>,
        limits: &AppendLimits,
    ) -> Result<Appended, AppendError> {
        let mut request = Request::new(self, limits, wal.segment());
        let mut result = Ok(());
        for (number, series) in series.into_iter().enumerate() {
            result = request.resolve(appender, number, series);
            if result.is_err() {
                break;
            }
        }
        request.finish(appender, wal, result)
    }
}

impl<'a, 'h> Request<'a, 'h> {
    fn new(head: &'h Head, limits: &'h AppendLimits, segment: SegmentId) -> Self {
        Self {
            head,
            limits,
            segment,
            touched: Vec::new(),
            floats: Vec::new(),
            histograms: Vec::new(),
            exemplars: Vec::new(),
            starts: Vec::new(),
            by_time: None,
            in_order: true,
            page: None,
            chunk_read: None,
            outcome: Appended {
                samples: 0,
                histograms: 0,
                exemplars: 0,
                rejections: Vec::new(),
                unknown: Vec::new(),
                lsn: Lsn(0),
            },
        }
    }

    /// Logs and stores what was accepted; or, if something failed, takes back what was created for it.
    fn finish(
        mut self,
        appender: &mut Appender,
        wal: &Wal,
        resolved: Result<(), AppendError>,
    ) -> Result<Appended, AppendError> {
        self.page = None;
        match resolved.and_then(|()| self.log(appender, wal)) {
            Ok(lsn) => self.outcome.lsn = lsn,
            Err(error) => {
                self.undo(appender);
                return Err(error);
            }
        }
        self.store(appender);
        Ok(self.outcome)
    }

    /// Writes the accepted samples to the log, with the definitions its segment lacks.
    fn log(&mut self, appender: &Appender, wal: &Wal) -> Result<Lsn, AppendError> {
        BATCH.with_borrow_mut(|batch| {
            loop {
                wal.begin(batch, self.head.id, appender.generation);
                self.segment = batch.segment();
                let segment = short(self.segment);
                if !self.floats.is_empty() || !self.histograms.is_empty() || !self.exemplars.is_empty() {
                    for touched in self.touched.iter().filter(|touched| touched.defined_in != segment) {
                        match touched.labels {
                            Some(labels) => batch.series(touched.slot, labels),
                            None => {
                                let mut bytes = Vec::new();
                                self.head.label_bytes(touched.slot, &mut bytes);
                                batch.series(touched.slot, LabelBytes::new_unchecked(&bytes));
                            }
                        }
                    }
                }
                for sample in &self.histograms {
                    batch.histogram(sample.slot, sample.time, &sample.value, self.start_of(sample.order));
                }
                for (slot, exemplar) in &self.exemplars {
                    batch.exemplar(*slot, exemplar);
                }
                for sample in &self.floats {
                    let start = self.start_of(sample.order);
                    if start != 0 {
                        batch.start_next_float(sample.time, start);
                    }
                    batch.float(sample.slot, sample.time, sample.value);
                }
                match wal.commit(batch) {
                    Ok(lsn) => return Ok(lsn),
                    Err(CommitError::Rotated) => {}
                    Err(CommitError::Wal(error)) => return Err(error.into()),
                }
            }
        })
    }

    /// The start timestamp of the sample of this order; 0 is none.
    #[inline]
    fn start_of(&self, order: u32) -> TimestampMs {
        self.starts.get(order as usize).copied().unwrap_or(0)
    }

    /// Remembers the start timestamp of the sample of this order, the newest.
    #[inline]
    fn note_start(&mut self, order: u32, start: TimestampMs) {
        if start != 0 {
            self.starts.resize(order as usize, 0);
            self.starts.push(start);
        }
    }

    /// Makes the logged samples readable.
    fn store(&mut self, appender: &Appender) {
        let rules = self.head.rules(appender.boundary);
        let generation = appender.generation;
        let segment = short(self.segment);
        let logged_any = !self.floats.is_empty() || !self.histograms.is_empty() || !self.exemplars.is_empty();
        let fresh_from = self.limits.fresh_from;
        let (mut min, mut max) = (TimestampMs::MAX, TimestampMs::MIN);
        let (mut changed, mut late_bytes) = (ChangedBuckets::default(), 0);
        let mut note = |time: TimestampMs| {
            (min, max) = (min.min(time), max.max(time));
            if time < fresh_from {
                changed.note(time);
            }
        };
        let undefined: Vec<SeriesRef> =
            self.touched.iter().filter(|t| logged_any && t.defined_in != segment).map(|t| t.slot).collect();
        for slot in undefined {
            let (number, index) = locate(slot);
            if let Some(series) = self.page(appender, number).and_then(|page| page.series_mut(index)) {
                series.defined_in = segment;
            }
        }
        let floats = std::mem::take(&mut self.floats);
        let mut histograms = std::mem::take(&mut self.histograms).into_iter().peekable();
        for sample in floats {
            while let Some(earlier) = histograms.next_if(|histogram| histogram.order < sample.order) {
                note(earlier.time);
                late_bytes += self.store_histogram(appender, earlier, rules);
            }
            note(sample.time);
            let (number, index) = locate(sample.slot);
            let start = self.start_of(sample.order);
            let Some(page) = self.page(appender, number) else { continue };
            if sample.beside {
                let sample = TimedSample { time: sample.time, value: SampleValue::Float(sample.value), start };
                late_bytes += page.insert_beside(index, generation, sample, rules);
            } else {
                page.append_float(index, sample.time, sample.value, start, rules);
            }
        }
        for sample in histograms {
            note(sample.time);
            late_bytes += self.store_histogram(appender, sample, rules);
        }
        self.page = None;
        if late_bytes != 0 {
            self.head.late_bytes.fetch_add(late_bytes, Ordering::Relaxed);
        }
        self.head.note_times(min, max);
        if !changed.is_empty() {
            // After the samples can be read: see `changes`.
            self.head.changes.lock().raise(&changed);
        }
        if !self.exemplars.is_empty() {
            let mut store = self.head.exemplars.lock();
            for (slot, exemplar) in &self.exemplars {
                store.insert(*slot, (*exemplar).clone(), self.limits.max_exemplars);
            }
        }
    }

    /// Returns by how many bytes what lies beside the chunks has grown.
    fn store_histogram(&mut self, appender: &Appender, sample: Accepted<HistogramValue>, rules: Rules<'_>) -> isize {
        let (number, index) = locate(sample.slot);
        let start = self.start_of(sample.order);
        let Some(page) = self.page(appender, number) else { return 0 };
        if sample.beside {
            let timed = TimedSample { time: sample.time, value: SampleValue::Histogram(sample.value), start };
            page.insert_beside(index, appender.generation, timed, rules)
        } else {
            page.append_histogram(index, sample.time, &sample.value, start, rules);
            0
        }
    }

    /// Removes the series that were created for a request which did not reach the log.
    fn undo(&mut self, appender: &mut Appender) {
        self.page = None;
        let created: Vec<SeriesRef> = self.touched.iter().filter(|t| t.created).map(|t| t.slot).collect();
        self.head.remove_series(appender, self.segment, &created);
    }
}
