//! What the parts of a running query have in common.

use std::task::{Context, Poll};

use super::env::Env;
use super::error::EvalError;
use super::points::StepSeries;

/// A part of a running query that yields series, one at a time.
///
/// Series with equal labels may follow one another only if no step has a value in both (they are halves of one series
/// then); [`super::merge::Merge`] joins them where that matters and reports those that do collide.
pub(crate) trait Operator: Send {
    /// The next series; `None` is the end. `Pending` only when a source is.
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>>;
}

/// Yields nothing.
pub(crate) struct Nothing;

impl Operator for Nothing {
    fn poll_next(&mut self, _: &mut Context<'_>, _: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        Poll::Ready(Ok(None))
    }
}
