//! Selectors, and range functions of range selectors: what is worked out for each series alone.
//!
//! Batches of series are cut into pieces by their size, the same way whatever the number of threads. Where the query
//! has [`Workers`](super::Workers), pieces are decoded and worked on by them and by the query's own thread, a few ahead;
//! what comes of them is taken in order. So nothing depends on who worked on what, and the memory ahead is bounded.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use skald_model::{Columns, Labels};

use super::context::{Charge, QueryContext};
use super::env::{Env, Said};
use super::error::EvalError;
use super::operator::Operator;
use super::points::{Points, StepSeries};
use super::reader::{Decoding, SeriesReader};
use crate::source::SeriesBatch;

/// Work on one series, with no knowledge of the others.
pub(crate) trait SeriesWork: Send + Sync {
    /// Makes one value per step out of a series' samples in `buffers`; `None` if no step has one.
    fn run(&self, labels: Labels, buffers: &mut Buffers, env: &mut Env<'_>) -> Result<Option<StepSeries>, EvalError>;
}

/// Memory that is used for one series after the other.
#[derive(Default)]
pub(crate) struct Buffers {
    /// The samples of the series.
    pub(crate) columns: Columns,
    /// For functions that sort a window's values.
    pub(crate) scratch: Vec<f64>,
}

/// Bytes a piece makes and reads, roughly: large enough to be worth a hand-over, small enough to wait for.
const PIECE_BYTES: usize = 1 << 18;
/// A batch smaller than this is worked on where it is.
const SMALL_BYTES: usize = 1 << 16;

/// Runs a [`SeriesWork`] on every series of a select.
pub(crate) struct SeriesOperator {
    reader: SeriesReader,
    work: Arc<dyn SeriesWork>,
    steps: usize,
    /// The batch being cut or, when it is small, read series by series.
    batch: Option<Batch>,
    ended: bool,
    /// Pieces in order, some of them being worked on.
    pieces: VecDeque<Arc<Piece>>,
    ready: VecDeque<StepSeries>,
    buffers: Buffers,
    /// The samples of the series that is read without a piece.
    charge: Charge,
}

/// A batch, charged while anyone holds it.
struct Held {
    batch: Box<dyn SeriesBatch>,
    _charge: Charge,
}

struct Batch {
    held: Arc<Held>,
    /// First series not yet given out.
    next: usize,
    /// Series of a piece; 0 if the batch is not cut.
    per_piece: usize,
}

impl SeriesOperator {
    pub(crate) fn new(reader: SeriesReader, work: Arc<dyn SeriesWork>, steps: usize) -> Self {
        let charge = reader.empty_charge();
        Self {
            reader,
            work,
            steps,
            batch: None,
            ended: false,
            pieces: VecDeque::new(),
            ready: VecDeque::new(),
            buffers: Buffers::default(),
            charge,
        }
    }

    /// Makes sure that there is a batch with a series left, unless all have ended.
    fn poll_batch(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<(), EvalError>> {
        if self.ended || self.batch.as_ref().is_some_and(|batch| batch.next < batch.held.batch.len()) {
            return Poll::Ready(Ok(()));
        }
        self.batch = None;
        let Some((batch, charge)) = std::task::ready!(self.reader.poll_batch(cx, env))? else {
            self.ended = true;
            return Poll::Ready(Ok(()));
        };
        let each = batch.heap_bytes() / batch.len().max(1) + 8 * self.steps;
        let parallel = env.workers > 1 && each.saturating_mul(batch.len()) > SMALL_BYTES && batch.len() > 1;
        let per_piece = if parallel { (PIECE_BYTES / each.max(1)).max(1) } else { 0 };
        self.batch = Some(Batch { held: Arc::new(Held { batch, _charge: charge }), next: 0, per_piece });
        Poll::Ready(Ok(()))
    }

    /// Hands pieces to the workers, up to some ahead. `Pending` if the source has nothing at the moment.
    fn hand_out(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<(), EvalError>> {
        let ahead = if env.workers > 1 { 2 * env.workers } else { 0 };
        while self.pieces.len() < ahead {
            std::task::ready!(self.poll_batch(cx, env))?;
            let Some(batch) = self.batch.as_mut().filter(|batch| batch.per_piece > 0) else { break };
            let end = (batch.next + batch.per_piece).min(batch.held.batch.len());
            let job = Job {
                held: Arc::clone(&batch.held),
                series: batch.next..end,
                decoding: self.reader.decoding(),
                work: Arc::clone(&self.work),
                context: env.context.clone(),
                said: env.said_of_a_piece(),
                spare: env.take_spare(end - batch.next),
            };
            batch.next = end;
            let piece = Arc::new(Piece(Mutex::new(State::Waiting(Box::new(job)))));
            if let Some(workers) = env.context.workers() {
                let piece = Arc::clone(&piece);
                workers.run(Box::new(move || piece.work()));
            }
            self.pieces.push_back(piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl Operator for SeriesOperator {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        loop {
            if let Some(series) = self.ready.pop_front() {
                return Poll::Ready(Ok(Some(series)));
            }
            let handed_out = self.hand_out(cx, env)?;
            if let Some(first) = self.pieces.front() {
                // Rather than wait for it, work on what nobody has begun.
                if first.is_begun() && !first.is_done() {
                    if let Some(other) = self.pieces.iter().find(|piece| !piece.is_begun()) {
                        other.work();
                        continue;
                    }
                } else {
                    first.work();
                }
                let Some(outcome) = first.take(cx.waker()) else { return Poll::Pending };
                self.pieces.pop_front();
                let (series, said) = outcome?;
                self.reader.report(&said);
                env.take_in(said);
                self.ready.extend(series);
                continue;
            }
            std::task::ready!(handed_out);
            std::task::ready!(self.poll_batch(cx, env))?;
            let Some(batch) = &mut self.batch else {
                self.charge.resize(0, self.reader.span())?;
                self.charge.hold_samples(0)?;
                return Poll::Ready(Ok(None));
            };
            if batch.per_piece > 0 {
                continue;
            }
            let i = batch.next;
            batch.next += 1;
            let held = Arc::clone(&batch.held);
            let decoding = self.reader.decoding();
            let samples = decoding.decode(&*held.batch, i, &mut self.buffers.columns, &mut self.charge, env)?;
            self.reader.report_series(samples);
            let labels = held.batch.labels(i).clone();
            if let Some(series) = self.work.run(labels, &mut self.buffers, env)? {
                return Poll::Ready(Ok(Some(series)));
            }
        }
    }
}

impl Drop for SeriesOperator {
    fn drop(&mut self) {
        // What nobody has begun need not be done.
        self.pieces.iter().for_each(|piece| piece.forget());
    }
}

/// Some series of a batch, on their way through a worker.
struct Piece(Mutex<State>);

enum State {
    Waiting(Box<Job>),
    /// Being worked on; whoever waits for it.
    Begun(Option<Waker>),
    Done(Box<Result<(Vec<StepSeries>, Said), EvalError>>),
    Taken,
}

struct Job {
    held: Arc<Held>,
    series: Range<usize>,
    decoding: Decoding,
    work: Arc<dyn SeriesWork>,
    context: QueryContext,
    said: Said,
    spare: Vec<Points>,
}

impl Piece {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_begun(&self) -> bool {
        !matches!(*self.state(), State::Waiting(_))
    }

    fn is_done(&self) -> bool {
        matches!(*self.state(), State::Done(_))
    }

    /// Does the work, unless somebody has begun it.
    fn work(&self) {
        let job = {
            let mut state = self.state();
            match std::mem::replace(&mut *state, State::Begun(None)) {
                State::Waiting(job) => job,
                other => {
                    *state = other;
                    return;
                }
            }
        };
        // A panic must not leave the query waiting.
        let mut finish = Finish { piece: self, outcome: None };
        finish.outcome = Some(job.run());
    }

    /// What came of it, once it is done; otherwise `waker` is told.
    fn take(&self, waker: &Waker) -> Option<Result<(Vec<StepSeries>, Said), EvalError>> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Done(outcome) => Some(*outcome),
            State::Begun(_) => {
                *state = State::Begun(Some(waker.clone()));
                None
            }
            other => {
                *state = other;
                Some(Err(EvalError::Internal("a piece of work was lost".to_owned())))
            }
        }
    }

    fn forget(&self) {
        let mut state = self.state();
        if matches!(*state, State::Waiting(_)) {
            *state = State::Taken;
        }
    }
}

/// Says that a piece is done, also when its work panics.
struct Finish<'p> {
    piece: &'p Piece,
    outcome: Option<Result<(Vec<StepSeries>, Said), EvalError>>,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let lost = || Err(EvalError::Internal("a worker panicked".to_owned()));
        let outcome = self.outcome.take().unwrap_or_else(lost);
        let before = std::mem::replace(&mut *self.piece.state(), State::Done(Box::new(outcome)));
        if let State::Begun(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl Job {
    fn run(self) -> Result<(Vec<StepSeries>, Said), EvalError> {
        let context = self.context;
        let mut env = Env::of_piece(&context, self.said, self.spare);
        let begun = env.now();
        let mut buffers = Buffers::default();
        let mut charge = env.charge();
        let mut out = Vec::with_capacity(self.series.len());
        for i in self.series {
            let batch = &*self.held.batch;
            self.decoding.decode(batch, i, &mut buffers.columns, &mut charge, &mut env)?;
            out.extend(self.work.run(batch.labels(i).clone(), &mut buffers, &mut env)?);
        }
        Ok((out, env.into_said(begun)))
    }
}
