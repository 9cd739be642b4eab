//! Appending: resolve and validate, log, store.
//!
//! One lock per head, `appender`, is held over all three steps. So the order of a series' samples in the log is the order
//! in which memory takes them, replay repeats it exactly, and a failed log write leaves nothing to undo but series that
//! were created for it. Several requests of one tenant take turns for what is about a third of their cost (decoding,
//! validation of labels and hashing happen before); requests of other tenants do not meet this lock, and the log
//! gathers all of them into groups. Readers take the pages' locks, not this one.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use parking_lot::{ArcRwLockWriteGuard, RawRwLock};
use skald_model::{Exemplar, FloatSample, HistogramSample, HistogramValue, LabelBytes, METRIC_NAME, TimestampMs};

use super::page::{Last, PAGE_SERIES, Page, Rules};
use super::sample::{OpenHistogram, SampleValue, TimedSample};
use super::{Appender, Head, Retired, locate};
use crate::postings::SeriesRef;
use crate::wal::{CommitError, Lsn, SegmentId, Wal, WalBatch, WalError};

/// One series of a request with its samples.
#[derive(Debug, Clone, Copy)]
pub struct SeriesAppend<'a> {
    /// Its labels: sorted, valid.
    pub labels: LabelBytes<'a>,
    /// Their hash, as [`LabelBytes::hash`] gives it.
    pub hash: u128,
    /// Float samples.
    pub samples: &'a [FloatSample],
    /// Native histograms.
    pub histograms: &'a [HistogramSample],
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
    /// Exemplars the head keeps; 0 keeps none.
    pub max_exemplars: usize,
}

impl Default for AppendLimits {
    fn default() -> Self {
        Self { max_series: None, max_series_per_metric: None, max_time: TimestampMs::MAX, max_exemplars: 100_000 }
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
    /// A histogram whose spans do not fit its buckets.
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
    labels: LabelBytes<'a>,
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

enum Verdict {
    InOrder,
    Beside,
    /// It is stored already.
    Same,
    Rejected(RejectReason),
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
    /// The accepted samples by series and time, once some sample is not newer than one of the same request.
    by_time: Option<HashMap<(SeriesRef, TimestampMs), SampleValue, foldhash::fast::FixedState>>,
    /// The page looked at last stays locked: neighbours in a request are neighbours in memory.
    page: Option<(usize, PageGuard)>,
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
        let mut appender = self.appender.lock();
        let appender = &mut *appender;
        let mut request = Request {
            head: self,
            limits,
            segment: wal.segment(),
            touched: Vec::new(),
            floats: Vec::new(),
            histograms: Vec::new(),
            exemplars: Vec::new(),
            by_time: None,
            page: None,
            outcome: Appended { samples: 0, histograms: 0, exemplars: 0, rejections: Vec::new(), lsn: Lsn(0) },
        };
        let mut result = Ok(());
        for (number, series) in series.into_iter().enumerate() {
            result = request.resolve(appender, number, series);
            if result.is_err() {
                break;
            }
        }
        request.page = None;
        let logged = result.and_then(|()| request.log(appender, wal));
        match logged {
            Ok(lsn) => request.outcome.lsn = lsn,
            Err(error) => {
                request.undo(appender);
                return Err(error);
            }
        }
        request.store(appender);
        Ok(request.outcome)
    }
}

impl<'a> Request<'a, '_> {
    /// Finds or creates the series and validates what it brings.
    fn resolve(&mut self, appender: &mut Appender, number: usize, series: SeriesAppend<'a>) -> Result<(), AppendError> {
        let fingerprint = appender.table.fingerprint(series.labels.as_bytes());
        let guess = self.touched.last().map_or(0, |last| last.slot.wrapping_add(1));
        let found = match self.is_series(appender, guess, series.hash, fingerprint) {
            true => Some(guess),
            false => self.find(appender, series.hash, fingerprint),
        };
        let at = match found {
            Some(slot) => self.touch(appender, slot, series.labels),
            None => match self.create(appender, number, series, fingerprint)? {
                Some(at) => at,
                None => return Ok(()),
            },
        };
        for sample in series.samples {
            self.judge_float(appender, number, at, *sample);
        }
        for sample in series.histograms {
            self.judge_histogram(appender, number, at, sample);
        }
        for exemplar in series.exemplars {
            let slot = self.touched[at].slot;
            let pending = self.exemplars.last().filter(|(last, _)| *last == slot).map(|(_, exemplar)| *exemplar);
            let known = self.head.exemplars.lock().judge(slot, pending, exemplar);
            match known {
                Ok(is_new) => {
                    self.outcome.exemplars += 1;
                    if is_new && self.limits.max_exemplars > 0 {
                        self.exemplars.push((slot, exemplar));
                    }
                }
                Err(reason) => self.reject(RejectedKind::Exemplar, reason, 1, number, exemplar.timestamp),
            }
        }
        Ok(())
    }

    /// The page of a slot, locked for writing until another page is asked for.
    fn page(&mut self, appender: &Appender, number: usize) -> Option<&mut Page> {
        if self.page.as_ref().is_none_or(|(locked, _)| *locked != number) {
            self.page = None;
            self.page = Some((number, appender.pages.get(number)?.write_arc()));
        }
        self.page.as_mut().map(|(_, guard)| &mut **guard)
    }

    fn is_series(&mut self, appender: &Appender, slot: SeriesRef, hash: u128, fingerprint: u64) -> bool {
        let (page, index) = locate(slot);
        self.page(appender, page)
            .and_then(|page| page.series(index))
            .is_some_and(|series| series.hash == (hash >> 64) as u64 && series.fingerprint == fingerprint)
    }

    fn find(&mut self, appender: &Appender, hash: u128, fingerprint: u64) -> Option<SeriesRef> {
        let mut candidates = appender.table.candidates(hash);
        candidates.find(|slot| self.is_series(appender, *slot, hash, fingerprint))
    }

    /// Enters a series into the list of touched ones, unless this request has touched it before.
    fn touch(&mut self, appender: &Appender, slot: SeriesRef, labels: LabelBytes<'a>) -> usize {
        let (number, index) = locate(slot);
        let next = self.touched.len();
        let mark = self.page(appender, number).and_then(|page| page.series(index)).map_or(0, |series| series.mark);
        if self.touched.get(mark as usize).is_some_and(|touched| touched.slot == slot) {
            return mark as usize;
        }
        let (mut newest, mut defined_in) = (Newest::Nothing, 0);
        if let Some(page) = self.page(appender, number) {
            newest = match page.last(index) {
                Last::Nothing => Newest::Nothing,
                Last::Float(time, value) => Newest::Float(time, value.to_bits()),
                Last::Histogram(time, _) => Newest::Histogram(time, None),
            };
            if let Some(series) = page.series_mut(index) {
                series.mark = next as u32;
                defined_in = series.defined_in;
            }
        }
        self.touched.push(Touched { slot, labels, defined_in, newest, created: false });
        next
    }

    /// Creates a series for which at least one sample is acceptable; `None` when nothing of it is.
    fn create(
        &mut self,
        appender: &mut Appender,
        number: usize,
        series: SeriesAppend<'a>,
        fingerprint: u64,
    ) -> Result<Option<usize>, AppendError> {
        // A sender that computes another hash must not get a second series of the same labels.
        let hash = series.labels.hash();
        if hash != series.hash
            && let Some(slot) = self.find(appender, hash, fingerprint)
        {
            return Ok(Some(self.touch(appender, slot, series.labels)));
        }
        // The index comes before pages in the locking order.
        self.page = None;
        let times = series.samples.iter().map(|s| s.timestamp).chain(series.histograms.iter().map(|s| s.timestamp));
        let acceptable = times.clone().any(|t| self.admit(appender, t, true).is_ok());
        let refused = if acceptable { self.over_limit(series.labels) } else { None };
        if !acceptable || refused.is_some() {
            for time in times {
                let reason = refused.or(self.admit(appender, time, true).err()).unwrap_or(RejectReason::TooOld);
                self.reject(RejectedKind::Sample, reason, 1, number, time);
            }
            for exemplar in series.exemplars {
                let reason = RejectReason::ExemplarSeriesMissing;
                self.reject(RejectedKind::Exemplar, reason, 1, number, exemplar.timestamp);
            }
            return Ok(None);
        }
        let slot = self.head.insert_series(appender, self.segment, series.labels, hash, fingerprint)?;
        let at = self.touch(appender, slot, series.labels);
        self.touched[at].created = true;
        Ok(Some(at))
    }

    fn over_limit(&self, labels: LabelBytes<'_>) -> Option<RejectReason> {
        if self.limits.max_series.is_some_and(|limit| self.head.series_count() >= limit) {
            return Some(RejectReason::SeriesLimit);
        }
        let limit = self.limits.max_series_per_metric?;
        let (_, metric) = labels.iter().find(|(name, _)| *name == METRIC_NAME)?;
        let series = self.head.index.read().series_with(METRIC_NAME, metric);
        (series >= limit).then_some(RejectReason::SeriesPerMetricLimit)
    }

    /// Whether a sample at `time` may be stored, given whether it is newer than its series' last; and if so, whether in
    /// order.
    fn admit(&self, appender: &Appender, time: TimestampMs, newer: bool) -> Result<bool, RejectReason> {
        if time > self.limits.max_time {
            return Err(RejectReason::TooFarInFuture);
        }
        if newer && time >= appender.boundary {
            return Ok(true);
        }
        let window = self.head.options.out_of_order_window_ms;
        if window <= 0 {
            return Err(RejectReason::OutOfOrder);
        }
        // A sample that is itself too far in the future does not raise the bar for others.
        let newest = self.head.max_time.load(Ordering::Relaxed).min(self.limits.max_time);
        if time < newest.saturating_sub(window) { Err(RejectReason::TooOld) } else { Ok(false) }
    }

    fn judge_float(&mut self, appender: &Appender, number: usize, at: usize, sample: FloatSample) {
        let FloatSample { timestamp: time, value } = sample;
        let slot = self.touched[at].slot;
        let newer = match &self.touched[at].newest {
            Newest::Nothing => true,
            Newest::Float(last, _) | Newest::Histogram(last, _) => time > *last,
        };
        // The common case, before anything else is built.
        if newer && time >= appender.boundary && time <= self.limits.max_time {
            self.touched[at].newest = Newest::Float(time, value.to_bits());
            self.outcome.samples += 1;
            self.note(slot, time, || SampleValue::Float(value));
            let order = self.next_order();
            self.floats.push(Accepted { slot, order, time, value, beside: false });
            return;
        }
        let value_of = SampleValue::Float(value);
        match self.judge(appender, at, time, &value_of, newer) {
            Verdict::Rejected(reason) => self.reject(RejectedKind::Sample, reason, 1, number, time),
            Verdict::Same => self.outcome.samples += 1,
            Verdict::InOrder | Verdict::Beside => {
                self.outcome.samples += 1;
                self.note(slot, time, || value_of);
                let order = self.next_order();
                self.floats.push(Accepted { slot, order, time, value, beside: true });
            }
        }
    }

    fn judge_histogram(&mut self, appender: &Appender, number: usize, at: usize, sample: &HistogramSample) {
        let time = sample.timestamp;
        let slot = self.touched[at].slot;
        let value = &sample.value;
        if OpenHistogram::start(time, value, OpenHistogram::first_header(value)).is_none() {
            self.reject(RejectedKind::Sample, RejectReason::InvalidHistogram, 1, number, time);
            return;
        }
        let newer = match &self.touched[at].newest {
            Newest::Nothing => true,
            Newest::Float(last, _) | Newest::Histogram(last, _) => time > *last,
        };
        let stored = SampleValue::Histogram(value.clone());
        let beside = match self.judge(appender, at, time, &stored, newer) {
            Verdict::Rejected(reason) => {
                self.reject(RejectedKind::Sample, reason, 1, number, time);
                return;
            }
            Verdict::Same => {
                self.outcome.histograms += 1;
                return;
            }
            Verdict::InOrder => false,
            Verdict::Beside => true,
        };
        if !beside {
            self.touched[at].newest = Newest::Histogram(time, Some(value.clone()));
        }
        self.outcome.histograms += 1;
        self.note(slot, time, || stored);
        let order = self.next_order();
        self.histograms.push(Accepted { slot, order, time, value: value.clone(), beside });
    }

    fn judge(
        &mut self,
        appender: &Appender,
        at: usize,
        time: TimestampMs,
        value: &SampleValue,
        newer: bool,
    ) -> Verdict {
        if newer && time >= appender.boundary {
            return match self.admit(appender, time, newer) {
                Ok(_) => Verdict::InOrder,
                Err(reason) => Verdict::Rejected(reason),
            };
        }
        if time <= self.limits.max_time {
            let same = self.is_stored(appender, at, time, value);
            match same {
                Some(true) => return Verdict::Same,
                Some(false) => return Verdict::Rejected(RejectReason::DuplicateTimestamp),
                None => {}
            }
        }
        match self.admit(appender, time, newer) {
            Ok(_) => Verdict::Beside,
            Err(reason) => Verdict::Rejected(reason),
        }
    }

    /// Whether the sample stored at `time`, or accepted earlier in this request, has this value; `None` without one.
    fn is_stored(&mut self, appender: &Appender, at: usize, time: TimestampMs, value: &SampleValue) -> Option<bool> {
        let slot = self.touched[at].slot;
        let (number, index) = locate(slot);
        // A request repeated as a whole meets the newest sample: no chunk needs to be decoded for it.
        match (&self.touched[at].newest, value) {
            (Newest::Float(last, bits), SampleValue::Float(value)) if *last == time => {
                return Some(*bits == value.to_bits());
            }
            (Newest::Histogram(last, Some(newest)), _) if *last == time => {
                return Some(SampleValue::Histogram(newest.clone()).is_same(value));
            }
            (Newest::Histogram(last, None), SampleValue::Histogram(value)) if *last == time => {
                let page = self.page(appender, number)?;
                return match page.last(index) {
                    Last::Histogram(_, open) => Some(open.last_is_same(value)),
                    Last::Nothing | Last::Float(..) => None,
                };
            }
            _ => {}
        }
        if let Some(found) = self.in_request(slot, time) {
            return Some(found.is_same(value));
        }
        self.page(appender, number)?.find(index, time).map(|found| found.is_same(value))
    }

    /// Looks among the samples this request has brought so far.
    fn in_request(&mut self, slot: SeriesRef, time: TimestampMs) -> Option<SampleValue> {
        let by_time = self.by_time.get_or_insert_with(|| {
            let floats = self.floats.iter().map(|s| ((s.slot, s.time), SampleValue::Float(s.value)));
            let histograms =
                self.histograms.iter().map(|s| ((s.slot, s.time), SampleValue::Histogram(s.value.clone())));
            floats.chain(histograms).collect()
        });
        by_time.get(&(slot, time)).cloned()
    }

    fn next_order(&self) -> u32 {
        (self.floats.len() + self.histograms.len()) as u32
    }

    fn note(&mut self, slot: SeriesRef, time: TimestampMs, value: impl FnOnce() -> SampleValue) {
        if let Some(by_time) = &mut self.by_time {
            by_time.insert((slot, time), value());
        }
    }

    fn reject(&mut self, kind: RejectedKind, reason: RejectReason, count: u64, series: usize, timestamp: TimestampMs) {
        let known = self.outcome.rejections.iter_mut().find(|known| known.kind == kind && known.reason == reason);
        match known {
            Some(known) => known.count += count,
            None => self.outcome.rejections.push(Rejection { kind, reason, count, series, timestamp }),
        }
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
                        batch.series(touched.slot, touched.labels);
                    }
                }
                for sample in &self.histograms {
                    batch.histogram(sample.slot, sample.time, &sample.value);
                }
                for (slot, exemplar) in &self.exemplars {
                    batch.exemplar(*slot, exemplar);
                }
                for sample in &self.floats {
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

    /// Makes the logged samples readable.
    fn store(&mut self, appender: &Appender) {
        let rules = self.head.rules(appender.boundary);
        let generation = appender.generation;
        let segment = short(self.segment);
        let logged_any = !self.floats.is_empty() || !self.histograms.is_empty() || !self.exemplars.is_empty();
        let (mut min, mut max) = (TimestampMs::MAX, TimestampMs::MIN);
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
                (min, max) = (min.min(earlier.time), max.max(earlier.time));
                self.store_histogram(appender, earlier, rules);
            }
            (min, max) = (min.min(sample.time), max.max(sample.time));
            let (number, index) = locate(sample.slot);
            let Some(page) = self.page(appender, number) else { continue };
            if sample.beside {
                let sample = TimedSample { time: sample.time, value: SampleValue::Float(sample.value) };
                page.insert_beside(index, generation, sample, rules);
            } else {
                page.append_float(index, sample.time, sample.value, rules);
            }
        }
        for sample in histograms {
            (min, max) = (min.min(sample.time), max.max(sample.time));
            self.store_histogram(appender, sample, rules);
        }
        self.page = None;
        self.head.note_times(min, max);
        if !self.exemplars.is_empty() {
            let mut store = self.head.exemplars.lock();
            for (slot, exemplar) in &self.exemplars {
                store.insert(*slot, (*exemplar).clone(), self.limits.max_exemplars);
            }
        }
    }

    fn store_histogram(&mut self, appender: &Appender, sample: Accepted<HistogramValue>, rules: Rules) {
        let (number, index) = locate(sample.slot);
        let Some(page) = self.page(appender, number) else { return };
        if sample.beside {
            let timed = TimedSample { time: sample.time, value: SampleValue::Histogram(sample.value) };
            page.insert_beside(index, appender.generation, timed, rules);
        } else {
            page.append_histogram(index, sample.time, &sample.value, rules);
        }
    }

    /// Removes the series that were created for a request which did not reach the log.
    fn undo(&mut self, appender: &mut Appender) {
        self.page = None;
        let created: Vec<SeriesRef> = self.touched.iter().filter(|t| t.created).map(|t| t.slot).collect();
        self.head.remove_series(appender, self.segment, &created);
    }
}

/// A segment's number as series keep it.
pub(super) fn short(segment: SegmentId) -> u32 {
    segment.0 as u32
}

impl Head {
    /// Gives a series a slot and enters it everywhere.
    pub(super) fn insert_series(
        &self,
        appender: &mut Appender,
        segment: SegmentId,
        labels: LabelBytes<'_>,
        hash: u128,
        fingerprint: u64,
    ) -> Result<SeriesRef, AppendError> {
        let slot = self.free_slot(appender, segment).ok_or(AppendError::Full)?;
        let (number, index) = locate(slot);
        let mut head_index = self.index.write();
        let inserted = head_index.insert(slot, labels);
        let created = inserted
            .as_deref()
            .is_some_and(|pairs| appender.pages[number].write().create(index, hash, fingerprint, pairs));
        if !created {
            if let Some(pairs) = inserted {
                head_index.remove(slot, &pairs);
            }
            drop(head_index);
            self.retire(appender, segment, slot);
            return Err(AppendError::Full);
        }
        drop(head_index);
        appender.table.insert(hash, slot);
        self.series.fetch_add(1, Ordering::Relaxed);
        Ok(slot)
    }

    fn free_slot(&self, appender: &mut Appender, segment: SegmentId) -> Option<SeriesRef> {
        if let Some(oldest) = appender.retired.front()
            && oldest.segment < segment
            && !self.view.lock().is_pinned_before(oldest.epoch)
        {
            return appender.retired.pop_front().map(|retired| retired.slot);
        }
        let slot = appender.next_slot;
        appender.next_slot = slot.checked_add(1)?;
        if slot as usize / PAGE_SERIES == appender.pages.len() {
            let page = Arc::default();
            appender.pages.push(Arc::clone(&page));
            self.pages.write().push(page);
        }
        Some(slot)
    }

    fn retire(&self, appender: &mut Appender, segment: SegmentId, slot: SeriesRef) {
        let mut view = self.view.lock();
        view.epoch += 1;
        appender.retired.push_back(Retired { slot, segment, epoch: view.epoch });
    }

    /// Takes series out of everything.
    pub(super) fn remove_series(&self, appender: &mut Appender, segment: SegmentId, slots: &[SeriesRef]) {
        /// Series removed under one hold of the index' lock.
        const AT_ONCE: usize = 64;
        let (mut pairs, mut bytes) = (Vec::new(), Vec::new());
        for slots in slots.chunks(AT_ONCE) {
            let mut index = self.index.write();
            for slot in slots {
                let (number, at) = locate(*slot);
                let Some(page) = appender.pages.get(number) else { continue };
                let mut page = page.write();
                pairs.clear();
                bytes.clear();
                page.labels(at, &mut pairs);
                index.label_bytes(&pairs, &mut bytes);
                index.remove(*slot, &pairs);
                page.remove(at);
                drop(page);
                appender.table.remove(LabelBytes::new_unchecked(&bytes).hash(), *slot);
                self.series.fetch_sub(1, Ordering::Relaxed);
            }
            drop(index);
            self.exemplars.lock().remove_series(slots);
            for slot in slots {
                self.retire(appender, segment, *slot);
            }
        }
    }
}
