//! The one seam between a query and where its samples are.

use std::task::{Context, Poll};

use skald_model::{Columns, Labels, Matcher, QueryRange};

use crate::plan::SeriesShard;

/// What one selector of a query needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Select {
    /// Conditions on the labels; at least one does not match the empty string.
    pub matchers: Vec<Matcher>,
    /// Every sample the query can look at, lookback and ranges included.
    pub range: QueryRange,
    /// Only the series of one shard. Not a hint: the other series must not be yielded.
    pub shard: Option<SeriesShard>,
    /// What the samples are for.
    pub hints: Hints,
}

/// What a source may use to read less. Ignoring every hint is correct.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hints {
    /// The query's step in ms; 0 for an instant query.
    pub step_ms: i64,
    /// The range selector's window in ms; 0 for an instant selector.
    pub range_ms: i64,
    /// The function or aggregation right above the selector, or empty.
    pub function: String,
}

/// Where series come from.
pub trait Queryable: Send + Sync {
    /// Starts reading, and may read a first batch that is at hand; the rest of the work happens while the source is
    /// polled. A query starts all its selects before it polls the first, so that sources can fetch at the same time.
    fn select(&self, select: Select) -> Box<dyn SeriesSource>;
}

/// A stream of series in ascending label order; every label set occurs once.
pub trait SeriesSource: Send {
    /// The next batch of series; `Ready(Ok(None))` is the end, after which the source is not polled again.
    ///
    /// On `Pending` the waker of `cx` is called once a batch may be there: the query gives its pool thread back in the
    /// meantime. Never blocks. After an error the source is not polled again. Dropping the source cancels the reading.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Box<dyn SeriesBatch>>, SourceError>>;
}

/// Some series, their samples still encoded.
pub trait SeriesBatch: Send + Sync {
    /// Number of series; at least one.
    fn len(&self) -> usize;

    /// Whether there is no series (never true of a batch that a source yields).
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Labels of series `i`.
    fn labels(&self, i: usize) -> &Labels;

    /// Appends the samples of series `i` that lie in `range` to the cleared `out`.
    fn decode(&self, i: usize, range: QueryRange, out: &mut Columns) -> Result<(), SourceError>;

    /// Bytes this batch holds; charged to the query's budget while it lives.
    fn heap_bytes(&self) -> usize;
}

/// Why a source cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// A limit of this query or tenant was reached; the text names it and its value.
    #[error("{0}")]
    Limit(String),
    /// What was read is damaged; the text names what and where.
    #[error("{0}")]
    Corrupt(String),
    /// Data could not be had now; the query may be repeated.
    #[error("{0}")]
    Unavailable(String),
    /// The query was cancelled or its deadline passed.
    #[error("{0}")]
    Interrupted(String),
}
