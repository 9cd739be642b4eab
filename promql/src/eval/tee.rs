//! One operator for several readers: parts of a query that stand at several places are computed once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::StepSeries;
use crate::ast::Span;

/// An operator with several readers, each of which gets every series. What some have read and others have not is kept.
pub(crate) struct Tee(Arc<Mutex<Option<Shared>>>);

struct Shared {
    child: Box<dyn Operator>,
    span: Span,
    /// Next series each reader gets; `None` once it has been dropped.
    positions: Vec<Option<usize>>,
    /// Series `first`, `first + 1`, … that some reader still waits for.
    kept: VecDeque<StepSeries>,
    first: usize,
    ended: bool,
}

impl Tee {
    /// A tee that has no operator yet.
    pub(crate) fn unset() -> Self {
        Self(Arc::default())
    }

    /// Gives the tee its operator.
    pub(crate) fn set(&self, child: Box<dyn Operator>, span: Span) {
        let shared = Shared { child, span, positions: Vec::new(), kept: VecDeque::new(), first: 0, ended: false };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared);
    }

    /// One more reader, if the tee has its operator. All readers are made before the first reads.
    pub(crate) fn reader(&self) -> Option<Reader> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let positions = &mut shared.as_mut()?.positions;
        positions.push(Some(0));
        Some(Reader { shared: Arc::clone(&self.0), number: positions.len() - 1 })
    }
}

/// One of the readers of a [`Tee`].
pub(crate) struct Reader {
    shared: Arc<Mutex<Option<Shared>>>,
    number: usize,
}

impl Operator for Reader {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        // Only the query's own thread reads; the lock is for the type's sake.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *shared {
            Some(shared) => shared.poll_next(self.number, cx, env),
            None => Poll::Ready(Ok(None)),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = &mut *shared {
            shared.positions[self.number] = None;
            shared.forget();
        }
    }
}

impl Shared {
    fn poll_next(
        &mut self,
        reader: usize,
        cx: &mut Context<'_>,
        env: &mut Env<'_>,
    ) -> Poll<Result<Option<StepSeries>, EvalError>> {
        let Some(position) = self.positions[reader] else { return Poll::Ready(Ok(None)) };
        if position == self.first + self.kept.len() {
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            let Some(mut series) = ready!(self.child.poll_next(cx, env))? else {
                self.ended = true;
                return Poll::Ready(Ok(None));
            };
            series.hold(self.span)?;
            self.kept.push_back(series);
        }
        self.positions[reader] = Some(position + 1);
        let last = self.positions.iter().flatten().all(|other| *other > position);
        if last && position == self.first {
            self.first += 1;
            let series = self.kept.pop_front();
            return Poll::Ready(Ok(series));
        }
        let series = &self.kept[position - self.first];
        let points = series.points.copy(env, self.span)?;
        env.tick(points.steps())?;
        let copy = StepSeries { labels: series.labels.clone(), drop_name: series.drop_name, points };
        Poll::Ready(Ok(Some(copy)))
    }

    /// Drops what every reader has read.
    fn forget(&mut self) {
        let next = self.positions.iter().flatten().min().copied();
        while !self.kept.is_empty() && next.is_none_or(|next| self.first < next) {
            self.kept.pop_front();
            self.first += 1;
        }
    }
}
