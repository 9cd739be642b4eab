//! Samples of a stretch of the log: decoded record by record, stored page by page.

use std::collections::BTreeMap;

use parking_lot::{Mutex, MutexGuard};
use skald_model::{HistogramValue, TimestampMs};

use super::super::page::{Found, Last, PAGE_SERIES, Page, Rules};
use super::super::sample::{SampleValue, TimedSample};
use super::super::side::find_in;
use super::super::{Appender, Head, locate};
use super::ReplayState;
use crate::Workers;
use crate::wal::{Cut, Floats, Generation, HeadId, Held, Histograms, Missed, Position};

/// The samples of one record, and how the append that logged them saw the head.
pub(super) struct LoggedSamples<'a> {
    pub(super) samples: Logged<'a>,
    /// Where it stands in the log.
    pub(super) position: Position,
    pub(super) generation: Generation,
    pub(super) rules: Rules<'a>,
    /// What blocks hold.
    pub(super) done: Cut,
}

pub(super) enum Logged<'a> {
    Floats(Floats<'a>),
    Histograms(Histograms<'a>),
}

/// One record's samples by columns.
#[derive(Default)]
struct Decoded {
    /// Samples that follow each other in the record and in one page.
    runs: Vec<Run>,
    /// Index of the series within its page.
    at: Vec<u16>,
    times: Vec<TimestampMs>,
    /// One of the two is empty.
    floats: Vec<f64>,
    histograms: Vec<HistogramValue>,
    /// Start timestamps from the first sample on; 0 is none, as is what is missing at the end.
    starts: Vec<TimestampMs>,
    min: TimestampMs,
    max: TimestampMs,
    undefined: Held,
    last_undefined: Option<u32>,
}

#[derive(Clone, Copy)]
struct Run {
    page: u32,
    start: u32,
    end: u32,
}

impl Decoded {
    /// Notes where a sample goes; `false` when it needs not be stored, or cannot.
    #[inline]
    fn place(&mut self, series_ref: u32, time: TimestampMs, of: &LoggedSamples<'_>, state: &ReplayState) -> bool {
        if of.done.covers(of.generation, time) {
            return false;
        }
        let Some(slot) = state.slots.get(series_ref) else {
            let series = u64::from(self.last_undefined != Some(series_ref));
            self.last_undefined = Some(series_ref);
            self.undefined.add(Held { series, samples: 1, min_time: time, max_time: time });
            return false;
        };
        if state.horizons.get(slot).is_some_and(|horizon| of.position < horizon) && state.holes.at(slot, time).is_none()
        {
            return false;
        }
        let (page, at) = locate(slot);
        let end = self.at.len() as u32 + 1;
        match self.runs.last_mut() {
            Some(run) if run.page == page as u32 => run.end = end,
            _ => self.runs.push(Run { page: page as u32, start: end - 1, end }),
        }
        (self.min, self.max) = (self.min.min(time), self.max.max(time));
        self.at.push(at as u16);
        self.times.push(time);
        true
    }
}

impl Decoded {
    /// Gives the sample placed last a start.
    #[inline]
    fn start_last(&mut self, start: TimestampMs) {
        if start != 0 {
            self.starts.resize(self.times.len() - 1, 0);
            self.starts.push(start);
        }
    }
}

fn decode(of: &LoggedSamples<'_>, state: &ReplayState) -> Decoded {
    let mut decoded = Decoded { min: TimestampMs::MAX, max: TimestampMs::MIN, ..Decoded::default() };
    match &of.samples {
        Logged::Floats(floats) => {
            let samples = floats.clone();
            let count = samples.size_hint().1.unwrap_or(0);
            decoded.at.reserve_exact(count);
            decoded.times.reserve_exact(count);
            decoded.floats.reserve_exact(count);
            for sample in samples {
                if decoded.place(sample.series_ref, sample.timestamp, of, state) {
                    decoded.floats.push(sample.value);
                    decoded.start_last(sample.start);
                }
            }
        }
        Logged::Histograms(histograms) => {
            for (series_ref, sample, start) in histograms.clone() {
                if decoded.place(series_ref, sample.timestamp, of, state) {
                    decoded.histograms.push(sample.value);
                    decoded.start_last(start);
                }
            }
        }
    }
    decoded
}

/// Stores what the records bring, but for samples without a series definition.
pub(super) fn store(
    heads: &[(HeadId, &Head)],
    appenders: &[MutexGuard<'_, Appender>],
    records: Vec<(usize, LoggedSamples<'_>)>,
    workers: &dyn Workers,
    missed: &mut Missed,
) {
    let appenders: Vec<&Appender> = appenders.iter().map(|appender| &**appender).collect();
    let decoded: Vec<Mutex<Decoded>> = records.iter().map(|_| Mutex::default()).collect();
    workers.for_each(records.len(), &|at| {
        let (head, record) = &records[at];
        *decoded[at].lock() = decode(record, &appenders[*head].replay);
    });
    let decoded: Vec<Decoded> = decoded.into_iter().map(Mutex::into_inner).collect();

    // Per page the runs that concern it, in the order of the log.
    let mut pages: BTreeMap<(usize, u32), Vec<(usize, Run)>> = BTreeMap::new();
    for (number, of_record) in decoded.iter().enumerate() {
        let head = records[number].0;
        missed.undefined(heads[head].0, of_record.undefined);
        heads[head].1.note_times(of_record.min, of_record.max);
        for run in &of_record.runs {
            pages.entry((head, run.page)).or_default().push((number, *run));
        }
    }
    let pages: Vec<_> = pages.into_iter().collect();
    workers.for_each(pages.len(), &|at| {
        let ((head, page), runs) = &pages[at];
        let Some(page) = appenders[*head].pages.get(*page as usize) else { return };
        let mut page = page.write();
        for (number, run) in runs {
            store_run(&mut page, &records[*number].1, &decoded[*number], *run, &appenders[*head].replay);
        }
        drop(page);
        heads[*head].1.chunk_files.write_batches();
    });
}

/// Stores samples as the append did that logged them.
fn store_run(page: &mut Page, record: &LoggedSamples<'_>, decoded: &Decoded, run: Run, state: &ReplayState) {
    let LoggedSamples { generation, rules, position, .. } = *record;
    let first_slot = run.page * PAGE_SERIES as u32;
    let beside = |page: &mut Page, at: usize, sample: TimedSample| {
        let (slot, time) = (first_slot + at as u32, sample.time);
        if store_beside(page, at, generation, sample, rules)
            && let Some(hole) = state.holes.at(slot, time)
            && state.horizons.get(slot).is_some_and(|horizon| position < horizon)
        {
            hole.found_one();
        }
    };
    let range = run.start as usize..run.end as usize;
    let starts = decoded.starts.get(range.start..).unwrap_or_default();
    let start = |i: usize| starts.get(i).copied().unwrap_or(0);
    let samples = decoded.at[range.clone()].iter().zip(&decoded.times[range.clone()]);
    if decoded.histograms.is_empty() {
        for (i, ((at, time), value)) in samples.zip(&decoded.floats[range]).enumerate() {
            let (at, time, value, start) = (usize::from(*at), *time, *value, start(i));
            if is_in_order(page, at, time, rules) {
                page.append_float(at, time, value, start, rules);
            } else {
                beside(page, at, TimedSample { time, value: SampleValue::Float(value), start });
            }
        }
    } else {
        for (i, ((at, time), value)) in samples.zip(&decoded.histograms[range]).enumerate() {
            let (at, time, start) = (usize::from(*at), *time, start(i));
            if is_in_order(page, at, time, rules) {
                page.append_histogram(at, time, value, start, rules);
            } else {
                let value = SampleValue::Histogram(value.clone());
                beside(page, at, TimedSample { time, value, start });
            }
        }
    }
}

#[inline]
fn is_in_order(page: &Page, at: usize, time: TimestampMs, rules: Rules<'_>) -> bool {
    let newer = match page.last(at) {
        Last::Nothing => true,
        Last::Float(last, _) | Last::Histogram(last, _) => time > last,
    };
    newer && time >= rules.boundary
}

/// Stores a sample beside the series' chunks, unless it is there; whether it was not.
pub(super) fn store_beside(
    page: &mut Page,
    at: usize,
    generation: Generation,
    sample: TimedSample,
    rules: Rules<'_>,
) -> bool {
    let is_known = match page.find(at, sample.time) {
        Found::Nothing => false,
        Found::Value(_) => true,
        Found::Stored(chunk) => {
            let data = rules.shelf.read(&chunk);
            data.is_some_and(|data| find_in(chunk.encoding, &data, sample.time).is_some())
        }
    };
    if !is_known {
        page.insert_beside(at, generation, sample, rules);
    }
    !is_known
}
