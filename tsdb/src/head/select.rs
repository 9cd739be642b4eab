//! Reading: a select pins what it saw and copies it out batch by batch.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use parking_lot::RwLock;
use skald_model::{Labels, Matcher, QueryRange};

use super::page::Page;
use super::stored::{LostChunk, PageChunk};
use super::symbols::Symbol;
use super::{Head, locate};
use crate::bounded::{self, Progress};
use crate::chunk::Chunk;
use crate::postings::SeriesRef;
use crate::wal::Cut;
use crate::{SeriesChunks, SeriesFilter};

/// Series sorted under one hold of the index' lock; runs are merged while batches go out.
const RUN_SERIES: usize = 8192;

/// The series a set of matchers selected at one moment, in label order.
///
/// Chunks are copied when their batch is taken: a sample appended meanwhile may be in it. What the head held at the
/// start stays until the select is dropped.
pub struct Select {
    head: Arc<Head>,
    pin: Pin,
    pages: Vec<Arc<RwLock<Page>>>,
    range: QueryRange,
    /// Each in descending label order, so that the next series of a run is its last.
    runs: Vec<Vec<SeriesRef>>,
    /// The next series of each run, with its run's number.
    fronts: BinaryHeap<Reverse<(Labels, usize, SeriesRef)>>,
    series: usize,
    /// The chunks of other series are not copied.
    keep: Option<SeriesFilter>,
}

/// A reader's place in the head's view.
pub(super) struct Pin {
    epoch: u64,
    hidden: Cut,
}

impl Pin {
    /// What blocks show this reader instead of the head.
    pub(super) fn hidden(&self) -> Cut {
        self.hidden
    }
}

/// Keeps what was there at the start, and slots with their series, while something is looked up.
pub(super) struct Pinned<'a> {
    head: &'a Head,
    pin: Pin,
}

impl<'a> Pinned<'a> {
    pub(super) fn new(head: &'a Head) -> Self {
        Self { head, pin: head.pin() }
    }

    /// What blocks show this reader instead of the head.
    pub(super) fn hidden(&self) -> Cut {
        self.pin.hidden()
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.head.unpin(&self.pin);
    }
}

impl Head {
    /// Selects the series that satisfy all matchers; their chunks that may hold samples of `range` follow by batches.
    ///
    /// Samples that a finished cut covers may be missing: a reader who takes the head first and the list of blocks
    /// second finds them there.
    pub fn select(self: &Arc<Self>, matchers: &[Matcher], range: QueryRange) -> Select {
        let pin = self.pin();
        let meets = self.min_time().zip(self.max_time()).is_some_and(|(min, max)| min <= range.max && range.min <= max);
        let mut select = Select {
            head: Arc::clone(self),
            pin,
            pages: Vec::new(),
            range,
            runs: Vec::new(),
            fronts: BinaryHeap::new(),
            series: 0,
            keep: None,
        };
        if !meets || range.is_empty() {
            return select;
        }
        let found;
        (found, select.pages) = self.read(|reading| self.matching(reading, matchers));
        select.series = found.len();
        let runs = found.chunks(RUN_SERIES).take_while(|_| bounded::goes_on());
        select.runs = runs.map(|run| self.sort(run, &select.pages)).collect();
        (0..select.runs.len()).for_each(|run| select.advance(run));
        select
    }

    pub(super) fn pin(&self) -> Pin {
        let mut view = self.view.lock();
        let epoch = view.epoch;
        *view.readers.entry(epoch).or_insert(0) += 1;
        Pin { epoch, hidden: view.hidden }
    }

    pub(super) fn unpin(&self, pin: &Pin) {
        let mut view = self.view.lock();
        if let Some(readers) = view.readers.get_mut(&pin.epoch) {
            *readers -= 1;
            if *readers == 0 {
                view.readers.remove(&pin.epoch);
            }
        }
    }

    /// Sorts series by labels, descending.
    fn sort(&self, run: &[SeriesRef], pages: &[Arc<RwLock<Page>>]) -> Vec<SeriesRef> {
        let index = self.index.read();
        let mut pairs: Vec<(Symbol, Symbol)> = Vec::with_capacity(run.len() * 12);
        let mut keys: Vec<(SeriesRef, std::ops::Range<usize>)> = Vec::with_capacity(run.len());
        for in_page in run.chunk_by(|a, b| locate(*a).0 == locate(*b).0) {
            let Some(page) = pages.get(locate(in_page[0]).0) else { continue };
            let page = page.read();
            for series in in_page {
                let start = pairs.len();
                page.labels(locate(*series).1, &mut pairs);
                keys.push((*series, start..pairs.len()));
            }
        }
        keys.sort_unstable_by(|(_, a), (_, b)| index.compare(&pairs[b.clone()], &pairs[a.clone()]));
        keys.into_iter().map(|(series, _)| series).collect()
    }
}

impl Select {
    /// The same series, but those that `keep` refuses.
    #[must_use]
    pub fn only(mut self, keep: SeriesFilter) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Number of series selected; some may turn out to have no chunk in the range.
    pub fn series_count(&self) -> usize {
        self.series
    }

    /// The next series, in label order, with about `max_bytes` of chunks; at least one, `None` at the end.
    ///
    /// A chunk that cannot be read is an error: without it the answer would be wrong. After an error the select goes on
    /// behind the batch it would have been.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Option<Vec<SeriesChunks>>, Box<LostChunk>> {
        let (mut found, mut chunks_of) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let head = Arc::clone(&self.head);
        let rules = head.rules(0);
        let mut progress = Progress::default();
        while bytes < max_bytes
            && progress.goes_on(0)
            && let Some((labels, slot)) = self.next_series()
        {
            if self.keep.as_ref().is_some_and(|keep| !keep(&labels)) {
                continue;
            }
            let (number, at) = locate(slot);
            let mut chunks = Vec::new();
            if let Some(page) = self.page(number) {
                page.read().chunks(at, self.range, self.pin.hidden, rules, &mut chunks);
            }
            if !chunks.is_empty() {
                bytes += SeriesChunks::bytes_of(&labels, chunks.iter().map(PageChunk::len));
                found.push(labels);
                chunks_of.push(chunks);
            }
        }
        // No lock is held from here on: chunks are read from disk.
        let mut batch = Vec::with_capacity(found.len());
        for (labels, loaded) in found.into_iter().zip(rules.shelf.load(chunks_of)) {
            let chunks: Result<Vec<Chunk>, _> = loaded.into_iter().collect();
            match chunks {
                Ok(chunks) => batch.push(SeriesChunks { labels, chunks, deleted: Vec::new() }),
                Err((chunk, error)) => return Err(Box::new(LostChunk { labels, chunk, error })),
            }
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// The next series in label order.
    pub(super) fn next_series(&mut self) -> Option<(Labels, SeriesRef)> {
        let Reverse((labels, run, slot)) = self.fronts.pop()?;
        self.advance(run);
        Some((labels, slot))
    }

    /// A page, if there were so many when the select began.
    pub(super) fn page(&self, number: usize) -> Option<&RwLock<Page>> {
        self.pages.get(number).map(Arc::as_ref)
    }

    /// Moves the next series of a run to the fronts.
    fn advance(&mut self, run: usize) {
        let Some(slot) = self.runs[run].pop() else { return };
        let (number, at) = locate(slot);
        let mut pairs = Vec::with_capacity(16);
        let index = self.head.index.read();
        if let Some(page) = self.pages.get(number) {
            page.read().labels(at, &mut pairs);
        }
        let labels = index.labels(&pairs);
        drop(index);
        self.fronts.push(Reverse((labels, run, slot)));
    }
}

impl Drop for Select {
    fn drop(&mut self) {
        self.head.unpin(&self.pin);
    }
}
