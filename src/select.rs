//! What readers ask of ingesters and store-gateways alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::stream::BoxStream;
use parking_lot::Mutex;
use skald_model::{Exemplar, Labels, Matcher, QueryRange};
use skald_promql::eval::{CancelOnDrop, Interrupt, QueryContext, SourceCharge};
use skald_promql::plan::SeriesShard;
use skald_tsdb::{SeriesChunks, bounded};

use crate::error::{ErrorKind, ServiceError};
use crate::querier::client::query_error;
use crate::settings::ByteSize;

/// Asks for samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectRequest {
    /// All must hold; at least one does not match the empty string.
    pub matchers: Vec<Matcher>,
    /// Chunks that may hold samples of this range are answered whole.
    pub range: QueryRange,
    /// Only the series of one shard; the chunks of others are not touched.
    pub shard: Option<SeriesShard>,
    /// What bounds the work.
    pub bounds: RequestBounds,
}

impl SelectRequest {
    /// A request for all of the series, not bounded yet.
    pub fn new(matchers: Vec<Matcher>, range: QueryRange) -> Self {
        Self { matchers, range, shard: None, bounds: RequestBounds::default() }
    }
}

/// Asks for labels or series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRequest {
    /// A series counts when it satisfies one of these lists of matchers; no list at all means every series.
    pub selectors: Vec<Vec<Matcher>>,
    /// A series counts when it may have a sample in this range; supersets in time are allowed.
    pub range: QueryRange,
    /// So many of the answer will do, the first ones in its order; more are allowed.
    pub limit: Option<usize>,
    /// What bounds the work.
    pub bounds: RequestBounds,
}

impl LabelRequest {
    /// A request that is not bounded yet.
    pub fn new(selectors: Vec<Vec<Matcher>>, range: QueryRange) -> Self {
        Self { selectors, range, limit: None, bounds: RequestBounds::default() }
    }

    /// The same about the first so many, and one more: whether there are more decides what is said about them.
    #[must_use]
    pub fn limited(mut self, limit: Option<usize>) -> Self {
        self.limit = limit.map(|limit| limit.saturating_add(1));
        self
    }

    /// The same for somebody who waits until then, by this process' monotonic clock.
    #[must_use]
    pub fn until(mut self, deadline: Option<Duration>) -> Self {
        self.bounds.deadline = deadline;
        self
    }
}

/// What bounds the work on a request: it ends when nobody waits for the answer any more, and what an answer about labels
/// gathers is counted against a limit. Of this only the deadline goes to other processes. Clones share it; unbounded by default.
#[derive(Debug, Clone, Default)]
pub struct RequestBounds {
    interrupt: Interrupt,
    /// By this process' monotonic clock.
    deadline: Option<Duration>,
    gathered: Option<Arc<Mutex<Gathered>>>,
}

#[derive(Debug)]
struct Gathered {
    charge: SourceCharge,
    refused: Option<ServiceError>,
}

/// Bounds are no part of what is asked.
impl PartialEq for RequestBounds {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for RequestBounds {}

impl RequestBounds {
    /// Bounds of a select for somebody who waits until the deadline: whoever reads its series counts them.
    pub fn of_select(interrupt: Interrupt, deadline: Option<Duration>) -> Self {
        Self { interrupt, deadline, gathered: None }
    }

    /// Bounds of a question about labels or series, whose answer may hold so many bytes.
    pub fn of_labels(interrupt: Interrupt, deadline: Option<Duration>, memory_limit: Option<ByteSize>) -> Self {
        let context = QueryContext::new(memory_limit.map(ByteSize::as_usize), None, interrupt.clone());
        let gathered = Gathered { charge: context.source_charge(), refused: None };
        Self { interrupt, deadline, gathered: Some(Arc::new(Mutex::new(gathered))) }
    }

    /// Until when somebody waits, by this process' monotonic clock; `None` if that is not known.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Ends the work when this is dropped: for those who serve a request that came from another process.
    pub fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.interrupt.clone())
    }

    /// Does work whose loops end early when the bounds say so, which is then the error. What it gathers is counted until
    /// it is done.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, ServiceError> {
        self.check()?;
        let (bounds, taken) = (self.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = taken.clone();
        let goes_on = move |bytes| {
            counted.fetch_add(bytes, Ordering::Relaxed);
            bounds.goes_on(bytes)
        };
        let done = bounded(Arc::new(goes_on), work);
        if let Some(gathered) = &self.gathered {
            gathered.lock().charge.shrink(taken.load(Ordering::Relaxed));
        }
        self.check()?;
        Ok(done)
    }

    /// Counts what is kept of what was gathered, as long as the request lasts.
    pub fn keep<T: HeapBytes>(&self, all: Vec<T>) -> Result<Vec<T>, ServiceError> {
        self.gather(all.iter().map(T::heap_bytes).sum())?;
        Ok(all)
    }

    /// The same, bytes at a time.
    pub fn gather(&self, bytes: usize) -> Result<(), ServiceError> {
        self.goes_on(bytes);
        self.check()
    }

    fn goes_on(&self, bytes: usize) -> bool {
        if bytes > 0
            && let Some(gathered) = &self.gathered
        {
            let mut gathered = gathered.lock();
            if let Err(error) = gathered.charge.grow(bytes)
                && gathered.refused.is_none()
            {
                let reason = "max-memory-per-query";
                gathered.refused = Some(ServiceError::new(ErrorKind::Unprocessable, reason, error.to_string()));
            }
            return gathered.refused.is_none() && !self.interrupt.is_set();
        }
        !self.interrupt.is_set()
    }

    fn check(&self) -> Result<(), ServiceError> {
        self.interrupt.check().map_err(query_error)?;
        match self.gathered.as_ref().and_then(|gathered| gathered.lock().refused.clone()) {
            Some(refused) => Err(refused),
            None => Ok(()),
        }
    }
}

/// What an answer about labels gathers.
pub trait HeapBytes {
    /// What it costs whoever gathers many: itself, and its place in lists and trees that grow.
    fn heap_bytes(&self) -> usize;
}

impl HeapBytes for String {
    fn heap_bytes(&self) -> usize {
        self.len() + 4 * size_of::<Self>()
    }
}

impl HeapBytes for Labels {
    fn heap_bytes(&self) -> usize {
        self.as_bytes().len() + 4 * size_of::<Self>()
    }
}

/// Batches of series in ascending label order over the whole stream, each series once.
pub type SeriesStream = BoxStream<'static, Result<Vec<SeriesChunks>, ServiceError>>;

/// Exemplars of one series, ascending in time.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesExemplars {
    /// Which series.
    pub labels: Labels,
    /// Its exemplars.
    pub exemplars: Vec<Exemplar>,
}

/// Bytes of chunks one batch of a [`SeriesStream`] aims at: large enough to amortise a message, small enough that a
/// few in flight per stream stay cheap.
pub const BATCH_BYTES: usize = 512 << 10;
