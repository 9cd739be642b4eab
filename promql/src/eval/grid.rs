//! The steps of an evaluation.

use skald_model::TimestampMs;

/// Evaluation times: `start`, `start + step`, …; at least one unless a subquery's window holds none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) start: TimestampMs,
    /// 0 only when there is one step.
    pub(crate) step: i64,
    pub(crate) count: usize,
}

impl Grid {
    /// One step.
    pub(crate) fn instant(time: TimestampMs) -> Self {
        Self { start: time, step: 0, count: 1 }
    }

    /// The steps from `start` to `end` inclusive; `step` is positive.
    pub(crate) fn range(start: TimestampMs, end: TimestampMs, step: i64) -> Self {
        let count = if end < start { 0 } else { (end.saturating_sub(start) / step.max(1)).saturating_add(1) };
        Self { start, step, count: usize::try_from(count).unwrap_or(usize::MAX) }
    }

    /// Time of step `i`.
    #[inline]
    pub(crate) fn time(&self, i: usize) -> TimestampMs {
        self.start.saturating_add(self.step.saturating_mul(i as i64))
    }

    /// Time of the last step.
    pub(crate) fn last(&self) -> TimestampMs {
        self.time(self.count.saturating_sub(1))
    }
}

/// How `@` and `offset` move the time a selector looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TimeShift {
    pub(crate) at: Option<TimestampMs>,
    pub(crate) offset: i64,
}

impl TimeShift {
    /// The time looked at in a step at `time`.
    #[inline]
    pub(crate) fn apply(&self, time: TimestampMs) -> TimestampMs {
        self.at.unwrap_or(time).saturating_sub(self.offset)
    }
}
