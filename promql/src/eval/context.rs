//! What bounds a query while it runs: bytes, samples, and the wish to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use super::combine::FragmentRunner;
use super::error::EvalError;
use crate::ast::Span;
use crate::source::SourceError;

/// The bounds of one query. Cloning shares them.
#[derive(Debug, Clone)]
pub struct QueryContext {
    budget: Arc<Budget>,
    interrupt: Interrupt,
    workers: Option<Arc<dyn Workers>>,
    clock: Option<Clock>,
    fragments: Option<Arc<dyn FragmentRunner>>,
}

/// Threads that take pieces of a query's work.
pub trait Workers: Send + Sync {
    /// How many there are.
    fn threads(&self) -> usize;
    /// Has `work` run some time, on another thread; it never waits for anything. It may be dropped unrun if the process
    /// stops.
    fn run(&self, work: Box<dyn FnOnce() + Send>);
}

/// A clock that only goes forward.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    pub(crate) fn now(&self) -> Duration {
        (self.0)()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl std::fmt::Debug for dyn Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workers({})", self.threads())
    }
}

impl QueryContext {
    /// Bounds with their limits; `None` means no limit.
    ///
    /// `memory_limit` counts bytes the query holds at one time (decoded samples, results of the parts of the query,
    /// batches of its sources); `sample_limit` counts the samples held at one time, as Prometheus' `query.max-samples`.
    pub fn new(memory_limit: Option<usize>, sample_limit: Option<usize>, interrupt: Interrupt) -> Self {
        let budget = Budget {
            memory_limit: memory_limit.unwrap_or(usize::MAX),
            bytes: AtomicUsize::new(0),
            peak_bytes: AtomicUsize::new(0),
            sample_limit: sample_limit.map_or(i64::MAX, |limit| i64::try_from(limit).unwrap_or(i64::MAX)),
            samples: AtomicI64::new(0),
            peak_samples: AtomicI64::new(0),
        };
        Self { budget: Arc::new(budget), interrupt, workers: None, clock: None, fragments: None }
    }

    /// The same bounds; parts of the work are given to `workers`.
    #[must_use]
    pub fn with_workers(self, workers: Arc<dyn Workers>) -> Self {
        Self { workers: Some(workers), ..self }
    }

    /// The same bounds; what each node of the plan costs is measured with `clock` and told in
    /// [`super::QueryOutput::explain`].
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { clock: Some(Clock(Arc::new(clock))), ..self }
    }

    /// The same bounds; the shards of the plan's [`crate::plan::Op::Combine`] nodes are evaluated by `fragments`.
    #[must_use]
    pub fn with_fragments(self, fragments: Arc<dyn FragmentRunner>) -> Self {
        Self { fragments: Some(fragments), ..self }
    }

    pub(crate) fn workers(&self) -> Option<&Arc<dyn Workers>> {
        self.workers.as_ref()
    }

    pub(crate) fn clock(&self) -> Option<&Clock> {
        self.clock.as_ref()
    }

    pub(crate) fn fragments(&self) -> Option<&Arc<dyn FragmentRunner>> {
        self.fragments.as_ref()
    }

    /// No limits and nothing that stops the query.
    pub fn unlimited() -> Self {
        Self::new(None, None, Interrupt::default())
    }

    /// Bytes the query holds now.
    pub fn bytes(&self) -> usize {
        self.budget.bytes.load(Ordering::Relaxed)
    }

    /// Most bytes the query has held at one time.
    pub fn peak_bytes(&self) -> usize {
        self.budget.peak_bytes.load(Ordering::Relaxed)
    }

    /// Most samples the query has held at one time.
    pub fn peak_samples(&self) -> usize {
        usize::try_from(self.budget.peak_samples.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// An empty share for data on its way from a source.
    pub fn source_charge(&self) -> SourceCharge {
        SourceCharge(Charge::new(&self.budget))
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// What stops the query.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

/// Stops a query's loops when whoever waits for its answer is gone: dropping its future alone stops it only where it
/// waits.
#[derive(Debug)]
pub struct CancelOnDrop(pub Interrupt);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Asks a running query to stop; the loops of the engine look at it every few thousand steps of work.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicU8>);

const CANCELED: u8 = 1;
const TIMED_OUT: u8 = 2;

impl Interrupt {
    /// Stops the query because nobody waits for it any more.
    pub fn cancel(&self) {
        let _ = self.0.compare_exchange(0, CANCELED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Stops the query because its deadline has passed.
    pub fn time_out(&self) {
        let _ = self.0.compare_exchange(0, TIMED_OUT, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether the query shall stop.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// The error a stopped query ends with.
    #[inline]
    pub fn check(&self) -> Result<(), EvalError> {
        match self.0.load(Ordering::Relaxed) {
            0 => {
                #[cfg(test)]
                looks::looked();
                Ok(())
            }
            CANCELED => Err(EvalError::Canceled),
            _ => Err(EvalError::Timeout),
        }
    }
}

/// For tests: how much CPU time a thread uses at most from one look at an interrupt that is not set to the next, or to
/// the end: what it takes to stop, wherever the query is when it is told to.
#[cfg(test)]
pub(crate) mod looks {
    use std::cell::Cell;
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    thread_local! {
        static LAST: Cell<Option<Duration>> = const { Cell::new(None) };
        static LONGEST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    fn now() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    pub(crate) fn begin() {
        LAST.set(Some(now()));
        LONGEST.set(Duration::ZERO);
    }

    pub(crate) fn looked() {
        if let Some(last) = LAST.get() {
            let now = now();
            LONGEST.set(LONGEST.get().max(now - last));
            LAST.set(Some(now));
        }
    }

    pub(crate) fn end() -> Duration {
        looked();
        LAST.set(None);
        LONGEST.get()
    }
}

/// Bytes and samples held, against their limits.
#[derive(Debug)]
pub(crate) struct Budget {
    memory_limit: usize,
    bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    sample_limit: i64,
    samples: AtomicI64,
    peak_samples: AtomicI64,
}

/// A share of a query's budget; given back on drop.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
    samples: i64,
}

impl Charge {
    /// An empty share.
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0, samples: 0 }
    }

    /// An empty share of the same budget.
    pub(crate) fn empty(&self) -> Self {
        Self::new(&self.budget)
    }

    /// Takes `bytes` more; `span` is the part of the query that needs them.
    pub(crate) fn grow(&mut self, bytes: usize, span: Span) -> Result<(), EvalError> {
        let budget = &self.budget;
        let held = budget.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.bytes += bytes;
        if held > budget.memory_limit {
            return Err(EvalError::MemoryLimit { limit: budget.memory_limit, needed: held, span });
        }
        budget.peak_bytes.fetch_max(held, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the share `bytes` large.
    pub(crate) fn resize(&mut self, bytes: usize, span: Span) -> Result<(), EvalError> {
        if bytes > self.bytes {
            return self.grow(bytes - self.bytes, span);
        }
        // Most often nothing changes, and threads that share the budget need not take it from each other.
        if bytes < self.bytes {
            self.budget.bytes.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Says how many samples the share stands for.
    pub(crate) fn hold_samples(&mut self, samples: usize) -> Result<(), EvalError> {
        self.change_samples(i64::try_from(samples).unwrap_or(i64::MAX) - self.samples)
    }

    /// Says that the share stands for `samples` more.
    pub(crate) fn hold_more_samples(&mut self, samples: usize) -> Result<(), EvalError> {
        self.change_samples(i64::try_from(samples).unwrap_or(i64::MAX))
    }

    fn change_samples(&mut self, change: i64) -> Result<(), EvalError> {
        if change == 0 {
            return Ok(());
        }
        let held = self.budget.samples.fetch_add(change, Ordering::Relaxed).saturating_add(change);
        self.samples = self.samples.saturating_add(change);
        if change <= 0 {
            return Ok(());
        }
        if held > self.budget.sample_limit {
            return Err(EvalError::TooManySamples);
        }
        self.budget.peak_samples.fetch_max(held, Ordering::Relaxed);
        Ok(())
    }
}

/// What a source holds of a query's budget: data it has fetched before the query asks for it.
#[derive(Debug)]
pub struct SourceCharge(Charge);

impl SourceCharge {
    /// Takes `bytes` more.
    pub fn grow(&mut self, bytes: usize) -> Result<(), SourceError> {
        self.0.grow(bytes, Span::default()).map_err(|error| {
            SourceError::Limit(format!("{error} for data on its way from ingesters and store-gateways"))
        })
    }

    /// Gives `bytes` back, at most what was taken.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.0.bytes);
        self.0.bytes -= bytes;
        self.0.budget.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What the answer to a query holds of the query's budget; whoever keeps the answer keeps this with it.
#[derive(Debug)]
pub struct AnswerCharge(Charge);

impl AnswerCharge {
    pub(crate) fn new(charge: Charge) -> Self {
        Self(charge)
    }

    /// Bytes the answer is counted with.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.samples != 0 {
            self.budget.samples.fetch_sub(self.samples, Ordering::Relaxed);
        }
    }
}
