//! The steps of an evaluation.

use skald_model::TimestampMs;

/// Evaluation times: `start`, `start + step`, …; at least one unless a subquery's window holds none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Time of the first step.
    pub start: TimestampMs,
    /// Milliseconds between steps; 0 only when there is one step.
    pub step: i64,
    /// Number of steps.
    pub count: usize,
}

impl Grid {
    /// One step.
    pub fn instant(time: TimestampMs) -> Self {
        Self { start: time, step: 0, count: 1 }
    }

    /// The steps from `start` to `end` inclusive; `step` is positive.
    pub fn range(start: TimestampMs, end: TimestampMs, step: i64) -> Self {
        let count = if end < start { 0 } else { (end.saturating_sub(start) / step.max(1)).saturating_add(1) };
        Self { start, step, count: usize::try_from(count).unwrap_or(usize::MAX) }
    }

    /// Some of the steps, counted from 0.
    pub fn part(&self, steps: std::ops::Range<usize>) -> Self {
        Self { start: self.time(steps.start), count: steps.end - steps.start, ..*self }
    }

    /// Time of step `i`.
    #[inline]
    pub fn time(&self, i: usize) -> TimestampMs {
        self.start.saturating_add(self.step.saturating_mul(i as i64))
    }

    /// Time of the last step.
    pub fn last(&self) -> TimestampMs {
        self.time(self.count.saturating_sub(1))
    }
}

/// How `@` and `offset` move the time a selector looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeShift {
    /// The time looked at instead of the step's own.
    pub at: Option<TimestampMs>,
    /// Milliseconds further into the past.
    pub offset: i64,
}

impl TimeShift {
    /// The time looked at in a step at `time`.
    #[inline]
    pub fn apply(&self, time: TimestampMs) -> TimestampMs {
        self.at.unwrap_or(time).saturating_sub(self.offset)
    }

    /// One shift after another, as nested subqueries and selectors have them.
    pub fn then(self, inner: Self) -> Self {
        match inner.at {
            Some(_) => inner,
            None => Self { at: self.at, offset: self.offset.saturating_add(inner.offset) },
        }
    }
}
